//! The processes of PostgreSQL that work in a data directory.
//!
//! Each of them has that directory as its working directory, and nothing else of PostgreSQL's has: by this mark they are
//! found, whatever path the directory has in their mount namespace. The kernel shows a working directory to the process's
//! own user and to CAP_SYS_PTRACE alone. Where it refuses it, other things are known of a process: PostgreSQL works in no
//! directory of another user's, and an orphan that fell to Tandem came from a server of Tandem's.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;

use crate::process::{Stranger, look, orphans};

/// A process of PostgreSQL.
#[derive(Debug)]
pub struct ClusterProcess {
    process: Stranger,
    pub parent: i32,
    /// Whether it lives in another pid namespace than Tandem.
    pub foreign: bool,
}

impl ClusterProcess {
    pub fn pid(&self) -> i32 {
        self.process.pid()
    }

    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Whether it has not ended.
    pub fn is_there(&self) -> bool {
        self.process.is_there()
    }
}

/// What was seen of a data directory's processes.
#[derive(Debug, Default)]
pub struct ClusterProcesses {
    pub found: Vec<ClusterProcess>,
    /// Processes of PostgreSQL that may work in that directory: they run as its owner, and may not be looked at.
    pub unseen: Vec<i32>,
}

impl ClusterProcesses {
    /// Those that work in `data`. Blocks.
    pub fn of(data: &Path) -> Self {
        let mut all = Self::default();
        let (Ok(entries), Ok(meta)) = (fs::read_dir("/proc"), fs::metadata(data)) else { return all };
        let (place, owner) = (DirectoryId::of(&meta), meta.uid());
        let own = namespace_of(std::process::id().cast_signed());
        for pid in entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()) {
            // A shell in the data directory is not to be ended. The name is read first: a look at the directory of another
            // process could wait for a disk that hangs.
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            let Some(process) = (name.trim_end() == "postgres").then(|| Stranger::hold(pid)).flatten() else {
                continue;
            };
            let Some(stat) = procfs::process::Process::new(pid).and_then(|process| process.stat()).ok() else {
                continue;
            };
            let is_here = match place_of_process(pid) {
                Ok(there) => there == place,
                Err(error) if error.kind() != io::ErrorKind::PermissionDenied => false,
                Err(_) if user_of(pid) != Some(owner) => false,
                Err(_) if orphans::is_adopted(&stat) => true,
                Err(_) => {
                    all.unseen.push(pid);
                    false
                }
            };
            if is_here {
                let foreign = matches!((&own, namespace_of(pid)), (Some(own), Some(theirs)) if *own != theirs);
                all.found.push(ClusterProcess { process, parent: stat.ppid, foreign });
            }
        }
        all
    }
}

/// A directory, by whatever path: bind mounts and other mount namespaces show the same one.
#[derive(Clone, Copy, PartialEq, Eq)]
struct DirectoryId {
    device: u64,
    inode: u64,
}

impl DirectoryId {
    fn of(meta: &fs::Metadata) -> Self {
        Self { device: meta.dev(), inode: meta.ino() }
    }
}

/// Where `pid` works. A zombie works nowhere.
fn place_of_process(pid: i32) -> io::Result<DirectoryId> {
    look::as_owner(pid, || fs::metadata(format!("/proc/{pid}/cwd"))).map(|meta| DirectoryId::of(&meta))
}

fn user_of(pid: i32) -> Option<u32> {
    procfs::process::Process::new(pid).and_then(|process| process.status()).ok().map(|status| status.euid)
}

/// The pid namespace of a process, as the kernel writes it (namespaces(7)).
pub fn namespace_of(pid: i32) -> Option<PathBuf> {
    look::as_owner(pid, || fs::read_link(format!("/proc/{pid}/ns/pid"))).ok()
}
