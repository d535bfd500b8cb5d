//! The Lua scripts: each checks the lease and changes the batch in one atomic step.

use std::sync::LazyLock;

use ::redis::Cmd;

use super::errors;
use super::link::{Database, Repeat};
use super::names::millis;
use super::wire::Answer;
use crate::cache::{CacheError, Lease};

/// A script, known to Redis by its hash once it ran there.
pub(super) struct Script {
    source: String,
    hash: String,
}

macro_rules! script {
    ($name:ident = $($file:literal),+) => {
        pub(super) static $name: LazyLock<Script> =
            LazyLock::new(|| Script::new(&[$(include_str!(concat!("lua/", $file, ".lua"))),+]));
    };
}

script!(CLAIM = "claim");
script!(ADOPT = "adopt");
script!(RENEW = "held");
script!(LET_GO = "let_go");
script!(BEGIN = "held", "begin");
script!(SEAL = "held", "seal");
script!(MARK = "held", "mark");
script!(BURY = "held", "bury");
script!(RELEASE = "held", "release");
script!(CARRY = "finished", "held", "carry");
script!(PUSH = "finished", "held", "push");
script!(FINISH = "finished", "held", "finish");

impl Script {
    fn new(parts: &[&str]) -> Self {
        let source = parts.concat();
        let hash = ::redis::Script::new(&source).get_hash().to_owned();
        Self { source, hash }
    }

    /// Runs the script for a lease. `KEYS[1]` should be the lease's key; `ARGV` is its owner, its length, then what `more`
    /// adds.
    pub(super) async fn run(
        &self,
        database: &Database,
        lease: &Lease,
        keys: &[&str],
        more: impl Fn(&mut Cmd) + Send + Sync,
    ) -> Result<Answer, CacheError> {
        let command = |verb, script| {
            let mut command = ::redis::cmd(verb);
            command.arg(script).arg(keys.len()).arg(keys).arg(&lease.owner).arg(millis(lease.ttl));
            more(&mut command);
            command
        };
        let mut answer = database.send_one(command("EVALSHA", &self.hash), Repeat::Harmless).await?;
        if matches!(&answer, Answer::Error(error) if error.code() == "NOSCRIPT") {
            answer = database.send_one(command("EVAL", &self.source), Repeat::Harmless).await?;
        }
        match answer {
            Answer::Error(error) => Err(match error.code() {
                "LEASELOST" => CacheError::LeaseLost { batch: lease.batch.clone() },
                "GAP" => errors::vanished(&database.server, &format!("parts of batch {}", lease.batch)),
                _ => errors::from_server(&database.server, &error),
            }),
            answer => Ok(answer),
        }
    }
}
