//! Asks the server for a base backup, in PostgreSQL's replication protocol (PostgreSQL documentation, "Streaming Replication
//! Protocol", BASE_BACKUP), and reads what it sends: a tar archive, then the manifest of its files.
//!
//! As pg_basebackup does, without another process and its pipe. Over the unix socket, where the superuser needs no password.

use std::io::{self, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};

use super::file_list::Checksums;
use crate::postgres::settings::SUPERUSER;

/// What the session is called in `pg_stat_activity`.
const APPLICATION_NAME: &str = "tandem-backup";
/// Version 3.0 of the protocol.
const PROTOCOL: u32 = 3 << 16;
/// How much is read at once, in bytes.
const CHUNK: usize = 256 << 10;
/// The longest message that is not a part of a file; PostgreSQL sends no longer one.
const MESSAGE_MAX: usize = 1 << 20;
/// The server sends 8 kB at a time. So much at once is enough, in bytes, and where there was less, so long is waited for more:
/// a reader that waits for each piece is woken a hundred thousand times for a GB.
const ENOUGH: usize = 48 << 10;
const PAUSE: Duration = Duration::from_micros(200);
/// How many of the server's warnings are told.
const WARNINGS_MAX: usize = 50;
/// What the server sends as KB a second (MAX_RATE).
const RATES: std::ops::RangeInclusive<u64> = 32..=1_048_576;

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct BaseRequest<'a> {
    pub label: &'a str,
    pub checksums: Checksums,
    /// Bytes a second at most.
    pub rate: Option<u64>,
}

impl BaseRequest<'_> {
    /// The server waits with the end until the WAL is archived: so a backup proves that archiving works.
    fn command(&self) -> String {
        let rate = self.rate.map(|rate| rate >> 10).filter(|rate| rate <= RATES.end());
        let rate = rate.map_or_else(String::new, |rate| format!(", MAX_RATE {}", rate.max(*RATES.start())));
        format!(
            "BASE_BACKUP (LABEL '{}', CHECKPOINT 'fast', MANIFEST 'yes', MANIFEST_CHECKSUMS '{}'{rate})",
            self.label.replace('\'', "''"),
            self.checksums.name()
        )
    }
}

/// Ends the session when it is dropped, in the middle of the backup too: the server gives it up then.
#[derive(Debug)]
pub struct Line(UnixStream);

impl Line {
    /// Reach the server that listens on `port` in `dir`.
    ///
    /// # Errors
    /// It does not take the connection.
    pub fn open(dir: &Path, port: u16) -> anyhow::Result<Self> {
        let path = dir.join(format!(".s.PGSQL.{port}"));
        let stream = UnixStream::connect(&path).with_context(|| format!("connect to {}", path.display()))?;
        Ok(Self(stream))
    }

    /// For the thread that reads.
    ///
    /// # Errors
    /// There are no more descriptors.
    pub fn stream(&self) -> io::Result<UnixStream> {
        self.0.try_clone()
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

/// The server, sending a base backup. Reading it yields the tar archive.
pub struct Sender {
    from: BufReader<Batched>,
    /// Bytes of the archive that are left of the message that is being read.
    left: usize,
    part: Part,
    manifest: Vec<u8>,
    /// How often it warned.
    warned: usize,
}

/// What the server is about to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// Before the first archive.
    Beginning,
    Archive,
    Manifest,
    /// After the last.
    Ended,
}

impl Sender {
    /// Ask for a base backup over `stream`. `progress` counts the bytes that come.
    ///
    /// # Errors
    /// The server refuses.
    pub fn begin(stream: UnixStream, wanted: &BaseRequest<'_>, progress: Arc<AtomicU64>) -> anyhow::Result<Self> {
        let batched = Batched { stream, last: ENOUGH, progress };
        let from = BufReader::with_capacity(CHUNK, batched);
        let mut sender = Self { from, left: 0, part: Part::Beginning, manifest: Vec::new(), warned: 0 };
        sender.ask(wanted).context("ask for a base backup")?;
        Ok(sender)
    }

    fn ask(&mut self, wanted: &BaseRequest<'_>) -> anyhow::Result<()> {
        let mut start = PROTOCOL.to_be_bytes().to_vec();
        for word in ["user", SUPERUSER, "replication", "true", "application_name", APPLICATION_NAME, ""] {
            start.extend_from_slice(word.as_bytes());
            start.push(0);
        }
        self.send(None, &start)?;
        self.until(b'Z')?;
        let command = wanted.command();
        self.send(Some(b'Q'), format!("{command}\0").as_bytes())?;
        // Where it begins, and the tablespaces that there are.
        self.until(b'H')
    }

