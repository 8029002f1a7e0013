//! Sessions that hold others up: open transactions and locks. Pure.

use super::server::server;
use super::{Judged, few, plain, seen, span};
use crate::doctor::facts::{Facts, Session};
use crate::doctor::verdict::Finding;

/// Seconds that a transaction may do nothing, and that it may run at all, before it is worth a warning.
const IDLE_LONG: f64 = 300.0;
const RUNS_LONG: f64 = 3_600.0;
/// Seconds that a session may wait for a lock.
const WAITS_LONG: f64 = 30.0;

pub fn transactions(facts: &Facts) -> Judged {
    let server = server(facts)?;
    let sessions = seen(&server.sessions)?;
    let is_blocker = |pid: i32| sessions.iter().any(|other| other.blockers.contains(&pid));
    let judge = |session: &Session| {
        let is_idle = session.state.starts_with("idle in transaction");
        let who = name(session);
        let end = format!("SELECT pg_terminate_backend({}), and find where it forgets to commit", session.pid);
        if is_idle && (session.idle > IDLE_LONG || is_blocker(session.pid)) {
            let blocks = if is_blocker(session.pid) { ", and others wait for it" } else { "" };
            let text = format!("{who} has had a transaction open for {}, doing nothing{blocks}", span(session.age));
            return Some(Finding::warning(text, end));
        }
        (!is_idle && session.age > RUNS_LONG).then(|| {
            let text = format!(
                "{who} runs a transaction since {}: no old row can be vacuumed away meanwhile",
                span(session.age)
            );
            Finding::notice(text).then(end)
        })
    };
    let mut all: Vec<Finding> = sessions.iter().filter_map(judge).collect();
    if let Ok(prepared) = seen(&server.prepared)
        && !prepared.is_empty()
    {
        let text = format!("prepared transactions that nobody ended: {}", few(prepared));
        all.push(Finding::warning(text, "COMMIT PREPARED or ROLLBACK PREPARED each: they hold locks, and vacuum up"));
    }
    Ok(all)
}

pub fn blocked(facts: &Facts) -> Judged {
    let sessions = seen(&server(facts)?.sessions)?;
    let behind = |pid: i32| sessions.iter().filter(|other| other.blockers.contains(&pid)).count();
    let judge = |session: &Session| {
        let waits = session.waits?;
        let by: Vec<String> = session.blockers.iter().map(|pid| named(*pid, sessions)).collect();
        let who = name(session);
        let text = format!("{who} has waited for {} for a lock of {}", span(waits), few(&by));
        let end =
            session.blockers.first().map(|pid| format!("SELECT pg_terminate_backend({pid}) ends what it waits for"));
        let end = end.unwrap_or_else(|| "look at pg_locks".to_owned());
        // What asks for a table for itself alone holds up all that come after it, readers too.
        match behind(session.pid) {
            0 if waits <= WAITS_LONG => None,
            0 => Some(Finding::warning(text, end)),
            count => {
                let text = format!("{text}, and {count} more wait behind it");
                Some(Finding::error(text, format!("{end}; give such statements a lock_timeout")))
            }
        }
    };
    Ok(sessions.iter().filter_map(judge).collect())
}

fn name(session: &Session) -> String {
    let application = match session.application.as_str() {
        "" => "a session".to_owned(),
        name => plain(name),
    };
    let command = if session.command.is_empty() { String::new() } else { format!(", {}", session.command) };
    format!("{application} (pid {}, role {}{command})", session.pid, plain(&session.role))
}

fn named(pid: i32, sessions: &[Session]) -> String {
    sessions.iter().find(|session| session.pid == pid).map_or_else(|| format!("pid {pid}"), name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::verdict::Verdict;

    fn sessions() -> Vec<Session> {
        let idle = Session { pid: 1, state: "idle in transaction".into(), age: 400.0, idle: 1.0, ..Session::default() };
        let ddl = Session {
            pid: 2,
            state: "active".into(),
            waits: Some(0.5),
            blockers: vec![1],
            command: "ALTER TABLE".into(),
            ..Session::default()
        };
        let reader = Session { pid: 3, waits: Some(0.1), blockers: vec![2], ..ddl.clone() };
        vec![idle, ddl, reader]
    }

    /// What `judge` makes of `sessions`.
    fn found(sessions: Vec<Session>, judge: fn(&Facts) -> Judged) -> Vec<Finding> {
        judge(&Facts::of_sessions(sessions)).unwrap()
    }

    #[test]
    fn what_holds_others_up_is_told_at_once_and_the_rest_when_it_takes_long() {
        let all = found(sessions(), transactions);
        assert_eq!(all.len(), 1);
        assert!(all[0].evidence.contains("others wait for it"), "{all:?}");
        let all = found(sessions(), blocked);
        assert_eq!(all.iter().map(|one| one.verdict).collect::<Vec<_>>(), [Verdict::Error]);
        assert!(
            all[0].evidence.contains("(pid 2, role , ALTER TABLE)") && all[0].evidence.contains("1 more wait"),
            "{all:?}"
        );
        let alone = vec![Session { idle: 301.0, ..sessions()[0].clone() }];
        assert!(found(alone, transactions)[0].evidence.contains("doing nothing"));
        let busy = vec![Session { state: "active".into(), age: 4_000.0, ..Session::default() }];
        assert_eq!(found(busy, transactions)[0].verdict, Verdict::Notice);
    }
}
