//! Indexes: how large they are, and whether they are worth it.

use super::tables::size;
use super::{OF_USERS, Question, Sizes, unreadable};
use crate::stats::table::Kind::{Bytes, Count, Flag, Percent, Text};

pub fn usage() -> Question {
    let columns = &[("table", Text), ("by_index", Percent), ("index_scans", Count), ("scans", Count), ("rows", Count)];
    let sql =
        "SELECT relid::regclass::text, 100.0::float8 * idx_scan / nullif(seq_scan + idx_scan, 0), idx_scan, seq_scan,
                      n_live_tup
               FROM pg_stat_user_tables ORDER BY n_live_tup DESC, 1";
    Question::new(columns, sql)
}

pub fn sizes(sizes: Sizes) -> Question {
    let columns = &[("index", Text), ("table", Text), ("bytes", Bytes), ("scans", Count)];
    let size = size(sizes, "class");
    let sql = format!(
        "SELECT used.indexrelid::regclass::text, used.relid::regclass::text, {size}, used.idx_scan
         FROM pg_stat_user_indexes AS used JOIN pg_class AS class ON class.oid = used.indexrelid
         ORDER BY 3 DESC NULLS LAST, 1"
    );
    Question::new(columns, sql)
}

pub fn total(sizes: Sizes) -> Question {
    let size = size(sizes, "class");
    let sql = format!(
        "SELECT count(*), coalesce(sum({size}), 0)::int8
         FROM pg_class AS class JOIN pg_namespace AS space ON space.oid = class.relnamespace
         WHERE class.relkind = 'i' AND {OF_USERS}"
    );
    Question::new(&[("indexes", Count), ("bytes", Bytes)], sql)
}

pub fn unused(sizes: Sizes) -> Question {
    let columns = &[("index", Text), ("table", Text), ("bytes", Bytes), ("scans", Count), ("table_writes", Count)];
    let size = size(sizes, "class");
    // What keeps rows apart, or is how a replica knows them, is used without being read.
    let sql = format!(
        "SELECT used.indexrelid::regclass::text, used.relid::regclass::text, {size}, used.idx_scan,
                written.n_tup_ins + written.n_tup_upd + written.n_tup_del
         FROM pg_stat_user_indexes AS used JOIN pg_index AS index ON index.indexrelid = used.indexrelid
         JOIN pg_class AS class ON class.oid = used.indexrelid
         LEFT JOIN pg_stat_user_tables AS written ON written.relid = used.relid
         WHERE used.idx_scan < 50 AND NOT index.indisunique AND NOT index.indisexclusion AND NOT index.indisreplident
               AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = used.indexrelid)
         ORDER BY 3 DESC NULLS LAST, 1"
    );
    let remarks = "SELECT 'counted since ' || to_char(stats_reset AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI \"UTC\"')
                   FROM pg_stat_database WHERE datname = current_database() AND stats_reset IS NOT NULL
                   UNION ALL SELECT 'an index that only a replica reads is unused here'
                   FROM (SELECT FROM pg_stat_replication LIMIT 1) AS replica";
    Question::new(columns, sql).with_remarks(remarks)
}

pub fn duplicate(sizes: Sizes) -> Question {
    let columns = &[("table", Text), ("indexes", Text), ("bytes", Bytes), ("unique", Flag)];
    let size = size(sizes, "class");
    // Words for an expression take a lock on its table.
    let words = |tree: &str| match sizes {
        Sizes::Measured => format!("pg_get_expr(index.{tree}, index.indrelid)"),
        Sizes::Estimated => format!("index.{tree}::text"),
    };
    let (expressions, predicate) = (words("indexprs"), words("indpred"));
    let sql = format!(
        "SELECT index.indrelid::regclass::text,
                string_agg(index.indexrelid::regclass::text, ', ' ORDER BY index.indisunique DESC, index.indexrelid),
                sum({size})::int8, bool_or(index.indisunique)
         FROM pg_index AS index JOIN pg_class AS class ON class.oid = index.indexrelid
         JOIN pg_namespace AS space ON space.oid = class.relnamespace
         WHERE {OF_USERS}
         GROUP BY index.indrelid, class.relam, index.indkey::text, index.indclass::text, index.indcollation::text,
                  index.indoption::text, coalesce({expressions}, ''),
                  coalesce({predicate}, '')
         HAVING count(*) > 1 ORDER BY 3 DESC NULLS LAST, 1"
    );
    Question::new(columns, sql)
}

pub fn null(sizes: Sizes) -> Question {
    let columns = &[("index", Text), ("table", Text), ("bytes", Bytes), ("nulls", Percent), ("saved_bytes", Bytes)];
    let size = size(sizes, "class");
    let sql = format!(
        "SELECT name, of_table, bytes, 100.0::float8 * nulls, (bytes * nulls)::int8
         FROM (SELECT index.indexrelid::regclass::text AS name, index.indrelid::regclass::text AS of_table,
                      {size} AS bytes, known.null_frac::float8 AS nulls
               FROM pg_index AS index JOIN pg_class AS class ON class.oid = index.indexrelid
               JOIN pg_class AS rows ON rows.oid = index.indrelid
               JOIN pg_namespace AS space ON space.oid = rows.relnamespace
               JOIN pg_attribute AS first ON first.attrelid = index.indrelid AND first.attnum = index.indkey[0]
               JOIN pg_stats AS known ON known.schemaname = space.nspname AND known.tablename = rows.relname
                    AND known.attname = first.attname AND NOT known.inherited
               WHERE NOT index.indisunique AND index.indpred IS NULL AND known.null_frac > 0.5 AND {OF_USERS}) AS found
         ORDER BY 5 DESC NULLS LAST, 1"
    );
    Question::new(columns, sql).with_remarks(unreadable())
}
