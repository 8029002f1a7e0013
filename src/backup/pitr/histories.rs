//! Timelines' histories in the archive: without that of its timeline, no recovery finds the way to a base backup.

use std::fs;
use std::path::Path;

use anyhow::bail;

use super::archive::{Archive, list};
use super::bases::Base;
use super::timeline::{LOST, Lineage};
use super::wal::WalFile;

/// Archive every history in `pg_wal`. PostgreSQL asks for each once, and keeps them all: this archive may have been out of
/// reach then, or be another one.
///
/// # Errors
/// One cannot be read or archived.
pub fn push(archive: &Archive, pg_wal: &Path) -> anyhow::Result<()> {
    for path in list(pg_wal)? {
        let name = path.file_name().and_then(|name| name.to_str()?.parse::<WalFile>().ok());
        // One that was lost is still to be found, maybe.
        let is_lost = || fs::read_to_string(&path).is_ok_and(|text| text == LOST);
        if name.is_some_and(|name| name.begun().is_some()) && !is_lost() {
            archive.push(&path, 1)?;
        }
    }
    Ok(())
}

/// The lineage of `timeline`, where the archive has its history.
///
/// # Errors
/// That cannot be read.
pub fn lineage(archive: &Archive, timeline: u32) -> anyhow::Result<Option<Lineage>> {
    let Some(history) = archive.read(WalFile::History(timeline))? else { return Ok(None) };
    Ok(Some(Lineage::read(timeline, &String::from_utf8_lossy(&history))?))
}

/// Check that the archive knows where the timeline of `base` comes from.
///
/// # Errors
/// It does not.
pub fn check(archive: &Archive, base: &Base) -> anyhow::Result<()> {
    let name = WalFile::History(base.stop_timeline);
    match lineage(archive, base.stop_timeline)? {
        None if base.stop_timeline == 1 => Ok(()),
        None => bail!("the archive lacks {name}, which the backup needs"),
        Some(lineage) if lineage.passes(base.timeline, base.start_lsn) => Ok(()),
        Some(_) => bail!("{name} in the archive is of another timeline than the backup's"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::archive::tests::SYSTEM;
    use super::super::bases::tests::base;
    use super::*;

    #[test]
    fn a_base_backup_is_checked_together_with_its_history() {
        let temp = tempfile::tempdir().unwrap();
        let (archive, pg_wal) = (Archive::new(temp.path().join("pitr")), temp.path().join("pg_wal"));
        archive.prepare(SYSTEM, None).unwrap();
        fs::create_dir(&pg_wal).unwrap();
        let (first, second) = (base(1, 0x200_0028, 0x200_0100, 1), base(2, 0x600_0028, 0x600_0100, 2));
        assert!(check(&archive, &first).is_ok(), "the first timeline has none");
        assert!(check(&archive, &second).unwrap_err().to_string().contains("lacks 00000002.history"));
        fs::write(pg_wal.join("00000002.history"), LOST).unwrap();
        push(&archive, &pg_wal).unwrap();
        assert!(check(&archive, &second).is_err(), "what stands in for a lost one is none");
        fs::write(pg_wal.join("00000002.history"), "1\t0/5000000\tx\n").unwrap();
        push(&archive, &pg_wal).unwrap();
        push(&archive, &pg_wal).unwrap();
        check(&archive, &second).unwrap();
        // A cluster that was moved to another's archive would have another history of that number.
        let crossing = Base { timeline: 1, start_lsn: super::super::wal::Lsn(0x600_0028), ..second };
        assert!(check(&archive, &crossing).unwrap_err().to_string().contains("another timeline"));
    }
}
