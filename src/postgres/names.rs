//! Give a name to a user that the passwd database does not know: OpenShift, `docker run --user` and Kubernetes' `runAsUser`
//! start a container with any number.
//!
//! initdb, `postgres --single` and peer authentication look up the name of a uid (getpwuid(3)). The preloaded library
//! nss_wrapper answers them from a file that Tandem writes. Only PostgreSQL's own programs get it.

use std::fs;
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Uid};

use super::files::write_whole;
use crate::exit::{Code, Failure};
use crate::process::identity;

const LIBRARY: &str = "libnss_wrapper.so";
/// Where distributions put libraries: here, or one directory below.
const PLACES: [&str; 5] = ["/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/local/lib"];
const PASSWD: &str = "passwd";
const GROUP: &str = "group";

/// What this process's user is called.
///
/// # Errors
/// [`Failure`] with [`Code::Config`]: it has no name, and there is no way to give it one.
pub fn own() -> anyhow::Result<String> {
    if let Some(own) = identity::current() {
        return Ok(own.name);
    }
    let uid = Uid::effective();
    if library().is_some() {
        return Ok(name_of(uid));
    }
    let message = format!("user id {uid} has no entry in /etc/passwd, and PostgreSQL needs one to know who connects");
    let ways = "install nss_wrapper (Debian: libnss-wrapper), which Tandem then uses; or add an entry, or run Tandem as \
                a named user";
    Err(Failure::new(Code::Config, format!("{message}; {ways}")).into())
}

/// Not a name that any entry of /etc/passwd has: two users of one name would both be let in.
fn name_of(uid: Uid) -> String {
    format!("tandem-uid-{uid}")
}

/// Write the files into the run directory `run`, where the user has no name.
///
/// # Errors
/// They cannot be written.
pub fn write(run: &Path) -> anyhow::Result<()> {
    if identity::current().is_some() || library().is_none() {
        return Ok(());
    }
    let (uid, gid) = (Uid::effective(), Gid::effective());
    let line = format!("{}:x:{uid}:{gid}::/:/bin/false\n", name_of(uid));
    // The wrapper replaces the system's database, so the system's entries are copied into the files.
    for (name, system, line) in [(PASSWD, "/etc/passwd", &*line), (GROUP, "/etc/group", "")] {
        let known = fs::read_to_string(system).unwrap_or_default();
        write_whole(&run.join(name), &format!("{}\n{line}", known.trim_end()), 0o644, None)?;
    }
    Ok(())
}

/// What PostgreSQL's programs need in their environment; nothing where the user has a name.
pub fn environment(run: &Path) -> Vec<(&'static str, PathBuf)> {
    if identity::current().is_some() {
        return Vec::new();
    }
    let Some(library) = library() else { return Vec::new() };
    vec![("LD_PRELOAD", library), ("NSS_WRAPPER_PASSWD", run.join(PASSWD)), ("NSS_WRAPPER_GROUP", run.join(GROUP))]
}

fn library() -> Option<PathBuf> {
    let below = |place: &Path| fs::read_dir(place).into_iter().flatten().flatten().map(|entry| entry.path());
    let places = PLACES.iter().map(Path::new);
    let dirs = places.clone().map(Path::to_path_buf).chain(places.flat_map(below));
    dirs.map(|dir| dir.join(LIBRARY)).find(|path| path.is_file())
}
