//! The database server: its door, its connections, its numbers. Pure.

use super::{Judged, few, plain, seen, size};
use crate::config::{PostgresMode, Settings};
use crate::doctor::facts::{Age, Connections, Facts, Refused, Server, Unseen};
use crate::doctor::verdict::Finding;

/// From here on a vacuum is late: autovacuum forces one at 200 million (`autovacuum_freeze_max_age`).
const AGE_TOLD: i64 = 500_000_000;
const AGE_WARNED: i64 = 1_000_000_000;
/// The server takes no more writes some three million before 2,147 million.
const AGE_WRONG: i64 = 1_600_000_000;
/// Parts of a hundred of the connections.
const USED_WARNED: i64 = 80;
const USED_WRONG: i64 = 95;
/// A slot without a client keeps so much WAL.
const SLOT_KEEPS: i64 = 1 << 30;

/// The server, if it was seen.
pub fn server(facts: &Facts) -> Result<&Server, Unseen> {
    facts.server.as_ref().map_err(Clone::clone)
}

pub fn door(facts: &Facts) -> Judged {
    let server = server(facts)?;
    let Err(refused) = &server.door else {
        return Ok(vec![Finding::ok("the application's role gets in, with its password")]);
    };
    Ok(vec![of_refusal(refused, server.is_own)])
}

fn of_refusal(refused: &Refused, is_own: bool) -> Finding {
    let why = refused.why.clone();
    // PostgreSQL documentation, appendix A.
    match refused.sqlstate.as_deref() {
        Some("28P01" | "28000") if is_own => Finding::error(
            format!("the server does not take the password of the application's role: {why}"),
            "`tandem stop` and `tandem up` set it anew; whoever changed it with ALTER ROLE will do so again",
        ),
        Some("28P01" | "28000") => Finding::error(
            format!("the server does not take this role or its password: {why}"),
            "put the right one into DATABASE_URL, then `tandem reload`",
        ),
        Some("53300") => Finding::error(
            format!("the server has no connection left: {why}"),
            "`tandem stats connections` shows who has them; raise postgres.max_connections",
        ),
        Some("3D000") => Finding::error(format!("there is no such database: {why}"), "create it, or name another one"),
        Some("57P03") => Finding::warning(why, "wait: the server starts, or recovers"),
        Some("22023") => Finding::error(why, "install the locale that is named, and start anew"),
        _ => Finding::error(format!("the database does not answer: {why}"), "look at the server and the way to it"),
    }
}

pub fn connections(facts: &Facts) -> Judged {
    let mut all = Vec::new();
    if let Ok(settings) = &facts.settings {
        all.extend(of_budget(settings, facts.server.as_ref().ok().and_then(|server| server.connections.as_ref().ok())));
    }
    match server(facts).and_then(|server| seen(&server.connections)) {
        Ok(connections) => all.push(of_connections(*connections)),
        Err(Unseen::Unknown(why)) => return Err(Unseen::unknown(why)),
        Err(Unseen::Nothing(_)) => {}
    }
    Ok(all)
}

fn of_connections(Connections { used, max }: Connections) -> Finding {
    let text = format!("{used} of {max} connections are in use");
    let next = "`tandem stats connections` shows whose they are: smaller pools, fewer workers, or more max_connections";
    match used * 100 / max.max(1) {
        part if part >= USED_WRONG => Finding::error(text, next),
        part if part >= USED_WARNED => Finding::warning(text, next),
        _ => Finding::ok(text),
    }
}

/// The pools of all workers, and what the server really accepts.
fn of_budget(settings: &Settings, connections: Option<&Connections>) -> Option<Finding> {
    let mut budget = settings.budget();
    if let Some(found) = connections.filter(|_| settings.postgres.mode == PostgresMode::Attach) {
        budget.max_connections = u32::try_from(found.max).unwrap_or(u32::MAX);
    }
    let over = budget.check().err()?;
    let text = format!("the workers' pools may open more connections than PostgreSQL accepts: {}", budget.arithmetic());
    Some(Finding::warning(text, over.help()))
}

pub fn wraparound(facts: &Facts) -> Judged {
    let ages = seen(&server(facts)?.ages)?;
    let judge = |age: &Age| {
        let count = age.transactions.max(age.multixacts);
        let (database, millions) = (plain(&age.database), count / 1_000_000);
        let text = format!("database {database}: {millions} million transactions since its oldest row was frozen");
        let next = format!("VACUUM (FREEZE) in {database}; look for old transactions and slots that hold it up");
        match count {
            count if count >= AGE_WRONG => Some(Finding::error(text, next)),
            count if count >= AGE_WARNED => Some(Finding::warning(text, next)),
            count if count >= AGE_TOLD => Some(Finding::notice(text).then(next)),
            _ => None,
        }
    };
    Ok(ages.iter().filter_map(judge).collect())
}

