//! A local file in parts, read ahead by a thread that keeps a bounded number of them in memory.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::spawn_blocking;

use super::seal::Recipients;
use super::trouble::{Kind, StoreError};
use crate::install::hexadecimal;

/// No part but the last may be smaller, says S3.
const PART_MIN: u64 = 5 << 20;
/// S3 takes 10,000; the seal's own bytes must fit as well.
const PARTS_MAX: u64 = 9_900;
/// Parts in memory at once: one is filled while two are on their way.
const IN_MEMORY: usize = 3;
/// Parts on their way at once.
pub(super) const ON_THE_WAY: usize = IN_MEMORY - 1;

const READ_SIZE: usize = 256 << 10;

/// A part of what is sent. It takes its room in memory as long as it lives.
pub(super) struct Part {
    pub(super) bytes: Vec<u8>,
    /// Only the last part knows what went before it.
    pub(super) end: Option<End>,
    pub(super) room: OwnedSemaphorePermit,
}

/// What was sent in all.
pub(super) struct End {
    pub(super) size: u64,
    pub(super) sha256: String,
}

/// What is to be sent: a local file, and what goes before its first byte.
pub(super) struct Outgoing<'a> {
    pub(super) path: &'a Path,
    pub(super) head: Vec<u8>,
}

/// A local file, open.
pub(super) struct Local {
    head: Vec<u8>,
    file: File,
    /// Of both.
    pub(super) size: u64,
    pub(super) shown: String,
}

impl Local {
    /// Open what is `outgoing`, which must be a file.
    pub(super) async fn open(outgoing: Outgoing<'_>) -> Result<Self, StoreError> {
        let (path, head) = (outgoing.path.to_path_buf(), outgoing.head);
        let opened = spawn_blocking(move || {
            let shown = path.display().to_string();
            let open = || {
                let file = File::open(&path)?;
                let meta = file.metadata()?;
                if meta.is_file() { Ok((file, meta.len())) } else { Err(io::Error::other("it is no file")) }
            };
            let (file, size) = open().map_err(|error| StoreError::local(format!("read {shown}"), error))?;
            Ok(Self { size: size + head.len() as u64, head, file, shown })
        });
        opened.await.map_err(|error| StoreError::thread(&error))?
    }

    /// The SHA-256 of the file as it is; it can be read again afterwards.
    pub(super) async fn digest(self) -> Result<(Self, String), StoreError> {
        let digest = spawn_blocking(move || {
            let mut digest = Sha256::new();
            let read = self.each_piece(|piece| {
                digest.update(piece);
                Ok(())
            });
            let rewound = read.and_then(|()| io::Seek::rewind(&mut &self.file));
            rewound.map_err(|error| StoreError::local(format!("read {}", self.shown), error))?;
            Ok((self, hexadecimal(&digest.finalize())))
        });
        digest.await.map_err(|error| StoreError::thread(&error))?
    }

    pub(super) fn part_size(&self) -> u64 {
        self.size.div_ceil(PARTS_MAX).next_multiple_of(1 << 20).max(PART_MIN)
    }

    /// Begin to read, and to seal if it shall be. The channel ends after the part with an [`End`], or after an error.
    pub(super) fn read(self, seal: Option<Recipients>) -> mpsc::Receiver<Result<Part, StoreError>> {
        let (sender, receiver) = mpsc::channel(1);
        let mut cutter = Cutter {
            part_size: usize::try_from(self.part_size()).unwrap_or(usize::MAX),
            filling: None,
            rooms: Arc::new(Semaphore::new(IN_MEMORY)),
            runtime: Handle::current(),
            digest: Sha256::new(),
            size: 0,
            sender: sender.clone(),
        };
        spawn_blocking(move || {
            let read = match seal {
                None => self.each_piece(|piece| cutter.write_all(piece)),
                Some(recipients) => self.sealed(&recipients, &mut cutter),
            };
            let failed = |error| StoreError::local(format!("read {}", self.shown), error);
            let read = read.map_err(failed).and_then(|()| self.check_unchanged());
            if let Err(error) = read.and_then(|()| cutter.finish().map_err(failed)) {
                // The receiver is gone when the upload has failed.
                let _ = sender.blocking_send(Err(error));
            }
        });
        receiver
    }

    fn check_unchanged(&self) -> Result<(), StoreError> {
        let meta = self.file.metadata().map_err(|error| StoreError::local(format!("read {}", self.shown), error))?;
        if meta.len() + self.head.len() as u64 == self.size { Ok(()) } else { Err(StoreError::changed(&self.shown)) }
    }

    fn each_piece(&self, mut take: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        take(&self.head)?;
        each_piece(&self.file, take)
    }

    fn sealed(&self, recipients: &Recipients, cutter: &mut Cutter) -> io::Result<()> {
        let mut seal = recipients.seal(cutter)?;
        self.each_piece(|piece| seal.write_all(piece))?;
        seal.finish().map(drop)
    }
}

/// The next part of a file that is read.
pub(super) async fn next(parts: &mut mpsc::Receiver<Result<Part, StoreError>>) -> Result<Part, StoreError> {
    let early = || StoreError::new(Kind::Other, "the thread that reads ended early");
    parts.recv().await.unwrap_or_else(|| Err(early()))
}

fn each_piece(mut file: &File, mut take: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut piece = vec![0; READ_SIZE];
    loop {
        match file.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(count) => take(&piece[..count])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Cuts what is written to it into parts and sends these off. Lives on a thread that may block.
struct Cutter {
    part_size: usize,
    filling: Option<(Vec<u8>, OwnedSemaphorePermit)>,
    rooms: Arc<Semaphore>,
    runtime: Handle,
    digest: Sha256,
    size: u64,
    sender: mpsc::Sender<Result<Part, StoreError>>,
}

impl Cutter {
    fn begin(&mut self) -> io::Result<(Vec<u8>, OwnedSemaphorePermit)> {
        let room = self.runtime.block_on(Arc::clone(&self.rooms).acquire_owned()).map_err(io::Error::other)?;
        Ok((Vec::with_capacity(self.part_size), room))
    }

    fn send(&self, (bytes, room): (Vec<u8>, OwnedSemaphorePermit), end: Option<End>) -> io::Result<()> {
        let sent = self.sender.blocking_send(Ok(Part { bytes, end, room }));
        sent.map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "the copy was given up"))
    }

    /// Send off the last part, which may be empty.
    fn finish(mut self) -> io::Result<()> {
        let last = self.filling.take().map_or_else(|| self.begin(), Ok)?;
        let end = End { size: self.size, sha256: hexadecimal(&std::mem::take(&mut self.digest).finalize()) };
        self.send(last, Some(end))
    }
}

impl Write for Cutter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A full part waits here until there is more, for it could be the last one.
        let full = |part: &Vec<u8>| part.len() == self.part_size;
        if self.filling.as_ref().is_some_and(|(part, _)| full(part))
            && let Some(part) = self.filling.take()
        {
            self.send(part, None)?;
        }
        let mut filling = self.filling.take().map_or_else(|| self.begin(), Ok)?;
        let taken = bytes.len().min(self.part_size - filling.0.len());
        filling.0.extend_from_slice(&bytes[..taken]);
        self.filling = Some(filling);
        self.digest.update(&bytes[..taken]);
        self.size += taken as u64;
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