    fn send(&mut self, kind: Option<u8>, body: &[u8]) -> anyhow::Result<()> {
        let mut message: Vec<u8> = kind.into_iter().collect();
        message.extend_from_slice(&u32::try_from(body.len() + 4)?.to_be_bytes());
        message.extend_from_slice(body);
        self.from.get_mut().stream.write_all(&message).context("write to the server")
    }

    /// Read until a message of this `kind` was read.
    fn until(&mut self, kind: u8) -> anyhow::Result<()> {
        loop {
            let (found, length) = self.head()?;
            let body = self.body(length)?;
            match found {
                b'R' if body != [0; 4] => bail!("it asks for a password, where none is needed"),
                b'E' => return Err(refused(&body).into()),
                b'N' => self.warn(&body),
                _ => {}
            }
            if found == kind {
                return Ok(());
            }
        }
    }

    /// What follows the archive: the manifest. The session has done what it was asked for then.
    ///
    /// # Errors
    /// The server failed meanwhile.
    pub fn end(mut self) -> anyhow::Result<Vec<u8>> {
        io::copy(&mut self, &mut io::sink())?;
        while self.part != Part::Ended {
            self.next()?;
        }
        self.until(b'Z')?;
        Ok(self.manifest)
    }

    /// Read the next message, up to what of the archive is in it.
    fn next(&mut self) -> io::Result<()> {
        let (kind, length) = self.head()?;
        if kind != b'd' {
            let body = self.body(length)?;
            match kind {
                b'c' => self.part = Part::Ended,
                b'E' => return Err(refused(&body)),
                b'N' => self.warn(&body),
                _ => {}
            }
            return Ok(());
        }
        let mut what = [0];
        self.from.read_exact(&mut what)?;
        let length = length.checked_sub(1).ok_or_else(|| strange("an empty part of a backup"))?;
        match (what[0], self.part) {
            (b'd', Part::Archive) => self.left = length,
            (b'd', Part::Manifest) => {
                let piece = self.body(length)?;
                self.manifest.extend_from_slice(&piece);
            }
            (b'n', Part::Beginning) => {
                self.body(length)?;
                self.part = Part::Archive;
            }
            (b'n', _) => return Err(strange("a second archive, of a tablespace that was made meanwhile")),
            (b'm', Part::Archive) => {
                self.body(length)?;
                self.part = Part::Manifest;
            }
            (b'p', _) => drop(self.body(length)?),
            _ => return Err(strange("something that no base backup has")),
        }
        Ok(())
    }

    /// The kind of the next message, and the length of its body.
    fn head(&mut self) -> io::Result<(u8, usize)> {
        let mut head = [0; 5];
        self.from.read_exact(&mut head)?;
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
        let length = usize::try_from(length).ok().and_then(|length| length.checked_sub(4));
        Ok((head[0], length.ok_or_else(|| strange("a message without a length"))?))
    }

    fn body(&mut self, length: usize) -> io::Result<Vec<u8>> {
        if length > MESSAGE_MAX {
            return Err(strange("a message that is too long"));
        }
        let mut body = vec![0; length];
        self.from.read_exact(&mut body)?;
        Ok(body)
    }

    fn warn(&mut self, notice: &[u8]) {
        // Such as that a page is damaged, or that the WAL is still not archived. How far it is, is no news.
        if field(notice, b'V').is_some_and(|severity| severity == "WARNING") {
            self.warned += 1;
            if self.warned <= WARNINGS_MAX {
                tracing::warn!("PostgreSQL, for the base backup: {}", words(notice));
            }
        }
    }
}

impl Read for Sender {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.left == 0 {
            if matches!(self.part, Part::Manifest | Part::Ended) {
                return Ok(0);
            }
            self.next()?;
        }
        let most = buffer.len().min(self.left);
        let count = self.from.read(&mut buffer[..most])?;
        if count == 0 && most > 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server has closed the connection"));
        }
        self.left -= count;
        Ok(count)
    }
}

/// A stream that is read in large pieces, and that says how much of it has passed.
struct Batched {
    stream: UnixStream,
    /// How much came last.
    last: usize,
    progress: Arc<AtomicU64>,
}

impl Read for Batched {
    #[expect(clippy::disallowed_methods, reason = "no socket tells when it holds enough")]
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.last < ENOUGH {
            thread::sleep(PAUSE);
        }
        self.last = self.stream.read(buffer)?;
        self.progress.fetch_add(self.last as u64, Ordering::Relaxed);
        Ok(self.last)
    }
}

