//! What a power cut may leave of a directory: a model of a disk that keeps apart what was written and what was flushed.
//!
//! POSIX promises nothing of a write before fsync(2) of the file, and nothing of a name before fsync(2) of the
//! directory; file systems use that freedom (ext4 orders a rename after its data only with `auto_da_alloc`, and only
//! where the rename replaces a file). So PostgreSQL's `durable_rename` flushes the file, renames it, and flushes the
//! directory.

use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;

/// The files below a directory by their path in it, with their content; `None` for a directory.
pub type Tree = BTreeMap<String, Option<Rc<Vec<u8>>>>;

/// A name in a directory.
type Place = (usize, String);

/// One thing that a process did to the disk, in the order in which they ended. Paths are those in the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A file was opened, and cut to nothing, or to be written at its end.
    Open {
        path: String,
        create: bool,
        cut: bool,
        append: bool,
    },
    Seek {
        path: String,
        to: usize,
    },
    /// At this place, or where the file stands.
    Write {
        path: String,
        at: Option<usize>,
        bytes: Vec<u8>,
    },
    /// So many bytes of one file to another, both from where they stand.
    Copy {
        from: String,
        to: String,
        count: usize,
    },
    Resize {
        path: String,
        to: usize,
    },
    /// At least as long as this, in bytes.
    Grow {
        path: String,
        to: usize,
    },
    MakeDir {
        path: String,
    },
    Remove {
        path: String,
    },
    Rename {
        from: String,
        to: String,
    },
    Exchange {
        one: String,
        other: String,
    },
    Link {
        from: String,
        to: String,
    },
    /// A flush began, of one path or of all; what is written from now on is none of its.
    Flushing {
        path: Option<String>,
    },
    /// The flush that began at this step has ended.
    Flushed {
        begun: usize,
    },
    /// The command told its caller that it is done.
    Acknowledge,
}

/// A disk, as its users see it and as a power cut may find it.
#[derive(Default)]
pub struct Disk {
    nodes: Vec<Node>,
    changes: Vec<Change>,
    /// What a flush that began at a step covers.
    flushing: BTreeMap<usize, Covered>,
    acknowledged: bool,
    steps: usize,
}

enum Node {
    Dir { first: BTreeMap<String, usize>, now: BTreeMap<String, usize> },
    File(File),
}

#[derive(Clone, Default)]
struct File {
    now: Rc<Vec<u8>>,
    flushed: Rc<Vec<u8>>,
    position: usize,
    append: bool,
}

/// A change of names that happens in one step.
struct Change {
    /// The directory, the name in it, and what has that name from then on.
    names: Vec<(usize, String, Option<usize>)>,
    flushed: bool,
}

#[derive(Default)]
struct Covered {
    contents: Vec<(usize, Rc<Vec<u8>>)>,
    /// The directories whose names are flushed; `None` for all.
    dirs: Option<Vec<usize>>,
    changes: usize,
}

/// What becomes of bytes that were not flushed.
#[derive(Clone, Copy)]
enum Unflushed {
    Written,
    Lost,
    /// The length was written, the bytes were not.
    Zero,
}

impl Disk {
    /// A disk on which all of `tree` is flushed.
    pub fn holding(tree: &Tree) -> Self {
        let mut disk = Self::default();
        disk.add_dir();
        for (path, content) in tree {
            let node = match content {
                Some(bytes) => {
                    disk.add(Node::File(File { now: bytes.clone(), flushed: bytes.clone(), ..File::default() }))
                }
                None => disk.add_dir(),
            };
            let (dir, name) = disk.place(path).unwrap();
            let Node::Dir { first, now } = &mut disk.nodes[dir] else { panic!("{path} is in no directory") };
            first.insert(name.clone(), node);
            now.insert(name, node);
        }
        disk
    }

