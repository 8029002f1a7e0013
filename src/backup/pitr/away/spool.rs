//! What there is to send: the archive of this machine, in the order in which it is of use.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::super::archive::{Archive, list};
use super::super::bases::{self, Base};
use super::super::wal::WalFile;
use super::ledger::Ledger;
use super::names::Held;

/// A directory that changed less than so long ago may change again within the same tick of its clock.
const TICK: Duration = Duration::from_secs(2);

/// The archive, as it was last seen. A directory that did not change since is not read again.
#[derive(Debug, Default)]
pub struct Spool(BTreeMap<PathBuf, (SystemTime, Vec<WalFile>)>);

/// What a destination lacks of WAL, and of small notes with the files that they are in.
#[derive(Debug, Default)]
pub struct Missing {
    /// Histories first: without them nothing else is found. Then segments by their place.
    pub wal: Vec<WalFile>,
    pub notes: Vec<(Held, PathBuf)>,
}

/// The base backups that the destination of `ledger` lacks, the oldest first.
///
/// # Errors
/// The directory cannot be read.
pub fn missing_bases(archive: &Archive, ledger: &Ledger) -> anyhow::Result<Vec<Base>> {
    let mut bases = bases::bases(archive)?;
    bases.retain(|base| ledger.lacks_base(base));
    Ok(bases)
}

/// Bytes of what is missing, and since when the oldest of it is there.
pub fn weigh(archive: &Archive, missing: &Missing, bases: &[Base]) -> (u64, Option<SystemTime>) {
    let wal = missing.wal.iter().map(|name| archive.path(*name));
    let bases = bases.iter().map(|base| base.dir(archive).join(bases::DATA));
    let files = wal.chain(bases).chain(missing.notes.iter().map(|(_, path)| path.clone()));
    let metas: Vec<_> = files.filter_map(|path| path.metadata().ok()).collect();
    (metas.iter().map(|meta| meta.len()).sum(), metas.iter().filter_map(|meta| meta.modified().ok()).min())
}

impl Spool {
    /// All WAL that is archived, in the order in which it is sent.
    ///
    /// # Errors
    /// A directory cannot be read.
    pub fn wal(&mut self, archive: &Archive) -> anyhow::Result<Vec<WalFile>> {
        let top = archive.dir().join("wal");
        let dirs: Vec<PathBuf> = list(&top)?.into_iter().filter(|path| path.is_dir()).chain([top]).collect();
        self.0.retain(|dir, _| dirs.contains(dir));
        for dir in dirs {
            let changed = dir.metadata().and_then(|meta| meta.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
            let settled = changed.elapsed().is_ok_and(|since| since > TICK);
            if !(settled && self.0.get(&dir).is_some_and(|(seen, _)| *seen == changed)) {
                // Seen before its last change at the worst: then it is read again.
                let names = list(&dir)?.into_iter().filter_map(|path| name(&path)).collect();
                self.0.insert(dir, (changed, names));
            }
        }
        let mut all: Vec<WalFile> = self.0.values().flat_map(|(_, names)| names.iter().copied()).collect();
        all.sort_by_key(|name| (name.segment().is_some(), name.segment(), name.to_string()));
        Ok(all)
    }

    /// What the destination of `ledger` lacks.
    ///
    /// # Errors
    /// A directory cannot be read.
    pub fn missing(&mut self, archive: &Archive, ledger: &Ledger) -> anyhow::Result<Missing> {
        let mut wal = self.wal(archive)?;
        wal.retain(|name| ledger.lacks_wal(*name));
        let births = list(&archive.dir().join("timelines"))?.into_iter().filter_map(|path| {
            let timeline = u32::from_str_radix(path.file_stem()?.to_str()?, 16).ok()?;
            Some((Held::Birth(timeline), path))
        });
        let gaps = list(&archive.dir().join("gaps"))?.into_iter().filter_map(|path| {
            let WalFile::Segment(segment) = path.file_name()?.to_str()?.parse().ok()? else { return None };
            Some((Held::Gap(segment), path))
        });
        let notes = births.chain(gaps).filter(|(held, _)| !ledger.has(held)).collect();
        Ok(Missing { wal, notes })
    }
}

fn name(path: &Path) -> Option<WalFile> {
    path.file_name()?.to_str()?.strip_suffix(".zst")?.parse().ok()
}
