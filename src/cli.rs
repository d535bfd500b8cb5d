//! Commands, their output and their exit codes. What they do is the business of the rooms below.

mod alerts;
mod args;
mod dead_letters;
mod demo;
mod failure;
mod logs;
mod look;
mod output;
mod run;
mod schedules;
mod signals;
mod tables;
mod times;

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{CommandFactory, Parser};

use self::args::{Cli, Command, Global};
use self::failure::Failure;
use self::output::{Output, complain};
use crate::clock::{Clock, SystemClock};
use crate::history::SharedHistory;
use crate::settings::{Env, Settings};

/// How long the program waits, at its very end, for threads that do not let go.
const LAST_WAIT: Duration = Duration::from_secs(2);

/// Does what the arguments ask for, and returns the exit code.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and the version are no errors, and go to the standard output.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    // One worker: there is little to compute, and what there is makes way for the rest. With two, each wakes the other up all the
    // time, mostly on Redis's processor: an upload on two cores was a tenth slower, and took a little more memory.
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format!("the runtime cannot be started: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(obey(cli));
    // A body that blocks its thread must not keep the program from ending.
    runtime.shutdown_timeout(LAST_WAIT);
    match result {
        Ok(()) => match output::failed() {
            None => ExitCode::SUCCESS,
            Some(reason) => {
                complain(&format!("the output is not complete: {reason}"));
                ExitCode::FAILURE
            }
        },
        Err(Failure { code, message }) => {
            if let Some(message) = message {
                complain(&message);
            }
            ExitCode::from(code)
        }
    }
}

async fn obey(cli: Cli) -> Result<(), Failure> {
    let out = Output::new(cli.global.json);
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let now = clock.now();
    let house = House { global: cli.global, out, clock };
    match cli.command {
        Command::Serve(args) => run::serve(&house, args).await,
        Command::Run(args) => run::run(&house, args).await,
        Command::Check => look::check(&house, now),
        Command::List => look::list(&house, now).await,
        Command::History(args) => look::history(&house, args, now).await,
        Command::Explain(args) => schedules::explain(&args, &out, now),
        Command::Simulate(args) => {
            let settings = house.settings()?;
            schedules::timeline(&args, settings.jobs.iter(), &out, now)
        }
        Command::DeadLetters(command) => dead_letters::obey(&house, command, now).await,
        Command::Alerts(command) => alerts::obey(&house, command, now).await,
        Command::Demo(args) => demo::demo(&house, args).await,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "lamplighter", &mut script);
            out.bytes(&script);
            Ok(())
        }
        Command::Version => {
            let version = env!("CARGO_PKG_VERSION");
            if out.json {
                out.json(&serde_json::json!({ "name": "lamplighter", "version": version }));
            } else {
                out.line(format_args!("lamplighter {version}"));
            }
            Ok(())
        }
    }
}

/// What every command is given.
struct House {
    global: Global,
    out: Output,
    clock: Arc<dyn Clock>,
}

impl House {
    /// Reads jobs.toml and the environment.
    fn settings(&self) -> Result<Settings, Failure> {
        let settings = Settings::load(self.global.config.as_deref(), &environment(), &crate::jobs::kinds());
        settings.map_err(|problems| {
            if self.out.json {
                self.out.json(&serde_json::json!({ "ok": false, "problems": problems.iter().collect::<Vec<_>>() }));
                return Failure::told(failure::CONFIGURATION);
            }
            self.out.remark(&problems);
            Failure::told(failure::CONFIGURATION)
        })
    }

    /// Opens the history alone, for commands that look at it.
    async fn history(&self) -> Result<(Settings, SharedHistory), Failure> {
        let settings = self.settings()?;
        logs::start(logs::form(false), &settings.backends.log, true);
        let history = crate::app::open_history(&settings, &self.clock)?;
        history.migrate().await?;
        Ok((settings, history))
    }
}

/// The variables. Values that are not UTF-8 are no settings of ours.
fn environment() -> Env {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}
