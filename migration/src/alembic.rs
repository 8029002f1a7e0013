//! Keeps Alembic's own table, `public.alembic_version`, in step with each migration.

use sea_orm_migration::async_trait::async_trait;
use sea_orm_migration::sea_orm::{ConnectionTrait, Statement};
use sea_orm_migration::{DbErr, MigrationName, MigrationTrait, SchemaManager};

/// Longest revision id in bytes: Alembic declares `version_num` as `varchar(32)`.
pub const REVISION_LENGTH_MAX: usize = 32;

/// As Alembic creates it (alembic/runtime/migration.py, `version_table_impl`).
const CREATE_TABLE: &str = "CREATE TABLE IF NOT EXISTS public.alembic_version (version_num varchar(32) NOT NULL, \
                            CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num))";

/// Alembic's revision id of the SeaORM migration `name`.
pub fn revision(name: &str) -> &str {
    name.strip_prefix('m').unwrap_or(name)
}

/// `migrations`, oldest first, each also moving `alembic_version` up and down in its own transaction.
pub(crate) fn in_step(
    migrations: impl IntoIterator<Item = &'static dyn MigrationTrait>,
) -> Vec<Box<dyn MigrationTrait>> {
    let mut previous = None;
    migrations
        .into_iter()
        .map(|migration| {
            let step = InStep { migration, previous };
            previous = Some(revision(migration.name()));
            Box::new(step) as Box<dyn MigrationTrait>
        })
        .collect()
}

struct InStep {
    migration: &'static dyn MigrationTrait,
    /// The revision below, or `None` under the first.
    previous: Option<&'static str>,
}

impl MigrationName for InStep {
    fn name(&self) -> &str {
        self.migration.name()
    }
}

#[async_trait]
impl MigrationTrait for InStep {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        if self.previous.is_none() {
            manager.get_connection().execute_unprepared(CREATE_TABLE).await?;
        }
        self.migration.up(manager).await?;
        record(manager, self.previous, Some(revision(self.name()))).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        self.migration.down(manager).await?;
        record(manager, Some(revision(self.name())), self.previous).await
    }

    fn use_transaction(&self) -> Option<bool> {
        self.migration.use_transaction()
    }
}

/// Move `alembic_version` from one revision to the next; `None` is the empty table.
async fn record(manager: &SchemaManager<'_>, from: Option<&str>, to: Option<&str>) -> Result<(), DbErr> {
    let (sql, values) = match (from, to) {
        (None, None) => return Ok(()),
        (None, Some(to)) => ("INSERT INTO public.alembic_version (version_num) VALUES ($1)", vec![to]),
        (Some(from), None) => ("DELETE FROM public.alembic_version WHERE version_num = $1", vec![from]),
        (Some(from), Some(to)) => {
            ("UPDATE public.alembic_version SET version_num = $2 WHERE version_num = $1", vec![from, to])
        }
    };
    let connection = manager.get_connection();
    let statement = Statement::from_sql_and_values(
        connection.get_database_backend(),
        sql,
        values.into_iter().map(sea_orm_migration::sea_orm::Value::from),
    );
    let changed = connection.execute_raw(statement).await?.rows_affected();
    if changed == 1 {
        return Ok(());
    }
    // The row was changed while the migration ran: Alembic takes no lock that could be checked.
    Err(DbErr::Migration(format!("alembic_version no longer holds {}", from.unwrap_or("nothing"))))
}

#[cfg(test)]
mod tests {
    use crate::{Migrator, MigratorTrait, REVISION_LENGTH_MAX, revision};

    #[test]
    fn revisions_are_ordered_named_after_their_files_and_fit_alembics_column() {
        let names: Vec<String> = Migrator::migrations().iter().map(|one| one.name().to_owned()).collect();
        assert_eq!(
            names[..4],
            [
                "m001_initial_auth_schema",
                "m002_decision_cache_schema",
                "m003_portfolio_memory_schema",
                "m004_add_indexes"
            ]
        );
        assert!(names.is_sorted());
        assert!(names.iter().all(|name| revision(name).len() <= REVISION_LENGTH_MAX));
        assert_eq!(revision(&names[0]), "001_initial_auth_schema");
    }
}
