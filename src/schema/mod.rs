//! Migrations: bring a database to this binary's revision, and agree with Alembic about where it is.
//!
//! `public.alembic_version` is the truth: the application, its operators and `alembic` read and write it. SeaORM's own
//! bookkeeping (`tandem.seaql_migrations`, outside the application's schema) is made to follow it whenever the two
//! differ, which is also how a database that Alembic made is adopted. What makes no sense is refused untouched.
//!
//! A project's own SQL files are applied by [`sql_files`], and its tools' commands are in [`tool`].
//!
//! Flow of the built-in ones: [`inspect`] reads where the database is, [`position`] (pure) judges it, [`run`] goes from there under [`lock`].
//! Must not start a server, read configuration, or know what a worker is.

mod connect;
pub mod copied;
mod inspect;
mod lock;
mod new;
mod position;
mod run;
pub mod sql_files;
pub mod tool;

pub use connect::{
    ANSWER_LIMIT, MAKE_LIMIT, answered, blank, connect, options, refuse_shared_sessions, session, unlimited,
};
pub use inspect::{has_built_in, has_tables};
pub use lock::{LOCK_KEY, locked};
pub use new::new;
pub use run::{MigrationOutcome, RevisionStatus, down, status, up, up_beside};

/// The newest revision that this binary knows, as `alembic_version` names it.
pub fn head() -> String {
    position::revision_at(migration::REVISIONS, migration::REVISIONS.len()).unwrap_or_default().to_owned()
}

/// Whether this binary knows `revision`, as `alembic_version` names it.
pub fn knows(revision: &str) -> bool {
    (1..=migration::REVISIONS.len()).any(|at| position::revision_at(migration::REVISIONS, at) == Some(revision))
}

/// The tables of `public` in a database at [`head`], sorted, Alembic's own included.
pub fn tables() -> Vec<&'static str> {
    let mut tables = position::tables_at(migration::REVISIONS, migration::REVISIONS.len());
    tables.insert("alembic_version");
    tables.into_iter().collect()
}
