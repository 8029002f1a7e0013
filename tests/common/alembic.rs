//! FFE's real Alembic, from `tests/fixtures/alembic`, in a virtual environment of the tests' own.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tandem::plan::{CommandLine, DatabaseUrl};

use super::server::succeed;

const INSTALL_LIMIT: Duration = Duration::from_secs(300);
const ALEMBIC_LIMIT: Duration = Duration::from_secs(60);

/// Run `alembic ARGS` on `url`'s database as an operator does, and bring back what it printed.
pub async fn alembic(url: &DatabaseUrl, args: &[&str]) -> String {
    let command = CommandLine::new(python().await)
        .args(["-m", "alembic"])
        .args(args)
        .env("DATABASE_URL", url.with_scheme("postgresql+psycopg2").expose().expose())
        .dir(fixtures().join("alembic"));
    succeed(&command, ALEMBIC_LIMIT).await.stdout
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// The interpreter of a virtual environment with the fixtures' pinned requirements, made once per version of them.
async fn python() -> PathBuf {
    let requirements = fixtures().join("requirements.txt");
    let mut hasher = DefaultHasher::new();
    fs::read(&requirements).unwrap().hash(&mut hasher);
    let uid = nix::unistd::Uid::effective();
    let cache = std::env::temp_dir().join(format!("tandem-test-venv-{uid}"));
    let venv = cache.join(format!("{:016x}", hasher.finish()));
    if !venv.is_dir() {
        fs::create_dir_all(&cache).unwrap();
        let staging = tempfile::tempdir_in(&cache).unwrap();
        let made = staging.path().join("venv");
        succeed(&CommandLine::new("python3").args(["-m", "venv"]).arg(&made), INSTALL_LIMIT).await;
        let install = CommandLine::new(made.join("bin/python"))
            .args(["-m", "pip", "install", "-q", "--disable-pip-version-check", "-r"])
            .arg(&requirements);
        succeed(&install, INSTALL_LIMIT).await;
        // Another test may have been faster. `python -m` works from where the environment was moved to; scripts do not.
        let _raced = fs::rename(&made, &venv);
    }
    venv.join("bin/python")
}
