//! Whether a database URL names the server that Tandem itself runs for this project, as where `tandem env` wrote `.env`.
//!
//! To attach to it would be to wait for a server that nobody starts.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::layers::{Entry, Merged};
use super::problem::Problems;
use super::text;
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
    // Who asks to attach is only contradicted by proof: the same words may describe another server.
    let is_own = |state: &PathBuf| match proof(&url, state) {
        Some(proven) => proven,
        None => word != "attach" && is_described(&url, merged),
    };
    if word == "managed" || !states(merged, directory).iter().any(|state| may_be_in(&url, state) && is_own(state)) {
        return;
    }
    let name = entry.origin.name_of("postgres.url");
    let server = format!("{name} ({}) names this project's own server, which only Tandem starts", entry.origin.place());
    match mode {
        Some(mode) if word == "attach" => {
            let help = "set postgres.mode = \"managed\", or name another server".to_owned();
            problems.add_to(&mode.key, &mode.origin, format!("postgres.mode is \"attach\", but {server}"), Some(help));
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

/// Whether the project in `directory` has a cluster of Tandem's.
pub fn has_cluster(merged: &Merged, directory: &Path) -> bool {
    !states(merged, directory).is_empty()
}

/// Whether the host of `url` is this machine, or a socket below `state`.
fn may_be_in(url: &DatabaseUrl, state: &Path) -> bool {
    let here = url.host == "localhost" || url.host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
    here || Path::new(&url.host).starts_with(state)
}

/// Whether `url` leads to the cluster in `state`, where that is certain: by the password that Tandem made, or by the port
/// of the cluster's server that runs.
fn proof(url: &DatabaseUrl, state: &Path) -> Option<bool> {
    let made = text::read(&state.join("run/password")).unwrap_or_default();
    let password = url.password.as_ref().map(Secret::expose);
    if !made.trim().is_empty() && password == Some(made.trim()) {
        return Some(true);
    }
    running_port(&state.join("postgres/16")).map(|running| running == url.port)
}

/// Whether the configuration gives all that `url` says. The port must be written: any other local server may have the
/// same role, password and database, as both take them from one `.env`.
fn is_described(url: &DatabaseUrl, merged: &Merged) -> bool {
    let written = |key: &str| merged.get(key).and_then(|entry| entry.raw.to_plain());
    let password = url.password.as_ref().map(Secret::expose);
    written("postgres.port").is_some_and(|written| written == url.port.to_string())
        && written("postgres.password").is_some_and(|written| Some(written.as_str()) == password)
        && written("postgres.user").as_deref().unwrap_or("app") == url.user
        && written("postgres.database").as_deref().unwrap_or("app") == url.database
}

/// The port in the lock file of the server that works in `data`. The file outlives a crash, and its pid may belong to
/// another server by then: PostgreSQL's processes have their own data directory as their working directory.
fn running_port(data: &Path) -> Option<u16> {
    let text = text::read(&data.join("postmaster.pid")).ok()?;
    let mut lines = text.lines().map(str::trim);
    let process = Path::new("/proc").join(lines.next()?.parse::<u32>().ok()?.to_string());
    let port = lines.nth(2)?.parse().ok()?;
    // Its name comes first: the directory of some other process may be on a disk that hangs.
    if fs::read_to_string(process.join("comm")).ok()?.trim() != "postgres" {
        return None;
    }
    let (works_in, data) = (fs::metadata(process.join("cwd")).ok()?, fs::metadata(data).ok()?);
    ((works_in.dev(), works_in.ino()) == (data.dev(), data.ino())).then_some(port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_file_of_a_dead_server_proves_nothing() {
        let state = tempfile::tempdir().unwrap();
        let data = state.path().join("postgres/16");
        fs::create_dir_all(&data).unwrap();
        let url = DatabaseUrl::parse("postgresql://app:pw@localhost:28832/app").unwrap();
        assert!(may_be_in(&url, state.path()));
        assert_eq!(proof(&url, state.path()), None);
        // A pid that was given again, to a process that works elsewhere.
        let pid = std::process::id();
        fs::write(data.join("postmaster.pid"), format!("{pid}\n{}\n0\n28832\n", data.display())).unwrap();
        assert_eq!(proof(&url, state.path()), None);
        fs::create_dir(state.path().join("run")).unwrap();
        fs::write(state.path().join("run/password"), "pw\n").unwrap();
        assert_eq!(proof(&url, state.path()), Some(true));
    }
}
