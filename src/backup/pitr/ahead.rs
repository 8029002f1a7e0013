//! What one archive_command does: archive the segment that PostgreSQL names, and where a queue has grown, those behind
//! it, two at a time.
//!
//! PostgreSQL asks for one segment at a time and waits for each flush. What was archived ahead is noted with what stat(2)
//! said of it, so that its own turn takes no more than a look. The note is written after the flush: what is killed in
//! between, nothing is confirmed that is not durable.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::Context;

use super::archive::{Archive, Staged};
use super::notes::{Ahead, Notes};
use super::wal::{Segment, WalFile};

/// So many that wait behind one are a queue: two flushes for both are fewer than two for each.
const QUEUE: usize = 1;
/// How many are archived at once at most: PostgreSQL hears of none of them before all are done.
const BATCH: usize = 8;
/// At once on so many threads; of a single one, so many compress it.
const THREADS: u32 = 2;
/// How far behind the backends' turns archiving waits for the processor, while fewer than `HURRY` wait.
const NICE: i32 = 10;
const HURRY: usize = 3;

/// Archive `source`, and what waits behind it.
///
/// # Errors
/// It is not in the archive, for the reason that is said; PostgreSQL asks again.
pub fn push(archive: &Archive, source: &Path) -> anyhow::Result<()> {
    push_until(archive, source, |_| Ok(()))
}

/// As [`push`], and then `acknowledge` what was archived: until that has succeeded, PostgreSQL keeps it.
///
/// # Errors
/// As [`push`], or what `acknowledge` says.
pub fn push_until(
    archive: &Archive,
    source: &Path,
    acknowledge: impl FnOnce(WalFile) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let notes = Notes::beside(source);
    let name: WalFile = source.file_name().unwrap_or_default().to_string_lossy().parse()?;
    if let Some(why) = notes.given_up() {
        let Some(segment) = name.segment() else {
            // Where a timeline began is never dropped: what comes after could not be found without it.
            return archive.push(source, 1).map(drop);
        };
        // The archive may well be why it was given up; then the next base backup notes it.
        let _ = archive.mark_gap(segment, &why);
        return Ok(());
    }
    let outcome = archive_with_queue(archive, &notes, name, source).and_then(|()| acknowledge(name));
    match &outcome {
        Ok(()) => notes.succeeded(&name.to_string()),
        Err(error) => notes.failed(&format!("{error:#}")),
    }
    outcome
}

fn archive_with_queue(archive: &Archive, notes: &Notes, name: WalFile, source: &Path) -> anyhow::Result<()> {
    let mut ahead = notes.ahead();
    let archive = &archive.clone().knowing(notes.last_archived().and_then(|(name, _)| name.parse().ok()));
    if let Some(note) = ahead.iter().find(|note| note.name == name.to_string())
        && is_confirmed(archive, note, name, source)
    {
        return Ok(());
    }
    let WalFile::Segment(own) = name else { return archive.push(source, 1).map(drop) };
    let waiting: Vec<Segment> = notes.ready().iter().filter_map(|name| segment(name)).collect();
    ahead.retain(|note| segment(&note.name).is_some_and(|segment| waiting.contains(&segment)));
    let noted = |segment: &Segment| ahead.iter().any(|note| note.name == segment.to_string());
    let behind: Vec<Segment> = waiting.iter().copied().filter(|next| *next > own && !noted(next)).collect();
    if behind.len() < HURRY {
        // Best effort: where it is not granted, archiving is as dear as any other work.
        let _ = rustix::process::nice(NICE);
    }
    if behind.len() < QUEUE {
        return archive.push(source, THREADS).map(drop);
    }
    let dir = source.parent().unwrap_or(Path::new("."));
    let sources = [source.to_owned()].into_iter().chain(behind.iter().map(|next| dir.join(next.to_string())));
    let mut staged = stage(archive, sources.take(BATCH).collect()).into_iter();
    let (_, first) = staged.next().context("nothing was staged")?;
    // Where the first does not get there, the others would not either.
    archive.place(first?)?;
    let mut placed = vec![name];
    for (source, next) in staged {
        let done = next.and_then(|next| {
            let meta = next.meta.clone();
            archive.place(next)?;
            Ok(meta)
        });
        let name = source.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match (done, name.parse::<WalFile>()) {
            (Ok(meta), Ok(place)) => {
                let size = fs::metadata(archive.path(place)).map(|meta| meta.len()).unwrap_or_default();
                ahead.push(Ahead::new(name, &meta, size));
                placed.push(place);
            }
            // It says why in its own turn.
            _ => break,
        }
    }
    // One flush for all of them, before the note that says that they are there.
    archive.settle(&placed)?;
    notes.set_ahead(&ahead);
    Ok(())
}

