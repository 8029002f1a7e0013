//! That a file is in the archive whole or not at all, whoever was there before.

use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::backup::pitr::wal::SEGMENT_SIZE;

pub const SYSTEM: u64 = 7_000_000_000_000_000_001;

/// A segment as PostgreSQL writes one, filled with `fill`.
pub fn segment(dir: &Path, name: &str, fill: u8) -> PathBuf {
    let place = name.parse::<WalFile>().unwrap().segment().unwrap();
    let mut bytes = vec![fill; usize::try_from(SEGMENT_SIZE).unwrap()];
    bytes[2..4].copy_from_slice(&crate::backup::pitr::header::LONG.to_ne_bytes());
    bytes[8..16].copy_from_slice(&place.start(SEGMENT_SIZE).0.to_ne_bytes());
    bytes[24..32].copy_from_slice(&SYSTEM.to_ne_bytes());
    bytes[32..36].copy_from_slice(&u32::try_from(SEGMENT_SIZE).unwrap().to_ne_bytes());
    let path = dir.join(name);
    fs::write(&path, bytes).unwrap();
    path
}

fn place() -> (tempfile::TempDir, Archive) {
    let temp = tempfile::tempdir().unwrap();
    let archive = Archive::new(temp.path().join("pitr"));
    archive.prepare(SYSTEM, None).unwrap();
    (temp, archive)
}

const FIRST: &str = "000000010000000000000001";

