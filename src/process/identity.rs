//! The user of this process, the users of children, and what a user can reach.
//!
//! Blocks: it asks the passwd database, which may be on the network, and looks at directories. Called before the event loop
//! turns, or elsewhere.

use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, Gid, Group, Uid, User, eaccess};

use crate::plan::Identity;

/// Whether this process runs as root.
pub fn is_root() -> bool {
    Uid::effective().is_root()
}

/// The user called `name`, if the passwd database has one.
pub fn lookup(name: &str) -> Option<Identity> {
    User::from_name(name).ok().flatten().map(identity)
}

/// The id of the group called `name`, if the group database has one.
pub fn group(name: &str) -> Option<u32> {
    Group::from_name(name).ok().flatten().map(|group| group.gid.as_raw())
}

/// The user with the id `uid`, in words.
pub fn name_of(uid: u32) -> String {
    let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
    user.map_or_else(|| format!("user id {uid}"), |user| format!("user {}", user.name))
}

/// The owner of `path`, if the passwd database has an entry for it.
pub fn owner_of(path: &Path) -> Option<Identity> {
    let uid = Uid::from_raw(path.metadata().ok()?.uid());
    User::from_uid(uid).ok().flatten().map(identity)
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
/// Parts that do not exist yet count as reachable: Tandem makes them with the right owner.
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

/// Whether `identity` can read the file `path`.
pub fn may_read(path: &Path, identity: &Identity) -> bool {
    path.metadata().is_ok_and(|meta| may(&meta, identity, 0o4)) && barrier(path, identity).is_none()
}

/// Whether every user may read the file `path`, and pass the directories that lead to it.
pub fn is_open_to_all(path: &Path) -> bool {
    let nobody = Identity { name: String::new(), uid: u32::MAX, gid: u32::MAX, home: PathBuf::new() };
    may_read(path, &nobody)
}

/// Whether `identity`, or this process where that is `None`, can make files in the directory `dir`.
pub fn may_write(dir: &Path, identity: Option<&Identity>) -> bool {
    // The kernel's own answer knows of read-only mounts and of access control lists.
    let ours = eaccess(dir, AccessFlags::W_OK | AccessFlags::X_OK).is_ok();
    let theirs = |identity| dir.metadata().is_ok_and(|meta| may(&meta, identity, 0o2) && may(&meta, identity, 0o1));
    ours && identity.is_none_or(theirs)
}

/// Text for the message of an `error` at `path`: the user of this process, and the owner of the directory that refused it.
/// Empty for an error that is not about rights.
pub fn refused(path: &Path, error: &io::Error) -> String {
    if error.kind() != io::ErrorKind::PermissionDenied {
        return String::new();
    }
    let there = path.ancestors().find_map(|dir| Some((dir, dir.metadata().ok()?)));
    let Some((dir, meta)) = there else { return String::new() };
    let (uid, gid, dir) = (Uid::effective(), Gid::effective(), dir.display());
    let (owner, group, mode) = (meta.uid(), meta.gid(), meta.permissions().mode() & 0o7777);
    format!(
        " as user id {uid}: {dir} belongs to {owner}:{group}, mode {mode:04o} (chown {uid}:{gid} {dir}; where it is a \
         container's volume, on the host)"
    )
}

/// As [`refused`], for a file of Tandem's below `top` that a start as another user made: all of what that user made is refused.
pub fn refused_below(top: &Path, path: &Path, error: &io::Error) -> String {
    let (Ok(meta), io::ErrorKind::PermissionDenied) = (path.symlink_metadata(), error.kind()) else {
        return refused(path, error);
    };
    let (uid, gid, owner, top) = (Uid::effective(), Gid::effective(), meta.uid(), top.display());
    format!(
        " as user id {uid}: it belongs to {owner}:{}, mode {:04o}; give that user's files to this one (chown -R {uid}:{gid} \
         {top}; where it is a container's volume, on the host), or run Tandem as user id {owner}",
        meta.gid(),
        meta.permissions().mode() & 0o7777
    )
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
