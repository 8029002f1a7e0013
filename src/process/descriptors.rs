//! The sockets that processes have open, as `/proc` shows them.
//!
//! Blocks: called on threads of its callers' own.

use std::fs;
use std::io;

use super::look;

/// The inodes of the sockets that process `pid` has open. Blocks.
///
/// # Errors
/// The process is gone, or this process may not look at it and cannot become its owner either.
pub fn sockets_of(pid: i32) -> io::Result<Vec<u64>> {
    look::as_owner(pid, || {
        // The list is given to anybody; what is in it, to its owner.
        let mut sockets = Vec::new();
        for fd in fs::read_dir(format!("/proc/{pid}/fd"))? {
            match fs::read_link(fd?.path()) {
                Ok(link) => sockets.extend(inode(&link)),
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Err(error),
                // It was closed meanwhile.
                Err(_) => {}
            }
        }
        Ok(sockets)
    })
}

fn inode(link: &std::path::Path) -> Option<u64> {
    link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}
