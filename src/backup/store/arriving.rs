//! A file that is whole under its name or not there: a temporary name beside it, fsync, rename, fsync of the directory.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use hyper::body::Bytes;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_blocking};

use super::name::{PART_PREFIX, PART_SUFFIX};
use super::parts::End;
use super::seal::{self, Identities};
use super::trouble::{Kind, StoreError};
use crate::durable;
use crate::install::hexadecimal;

/// Messages to the thread that writes.
enum Piece {
    Bytes(Bytes),
    /// That was all. A channel that ends without it means that the rest never came.
    End(Expected),
}

/// What must have come before the file gets its name.
pub(super) struct Expected {
    pub(super) size: u64,
    pub(super) sha256: Option<String>,
}

/// A file that a thread writes. Dropped before its end, it leaves nothing.
pub(super) struct Arriving {
    pieces: mpsc::Sender<Piece>,
    thread: Option<JoinHandle<Result<End, StoreError>>>,
}

impl Arriving {
    /// Begin a file that shall be `path`; its directory must exist. What comes is sealed if there are keys to open it.
    pub(super) fn begin(path: PathBuf, keys: Option<Identities>) -> Self {
        // One piece waits while another is written.
        let (pieces, receiver) = mpsc::channel(1);
        Self { pieces, thread: Some(spawn_blocking(move || write(&path, Incoming::new(receiver), keys.as_ref()))) }
    }

    /// Add `bytes`.
    pub(super) async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        match self.pieces.send(Piece::Bytes(bytes)).await {
            Ok(()) => Ok(()),
            // The thread has ended before its time and says why.
            Err(_) => Err(self.ended().await.err().unwrap_or_else(early)),
        }
    }

    /// Give the file its name, once everything that was expected has come and is on the disk; where it `came` to an
    /// error, leave nothing of it.
    pub(super) async fn conclude(mut self, came: Result<Expected, StoreError>) -> Result<End, StoreError> {
        match came {
            Ok(expected) => {
                // A thread that has ended early says why by itself.
                let _ = self.pieces.send(Piece::End(expected)).await;
                self.ended().await
            }
            Err(error) => {
                let Self { pieces, thread } = self;
                drop(pieces);
                if let Some(thread) = thread {
                    let _ = thread.await;
                }
                Err(error)
            }
        }
    }

    async fn ended(&mut self) -> Result<End, StoreError> {
        let thread = self.thread.take().ok_or_else(early)?;
        thread.await.map_err(|error| StoreError::thread(&error))?
    }
}

fn early() -> StoreError {
    StoreError::new(Kind::Other, "the file ended before its last part came")
}

fn write(path: &Path, mut incoming: Incoming, keys: Option<&Identities>) -> Result<End, StoreError> {
    let failed = |error: io::Error| StoreError::local(format!("write {}", path.display()), error);
    let dir = path.parent().unwrap_or(Path::new("/"));
    // Mode 0600: a backup holds all that the database hides.
    let mut file = tempfile::Builder::new()
        .prefix(PART_PREFIX)
        .suffix(PART_SUFFIX)
        .tempfile_in(dir)
        .map_err(|error| StoreError::local(format!("create a file in {}", dir.display()), error))?;
    match keys {
        None => io::copy(&mut incoming, &mut file).map(drop).map_err(failed)?,
        Some(keys) => {
            io::copy(&mut keys.open(&mut incoming)?, &mut file).map_err(|error| match error.kind() {
                io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => seal::damaged(&error),
                _ => failed(error),
            })?;
            // What follows the end of the seal is none of the file, and is digested with the rest.
            io::copy(&mut incoming, &mut io::sink()).map_err(failed)?;
        }
    }
    let end = incoming.check(path)?;
    durable::put(file, path).map_err(failed)?;
    Ok(end)
}

/// What comes, as a reader that digests it.
struct Incoming {
    pieces: mpsc::Receiver<Piece>,
    current: Bytes,
    digest: Sha256,
    size: u64,
    expected: Option<Expected>,
}

impl Incoming {
    fn new(pieces: mpsc::Receiver<Piece>) -> Self {
        Self { pieces, current: Bytes::new(), digest: Sha256::new(), size: 0, expected: None }
    }

    /// Whether what came is what was expected, once all has come.
    fn check(self, path: &Path) -> Result<End, StoreError> {
        let sha256 = hexadecimal(&self.digest.finalize());
        let expected = self.expected.unwrap_or(Expected { size: 0, sha256: None });
        let altered = |what: String| {
            let message = format!("{} was not written: {what}; take another copy", path.display());
            Err(StoreError::new(Kind::Altered, message))
        };
        if self.size != expected.size {
            return altered(format!("{} bytes came, not {}", self.size, expected.size));
        }
        match expected.sha256 {
            Some(kept) if kept != sha256 => altered(format!("its SHA-256 is {sha256}, not {kept}")),
            _ => Ok(End { size: self.size, sha256 }),
        }
    }
}

impl Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() && self.expected.is_none() {
            match self.pieces.blocking_recv() {
                Some(Piece::Bytes(bytes)) => self.current = bytes,
                Some(Piece::End(expected)) => self.expected = Some(expected),
                None => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the rest never came")),
            }
        }
        let taken = self.current.split_to(buffer.len().min(self.current.len()));
        buffer[..taken.len()].copy_from_slice(&taken);
        self.digest.update(&taken);
        self.size += taken.len() as u64;
        Ok(taken.len())
    }
}
