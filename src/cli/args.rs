//! The commands and their flags.

use std::path::PathBuf;

use chrono::{DateTime, NaiveDate, NaiveDateTime, Utc};
use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

use crate::history::RunState;
use crate::units::Span;

/// The night watch of an ML prediction cache: moves predictions from Redis to BigQuery, exactly once, on schedule, and says so when something breaks.
#[derive(Debug, Parser)]
#[command(name = "lamplighter", version, arg_required_else_help = true, max_term_width = 110)]
#[command(after_help = "Exit codes: 0 all is well · 1 it ran and found trouble · 2 wrong usage · \
                        69 a server cannot be reached · 78 the configuration is wrong")]
pub(super) struct Cli {
    #[command(flatten)]
    pub(super) global: Global,
    #[command(subcommand)]
    pub(super) command: Command,
}

/// Flags that every command takes.
#[derive(Debug, Clone, Args)]
pub(super) struct Global {
    /// The jobs file [default: $LAMPLIGHTER_CONFIG, else ./jobs.toml]
    #[arg(long, global = true, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// Print JSON instead of text for people
    #[arg(long, global = true)]
    pub(super) json: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Stay up and run every job on its schedule
    Serve(ServeArgs),
    /// Run one job now, or everything that is due
    #[command(override_usage = "lamplighter run [OPTIONS] <JOB>\n       lamplighter run [OPTIONS] --due")]
    Run(RunArgs),
    /// Check jobs.toml and the environment, and show the next five runs of every job
    Check,
    /// List the jobs, with their last and next runs
    List,
    /// Show what ran, newest first
    History(HistoryArgs),
    /// Say a cron line in words, and list its next instants
    Explain(ExplainArgs),
    /// Print when every job runs between two instants, clock changes included
    Simulate(SimulateArgs),
    /// Look at records that could not be loaded, and try them again
    #[command(subcommand)]
    DeadLetters(DeadLettersCommand),
    /// Look at alerts and their messages, and test a receiver
    #[command(subcommand)]
    Alerts(AlertsCommand),
    /// Show a whole night's work in a folder to play with; needs no server
    Demo(DemoArgs),
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the version
    Version,
}

#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    /// How long running jobs may take to end after SIGTERM or Ctrl-C
    #[arg(long, value_name = "DURATION", env = "LAMPLIGHTER_GRACE", default_value = "25s", value_parser = Span::parse)]
    pub(super) grace: Span,
}

#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// The job to run now
    #[arg(required_unless_present = "due", conflicts_with = "due")]
    pub(super) job: Option<String>,
    /// Run what is due since the last time, then exit: for hosts that start us on a timer
    #[arg(long)]
    pub(super) due: bool,
    /// Print what the run would do, and touch nothing
    #[arg(long, conflicts_with = "due")]
    pub(super) dry_run: bool,
    /// How long running jobs may take to end after SIGTERM or Ctrl-C
    #[arg(long, value_name = "DURATION", env = "LAMPLIGHTER_GRACE", default_value = "25s", value_parser = Span::parse)]
    pub(super) grace: Span,
}

#[derive(Debug, Args)]
pub(super) struct HistoryArgs {
    /// Only this job's runs
    pub(super) job: Option<String>,
    /// How many runs
    #[arg(long, short = 'n', default_value_t = 25, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(super) limit: u32,
    /// Only runs since then: an age such as 2h or 7d, or an instant
    #[arg(long, value_name = "WHEN", value_parser = since)]
    pub(super) since: Option<Since>,
    /// Only runs in these states, separated by commas: running, succeeded, failed, timed_out, cancelled, skipped, missed, lost
    #[arg(long, value_name = "STATE", value_delimiter = ',')]
    pub(super) state: Vec<RunState>,
}

#[derive(Debug, Args)]
pub(super) struct ExplainArgs {
    /// A cron line in quotes, or a period such as 30s
    pub(super) schedule: String,
    /// The IANA zone in which the line is read
    #[arg(long, value_name = "ZONE", default_value = "UTC")]
    pub(super) tz: String,
    /// List the instants after this one [default: now]
    #[arg(long, value_name = "INSTANT", value_parser = instant)]
    pub(super) from: Option<DateTime<Utc>>,
    /// How many instants
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(0..=10_000))]
    pub(super) next: u32,
}

