//! What is asked of the server for `/metrics`: one statement a view, and the metrics that its columns become. The names,
//! labels and types are postgres_exporter's, so that what was made for it works.
//!
//! Columns that older versions lack are asked for as JSON. Every statement runs with an empty search path, so that each name is PostgreSQL's own, and returns a bounded number of rows.

use crate::metrics::Kind;
use crate::metrics::Kind::{ForeignCounter as Counter, Gauge, Unknown};

/// One statement, and what becomes of its columns: first the labels, in this order, then the values.
#[derive(Debug)]
pub struct View {
    /// What the metrics' names begin with.
    pub name: &'static str,
    pub labels: &'static [&'static str],
    /// The end of the name, the kind, and what it is.
    pub values: &'static [(&'static str, Kind, &'static str)],
    pub sql: &'static str,
    pub pace: Pace,
    /// Whether postgres_exporter puts the server's address beside the labels.
    pub server: bool,
    /// What a role lacks that may not ask this.
    pub right: &'static str,
}

/// How often a view is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pace {
    /// With every sample.
    Each,
    /// With every fourth: it changes slowly, or costs more.
    Seldom,
}

/// The databases that are measured, in the place of `{databases}`: 100 at most, the application's own first.
pub const DATABASES: &str =
    "(SELECT oid, datname FROM pg_database ORDER BY datname <> current_database(), datname LIMIT 100)";
/// The tables that are measured, in the place of `{tables}`: `metrics.tables` at most, the largest first, by the size that
/// their last vacuum or analyze has found.
pub const TABLES: &str = "ARRAY(SELECT pg_class.oid FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE relkind IN ('r', 't', 'm', 'p') AND nspname NOT IN ('pg_catalog', 'information_schema') AND nspname !~ '^pg_toast'
    ORDER BY relpages DESC, pg_class.oid LIMIT {limit})";

const ALL_STATISTICS: &str = "pg_read_all_stats";

const fn view(name: &'static str, sql: &'static str) -> View {
    View { name, labels: &[], values: &[], sql, pace: Pace::Each, server: false, right: ALL_STATISTICS }
}

const TABLE: &[&str] = &["datname", "schemaname", "relname"];