pub fn settings(facts: &Facts) -> Judged {
    let server = server(facts)?;
    let settings = seen(&server.settings)?;
    let mut all = Vec::new();
    let is = |name: &str, value: &str| settings.get(name).is_some_and(|found| found == value);
    for name in ["fsync", "full_page_writes"].into_iter().filter(|name| is(name, "off")) {
        let text = format!("{name} is off: a crash or a power cut destroys the database");
        all.push(Finding::error(text, format!("ALTER SYSTEM RESET {name}, and restart the server")));
    }
    if is("autovacuum", "off") {
        let text = "autovacuum is off: tables grow, and transaction numbers run out";
        all.push(Finding::warning(text, "ALTER SYSTEM RESET autovacuum"));
    }
    if is("transaction_read_only", "on") {
        let text = "the server takes no writes: it is a replica, or its transactions are read-only by default";
        all.push(Finding::error(text, "let the URL lead to the primary server"));
    }
    if let Ok(pending) = seen(&server.pending)
        && !pending.is_empty()
    {
        let text = format!("settings that wait for a restart of the server: {}", few(pending));
        all.push(Finding::notice(text).then("`tandem restart postgres`"));
    }
    Ok(all)
}

pub fn slots(facts: &Facts) -> Judged {
    let slots = seen(&server(facts)?.slots)?;
    let found = slots.iter().filter_map(|slot| {
        if slot.is_lost {
            let text = format!("replication slot {} has lost its WAL: its client can never go on", slot.name);
            return Some(Finding::warning(text, format!("SELECT pg_drop_replication_slot('{}')", slot.name)));
        }
        (!slot.is_active && slot.kept >= SLOT_KEEPS).then(|| {
            let kept = size(u64::try_from(slot.kept).unwrap_or(0));
            let text = format!("replication slot {} has no client, and keeps {kept} of WAL on the disk", slot.name);
            Finding::warning(text, format!("start its client, or SELECT pg_drop_replication_slot('{}')", slot.name))
        })
    });
    Ok(found.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::facts::Slot;
    use crate::doctor::verdict::Verdict;

    #[test]
    fn a_refusal_is_told_by_its_sqlstate() {
        let refused = |sqlstate: Option<&str>| Refused { sqlstate: sqlstate.map(str::to_owned), why: "no".into() };
        let text = |sqlstate, is_own| {
            let found = of_refusal(&refused(sqlstate), is_own);
            (found.verdict, found.next.unwrap())
        };
        assert!(text(Some("28P01"), true).1.contains("`tandem up` set it anew"));
        assert!(text(Some("28P01"), false).1.contains("DATABASE_URL"));
        assert_eq!(text(Some("57P03"), true).0, Verdict::Warning);
        assert_eq!(text(None, true).0, Verdict::Error);
    }

    #[test]
    fn the_age_of_a_database_and_what_a_slot_keeps_are_judged() {
        let mut facts = Facts::of_sessions(Vec::new());
        let judged = |facts: &mut Facts, transactions: i64, kept: i64, is_lost: bool| {
            let server = facts.server.as_mut().unwrap();
            server.ages = Ok(vec![Age { database: "a\nb".into(), transactions, multixacts: 1 }]);
            server.slots = Ok(vec![Slot { name: "s".into(), is_active: false, kept, is_lost }]);
            [wraparound(facts), slots(facts)].map(|all| all.unwrap().first().map(|finding| finding.verdict))
        };
        let (notice, warning, error) = (Some(Verdict::Notice), Some(Verdict::Warning), Some(Verdict::Error));
        assert_eq!(judged(&mut facts, 499_999_999, 1, false), [None, None]);
        assert_eq!(judged(&mut facts, 600_000_000, SLOT_KEEPS, false), [notice, warning]);
        assert_eq!(judged(&mut facts, 1_200_000_000, 0, true), [warning, warning]);
        assert_eq!(judged(&mut facts, 1_700_000_000, 0, false), [error, None]);
        assert!(wraparound(&facts).unwrap()[0].evidence.starts_with("database a\\nb: "));
    }

    #[test]
    fn connections_are_counted_against_what_roles_may_have() {
        let of = |used| of_connections(Connections { used, max: 97 }).verdict;
        assert_eq!([of(10), of(78), of(93)], [Verdict::Ok, Verdict::Warning, Verdict::Error]);
        assert_eq!(of_connections(Connections { used: 1, max: 0 }).verdict, Verdict::Error);
    }
}
