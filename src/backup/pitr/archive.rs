//! The archive's directory: a file is under its final name whole and durable, or it is not there.
//!
//! ```text
//! <dir>/system_identifier                      whose WAL it is
//! <dir>/wal/0000000100000000/<segment>.zst     the first 16 digits are timeline and log: at most 256 segments of 16 MB
//! <dir>/wal/00000002.history.zst
//! <dir>/base/base_20260102_150405/             base backups: `base`
//! <dir>/gaps/<segment>                         where the chain was given up
//! ```
//!
//! Files are zstd frames with their length and checksum in them. Must not know who calls, or what for.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, bail};
use nix::fcntl::OFlag;
use zstd::zstd_safe::CParameter;

use super::compare::{Damaged, same};
use super::header::Header;
use super::wal::WalFile;
use crate::durable::{self, WriteOptions, open_itself, sync_dir};
use crate::telemetry::say_aside;

/// zstd's level: the fastest that is not worse than gzip, 28 ms for 16 MB.
const LEVEL: i32 = 1;
/// What each of several threads compresses at once, in bytes.
const JOB_SIZE: u32 = 1 << 20;
/// How much is read and compressed at once, in bytes.
const CHUNK: usize = 256 * 1024;
/// What files that are not finished end with.
const UNFINISHED: &str = ".unfinished";

/// An archive of one cluster's WAL.
#[derive(Clone, Debug)]
pub struct Archive {
    dir: PathBuf,
    /// A folder whose own name is durable.
    settled: Option<PathBuf>,
}

/// What became of a file that was to be archived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    Stored,
    /// With the same content.
    AlreadyThere,
}

/// A compressed and flushed copy that has no final name yet. Dropped, it is removed.
#[derive(Debug)]
pub struct Staged {
    name: WalFile,
    source: PathBuf,
    /// What the source was when it was opened.
    pub meta: Metadata,
    temporary: Temporary,
}

#[derive(Debug)]
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