/// All of them.
pub static VIEWS: &[View] = &[
    View {
        labels: &["version", "short_version"],
        values: &[("", Unknown, "The version of the server, as its own text and as a number")],
        pace: Pace::Seldom,
        server: true,
        ..view(
            "pg_static",
            "SELECT version(), concat(setting::int / 10000, '.', setting::int % 10000, '.0'), 1
             FROM pg_settings WHERE name = 'server_version_num'",
        )
    },
    View {
        labels: &["datid", "datname"],
        values: &[
            ("numbackends", Gauge, "Server processes connected to this database"),
            ("xact_commit", Counter, "Transactions that were committed"),
            ("xact_rollback", Counter, "Transactions that were rolled back"),
            ("blks_read", Counter, "Blocks read from disk or from the kernel's cache"),
            ("blks_hit", Counter, "Blocks found in shared buffers"),
            ("tup_returned", Counter, "Rows that scans returned"),
            ("tup_fetched", Counter, "Rows that index scans fetched"),
            ("tup_inserted", Counter, "Rows inserted"),
            ("tup_updated", Counter, "Rows updated"),
            ("tup_deleted", Counter, "Rows deleted"),
            ("conflicts", Counter, "Queries cancelled on a standby because of a conflict with recovery"),
            ("temp_files", Counter, "Temporary files that queries made"),
            ("temp_bytes", Counter, "Bytes that queries wrote to temporary files"),
            ("deadlocks", Counter, "Deadlocks"),
            ("blk_read_time", Counter, "Milliseconds spent reading blocks, where track_io_timing is on"),
            ("blk_write_time", Counter, "Milliseconds spent writing blocks, where track_io_timing is on"),
            ("stats_reset", Counter, "When these statistics were last reset, in seconds since 1970"),
            ("checksum_failures", Unknown, "Pages whose checksum was wrong"),
            ("checksum_last_failure", Unknown, "When the last one was found, in seconds since 1970"),
            ("session_time", Unknown, "Milliseconds that sessions were open"),
            ("active_time", Unknown, "Milliseconds that sessions executed statements"),
            ("idle_in_transaction_time", Unknown, "Milliseconds that sessions idled in a transaction"),
            ("sessions", Unknown, "Sessions that were opened"),
            ("sessions_abandoned", Unknown, "Sessions whose client was lost"),
            ("sessions_fatal", Unknown, "Sessions that ended with a fatal error"),
            ("sessions_killed", Unknown, "Sessions that an operator ended"),
        ],
        server: true,
        ..view(
            "pg_stat_database",
            "SELECT datid, datname, numbackends, xact_commit, xact_rollback, blks_read, blks_hit, tup_returned, tup_fetched,
                    tup_inserted, tup_updated, tup_deleted, conflicts, temp_files, temp_bytes, deadlocks, blk_read_time,
                    blk_write_time, extract(epoch FROM stats_reset), checksum_failures,
                    extract(epoch FROM checksum_last_failure), more ->> 'session_time', more ->> 'active_time',
                    more ->> 'idle_in_transaction_time', more ->> 'sessions', more ->> 'sessions_abandoned',
                    more ->> 'sessions_fatal', more ->> 'sessions_killed'
             FROM pg_stat_database AS one CROSS JOIN LATERAL to_jsonb(one) AS more
             WHERE datid = 0 OR datid IN (SELECT oid FROM {databases} AS known)",
        )
    },
    View {
        labels: &["datid", "datname"],
        values: &[
            ("confl_tablespace", Counter, "Queries cancelled because of dropped tablespaces"),
            ("confl_lock", Counter, "Queries cancelled because of lock timeouts"),
            ("confl_snapshot", Counter, "Queries cancelled because of old snapshots"),
            ("confl_bufferpin", Counter, "Queries cancelled because of pinned buffers"),
            ("confl_deadlock", Counter, "Queries cancelled because of deadlocks"),
            ("confl_active_logicalslot", Unknown, "Uses of logical slots cancelled"),
        ],
        server: true,
        ..view(
            "pg_stat_database_conflicts",
            "SELECT datid, datname, confl_tablespace, confl_lock, confl_snapshot, confl_bufferpin, confl_deadlock,
                    to_jsonb(one) ->> 'confl_active_logicalslot'
             FROM pg_stat_database_conflicts AS one WHERE datid IN (SELECT oid FROM {databases} AS known)",
        )
    },
    View {
        labels: &["datname", "mode"],
        values: &[("count", Gauge, "Locks held or waited for")],
        server: true,
        ..view(
            "pg_locks",
            "SELECT known.datname, wanted.mode, coalesce(count, 0)
             FROM unnest('{accesssharelock,rowsharelock,rowexclusivelock,shareupdateexclusivelock,sharelock,
                           sharerowexclusivelock,exclusivelock,accessexclusivelock,sireadlock}'::text[]) AS wanted (mode)
             CROSS JOIN {databases} AS known
             LEFT JOIN (SELECT database, lower(mode) AS mode, count(*) AS count FROM pg_locks GROUP BY 1, 2) AS held
             ON held.mode = wanted.mode AND held.database = known.oid",
        )
    },
    View {
        labels: &["datname", "state"],
        values: &[
            ("count", Gauge, "Connections in this state"),
            ("max_tx_duration", Gauge, "The age of the oldest transaction among them, in seconds"),
        ],
        server: true,
        ..view(
            "pg_stat_activity",
            "SELECT known.datname, wanted.state, coalesce(count, 0), coalesce(longest, 0)
             FROM unnest('{active,idle,idle in transaction,idle in transaction (aborted),fastpath function call,disabled}'
                         ::text[]) AS wanted (state)
             CROSS JOIN {databases} AS known
             LEFT JOIN (SELECT datid, state, count(*) AS count, max(extract(epoch FROM now() - xact_start)) AS longest
                        FROM pg_stat_activity WHERE pid <> pg_backend_pid() GROUP BY 1, 2) AS found
             ON found.datid = known.oid AND found.state = wanted.state",
        )
    },
    View {
        labels: &["application_name", "client_addr", "state", "slot_name"],
        values: &[
            ("pg_current_wal_lsn_bytes", Gauge, "The position in the WAL, in bytes"),
            ("pg_wal_lsn_diff", Gauge, "How many bytes of WAL the standby has not replayed yet"),
        ],
        server: true,
        ..view(
            "pg_stat_replication",
            "SELECT application_name, client_addr, sender.state, slot_name, here - '0/0'::pg_lsn, here - replay_lsn
             FROM pg_stat_replication AS sender LEFT JOIN (SELECT slot_name, active_pid FROM pg_replication_slots) AS slot ON active_pid = sender.pid
             CROSS JOIN (SELECT CASE WHEN pg_is_in_recovery() THEN NULL ELSE pg_current_wal_lsn() END AS here) AS position
             LIMIT 100",
        )
    },
    View {
        labels: &["slot_name", "database"],
        values: &[
            ("active", Gauge, "Whether the slot is in use"),
            ("pg_wal_lsn_diff", Gauge, "How many bytes of WAL the slot holds back"),
        ],
        server: true,
        ..view(
            "pg_replication_slots",
            "SELECT slot_name, database, active::int,
                    CASE WHEN pg_is_in_recovery() THEN NULL ELSE pg_current_wal_lsn() END - restart_lsn
             FROM pg_replication_slots LIMIT 100",
        )
    },
    View {
        values: &[
            ("archived_count", Counter, "WAL files that were archived"),
            ("failed_count", Counter, "Attempts to archive a WAL file that failed"),
            ("last_archive_age", Gauge, "Seconds since a WAL file was last archived"),
        ],
        server: true,
        ..view(
            "pg_stat_archiver",
            "SELECT archived_count, failed_count, extract(epoch FROM now() - last_archived_time) FROM pg_stat_archiver",
        )
    },
    View { values: BGWRITER, server: true, ..view("pg_stat_bgwriter", BGWRITER_SQL) },
    View {
        labels: &["datname"],
        values: &[("size_bytes", Gauge, "Room that the database takes on the disk")],
        pace: Pace::Seldom,
        server: true,
        ..view(
            "pg_database",
            "SELECT datname, CASE WHEN has_database_privilege(oid, 'CONNECT') THEN pg_database_size(oid) END
             FROM {databases} AS known",
        )
    },
    View {
        labels: &["datname"],
        values: &[
            ("age_datfrozenxid_seconds", Gauge, "Transactions since the oldest one that is not frozen (no seconds, despite its name)"),
            ("age_datminmxid_seconds", Gauge, "The same of multixacts"),
        ],
        ..view(
            "pg_database_wraparound",
            "SELECT datname, age(datfrozenxid), mxid_age(datminmxid) FROM pg_database
             WHERE datallowconn ORDER BY datname <> current_database(), datname LIMIT 100",
        )
    },
    View {
        values: &[("start_time_seconds", Gauge, "When the server was started, in seconds since 1970")],
        ..view("pg_postmaster", "SELECT extract(epoch FROM pg_postmaster_start_time())")
    },
    View {
        values: &[
            ("lag_seconds", Gauge, "How far a standby is behind"),
            ("is_replica", Gauge, "Whether it is a standby"),
        ],
        ..view(
            "pg_replication",
            "SELECT CASE WHEN NOT pg_is_in_recovery() OR pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn() THEN 0
                    ELSE greatest(0, extract(epoch FROM now() - pg_last_xact_replay_timestamp())) END,
                    pg_is_in_recovery()::int",
        )
    },
    View {
        values: &[
            ("segments", Gauge, "Files of WAL in pg_wal"),
            ("size_bytes", Gauge, "Room that they take"),
        ],
        right: "pg_monitor",
        ..view("pg_wal", "SELECT count(*), coalesce(sum(size), 0) FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{24}$'")
    },
    View {
        values: &[
            ("", Gauge, "Transactions that are open"),
            ("oldest_timestamp_seconds", Gauge, "The age of the oldest of them, in seconds (no point in time, despite its name)"),
        ],
        ..view(
            "pg_long_running_transactions",
            "SELECT count(*), coalesce(max(extract(epoch FROM clock_timestamp() - xact_start)), 0)
             FROM pg_stat_activity WHERE state <> 'idle' AND xact_start IS NOT NULL AND backend_type <> 'autovacuum worker'
             AND pid <> pg_backend_pid()",
        )
    },
    View {
        values: &[("blocked_sessions", Gauge, "Sessions that wait for a lock of another session")],
        ..view("tandem_database", "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
    },
    View { labels: TABLE, values: USER_TABLES, ..view("pg_stat_user_tables", USER_TABLES_SQL) },
    View {
        labels: TABLE,
        values: &[
            ("index_size_bytes", Gauge, "Room that the table's indexes take"),
            ("table_size_bytes", Gauge, "Room that the table takes without its indexes"),
        ],
        pace: Pace::Seldom,
        ..view(
            "pg_stat_user_tables",
            "SELECT current_database(), nspname, relname, pg_indexes_size(pg_class.oid), pg_table_size(pg_class.oid)
             FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace WHERE pg_class.oid = ANY({tables})",
        )
    },
    View {
        labels: TABLE,
        values: &[
            ("heap_blocks_read", Counter, "Blocks of the table read from disk or from the kernel's cache"),
            ("heap_blocks_hit", Counter, "Blocks of the table found in shared buffers"),
            ("idx_blocks_read", Counter, "Blocks of its indexes read from disk or from the kernel's cache"),
            ("idx_blocks_hit", Counter, "Blocks of its indexes found in shared buffers"),
            ("toast_blocks_read", Counter, "Blocks of its TOAST table read from disk or from the kernel's cache"),
            ("toast_blocks_hit", Counter, "Blocks of its TOAST table found in shared buffers"),
            ("tidx_blocks_read", Counter, "Blocks of the index of that table read from disk or from the kernel's cache"),
            ("tidx_blocks_hit", Counter, "Blocks of the index of that table found in shared buffers"),
        ],
        ..view(
            "pg_statio_user_tables",
            "SELECT current_database(), schemaname, relname, heap_blks_read, heap_blks_hit, idx_blks_read, idx_blks_hit,
                    toast_blks_read, toast_blks_hit, tidx_blks_read, tidx_blks_hit
             FROM pg_statio_all_tables WHERE relid = ANY({tables})",
        )
    },
    View {
        values: &[("tables_left_out", Gauge, "Tables that have no series of their own, because metrics.tables others are larger")],
        pace: Pace::Seldom,
        ..view(
            "tandem_metrics",
            "SELECT greatest(0, count(*) - {limit}) FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
             WHERE relkind IN ('r', 't', 'm', 'p') AND nspname NOT IN ('pg_catalog', 'information_schema')
             AND nspname !~ '^pg_toast'",
        )
    },
];

/// Each under two names: postgres_exporter added `_total` in version 0.11, and dashboard 9628 asks for the names before.
const BGWRITER: &[(&str, Kind, &str)] = &[
    ("checkpoints_timed", Counter, "Checkpoints that were due"),
    ("checkpoints_req", Counter, "Checkpoints that were asked for"),
    ("checkpoint_write_time", Counter, "Milliseconds that checkpoints spent writing"),
    ("checkpoint_sync_time", Counter, "Milliseconds that checkpoints spent flushing to disk"),
    ("buffers_checkpoint", Counter, "Buffers that checkpoints wrote"),
    ("buffers_clean", Counter, "Buffers that the background writer wrote"),
    ("maxwritten_clean", Counter, "How often the background writer paused because it had written enough"),
    ("buffers_backend", Counter, "Buffers that server processes had to write themselves"),
    ("buffers_backend_fsync", Counter, "How often a server process had to flush a file itself"),
    ("buffers_alloc", Counter, "Buffers that were allocated"),
    ("stats_reset", Counter, "When these statistics were last reset, in seconds since 1970"),
    ("checkpoints_timed_total", Counter, "Checkpoints that were due"),
    ("checkpoints_req_total", Counter, "Checkpoints that were asked for"),
    ("checkpoint_write_time_total", Counter, "Milliseconds that checkpoints spent writing"),
    ("checkpoint_sync_time_total", Counter, "Milliseconds that checkpoints spent flushing to disk"),
    ("buffers_checkpoint_total", Counter, "Buffers that checkpoints wrote"),
    ("buffers_clean_total", Counter, "Buffers that the background writer wrote"),
    ("maxwritten_clean_total", Counter, "How often the background writer paused because it had written enough"),
    ("buffers_backend_total", Counter, "Buffers that server processes had to write themselves"),
    ("buffers_backend_fsync_total", Counter, "How often a server process had to flush a file itself"),
    ("buffers_alloc_total", Counter, "Buffers that were allocated"),
    ("stats_reset_total", Counter, "When these statistics were last reset, in seconds since 1970"),
];
const BGWRITER_SQL: &str = "SELECT one.*, one.* FROM (
    SELECT checkpoints_timed, checkpoints_req, checkpoint_write_time, checkpoint_sync_time, buffers_checkpoint, buffers_clean,
           maxwritten_clean, buffers_backend, buffers_backend_fsync, buffers_alloc, extract(epoch FROM stats_reset)
    FROM pg_stat_bgwriter) AS one";

