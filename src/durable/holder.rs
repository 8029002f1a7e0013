//! Finds the process that holds a lock, in the kernel's list (proc_locks(5)). The text in the lock file is trusted only if the
//! kernel names the same process: the process that wrote it may have died.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};

/// How much of a lock file is read, in bytes.
const NOTE_LENGTH_MAX: u64 = 1024;

/// The process that holds a lock. It is looked up in [`Holder::named`], not before: a caller that waits for a lock tries often
/// and needs the name once.
#[derive(Debug)]
pub struct Holder {
    /// The locked file.
    file: File,
}

/// The process that holds the lock file or directory `path`, as the subject of a sentence; `None` where the kernel's list has
/// none but this process itself. Unlike an attempt to take the lock, this is in nobody's way.
pub fn held_by(path: &std::path::Path, what: &str) -> Option<String> {
    let file = File::open(path).ok()?;
    let (place, locks) = (place(&file)?, procfs::locks().ok()?);
    let own = std::process::id().cast_signed();
    let is_it = |lock: &&procfs::Lock| (lock.devmaj, lock.devmin, lock.inode) == place;
    let is_held = locks.iter().filter(is_it).any(|lock| lock.pid != Some(own));
    is_held.then(|| Holder::of(file).named(what))
}

/// What is known about the holder.
enum Known {
    /// It wrote this text into the lock file.
    Signed(String),
    /// The kernel reports its process id.
    Seen(i32),
    /// It is in another container, or released the lock a moment ago.
    Unseen,
}

impl Holder {
    pub(super) fn of(file: File) -> Self {
        Self { file }
    }

    /// The holder as the subject of a sentence. `what`, such as "another tandem", is used if the holder wrote into the file.
    pub fn named(&self, what: &str) -> String {
        match self.known() {
            Known::Signed(note) => format!("{what} ({note})"),
            Known::Seen(pid) => describe(pid),
            Known::Unseen => "a process that cannot be seen from here (in another container?)".to_owned(),
        }
    }

    fn known(&self) -> Known {
        let note = note(&self.file);
        let elsewhere = |note: &Note| note.host != host();
        match (pid(&self.file), note) {
            // In its own container the process has another id.
            (Some(pid), Some(note)) if elsewhere(&note) => {
                Known::Signed(format!("{}; here {}", note.text, describe(pid)))
            }
            (Some(pid), Some(note)) if note.pid == pid => Known::Signed(note.text),
            (Some(pid), _) => Known::Seen(pid),
            (None, Some(note)) if elsewhere(&note) => Known::Signed(note.text),
            (None, _) => Known::Unseen,
        }
    }
}

/// The text that a holder wrote into its lock file.
struct Note {
    pid: i32,
    host: String,
    text: String,
}

fn note(file: &File) -> Option<Note> {
    let mut text = vec![0; NOTE_LENGTH_MAX as usize];
    // Reading a directory fails.
    let length = file.read_at(&mut text, 0).ok()?;
    let text = std::str::from_utf8(&text[..length]).ok()?.trim();
    // Another program may write anything there.
    let printable = text.lines().next().filter(|line| !line.chars().any(char::is_control))?;
    let (pid, rest) = printable.strip_prefix("pid ")?.split_once(" on host ")?;
    let host = rest.split(',').next()?.to_owned();
    Some(Note { pid: pid.parse().ok()?, host, text: printable.to_owned() })
}

/// The name of this machine or container.
pub(super) fn host() -> String {
    nix::unistd::gethostname().unwrap_or_default().to_string_lossy().into_owned()
}

/// The living process that holds the lock on `file`.
fn pid(file: &File) -> Option<i32> {
    let place = place(file)?;
    let of_ours = |lock: &procfs::Lock| {
        matches!(lock.lock_type, procfs::LockType::FLock) && (lock.devmaj, lock.devmin, lock.inode) == place
    };
    let locks = procfs::locks().ok()?;
    let takers = locks.iter().filter(|lock| of_ours(lock)).filter_map(|lock| lock.pid);
    let alive = |pid: &i32| *pid > 0 && fs::exists(format!("/proc/{pid}")).unwrap_or(false);
    // The kernel reports the process that took the lock. If that process has ended, a child that inherited the open file
    // holds it.
    takers.into_iter().find(alive).or_else(|| heir(place))
}

type Place = (u32, u32, u64);

/// The device and inode numbers of `file` in the kernel's list. On overlay and btrfs file systems, stat(2) returns others.
fn place(file: &File) -> Option<Place> {
    let by_kernel = || {
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).ok()?;
        let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let (mount, inode) = (field("mnt_id:")?.parse::<i32>().ok()?, field("ino:")?.parse().ok()?);
        let mounts = procfs::process::Process::myself().and_then(|me| me.mountinfo()).ok()?;
        let found = mounts.into_iter().find(|it| it.mnt_id == mount)?;
        let (major, minor) = found.majmin.split_once(':')?;
        Some((major.parse().ok()?, minor.parse().ok()?, inode))
    };
    by_kernel().or_else(|| {
        let meta = file.metadata().ok()?;
        let (major, minor) = (rustix::fs::major(meta.dev()), rustix::fs::minor(meta.dev()));
        Some((major, minor, meta.ino()))
    })
}

/// A process that has the locked file at this `place` open (proc_pid_fdinfo(5)), among those that we have the right to look
/// into.
fn heir((major, minor, inode): Place) -> Option<i32> {
    let wanted = format!(" {major:02x}:{minor:02x}:{inode} ");
    let holds = |pid: i32| {
        let files = fs::read_dir(format!("/proc/{pid}/fdinfo")).into_iter().flatten().flatten();
        let infos = files.filter_map(|file| fs::read_to_string(file.path()).ok());
        infos.into_iter().any(|info| info.lines().any(|line| line.starts_with("lock:") && line.contains(&wanted)))
    };
    let pids = fs::read_dir("/proc").ok()?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.into_iter().find(|pid| holds(*pid))
}

/// A process in words: its id, its program, its user.
fn describe(pid: i32) -> String {
    let mut name = String::new();
    let read = File::open(format!("/proc/{pid}/comm")).and_then(|file| file.take(64).read_to_string(&mut name));
    let user = fs::metadata(format!("/proc/{pid}")).map(|meta| format!("user id {}", meta.uid()));
    let name: String = name.trim().chars().filter(|letter| !letter.is_control()).collect();
    let program = read.ok().filter(|_| !name.is_empty()).map(|_| format!("`{name}`"));
    let words: Vec<String> = program.into_iter().chain(user.ok()).collect();
    if words.is_empty() { format!("process {pid}") } else { format!("process {pid} ({})", words.join(", ")) }
}
