//! The schema of the Finance Feedback Engine as SeaORM migrations, one file per revision.
//!
//! Revisions have two names. SeaORM's is the file's (`m004_add_indexes`); Alembic's, which the application, its
//! operators and `alembic` itself read in `public.alembic_version`, is the same without the leading `m`
//! (`004_add_indexes`). [`alembic`] writes Alembic's row inside each migration's own transaction, so a migration file
//! needs to know nothing of it.
//!
//! SeaORM's bookkeeping must not lie in `public`: the caller of [`Migrator`] connects with a `search_path` that names
//! another schema first, and every migration therefore writes `public` before its tables' names (see [`table`]).

mod alembic;
mod m001_initial_auth_schema;
mod m002_decision_cache_schema;
mod m003_portfolio_memory_schema;
mod m004_add_indexes;
mod table;

pub use alembic::{REVISION_LENGTH_MAX, revision};
pub use sea_orm_migration::{MigrationTrait, MigratorTrait};

/// Differs whenever the sources of the migrations do.
pub const DIGEST: &str = env!("MIGRATION_DIGEST");

/// One migration, and what it does to the set of tables in `public`.
///
/// The tables tell whether a database really is at the revision that `alembic_version` names.
pub struct Revision {
    pub migration: &'static dyn MigrationTrait,
    /// Tables that the migration adds to `public`.
    pub creates: &'static [&'static str],
    /// Tables that the migration takes out of `public`.
    pub drops: &'static [&'static str],
}

/// Every revision, oldest first. `tandem migrate new` adds its line at the end.
pub static REVISIONS: &[Revision] = &[
    Revision { migration: &m001_initial_auth_schema::Migration, creates: &["api_keys", "auth_audit"], drops: &[] },
    Revision {
        migration: &m002_decision_cache_schema::Migration,
        creates: &["cache_stats", "decision_cache"],
        drops: &[],
    },
    Revision {
        migration: &m003_portfolio_memory_schema::Migration,
        creates: &["provider_performance", "thompson_stats", "trade_outcomes"],
        drops: &[],
    },
    Revision { migration: &m004_add_indexes::Migration, creates: &[], drops: &[] },
];

/// SeaORM's list of the [`REVISIONS`], each keeping `alembic_version` in step.
pub struct Migrator;

#[sea_orm_migration::async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        alembic::in_step(REVISIONS.iter().map(|revision| revision.migration))
    }
}
