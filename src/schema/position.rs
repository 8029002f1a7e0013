//! Judge where a database is among the revisions that this binary knows. Pure.
//!
//! `alembic_version` decides; the tables must agree with it. Everything that could make a migration destroy or miss
//! something is refused here, before the first statement that writes.

use std::collections::BTreeSet;

use migration::{Revision, revision};

use super::inspect::SchemaState;
use crate::exit::{Code, Failure};

/// A place between revisions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    /// How many of the known revisions are in.
    pub applied: usize,
    /// Whether SeaORM's bookkeeping says the same.
    pub recorded: bool,
}

/// The tables of `public` once the first `applied` revisions are in.
pub(super) fn tables_at(revisions: &[Revision], applied: usize) -> BTreeSet<&'static str> {
    let mut tables = BTreeSet::new();
    for revision in &revisions[..applied] {
        tables.extend(revision.creates);
        for table in revision.drops {
            tables.remove(table);
        }
    }
    tables
}

/// The revision a database is at once the first `applied` are in, or `None` before the first.
pub(super) fn revision_at(revisions: &[Revision], applied: usize) -> Option<&'static str> {
    Some(revision(revisions[..applied].last()?.migration.name()))
}

/// Find where `found` is.
///
/// # Errors
/// A [`Code::Schema`] failure when it is newer than `revisions`, or says different things about itself.
pub(super) fn locate(found: &SchemaState, revisions: &[Revision]) -> Result<Position, Failure> {
    let applied = applied_by_alembic(found, revisions)?;
    let names: Vec<&str> = revisions.iter().map(|revision| revision.migration.name()).collect();
    let rows = found.recorded.as_deref().unwrap_or_default();
    if let Some(unknown) = rows.iter().find(|row| !names.contains(&row.as_str())) {
        return Err(unknown_revision("tandem.seaql_migrations", unknown, revisions));
    }
    check_tables(found, revisions, applied)?;
    Ok(Position { applied, recorded: found.recorded.is_some() && rows.iter().eq(&names[..applied]) })
}

fn applied_by_alembic(found: &SchemaState, revisions: &[Revision]) -> Result<usize, Failure> {
    match found.alembic.as_deref().unwrap_or_default() {
        [] => Ok(0),
        [one] => (1..=revisions.len())
            .find(|&applied| revision_at(revisions, applied) == Some(one.as_str()))
            .ok_or_else(|| unknown_revision("alembic_version", one, revisions)),
        several => Err(refuse(format!(
            "alembic_version holds {} revisions at once ({}), which only branched histories do. Bring it to one of \
             them with `alembic upgrade` or `alembic downgrade`",
            several.len(),
            several.join(", ")
        ))),
    }
}

fn check_tables(found: &SchemaState, revisions: &[Revision], applied: usize) -> Result<(), Failure> {
    let expected = tables_at(revisions, applied);
    let missing: Vec<&str> = expected.iter().copied().filter(|table| !found.tables.contains(*table)).collect();
    let at = match revision_at(revisions, applied) {
        Some(revision) => format!("alembic_version says {revision}"),
        None if found.alembic.is_some() => "alembic_version is empty".to_owned(),
        None => "there is no alembic_version".to_owned(),
    };
    if !missing.is_empty() {
        return Err(refuse(format!(
            "{at}, but public has no {}. Restore the database, or correct alembic_version with `alembic stamp REVISION`",
            missing.join(", ")
        )));
    }
    let early: Vec<&str> = revisions[applied..]
        .iter()
        .flat_map(|revision| revision.creates)
        .copied()
        .filter(|table| !expected.contains(table) && found.tables.contains(*table))
        .collect();
    if early.is_empty() {
        return Ok(());
    }
    Err(refuse(format!(
        "{at}, but public already has {}. If these tables are the application's, write down which revision they are at \
         with `alembic stamp REVISION`; if not, use another database",
        early.join(", ")
    )))
}

fn unknown_revision(table: &str, found: &str, revisions: &[Revision]) -> Failure {
    let first = revision_at(revisions, 1.min(revisions.len())).unwrap_or("none");
    let last = revision_at(revisions, revisions.len()).unwrap_or("none");
    refuse(format!(
        "{table} names revision {found}, and this tandem knows {first} to {last} only: a newer version migrated this \
         database. Start that version, or let it go back to {last} first (`tandem migrate down`)"
    ))
}