/// One field of an error or a notice (PostgreSQL documentation, "Error and Notice Message Fields").
fn field(message: &[u8], kind: u8) -> Option<String> {
    let mut fields = message.split(|byte| *byte == 0).filter(|field| !field.is_empty());
    let found = fields.find(|field| field[0] == kind)?;
    Some(String::from_utf8_lossy(&found[1..]).into_owned())
}

/// What it says, as PostgreSQL's own programs print it.
fn words(message: &[u8]) -> String {
    let said = |kind| field(message, kind);
    let mut text = format!("{}: {}", said(b'S').unwrap_or_default(), said(b'M').unwrap_or_default());
    for (name, more) in [("DETAIL", said(b'D')), ("HINT", said(b'H'))] {
        if let Some(more) = more {
            text.push_str(&format!(" {name}: {more}"));
        }
    }
    text
}

fn refused(message: &[u8]) -> io::Error {
    io::Error::other(words(message))
}

fn strange(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the server sent {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The messages of a server, and what comes of them.
    fn read(messages: &[(u8, &[u8])]) -> (Vec<u8>, anyhow::Result<Vec<u8>>, usize) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let line = Line(ours);
        let sent: Vec<u8> = [(b'R', &[0, 0, 0, 0][..]), (b'Z', b"I"), (b'T', b""), (b'H', b"\0\0\0")]
            .iter()
            .chain(messages)
            .flat_map(|(kind, body)| {
                let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
                [&[*kind], &length[..], body].concat()
            })
            .collect();
        theirs.write_all(&sent).unwrap();
        theirs.shutdown(Shutdown::Write).unwrap();
        let wanted = BaseRequest { label: "it's", checksums: Checksums::Crc32c, rate: Some(1) };
        let mut sender = Sender::begin(line.stream().unwrap(), &wanted, Arc::default()).unwrap();
        let mut tar = Vec::new();
        if let Err(error) = sender.read_to_end(&mut tar) {
            return (tar, Err(error.into()), sender.warned);
        }
        let warned = sender.warned;
        let ended = sender.end();
        drop(line);
        let mut asked = String::new();
        theirs.read_to_string(&mut asked).unwrap();
        assert!(asked.contains("LABEL 'it''s'") && asked.contains("MAX_RATE 32"), "{asked}");
        (tar, ended, warned)
    }

    const ARCHIVE: &[(u8, &[u8])] = &[(b'd', b"nbase.tar\0\0"), (b'd', b"dabc"), (b'd', b"p12345678"), (b'd', b"ddef")];
    const ENDED: &[(u8, &[u8])] = &[(b'd', b"m"), (b'd', b"d{}"), (b'c', b""), (b'C', b"SELECT\0"), (b'Z', b"I")];
    const WARNING: (u8, &[u8]) = (b'N', b"SWARNING\0VWARNING\0C01000\0Mit is so\0\0");
    const ERROR: (u8, &[u8]) = (b'E', b"SERROR\0VERROR\0CXX001\0Mno\0Dsuch\0\0");

    #[test]
    fn the_archive_and_the_manifest_come_apart() {
        let (tar, manifest, warned) = read(&[ARCHIVE, &[WARNING], ENDED].concat());
        assert_eq!((&tar[..], &manifest.unwrap()[..]), (&b"abcdef"[..], &b"{}"[..]));
        assert_eq!(warned, 1);
    }

    #[test]
    fn what_the_server_refuses_or_cuts_short_is_no_backup() {
        let shown = |messages: &[&[(u8, &[u8])]]| format!("{:#}", read(&messages.concat()).1.unwrap_err());
        assert_eq!(shown(&[ARCHIVE, &[ERROR]]), "ERROR: no DETAIL: such");
        assert_eq!(shown(&[ARCHIVE, &ENDED[..2], &[ERROR]]), "ERROR: no DETAIL: such");
        assert!(shown(&[ARCHIVE, &ENDED[..3], &[ERROR]]).contains("no DETAIL"), "after all of it");
        for cut in [1, 2, 3] {
            shown(&[&ARCHIVE[..cut]]);
        }
        for cut in 1..ENDED.len() {
            shown(&[ARCHIVE, &ENDED[..cut]]);
        }
        assert!(shown(&[ARCHIVE, &ARCHIVE[..1]]).contains("tablespace"));
        shown(&[&[(b'd', b"d")]]);
        shown(&[&[(b'd', b"")]]);
    }
}
