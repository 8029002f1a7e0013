//! An SQLite file into the application's database: types mapped, rows by `COPY` in one transaction, counts compared.
//!
//! ```text
//! open ─> shape ─> profile     the file, read-only and in one snapshot: its tables, and what their values are
//! target                       the tables that the database has already
//! kind · value · moment        PostgreSQL's types, and a value of SQLite's as one of them (pure)
//! plan                         what is made, what is filled, what is left out (pure); statements: its SQL (pure)
//! check                        every value, converted and thrown away: what does not fit
//! load                         the transaction
//! ```
//!
//! SQLite checks neither types nor, by default, foreign keys, so a file may hold what PostgreSQL refuses. All of it is found
//! before anything is written. The file is never changed.

mod check;
mod kind;
mod load;
mod moment;
mod open;
mod plan;
mod profile;
mod shape;
mod statements;
mod target;
mod value;

pub use check::{Misfit, Misfits};
pub use load::{Imported, ImportedTable};
pub use open::try_out;
pub use plan::{Action, Destination, Plan, TablePlan};

use std::path::{Path, PathBuf};

use anyhow::Context;
use rusqlite::Connection;
use sea_orm::sqlx::PgConnection;

use shape::Shape;

/// What a person asks for.
#[derive(Clone, Debug)]
pub struct Wish {
    pub file: PathBuf,
    pub destination: Destination,
    /// The schema of the tables.
    pub schema: String,
    /// Empty tables that hold rows before they are filled.
    pub replace: bool,
    /// Leave out rows that do not fit.
    pub skip_bad: bool,
}

/// An import that is ready to be carried out.
pub struct Prepared {
    file: Source,
    pub plan: Plan,
    pub misfits: Misfits,
}

/// The open file. Its snapshot holds as long as it lives.
struct Source {
    connection: Connection,
    shape: Shape,
    path: PathBuf,
}

/// Read the file, look into the database, decide, and try every value. Nothing is written.
///
/// # Errors
/// The file cannot be read, or the two do not go together.
pub async fn prepare(wish: &Wish, session: &mut PgConnection) -> anyhow::Result<Prepared> {
    let path = wish.file.clone();
    let (file, profiles) = aside(move || {
        let connection = open::open(&path)?;
        let shape = shape::read(&connection).map_err(|error| open::explained(&path, error))?;
        let profiles = profile::all(&connection, &shape).map_err(|error| open::explained(&path, error))?;
        Ok((Source { connection, shape, path }, profiles))
    })
    .await?;
    let target = target::look(session, &wish.schema, &file.shape).await?;
    let plan = plan::plan(&file.shape, &profiles, &target, wish)?;
    let tables = plan.tables.clone();
    let (file, misfits) = aside(move || {
        let misfits = check::check(&file.connection, &file.shape, &tables);
        let misfits = misfits.map_err(|error| open::explained(&file.path, error))?;
        Ok((file, misfits))
    })
    .await?;
    Ok(Prepared { file, plan, misfits })
}

/// Carry out what was prepared, in one transaction.
///
/// # Errors
/// What PostgreSQL said. Nothing was written then.
pub async fn load(prepared: Prepared, session: &mut PgConnection, wish: &Wish) -> anyhow::Result<Imported> {
    load::load(prepared, session, wish).await
}

/// Read the file on another thread: the event loop keeps the server.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> anyhow::Result<T> + Send + 'static) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(work).await.context("read the SQLite file")?
}

/// The size of the file and of what belongs to it, in bytes.
pub fn size(file: &Path) -> u64 {
    let log = open::beside(file, "-wal");
    [file, &log].iter().filter_map(|path| path.metadata().ok()).map(|meta| meta.len()).sum()
}
