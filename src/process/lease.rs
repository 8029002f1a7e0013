//! Whether any process has a file open for writing, even one in a namespace that cannot be seen.
//!
//! The kernel grants a read lease on a file only if no process of the machine has it open for writing (fcntl(2),
//! F_SETLEASE). The lease is given back at once.
//!
//! Blocks: on a thread of its own; its callers run elsewhere, and can be given up.

use std::path::PathBuf;

/// The first of `files` that is open for writing. A file that is missing counts as closed, and so does one on a file system
/// without leases. `owner` is the user id that the files belong to.
#[cfg(target_os = "linux")]
pub async fn open_for_writing(files: Vec<PathBuf>, owner: u32) -> Option<PathBuf> {
    // Only the owner of a file gets a lease (or CAP_LEASE, which containers lack), and the kernel looks at the user of the
    // thread. So a thread of its own becomes the owner, and ends.
    let asking = move || {
        let asked = std::thread::spawn(move || {
            nix::unistd::setfsuid(nix::unistd::Uid::from_raw(owner));
            files.into_iter().find(|file| matches!(linux::lease(file), Err(nix::errno::Errno::EAGAIN)))
        });
        asked.join().ok().flatten()
    };
    tokio::task::spawn_blocking(asking).await.ok().flatten()
}

/// Elsewhere than on Linux nothing is known.
#[cfg(not(target_os = "linux"))]
pub async fn open_for_writing(_files: Vec<PathBuf>, _owner: u32) -> Option<PathBuf> {
    None
}

#[cfg(target_os = "linux")]
mod linux {
    use std::fs::File;
    use std::os::fd::AsRawFd;
    use std::path::Path;

    use nix::errno::Errno;
    use nix::libc::{self, c_int};

    /// Linux's number (asm-generic/fcntl.h), which the C library's headers hide.
    const F_SETSIG: c_int = 10;

    /// Take a read lease on `file`, and give it back.
    #[expect(unsafe_code, reason = "fcntl(2) has no safe door for F_SETLEASE and F_SETSIG")]
    pub fn lease(file: &Path) -> Result<(), Errno> {
        let file = File::open(file).map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or_default()))?;
        let set = |command: c_int, value: c_int| {
            // SAFETY: the descriptor is open, and the arguments of these commands are plain numbers.
            Errno::result(unsafe { libc::fcntl(file.as_raw_fd(), command, value) })
        };
        // If a process opens the file for writing meanwhile, the kernel sends a signal: by default SIGIO, which kills.
        set(F_SETSIG, libc::SIGURG)?;
        set(libc::F_SETLEASE, libc::F_RDLCK)?;
        set(libc::F_SETLEASE, libc::F_UNLCK).map(drop)
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_counts_as_open_while_it_is_open_for_writing() {
        let _alone = crate::forks::none();
        let temp = tempfile::tempdir().unwrap();
        let (read, written) = (temp.path().join("read"), temp.path().join("written"));
        std::fs::write(&read, "").unwrap();
        let writer = std::fs::File::create(&written).unwrap();
        let reader = std::fs::File::open(&read).unwrap();
        let files = vec![temp.path().join("absent"), read, written.clone()];
        let own = nix::unistd::Uid::effective().as_raw();
        let open = open_for_writing(files.clone(), own).await;
        if open.is_none() {
            return crate::skip::skip("this file system knows no leases");
        }
        assert_eq!(open, Some(written));
        drop((writer, reader));
        assert_eq!(open_for_writing(files, own).await, None);
    }
}
