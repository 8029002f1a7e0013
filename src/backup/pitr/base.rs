//! Make a base backup: what the server sends, checked against PostgreSQL's manifest and compressed on its way to disk.
//!
//! It takes its final name when all of it is durable, every file in it is what the manifest says, and the WAL that it
//! needs is in the archive. What is cut short is swept away by the next.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail};
use sea_orm::sqlx::{ConnectOptions, Connection, query_as};

use super::super::estimate;
use super::super::files::Flushing;
use super::super::stand_back::{self, Others, Rests};
use super::archive::Archive;
use super::away::ledger::SentEverywhere;
use super::bases::{self, Base, Listing};
use super::expiry::{self, Keep};
use super::file_list::{self, Checksums, FileManifest, Seen};
use super::notes::Notes;
use super::sender::{BaseRequest, Line, Sender};
use super::timeline::Lineage;
use super::wal::{Lsn, Segment, WalFile};
use super::{histories, live, tablespaces};
use crate::config::Room;
use crate::durable::{self, Lock, LockError, sync_dir};
use crate::exit::{Code, Failure};
use crate::postgres::home::Home;
use crate::postgres::provision::superuser_options;
use crate::postgres::settings::SUPERUSER;
use crate::room::Guard;

/// The lock of base backups, in the archive.
pub const LOCK: &str = "base.lock";
/// zstd's level, and its threads: the reading and checking takes the third.
const LEVEL: i32 = 1;
/// What the server checks its files by.
const CHECKSUMS: Checksums = Checksums::Crc32c;
const THREADS: u32 = 2;
/// A backup of which nothing more came for so long does not go on. It begins with a checkpoint and ends with waiting for
/// the last WAL to be archived.
const STALL_LIMIT: Duration = Duration::from_secs(600);
/// How long archiving may fail while the backup waits for nothing else.
const FAILING_LIMIT: Duration = Duration::from_secs(20);
/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// How long asking the server what it is may take.
const ASK_LIMIT: Duration = Duration::from_secs(30);

/// What a base backup is made of and goes to.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    pub home: &'a Home,
    pub port: u16,
    pub archive: &'a Archive,
    /// How many base backups are kept, and how long.
    pub keep: Keep,
    /// What it leaves free of the archive's disk.
    pub stop_free: Room,
    /// What the destinations off the machine have: the others stay here.
    pub sent: &'a SentEverywhere,
    /// How many bytes the server may send in a second.
    pub rate: Option<u64>,
}

/// What was done.
#[derive(Debug)]
pub struct Made {
    pub base: Base,
    /// Older base backups that were removed.
    pub removed: Vec<Base>,
    /// How many files of WAL were removed with them.
    pub removed_wal: usize,
}

/// What the server is, as far as it matters.
struct Server {
    version: String,
    segment_size: u64,
    archives: bool,
    /// Bytes of all databases.
    size: u64,
}

/// Make a base backup of the running server, then remove what is beyond those that are kept.
///
/// # Errors
/// The server does not archive its WAL, or a part of it failed; then nothing of it is left, and nothing was removed.
pub async fn make(source: &Source<'_>) -> anyhow::Result<Made> {
    let archive = source.archive;
    let _lock = lock(archive)?;
    let server = ask(source).await?;
    if !server.archives {
        let text = "the server does not archive its WAL yet: set backup.pitr.enabled, and start Tandem again";
        return Err(Failure::new(Code::Config, text).into());
    }
    if let Some(refusal) = tablespaces::refusal(&tablespaces::of(&source.home.data)?) {
        return Err(refusal.into());
    }
    bases::sweep(archive);
    let room = room(source, &server)?;
    room.check()?;
    histories::push(archive, &source.home.data.join("pg_wal"))?;
    begin_chain(source, server.segment_size).await?;
    let name = bases::name(SystemTime::now());
    let unfinished = Unfinished(archive.bases().join(format!("{name}{}", bases::UNFINISHED)));
    archive.make_dir(&unfinished.0).with_context(|| format!("make {}", unfinished.0.display()))?;
    let base = room.hold(write(source, &server, name, &unfinished.0)).await?;
    check_wal(archive, &base, source.home)?;
    histories::check(archive, &base)?;
    let text = serde_json::to_string_pretty(&base).context("describe the base backup")?;
    archive.write_small(&unfinished.0.join(bases::DESCRIPTION), &text)?;
    let place = base.dir(archive);
    // A directory is never renamed onto another that holds anything.
    durable::rename(&unfinished.0, &place)
        .and_then(|()| sync_dir(&archive.bases()))
        .with_context(|| format!("put the base backup at {}", place.display()))?;
    let (removed, removed_wal) = prune(archive, source.keep, source.sent)?;
    Ok(Made { base, removed, removed_wal })
}

