//! Which files of the project a command reads: the kernel tells of every file that is opened below the watched directories
//! (inotify(7)), whichever program of the command opens it, in whatever language. What others open meanwhile counts too.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// More directories than a project has that was not mistaken for something else.
const DIRS_MAX: usize = 20_000;
/// Links may lead in circles.
const DEPTH_MAX: usize = 32;
/// Room for the events of one read, in bytes.
const EVENTS: usize = 64 * 1024;
/// Where Python keeps what it compiled: who opens that has read the source.
const COMPILED: &str = "__pycache__";

/// What was read and written.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Reads {
    pub files: BTreeSet<PathBuf>,
    /// Directories whose entries were listed.
    pub listed: BTreeSet<PathBuf>,
    pub written: BTreeSet<PathBuf>,
    /// Whether the kernel dropped some of it.
    pub missed: bool,
}

/// Listens until it is told that the command has ended.
#[derive(Debug)]
pub struct Recorder {
    end: oneshot::Sender<()>,
    listening: JoinHandle<Reads>,
}

/// What one watch is on.
enum Place {
    Dir(PathBuf),
    /// A file that is a link, whose directory sees nothing of what is done to the other end.
    File(PathBuf),
}

impl Recorder {
    /// Watch all directories below `roots`. Must be called within the runtime.
    ///
    /// # Errors
    /// The kernel watches no more, or a root cannot be read.
    pub fn start(roots: &BTreeSet<PathBuf>) -> io::Result<Self> {
        let mut places = Vec::new();
        let mut visited = BTreeSet::new();
        for root in roots {
            walk(root, 0, &mut visited, &mut places)?;
        }
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let seen = WatchFlags::OPEN | WatchFlags::MODIFY | WatchFlags::MOVED_TO;
        let mut watches = HashMap::new();
        for place in places {
            let (Place::Dir(path) | Place::File(path)) = &place;
            match inotify::add_watch(&inotify, path, seen) {
                Ok(watch) => drop(watches.insert(watch, place)),
                // It was removed meanwhile, or is not ours to read.
                Err(Errno::NOENT | Errno::ACCESS) => {}
                Err(error) => return Err(error.into()),
            }
        }
        #[expect(
            deprecated,
            reason = "its heir is unsafe for types that give up their descriptor, which OwnedFd never does"
        )]
        let inotify = AsyncFd::new(inotify)?;
        let (end, ended) = oneshot::channel();
        Ok(Self { end, listening: tokio::spawn(listen(inotify, watches, ended)) })
    }

    /// What was read until now.
    pub async fn finish(self) -> Reads {
        let _ = self.end.send(());
        self.listening.await.unwrap_or(Reads { missed: true, ..Reads::default() })
    }
}

/// The directories below `dir` that may hold what a migration reads, and the links in them.
fn walk(dir: &Path, depth: usize, visited: &mut BTreeSet<(u64, u64)>, places: &mut Vec<Place>) -> io::Result<()> {
    let meta = fs::metadata(dir)?;
    if depth > DEPTH_MAX || !visited.insert((meta.dev(), meta.ino())) {
        return Ok(());
    }
    if visited.len() > DIRS_MAX {
        return Err(io::Error::other(format!("there are more than {DIRS_MAX} directories")));
    }
    places.push(Place::Dir(dir.to_owned()));
    for entry in fs::read_dir(dir)?.flatten() {
        let (path, kind) = (entry.path(), entry.file_type()?);
        let is_dir = kind.is_dir() || (kind.is_symlink() && path.is_dir());
        if is_dir {
            if !is_foreign(&path) && walk(&path, depth + 1, visited, places).is_err() {
                tracing::debug!("{} cannot be watched", path.display());
            }
        } else if kind.is_symlink() && path.is_file() {
            places.push(Place::File(path));
        }
    }
    Ok(())
}

/// Whether a directory holds no source of the project's: installed packages, caches, what tools keep for themselves.
pub fn is_foreign(dir: &Path) -> bool {
    let name = dir.file_name().unwrap_or_default().as_bytes();
    let marked = || ["pyvenv.cfg", "CACHEDIR.TAG"].iter().any(|mark| dir.join(mark).exists());
    name.starts_with(b".") || name == b"node_modules" || marked()
}

