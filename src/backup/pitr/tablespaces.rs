//! Tablespaces: directories of a cluster's outside of its data directory.
//!
//! A base backup does not hold them. And a recovery that replays CREATE TABLESPACE uses the very directory that the record
//! names, which is the old cluster's: so it is refused before it begins, and prevented where that was mistaken.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use anyhow::Context;
use nix::fcntl::OFlag;

use super::archive::{Archive, list};
use super::bases::Base;
use super::records::{PAGE, Record, RecordReader};
use super::target::Target;
use super::timeline::Lineage;
use super::wal::{Lsn, Segment, WalFile};
use crate::durable::open_itself;
use crate::exit::{Code, Failure};

/// Where the links to tablespaces are, in a data directory.
const LINKS: &str = "pg_tblspc";
/// What a server says that was prevented from making one (PostgreSQL's src/backend/commands/tablespace.c).
pub const PREVENTED: &str = "could not create symbolic link \"pg_tblspc/";

/// The directories of the tablespaces of the cluster in `data`.
///
/// # Errors
/// Its links cannot be read.
pub fn of(data: &Path) -> anyhow::Result<Vec<PathBuf>> {
    // One that lies in the data directory is no link.
    Ok(list(&data.join(LINKS))?.iter().filter_map(|link| fs::read_link(link).ok()).collect())
}

/// Why there is no base backup of a cluster with these tablespaces; `None` where there are none.
pub fn refusal(places: &[PathBuf]) -> Option<Failure> {
    let named: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
    let message = format!(
        "the cluster has tablespaces ({}), which base backups do not hold: there is no recovery to a moment as long as there \
         are any. Move what is in them (ALTER TABLE … SET TABLESPACE pg_default, ALTER DATABASE … SET TABLESPACE pg_default) and \
         drop them; until then `tandem backup` keeps everything, as dumps",
        named.join(", ")
    );
    (!places.is_empty()).then(|| Failure::new(Code::Config, message))
}

/// Refuse a recovery from `base` to `target` that would make a tablespace.
///
/// # Errors
/// It would; or the WAL cannot be read.
pub fn check(
    archive: &Archive,
    pg_wal: &Path,
    (base, lineage, target): (&Base, &Lineage, Target),
) -> anyhow::Result<()> {
    let mut reader = RecordReader::default();
    let (mut next, mut before) = (base.start_segment(), base.start_lsn);
    while let Some(bytes) = segment(archive, pg_wal, lineage, next, base.segment_size)? {
        let addresses = (next.start(base.segment_size).0..).step_by(PAGE);
        for (page, address) in bytes.chunks_exact(PAGE).zip(addresses) {
            let Some(records) = reader.page(page, Lsn(address)) else { break };
            for (at, record) in records.into_iter().filter(|(at, _)| *at >= base.start_lsn) {
                match record {
                    Some(Record::Ended(time)) if is_behind(time, target) => return Ok(()),
                    Some(Record::Tablespace(place)) if !place.is_empty() => return Err(makes(&place, before, target)),
                    _ => {}
                }
                before = at;
                if matches!(target, Target::Lsn(last) | Target::Before(last) if at >= last) {
                    return Ok(());
                }
            }
        }
        next = next.next(base.segment_size);
    }
    Ok(())
}

/// The content of the segment that recovery reads at this place, if there is one.
fn segment(
    archive: &Archive,
    pg_wal: &Path,
    lineage: &Lineage,
    place: Segment,
    size: u64,
) -> anyhow::Result<Option<Vec<u8>>> {
    for timeline in lineage.at(place, size) {
        let segment = Segment { timeline, ..place };
        for name in [WalFile::Segment(segment), WalFile::Partial(segment)] {
            if let Some(bytes) = archive.read(name)? {
                return Ok(Some(bytes));
            }
        }
        let path = pg_wal.join(segment.to_string());
        match fs::read(&path) {
            Ok(bytes) => return Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        }
    }
    Ok(None)
}

/// Whether a recovery to `target` ends before a transaction that ended then, in microseconds since 1970.
fn is_behind(ended: i64, target: Target) -> bool {
    let Target::Time(time) = target else { return false };
    let wanted = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros());
    i64::try_from(wanted).is_ok_and(|wanted| ended > wanted)
}

/// `before` is the position of the record before the one that makes it.
fn makes(place: &str, before: Lsn, target: Target) -> anyhow::Error {
    let text = format!(
        "a recovery to {target} would make the tablespace in {place} again, in that very directory, which is not its own: it \
         may hold the present data. Nothing was changed. `tandem restore --to-lsn {before}` restores what was there before \
         CREATE TABLESPACE; a dump (`tandem backup list`) holds what came after"
    );
    Failure::new(Code::Failed, text).into()
}

/// Let no recovery in `data` make a tablespace, whatever its WAL says.
///
/// # Errors
/// The directory of links cannot be closed.
pub fn prevent(data: &Path) -> anyhow::Result<()> {
    set_mode(data, 0o500)
}

/// Let the server make tablespaces again.
///
/// # Errors
/// The directory of links cannot be opened.
pub fn allow(data: &Path) -> anyhow::Result<()> {
    set_mode(data, 0o700)
}

fn set_mode(data: &Path, mode: u32) -> anyhow::Result<()> {
    let links = data.join(LINKS);
    // Itself: the server's user owns the directory around it, and could put a link in its place.
    let itself = open_itself(&links, OFlag::O_DIRECTORY);
    itself
        .and_then(|itself| itself.set_permissions(Permissions::from_mode(mode)))
        .with_context(|| format!("change {}", links.display()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn links_are_tablespaces_and_their_places_are_named() {
        let temp = tempfile::tempdir().unwrap();
        assert_eq!(of(temp.path()).unwrap(), [] as [PathBuf; 0]);
        fs::create_dir_all(temp.path().join("pg_tblspc/16385")).unwrap();
        std::os::unix::fs::symlink("/mnt/fast", temp.path().join("pg_tblspc/16386")).unwrap();
        assert_eq!(of(temp.path()).unwrap(), [PathBuf::from("/mnt/fast")]);
        assert!(refusal(&[]).is_none() && refusal(&["/mnt/fast".into()]).unwrap().to_string().contains("/mnt/fast"));
    }

    #[test]
    fn a_recovery_ends_before_the_first_transaction_behind_its_moment() {
        let target = Target::Time(UNIX_EPOCH + Duration::from_micros(1_000_001));
        assert_eq!([1_000_000, 1_000_001, 1_000_002].map(|ended| is_behind(ended, target)), [false, false, true]);
        assert!(!is_behind(i64::MAX, Target::End) && !is_behind(i64::MAX, Target::Lsn(Lsn(0))));
    }
}
