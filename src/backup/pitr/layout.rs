//! Lay a base backup out as a data directory, checked against PostgreSQL's manifest.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, BufReader, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, fchown};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, bail};
use nix::fcntl::OFlag;

use super::archive::{Archive, list};
use super::bases::{self, Base};
use super::file_list::{self, FileManifest, Seen};
use super::header::Header;
use super::timeline::Lineage;
use super::wal::{Segment, WalFile};
use crate::durable::{open_itself, sync_file_system};
use crate::plan::Identity;

/// How much is read at once, in bytes.
const CHUNK: usize = 1 << 20;

/// Fill the directory `to` with `base`, for the user `owner` where that is another; durable when it returns.
///
/// # Errors
/// The backup is damaged or cannot be read, or the files cannot be written.
pub fn lay_out(archive: &Archive, base: &Base, to: &Path, owner: Option<&Identity>) -> anyhow::Result<()> {
    let path = base.dir(archive).join(bases::DATA);
    let reading = || format!("read {}", path.display());
    let decoder = zstd::Decoder::new(File::open(&path).with_context(reading)?).with_context(reading)?;
    let mut tar = tar::Archive::new(BufReader::with_capacity(CHUNK, decoder));
    let (mut seen, mut listed) = (Seen::new(base.checksums), Vec::new());
    for entry in tar.entries().with_context(reading)? {
        let mut entry = entry.with_context(reading)?;
        let inside = inside(&entry.path().with_context(reading)?)?;
        let place = to.join(&inside);
        let kind = entry.header().entry_type();
        if inside == Path::new(file_list::NAME) {
            entry.read_to_end(&mut listed).with_context(reading)?;
        } else if kind.is_dir() {
            make_dir(&place, owner).with_context(|| format!("make {}", place.display()))?;
        } else if kind.is_file() {
            if let Some(parent) = place.parent() {
                make_dir(parent, owner).with_context(|| format!("make {}", parent.display()))?;
            }
            let mut file = create(&place, owner).with_context(|| format!("write {}", place.display()))?;
            let copied = seen.copy(inside.as_os_str().as_bytes(), &mut entry, &mut file);
            copied.with_context(|| format!("write {}", place.display()))?;
        } else {
            bail!(
                "{} in the backup is neither a file nor a directory; tablespaces are not known here",
                inside.display()
            );
        }
    }
    // To the last byte, behind which is the checksum.
    io::copy(&mut tar.into_inner(), &mut io::sink()).with_context(reading)?;
    FileManifest::read(&listed)?.verify(&seen)?;
    sync_file_system(to).with_context(|| format!("flush {}", to.display()))
}

/// The path of an entry, which must stay inside of where it is unpacked.
fn inside(path: &Path) -> anyhow::Result<PathBuf> {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::CurDir => {}
            _ => bail!("{} in the backup leads out of it", path.display()),
        }
    }
    Ok(clean)
}

fn make_dir(dir: &Path, owner: Option<&Identity>) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    DirBuilder::new().mode(0o700).create(dir)?;
    // The directory that it is in may be the owner's by now, who could put a link in its place.
    owner.map_or(Ok(()), |owner| fchown(open_itself(dir, OFlag::O_DIRECTORY)?, Some(owner.uid), Some(owner.gid)))
}

/// A new file of the server's.
///
/// # Errors
/// It is there, or cannot be made.
pub fn create(path: &Path, owner: Option<&Identity>) -> io::Result<File> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    if let Some(owner) = owner {
        fchown(&file, Some(owner.uid), Some(owner.gid))?;
    }
    Ok(file)
}

/// What lies in `pg_wal` on the way of `lineage` and was never archived: the segment in which the server ended, and those
/// that still waited. Nothing where there is no such directory.
///
/// # Errors
/// It cannot be read.
pub fn unarchived(archive: &Archive, pg_wal: &Path, lineage: Option<&Lineage>) -> anyhow::Result<Vec<WalFile>> {
    let names = list(pg_wal)?.into_iter().filter_map(|path| path.file_name()?.to_str()?.parse::<WalFile>().ok());
    let wanted = |name: &WalFile| match name {
        WalFile::History(_) => true,
        WalFile::Segment(segment) => {
            let header = Header::of(&pg_wal.join(segment.to_string()));
            let size = header.map_or(super::wal::SEGMENT_SIZE, |header| header.segment_size);
            let on_the_way = lineage.is_none_or(|lineage| lineage.at(*segment, size).contains(&segment.timeline));
            on_the_way && header.is_some_and(|header| is_written(*segment, header))
        }
        WalFile::Partial(_) | WalFile::Backup(..) => false,
    };
    Ok(names.filter(|name| !archive.has(*name) && wanted(name)).collect())
}