/// Remove the base backups that are beyond `keep`, and the WAL that only those needed; but nothing that a destination lacks.
///
/// # Errors
/// Something cannot be read or removed.
pub fn prune(archive: &Archive, keep: Keep, sent: &SentEverywhere) -> anyhow::Result<(Vec<Base>, usize)> {
    let Listing { bases, unreadable } = bases::listing(archive)?;
    for base in unreadable {
        tracing::warn!("{base}; it counts for nothing and stays: mend it, or remove its directory");
    }
    let Some(newest) = bases.last() else { return Ok((Vec::new(), 0)) };
    let timeline = newest.stop_timeline;
    let lineage = histories::lineage(archive, timeline)?.unwrap_or_else(|| Lineage::alone(timeline));
    let birth = live::births(archive, None, &[timeline]).pop().filter(|_| timeline > 1);
    let gone = expiry::surplus(&bases, &lineage, birth.as_ref(), keep);
    let (gone, kept): (Vec<Base>, Vec<Base>) =
        bases.into_iter().partition(|base| gone.contains(&base.name) && !sent.lacks_base(base));
    for base in &gone {
        bases::remove(archive, base)?;
    }
    let starts: Vec<Segment> = kept.iter().map(Base::start_segment).collect();
    let mut wal = expiry::unneeded(&archive.names()?, &starts);
    wal.retain(|name| !sent.lacks_wal(*name));
    archive.remove(&wal)?;
    Ok((gone, wal.len()))
}

