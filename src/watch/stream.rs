//! The stream of changes: a thread listens to the kernel, waits until nothing more happens, and compares the files.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode, CreateKind, ModifyKind, RemoveKind};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::Error;
use super::rules::Rules;
use super::snapshot::{Snapshot, Touched};

/// How long nothing must happen before the files are compared: an editor writes, renames and sets times in a row.
const QUIET: Duration = Duration::from_millis(100);
/// The files are compared after this long at the latest, even if events go on.
const QUIET_LIMIT: Duration = Duration::from_secs(1);
/// Directories that appear during one look are found by the next; after this many looks the rest waits for an event.
const ROUNDS_MAX: usize = 10;

enum Message {
    Event(notify::Result<Event>),
    End,
}

/// The files that count below a directory, watched until this is dropped.
#[derive(Debug)]
pub struct Watch {
    changes: UnboundedReceiver<Vec<PathBuf>>,
    messages: Sender<Message>,
    root: PathBuf,
    counts: (usize, usize),
}

impl Watch {
    /// Watch the files below `root` that match one of `globs`: a glob without a slash is held against a file's name,
    /// another against its path below `root`, and one that begins with `!` takes files out again.
    ///
    /// Left out are hidden files and directories, what `.gitignore` and `.ignore` files name, byte code, virtual
    /// environments, and the directories `left_out`. Symbolic links to directories are not followed. Blocks until all
    /// is watched.
    ///
    /// # Errors
    /// A glob cannot be parsed, a directory cannot be watched, or a limit of the kernel's is reached.
    pub fn open(root: &Path, globs: &[String], left_out: &[PathBuf]) -> Result<Self, Error> {
        let rules = Rules::new(root, globs, left_out)?;
        let (messages, inbox) = channel();
        let sender = messages.clone();
        let hear = move |event: notify::Result<Event>| {
            if !event.as_ref().is_ok_and(is_noise) {
                let _ = sender.send(Message::Event(event));
            }
        };
        let watcher = notify::recommended_watcher(hear).map_err(|error| Error::of(&error, &rules.root))?;
        let (sender, changes) = unbounded_channel();
        let mut observer =
            Observer { watcher, rules, watched: BTreeSet::new(), snapshot: Snapshot::default(), lacking: false };
        observer.begin()?;
        let (root, counts) = (observer.rules.root.clone(), (observer.snapshot.len(), observer.snapshot.dirs.len()));
        let thread = std::thread::Builder::new().name("watch".into());
        let spawned = thread.spawn(move || observer.work(&inbox, &sender));
        spawned.map_err(|error| Error::Directory { dir: root.clone(), why: error.to_string() })?;
        Ok(Self { changes, messages, root, counts })
    }

    /// The directory, without symbolic links in its name.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// How many files and directories were found at first.
    pub fn counts(&self) -> (usize, usize) {
        self.counts
    }

    /// Wait until files are saved, made, renamed or removed, and return all that changed since the last call, sorted. `None`
    /// when nothing is watched any more.
    pub async fn next(&mut self) -> Option<Vec<PathBuf>> {
        let mut changed: BTreeSet<PathBuf> = self.changes.recv().await?.into_iter().collect();
        while let Ok(more) = self.changes.try_recv() {
            changed.extend(more);
        }
        Some(changed.into_iter().collect())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.messages.send(Message::End);
    }
}

/// The state of the watching thread.
struct Observer {
    watcher: RecommendedWatcher,
    rules: Rules,
    watched: BTreeSet<PathBuf>,
    snapshot: Snapshot,
    /// Whether a directory could not be watched, which is logged once.
    lacking: bool,
}

impl Observer {
    /// Watch all that is there.
    fn begin(&mut self) -> Result<(), Error> {
        self.watch_above()?;
        self.look()
    }