const USER_TABLES: &[(&str, Kind, &str)] = &[
    ("seq_scan", Counter, "Sequential scans of the table"),
    ("seq_tup_read", Counter, "Rows that sequential scans read"),
    ("idx_scan", Counter, "Index scans of the table"),
    ("idx_tup_fetch", Counter, "Rows that index scans fetched"),
    ("n_tup_ins", Counter, "Rows inserted"),
    ("n_tup_upd", Counter, "Rows updated"),
    ("n_tup_del", Counter, "Rows deleted"),
    ("n_tup_hot_upd", Counter, "Rows updated without a new entry in an index"),
    ("n_live_tup", Gauge, "An estimate of the rows"),
    ("n_dead_tup", Gauge, "An estimate of the dead rows"),
    ("n_mod_since_analyze", Gauge, "An estimate of the rows changed since the last analyze"),
    ("last_vacuum", Gauge, "When the table was last vacuumed by hand, in seconds since 1970; 0: never"),
    ("last_autovacuum", Gauge, "When autovacuum last vacuumed the table, in seconds since 1970; 0: never"),
    ("last_analyze", Gauge, "When the table was last analyzed by hand, in seconds since 1970; 0: never"),
    ("last_autoanalyze", Gauge, "When autovacuum last analyzed the table, in seconds since 1970; 0: never"),
    ("vacuum_count", Counter, "Vacuums by hand"),
    ("autovacuum_count", Counter, "Vacuums by autovacuum"),
    ("analyze_count", Counter, "Analyzes by hand"),
    ("autoanalyze_count", Counter, "Analyzes by autovacuum"),
];
const USER_TABLES_SQL: &str = "
    SELECT current_database(), schemaname, relname, seq_scan, seq_tup_read, idx_scan, idx_tup_fetch, n_tup_ins, n_tup_upd,
           n_tup_del, n_tup_hot_upd, n_live_tup, n_dead_tup, n_mod_since_analyze,
           coalesce(extract(epoch FROM last_vacuum), 0), coalesce(extract(epoch FROM last_autovacuum), 0),
           coalesce(extract(epoch FROM last_analyze), 0), coalesce(extract(epoch FROM last_autoanalyze), 0),
           vacuum_count, autovacuum_count, analyze_count, autoanalyze_count
    FROM pg_stat_all_tables WHERE relid = ANY({tables})";