/// Removed unless it was renamed away.
struct Unfinished(PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// One base backup at a time.
fn lock(archive: &Archive) -> anyhow::Result<Lock> {
    let path = archive.dir().join(LOCK);
    let lock = match Lock::take(&path, "`tandem backup base`") {
        Ok(lock) => lock,
        Err(LockError::Held(holder)) => {
            let holder = holder.named("another base backup");
            let message = format!("another base backup is being made ({holder}): wait for its end");
            return Err(Failure::new(Code::Temporary, message).into());
        }
        Err(error) => return Err(error.into_io()).with_context(|| format!("lock {}", path.display())),
    };
    archive.give_away(lock.file()).with_context(|| format!("open {}", path.display()))?;
    Ok(lock)
}

async fn ask(source: &Source<'_>) -> anyhow::Result<Server> {
    let asking = async {
        let mut connection = superuser_options(source.home, source.port, SUPERUSER).connect().await?;
        let row: (String, i64, bool, i64) = query_as(
            "SELECT current_setting('server_version'), pg_size_bytes(current_setting('wal_segment_size')),
                    current_setting('archive_mode') <> 'off' AND current_setting('archive_command') <> '',
                    (SELECT coalesce(sum(pg_database_size(oid)), 0)::bigint FROM pg_database)",
        )
        .fetch_one(&mut connection)
        .await?;
        connection.close().await?;
        anyhow::Ok(row)
    };
    let asked = tokio::time::timeout(ASK_LIMIT, asking).await.context("PostgreSQL does not answer")?;
    let (version, segment, archives, size) = asked.context("ask PostgreSQL what it is")?;
    let segment_size = u64::try_from(segment).unwrap_or(super::wal::SEGMENT_SIZE);
    Ok(Server { version, segment_size, archives, size: size.cast_unsigned() })
}

/// The room that it takes: its own file, and the WAL that beginning and ending it fills up.
fn room(source: &Source<'_>, server: &Server) -> anyhow::Result<Guard> {
    let last = bases::bases(source.archive)?.pop().map(|base| (base.size, base.archived_size));
    let packed = estimate::base_backup(server.size, last);
    let guard =
        Guard::new("base backup", source.stop_free, Some(&source.home.data)).claim(source.archive.dir(), packed);
    let guard = guard.claim(&source.home.data.join("pg_wal"), 2 * server.segment_size);
    Ok(guard
        .advice("Make room (`tandem doctor` shows what of Tandem's can go), or put backup.pitr.dir on another disk"))
}

/// Where the chain was given up, begin another: all WAL from now on is archived.
async fn begin_chain(source: &Source<'_>, segment_size: u64) -> anyhow::Result<()> {
    let notes = Notes::new(source.home.data.join("pg_wal"));
    let Some(why) = notes.given_up() else { return Ok(()) };
    // Wherever it was not marked, because the archive was out of reach, it is now.
    let last = notes.last_archived().and_then(|(name, _)| name.parse::<WalFile>().ok()?.segment());
    // Where that was a history, it says nothing of segments.
    let newest = || anyhow::Ok(source.archive.names()?.into_iter().filter_map(WalFile::segment).max());
    let last = if last.is_some() { last } else { newest()? };
    let first_lost = last.map_or(Segment::of(1, Lsn(0), segment_size), |last| last.next(segment_size));
    source.archive.mark_gap(first_lost, &why)?;
    notes.resume().context("take the archiving up again")?;
    tracing::info!("WAL is archived again; the recovery to any moment begins anew with this base backup");
    Ok(())
}

/// Let the server fill `dir`.
async fn write(source: &Source<'_>, server: &Server, name: String, dir: &Path) -> anyhow::Result<Base> {
    let (began, clock) = (SystemTime::now(), Instant::now());
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(dir.join(bases::DATA));
    let file = file.with_context(|| format!("write {}", dir.display()))?;
    source.archive.give_away(&file).with_context(|| format!("write {}", dir.display()))?;
    // Dropped with this future, it ends the session and the thread that reads.
    let line = Line::open(&source.home.socket_dir, source.port)?;
    let stream = line.stream().context("share a connection")?;
    let progress = Arc::new(AtomicU64::new(0));
    let (label, rate, counter) = (name.clone(), source.rate, progress.clone());
    let others = Others::default();
    let rests = Rests::new(others.clone());
    let packing = tokio::task::spawn_blocking(move || {
        let wanted = BaseRequest { label: &label, checksums: CHECKSUMS, rate };
        pack(Sender::begin(stream, &wanted, counter)?, file, rests)
    });
    let packed = tokio::select! {
        packed = packing => packed.context("write the base backup")?,
        why = watch(source, &progress) => return Err(why),
        never = stand_back::sessions(source.home, source.port, &others) => match never {},
    };
    let Packed { manifest, seen, archived_size } = packed?;
    manifest.verify(&seen)?;
    let (Some(first), Some(last)) = (manifest.ranges().first(), manifest.ranges().last()) else {
        bail!("the backup's manifest names no WAL")
    };
    Ok(Base {
        name,
        system_identifier: super::start::system_identifier(&source.home.data)?,
        timeline: first.timeline,
        start_lsn: first.start,
        stop_lsn: last.end,
        stop_timeline: last.timeline,
        segment_size: server.segment_size,
        began,
        ended: SystemTime::now(),
        duration_ms: bases::milliseconds(clock.elapsed()),
        files: seen.count(),
        size: seen.size(),
        archived_size,
        checksums: CHECKSUMS,
        postgres_version: server.version.clone(),
        tandem_version: env!("CARGO_PKG_VERSION").to_owned(),
    })
}

/// Ends with the reason why a backup that stands still will not go on.
async fn watch(source: &Source<'_>, progress: &AtomicU64) -> anyhow::Error {
    let notes = Notes::new(source.home.data.join("pg_wal"));
    let (mut seen, mut since) = (0, Instant::now());
    loop {
        tokio::time::sleep(LOOK).await;
        let now = progress.load(Ordering::Relaxed);
        if now != seen {
            (seen, since) = (now, Instant::now());
        }
        if since.elapsed() > STALL_LIMIT {
            return anyhow::anyhow!("nothing more came from the server for {STALL_LIMIT:?}");
        }
        if let Some(why) = notes.given_up() {
            return anyhow::anyhow!("the chain was given up meanwhile: {why}");
        }
        if let Some(why) = notes.failure().filter(|_| since.elapsed() > FAILING_LIMIT) {
            return anyhow::anyhow!("the WAL of the backup cannot be archived: {why}");
        }
    }
}

/// A stream of which all that is read is written down, and that is read with rests.
struct Tee<R, W> {
    from: R,
    to: W,
    rests: Rests,
}

impl<R: Read, W: Write> Read for Tee<R, W> {
    #[expect(clippy::disallowed_methods, reason = "a rest is time")]
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        thread::sleep(self.rests.due());
        self.rests.begin_work();
        let count = self.from.read(buffer)?;
        self.to.write_all(&buffer[..count])?;
        Ok(count)
    }
}

