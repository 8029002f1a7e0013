//! The stream of changes: a thread listens to the kernel, waits until nothing more happens, and compares the files.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode, CreateKind, ModifyKind, RemoveKind};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::rules::Rules;
use super::snapshot::{Snapshot, Touched};
use super::{Error, mounts};

/// How long nothing must happen before the files are compared: an editor writes, renames and sets times in a row.
const QUIET: Duration = Duration::from_millis(100);
/// The files are compared after this long at the latest, even if events go on.
const QUIET_LIMIT: Duration = Duration::from_secs(1);
/// Directories that appear during one look are found by the next; after this many looks the rest waits for an event.
const ROUNDS_MAX: usize = 10;

/// How often the files are compared where the kernel does not tell of changes.
const POLL: Duration = Duration::from_secs(1);
/// A comparison may take this part of the time at most.
const POLL_SHARE: u32 = 20;

#[derive(Debug)]
enum Message {
    Event(notify::Result<Event>),
    End,
}

/// The files that count below some directories, watched until this is dropped.
#[derive(Debug)]
pub struct Watch {
    rule: Rule,
    changes: UnboundedReceiver<Vec<PathBuf>>,
    /// Changes that were received and not returned yet.
    pending: BTreeSet<PathBuf>,
    parts: Vec<Part>,
}

/// What all directories of a watch have in common.
#[derive(Clone, Debug)]
pub struct Rule {
    globs: Vec<String>,
    left_out: Vec<PathBuf>,
    changes: UnboundedSender<Vec<PathBuf>>,
}

/// One directory that is watched.
#[derive(Debug)]
pub struct Part {
    root: PathBuf,
    messages: Sender<Message>,
    counts: (usize, usize),
}

impl Watch {
    /// Watch the files below `roots` that match one of `globs`: a glob without a slash is held against a file's name,
    /// another against its path below the root, and one that begins with `!` takes files out again. Of `project` itself,
    /// the hidden files that a glob names count too.
    ///
    /// Left out are hidden files and directories that no glob names, what `.gitignore` and `.ignore` files name, byte code,
    /// virtual environments, and the directories `left_out`. Symbolic links are followed. Blocks until all is watched.
    ///
    /// # Errors
    /// A glob cannot be parsed, or a directory cannot be read.
    pub fn open(roots: &[PathBuf], project: &Path, globs: &[String], left_out: &[PathBuf]) -> Result<Self, Error> {
        let (sender, changes) = unbounded_channel();
        let rule = Rule { globs: globs.to_vec(), left_out: left_out.to_vec(), changes: sender };
        let mut watch = Self { rule, changes, pending: BTreeSet::new(), parts: Vec::new() };
        for root in roots {
            let part = watch.rule.begin(root)?;
            watch.take(part);
        }
        if let Some(rules) = Rules::of_hidden(project, globs)?
            && !watch.parts.iter().any(|part| part.root == rules.root)
        {
            watch.parts.push(watch.rule.begin_with(rules)?);
        }
        Ok(watch)
    }

    /// The rule by which more directories can be watched, on another thread.
    pub fn rule(&self) -> Rule {
        self.rule.clone()
    }

    /// Have `part` too, whose files count by [`Self::rule`]; whether it is news.
    pub fn take(&mut self, part: Part) -> bool {
        let is_news = !self.parts.iter().any(|known| known.root == part.root);
        if is_news {
            self.parts.push(part);
        }
        is_news
    }

    /// The directories, without symbolic links in their names.
    pub fn roots(&self) -> Vec<&Path> {
        self.parts.iter().map(|part| part.root.as_path()).collect()
    }

    /// What `path` is called below the directory that it was found in.
    pub fn short<'a>(&self, path: &'a Path) -> &'a Path {
        self.parts.iter().find_map(|part| path.strip_prefix(&part.root).ok()).unwrap_or(path)
    }

    /// How many files and directories were found at first.
    pub fn counts(&self) -> (usize, usize) {
        self.parts.iter().fold((0, 0), |(files, dirs), part| (files + part.counts.0, dirs + part.counts.1))
    }

    /// Wait until files are saved, made, renamed or removed, and return all that changed since the last call, sorted. `None`
    /// when nothing is watched any more. Dropped before its end, it loses nothing.
    pub async fn next(&mut self) -> Option<Vec<PathBuf>> {
        if self.pending.is_empty() {
            self.pending.extend(self.changes.recv().await?);
        }
        if self.parts.len() > 1 {
            // One save may be seen in two of them.
            tokio::time::sleep(QUIET).await;
        }
        while let Ok(more) = self.changes.try_recv() {
            self.pending.extend(more);
        }
        Some(std::mem::take(&mut self.pending).into_iter().collect())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let _ = self.messages.send(Message::End);
    }
}

impl Rule {
    /// Begin to watch what is below `root`. Blocks until all is watched.
    ///
    /// # Errors
    /// As [`Watch::open`].
    pub fn begin(&self, root: &Path) -> Result<Part, Error> {
        self.begin_with(Rules::new(root, &self.globs, &self.left_out)?)
    }

