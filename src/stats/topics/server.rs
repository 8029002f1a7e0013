//! The server as a whole: databases, cache, checkpoints, replication, settings, extensions.

use super::{Question, Server, Sizes, moment};
use crate::stats::table::Kind::{Bytes, Count, Flag, Percent, Seconds, Text, Time};

pub fn databases(server: &Server, sizes: Sizes) -> Question {
    let columns = &[
        ("database", Text),
        ("bytes", Bytes),
        ("sessions", Count),
        ("commits", Count),
        ("rollbacks", Count),
        ("cache_hit", Percent),
        ("temporary_bytes", Bytes),
        ("deadlocks", Count),
        ("since", Time),
    ];
    let size = match sizes {
        // Whoever may not connect may not measure.
        Sizes::Measured if server.is_superuser || server.reads_all_stats => "pg_database_size(base.oid)",
        Sizes::Measured => "CASE WHEN has_database_privilege(base.oid, 'CONNECT') THEN pg_database_size(base.oid) END",
        Sizes::Estimated => "NULL::int8",
    };
    let since = moment("counted.stats_reset");
    let sql = format!(
        "SELECT base.datname::text, {size}, counted.numbackends::int8, counted.xact_commit, counted.xact_rollback,
                100.0::float8 * counted.blks_hit / nullif(counted.blks_hit + counted.blks_read, 0), counted.temp_bytes,
                counted.deadlocks, {since}
         FROM pg_database AS base LEFT JOIN pg_stat_database AS counted ON counted.datid = base.oid
         WHERE NOT base.datistemplate ORDER BY base.datname = current_database() DESC, 2 DESC NULLS LAST, 1"
    );
    Question::new(columns, sql)
}

pub fn cache_hit() -> Question {
    let columns = &[("name", Text), ("ratio", Percent), ("hits", Count), ("reads", Count)];
    let sql = "SELECT name, 100.0::float8 * hits / nullif(hits + reads, 0), hits, reads FROM (
            SELECT 1, 'index hit rate', coalesce(sum(idx_blks_hit), 0)::int8, coalesce(sum(idx_blks_read), 0)::int8
            FROM pg_statio_user_indexes
            UNION ALL
            SELECT 2, 'table hit rate', coalesce(sum(heap_blks_hit), 0)::int8, coalesce(sum(heap_blks_read), 0)::int8
            FROM pg_statio_user_tables
            UNION ALL
            SELECT 3, 'whole database', blks_hit, blks_read FROM pg_stat_database WHERE datname = current_database()
        ) AS found(place, name, hits, reads) ORDER BY place";
    Question::new(columns, sql)
}

pub fn checkpoints(server: &Server) -> Question {
    let columns = &[
        ("timed", Count),
        ("requested", Count),
        ("writing", Seconds),
        ("syncing", Seconds),
        ("by_checkpointer", Count),
        ("by_background_writer", Count),
        ("by_backends", Count),
        ("since", Time),
    ];
    // 17 moved them to a view of their own, and counts what backends write in pg_stat_io alone.
    let sql = if server.version >= 170_000 {
        let since = moment("of_checkpoints.stats_reset");
        format!(
            "SELECT num_timed, num_requested, write_time / 1000, sync_time / 1000, buffers_written, buffers_clean,
                    (SELECT sum(writes)::int8 FROM pg_stat_io WHERE backend_type = 'client backend' AND object = 'relation'),
                    {since}
             FROM pg_stat_checkpointer AS of_checkpoints CROSS JOIN pg_stat_bgwriter"
        )
    } else {
        let since = moment("stats_reset");
        format!(
            "SELECT checkpoints_timed, checkpoints_req, checkpoint_write_time / 1000, checkpoint_sync_time / 1000,
                    buffers_checkpoint, buffers_clean, buffers_backend, {since} FROM pg_stat_bgwriter"
        )
    };
    let remarks = "SELECT 'checkpoints that are requested, rather than timed, come from too small a max_wal_size'";
    Question::new(columns, sql).with_remarks(remarks)
}

pub fn io(server: &Server) -> Result<Question, String> {
    if server.version < 160_000 {
        return Err("PostgreSQL counts reads and writes by kind of process from version 16 on".to_owned());
    }
    let columns = &[
        ("process", Text),
        ("object", Text),
        ("context", Text),
        ("reads", Count),
        ("writes", Count),
        ("extends", Count),
        ("hits", Count),
        ("evictions", Count),
        ("fsyncs", Count),
    ];
    let sql = "SELECT backend_type, object, context, reads, writes, extends, hits, evictions, fsyncs FROM pg_stat_io
               WHERE coalesce(reads, 0) + coalesce(writes, 0) + coalesce(extends, 0) + coalesce(hits, 0) > 0
               ORDER BY coalesce(reads, 0) + coalesce(writes, 0) + coalesce(extends, 0) DESC, 1, 2, 3";
    Ok(Question::new(columns, sql))
}