fn refuse(why: String) -> Failure {
    Failure::new(Code::Schema, format!("{why}. Nothing was changed."))
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use migration::REVISIONS;

    use super::*;

    /// A database that is consistently at the first `applied` revisions.
    fn at(applied: usize) -> SchemaState {
        SchemaState {
            tables: tables_at(REVISIONS, applied).into_iter().chain(["alembic_version"]).map(str::to_owned).collect(),
            alembic: Some(revision_at(REVISIONS, applied).into_iter().map(str::to_owned).collect()),
            recorded: Some(REVISIONS[..applied].iter().map(|one| one.migration.name().to_owned()).collect()),
        }
    }

    fn refused(found: &SchemaState, message: Expect) {
        let failure = locate(found, REVISIONS).unwrap_err();
        assert_eq!(failure.code, Code::Schema);
        message.assert_eq(&failure.to_string());
    }

    #[test]
    fn every_revision_is_found_recorded_or_not() {
        assert_eq!(locate(&SchemaState::default(), REVISIONS).unwrap(), Position { applied: 0, recorded: false });
        for applied in 0..=REVISIONS.len() {
            assert_eq!(locate(&at(applied), REVISIONS).unwrap(), Position { applied, recorded: true });
            let by_alembic = SchemaState { recorded: None, ..at(applied) };
            assert_eq!(locate(&by_alembic, REVISIONS).unwrap(), Position { applied, recorded: false });
            // Alembic moved it since we last looked: its word counts.
            for rows in 0..=REVISIONS.len() {
                let moved = SchemaState { recorded: at(rows).recorded, ..at(applied) };
                assert_eq!(locate(&moved, REVISIONS).unwrap(), Position { applied, recorded: rows == applied });
            }
        }
    }

    #[test]
    fn tables_that_are_not_ours_do_not_matter() {
        let mut found = at(2);
        found.tables.extend(["pg_stat_statements".to_owned(), "notes".to_owned()]);
        assert!(locate(&found, REVISIONS).is_ok());
    }

    #[test]
    fn the_future_is_refused() {
        refused(
            &SchemaState { alembic: Some(vec!["005_later".into()]), ..at(4) },
            expect![
                "alembic_version names revision 005_later, and this tandem knows 001_initial_auth_schema to 004_add_indexes only: a newer version migrated this database. Start that version, or let it go back to 004_add_indexes first (`tandem migrate down`). Nothing was changed."
            ],
        );
        refused(
            &SchemaState { recorded: Some(vec!["m001_initial_auth_schema".into(), "m005_later".into()]), ..at(4) },
            expect![
                "tandem.seaql_migrations names revision m005_later, and this tandem knows 001_initial_auth_schema to 004_add_indexes only: a newer version migrated this database. Start that version, or let it go back to 004_add_indexes first (`tandem migrate down`). Nothing was changed."
            ],
        );
    }

    #[test]
    fn contradictions_are_refused() {
        refused(
            &SchemaState { alembic: Some(vec!["001_initial_auth_schema".into(), "004_add_indexes".into()]), ..at(4) },
            expect![
                "alembic_version holds 2 revisions at once (001_initial_auth_schema, 004_add_indexes), which only branched histories do. Bring it to one of them with `alembic upgrade` or `alembic downgrade`. Nothing was changed."
            ],
        );
        refused(
            &SchemaState { alembic: at(3).alembic, ..at(2) },
            expect![
                "alembic_version says 003_portfolio_memory_schema, but public has no provider_performance, thompson_stats, trade_outcomes. Restore the database, or correct alembic_version with `alembic stamp REVISION`. Nothing was changed."
            ],
        );
        refused(
            &SchemaState { alembic: None, ..at(1) },
            expect![
                "there is no alembic_version, but public already has api_keys, auth_audit. If these tables are the application's, write down which revision they are at with `alembic stamp REVISION`; if not, use another database. Nothing was changed."
            ],
        );
        refused(
            &SchemaState { alembic: at(1).alembic, ..at(2) },
            expect![
                "alembic_version says 001_initial_auth_schema, but public already has cache_stats, decision_cache. If these tables are the application's, write down which revision they are at with `alembic stamp REVISION`; if not, use another database. Nothing was changed."
            ],
        );
    }
}