struct Packed {
    manifest: FileManifest,
    seen: Seen,
    archived_size: u64,
}

/// What the end of a tar archive holds back, whose last blocks are zeros: something is put in front of them.
struct HeldBack<W> {
    to: W,
    held: Vec<u8>,
}

/// The length of the end of a tar archive, in bytes: two blocks.
const TAR_END: usize = 1024;

impl<W: Write> HeldBack<W> {
    fn new(to: W) -> Self {
        Self { to, held: Vec::with_capacity(2 * TAR_END) }
    }

    /// Without the end, which must have been there.
    fn end(self) -> anyhow::Result<W> {
        if self.held.len() != TAR_END || self.held.iter().any(|byte| *byte != 0) {
            bail!("the backup's end is missing: its stream was cut short");
        }
        Ok(self.to)
    }
}

impl<W: Write> Write for HeldBack<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let passes = buffer.len().saturating_sub(TAR_END);
        if passes > 0 {
            self.to.write_all(&self.held)?;
            self.held.clear();
            self.to.write_all(&buffer[..passes])?;
        }
        self.held.extend_from_slice(&buffer[passes..]);
        let excess = self.held.len().saturating_sub(TAR_END);
        self.to.write_all(&self.held[..excess])?;
        self.held.drain(..excess);
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Compress the tar archive that the server sends into `file`, with its manifest as the last of it, and flush it; look at
/// every file in it on the way.
fn pack(from: Sender, file: File, rests: Rests) -> anyhow::Result<Packed> {
    let mut encoder = zstd::Encoder::new(Flushing::new(file), LEVEL).context("begin to compress")?;
    encoder.include_checksum(true).context("begin to compress")?;
    encoder.multithread(THREADS).context("begin to compress")?;
    let mut archive = tar::Archive::new(Tee { from, to: HeldBack::new(encoder), rests });
    let mut seen = Seen::new(CHECKSUMS);
    for entry in archive.entries().context("read the backup")? {
        let mut entry = entry.context("read the backup")?;
        if entry.header().entry_type().is_file() {
            let path = entry.path_bytes();
            let path = path.strip_prefix(b"./").unwrap_or(&path).to_vec();
            let written = seen.copy(&path, &mut entry, &mut io::sink());
            written.with_context(|| format!("write {} of the backup", String::from_utf8_lossy(&path)))?;
        }
    }
    let mut tee = archive.into_inner();
    io::copy(&mut tee, &mut io::sink()).context("read the backup's end")?;
    let manifest = tee.from.end().context("read the backup's manifest")?;
    let mut header = tar::Header::new_gnu();
    header.set_size(manifest.len() as u64);
    header.set_mode(0o600);
    let mut archive = tar::Builder::new(tee.to.end()?);
    let encoder = archive.append_data(&mut header, file_list::NAME, &manifest[..]).and_then(|()| archive.into_inner());
    let file = encoder.and_then(zstd::Encoder::finish).context("write the backup")?;
    let archived_size = file.finish().context("flush the backup")?;
    Ok(Packed { manifest: FileManifest::read(&manifest)?, seen, archived_size })
}

/// Whether all WAL that `base` needs is archived.
fn check_wal(archive: &Archive, base: &Base, home: &Home) -> anyhow::Result<()> {
    if let Some(why) = Notes::new(home.data.join("pg_wal")).given_up() {
        bail!("the chain was given up meanwhile: {why}");
    }
    let size = base.segment_size;
    // Its end is behind the last byte that is needed.
    let last = Segment::of(base.stop_timeline, Lsn(base.stop_lsn.0.saturating_sub(1)), size);
    let mut next = base.start_segment();
    while next.place() <= last.place() {
        let timelines = base.timeline..=base.stop_timeline;
        let there = timelines.clone().any(|timeline| archive.has(WalFile::Segment(Segment { timeline, ..next })));
        if !there {
            bail!("the archive lacks {next}, which the backup needs");
        }
        next = next.next(size);
    }
    Ok(())
}
