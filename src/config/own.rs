//! Whether a database URL names the server that Tandem itself runs for this project, as where `tandem env` wrote `.env`.
//!
//! To attach to it would be to wait for a server that nobody starts.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::layers::{Entry, Merged};
use super::problem::Problems;
use super::value::Raw;
use crate::plan::{DatabaseUrl, Secret};

/// Where root keeps state that the server's user could not reach beside the configuration.
const ROOT_STATE: &str = "/var/lib/tandem";

/// Let the mode be "managed" if the URL that was given is the project's own.
pub fn settle(merged: &mut Merged, directory: &Path, problems: &mut Problems, notices: &mut Vec<String>) {
    let Some(entry) = merged.get("postgres.url").cloned() else { return };
    let Some(url) = entry.raw.as_text().and_then(|text| DatabaseUrl::parse(text).ok()) else { return };
    let mode = merged.get("postgres.mode").cloned();
    let word = mode.as_ref().and_then(|mode| mode.raw.as_text()).unwrap_or("auto");
    if word == "managed" || !states(merged, directory).iter().any(|state| is_own(&url, state, merged)) {
        return;
    }
    let name = entry.origin.name_of("postgres.url");
    let server = format!("{name} ({}) names this project's own server, which only Tandem starts", entry.origin.place());
    match mode {
        Some(mode) if word == "attach" => {
            let help = "set postgres.mode = \"managed\", or name another server".to_owned();
            problems.add(&mode.origin, format!("postgres.mode is \"attach\", but {server}"), Some(help));
        }
        _ => {
            notices.push(format!("{server}: it is not attached to"));
            let key = "postgres.mode".to_owned();
            let raw = Raw::Word("managed".to_owned());
            merged.0.insert(key.clone(), Entry { key, raw, ..entry });
        }
    }
}

/// The state directories that this project may have, of which those that hold a cluster count.
fn states(merged: &Merged, directory: &Path) -> Vec<PathBuf> {
    let written = merged.get("state_dir").and_then(|entry| Some(entry.base.join(entry.raw.as_text()?)));
    let beside = written.unwrap_or_else(|| directory.join(".tandem"));
    let real = directory.canonicalize().unwrap_or_else(|_| directory.to_path_buf());
    let digest = Sha256::digest(real.as_os_str().as_encoded_bytes());
    let ending = digest[..4].iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let moved = fs::read_dir(ROOT_STATE).into_iter().flatten().flatten().map(|entry| entry.path());
    let moved = moved.filter(|path| path.to_string_lossy().ends_with(&format!("-{ending}")));
    [beside].into_iter().chain(moved).filter(|state| state.join("postgres/16").exists()).collect()
}

/// Whether `url` leads to the cluster in `state`: by the password that Tandem made, by the port of the server that runs,
/// or by all that the configuration gives.
fn is_own(url: &DatabaseUrl, state: &Path, merged: &Merged) -> bool {
    let here = url.host == "localhost" || url.host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
    if !here && !Path::new(&url.host).starts_with(state) {
        return false;
    }
    let password = url.password.as_ref().map(Secret::expose);
    let made = fs::read_to_string(state.join("run/password")).unwrap_or_default();
    if !made.trim().is_empty() && password == Some(made.trim()) {
        return true;
    }
    let port = url.port.to_string();
    if let Some(running) = running_port(&state.join("postgres/16")) {
        return running == port;
    }
    let written = |key: &str| merged.get(key).and_then(|entry| entry.raw.to_plain());
    written("postgres.port").is_none_or(|written| written == port)
        && written("postgres.password").is_some_and(|written| Some(written.as_str()) == password)
        && written("postgres.user").as_deref().unwrap_or("app") == url.user
        && written("postgres.database").as_deref().unwrap_or("app") == url.database
}

/// The port in the lock file of a server that is alive.
fn running_port(data: &Path) -> Option<String> {
    let text = fs::read_to_string(data.join("postmaster.pid")).ok()?;
    let mut lines = text.lines();
    let pid = lines.next()?.trim();
    let is_alive =
        fs::read_to_string(Path::new("/proc").join(pid).join("comm")).is_ok_and(|name| name.trim() == "postgres");
    let port = lines.nth(2)?.trim().to_owned();
    is_alive.then_some(port)
}