/// A segment made ahead by renaming an old one begins with that one's header.
fn is_written(segment: Segment, header: Header) -> bool {
    segment.start(header.segment_size).0 == header.address
}

/// Copy these from one `pg_wal` to another.
///
/// # Errors
/// One cannot be read or written.
pub fn carry_over(names: &[WalFile], from: &Path, to: &Path, owner: Option<&Identity>) -> anyhow::Result<()> {
    for name in names {
        let (source, place) = (from.join(name.to_string()), to.join(name.to_string()));
        let copy = || io::copy(&mut File::open(&source)?, &mut create(&place, owner)?);
        copy().with_context(|| format!("copy {} to {}", source.display(), place.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    use super::super::archive::tests::{SYSTEM, segment};
    use super::*;
    use crate::process::identity;

    #[test]
    fn what_was_written_and_not_archived_is_carried_over() {
        let temp = tempfile::tempdir().unwrap();
        let (archive, pg_wal) = (Archive::new(temp.path().join("pitr")), temp.path().join("pg_wal"));
        archive.prepare(SYSTEM, None).unwrap();
        fs::create_dir(&pg_wal).unwrap();
        let names: Vec<String> = (1..=4).map(|number| format!("00000001000000000000000{number}")).collect();
        archive.push(&segment(&pg_wal, &names[0], 1), 1).unwrap();
        segment(&pg_wal, &names[1], 2);
        // Made ahead: an old segment under a new name, and an empty one.
        fs::copy(pg_wal.join(&names[0]), pg_wal.join(&names[2])).unwrap();
        fs::write(pg_wal.join(&names[3]), [0; 8192]).unwrap();
        fs::write(pg_wal.join("00000002.history"), "1\t0/3000000\tx\n").unwrap();
        let mut found: Vec<_> = unarchived(&archive, &pg_wal, None).unwrap().iter().map(WalFile::to_string).collect();
        found.sort();
        assert_eq!(found, [&names[1], "00000002.history"]);
        let lineage = Lineage::read(2, "1\t0/2000000\tx\n").unwrap();
        let found: Vec<_> =
            unarchived(&archive, &pg_wal, Some(&lineage)).unwrap().iter().map(WalFile::to_string).collect();
        assert_eq!(found, ["00000002.history"], "the segment is not on that way");
        let to = temp.path().join("new");
        fs::create_dir(&to).unwrap();
        carry_over(&[names[1].parse().unwrap()], &pg_wal, &to, None).unwrap();
        assert!(fs::read(to.join(&names[1])).unwrap() == fs::read(pg_wal.join(&names[1])).unwrap());
    }

    #[test]
    fn a_path_out_of_the_backup_is_refused() {
        assert_eq!(inside(Path::new("./base/1/2")).unwrap(), Path::new("base/1/2"));
        assert!(inside(Path::new("../x")).is_err() && inside(Path::new("/etc/passwd")).is_err());
    }
    #[test]
    fn a_link_in_the_place_of_a_directory_that_was_made_does_not_lead_to_another_owner() {
        let Some(owner) = identity::lookup("nobody").filter(|_| identity::is_root()) else {
            return crate::skip::skip("only root can give something away");
        };
        let temp = tempfile::tempdir().unwrap();
        let archive = Archive::new(temp.path().join("pitr"));
        archive.prepare(SYSTEM, Some((owner.uid, owner.gid))).unwrap();
        type Make<'a> = Box<dyn Fn(&Path) + 'a>;
        let made: [(PathBuf, Make<'_>); 2] = [
            (temp.path().join("base"), Box::new(|dir| drop(make_dir(dir, Some(&owner))))),
            (archive.dir().join("base_1"), Box::new(|dir| drop(archive.make_dir(dir)))),
        ];
        for (dir, make) in made {
            let (aside, victim) = (dir.with_extension("aside"), dir.with_extension("victim"));
            fs::create_dir(&victim).unwrap();
            let ended = std::sync::atomic::AtomicBool::new(false);
            std::thread::scope(|scope| {
                // What the owner of the directory around it can do at any moment.
                scope.spawn(|| {
                    while !ended.load(std::sync::atomic::Ordering::Relaxed) {
                        if crate::durable::rename(&dir, &aside).is_ok() {
                            let _ = std::os::unix::fs::symlink(&victim, &dir);
                            let _ = fs::remove_dir(&aside);
                        }
                    }
                });
                for _ in 0..10_000 {
                    make(&dir);
                    let _ = fs::remove_dir(&dir);
                    let _ = fs::remove_file(&dir);
                }
                ended.store(true, std::sync::atomic::Ordering::Relaxed);
            });
            assert_eq!(victim.metadata().unwrap().uid(), 0, "{}", dir.display());
        }
    }
}
