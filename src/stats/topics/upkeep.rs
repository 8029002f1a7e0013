//! What keeps a database well: vacuum, freezing, sequences.

use super::{OF_USERS, Question, moment, unreadable};
use crate::stats::table::Kind::{Bytes, Count, Flag, Percent, Text, Time};

/// How many transactions before the wraparound the server takes no more (PostgreSQL's varsup.c).
const WRAPAROUND_STOP: i64 = (1 << 31) - 3_000_000;

/// A row has a head of 23 bytes and its pointer of 4, and begins at a multiple of 8; a page has a head of 24. A B-tree leaves a
/// tenth of each page free. What columns take, the statistics know (PostgreSQL documentation, "Database Page Layout").
pub fn bloat() -> Question {
    let columns =
        &[("kind", Text), ("name", Text), ("bytes", Bytes), ("needed", Bytes), ("waste", Bytes), ("wasted", Percent)];
    let sql = format!(
        "WITH page AS (SELECT current_setting('block_size')::numeric AS size),
         known AS (SELECT schemaname, tablename, attname, (1 - null_frac) * avg_width AS width, null_frac
                   FROM pg_stats WHERE NOT inherited),
         widths AS (SELECT schemaname, tablename, sum(width) AS width, max(null_frac) AS nulls FROM known GROUP BY 1, 2),
         tables AS (
             SELECT 'table' AS kind, class.oid, class.relpages,
                    ceil(class.reltuples::numeric
                         * (ceil((24 + CASE WHEN nulls > 0 THEN 8 ELSE 0 END + width::numeric) / 8) * 8 + 4)
                         / ((page.size - 24) * coalesce(fill.factor, 100) / 100)) AS needed
             FROM widths JOIN pg_namespace AS space ON space.nspname = schemaname
             JOIN pg_class AS class ON class.relname = tablename AND class.relnamespace = space.oid CROSS JOIN page
             LEFT JOIN LATERAL (SELECT option_value::numeric AS factor FROM pg_options_to_table(class.reloptions)
                                WHERE option_name = 'fillfactor') AS fill ON true
             WHERE class.relkind IN ('r', 'm') AND class.relpages > 1 AND class.reltuples >= 0 AND {OF_USERS}),
         keys AS (
             SELECT index.indexrelid AS oid, sum(known.width) AS width
             FROM pg_index AS index JOIN pg_class AS class ON class.oid = index.indrelid
             JOIN pg_namespace AS space ON space.oid = class.relnamespace
             CROSS JOIN LATERAL unnest(index.indkey) AS key(number)
             JOIN pg_attribute AS part ON part.attrelid = index.indrelid AND part.attnum = key.number
             JOIN known ON known.schemaname = space.nspname AND known.tablename = class.relname
                  AND known.attname = part.attname
             WHERE index.indexprs IS NULL AND {OF_USERS} GROUP BY 1),
         indexes AS (
             SELECT 'index' AS kind, class.oid, class.relpages,
                    ceil(class.reltuples::numeric * (ceil((8 + width::numeric) / 8) * 8 + 4) / ((page.size - 40) * 0.9)) + 1
             FROM keys JOIN pg_class AS class ON class.oid = keys.oid
             JOIN pg_am AS method ON method.oid = class.relam AND method.amname = 'btree' CROSS JOIN page
             WHERE class.relpages > 2 AND class.reltuples >= 0)
         SELECT kind, oid::regclass::text, (relpages * page.size)::int8, (least(needed, relpages) * page.size)::int8,
                (greatest(relpages - needed, 0) * page.size)::int8,
                (100 * greatest(relpages - needed, 0) / relpages)::float8
         FROM (SELECT * FROM tables UNION ALL SELECT * FROM indexes) AS both_kinds CROSS JOIN page
         WHERE relpages > needed ORDER BY 5 DESC, 2"
    );
    let remarks = format!(
        "SELECT 'estimated from the statistics of the last ANALYZE; VACUUM lets new rows use the room, VACUUM FULL or \
                 REINDEX CONCURRENTLY gives it back' UNION ALL {}",
        unreadable()
    );
    Question::new(columns, sql).with_remarks(remarks)
}

pub fn vacuum_stats() -> Question {
    let columns = &[
        ("table", Text),
        ("rows", Count),
        ("dead", Count),
        ("dead_share", Percent),
        ("threshold", Count),
        ("due", Flag),
        ("last_vacuum", Time),
        ("last_autovacuum", Time),
        ("last_analyze", Time),
    ];
    let [vacuum, auto, analyze] =
        ["last_vacuum", "last_autovacuum", "greatest(last_analyze, last_autoanalyze)"].map(moment);
    let option = |name: &str| {
        format!(
            "coalesce((SELECT option_value FROM pg_options_to_table(class.reloptions) WHERE option_name = '{name}'), \
             current_setting('{name}'))::float8"
        )
    };
    let (base, scale) = (option("autovacuum_vacuum_threshold"), option("autovacuum_vacuum_scale_factor"));
    let sql = format!(
        "SELECT name, n_live_tup, n_dead_tup, 100.0::float8 * n_dead_tup / nullif(n_live_tup + n_dead_tup, 0),
                threshold::int8, n_dead_tup > threshold, {vacuum}, {auto}, {analyze}
         FROM (SELECT used.relid::regclass::text AS name, used.*,
                      {base} + {scale} * greatest(class.reltuples, 0) AS threshold
               FROM pg_stat_user_tables AS used JOIN pg_class AS class ON class.oid = used.relid) AS found
         ORDER BY n_dead_tup DESC, name"
    );
    Question::new(columns, sql)
}