    fn begin_with(&self, rules: Rules) -> Result<Part, Error> {
        let (messages, inbox) = channel();
        let sender = messages.clone();
        let hear = move |event: notify::Result<Event>| {
            if !event.as_ref().is_ok_and(is_noise) {
                let _ = sender.send(Message::Event(event));
            }
        };
        let (root, watcher) = (rules.root.clone(), notify::recommended_watcher(hear));
        let mut observer = Observer {
            watcher: None,
            rules,
            watched: BTreeSet::new(),
            snapshot: Snapshot::default(),
            lacking: false,
            cut: false,
            polled: None,
        };
        match watcher {
            Ok(watcher) => observer.watcher = Some(watcher),
            Err(error) => observer.poll(&Error::of(&error, &root).to_string()),
        }
        observer.begin()?;
        let counts = (observer.snapshot.len(), observer.snapshot.dirs.len());
        let changes = self.changes.clone();
        let thread = std::thread::Builder::new().name("watch".into());
        let spawned = thread.spawn(move || observer.work(&inbox, &changes));
        spawned.map_err(|error| Error::Directory { dir: root.clone(), why: error.to_string() })?;
        Ok(Part { root, messages, counts })
    }
}

/// The state of the watching thread.
struct Observer {
    /// `None`: the kernel lets this user have no more.
    watcher: Option<RecommendedWatcher>,
    rules: Rules,
    watched: BTreeSet<PathBuf>,
    snapshot: Snapshot,
    /// Whether a directory could not be watched, which is logged once.
    lacking: bool,
    /// Whether it was logged that there is too much behind symbolic links.
    cut: bool,
    /// How long until the files are compared without an event; `None`: never.
    polled: Option<Duration>,
}

impl Observer {
    /// Watch all that is there.
    fn begin(&mut self) -> Result<(), Error> {
        if let Some(kind) = mounts::deaf(&self.rules.root) {
            let root = self.rules.root.display();
            tracing::info!(
                "{root} is on {kind}, where a change made elsewhere causes no event: files are compared every second"
            );
            self.polled = Some(POLL);
        }
        match self.watch_above().and_then(|()| self.look()) {
            Err(error @ (Error::Watches { .. } | Error::Instances { .. })) => {
                self.poll(&error.to_string());
                self.look()
            }
            begun => begun,
        }
    }

    /// Compare the files now and then, for there are too few events.
    fn poll(&mut self, why: &str) {
        tracing::warn!("{why}. Until then files are compared every second");
        self.watcher = None;
        self.polled = Some(POLL);
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
            let began = Instant::now();
            match self.watch_above().and_then(|()| self.look()) {
                Err(error @ (Error::Watches { .. } | Error::Instances { .. })) if self.watcher.is_some() => {
                    self.poll(&error.to_string());
                }
                Err(error) if !self.lacking => {
                    tracing::warn!("{error}; saves there are not noticed");
                    self.lacking = true;
                }
                Ok(()) | Err(_) => {}
            }
            if self.polled.is_some() {
                self.polled = Some(POLL.max(began.elapsed() * POLL_SHARE));
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
        // Events that do not matter, such as a log that is written, put no look off.
        let look_at = self.polled.map(|pause| Instant::now() + pause);
        loop {
            let message = match look_at.map(|at| inbox.recv_timeout(at.saturating_duration_since(Instant::now()))) {
                Some(Err(RecvTimeoutError::Timeout)) => {
                    touched.all = true;
                    return Some(touched);
                }
                Some(message) => message.ok()?,
                None => inbox.recv().ok()?,
            };
            if self.take(message, &mut touched)? {
                break;
            }
        }
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
        touched.paths.extend(matter.iter().map(|path| self.snapshot.path_below_root(path)));
        Some(some)
    }

    fn matters(&self, kind: &EventKind, path: &Path) -> bool {
        if Rules::is_ignore_file(path) || self.rules.includes(&self.snapshot.path_below_root(path)) {
            return true;
        }
        if self.snapshot.is_link(path) || (path.is_symlink() && path.is_dir()) {
            // One that comes, goes or leads elsewhere.
            return !matches!(kind, EventKind::Access(_));
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
            if self.snapshot.is_cut && !std::mem::replace(&mut self.cut, true) {
                let root = self.rules.root.display();
                tracing::warn!(
                    "symbolic links below {root} lead to very many directories; saves in the last of them are not noticed"
                );
            }
            if self.watcher.is_none() {
                return Ok(());
            }
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
            let _ = self.watcher.as_mut().map(|watcher| watcher.unwatch(&dir));
            self.watched.remove(&dir);
        }
    }

    fn watch(&mut self, dir: &Path) -> Result<(), Error> {
        let Some(watcher) = &mut self.watcher else { return Ok(()) };
        watcher.watch(dir, RecursiveMode::NonRecursive).map_err(|error| Error::of(&error, dir))?;
        self.watched.insert(dir.to_owned());
        Ok(())
    }
}

/// Whether an event only tells of reading, which a look at the directories causes itself.
fn is_noise(event: &Event) -> bool {
    matches!(event.kind, EventKind::Access(kind) if kind != AccessKind::Close(AccessMode::Write))
}