/// Up to where WAL is written, or replayed on a standby.
const WAL_END: &str = "CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END";

pub fn replication() -> Question {
    let columns = &[
        ("pid", Count),
        ("application", Text),
        ("role", Text),
        ("address", Text),
        ("state", Text),
        ("sync", Text),
        ("behind", Bytes),
        ("write_lag", Seconds),
        ("flush_lag", Seconds),
        ("replay_lag", Seconds),
    ];
    let sql = format!(
        "SELECT pid::int8, application_name, usename::text, host(client_addr), state, sync_state,
                pg_wal_lsn_diff({WAL_END}, replay_lsn)::int8, extract(epoch FROM write_lag)::float8,
                extract(epoch FROM flush_lag)::float8, extract(epoch FROM replay_lag)::float8
         FROM pg_stat_replication ORDER BY 7 DESC NULLS LAST, 1"
    );
    let remarks = "SELECT format('this server is a standby, %s behind what it has received',
                                 pg_size_pretty(pg_wal_lsn_diff(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())))
                   WHERE pg_is_in_recovery()";
    Question::new(columns, sql).with_remarks(remarks)
}

pub fn slots() -> Question {
    let columns = &[
        ("slot", Text),
        ("type", Text),
        ("database", Text),
        ("active", Flag),
        ("wal_status", Text),
        ("kept", Bytes),
        ("left", Bytes),
        ("temporary", Flag),
    ];
    let sql = format!(
        "SELECT slot_name::text, slot_type, database::text, active, wal_status,
                pg_wal_lsn_diff({WAL_END}, restart_lsn)::int8, safe_wal_size, temporary
         FROM pg_replication_slots ORDER BY 6 DESC NULLS LAST, 1"
    );
    let remarks =
        "SELECT 'a slot that nobody reads keeps WAL until the disk is full: SELECT pg_drop_replication_slot(NAME)'
                   FROM (SELECT FROM pg_replication_slots WHERE NOT active LIMIT 1) AS inactive";
    Question::new(columns, sql).with_remarks(remarks)
}

/// What a setting holds that is nobody's to read: a password in a connection string, a command that prints a passphrase.
const SECRET: &str = "(name ~* '(passw|passphrase|secret|salt|token|conninfo)' AND name <> 'password_encryption')";

pub fn settings() -> Question {
    let columns = &[
        ("name", Text),
        ("value", Text),
        ("default", Text),
        ("from", Text),
        ("needs_restart", Flag),
        ("pending_restart", Flag),
    ];
    let shown = |value: &str| {
        format!(
            "CASE WHEN {SECRET} AND {value} <> '' THEN '********'
                  WHEN unit IN ('B', 'kB', '8kB', '16kB', '32kB', '64kB', 'MB') AND {value} ~ '^[0-9]+$'
                       THEN pg_size_pretty({value}::numeric * CASE unit WHEN 'B' THEN 1 WHEN 'kB' THEN 1024
                                                                        WHEN 'MB' THEN 1048576
                                                                        ELSE 1024 * substring(unit FROM '^[0-9]+')::int4 END)
                  WHEN {value} <> '-1' AND unit IS NOT NULL THEN {value} || ' ' || unit ELSE {value} END"
        )
    };
    let (value, default) = (shown("reset_val"), shown("boot_val"));
    // What this session has set for itself hides neither value nor default: `reset_val` is what others get.
    let sql = format!(
        "SELECT name, {value}, {default},
                CASE WHEN sourcefile IS NULL THEN source
                     ELSE regexp_replace(sourcefile, '^.*/', '') || ':' || sourceline END,
                context = 'postmaster', pending_restart
         FROM pg_settings
         WHERE reset_val IS DISTINCT FROM boot_val AND source NOT IN ('default', 'override', 'client') OR pending_restart
         ORDER BY name"
    );
    let remarks = "SELECT 'these hold only after a restart of the server: ' || string_agg(name, ', ' ORDER BY name)
                   FROM pg_settings WHERE pending_restart HAVING count(*) > 0
                   UNION ALL
                   SELECT format('settings that only a superuser sees are left out: a superuser can run GRANT \
                                  pg_read_all_settings TO %I', current_user)
                   WHERE NOT pg_has_role(current_user, 'pg_read_all_settings', 'USAGE')";
    Question::new(columns, sql).with_remarks(remarks)
}

pub fn extensions() -> Question {
    let columns =
        &[("name", Text), ("installed", Text), ("newest", Text), ("schema", Text), ("update", Flag), ("comment", Text)];
    let sql = "SELECT coalesce(there.extname::text, known.name::text), there.extversion, known.default_version,
                      there.extnamespace::regnamespace::text, there.extversion <> known.default_version, known.comment
               FROM pg_extension AS there FULL JOIN pg_available_extensions AS known ON known.name = there.extname
               ORDER BY there.extname IS NULL, 1";
    Question::new(columns, sql)
}
