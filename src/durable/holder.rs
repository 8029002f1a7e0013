//! Which process holds a lock: the kernel knows (proc_locks(5)). What stands in the lock file is believed only where the
//! kernel names the same process, for the file may speak of one that has died.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};

/// So much of a lock file is read.
const NOTE_LENGTH_MAX: u64 = 1024;

/// The process that holds a lock. It is looked for when its name is asked for: whoever waits for a lock asks once, and
/// tries often.
#[derive(Debug)]
pub struct Holder {
    /// Open on what is locked.
    file: File,
}

/// What is known of it.
enum Known {
    /// It wrote down who it is.
    Signed(String),
    /// The kernel names it.
    Seen(i32),
    /// It cannot be seen from here, as one in another container, or has let go a moment ago.
    Unseen,
}

impl Holder {
    pub(super) fn of(file: File) -> Self {
        Self { file }
    }

    /// The holder as the subject of a sentence: `what`, such as "another tandem", where it wrote down who it is.
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
            // It has another number in its own container.
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

/// What a holder has written into its lock file.
struct Note {
    pid: i32,
    host: String,
    text: String,
}

fn note(file: &File) -> Option<Note> {
    let mut text = vec![0; NOTE_LENGTH_MAX as usize];
    // The position belongs to whoever reads on from it; a directory cannot be read.
    let length = file.read_at(&mut text, 0).ok()?;
    let text = std::str::from_utf8(&text[..length]).ok()?.trim();
    // Who else writes there writes what he likes.
    let printable = text.lines().next().filter(|line| !line.chars().any(char::is_control))?;
    let (pid, rest) = printable.strip_prefix("pid ")?.split_once(" on host ")?;
    let host = rest.split(',').next()?.to_owned();
    Some(Note { pid: pid.parse().ok()?, host, text: printable.to_owned() })
}

/// The name of this machine or container.
pub(super) fn host() -> String {
    nix::unistd::gethostname().unwrap_or_default().to_string_lossy().into_owned()
}

/// The living process that holds the lock on what `file` is open on.
fn pid(file: &File) -> Option<i32> {
    let place = place(file)?;
    let of_ours = |lock: &procfs::Lock| {
        matches!(lock.lock_type, procfs::LockType::FLock) && (lock.devmaj, lock.devmin, lock.inode) == place
    };
    let locks = procfs::locks().ok()?;
    let takers = locks.iter().filter(|lock| of_ours(lock)).filter_map(|lock| lock.pid);
    let alive = |pid: &i32| *pid > 0 && fs::exists(format!("/proc/{pid}")).unwrap_or(false);
    // The kernel names the process that took the lock. That may have ended, and a child of it that inherited the open file
    // holds the lock now.
    takers.into_iter().find(alive).or_else(|| heir(place))
}

type Place = (u32, u32, u64);

/// How the kernel calls what `file` is open on: the device of its file system and the inode's own number. On overlay and
/// btrfs file systems stat(2) shows others.
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

/// A process that has a file open on which there is a lock of this `place` (proc_pid_fdinfo(5)), among those that we may
/// look into.
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

/// A process in words: its number, its program, its user.
fn describe(pid: i32) -> String {
    let mut name = String::new();
    let read = File::open(format!("/proc/{pid}/comm")).and_then(|file| file.take(64).read_to_string(&mut name));
    let user = fs::metadata(format!("/proc/{pid}")).map(|meta| format!("user id {}", meta.uid()));
    let name: String = name.trim().chars().filter(|letter| !letter.is_control()).collect();
    let program = read.ok().filter(|_| !name.is_empty()).map(|_| format!("`{name}`"));
    let words: Vec<String> = program.into_iter().chain(user.ok()).collect();
    if words.is_empty() { format!("process {pid}") } else { format!("process {pid} ({})", words.join(", ")) }
}
