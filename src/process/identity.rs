//! Who we are, who a child shall be, and what that user can reach.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::unistd::{Uid, User};

use crate::plan::Identity;

/// Whether this process runs as root.
pub fn is_root() -> bool {
    Uid::effective().is_root()
}

/// The user called `name`, if the passwd database has one.
pub fn lookup(name: &str) -> Option<Identity> {
    User::from_name(name).ok().flatten().map(identity)
}

/// The user this process runs as, if the passwd database has an entry for its uid.
pub fn current() -> Option<Identity> {
    User::from_uid(Uid::effective()).ok().flatten().map(identity)
}

fn identity(user: User) -> Identity {
    Identity { name: user.name, uid: user.uid.as_raw(), gid: user.gid.as_raw(), home: user.dir }
}

/// The first directory on the way to `path` that `identity` may not search, or `None` when all may be passed.
///
/// Parts that do not exist yet are taken as reachable: they will be made with the right owner.
pub fn barrier(path: &Path, identity: &Identity) -> Option<PathBuf> {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    let real = path.canonicalize().unwrap_or(path);
    let mut ancestors: Vec<&Path> = real.ancestors().collect();
    ancestors.reverse();
    ancestors
        .into_iter()
        .find(|dir| dir.metadata().is_ok_and(|meta| meta.is_dir() && !may(&meta, identity, 0o1)))
        .map(Path::to_path_buf)
}

/// Whether the permission bit `bit` (4 read, 2 write, 1 search) of `meta` is open to `identity`.
fn may(meta: &std::fs::Metadata, identity: &Identity, bit: u32) -> bool {
    let mode = meta.permissions().mode();
    let shift = if meta.uid() == identity.uid {
        6
    } else if meta.gid() == identity.gid {
        3
    } else {
        0
    };
    identity.uid == 0 || mode >> shift & bit != 0
}
