//! Where a throwaway server lives: a directory of its own, in memory or on disk, which goes when its run ends.
//!
//! ```text
//! <base>/tandem-test-<uid>/      only its owner writes there
//!     lock                       held while a run takes its directory, or looks for those of dead ones
//!     run-<random>/              one run's: `lock` is held for as long as the run lives
//!     spare-<key>/               a data directory, ready to be taken (renamed) by the next run
//!     making-…/, gone-…/         one as it is made and removed
//! ```
//!
//! The janitor removes a run's directory, and the last one all of it; what a power cut or a killed janitor leaves, the next
//! run sweeps.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use nix::fcntl::OFlag;
use nix::unistd::Uid;
use tokio::time::{Instant, sleep};

use super::remains;
use crate::config::temp_dir;
use crate::durable::{self, Lock, LockError, open_itself};
use crate::exit::{Code, Failure};
use crate::install;
use crate::process::identity;
use crate::room::{FileSystem, Guard};

/// A file system in the machine's memory.
pub(super) const MEMORY: &str = "/dev/shm";
/// What a run needs at the least: its data directory, a pool of clones, and some writing, in bytes.
pub const ROOM: u64 = 384 * 1024 * 1024;
/// What must stay free beside a spare directory, in bytes: its file system is everybody's memory.
const SPARE_ROOM: u64 = 2 * 1024 * 1024 * 1024;
/// How many spare directories there may be, and how long one waits for a run that wants it.
const SPARES_MAX: usize = 2;
const SPARE_AGE_MAX: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// The age at which a directory that was being made or removed counts as abandoned.
const UNFINISHED_AGE_MAX: Duration = Duration::from_secs(10 * 60);
/// How long to wait for a run that takes its directory, which takes it a millisecond.
const GUARD_LIMIT: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(2);
pub(super) const RUN: &str = "run-";
const SPARE: &str = "spare-";
/// A spare directory as it is made, by a janitor, and as it is removed.
const MAKING: &str = "making-";
const GONE: &str = "gone-";
const LOCK: &str = "lock";
/// In a run's directory: its server was left running on purpose.
const KEPT: &str = "kept";

/// One run's directory.
#[derive(Debug)]
pub struct RunDir {
    /// The directory itself.
    pub dir: PathBuf,
    base: PathBuf,
    _lock: Lock,
}

/// The places to try, the best first, and why the best of all is none of them. `state` is the state directory: in a
/// container with a read-only root it may be the only disk there is. Whether a disk has room, `guard` says when it is its turn.
pub fn candidates(guard: &Guard, wanted: Option<&Path>, state: &Path) -> (Vec<PathBuf>, Option<String>) {
    let disk = temp_dir();
    let disk = if identity::may_write(&disk, None) { disk } else { state.to_path_buf() };
    let memory = wanted.unwrap_or(Path::new(MEMORY));
    let shown = disk.display();
    let free = memory.is_dir().then(|| FileSystem::of(memory)).flatten().map(|there| there.free);
    match free {
        Some(_) if !identity::may_write(memory, None) => {
            let why = format!("{} cannot be written: the tests' server goes to {shown}", memory.display());
            (vec![disk.clone()], Some(why))
        }
        Some(_) if guard.clone().claim(memory, ROOM).check().is_ok() => (vec![memory.to_path_buf(), disk], None),
        Some(free) => {
            let (free, room) = (free >> 20, ROOM >> 20);
            let why = format!("{} has only {free} MB free, and a test server may need {room} MB", memory.display());
            (vec![disk.clone()], Some(format!("{why}: it goes to {shown}")))
        }
        None => {
            let notice = wanted.map(|_| format!("{} is no directory: tests run in {shown}", memory.display()));
            (vec![disk.clone()], notice)
        }
    }
}

impl RunDir {
    /// Take a new directory below `root`, and sweep what dead runs left there.
    ///
    /// # Errors
    /// [`Code::CannotCreate`] when `root` cannot be used, or another user has our place in it.
    pub async fn take(root: &Path) -> anyhow::Result<Self> {
        let cannot =
            || Failure::new(Code::CannotCreate, format!("cannot make a directory for tests in {}", root.display()));
        let (base, guard) = enter(root).await?;
        let dead = dead(&base);
        let dir = tempfile::Builder::new().prefix(RUN).permissions(Permissions::from_mode(0o711)).tempdir_in(&base);
        let dir = dir.with_context(cannot)?.keep();
        let own = lock(&dir.join(LOCK)).map_err(LockError::into_io).with_context(cannot)?;
        drop(guard);
        for (dir, held) in dead {
            remains::remove(&dir).await;
            drop(held);
        }
        Ok(Self { dir, base, _lock: own })
    }

