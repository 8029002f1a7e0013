//! Files and directories of Tandem's: who may open them, and what they are on.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::sys::statvfs::statvfs;

use super::on_home;
use crate::backup::catalog::Catalog;
use crate::backup::{pitr, signature};
use crate::config::Settings;
use crate::doctor::facts::{Entry, FilePlace, Look};
use crate::doctor::subject::Subject;
use crate::postgres::home::Home;

/// Files and directories that must be private, and the directories on the way to them.
pub async fn entries(subject: &Subject) -> Look<Vec<Entry>> {
    on_home(subject, "look who may open Tandem's files", |settings: &Settings, home: &Home| {
        let own = home.state.metadata().map_or_else(|_| nix::unistd::Uid::effective().as_raw(), |meta| meta.uid());
        let (own, server) = (vec![own], vec![home.server_uid()]);
        let catalog = Catalog::of(settings, home);
        let archive = pitr::archive(settings, home);
        let secret = |path: PathBuf, what| wanted(path, what, 0o600, own.clone(), true);
        let place = |path: PathBuf, what, allowed, owners: &[u32]| wanted(path, what, allowed, owners.to_vec(), false);
        let tls = settings.workers.serving.tls.as_ref();
        let mut all = vec![
            secret(home.run.join("password"), "the password file"),
            secret(signature::path(home), "the key that signs backups"),
            secret(home.state.join("tls/ca.key"), "the key of the database server's authority"),
            place(home.state.clone(), "the state directory", 0o755, &[]),
            place(home.run.clone(), "the run directory", 0o755, &own),
            place(home.socket_dir.clone(), "the directory of the server's socket", 0o700, &server),
            place(home.data.clone(), "the data directory", 0o750, &server),
            place(home.control.clone(), "the control socket", 0o600, &own),
            place(catalog.dir().to_owned(), "the directory of backups", 0o750, &[]),
            place(archive.dir().to_owned(), "the archive of WAL", 0o750, &[]),
        ];
        all.extend(tls.map(|tls| wanted(tls.key.clone(), "the key of the certificate", 0o640, Vec::new(), true)));
        all.extend(home.data.parent().map(|dir| place(dir.to_owned(), "the directory of the cluster", 0o700, &server)));
        all.into_iter().flatten().chain(way(&home.state)).collect()
    })
    .await
}

/// `path` as it is, with what it may be.
fn wanted(path: PathBuf, what: &'static str, allowed: u32, owners: Vec<u32>, is_secret: bool) -> Option<Entry> {
    let meta = path.symlink_metadata().ok().filter(|meta| !meta.is_symlink())?;
    let mode = meta.permissions().mode() & 0o7777;
    Some(Entry { path, what, mode, uid: meta.uid(), allowed, owners, is_secret })
}

/// The directories above `path` in which others may exchange it for something of theirs: they may write there, and the sticky
/// bit does not protect what is there.
fn way(path: &Path) -> Vec<Entry> {
    let is_open = |dir: &Path| {
        let meta = dir.metadata().ok()?;
        let mode = meta.permissions().mode() & 0o7777;
        let open = mode & 0o002 != 0 && mode & 0o1000 == 0;
        open.then(|| Entry {
            path: dir.to_owned(),
            what: "a directory above the state directory",
            mode,
            uid: meta.uid(),
            allowed: 0o7775,
            owners: Vec::new(),
            is_secret: false,
        })
    };
    path.ancestors().skip(1).filter_map(is_open).collect()
}

/// What the data and the backups are on.
pub async fn places(subject: &Subject) -> Look<Vec<FilePlace>> {
    on_home(subject, "look at the file systems", |settings: &Settings, home: &Home| {
        let archive = pitr::archive(settings, home).dir().to_owned();
        let all = [
            ("data", Some(home.data.clone())),
            ("WAL", Some(home.data.join("pg_wal"))),
            ("backups", Some(Catalog::of(settings, home).dir().to_owned())),
            ("archive", settings.backup.pitr.enabled.then_some(archive)),
        ];
        let mounts = mounts();
        let found = all.into_iter().filter_map(|(what, path)| place(what, path?, &mounts));
        let mut places: Vec<FilePlace> = Vec::new();
        for place in found {
            // What is on one file system with another is told once.
            if !places.iter().any(|other| other.kind == place.kind && other.inodes == place.inodes) {
                places.push(place);
            }
        }
        places
    })
    .await
}

/// A mount: where, the file system's kind, and whether it is read-only.
type Mount = (PathBuf, String, bool);

fn mounts() -> Vec<Mount> {
    let all = procfs::process::Process::myself().and_then(|me| me.mountinfo());
    let mount = |it: procfs::process::MountInfo| {
        let read_only = it.mount_options.contains_key("ro") || it.super_options.contains_key("ro");
        (it.mount_point, it.fs_type, read_only)
    };
    all.map(|all| all.into_iter().map(mount).collect()).unwrap_or_default()
}

fn place(what: &'static str, path: PathBuf, mounts: &[Mount]) -> Option<FilePlace> {
    let there = path.ancestors().find_map(|path| fs::canonicalize(path).ok())?;
    // Of several mounts on one place, the last is the one that is seen.
    let on = mounts.iter().filter(|(point, ..)| there.starts_with(point));
    let (_, kind, read_only) = on.max_by_key(|(point, ..)| point.components().count())?;
    let found = statvfs(&there).ok()?;
    #[allow(clippy::useless_conversion, reason = "the fields are narrower on macOS")]
    let inodes = (u64::from(found.files_available()), u64::from(found.files()));
    let inodes = (inodes.1 > 0).then_some(inodes);
    Some(FilePlace { what, path: there, kind: kind.clone(), read_only: *read_only, inodes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_on_the_nearest_mount_above_it() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().canonicalize().unwrap();
        let mounts = [(PathBuf::from("/"), "ext4".into(), false), (dir.clone(), "tmpfs".into(), true)];
        let found = place("data", dir.join("not/there"), &mounts).unwrap();
        assert_eq!((found.kind.as_str(), found.read_only, found.path), ("tmpfs", true, dir.clone()));
        assert_eq!(place("data", dir.parent().unwrap().into(), &mounts).unwrap().kind, "ext4");
    }

    #[test]
    fn a_directory_that_all_may_write_is_on_the_way() {
        let temp = tempfile::tempdir().unwrap();
        let (open, state) = (temp.path().join("open"), temp.path().join("open/state"));
        fs::create_dir_all(&state).unwrap();
        let mode = |mode| fs::set_permissions(&open, fs::Permissions::from_mode(mode)).unwrap();
        mode(0o755);
        assert_eq!(way(&state), []);
        mode(0o1777);
        assert_eq!(way(&state), [], "as /tmp is");
        mode(0o777);
        assert_eq!(way(&state).iter().map(|entry| &entry.path).collect::<Vec<_>>(), [&open]);
    }
}
