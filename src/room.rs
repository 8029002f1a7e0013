//! Room on disks. Whatever writes much asks for room before its first byte, and is ended while it writes when too little is
//! left: dumps, restores, verifications, imports, downloads, copies into directories, base backups, recoveries, throwaway servers
//! and their templates.
//!
//! The WAL archive does not ask. A segment that is refused stays in `pg_wal`, uncompressed, and takes more there than its
//! copy in the archive would; `backup.pitr.max_backlog` bounds what waits.

use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::config::Room;
use crate::exit::{Code, Failure};

/// What stays free on the disk of the server's WAL, in bytes, whatever `disk.stop_free` says: PostgreSQL panics when there is
/// no room for the next segment of 16 MB, and what is written in the moment before the watch sees it takes room too.
const SERVER_FREE: u64 = 64 << 20;
/// How often free room is looked at during the work: a fast disk takes some 10 MB meanwhile.
const LOOK: Duration = Duration::from_millis(20);
/// How long the last look may take, after work that failed. A disk that hangs is not full.
const LOOK_LIMIT: Duration = Duration::from_secs(5);

/// A file system, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileSystem {
    /// What an ordinary user may still write.
    pub free: u64,
    pub total: u64,
    /// Its number (stat(2), st_dev).
    pub device: u64,
}

impl FileSystem {
    /// The one that `path` is on, or will be once it is made (statvfs(3)).
    #[allow(clippy::useless_conversion, reason = "the fields are narrower on macOS")]
    pub fn of(path: &Path) -> Option<Self> {
        let (there, meta) = path.ancestors().find_map(|path| Some((path, path.metadata().ok()?)))?;
        let found = nix::sys::statvfs::statvfs(there).ok()?;
        let bytes = |blocks: u64| blocks.saturating_mul(u64::from(found.fragment_size()));
        let (free, total) = (bytes(u64::from(found.blocks_available())), bytes(u64::from(found.blocks())));
        Some(Self { free, total, device: meta.dev() })
    }

    /// Whether less is free than `wanted`.
    pub fn is_below(&self, wanted: Room) -> bool {
        self.free < wanted.bytes(self.total)
    }
}

/// Asks for the room that one piece of work needs, and watches over it.
#[derive(Clone, Debug)]
pub struct Guard {
    /// What is done: `backup`, `restore`.
    what: &'static str,
    stop_free: Room,
    /// The WAL of the server on this machine.
    wal: Option<PathBuf>,
    /// `stop_free` is kept on the disk of that WAL alone.
    for_the_server: bool,
    claims: Vec<(PathBuf, u64)>,
    advice: String,
}

/// One file system that is written to.
#[derive(Clone, Debug)]
struct Volume {
    dir: PathBuf,
    there: FileSystem,
    claimed: u64,
    floor: Floor,
}

/// What stays free, and why.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Floor {
    StopFree(u64, Room),
    /// That would be less than the server needs.
    Server,
}

impl Floor {
    fn of(there: FileSystem, stop_free: Room, has_wal: bool) -> Self {
        match stop_free.bytes(there.total) {
            bytes if has_wal && bytes < SERVER_FREE => Self::Server,
            bytes => Self::StopFree(bytes, stop_free),
        }
    }

    fn bytes(self) -> u64 {
        match self {
            Self::StopFree(bytes, _) => bytes,
            Self::Server => SERVER_FREE,
        }
    }
}

impl fmt::Display for Floor {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::StopFree(bytes, room) => write!(formatter, "disk.stop_free ({room}) keeps {} MB", megabytes(*bytes)),
            Self::Server => write!(formatter, "{} MB stay free for the server's WAL", megabytes(SERVER_FREE)),
        }
    }
}