impl Archive {
    /// The archive in `dir`, which [`Archive::prepare`] has made.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), settled: None }
    }

    /// The same archive, of which PostgreSQL was told that it has `name`: if that is so, the folder in which it lies was
    /// flushed with all that leads to it.
    #[must_use]
    pub fn knowing(mut self, name: Option<WalFile>) -> Self {
        self.settled = name.filter(|name| self.has(*name)).map(|name| self.folder(name));
        self
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where base backups are.
    pub fn bases(&self) -> PathBuf {
        self.dir.join("base")
    }

    /// Where `name` is, or will be.
    pub fn path(&self, name: WalFile) -> PathBuf {
        self.folder(name).join(format!("{name}.zst"))
    }

    fn wal(&self) -> PathBuf {
        self.dir.join("wal")
    }

    fn folder(&self, name: WalFile) -> PathBuf {
        match name.segment() {
            Some(segment) => self.wal().join(format!("{:08X}{:08X}", segment.timeline, segment.log)),
            None => self.wal(),
        }
    }

    /// Make the directories, for the user `owner` where that is another; sweep away what was cut short; note whose it is.
    ///
    /// # Errors
    /// A directory cannot be made, or the archive belongs to another cluster.
    pub fn prepare(&self, system: u64, owner: Option<(u32, u32)>) -> anyhow::Result<()> {
        if !self.dir.exists() {
            let missing: Vec<&Path> = self.dir.ancestors().take_while(|dir| !dir.exists()).collect();
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&self.dir)
                .with_context(|| self.cannot_make(&self.dir))?;
            if let Some((uid, gid)) = owner {
                // Itself: another user may own the directory that it is in, and put a link in its place meanwhile.
                let made = open_itself(&self.dir, OFlag::O_DIRECTORY);
                made.and_then(|made| fchown(made, Some(uid), Some(gid)))
                    .with_context(|| self.cannot_make(&self.dir))?;
            }
            missing.into_iter().try_for_each(durable::sync_parent).with_context(|| self.cannot_make(&self.dir))?;
        }
        for dir in [self.wal(), self.bases()] {
            self.make_dir(&dir).with_context(|| self.cannot_make(&dir))?;
        }
        match self.system_identifier()? {
            None => self.write_small(&self.dir.join("system_identifier"), &system.to_string()),
            Some(present) if present == system => Ok(()),
            Some(present) => bail!(
                "{} holds the WAL of another cluster ({present}, and this one is {system}): move it away, or set \
                 backup.pitr.dir to another directory",
                self.dir.display()
            ),
        }?;
        self.sweep();
        Ok(())
    }

    pub(super) fn cannot_make(&self, dir: &Path) -> String {
        format!("make the archive's directory {}", dir.display())
    }

    /// Whose WAL it is, once it was prepared.
    ///
    /// # Errors
    /// The note of it cannot be read.
    pub fn system_identifier(&self) -> anyhow::Result<Option<u64>> {
        let path = self.dir.join("system_identifier");
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text.trim().parse().with_context(|| format!("read {}", path.display()))?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
        }
    }

    /// Remove what killed pushes have left.
    fn sweep(&self) {
        let folders = entries(&self.wal()).into_iter().filter(|path| path.is_dir());
        for path in folders.chain([self.wal()]).flat_map(|folder| entries(&folder)) {
            if path.to_string_lossy().ends_with(UNFINISHED) {
                let _ = fs::remove_file(path);
            }
        }
    }

    /// Compress `source` into the archive on so many `threads` and flush it, under a name of its own still.
    ///
    /// # Errors
    /// `source` is no WAL, or not this cluster's; the archive cannot be written.
    pub fn stage(&self, source: &Path, threads: u32) -> anyhow::Result<Staged> {
        static STAGED: AtomicU32 = AtomicU32::new(0);
        let name = name_of(source)?;
        let mut file = File::open(source).with_context(|| format!("read {}", source.display()))?;
        let meta = file.metadata().with_context(|| format!("read {}", source.display()))?;
        let length = meta.len();
        let folder = self.folder(name);
        let writing = || format!("write into the archive {}", folder.display());
        self.make_dir(&folder).with_context(writing)?;
        let (own, number) = (std::process::id(), STAGED.fetch_add(1, Ordering::Relaxed));
        let temporary = folder.join(format!(".{name}.{own}.{number}{UNFINISHED}"));
        let output =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary).with_context(writing)?;
        let temporary = Temporary(temporary);
        self.give_away(&output).with_context(writing)?;
        let mut encoder = zstd::Encoder::new(output, LEVEL).with_context(writing)?;
        encoder.include_checksum(true).with_context(writing)?;
        encoder.include_contentsize(true).with_context(writing)?;
        encoder.set_pledged_src_size(Some(length)).with_context(writing)?;
        if threads > 1 && length > u64::from(JOB_SIZE) {
            encoder.multithread(threads).with_context(writing)?;
            encoder.set_parameter(CParameter::JobSize(JOB_SIZE)).with_context(writing)?;
        }
        let mut chunk = vec![0; CHUNK];
        let mut done: u64 = 0;
        loop {
            let count = file.read(&mut chunk).with_context(|| format!("read {}", source.display()))?;
            if count == 0 {
                break;
            }
            if done == 0 {
                self.check_owner(name, &chunk[..count])?;
            }
            encoder.write_all(&chunk[..count]).with_context(writing)?;
            done += count as u64;
        }
        if done != length {
            bail!("{} had {length} bytes and then {done}", source.display());
        }
        encoder.finish().and_then(|file| file.sync_all()).with_context(writing)?;
        Ok(Staged { name, source: source.to_owned(), meta, temporary })
    }

    /// Give what was staged its final name, never in another's place. It is durable after [`Archive::settle`].
    ///
    /// # Errors
    /// Another content is archived under that name; the archive cannot be written.
    pub fn place(&self, staged: Staged) -> anyhow::Result<Pushed> {
        let place = self.path(staged.name);
        let writing = || format!("write {}", place.display());
        match durable::rename_new(&staged.temporary.0, &place) {
            Ok(()) => Ok(Pushed::Stored),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => self.meet(&staged, &place),
            Err(error) => Err(error).with_context(writing),
        }
    }

    /// Make the names of files durable, also of those that were there: whoever put them there may have been killed before this.
    ///
    /// # Errors
    /// A directory cannot be flushed.
    pub fn settle(&self, names: &[WalFile]) -> anyhow::Result<()> {
        let folders: BTreeSet<PathBuf> = names.iter().map(|name| self.folder(*name)).collect();
        folders.iter().try_for_each(|folder| {
            sync_dir(folder).with_context(|| format!("flush {}", folder.display()))?;
            if *folder == self.wal() || self.settled.as_ref() == Some(folder) {
                return Ok(());
            }
            sync_dir(&self.wal()).with_context(|| format!("flush {}", self.wal().display()))
        })
    }

    /// There is a file of that name already.
    fn meet(&self, staged: &Staged, place: &Path) -> anyhow::Result<Pushed> {
        match same(place, &staged.source) {
            Ok(true) => Ok(Pushed::AlreadyThere),
            Ok(false) => bail!(
                "{} is in the archive with another content: do two clusters write to {}?",
                staged.name,
                self.dir.display()
            ),
            Err(Damaged(error)) => {
                // What PostgreSQL still has is what was meant.
                say_aside(&format!("tandem wal: {} is damaged ({error}) and written anew", place.display()));
                durable::rename(&staged.temporary.0, place).with_context(|| format!("write {}", place.display()))?;
                Ok(Pushed::Stored)
            }
        }
    }

    /// Archive `source`, compressed on so many `threads`. The same content again is no error: PostgreSQL asks again after a
    /// crash.
    ///
    /// # Errors
    /// As [`Archive::stage`], [`Archive::place`] and [`Archive::settle`].
    pub fn push(&self, source: &Path, threads: u32) -> anyhow::Result<Pushed> {
        let name = name_of(source)?;
        let place = self.path(name);
        let pushed = match place.exists() && matches!(same(&place, source), Ok(true)) {
            true => Pushed::AlreadyThere,
            false => self.place(self.stage(source, threads)?)?,
        };
        self.settle(&[name])?;
        Ok(pushed)
    }

    /// Bring `name` back to `to`; `false` when it is not in the archive. Of the segment in which a timeline was left there
    /// is only a part, which serves who follows that timeline to its end.
    ///
    /// # Errors
    /// It is damaged, or `to` cannot be written.
    pub fn fetch(&self, name: WalFile, to: &Path) -> anyhow::Result<bool> {
        let place = match name {
            WalFile::Segment(segment) if !self.has(name) && self.has(WalFile::Partial(segment)) => {
                self.path(WalFile::Partial(segment))
            }
            _ => self.path(name),
        };
        let file = match File::open(&place) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.wal().is_dir() => return Ok(false),
            Err(error) => return Err(error).with_context(|| format!("read {}", place.display())),
        };
        let mut temporary = to.as_os_str().to_owned();
        temporary.push(format!(".{}{UNFINISHED}", std::process::id()));
        let temporary = Temporary(temporary.into());
        let writing = || format!("write {}", to.display());
        let mut output =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary.0).with_context(writing)?;
        let mut decoder = zstd::Decoder::new(file).with_context(|| format!("read {}", place.display()))?;
        let mut chunk = vec![0; CHUNK];
        loop {
            let count = decoder.read(&mut chunk).with_context(|| format!("{} is damaged", place.display()))?;
            if count == 0 {
                break;
            }
            output.write_all(&chunk[..count]).with_context(writing)?;
        }
        durable::rename(&temporary.0, to).with_context(writing)?;
        Ok(true)
    }

    /// Whether `name` is archived.
    pub fn has(&self, name: WalFile) -> bool {
        self.path(name).exists()
    }

    /// The content of a small file such as a timeline's history; `None` when it is not in the archive.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(&self, name: WalFile) -> anyhow::Result<Option<Vec<u8>>> {
        let place = self.path(name);
        let file = match File::open(&place) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("read {}", place.display())),
        };
        zstd::decode_all(file).map(Some).with_context(|| format!("{} is damaged", place.display()))
    }

    /// All that is archived; nothing where there is no archive.
    ///
    /// # Errors
    /// A directory cannot be read: what is in it is not known then.
    pub fn names(&self) -> anyhow::Result<Vec<WalFile>> {
        let wal = list(&self.wal())?;
        let mut files = Vec::new();
        for path in wal {
            if path.is_dir() { files.extend(list(&path)?) } else { files.push(path) }
        }
        let names = files.iter().filter_map(|path| path.file_name()?.to_str()?.strip_suffix(".zst")?.parse().ok());
        Ok(names.collect())
    }

    /// Remove `names`, and the folders that they leave empty.
    ///
    /// # Errors
    /// One cannot be removed.
    pub fn remove(&self, names: &[WalFile]) -> anyhow::Result<()> {
        for &name in names {
            let path = self.path(name);
            fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
        }
        for &name in names.iter().filter(|name| name.segment().is_some()) {
            // Refused while there is anything in it.
            let _ = fs::remove_dir(self.folder(name));
        }
        Ok(())
    }

    /// Make a directory inside the archive, for the archive's owner.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn make_dir(&self, dir: &Path) -> io::Result<()> {
        match DirBuilder::new().mode(0o700).create(dir) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
            Err(error) => return Err(error),
        }
        self.give_away(&open_itself(dir, OFlag::O_DIRECTORY)?)?;
        dir.parent().map_or(Ok(()), sync_dir)
    }

    /// Let the archive's owner have what root has made in it: the server writes there, as a user of its own.
    ///
    /// # Errors
    /// The owner cannot be changed.
    pub fn give_away(&self, file: &File) -> io::Result<()> {
        let (here, wanted) = (file.metadata()?, self.dir.metadata()?);
        if here.uid() != wanted.uid() && nix::unistd::Uid::effective().is_root() {
            fchown(file, Some(wanted.uid()), Some(wanted.gid()))?;
        }
        Ok(())
    }

    /// Write a file of a few bytes, whole or not at all.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write_small(&self, path: &Path, text: &str) -> anyhow::Result<()> {
        let write = || -> io::Result<()> {
            let dir = self.dir.metadata()?;
            let root = nix::unistd::Uid::effective().is_root();
            let owner = root.then(|| (dir.uid(), dir.gid()));
            durable::replace(path, text.as_bytes(), &WriteOptions { owner, ..WriteOptions::default() })
        };
        write().with_context(|| format!("write {}", path.display()))
    }

    /// Refuse a segment of another cluster, or under a wrong name.
    fn check_owner(&self, name: WalFile, first: &[u8]) -> anyhow::Result<()> {
        let (WalFile::Segment(segment) | WalFile::Partial(segment)) = name else { return Ok(()) };
        let Some(header) = Header::read(first) else { bail!("{name} does not begin as a WAL segment does") };
        if segment.start(header.segment_size).0 != header.address {
            bail!("{name} holds the WAL of another place");
        }
        match self.system_identifier()? {
            Some(system) if system != header.system => bail!(
                "{name} belongs to another cluster ({}) than the archive {} ({system})",
                header.system,
                self.dir.display()
            ),
            _ => Ok(()),
        }
    }
}

fn name_of(source: &Path) -> anyhow::Result<WalFile> {
    Ok(source.file_name().unwrap_or_default().to_string_lossy().parse::<WalFile>()?)
}

/// What is in `dir`; nothing where there is none.
pub(super) fn list(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let read = || fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>();
    match read() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        listed => listed.with_context(|| format!("read {}", dir.display())),
    }
}

/// As much of `dir` as can be read.
pub(super) fn entries(dir: &Path) -> Vec<PathBuf> {
    list(dir).unwrap_or_default()
}

#[cfg(test)]
#[path = "archive_tests.rs"]
pub(super) mod tests;