    /// Take the spare data directory for `key`, if there is one, as `data`.
    pub fn take_spare(&self, key: &str, data: &Path) -> bool {
        durable::rename(&self.spare(key), data).is_ok()
    }

    /// Where the spare data directory for `key` belongs.
    fn spare(&self, key: &str) -> PathBuf {
        self.base.join(format!("{SPARE}{key}"))
    }

    /// Where a spare data directory for `key` is to be made when this run has ended, if there is room; old ones go.
    pub fn wanted_spare(&self, key: &str) -> Option<PathBuf> {
        let wanted = self.spare(key);
        let mut others: Vec<(SystemTime, PathBuf)> = entries(&self.base, SPARE)
            .filter(|path| *path != wanted)
            .filter_map(|path| Some((path.metadata().ok()?.modified().ok()?, path)))
            .collect();
        others.sort();
        let many = others.len().saturating_sub(SPARES_MAX - 1);
        for (place, (made, path)) in others.into_iter().enumerate() {
            if place < many || made.elapsed().is_ok_and(|age| age > SPARE_AGE_MAX) {
                self.discard(&path);
            }
        }
        // What was cut short as it was made or removed.
        for path in [GONE, MAKING].into_iter().flat_map(|prefix| entries(&self.base, prefix)) {
            let changed = path.metadata().and_then(|meta| meta.modified());
            if changed.is_ok_and(|changed| changed.elapsed().is_ok_and(|age| age > UNFINISHED_AGE_MAX)) {
                self.discard(&path);
            }
        }
        let room = FileSystem::of(&self.base).is_some_and(|there| there.free > SPARE_ROOM);
        room.then_some(wanted)
    }

    /// Remove a directory that another run may be about to take: that run gets all of it or nothing.
    fn discard(&self, path: &Path) {
        let Some(run) = self.dir.file_name() else { return };
        let gone =
            self.base.join(format!("{GONE}{}-{}", run.display(), path.file_name().unwrap_or_default().display()));
        if durable::rename(path, &gone).is_ok() {
            let _ = fs::remove_dir_all(gone);
        }
    }

    /// The directories below `root` of runs that are over, and did not remove them.
    pub fn left_below(root: &Path) -> Vec<PathBuf> {
        dead(&base_in(root)).into_iter().map(|(dir, _)| dir).collect()
    }

    /// Remove it, and all that works in it.
    pub async fn remove(self) {
        remains::remove(&self.dir).await;
        leave(&self.base);
    }

    /// Note that the server in it stays when the run ends.
    ///
    /// # Errors
    /// The note cannot be written.
    pub fn keep(&self) -> io::Result<()> {
        fs::write(self.dir.join(KEPT), "")
    }
}

pub(super) fn base_in(root: &Path) -> PathBuf {
    root.join(format!("tandem-test-{}", Uid::effective()))
}

/// Our own directory in `root`, which others may be able to write to.
fn base(root: &Path) -> anyhow::Result<PathBuf> {
    let (uid, base) = (Uid::effective(), base_in(root));
    if !root.exists() && install::make_shared_dir(root).is_ok() {
        install::keep_out_of_git(root);
    }
    match fs::create_dir(&base) {
        // As root, the server's user passes through.
        Ok(()) => {
            let mode = if uid.is_root() { 0o711 } else { 0o700 };
            open_itself(&base, OFlag::O_DIRECTORY)?.set_permissions(Permissions::from_mode(mode))?;
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => {
            let refused = identity::refused(&base, &error);
            let message = format!("cannot make a directory for tests in {}{refused}", root.display());
            bail!(anyhow::Error::new(error).context(Failure::new(Code::CannotCreate, message)));
        }
    }
    let looking = || format!("look at {}", base.display());
    let meta = base.symlink_metadata().with_context(looking)?;
    let (ours, mode) = (meta.is_dir() && meta.uid() == uid.as_raw(), meta.permissions().mode());
    // Kubernetes opens a volume to its `fsGroup` each time it mounts it.
    if ours && mode & 0o022 == 0o020 {
        let opened = open_itself(&base, OFlag::O_DIRECTORY).with_context(looking)?;
        if opened.metadata().with_context(looking)?.uid() == uid.as_raw() {
            opened.set_permissions(Permissions::from_mode(mode & 0o711))?;
        }
    } else if !ours || mode & 0o022 != 0 {
        let message = format!("{} is not ours alone: remove it, or set test.dir to another place", base.display());
        bail!(Failure::new(Code::CannotCreate, message));
    }
    Ok(base)
}

/// Our own directory in `root`, and the lock that every run holds for a moment. Polled: the process that holds it may have been
/// stopped (SIGSTOP), for good.
async fn enter(root: &Path) -> anyhow::Result<(PathBuf, Lock)> {
    let began = Instant::now();
    loop {
        let is_early = began.elapsed() < GUARD_LIMIT;
        // The last janitor may remove the directory at any moment before the lock is ours.
        let base = match base(root) {
            Err(error) if is_early && root.exists() && is_missing(&error) => continue,
            made => made?,
        };
        let path = base.join(LOCK);
        match lock(&path) {
            Ok(held) if is_at(&held, &path) => return Ok((base, held)),
            // It was removed after it had been opened.
            Ok(_) if is_early => {}
            Err(error) if is_early && error.is_held() => {}
            Err(LockError::Open(error)) if is_early && error.kind() == io::ErrorKind::NotFound => {}
            Err(LockError::Held(holder)) => {
                let (holder, path) = (holder.named("another test run"), path.display());
                let what = format!("{holder} holds {path} for longer than {GUARD_LIMIT:?}: is one stopped?");
                return Err(Failure::new(Code::Temporary, what).into());
            }
            refused => {
                let error = refused.err().map_or(io::ErrorKind::NotFound.into(), LockError::into_io);
                let failure = Failure::new(Code::Temporary, format!("lock {}", path.display()));
                return Err(anyhow::Error::new(error).context(failure));
            }
        }
        sleep(LOOK_AGAIN).await;
    }
}

fn is_missing(error: &anyhow::Error) -> bool {
    let kinds = error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>()).map(io::Error::kind);
    kinds.into_iter().any(|kind| kind == io::ErrorKind::NotFound)
}