impl Guard {
    /// For `what`, such as `restore`, which leaves `stop_free` free everywhere. `data` is the data directory of the server
    /// on this machine, if there is one.
    pub fn new(what: &'static str, stop_free: Room, data: Option<&Path>) -> Self {
        let wal = data.map(|data| data.join("pg_wal")).filter(|wal| wal.exists());
        let advice = "Make room (`tandem doctor` shows what of Tandem's can go)".to_owned();
        Self { what, stop_free, wal, for_the_server: false, claims: Vec::new(), advice }
    }

    /// It will write at most `bytes` into `dir`, which need not be there yet.
    pub fn claim(mut self, dir: &Path, bytes: u64) -> Self {
        self.claims.push((dir.to_owned(), bytes));
        self
    }

    /// Leave `stop_free` free on the disk of the server's WAL alone: what is written is of no use to anybody else.
    pub fn for_the_server(self) -> Self {
        Self { for_the_server: true, ..self }
    }

    /// What to do where there is too little, as the beginning of a sentence.
    pub fn advice(self, advice: impl Into<String>) -> Self {
        Self { advice: advice.into(), ..self }
    }

    /// Whether there is room for all of it.
    ///
    /// # Errors
    /// [`Failure`] with the sum.
    pub fn check(&self) -> Result<(), Failure> {
        self.volumes().iter().try_for_each(|volume| self.judge(volume))
    }

    /// Do `work`, if there is room for it. It is dropped when what must stay free is no longer free: dropping it has to end
    /// what it started, and remove what it wrote. Work that fails when too little is free has failed for that: programs
    /// have many words for it.
    ///
    /// # Errors
    /// What `work` says; [`Failure`] when there is, or was meanwhile, too little room.
    pub async fn hold<T>(&self, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        self.check()?;
        let mut watch = Watch::begin(self.clone())?;
        let error = tokio::select! {
            biased;
            outcome = work => match outcome {
                Ok(done) => return Ok(done),
                Err(error) => error,
            },
            short = watch.short() => return Err(self.ended(&short).into()),
        };
        Err(match watch.last_look().await {
            Some(short) => error.context(self.ended(&short)),
            None => error,
        })
    }

    /// `error`, with too little room as what it failed for where there is too little now.
    pub async fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        match look_once(self.clone()).await {
            Some(short) => error.context(self.ended(&short)),
            None => error,
        }
    }

    /// Ends when too little is left, with what is to be said then.
    pub async fn watch(&self) -> Failure {
        match Watch::begin(self.clone()) {
            Ok(mut watch) => self.ended(&watch.short().await),
            Err(failure) => failure,
        }
    }

    /// Where less is free than must stay so.
    fn short(&self) -> Option<Volume> {
        self.volumes().into_iter().find(|volume| volume.there.free < volume.floor.bytes())
    }

    fn volumes(&self) -> Vec<Volume> {
        let wal = self.wal.as_deref().and_then(FileSystem::of).map(|there| there.device);
        let mut volumes: Vec<Volume> = Vec::new();
        for (dir, bytes) in &self.claims {
            let Some(there) = FileSystem::of(dir) else { continue };
            match volumes.iter_mut().find(|volume| volume.there.device == there.device) {
                Some(volume) => volume.claimed = volume.claimed.saturating_add(*bytes),
                None => {
                    let has_wal = wal == Some(there.device);
                    let stop_free = if self.for_the_server && !has_wal { Room::Bytes(0) } else { self.stop_free };
                    let floor = Floor::of(there, stop_free, has_wal);
                    volumes.push(Volume { dir: dir.clone(), there, claimed: *bytes, floor });
                }
            }
        }
        volumes
    }

    /// Whether `volume` has room for what is claimed. Pure.
    fn judge(&self, volume: &Volume) -> Result<(), Failure> {
        let Volume { dir, there, claimed, floor } = volume;
        let wanted = claimed.saturating_add(floor.bytes());
        if there.free >= wanted {
            return Ok(());
        }
        let message = format!(
            "no {what} is begun: {} has {} MB free of {} MB; the {what} may take {} MB, and {floor}: {} MB are missing. {}, or \
             lower disk.stop_free",
            dir.display(),
            megabytes(there.free),
            megabytes(there.total),
            megabytes(*claimed),
            megabytes(wanted - there.free),
            self.advice,
            what = self.what,
        );
        Err(Failure::new(Code::CannotCreate, message))
    }

    fn ended(&self, volume: &Volume) -> Failure {
        let Volume { dir, there, floor, .. } = volume;
        let message = format!(
            "the {} was ended, and what it had written is removed: {} has {} MB free of {} MB, and {floor}. {}",
            self.what,
            dir.display(),
            megabytes(there.free),
            megabytes(there.total),
            self.advice,
        );
        Failure::new(Code::CannotCreate, message)
    }
}