pub fn vacuum_progress() -> Question {
    let columns = &[
        ("pid", Count),
        ("table", Text),
        ("phase", Text),
        ("done", Percent),
        ("pages", Count),
        ("index_rounds", Count),
    ];
    let sql = "SELECT pid::int8, CASE WHEN datname = current_database() THEN relid::regclass::text
                                      ELSE datname || ': ' || relid END,
                      phase, 100.0::float8 * heap_blks_scanned / nullif(heap_blks_total, 0), heap_blks_total,
                      index_vacuum_count
               FROM pg_stat_progress_vacuum ORDER BY 4 NULLS FIRST, 1";
    Question::new(columns, sql)
}

pub fn freeze() -> Question {
    let columns = &[
        ("kind", Text),
        ("name", Text),
        ("age", Count),
        ("of_autovacuum", Percent),
        ("left", Count),
        ("multixact_age", Count),
    ];
    let sql = format!(
        "WITH most AS (SELECT current_setting('autovacuum_freeze_max_age')::float8 AS age),
         databases AS (SELECT 1, 'database' AS kind, datname::text, age(datfrozenxid)::int8 AS age,
                              mxid_age(datminmxid)::int8 FROM pg_database),
         tables AS (SELECT 2, 'table', class.oid::regclass::text, age(class.relfrozenxid)::int8,
                           mxid_age(class.relminmxid)::int8
                    FROM pg_class AS class WHERE class.relkind IN ('r', 'm', 't') AND class.relfrozenxid <> '0'
                    ORDER BY 4 DESC, 3 LIMIT 20)
         SELECT kind, name, found.age, 100 * found.age / most.age, {WRAPAROUND_STOP} - found.age, multixacts
         FROM (SELECT * FROM databases UNION ALL SELECT * FROM tables) AS found(place, kind, name, age, multixacts)
         CROSS JOIN most ORDER BY place, found.age DESC, name"
    );
    let remarks = "SELECT 'at 100 % of autovacuum_freeze_max_age a VACUUM begins by itself; with nothing left the server \
                   takes no more writes'";
    Question::new(columns, sql).with_remarks(remarks)
}

pub fn sequences() -> Question {
    let columns = &[
        ("sequence", Text),
        ("column", Text),
        ("last_value", Count),
        ("end", Count),
        ("used", Percent),
        ("left", Count),
    ];
    // A bigint sequence ends where the column that it fills does.
    let sql = "SELECT name, filled, last_value, highest, 100.0::float8 * last_value / highest, highest - last_value
        FROM (SELECT class.oid::regclass::text AS name, part.attrelid::regclass::text || '.' || part.attname AS filled,
                     known.last_value,
                     least(known.max_value, CASE part.atttypid WHEN 'int2'::regtype THEN 32767
                                                               WHEN 'int4'::regtype THEN 2147483647
                                                               ELSE known.max_value END) AS highest
              FROM pg_sequences AS known JOIN pg_namespace AS space ON space.nspname = known.schemaname
              JOIN pg_class AS class ON class.relname = known.sequencename AND class.relnamespace = space.oid
              LEFT JOIN pg_depend AS owner ON owner.classid = 'pg_class'::regclass AND owner.objid = class.oid
                   AND owner.refclassid = 'pg_class'::regclass AND owner.refobjsubid > 0 AND owner.deptype IN ('a', 'i')
              LEFT JOIN pg_attribute AS part ON part.attrelid = owner.refobjid AND part.attnum = owner.refobjsubid
              WHERE known.increment_by > 0 AND known.max_value > 0 AND NOT known.cycle) AS found
        ORDER BY 5 DESC NULLS LAST, 1";
    let remarks = format!(
        "SELECT format('%s sequences of schema %I cannot be read: its owner or a superuser can run GRANT SELECT ON ALL \
                        SEQUENCES IN SCHEMA %I TO %I', count(*), space.nspname, space.nspname, current_user)
         FROM pg_class AS class JOIN pg_namespace AS space ON space.oid = class.relnamespace
         WHERE {OF_USERS} AND CASE class.relkind WHEN 'S' THEN NOT has_sequence_privilege(class.oid, 'SELECT, USAGE') END
         GROUP BY space.nspname ORDER BY 1 LIMIT 5"
    );
    Question::new(columns, sql).with_remarks(remarks)
}