/// Whether the locked file is the one at `path`: what removes the directory holds the lock, so it stays that from now on.
fn is_at(held: &Lock, path: &Path) -> bool {
    let identity = |meta: fs::Metadata| (meta.dev(), meta.ino());
    let (held, there) = (held.file().metadata().map(identity), path.symlink_metadata().map(identity));
    held.ok().zip(there.ok()).is_some_and(|(held, there)| held == there)
}

/// Remove the directory `base` if nothing but its lock is in it, and no run is about to take it.
fn leave(base: &Path) {
    let path = base.join(LOCK);
    let is_empty = || entries(base, "").all(|entry| entry == path);
    if !is_empty() {
        return;
    }
    if let Ok(held) = lock(&path)
        && is_at(&held, &path)
        && is_empty()
    {
        let _ = fs::remove_file(&path);
        // Not if a run has begun since to make the lock anew.
        let _ = fs::remove_dir(base);
    }
}

fn lock(path: &Path) -> Result<Lock, LockError> {
    Lock::take(path, "`tandem test`")
}

pub(super) fn entries(base: &Path, prefix: &'static str) -> impl Iterator<Item = PathBuf> {
    let found = fs::read_dir(base).into_iter().flatten().flatten();
    found.filter(move |entry| entry.file_name().to_string_lossy().starts_with(prefix)).map(|entry| entry.path())
}