/// Looks at the room on a thread of its own, which does not wait for its turn behind the work.
struct Watch {
    guard: Guard,
    seen: oneshot::Receiver<Volume>,
}

impl Watch {
    fn begin(guard: Guard) -> Result<Self, Failure> {
        let (tell, seen) = oneshot::channel();
        let (what, looking) = (guard.what, guard.clone());
        let thread = thread::Builder::new().name("room".into()).spawn(move || look_for_ever(&looking, tell));
        match thread {
            Ok(_) => Ok(Self { guard, seen }),
            Err(error) => {
                let message = format!("no {what} is begun: the room on the disk cannot be watched: {error}");
                Err(Failure::new(Code::Temporary, message))
            }
        }
    }

    /// Ends when too little is left.
    async fn short(&mut self) -> Volume {
        match (&mut self.seen).await {
            Ok(volume) => volume,
            // It panicked, which it has said itself.
            Err(_) => std::future::pending().await,
        }
    }

    /// Where too little is or was left.
    async fn last_look(mut self) -> Option<Volume> {
        if let Ok(seen) = self.seen.try_recv() {
            return Some(seen);
        }
        look_once(self.guard).await
    }
}

async fn look_once(guard: Guard) -> Option<Volume> {
    let look = tokio::task::spawn_blocking(move || guard.short());
    tokio::time::timeout(LOOK_LIMIT, look).await.ok()?.ok()?
}

/// Look until too little is left, or nobody wants to know.
#[expect(clippy::disallowed_methods, reason = "free room is told by no event; a thread of its own may sleep")]
fn look_for_ever(guard: &Guard, tell: oneshot::Sender<Volume>) {
    while !tell.is_closed() {
        if let Some(volume) = guard.short() {
            let _ = tell.send(volume);
            return;
        }
        thread::sleep(LOOK);
    }
}