    fn add(&mut self, node: Node) -> usize {
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    fn add_dir(&mut self) -> usize {
        self.add(Node::Dir { first: BTreeMap::new(), now: BTreeMap::new() })
    }

    fn find(&self, path: &str) -> Option<usize> {
        path.split('/').filter(|name| !name.is_empty()).try_fold(0, |node, name| match &self.nodes[node] {
            Node::Dir { now, .. } => now.get(name).copied(),
            Node::File(_) => None,
        })
    }

    /// The directory that `path` is in, and its name there.
    fn place(&self, path: &str) -> Option<Place> {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        Some((self.find(dir)?, name.to_owned()))
    }

    fn file(&mut self, path: &str) -> Option<&mut File> {
        let node = self.find(path)?;
        match &mut self.nodes[node] {
            Node::File(file) => Some(file),
            Node::Dir { .. } => None,
        }
    }

    fn change(&mut self, names: Vec<(Option<Place>, Option<usize>)>) {
        let known = names.into_iter().filter_map(|(place, node)| place.map(|(dir, name)| (dir, name, node)));
        let names: Vec<_> = known.collect();
        for (dir, name, node) in &names {
            let Node::Dir { now, .. } = &mut self.nodes[*dir] else { panic!("{name} is in no directory") };
            match node {
                Some(node) => now.insert(name.clone(), *node),
                None => now.remove(name),
            };
        }
        self.changes.push(Change { names, flushed: false });
    }

    /// Take the next step.
    pub fn take(&mut self, step: &Step) {
        match step {
            Step::Open { path, create, cut, append } => {
                if *create && self.find(path).is_none() {
                    let node = self.add(Node::File(File::default()));
                    self.change(vec![(self.place(path), Some(node))]);
                }
                if let Some(file) = self.file(path) {
                    (file.position, file.append) = (0, *append);
                    if *cut {
                        file.now = Rc::default();
                    }
                }
            }
            Step::Seek { path, to } => {
                if let Some(file) = self.file(path) {
                    file.position = *to;
                }
            }
            Step::Write { path, at, bytes } => {
                if let Some(file) = self.file(path) {
                    file.write(*at, bytes);
                }
            }
            Step::Copy { from, to, count } => {
                let bytes = self.file(from).map(|file| {
                    let start = file.position;
                    file.position += count;
                    file.now[start..start + count].to_vec()
                });
                if let (Some(bytes), Some(file)) = (bytes, self.file(to)) {
                    file.write(None, &bytes);
                }
            }
            Step::Resize { path, to } => {
                if let Some(file) = self.file(path) {
                    Rc::make_mut(&mut file.now).resize(*to, 0);
                }
            }
            Step::Grow { path, to } => {
                if let Some(file) = self.file(path).filter(|file| file.now.len() < *to) {
                    Rc::make_mut(&mut file.now).resize(*to, 0);
                }
            }
            Step::MakeDir { path } => {
                let node = self.add_dir();
                self.change(vec![(self.place(path), Some(node))]);
            }
            Step::Remove { path } => self.change(vec![(self.place(path), None)]),
            Step::Rename { from, to } => {
                let node = self.find(from);
                self.change(vec![(self.place(from), None), (self.place(to), node)]);
            }
            Step::Exchange { one, other } => {
                let (first, second) = (self.find(one), self.find(other));
                self.change(vec![(self.place(one), second), (self.place(other), first)]);
            }
            Step::Link { from, to } => self.change(vec![(self.place(to), self.find(from))]),
            Step::Flushing { path } => {
                let covered = self.covered(path.as_deref());
                self.flushing.insert(self.steps, covered);
            }
            Step::Flushed { begun } => self.flushed(*begun),
            Step::Acknowledge => self.acknowledged = true,
        }
        self.steps += 1;
    }

    fn covered(&self, path: Option<&str>) -> Covered {
        let changes = self.changes.len();
        let content = |node: usize| match &self.nodes[node] {
            Node::File(file) => Some((node, file.now.clone())),
            Node::Dir { .. } => None,
        };
        let Some(path) = path else {
            return Covered { contents: (0..self.nodes.len()).filter_map(content).collect(), dirs: None, changes };
        };
        let node = self.find(path);
        let dirs = Some(node.into_iter().collect());
        Covered { contents: node.and_then(content).into_iter().collect(), dirs, changes }
    }

    fn flushed(&mut self, begun: usize) {
        let Some(covered) = self.flushing.remove(&begun) else { return };
        for (node, content) in covered.contents {
            if let Node::File(file) = &mut self.nodes[node] {
                file.flushed = content;
            }
        }
        for change in &mut self.changes[..covered.changes] {
            // A rename is one step, also between two directories: it is there for good once its new name is.
            let last = change.names.last().map(|name| name.0);
            change.flushed |= covered.dirs.as_ref().is_none_or(|dirs| last.is_some_and(|dir| dirs.contains(&dir)));
        }
    }

    /// Whether the command has told its caller that it is done.
    pub fn is_acknowledged(&self) -> bool {
        self.acknowledged
    }

    /// The files as their users see them.
    pub fn tree(&self) -> Tree {
        self.seen(|_| true, Unflushed::Written)
    }

    /// What a power cut at this moment may leave, the worst first: all that was not flushed is lost; or some of the
    /// names that were not flushed are there, in an order of the disk's own, with all, none or zeros of the bytes that
    /// were not.
    pub fn after_power_cut(&self) -> impl Iterator<Item = Tree> + '_ {
        let loose: Vec<usize> = (0..self.changes.len()).filter(|&at| !self.changes[at].flushed).collect();
        let mut kept: Vec<Vec<usize>> = vec![Vec::new(), loose.clone()];
        for &one in &loose {
            kept.push(vec![one]);
            kept.push(loose.iter().copied().filter(|&at| at != one).collect());
            kept.push(loose.iter().copied().filter(|&at| at <= one).collect());
        }
        kept.sort();
        kept.dedup();
        let fates = [Unflushed::Lost, Unflushed::Zero, Unflushed::Written];
        kept.into_iter().flat_map(move |kept| {
            let mut there: Vec<bool> = self.changes.iter().map(|change| change.flushed).collect();
            kept.into_iter().for_each(|at| there[at] = true);
            fates.map(|fate| self.seen(|at| there[at], fate))
        })
    }

