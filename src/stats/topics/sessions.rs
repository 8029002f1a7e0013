//! Who is connected, what runs, and who waits for whom.

use super::{Question, Server, query};
use crate::stats::table::Kind::{Count, Flag, Query, Seconds, Text};

/// A role without rights sees of other sessions the application, the role and the database, and neither kind nor state.
const IS_CLIENT: &str = "(backend_type IN ('client backend', 'walsender') OR (backend_type IS NULL AND datid IS NOT NULL)) \
     AND pid <> pg_backend_pid()";

pub fn connections() -> Question {
    let columns = &[
        ("application", Text),
        ("role", Text),
        ("database", Text),
        ("address", Text),
        ("active", Count),
        ("idle", Count),
        ("idle_in_transaction", Count),
        ("other", Count),
        ("total", Count),
        ("waiting", Count),
        ("oldest_transaction", Seconds),
    ];
    let sql = format!(
        "SELECT nullif(application_name, ''), usename::text, datname::text,
                coalesce(host(client_addr), CASE client_port WHEN -1 THEN 'socket' END),
                count(*) FILTER (WHERE state = 'active'), count(*) FILTER (WHERE state = 'idle'),
                count(*) FILTER (WHERE state LIKE 'idle in transaction%'),
                count(*) FILTER (WHERE state IS NULL OR state IN ('fastpath function call', 'disabled')),
                count(*), count(*) FILTER (WHERE wait_event_type = 'Lock'),
                extract(epoch FROM clock_timestamp() - min(xact_start))::float8
         FROM pg_stat_activity WHERE {IS_CLIENT} GROUP BY 1, 2, 3, 4 ORDER BY 9 DESC, 1, 2, 3, 4"
    );
    let remarks = format!(
        "SELECT format('%s of %s connections are open (max_connections), %s of which are kept for superusers',
                       (SELECT count(*) FROM pg_stat_activity WHERE {IS_CLIENT}), current_setting('max_connections'),
                       current_setting('superuser_reserved_connections'))
         UNION ALL
         SELECT nullif(string_agg(format('%s: %s', state, sessions), ', ' ORDER BY state), '')
         FROM (SELECT coalesce(state, 'state not known') AS state, count(*) AS sessions FROM pg_stat_activity
               WHERE {IS_CLIENT} GROUP BY 1) AS states"
    );
    Question::new(columns, sql).with_remarks(remarks)
}

pub fn long_running() -> Question {
    let columns = &[
        ("pid", Count),
        ("application", Text),
        ("role", Text),
        ("database", Text),
        ("state", Text),
        ("transaction", Seconds),
        ("statement", Seconds),
        ("waits_for", Text),
        ("holds_back", Count),
        ("query", Query),
    ];
    let query = query("query");
    let sql = format!(
        "SELECT pid::int8, coalesce(nullif(application_name, ''), backend_type), usename::text, datname::text, state,
                extract(epoch FROM clock_timestamp() - xact_start)::float8,
                extract(epoch FROM clock_timestamp() - query_start)::float8,
                wait_event_type || ': ' || wait_event, age(backend_xmin)::int8, {query}
         FROM pg_stat_activity WHERE xact_start IS NOT NULL AND pid <> pg_backend_pid() ORDER BY xact_start"
    );
    Question::new(columns, sql)
}

/// Since when a lock is waited for, as far as the version tells.
fn waits_since(server: &Server) -> &'static str {
    if server.version >= 140_000 { "held.waitstart" } else { "NULL::timestamptz" }
}

pub fn locks(server: &Server) -> Question {
    let columns = &[
        ("pid", Count),
        ("lock", Text),
        ("on", Text),
        ("granted", Flag),
        ("waiting", Seconds),
        ("application", Text),
        ("role", Text),
        ("state", Text),
        ("transaction", Seconds),
        ("query", Query),
    ];
    let (since, query) = (waits_since(server), query("session.query"));
    let sql = format!(
        "SELECT held.pid::int8, held.mode,
                CASE WHEN held.locktype <> 'relation' THEN held.locktype
                     WHEN base.datname = current_database() THEN held.relation::regclass::text
                     ELSE coalesce(base.datname::text, 'all databases') || ': ' || held.relation END,
                held.granted, extract(epoch FROM clock_timestamp() - {since})::float8,
                nullif(session.application_name, ''), session.usename::text, session.state,
                extract(epoch FROM clock_timestamp() - session.xact_start)::float8, {query}
         FROM pg_locks AS held LEFT JOIN pg_stat_activity AS session ON session.pid = held.pid
         LEFT JOIN pg_database AS base ON base.oid = held.database
         WHERE held.pid IS DISTINCT FROM pg_backend_pid() AND held.locktype <> 'virtualxid'
               AND (NOT held.granted OR held.locktype = 'advisory'
                    OR held.locktype = 'relation' AND held.mode NOT IN ('AccessShareLock', 'RowShareLock', 'RowExclusiveLock'))
         ORDER BY held.granted, {since}, session.xact_start, held.pid, 2, 3"
    );
    Question::new(columns, sql)
}

pub fn blocking(server: &Server) -> Question {
    let columns = &[
        ("blocked_pid", Count),
        ("waiting", Seconds),
        ("blocked_application", Text),
        ("blocked_query", Query),
        ("blocking_pid", Count),
        ("blocking_application", Text),
        ("blocking_state", Text),
        ("blocking_transaction", Seconds),
        ("blocking_query", Query),
    ];
    let (since, blocked, blocking) = (waits_since(server), query("blocked.query"), query("blocking.query"));
    // Each look for those who block one session stops all locking for a moment: only for the first of a long queue. A
    // prepared transaction that blocks has no process, and is shown as 0.
    let sql = format!(
        "SELECT waits.pid::int8, extract(epoch FROM clock_timestamp() - coalesce(waits.since, blocked.query_start))::float8,
                nullif(blocked.application_name, ''), {blocked}, blocker::int8, nullif(blocking.application_name, ''),
                CASE blocker WHEN 0 THEN 'prepared transaction' ELSE blocking.state END,
                extract(epoch FROM clock_timestamp() - blocking.xact_start)::float8, {blocking}
         FROM (SELECT held.pid, min({since}) AS since FROM pg_locks AS held WHERE NOT held.granted GROUP BY held.pid
               ORDER BY 2, 1 LIMIT 50) AS waits
         CROSS JOIN LATERAL (SELECT DISTINCT unnest(pg_blocking_pids(waits.pid)) AS blocker) AS blockers
         LEFT JOIN pg_stat_activity AS blocked ON blocked.pid = waits.pid
         LEFT JOIN pg_stat_activity AS blocking ON blocking.pid = blocker
         ORDER BY waits.since, blocked.query_start, waits.pid, blocker"
    );
    Question::new(columns, sql)
}