fn megabytes(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1 << 20;

    fn volume(free: u64, claimed: u64, stop_free: Room, has_wal: bool) -> Volume {
        let there = FileSystem { free: free * MB, total: 10_000 * MB, device: 1 };
        Volume { dir: "/backups".into(), there, claimed: claimed * MB, floor: Floor::of(there, stop_free, has_wal) }
    }

    #[test]
    fn the_refusal_has_the_arithmetic() {
        let two = Room::Percent(2.0);
        let guard = Guard::new("backup", two, None).advice("Make room (`tandem backup prune`), move backup.dir");
        assert!(guard.judge(&volume(300, 100, two, false)).is_ok(), "exactly enough");
        assert_eq!(
            guard.judge(&volume(300, 101, two, false)).unwrap_err().to_string(),
            "no backup is begun: /backups has 300 MB free of 10000 MB; the backup may take 101 MB, and disk.stop_free (2%) \
             keeps 200 MB: 1 MB are missing. Make room (`tandem backup prune`), move backup.dir, or lower disk.stop_free"
        );
        assert!(guard.judge(&volume(300, 0, Room::Bytes(301 * MB), false)).is_err());
        let there = FileSystem { free: 300 * MB, total: 10_000 * MB, device: 1 };
        assert!(there.is_below(Room::Percent(3.1)) && !there.is_below(Room::Percent(3.0)));
    }

    #[test]
    fn the_disk_of_the_wal_keeps_room_for_the_server_whatever_is_configured() {
        let none = Room::Bytes(0);
        let guard = Guard::new("restore", none, None);
        assert!(guard.judge(&volume(100, 100, none, false)).is_ok());
        assert!(guard.judge(&volume(164, 100, none, true)).is_ok());
        let refused = guard.judge(&volume(163, 100, none, true)).unwrap_err().to_string();
        assert!(refused.contains("64 MB stay free for the server's WAL: 1 MB are missing"), "{refused}");
        assert_eq!(volume(0, 0, Room::Bytes(65 * MB), true).floor.bytes(), 65 * MB);
    }

    #[test]
    fn claims_on_one_file_system_add_up() {
        let temp = tempfile::tempdir().unwrap();
        let guard = Guard::new("restore", Room::Bytes(0), None);
        let guard =
            guard.claim(temp.path(), 3).claim(&temp.path().join("not/there/yet"), 4).claim(Path::new("/proc"), 5);
        let claimed: Vec<u64> = guard.volumes().iter().map(|volume| volume.claimed).collect();
        assert_eq!(claimed, [7, 5]);
    }

    #[test]
    fn what_serves_tests_keeps_room_on_the_disk_of_the_server_alone() {
        let temp = tempfile::tempdir().unwrap();
        let all = Room::Percent(100.0);
        std::fs::create_dir(temp.path().join("pg_wal")).unwrap();
        let elsewhere = Guard::new("throwaway server", all, None).claim(temp.path(), 0);
        assert!(elsewhere.check().is_err() && elsewhere.for_the_server().check().is_ok());
        let beside = Guard::new("throwaway server", all, Some(temp.path())).claim(temp.path(), 0);
        assert!(beside.for_the_server().check().is_err());
    }

    #[tokio::test]
    async fn work_is_dropped_when_too_little_is_left() {
        let temp = tempfile::tempdir().unwrap();
        let guard = Guard::new("restore", Room::Bytes(0), None).claim(temp.path(), 0);
        assert_eq!(guard.hold(async { anyhow::Ok(1) }).await.unwrap(), 1);
        // More must stay free than there is, and this is only seen by the watch.
        let full = Guard { stop_free: Room::Percent(100.0), ..guard };
        let ended = tokio::time::timeout(LOOK_LIMIT, full.watch()).await.unwrap().to_string();
        assert!(ended.starts_with("the restore was ended, and what it had written is removed: "), "{ended}");
    }

    #[tokio::test]
    async fn work_that_fails_where_too_little_is_left_has_failed_for_that() {
        let temp = tempfile::tempdir().unwrap();
        let failed = async || Err::<(), _>(anyhow::anyhow!("could not write init file"));
        let guard = Guard::new("restore", Room::Bytes(0), None).claim(temp.path(), 0);
        let words = |error: anyhow::Error| crate::exit::in_words(&error);
        assert_eq!(words(guard.hold(failed()).await.unwrap_err()), "could not write init file");
        // There is less than must stay free as soon as the work has begun, and it fails before that is seen.
        let there = FileSystem::of(temp.path()).unwrap();
        let full =
            Watch { guard: Guard { stop_free: Room::Bytes(there.total + 1), ..guard }, seen: oneshot::channel().1 };
        assert!(full.last_look().await.is_some());
    }

    #[test]
    fn a_directory_that_is_not_there_yet_is_on_its_parents_file_system() {
        let temp = tempfile::tempdir().unwrap();
        let found = FileSystem::of(&temp.path().join("a/b")).unwrap();
        assert_eq!(Some(found.total), FileSystem::of(temp.path()).map(|it| it.total));
        assert!(found.free <= found.total);
    }
}