#[derive(Debug, Args)]
pub(super) struct SimulateArgs {
    /// From this instant on [default: now]
    #[arg(long, value_name = "INSTANT", value_parser = instant)]
    pub(super) from: Option<DateTime<Utc>>,
    /// Up to this instant [default: a day after the start]
    #[arg(long, value_name = "INSTANT", value_parser = instant)]
    pub(super) to: Option<DateTime<Utc>>,
}

#[derive(Debug, Subcommand)]
pub(super) enum DeadLettersCommand {
    /// List them, oldest first, after how many there are of each sort
    List {
        #[command(flatten)]
        which: Which,
        /// How many
        #[arg(long, short = 'n', default_value_t = 25, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        limit: u32,
    },
    /// Show one with its record
    Show {
        /// Its id
        id: String,
    },
    /// Put them back into the cache and the queue, so that the next upload takes them again
    Retry {
        /// Their ids
        ids: Vec<String>,
        #[command(flatten)]
        which: Which,
        /// All of them
        #[arg(long, conflicts_with_all = ["ids", "dataset", "reason"])]
        all: bool,
    },
    /// Print them as one JSON object a line, records included
    Export {
        #[command(flatten)]
        which: Which,
    },
    /// Forget them; records that are in the cache stay there until their TTL ends
    Drop {
        /// Their ids
        ids: Vec<String>,
        #[command(flatten)]
        which: Which,
        /// All of them
        #[arg(long, conflicts_with_all = ["ids", "dataset", "reason"])]
        all: bool,
    },
}

/// Which dead letters are meant.
#[derive(Debug, Clone, Args)]
pub(super) struct Which {
    /// Only this dataset's
    #[arg(long)]
    pub(super) dataset: Option<String>,
    /// Only those with this reason, such as not_json or schema
    #[arg(long)]
    pub(super) reason: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(super) enum AlertsCommand {
    /// List alerts, firing ones first
    List {
        /// How many
        #[arg(long, short = 'n', default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        limit: u32,
    },
    /// List the messages that alerts caused, newest first, and what became of them
    Messages {
        /// How many
        #[arg(long, short = 'n', default_value_t = 25, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        limit: u32,
    },
    /// Send a test message to a receiver, now
    Test {
        /// The receiver's name in jobs.toml
        receiver: String,
    },
}

#[derive(Debug, Args)]
pub(super) struct DemoArgs {
    /// The folder for the demo's data; it is created, and must be empty or an earlier demo's
    #[arg(long, value_name = "FOLDER", default_value = "lamplighter-demo")]
    pub(super) dir: PathBuf,
}

/// An instant or an age.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Since {
    At(DateTime<Utc>),
    Ago(Span),
}

impl Since {
    pub(super) fn before(self, now: DateTime<Utc>) -> DateTime<Utc> {
        match self {
            Self::At(at) => at,
            Self::Ago(Span(age)) => now.checked_sub_signed(crate::schedule::delta(age)).unwrap_or(DateTime::UNIX_EPOCH),
        }
    }
}

fn since(text: &str) -> Result<Since, String> {
    Span::parse(text).map(Since::Ago).or_else(|_| instant(text).map(Since::At)).map_err(|_| {
        format!("{text:?} is neither an age nor an instant; write for example 2h, 7d or 2026-03-29T01:00:00Z")
    })
}

/// An instant: RFC 3339, or a civil time or day, which are read in UTC.
fn instant(text: &str) -> Result<DateTime<Utc>, String> {
    let civil = |format| NaiveDateTime::parse_from_str(text, format).ok().map(|at| at.and_utc());
    DateTime::parse_from_rfc3339(text)
        .map(|at| at.with_timezone(&Utc))
        .ok()
        .or_else(|| {
            ["%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M"].into_iter().find_map(civil)
        })
        .or_else(|| Some(NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?.and_hms_opt(0, 0, 0)?.and_utc()))
        .ok_or_else(|| {
            format!("{text:?} is not an instant; write for example 2026-03-29T01:00:00Z or 2026-03-29 (UTC)")
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_and_flags_fit_together() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn instants_are_read_in_the_forms_that_people_write() {
        let at = |text: &str| instant(text).map(|at| at.to_rfc3339());
        assert_eq!(at("2026-03-29T01:00:00+01:00").as_deref(), Ok("2026-03-29T00:00:00+00:00"));
        assert_eq!(at("2026-03-29 01:00").as_deref(), Ok("2026-03-29T01:00:00+00:00"));
        assert_eq!(at("2026-03-29").as_deref(), Ok("2026-03-29T00:00:00+00:00"));
        assert!(at("yesterday").unwrap_err().contains("write for example"));
    }
}
