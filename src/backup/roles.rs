//! Make the roles of a globals file that a live server lacks. Those that it has keep their passwords and settings.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::Context;
use sea_orm::sqlx::{AssertSqlSafe, PgConnection, query_scalar, raw_sql};

use crate::postgres::provision::identifier;
use crate::schema::{ANSWER_LIMIT, MAKE_LIMIT, answered};

/// Make what is missing.
///
/// # Errors
/// The file cannot be read, or the server refuses.
pub async fn complete(session: &mut PgConnection, globals: &Path) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(globals).with_context(|| format!("read {}", globals.display()))?;
    let asked = query_scalar("SELECT rolname::text FROM pg_catalog.pg_roles").fetch_all(&mut *session);
    let there: Vec<String> = answered(ANSWER_LIMIT, "list the roles", asked).await?;
    for statement in missing(&text, &there) {
        let what = format!("run {}", statement.split(" PASSWORD ").next().unwrap_or_default());
        answered(MAKE_LIMIT, &what, raw_sql(AssertSqlSafe(statement)).execute(&mut *session)).await?;
    }
    Ok(())
}

/// The statements of `globals`, as pg_dumpall writes them one a line, that make roles which are not `there`.
fn missing(globals: &str, there: &[String]) -> Vec<String> {
    let there: BTreeSet<String> = there.iter().flat_map(|name| [name.clone(), identifier(name)]).collect();
    let created = globals.lines().filter_map(|line| line.strip_prefix("CREATE ROLE ")?.strip_suffix(';'));
    let new: BTreeSet<&str> = created.filter(|name| !there.contains(*name)).collect();
    let of_new = |line: &str| {
        let role = |start: &str| new.iter().any(|name| line.strip_prefix(start).is_some_and(|rest| begins(rest, name)));
        let member = line.starts_with("GRANT ") && new.iter().any(|name| line.contains(&format!(" TO {name}")));
        role("CREATE ROLE ") || role("ALTER ROLE ") || role("COMMENT ON ROLE ") || member
    };
    globals.lines().filter(|line| of_new(line)).map(str::to_owned).collect()
}

/// Whether `text` begins with the whole word `name`.
fn begins(text: &str, name: &str) -> bool {
    text.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', ';']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_missing_is_made() {
        let globals = "CREATE ROLE app;\nALTER ROLE app WITH LOGIN PASSWORD 'old';\nCREATE ROLE \"new one\";\n\
                       ALTER ROLE \"new one\" WITH NOLOGIN;\nALTER ROLE \"new one\" SET work_mem TO '1MB';\n\
                       CREATE ROLE app2;\nALTER ROLE app2 WITH LOGIN;\nCREATE TABLESPACE t OWNER app2 LOCATION '/x';\n\
                       GRANT app TO \"new one\" WITH INHERIT TRUE GRANTED BY postgres;\n";
        let made = missing(globals, &["app".to_owned(), "postgres".to_owned()]);
        assert_eq!(made.len(), 6, "{made:?}");
        assert!(made.iter().all(|statement| !statement.contains("'old'") && !statement.contains("TABLESPACE")));
        assert!(made[5].starts_with("GRANT app TO \"new one\""));
    }
}