    /// Watch the directories above the root: for their ignore files, and to see the root come back when it is replaced. A
    /// directory that may not be read is skipped.
    fn watch_above(&mut self) -> Result<(), Error> {
        for dir in self.rules.above.clone() {
            if !self.watched.contains(&dir) {
                match self.watch(&dir) {
                    Ok(()) | Err(Error::Directory { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// Send changes to `changes` until the watch is dropped.
    fn work(mut self, inbox: &Receiver<Message>, changes: &UnboundedSender<Vec<PathBuf>>) {
        while let Some(touched) = self.gather(inbox) {
            let before = std::mem::take(&mut self.snapshot);
            match self.watch_above().and_then(|()| self.look()) {
                Err(error) if !self.lacking => {
                    tracing::warn!("{error}; saves there are not noticed");
                    self.lacking = true;
                }
                Ok(()) | Err(_) => {}
            }
            let changed = self.snapshot.changed(&before, &touched);
            if !changed.is_empty() && changes.send(changed).is_err() {
                return;
            }
        }
    }

    /// Wait for events that matter, and until there are no more of them for a while; `None` at the end.
    fn gather(&mut self, inbox: &Receiver<Message>) -> Option<Touched> {
        let mut touched = Touched::default();
        while !self.take(inbox.recv().ok()?, &mut touched)? {}
        let began = Instant::now();
        let mut last = began;
        loop {
            let until = (last + QUIET).min(began + QUIET_LIMIT);
            match inbox.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(message) => {
                    if self.take(message, &mut touched)? {
                        last = Instant::now();
                    }
                }
                Err(RecvTimeoutError::Timeout) => return Some(touched),
                Err(RecvTimeoutError::Disconnected) => return None,
            }
            if Instant::now() >= began + QUIET_LIMIT {
                return Some(touched);
            }
        }
    }

    /// Whether `message` is an event that matters, whose paths are then in `touched`; `None` for the end.
    fn take(&mut self, message: Message, touched: &mut Touched) -> Option<bool> {
        let event = match message {
            Message::End => return None,
            Message::Event(Ok(event)) => event,
            Message::Event(Err(error)) => {
                tracing::debug!("watch: {error}");
                touched.all = true;
                return Some(true);
            }
        };
        if event.need_rescan() {
            touched.all = true;
            return Some(true);
        }
        let matter: Vec<PathBuf> = event.paths.iter().filter(|path| self.matters(&event.kind, path)).cloned().collect();
        for path in &matter {
            if matches!(event.kind, EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_))) {
                self.unwatch_below(path);
            }
        }
        let some = !matter.is_empty();
        touched.paths.extend(matter);
        Some(some)
    }

    fn matters(&self, kind: &EventKind, path: &Path) -> bool {
        if Rules::is_ignore_file(path) || self.rules.includes(path) {
            return true;
        }
        let beside = self.rules.above.iter().any(|dir| path.parent() == Some(dir));
        if beside && !self.rules.root.starts_with(path) {
            return false;
        }
        match kind {
            EventKind::Create(CreateKind::Folder) | EventKind::Remove(RemoveKind::Folder) => true,
            // A rename event does not tell whether it is a directory.
            EventKind::Modify(ModifyKind::Name(_)) => self.watched.contains(path) || path.is_dir(),
            _ => false,
        }
    }

    /// A directory was removed or renamed: the kernel's watch stays with the old one.
    fn unwatch_below(&mut self, path: &Path) {
        let gone: Vec<PathBuf> = self.watched.iter().filter(|dir| dir.starts_with(path)).cloned().collect();
        self.unwatch(gone);
    }

    /// Look at what is there now and watch all of it. A directory is read once more after its watch began, so that no
    /// change falls between the two.
    fn look(&mut self) -> Result<(), Error> {
        let mut outcome = Ok(());
        for _ in 0..ROUNDS_MAX {
            self.snapshot = Snapshot::take(&self.rules);
            let new: Vec<PathBuf> = self.snapshot.dirs.difference(&self.watched).cloned().collect();
            if new.is_empty() || outcome.is_err() {
                break;
            }
            for dir in new {
                match self.watch(&dir) {
                    // It was there a moment ago.
                    Err(Error::Directory { .. }) if !dir.exists() => {}
                    Err(error) => {
                        outcome = Err(error);
                        break;
                    }
                    Ok(()) => {}
                }
            }
        }
        let kept = |dir: &PathBuf| self.snapshot.dirs.contains(dir) || self.rules.above.contains(dir);
        let needless: Vec<PathBuf> = self.watched.iter().filter(|dir| !kept(dir)).cloned().collect();
        self.unwatch(needless);
        outcome
    }

    fn unwatch(&mut self, dirs: Vec<PathBuf>) {
        for dir in dirs {
            // The kernel may have ended the watch with the directory.
            let _ = self.watcher.unwatch(&dir);
            self.watched.remove(&dir);
        }
    }

    fn watch(&mut self, dir: &Path) -> Result<(), Error> {
        self.watcher.watch(dir, RecursiveMode::NonRecursive).map_err(|error| Error::of(&error, dir))?;
        self.watched.insert(dir.to_owned());
        Ok(())
    }
}

/// Whether an event only tells of reading, which a look at the directories causes itself.
fn is_noise(event: &Event) -> bool {
    matches!(event.kind, EventKind::Access(kind) if kind != AccessKind::Close(AccessMode::Write))
}