fn segment(name: &str) -> Option<Segment> {
    match name.parse() {
        Ok(WalFile::Segment(segment)) => Some(segment),
        _ => None,
    }
}

/// Whether `source` is the file that was archived ahead, and the archive still has it.
fn is_confirmed(archive: &Archive, note: &Ahead, name: WalFile, source: &Path) -> bool {
    let unchanged = fs::metadata(source).is_ok_and(|meta| note.is_of(&meta));
    unchanged && fs::metadata(archive.path(name)).is_ok_and(|meta| meta.len() == note.archived_size && meta.len() > 0)
}

/// Stage all `sources`, in their order.
fn stage(archive: &Archive, sources: Vec<PathBuf>) -> Vec<(PathBuf, anyhow::Result<Staged>)> {
    let mut results: Vec<Option<anyhow::Result<Staged>>> = sources.iter().map(|_| None).collect();
    let queue = Mutex::new(sources.iter().zip(results.iter_mut()));
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().ok().and_then(|mut queue| queue.next());
                    let Some((source, result)) = next else { return };
                    *result = Some(archive.stage(source, 1));
                }
            });
        }
    });
    let staged = results.into_iter().map(|result| result.unwrap_or_else(|| Err(anyhow::anyhow!("it was not staged"))));
    sources.into_iter().zip(staged).collect()
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::time::{Duration, SystemTime};

    use super::super::archive::tests::{SYSTEM, segment as write_segment};
    use super::*;

    struct Server {
        temp: tempfile::TempDir,
        archive: Archive,
    }

    /// A `pg_wal` with `count` segments that wait.
    fn server(count: u32) -> Server {
        let temp = tempfile::tempdir().unwrap();
        let archive = Archive::new(temp.path().join("pitr"));
        archive.prepare(SYSTEM, None).unwrap();
        fs::create_dir_all(temp.path().join("pg_wal/archive_status")).unwrap();
        let server = Server { temp, archive };
        for number in 1..=count {
            write_segment(&server.pg_wal(), &name(number), u8::try_from(number).unwrap());
            fs::write(server.ready(number), "").unwrap();
        }
        server
    }

    fn name(number: u32) -> String {
        Segment { timeline: 1, log: 0, number }.to_string()
    }

    impl Server {
        fn pg_wal(&self) -> PathBuf {
            self.temp.path().join("pg_wal")
        }

        fn ready(&self, number: u32) -> PathBuf {
            self.pg_wal().join(format!("archive_status/{}.ready", name(number)))
        }

        fn source(&self, number: u32) -> PathBuf {
            self.pg_wal().join(name(number))
        }

        fn push(&self, number: u32) -> anyhow::Result<()> {
            push(&self.archive, &self.source(number))?;
            let _ = fs::remove_file(self.ready(number));
            Ok(())
        }

        fn has(&self, number: u32) -> bool {
            self.archive.has(name(number).parse().unwrap())
        }
    }

    #[test]
    fn where_a_queue_has_grown_those_behind_are_archived_too_and_their_turn_is_a_look() {
        let server = server(12);
        server.push(1).unwrap();
        assert!((1..=8).all(|number| server.has(number)) && !server.has(9), "a batch and no more");
        let notes = Notes::new(server.pg_wal());
        assert_eq!(notes.ahead().len(), 7);
        // A look reads nothing of the file: it would be found damaged otherwise.
        let stored = server.archive.path(name(2).parse().unwrap());
        let size = stored.metadata().unwrap().len();
        fs::write(&stored, vec![0; usize::try_from(size).unwrap()]).unwrap();
        server.push(2).unwrap();
        assert_eq!(notes.last_archived().unwrap().0, name(2));
        for number in 3..=12 {
            server.push(number).unwrap();
        }
        assert!((3..=12).all(|number| server.has(number)));
    }

    #[test]
    fn a_note_of_a_file_that_changed_or_is_gone_from_the_archive_confirms_nothing() {
        let server = server(6);
        server.push(1).unwrap();
        let note = Notes::new(server.pg_wal()).ahead();
        assert_eq!(note.len(), 5);
        fs::remove_file(server.archive.path(name(2).parse().unwrap())).unwrap();
        server.push(2).unwrap();
        assert!(server.has(2), "archived again");
        let before = SystemTime::now() - Duration::from_secs(5);
        File::options().write(true).open(server.source(3)).unwrap().set_modified(before).unwrap();
        server.push(3).unwrap();
        // Other content under a name that is archived is refused, whatever the note says.
        write_segment(&server.pg_wal(), &name(4), 99);
        let error = server.push(4).unwrap_err();
        assert!(error.to_string().contains("another content"), "{error:#}");
        assert!(Notes::new(server.pg_wal()).failure().unwrap().contains("another content"));
    }

    #[test]
    fn torn_notes_are_none() {
        let server = server(5);
        server.push(1).unwrap();
        let (notes, path) = (Notes::new(server.pg_wal()), server.pg_wal().join("tandem.ahead"));
        let whole = fs::read_to_string(&path).unwrap();
        for cut in [0, 5, whole.len() - 3] {
            fs::write(&path, &whole[..cut]).unwrap();
            assert!(notes.ahead().iter().all(|note| whole.contains(&note.name)));
            assert!(notes.ahead().len() < 4, "the last line is cut");
        }
    }

    #[test]
    fn a_failure_is_noted_and_forgotten_with_the_next_success() {
        let server = server(1);
        let notes = Notes::new(server.pg_wal());
        let elsewhere = Archive::new(server.temp.path().join("not-there"));
        assert!(push(&elsewhere, &server.source(1)).is_err());
        assert!(notes.failure().unwrap().contains("not-there"), "{:?}", notes.failure());
        server.push(1).unwrap();
        assert_eq!(notes.failure(), None);
    }

    #[test]
    fn once_given_up_nothing_is_archived_and_the_gap_is_marked() {
        let server = server(6);
        let notes = Notes::new(server.pg_wal());
        notes.give_up("the disk was full").unwrap();
        server.push(1).unwrap();
        server.push(2).unwrap();
        assert!(server.archive.names().unwrap().is_empty());
        let gaps = server.archive.gaps();
        assert_eq!(gaps.iter().map(|(segment, _)| segment.to_string()).collect::<Vec<_>>(), [name(1)]);
        notes.resume().unwrap();
        server.push(3).unwrap();
        assert!(server.has(3));
    }

    #[test]
    fn once_given_up_a_history_is_archived_all_the_same_or_goes_on_waiting() {
        let server = server(2);
        let notes = Notes::new(server.pg_wal());
        notes.give_up("the disk was full").unwrap();
        let history = server.pg_wal().join("00000002.history");
        fs::write(&history, "1\t0/2000000\tx\n").unwrap();
        let ready = server.pg_wal().join("archive_status/00000002.history.ready");
        fs::write(&ready, "").unwrap();
        let elsewhere = Archive::new(server.temp.path().join("not-there"));
        assert!(push(&elsewhere, &history).is_err(), "PostgreSQL is not told that it is archived");
        assert!(notes.history_waits());
        assert_eq!(notes.drop_ready().unwrap(), 2, "the segments");
        assert!(ready.exists() && notes.history_waits());
        push(&server.archive, &history).unwrap();
        assert!(server.archive.has(WalFile::History(2)));
    }
}
