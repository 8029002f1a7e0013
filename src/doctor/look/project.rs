//! What the project needs to run: its Tandem, ports, programs, Python.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{DEEP_LIMIT, LOOK_LIMIT, apart, in_time, on_home};
use crate::config::{BinarySource, PostgresMode, Settings, WorkerSocket};
use crate::control::client;
use crate::doctor::facts::{Certificate, Look, NoStatus, OldCache, PortUse, Programs, Python, Running, Unseen};
use crate::doctor::subject::Subject;
use crate::durable::held_by;
use crate::exit::in_words;
use crate::health;
use crate::plan::Place;
use crate::postgres;
use crate::postgres::binaries::{self, Installation};
use crate::postgres::home::Home;
use crate::process::{ports, ports::unix_listener};
use crate::workers::{environment, launch, serving};

/// How long the health port may take: its answers are ready before they are asked for.
const HEALTH_LIMIT: Duration = Duration::from_secs(2);

/// Whether a process listens on the control socket.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Listens {
    Nobody,
    Somebody,
    /// This user may not ask.
    Hidden,
}

impl Listens {
    fn at(socket: &Path) -> Self {
        match unix_listener(socket) {
            Ok(_) => Self::Somebody,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Self::Hidden,
            Err(_) => Self::Nobody,
        }
    }
}

/// The Tandem that runs here, and what holds its directories.
pub async fn tandem(subject: &Subject) -> Look<Running> {
    let home = subject.home.clone()?;
    let place = home.clone();
    let held = apart("look who holds the state directory", move || {
        let listens = Listens::at(&place.control);
        let holder = held_by(&place.state.join("lock"), "another tandem");
        (listens, holder, held_by(&place.data, "another tandem"))
    });
    let (listens, holder, data_holder) = held.await?;
    let status = match listens {
        Listens::Nobody => None,
        Listens::Somebody | Listens::Hidden => {
            let asked = in_time("the running tandem", LOOK_LIMIT, async { Ok(client::status(&home.control).await) });
            Some(match asked.await {
                Ok(Ok(status)) => Ok(status),
                Ok(Err(error)) if listens == Listens::Hidden => Err(NoStatus::Refused(in_words(&error))),
                Ok(Err(error)) => Err(NoStatus::Silent(in_words(&error))),
                Err(Unseen::Nothing(why) | Unseen::Unknown(why)) => Err(NoStatus::Silent(why)),
            })
        }
    };
    let reasons = match (&status, &subject.settings) {
        (Some(Ok(_)), Ok(settings)) => complaints(settings).await,
        _ => Vec::new(),
    };
    // What holds the data directory is Tandem itself, where it holds the state directory.
    let data_holder = data_holder.filter(|_| status.is_none() && holder.is_none());
    Ok(Running { status, holder, data_holder, reasons })
}

/// What `/health` complains of, if it answers.
async fn complaints(settings: &Settings) -> Vec<String> {
    let Ok((_, body)) = health::client::probe(&settings.health.listen, "/health", HEALTH_LIMIT).await else {
        return Vec::new();
    };
    let report: serde_json::Value = serde_json::from_str(&body).unwrap_or_default();
    let reasons = report["reasons"].as_array().into_iter().flatten();
    reasons.filter_map(|reason| reason.as_str().map(str::to_owned)).collect()
}

/// The ports that a start would listen on; those of what runs here are its own.
pub async fn ports(subject: &Subject, runs: bool) -> Look<Vec<PortUse>> {
    let settings = subject.settings.clone()?;
    let activated = subject.source.environment.contains_key("LISTEN_FDS");
    apart("look who listens on the ports", move || {
        let workers = settings.workers.listen.iter().map(|place| ("workers.listen", place, false));
        let own = settings.workers.socket == WorkerSocket::Inherited || !runs;
        let workers = workers.filter(|_| own && !activated);
        let postgres = Place::At((settings.postgres.listen, settings.postgres.port.number).into());
        let managed = settings.postgres.mode == PostgresMode::Managed;
        let postgres = managed.then_some(("postgres.port", &postgres, !settings.postgres.port.chosen));
        let all = workers.chain([("health.listen", &settings.health.listen, false)]).chain(postgres);
        let all = all.filter_map(|(key, place, moves)| Some((key, place.port().filter(|port| *port != 0)?, moves)));
        all.map(|(key, port, moves)| {
            let is_taken = !runs && ports::is_listened_to(port);
            let holder = is_taken.then(|| ports::holder(port).unwrap_or_else(|| "another program".to_owned()));
            PortUse { key, port, holder, moves }
        })
        .collect()
    })
    .await
}

