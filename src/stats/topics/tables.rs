//! Tables: how large they are, and how they are read.

use super::{OF_USERS, Question, Sizes};
use crate::stats::table::Kind::{Bytes, Count, Percent, Text};

/// Bytes of the relation `oid` alone, whose row of pg_class is `class`.
pub fn size(sizes: Sizes, class: &str) -> String {
    match sizes {
        Sizes::Measured => format!("pg_relation_size({class}.oid)"),
        Sizes::Estimated => format!("({class}.relpages::int8 * current_setting('block_size')::int8)"),
    }
}

pub fn sizes(sizes: Sizes) -> Question {
    let columns =
        &[("table", Text), ("rows", Count), ("table_bytes", Bytes), ("index_bytes", Bytes), ("total_bytes", Bytes)];
    let (table, indexes) = match sizes {
        Sizes::Measured => ("pg_table_size(class.oid)", "pg_indexes_size(class.oid)".to_owned()),
        Sizes::Estimated => (
            "(class.relpages::int8 * current_setting('block_size')::int8)",
            "coalesce((SELECT sum(of_index.relpages::int8) FROM pg_index AS index JOIN pg_class AS of_index
                       ON of_index.oid = index.indexrelid WHERE index.indrelid = class.oid), 0)::int8
             * current_setting('block_size')::int8"
                .to_owned(),
        ),
    };
    let sql = format!(
        "SELECT sized.name, sized.rows, sized.table_bytes, sized.index_bytes, sized.table_bytes + sized.index_bytes
         FROM (SELECT class.oid::regclass::text AS name, nullif(greatest(class.reltuples, -1), -1)::int8 AS rows,
                      {table} AS table_bytes, {indexes} AS index_bytes
               FROM pg_class AS class JOIN pg_namespace AS space ON space.oid = class.relnamespace
               WHERE class.relkind IN ('r', 'm', 'p') AND {OF_USERS}) AS sized
         ORDER BY 5 DESC NULLS LAST, 1"
    );
    Question::new(columns, sql)
}

pub fn seq_scans(sizes: Sizes) -> Question {
    let columns = &[
        ("table", Text),
        ("scans", Count),
        ("rows_read", Count),
        ("rows_per_scan", Count),
        ("index_scans", Count),
        ("rows", Count),
        ("bytes", Bytes),
        ("by_scan", Percent),
    ];
    let size = size(sizes, "class");
    let sql = format!(
        "SELECT used.relid::regclass::text, used.seq_scan, used.seq_tup_read,
                used.seq_tup_read / nullif(used.seq_scan, 0), coalesce(used.idx_scan, 0), used.n_live_tup, {size},
                100.0::float8 * used.seq_scan / nullif(used.seq_scan + coalesce(used.idx_scan, 0), 0)
         FROM pg_stat_user_tables AS used JOIN pg_class AS class ON class.oid = used.relid
         WHERE used.seq_scan > 0 ORDER BY used.seq_tup_read DESC, 1"
    );
    Question::new(columns, sql)
}

pub fn records() -> Question {
    let columns = &[("table", Text), ("rows", Count), ("inserted", Count), ("updated", Count), ("deleted", Count)];
    let sql = "SELECT relid::regclass::text, n_live_tup, n_tup_ins, n_tup_upd, n_tup_del
               FROM pg_stat_user_tables ORDER BY n_live_tup DESC, 1";
    Question::new(columns, sql)
}