    fn seen(&self, is_there: impl Fn(usize) -> bool, fate: Unflushed) -> Tree {
        let mut names: BTreeMap<usize, BTreeMap<String, usize>> = BTreeMap::new();
        for (node, it) in self.nodes.iter().enumerate() {
            if let Node::Dir { first, .. } = it {
                names.insert(node, first.clone());
            }
        }
        for (_, change) in self.changes.iter().enumerate().filter(|(at, _)| is_there(*at)) {
            for (dir, name, node) in &change.names {
                let dir = names.entry(*dir).or_default();
                match node {
                    Some(node) => dir.insert(name.clone(), *node),
                    None => dir.remove(name),
                };
            }
        }
        let (mut tree, mut ways) = (Tree::new(), vec![(0, String::new())]);
        while let Some((dir, way)) = ways.pop() {
            for (name, &node) in &names[&dir] {
                let path = if way.is_empty() { name.clone() } else { format!("{way}/{name}") };
                match &self.nodes[node] {
                    Node::File(file) => drop(tree.insert(path, Some(file.content(fate)))),
                    Node::Dir { .. } => {
                        tree.insert(path.clone(), None);
                        ways.push((node, path));
                    }
                }
            }
        }
        tree
    }
}

impl File {
    fn write(&mut self, at: Option<usize>, bytes: &[u8]) {
        let start = at.unwrap_or(if self.append { self.now.len() } else { self.position });
        let (end, now) = (start + bytes.len(), Rc::make_mut(&mut self.now));
        if now.len() < end {
            now.resize(end, 0);
        }
        now[start..end].copy_from_slice(bytes);
        if at.is_none() {
            self.position = end;
        }
    }

    fn content(&self, fate: Unflushed) -> Rc<Vec<u8>> {
        match fate {
            _ if self.now == self.flushed => self.now.clone(),
            Unflushed::Written => self.now.clone(),
            Unflushed::Lost => self.flushed.clone(),
            Unflushed::Zero => {
                let mut bytes = (*self.flushed).clone();
                bytes.resize(self.now.len(), 0);
                Rc::new(bytes)
            }
        }
    }
}

/// The files below `dir`.
pub fn read_tree(dir: &Path) -> Tree {
    fn read(dir: &Path, way: &str, tree: &mut Tree) {
        for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
            let path = format!("{way}{}", entry.file_name().to_str().unwrap());
            if entry.file_type().unwrap().is_dir() {
                tree.insert(path.clone(), None);
                read(&entry.path(), &format!("{path}/"), tree);
            } else {
                tree.insert(path, Some(Rc::new(std::fs::read(entry.path()).unwrap())));
            }
        }
    }
    let mut tree = Tree::new();
    read(dir, "", &mut tree);
    tree
}
