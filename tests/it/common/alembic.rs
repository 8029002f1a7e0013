//! FFE's real Alembic, from `tests/fixtures/alembic`, in the tests' own Python environment.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tandem::plan::{CommandLine, DatabaseUrl};

use super::project;
use super::server::succeed;

const ALEMBIC_LIMIT: Duration = Duration::from_secs(60);

/// Run `alembic ARGS` on `url`'s database as an operator does, and bring back what it printed.
pub async fn alembic(url: &DatabaseUrl, args: &[&str]) -> String {
    let command = CommandLine::new(project::python().await)
        .args(["-m", "alembic"])
        .args(args)
        .env("DATABASE_URL", url.with_scheme("postgresql+psycopg2").expose().expose())
        .dir(fixtures().join("alembic"));
    succeed(&command, ALEMBIC_LIMIT).await.stdout
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}
