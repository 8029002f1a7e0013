//! What a worker is launched with: the launcher, written into the run directory, and each slot's environment.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context as _;

use super::pool::Launch;
use super::variables;
use crate::config::Settings;
use crate::exit::{Code, Failure};
use crate::plan::{DatabaseUrl, Identity};
use crate::process::InheritedFd;
use crate::process::identity;

/// Runs one ASGI application on an inherited socket; see its own head for the protocol.
const LAUNCHER: &str = "launcher.py";

/// What a worker consists of, by file name. The launcher loads the others from beside it, by path and not by import:
/// the run directory is in nobody's `sys.path`.
const FILES: &[(&str, &str)] = &[(LAUNCHER, include_str!("launcher.py")), ("drain.py", include_str!("drain.py"))];

/// How long a retiring worker keeps idle connections and finishes requests: `settings.workers.drain` takes its place.
const DRAIN_DEFAULT: Duration = Duration::from_secs(30);

/// Users that a web application may run as where root starts it, the better one first.
const USERS: [&str; 2] = ["www-data", "nobody"];

/// Write the launcher into `run` and plan every slot's environment.
///
/// # Errors
/// The launcher cannot be written.
pub fn plan(
    settings: &Settings,
    run: &Path,
    url: &DatabaseUrl,
    listener: InheritedFd,
    notify: &str,
    python: Rc<RefCell<PathBuf>>,
    identity: Rc<RefCell<Option<Identity>>>,
) -> anyhow::Result<Launch> {
    for (name, text) in FILES {
        let path = run.join(name);
        write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    let launcher = run.join(LAUNCHER);
    let protocol = protocol(settings, notify);
    let environment = (0..settings.workers.count)
        .map(|slot| variables::worker(settings, url, slot).into_iter().chain(protocol.clone()).collect())
        .collect();
    let listener = RefCell::new(Some(listener));
    Ok(Launch { python, launcher, listener, dir: settings.workers.app_dir.clone(), environment, identity })
}

/// Written beside and renamed, so that a worker never reads half of it.
fn write(path: &Path, text: &str) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let staged = path.with_extension("py.new");
    std::fs::write(&staged, text)?;
    std::fs::set_permissions(&staged, std::fs::Permissions::from_mode(0o644))?;
    std::fs::rename(&staged, path)
}

/// How long requests in flight may take, so that the worker itself cuts what is left and ends before SIGKILL comes:
/// clients need half a second to notice the cut, tasks half a second to be cancelled, the application its own shutdown.
fn drain_limit(grace: Duration) -> Duration {
    grace.saturating_sub(Duration::from_secs(2)).max(grace / 2)
}

/// The launcher's own variables, the same for every slot.
fn protocol(settings: &Settings, notify: &str) -> Vec<(String, String)> {
    let (workers, stop) = (&settings.workers, &settings.stop);
    let mut pairs = vec![
        ("NOTIFY_SOCKET", notify.to_owned()),
        ("TANDEM_APP", workers.app.clone()),
        ("TANDEM_APP_DIR", workers.app_dir.display().to_string()),
        ("TANDEM_PREIMPORT", workers.preimport.join(",")),
        ("TANDEM_LOOP", workers.event_loop.clone()),
        ("TANDEM_ACCESS_LOG", if workers.access_log { "1" } else { "0" }.to_owned()),
        ("TANDEM_GRACE", format!("{:.3}", drain_limit(stop.grace).as_secs_f64())),
        ("TANDEM_IDLE_DRAIN", format!("{:.3}", stop.idle_drain.as_secs_f64())),
        ("TANDEM_DRAIN", format!("{:.3}", DRAIN_DEFAULT.as_secs_f64())),
        ("PYTHONUNBUFFERED", "1".to_owned()),
    ];
    if let Some(watchdog) = workers.watchdog {
        pairs.push(("WATCHDOG_USEC", watchdog.as_micros().to_string()));
    }
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// The user that workers run as: only root has a choice. `python` is the environment's interpreter, whose real place
/// may lie in a home directory.
///
/// # Errors
/// `workers.run_as` names nobody, or somebody who cannot reach the code.
pub fn identity_for(settings: &Settings, run: &Path, python: &Path) -> anyhow::Result<Option<Identity>> {
    if !identity::is_root() {
        return Ok(None);
    }
    let app_dir = settings.workers.app_dir.as_path();
    if let Some(name) = &settings.workers.run_as {
        let text = format!("workers.run_as: there is no user `{name}` on this machine");
        let found = identity::lookup(name).ok_or_else(|| Failure::new(Code::Config, text))?;
        if let Some(barrier) = [app_dir, run, python].iter().find_map(|path| identity::barrier(path, &found)) {
            let barrier = barrier.display();
            let text = format!(
                "workers.run_as: `{name}` may not pass {barrier}, where the application, the state directory or the interpreter lies; \
                 open it (chmod o+x {barrier}) or move it"
            );
            return Err(Failure::new(Code::CannotCreate, text).into());
        }
        return Ok(Some(found));
    }
    let barred = |user: &Identity| [app_dir, run, python].iter().find_map(|path| identity::barrier(path, user));
    let found = USERS.iter().filter_map(|name| identity::lookup(name)).find(|user| barred(user).is_none());
    if found.is_none() {
        let user = USERS.iter().find_map(|name| identity::lookup(name));
        let why = user.and_then(|user| barred(&user)).map(|dir| format!(" ({} bars the way)", dir.display()));
        tracing::warn!(
            "workers run as root: no other user reaches the application{}; set workers.run_as and open the way",
            why.unwrap_or_default()
        );
    }
    Ok(found)
}