async fn listen(inotify: AsyncFd<OwnedFd>, watches: HashMap<i32, Place>, mut ended: oneshot::Receiver<()>) -> Reads {
    let mut reads = Reads::default();
    loop {
        tokio::select! {
            ready = inotify.readable() => {
                take(inotify.get_ref(), &watches, &mut reads);
                match ready {
                    Ok(mut ready) => ready.clear_ready(),
                    Err(_) => reads.missed = true,
                }
            }
            _ = &mut ended => {
                // What is in the queue was opened before.
                take(inotify.get_ref(), &watches, &mut reads);
                break;
            }
        }
    }
    for written in &reads.written {
        reads.files.remove(written);
    }
    reads
}

/// Take all events that have come.
fn take(inotify: &OwnedFd, watches: &HashMap<i32, Place>, reads: &mut Reads) {
    let mut buffer = vec![MaybeUninit::uninit(); EVENTS];
    let mut events = Reader::new(inotify, &mut buffer);
    loop {
        let event = match events.next() {
            Ok(event) => event,
            Err(Errno::INTR) => continue,
            Err(Errno::AGAIN) => return,
            Err(_) => return reads.missed = true,
        };
        if event.events().contains(ReadFlags::QUEUE_OVERFLOW) {
            reads.missed = true;
        }
        let Some(place) = watches.get(&event.wd()) else { continue };
        let path = match (place, event.file_name()) {
            (Place::Dir(dir), Some(name)) => dir.join(OsStr::from_bytes(name.to_bytes())),
            (Place::Dir(path) | Place::File(path), _) => path.clone(),
        };
        reads.note(path, event.events());
    }
}

impl Reads {
    fn note(&mut self, path: PathBuf, what: ReadFlags) {
        let compiled = path.parent().is_some_and(|dir| dir.ends_with(COMPILED));
        if what.contains(ReadFlags::ISDIR) {
            if what.contains(ReadFlags::OPEN) && !path.ends_with(COMPILED) {
                self.listed.insert(path);
            }
        } else if compiled {
            self.files.extend(source(&path).filter(|_| what.contains(ReadFlags::OPEN)));
        } else if what.intersects(ReadFlags::MODIFY | ReadFlags::MOVED_TO) {
            self.written.insert(path);
        } else if what.contains(ReadFlags::OPEN) {
            self.files.insert(path);
        }
    }
}

/// The source of `dir/__pycache__/models.cpython-313.pyc`: `dir/models.py`.
fn source(compiled: &Path) -> Option<PathBuf> {
    let name = compiled.file_name()?.to_str()?.strip_suffix(".pyc")?;
    let (module, _) = name.split_once('.')?;
    Some(compiled.parent()?.parent()?.join(format!("{module}.py")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_opened_is_known_and_what_is_written_is_no_input() {
        let temp = tempfile::tempdir().unwrap();
        let path = |name: &str| temp.path().join(name);
        for name in [
            "app/models.py",
            "app/unread.py",
            "app/__pycache__/late.cpython-313.pyc",
            "app/late.py",
            ".venv/x.py",
            "log",
            "v/y.py",
        ] {
            fs::create_dir_all(path(name).parent().unwrap()).unwrap();
            fs::write(path(name), "x").unwrap();
        }
        fs::write(path("v/pyvenv.cfg"), "").unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        fs::write(elsewhere.path().join("shared.py"), "x").unwrap();
        std::os::unix::fs::symlink(elsewhere.path().join("shared.py"), path("app/shared.py")).unwrap();
        std::os::unix::fs::symlink(temp.path(), path("app/circle")).unwrap();

        let recorder = Recorder::start(&BTreeSet::from([temp.path().to_owned()])).unwrap();
        for name in ["app/models.py", "app/__pycache__/late.cpython-313.pyc", "app/shared.py", ".venv/x.py", "v/y.py"] {
            fs::read(path(name)).unwrap();
        }
        fs::write(path("log"), "more").unwrap();
        assert_eq!(fs::read(path("log")).unwrap(), b"more");
        assert!(fs::read_dir(path("app")).unwrap().count() > 0);
        let reads = recorder.finish().await;
        let files = ["app/late.py", "app/models.py", "app/shared.py"].map(path);
        assert_eq!(reads.files, BTreeSet::from(files));
        assert_eq!(reads.written, BTreeSet::from([path("log")]));
        assert!(reads.listed.contains(&path("app")) && !reads.missed);
    }

    #[test]
    fn the_source_of_a_compiled_module_is_beside_its_cache() {
        let source = |name: &str| source(&Path::new("/a/__pycache__").join(name));
        assert_eq!(source("models.cpython-313.pyc"), Some("/a/models.py".into()));
        assert_eq!(source("models.cpython-313.opt-1.pyc"), Some("/a/models.py".into()));
        assert_eq!(source("models.cpython-313.pyc.140213"), None);
    }
}