/// PostgreSQL's programs, if they are there already.
pub async fn programs(subject: &Subject) -> Look<(Installation, Programs)> {
    let asked = in_time("PostgreSQL's programs", LOOK_LIMIT, async {
        let found = match &subject.settings {
            Ok(settings) => {
                let (source, path) = (&settings.postgres.source, settings.search_path.as_ref());
                binaries::present(source, &settings.cache_dir, path).await
            }
            // Those of the system, which need no configuration.
            Err(_) => {
                let path = subject.source.environment.get("PATH").map_or("", String::as_str);
                binaries::present(&BinarySource::System, Path::new("/"), path.as_ref()).await
            }
        };
        found.ok_or_else(|| Unseen::nothing("PostgreSQL is not installed yet; the first start fetches it"))
    });
    let installation = asked.await?;
    let limit = if subject.deep { DEEP_LIMIT } else { LOOK_LIMIT };
    let checked = in_time("PostgreSQL's programs", limit, async {
        let lacks = installation.check().await.err().map(|error| in_words(&error));
        let modules = match subject.deep {
            true => installation.lacking().await.map_err(|error| Unseen::unknown(in_words(&error)))?,
            false => Vec::new(),
        };
        let (bin, version) = (installation.bin.clone(), installation.version.clone());
        Ok(Programs { bin, version, lacks, modules })
    });
    let programs = checked.await?;
    Ok((installation, programs))
}

/// The Python environment of the workers.
pub async fn python(subject: &Subject) -> Look<Python> {
    on_home(subject, "look at the Python environment", |settings: &Settings, home: &Home| {
        let (python, directory) = (&settings.python, &settings.directory);
        let interpreter = environment::existing(python, &home.state, directory);
        let root = interpreter.parent().and_then(Path::parent).map(Path::to_path_buf).unwrap_or_default();
        let is_made = root.join("pyvenv.cfg").is_file();
        let changed = environment::changed(python, &home.state, directory);
        let changed = changed.map_err(|error| in_words(&error)).transpose();
        let is_there = interpreter.is_file() || is_in_path(&interpreter, &settings.search_path);
        let is_uvicorn = settings.workers.command.is_none();
        Python { is_there, is_made, changed, uvicorn: version_of("uvicorn", &root), is_uvicorn, interpreter }
    })
    .await
}

fn is_in_path(program: &Path, search_path: &str) -> bool {
    program.components().count() == 1 && std::env::split_paths(search_path).any(|dir| dir.join(program).is_file())
}

/// The version of a package in the environment `root`, by the directory that its installer made.
fn version_of(package: &str, root: &Path) -> Option<String> {
    let lib = fs::read_dir(root.join("lib")).ok()?.flatten();
    let sites = lib.map(|entry| entry.path().join("site-packages"));
    let start = format!("{package}-");
    sites.flat_map(|site| fs::read_dir(site).into_iter().flatten().flatten()).find_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        Some(name.strip_prefix(&start)?.strip_suffix(".dist-info")?.to_owned())
    })
}

/// The certificates of the application and of the database server.
pub async fn certificates(subject: &Subject) -> Look<Vec<Certificate>> {
    let settings = subject.settings.clone()?;
    if settings.workers.serving.tls.is_none() && settings.postgres.tls.is_off() {
        return Err(Unseen::nothing("nothing is served with a certificate"));
    }
    let home = subject.home.clone()?;
    apart("look at the certificates", move || {
        let application = settings.workers.serving.tls.as_ref().map(|tls| {
            let python = environment::existing(&settings.python, &home.state, &settings.directory);
            let user = launch::identity_for(&settings, &home.run, &python).ok().flatten();
            let found = serving::inspect(tls, user.as_ref());
            let wrong =
                found.wrong.into_iter().map(|(key, message, help)| (format!("{key}: {message}"), help)).collect();
            Certificate { whose: "the application", wrong, not_after: found.not_after }
        });
        let until = postgres::tls::held_until(&settings.postgres, &home);
        let server =
            until.map(|until| Certificate { whose: "the database server", wrong: Vec::new(), not_after: Some(until) });
        application.into_iter().chain(server).collect()
    })
    .await
}

/// What earlier versions of Tandem left in the cache.
pub async fn caches(subject: &Subject) -> Look<Vec<OldCache>> {
    let cache = subject.settings.clone()?.cache_dir;
    apart("look at the cache", move || {
        let sized = |path: PathBuf| OldCache { bytes: crate::backup::doctor::size(&path), path };
        binaries::outdated(&cache).into_iter().map(sized).collect()
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_a_package_is_that_of_its_own_directory() {
        let temp = tempfile::tempdir().unwrap();
        let site = temp.path().join("lib/python3.13/site-packages");
        fs::create_dir_all(site.join("uvicorn_worker-0.3.0.dist-info")).unwrap();
        assert_eq!(version_of("uvicorn", temp.path()), None);
        fs::create_dir(site.join("uvicorn-0.51.0.dist-info")).unwrap();
        assert_eq!(version_of("uvicorn", temp.path()).as_deref(), Some("0.51.0"));
    }
}
