//! What Redis and the network say, turned into what a caller can do about it.

use std::error::Error;
use std::io;
use std::sync::Arc;

use ::redis::{ErrorKind, RedisError, ServerError};

use crate::cache::CacheError;

/// A failure on our side of the wire: network, TLS, protocol, or a refused connection.
pub(super) fn from_client(server: &str, error: &RedisError) -> CacheError {
    let said = error.to_string();
    match error.kind() {
        ErrorKind::Parse | ErrorKind::UnexpectedReturnType => not_a_redis(server, &said),
        ErrorKind::Io if io_error(error).map(io::Error::kind) == Some(io::ErrorKind::InvalidData) => {
            CacheError::Refused {
                server: server.to_owned(),
                reason: said,
                cure: "If it speaks no TLS, REDIS_URL must begin with redis:// instead of rediss://; if it does, its \
                   certificate must be one that the public authorities vouch for"
                    .to_owned(),
            }
        }
        ErrorKind::Io => {
            let explained = io_error(error).is_some_and(|error| error.get_ref().is_some());
            let reason = if error.is_timeout() && !explained { "no answer in time".to_owned() } else { said };
            CacheError::Unreachable { server: server.to_owned(), reason }
        }
        _ => classify(server, error.code().unwrap_or_default(), &said),
    }
}

/// An error that Redis answered a command with.
pub(super) fn from_server(server: &str, error: &ServerError) -> CacheError {
    let said = match error.details() {
        Some(details) => format!("{} {details}", error.code()),
        None => error.code().to_owned(),
    };
    classify(server, error.code(), &said)
}

/// A server that answers, but not as a Redis does.
pub(super) fn not_a_redis(server: &str, said: &str) -> CacheError {
    // The parser quotes what it met, which can be a whole page of HTML.
    let reason = format!("its answer is not in Redis's protocol ({})", first_words(said));
    CacheError::Refused {
        server: server.to_owned(),
        reason,
        cure: "Check host and port in REDIS_URL; if the server speaks TLS, the URL must begin with rediss://"
            .to_owned(),
    }
}

/// A piece of our own bookkeeping that has vanished from under us.
pub(super) fn vanished(server: &str, what: &str) -> CacheError {
    CacheError::Refused {
        server: server.to_owned(),
        reason: format!("{what} were written and are gone: somebody deleted them, or Redis evicted them"),
        cure: "A Redis that holds a queue needs `maxmemory-policy noeviction`".to_owned(),
    }
}

fn classify(server: &str, code: &str, said: &str) -> CacheError {
    let (server, reason) = (server.to_owned(), first_words(said));
    let has = |word: &str| said.contains(word);
    if ["WRONGPASS", "NOAUTH"].contains(&code) || has("invalid password") {
        let cure = "Check user and password in REDIS_URL (or REDIS_PASSWORD)".to_owned();
        CacheError::Refused { server, reason, cure }
    } else if code == "NOPERM" || has("NOPERM") {
        let cure =
            "The user in REDIS_URL needs every command on the queues' and records' keys: `ACL SETUSER <user> +@all ~*`"
                .to_owned();
        CacheError::Refused { server, reason, cure }
    } else if has("without any password configured") {
        let cure = "This Redis wants no password: take it out of REDIS_URL and unset REDIS_PASSWORD".to_owned();
        CacheError::Refused { server, reason, cure }
    } else if has("DB index is out of range") || has("SELECT is not allowed") {
        let number = server.rsplit('/').next().unwrap_or_default();
        let reason = format!("this Redis has no database {number}: {reason}");
        let cure =
            "Set `database` in [datasets.…], or the number at the end of REDIS_URL, to one that it has; or raise \
                    `databases` in redis.conf"
                .to_owned();
        CacheError::Refused { server, reason, cure }
    } else if ["OOM", "READONLY", "MISCONF", "NOREPLICAS"].iter().any(|full| code == *full || has(full)) {
        CacheError::Full { server, reason }
    } else if ["LOADING", "MASTERDOWN", "BUSY", "TRYAGAIN", "CLUSTERDOWN", "UNBLOCKED"].contains(&code)
        || has("max number of clients")
    {
        CacheError::Unreachable { server, reason }
    } else if has("WRONGTYPE") {
        let cure = "The name of a queue must be that of a list; check `queue` in [datasets.…]".to_owned();
        CacheError::Refused { server, reason, cure }
    } else {
        let cure = "The README names the Redis versions that are known to work".to_owned();
        CacheError::Refused { server, reason, cure }
    }
}

fn io_error(error: &RedisError) -> Option<&io::Error> {
    // The crate keeps it in an `Arc`, which is an error itself.
    let kept: &Arc<dyn Error + Send + Sync> = error.source()?.downcast_ref()?;
    kept.downcast_ref()
}

/// At most the first line, and of that 200 characters; without a full stop, because our own follows.
fn first_words(said: &str) -> String {
    said.lines().next().unwrap_or_default().trim_end_matches('.').chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_tls_says_is_told_with_its_cure() {
        let error = io::Error::new(io::ErrorKind::InvalidData, "invalid peer certificate: UnknownIssuer");
        let error = from_client("example:6379/0", &error.into());
        assert!(matches!(&error, CacheError::Refused { cure, .. } if cure.contains("certificate")), "{error:?}");
        let error = io::Error::new(io::ErrorKind::TimedOut, "no answer to the TLS greeting");
        let error = from_client("example:6379/0", &error.into());
        assert!(matches!(&error, CacheError::Unreachable { reason, .. } if reason.contains("greeting")), "{error:?}");
        let error = from_client("example:6379/0", &io::Error::from(io::ErrorKind::TimedOut).into());
        assert!(matches!(&error, CacheError::Unreachable { reason, .. } if reason == "no answer in time"), "{error:?}");
    }

    #[test]
    fn every_answer_of_redis_has_its_class() {
        let refused = |e: &CacheError| matches!(e, CacheError::Refused { .. });
        let full = |e: &CacheError| matches!(e, CacheError::Full { .. });
        let away = |e: &CacheError| matches!(e, CacheError::Unreachable { .. });
        type Class<'a> = &'a dyn Fn(&CacheError) -> bool;
        let table: [(&str, &str, Class<'_>, &str); 9] = [
            ("WRONGPASS", "WRONGPASS invalid username-password pair", &refused, "REDIS_PASSWORD"),
            ("NOAUTH", "NOAUTH Authentication required.", &refused, "REDIS_PASSWORD"),
            ("NOPERM", "NOPERM this user has no permissions to run 'lrange'", &refused, "ACL SETUSER"),
            ("ERR", "ERR DB index is out of range", &refused, "no database 1"),
            ("WRONGTYPE", "WRONGTYPE Operation against a key", &refused, "must be that of a list"),
            ("OOM", "OOM command not allowed when used memory > 'maxmemory'.", &full, "used memory"),
            ("ERR", "ERR Error running script: -OOM command not allowed", &full, "OOM"),
            ("MISCONF", "MISCONF Redis is configured to save RDB snapshots", &full, "snapshots"),
            ("LOADING", "LOADING Redis is loading the dataset in memory", &away, "loading"),
        ];
        for (code, said, class, words) in table {
            let error = classify("example:6379/1", code, said);
            assert!(class(&error), "{said} became {error:?}");
            assert!(error.to_string().contains(words), "{error} does not say {words:?}");
            assert!(!error.to_string().contains(".."), "{error} ends twice");
        }
    }
}