/// The directories of runs that are over, each with its lock, so that no other run removes them too.
fn dead(base: &Path) -> Vec<(PathBuf, Lock)> {
    let unlocked = entries(base, RUN).filter_map(|dir| {
        let held = lock(&dir.join(LOCK)).ok()?;
        Some((dir, held))
    });
    unlocked.filter(|(dir, _)| !(dir.join(KEPT).exists() && remains::is_served(dir))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Room;

    #[tokio::test]
    async fn a_run_has_a_directory_of_its_own_and_sweeps_those_of_dead_runs_alone() {
        let _alone = crate::forks::none();
        let root = tempfile::tempdir().unwrap();
        let (first, second) = (RunDir::take(root.path()).await.unwrap(), RunDir::take(root.path()).await.unwrap());
        assert_ne!(first.dir, second.dir);
        let dead = first.dir.clone();
        fs::write(dead.join("file"), "").unwrap();
        drop(first);
        let third = RunDir::take(root.path()).await.unwrap();
        assert!(!dead.exists() && second.dir.exists() && third.dir.exists());
    }

    #[tokio::test]
    async fn the_last_to_leave_removes_the_directory_and_those_who_come_meanwhile_get_theirs() {
        let _alone = crate::forks::none();
        let root = tempfile::tempdir().unwrap();
        let alone = RunDir::take(root.path()).await.unwrap();
        let base = alone.base.clone();
        alone.remove().await;
        assert!(!base.exists() && root.path().exists());
        // What another run still has, or has laid out for the next one, stays.
        let (first, second) = (RunDir::take(root.path()).await.unwrap(), RunDir::take(root.path()).await.unwrap());
        let spare = second.spare("abc");
        fs::create_dir(&spare).unwrap();
        first.remove().await;
        assert!(second.dir.exists());
        second.remove().await;
        assert!(spare.exists());
        fs::remove_dir(&spare).unwrap();
        leave(&base);
        assert!(!base.exists());

        // A lock that was opened before it was removed is none.
        let ended = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !ended.load(std::sync::atomic::Ordering::Relaxed) {
                    leave(&base);
                }
            });
            std::thread::scope(|inner| {
                inner
                    .spawn(|| {
                        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                        runtime.block_on(async {
                            for _ in 0..300 {
                                let (base, held) = enter(root.path()).await.unwrap();
                                let run = tempfile::tempdir_in(&base).unwrap();
                                assert!(is_at(&held, &base.join(LOCK)));
                                drop(held);
                                fs::write(run.path().join("file"), "").unwrap();
                            }
                        })
                    })
                    .join()
            })
            .unwrap();
            ended.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        assert!(
            !base.exists() || {
                leave(&base);
                !base.exists()
            }
        );
    }

    #[tokio::test]
    async fn a_spare_directory_is_taken_once() {
        let root = tempfile::tempdir().unwrap();
        let place = RunDir::take(root.path()).await.unwrap();
        let data = place.dir.join("data");
        assert!(!place.take_spare("abc", &data));
        fs::create_dir(place.spare("abc")).unwrap();
        assert!(!place.take_spare("other", &data) && place.take_spare("abc", &data) && data.exists());
        assert!(!place.take_spare("abc", &place.dir.join("again")));
    }

    #[tokio::test]
    async fn few_spare_directories_wait_and_none_for_long() {
        let root = tempfile::tempdir().unwrap();
        let place = RunDir::take(root.path()).await.unwrap();
        let made = |key: &str| {
            fs::create_dir(place.spare(key)).unwrap();
            place.spare(key)
        };
        let old = made("old");
        let week = SystemTime::now() - SPARE_AGE_MAX - Duration::from_secs(60);
        fs::File::open(&old).unwrap().set_modified(week).unwrap();
        let others = [made("a"), made("b"), made("c")];
        place.wanted_spare("wanted");
        assert!(!old.exists());
        assert_eq!(others.iter().filter(|path| path.exists()).count(), SPARES_MAX - 1);
    }

    #[tokio::test]
    async fn a_spare_directory_that_is_removed_meanwhile_is_taken_whole_or_not_at_all() {
        let root = tempfile::tempdir().unwrap();
        let (taker, remover) = (RunDir::take(root.path()).await.unwrap(), RunDir::take(root.path()).await.unwrap());
        let mut taken = 0;
        for round in 0..40 {
            let spare = taker.spare("wanted");
            fs::create_dir(&spare).unwrap();
            (0..100).for_each(|number| fs::write(spare.join(number.to_string()), "").unwrap());
            let data = taker.dir.join(format!("data{round}"));
            std::thread::scope(|scope| {
                scope.spawn(|| remover.discard(&spare));
                if taker.take_spare("wanted", &data) {
                    taken += 1;
                    assert_eq!(fs::read_dir(&data).unwrap().count(), 100);
                }
            });
        }
        assert!(taken > 0 && entries(&taker.base, GONE).count() == 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_run_that_was_stopped_holds_nobody_up_for_ever() {
        let root = tempfile::tempdir().unwrap();
        let place = RunDir::take(root.path()).await.unwrap();
        let _stopped = lock(&place.base.join(LOCK)).unwrap();
        let error = RunDir::take(root.path()).await.unwrap_err();
        assert_eq!(crate::exit::code_of(&error), Code::Temporary);
        assert!(error.to_string().contains("is one stopped?"), "{error}");
    }

    #[tokio::test]
    async fn somebody_elses_directory_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let name = format!("tandem-test-{}", Uid::effective());
        std::os::unix::fs::symlink("/", root.path().join(name)).unwrap();
        let error = RunDir::take(root.path()).await.unwrap_err();
        assert_eq!(crate::exit::code_of(&error), Code::CannotCreate);
        assert!(error.to_string().contains("test.dir"), "{error}");
    }

    #[test]
    fn a_file_system_that_is_too_small_is_left_for_the_disk() {
        let guard = Guard::new("throwaway server", Room::Bytes(0), None);
        let (places, notice) = candidates(&guard, Some(Path::new("/proc")), Path::new("/state"));
        assert_eq!(places, [temp_dir()]);
        assert!(notice.unwrap().contains("MB"));
        let (places, notice) = candidates(&guard, Some(Path::new("/nowhere")), Path::new("/state"));
        assert_eq!(places, [temp_dir()]);
        assert!(notice.unwrap().contains("/nowhere"));
    }
}
