//! Errors in words for people: each cause once, and what the database said without its drivers' words around it.

use std::error::Error;

use nix::libc::{EMFILE, ENFILE};
use nix::sys::resource::{Resource, getrlimit};
use sea_orm::sqlx::postgres::PgDatabaseError;
use sea_orm::{DbErr, RuntimeErr, sqlx};

use super::{CANNOT_CONNECT_NOW, NoRoom};
use crate::scrub::scrubbed;

const POOLER: &str = "; this is a connection pooler, in transaction mode or one that passes less on than PostgreSQL takes: let \
                      postgres.url or DATABASE_URL lead to the server itself";

/// `error` and its causes in one line, as `{error:#}` shows them, but no cause a second time.
pub fn in_words(error: &anyhow::Error) -> String {
    let mut words: Vec<String> = Vec::new();
    for cause in error.chain() {
        let said = database_error(cause).map(what_the_server_said);
        let last = said.is_some();
        let text = said.unwrap_or_else(|| cause.to_string());
        // Many errors show their source in their own words and hand it on as well.
        if !words.last().is_some_and(|above| above.ends_with(&text)) {
            words.push(text);
        }
        words.extend(cause.downcast_ref().and_then(own_limit));
        if last {
            break;
        }
    }
    scrubbed(&words.join(": ")).into_owned()
}

/// Whose limit it is where `error` says that no more files can be opened: this process's own, or the machine's; whatever it was
/// to talk to is not to blame.
pub fn own_limit(error: &std::io::Error) -> Option<String> {
    match error.raw_os_error()? {
        EMFILE => {
            let most = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft);
            Some(format!(
                "Tandem itself has all {most} files open that it may; raise its limit (`ulimit -n`, LimitNOFILE=)"
            ))
        }
        ENFILE => Some("this machine has as many files open as it may; raise fs.file-max (sysctl)".to_owned()),
        _ => None,
    }
}

/// What the server answered; or what the driver says, where it was not the server's.
pub fn what_the_server_said(error: &sqlx::Error) -> String {
    if let sqlx::Error::Io(error) = error
        && let Some(limit) = own_limit(error)
    {
        return format!("{error}: {limit}");
    }
    let Some(said) = error.as_database_error() else { return error.to_string() };
    let Some(said) = said.try_downcast_ref::<PgDatabaseError>() else { return said.message().to_owned() };
    let mut text = format!("{} (SQLSTATE {})", said.message(), said.code());
    for (label, more) in [("", said.detail()), ("hint: ", said.hint())] {
        text.extend(more.map(|more| format!("; {label}{}", more.trim_end_matches('.'))));
    }
    if of_a_pooler(said.code(), said.message()) {
        text.push_str(POOLER);
    }
    text
}

/// Whether this is what a pooler makes of a session that expects a server process of its own: a statement that another
/// client has prepared there, one that was prepared elsewhere, a parameter that it does not pass on.
fn of_a_pooler(code: &str, message: &str) -> bool {
    let ours = message.contains("\"sqlx_s_");
    (matches!(code, "42P05" | "26000") && ours) || message.starts_with("unsupported startup parameter")
}

/// The SQLSTATE of what the server answered, wherever it stands among the causes.
pub fn sql_state(error: &anyhow::Error) -> Option<String> {
    let code = |error: &sqlx::Error| Some(error.as_database_error()?.code()?.into_owned());
    error.chain().find_map(|cause| database_error(cause).and_then(code))
}

/// Whether the server broke a session off or took none, because it starts, recovers or ends: it may answer the next one.
pub fn is_broken_off(error: &anyhow::Error) -> bool {
    error.chain().filter_map(database_error).any(|error| match error {
        sqlx::Error::Io(error) => own_limit(error).is_none(),
        // admin_shutdown, crash_shutdown
        error => {
            let code = error.as_database_error().and_then(|error| error.code());
            matches!(code.as_deref(), Some("57P01" | "57P02" | CANNOT_CONNECT_NOW))
        }
    })
}

/// What `cause` tells of the server's disk, if it is an answer of the server.
pub(super) fn no_room_answered(cause: &(dyn Error + 'static)) -> Option<NoRoom> {
    let answer = database_error(cause)?.as_database_error()?;
    NoRoom::answered(answer.code().as_deref().unwrap_or_default(), answer.message())
}

fn database_error<'a>(cause: &'a (dyn Error + 'static)) -> Option<&'a sqlx::Error> {
    let runtime = match cause.downcast_ref::<DbErr>() {
        Some(DbErr::Conn(runtime) | DbErr::Exec(runtime) | DbErr::Query(runtime)) => runtime,
        _ => return cause.downcast_ref::<sqlx::Error>(),
    };
    match runtime {
        RuntimeErr::SqlxError(error) => Some(error),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_pooler_is_known_by_what_it_says() {
        for (code, message, known) in [
            ("42P05", "prepared statement \"sqlx_s_1\" already exists", true),
            ("26000", "prepared statement \"sqlx_s_3\" does not exist", true),
            ("08P01", "unsupported startup parameter: options", true),
            ("42P05", "prepared statement \"mine\" already exists", false),
            ("42P07", "relation \"sqlx_s_1\" already exists", false),
        ] {
            assert_eq!(of_a_pooler(code, message), known, "{message}");
        }
    }

    #[test]
    fn a_cause_is_said_once() {
        let refused = || sqlx::Error::Io(std::io::Error::other("connection refused"));
        let io = anyhow::Error::new(refused()).context("connect");
        assert_eq!(in_words(&io), "connect: error communicating with database: connection refused");
        let wrapped = anyhow::Error::new(DbErr::Exec(RuntimeErr::SqlxError(Arc::new(refused())))).context("migrate");
        assert_eq!(in_words(&wrapped), "migrate: error communicating with database: connection refused");
        assert_eq!(in_words(&anyhow::anyhow!("a").context("b: a").context("c")), "c: b: a");
    }
}