#[test]
fn the_same_content_again_is_confirmed_and_another_refused() {
    let (temp, archive) = place();
    let source = segment(temp.path(), FIRST, 7);
    assert_eq!(archive.push(&source, 1).unwrap(), Pushed::Stored);
    assert_eq!(archive.push(&source, 1).unwrap(), Pushed::AlreadyThere);
    assert_eq!(archive.place(archive.stage(&source, 1).unwrap()).unwrap(), Pushed::AlreadyThere, "a race too");
    let stored = archive.path(FIRST.parse().unwrap());
    assert!(stored.ends_with(format!("wal/0000000100000000/{FIRST}.zst")));
    assert_eq!(stored.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let before = fs::read(&stored).unwrap();
    segment(temp.path(), FIRST, 8);
    let error = archive.push(&source, 1).unwrap_err();
    assert!(error.to_string().contains("another content"), "{error:#}");
    assert_eq!(fs::read(&stored).unwrap(), before, "what was archived stays");
    assert_eq!(entries(stored.parent().unwrap()), [stored], "nothing unfinished is left");
}

#[test]
fn what_comes_back_is_what_went_in_and_what_is_missing_is_said_to_be() {
    let (temp, archive) = place();
    let source = segment(temp.path(), FIRST, 9);
    archive.push(&source, 1).unwrap();
    let history = temp.path().join("00000002.history");
    fs::write(&history, "1\t0/5000000\tno recovery target specified\n").unwrap();
    archive.push(&history, 1).unwrap();
    let to = temp.path().join("RECOVERYXLOG");
    assert!(archive.fetch(FIRST.parse().unwrap(), &to).unwrap());
    assert!(fs::read(&to).unwrap() == fs::read(&source).unwrap());
    assert!(archive.fetch("00000002.history".parse().unwrap(), &to).unwrap());
    assert_eq!(fs::read(&to).unwrap(), fs::read(&history).unwrap());
    let partial = segment(temp.path(), "000000010000000000000002.partial", 3);
    archive.push(&partial, 1).unwrap();
    assert!(archive.fetch("000000010000000000000002".parse().unwrap(), &to).unwrap(), "a part is better than nothing");
    assert!(fs::read(&to).unwrap() == fs::read(&partial).unwrap());
    archive.remove(&["000000010000000000000002.partial".parse().unwrap()]).unwrap();
    assert!(!archive.fetch("00000003.history".parse().unwrap(), &to).unwrap());
    let mut names: Vec<_> = archive.names().unwrap().iter().map(WalFile::to_string).collect();
    names.sort();
    assert_eq!(names, [FIRST, "00000002.history"]);
    archive.remove(&[FIRST.parse().unwrap()]).unwrap();
    assert_eq!(entries(&archive.wal()), [archive.path("00000002.history".parse().unwrap())]);
    // An archive that is not mounted is another thing than a segment that is not there.
    assert!(Archive::new("/nonexistent").fetch(FIRST.parse().unwrap(), &to).is_err());
}

#[test]
fn a_damaged_file_is_neither_restored_nor_taken_for_the_same() {
    let (temp, archive) = place();
    let source = segment(temp.path(), FIRST, 9);
    archive.push(&source, 1).unwrap();
    let (name, stored) = (FIRST.parse().unwrap(), archive.path(FIRST.parse().unwrap()));
    let whole = fs::read(&stored).unwrap();
    let mut flipped = whole.clone();
    let last = flipped.len() - 1;
    flipped[last] ^= 1;
    // On several threads it is another frame of the same content.
    assert_eq!(archive.place(archive.stage(&source, 2).unwrap()).unwrap(), Pushed::AlreadyThere);
    for torn in [&whole[..whole.len() / 2], &[], &flipped[..]] {
        fs::write(&stored, torn).unwrap();
        let to = temp.path().join("RECOVERYXLOG");
        assert!(archive.fetch(name, &to).is_err());
        assert!(!to.exists(), "never a part of it");
        // PostgreSQL still has it, and asks again.
        assert_eq!(archive.push(&source, 1).unwrap(), Pushed::Stored);
        assert_eq!(fs::read(&stored).unwrap(), whole);
    }
}

#[test]
fn what_a_killed_push_left_is_no_part_of_the_archive_and_is_swept_away() {
    let (temp, archive) = place();
    let source = segment(temp.path(), FIRST, 1);
    let staged = archive.stage(&source, 1).unwrap();
    let left = staged.temporary.0.clone();
    // As kill -9 leaves it.
    std::mem::forget(staged);
    assert!(left.exists() && archive.names().unwrap().is_empty() && !archive.has(FIRST.parse().unwrap()));
    assert_eq!(archive.push(&source, 1).unwrap(), Pushed::Stored);
    archive.prepare(SYSTEM, None).unwrap();
    assert!(!left.exists());
    assert!(archive.has(FIRST.parse().unwrap()));
}

#[test]
fn wal_of_another_cluster_or_place_is_refused() {
    let (temp, archive) = place();
    let other = archive.prepare(SYSTEM + 1, None).unwrap_err();
    assert!(other.to_string().contains("another cluster"), "{other:#}");
    let source = segment(temp.path(), FIRST, 1);
    let moved = temp.path().join("000000010000000000000002");
    crate::durable::rename(&source, &moved).unwrap();
    assert!(archive.push(&moved, 1).unwrap_err().to_string().contains("another place"));
    fs::write(archive.dir().join("system_identifier"), "12").unwrap();
    let source = segment(temp.path(), FIRST, 1);
    assert!(archive.push(&source, 1).unwrap_err().to_string().contains("another cluster"));
    fs::write(&source, "no WAL").unwrap();
    assert!(archive.push(&source, 1).is_err());
    assert!(archive.push(&temp.path().join("notes.txt"), 1).is_err());
    assert!(archive.names().unwrap().is_empty());
}

#[test]
fn a_gap_is_noted_once_and_found_again() {
    let (_temp, archive) = place();
    let segment = FIRST.parse::<WalFile>().unwrap().segment().unwrap();
    archive.mark_gap(segment, "the disk was full").unwrap();
    archive.mark_gap(segment.next(SEGMENT_SIZE), "the disk was full").unwrap();
    assert_eq!(archive.gaps(), [(segment, "the disk was full".to_owned())]);
}
