//! What pg_stat_statements has counted.

use super::{Question, Server, query};
use crate::stats::table::Kind::{Count, Milliseconds, Percent, Query, Seconds};

/// The statements of this database, those with the most of `order` first.
pub fn by(server: &Server, order: &str) -> Result<Question, String> {
    let Some(statements) = &server.statements else {
        return Err(format!(
            "pg_stat_statements is not installed in database {}: let the server preload it \
             (shared_preload_libraries), and let a superuser run CREATE EXTENSION pg_stat_statements there",
            server.database
        ));
    };
    if !statements.columns.split(' ').any(|column| column == "total_exec_time") {
        return Err(
            "pg_stat_statements is older than the server: a superuser can run ALTER EXTENSION pg_stat_statements \
                    UPDATE"
                .to_owned(),
        );
    }
    let columns = &[
        ("share", Percent),
        ("total", Seconds),
        ("calls", Count),
        ("mean", Milliseconds),
        ("max", Milliseconds),
        ("rows", Count),
        ("cache_hit", Percent),
        ("query", Query),
    ];
    let (schema, query) = (&statements.schema, query("query"));
    let sql = format!(
        "SELECT 100 * total_exec_time / nullif(sum(total_exec_time) OVER (), 0), total_exec_time / 1000, calls,
                mean_exec_time, max_exec_time, rows,
                100.0::float8 * shared_blks_hit / nullif(shared_blks_hit + shared_blks_read, 0), {query}
         FROM {schema}.pg_stat_statements
         WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
         ORDER BY {order} DESC, query"
    );
    Ok(Question::new(columns, sql))
}
