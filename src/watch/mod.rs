//! Watches the application's files for `tandem up --reload` and tells which of them were saved.
//!
//! `rules` decides which files count, `snapshot` holds what was there, `stream` reports what changed, `mounts` knows where the
//! kernel does not tell. This room does not
//! know what is done about a change.

mod mounts;
mod rules;
mod snapshot;
mod stream;

use std::path::{Path, PathBuf};

pub use stream::{Part, Rule, Watch};

/// What keeps files from being watched.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A glob that cannot be parsed.
    #[error("workers.reload_include: {0}")]
    Glob(ignore::Error),
    /// ENOSPC of inotify_add_watch(2).
    #[error(
        "watch {dir}: this user may not watch more directories (fs.inotify.max_user_watches is {limit}). Raise it, as \
         root: `sysctl fs.inotify.max_user_watches=524288`; or let a .gitignore or .ignore file name directories \
         without code",
        dir = dir.display()
    )]
    Watches { dir: PathBuf, limit: String },
    /// EMFILE of inotify_init1(2).
    #[error(
        "watch for saved files: this user has too many watchers (fs.inotify.max_user_instances is {limit}), or this \
         process too many open files (`ulimit -n`). End other watchers, such as editors, or raise it, as root: \
         `sysctl fs.inotify.max_user_instances=1024`"
    )]
    Instances { limit: String },
    /// Anything else, such as a directory that is not there or may not be read.
    #[error("watch {dir}: {why}", dir = dir.display())]
    Directory { dir: PathBuf, why: String },
}

impl Error {
    /// The meaning of an `error` from watching `dir`.
    fn of(error: &notify::Error, dir: &Path) -> Self {
        let dir = dir.to_owned();
        match &error.kind {
            notify::ErrorKind::MaxFilesWatch => Self::Watches { dir, limit: limit("max_user_watches") },
            notify::ErrorKind::Io(error) if error.raw_os_error() == Some(nix::libc::EMFILE) => {
                Self::Instances { limit: limit("max_user_instances") }
            }
            notify::ErrorKind::Io(error) => Self::Directory { dir, why: error.to_string() },
            notify::ErrorKind::PathNotFound => Self::Directory { dir, why: "it is not there".into() },
            _ => Self::Directory { dir, why: error.to_string() },
        }
    }
}

/// The present value of one of the kernel's limits.
fn limit(name: &str) -> String {
    let value = std::fs::read_to_string(Path::new("/proc/sys/fs/inotify").join(name));
    value.map_or_else(|_| "unknown".into(), |text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_limits_are_named_with_what_to_do() {
        let dir = Path::new("/srv/app");
        let watches = Error::of(&notify::Error::new(notify::ErrorKind::MaxFilesWatch), dir).to_string();
        let instances = notify::Error::io(std::io::Error::from_raw_os_error(nix::libc::EMFILE));
        let instances = Error::of(&instances, dir).to_string();
        let value = limit("max_user_watches");
        assert!(value.parse::<u64>().is_ok(), "{value}");
        assert!(watches.contains(&format!(
            "/srv/app: this user may not watch more directories (fs.inotify.max_user_watches is {value})"
        )));
        assert!(watches.contains("sysctl fs.inotify.max_user_watches="), "{watches}");
        assert!(instances.contains("sysctl fs.inotify.max_user_instances="), "{instances}");
    }
}
