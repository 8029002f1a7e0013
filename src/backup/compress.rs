//! A stream into a compressed file and back, on two threads, counting and digesting what passes.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;

use flate2::read::MultiGzDecoder;
use libdeflater::{CompressionLvl, Compressor};
use sha2::{Digest, Sha256};
use zstd::zstd_safe::CParameter;

use super::files::Flushing;
use crate::config::Compression;
use crate::install::hexadecimal;

/// How much of the stream becomes one gzip member, in bytes: it fits into a core's own cache, and the dictionary that each
/// member begins anew costs half a percent.
const BLOCK_SIZE: usize = 1 << 18;
/// Compressing threads.
const THREADS: usize = 2;
/// Blocks that wait for the threads, so that the threads and pg_dump do not take turns.
const QUEUE: usize = 16;
/// libdeflate's fastest: 4 % larger than `gzip -6` on the reference backend's rows, in a fifth of its time, and half of
/// what its own default takes. Who wants small backups has zstd.
const GZIP_LEVEL: i32 = 1;
/// Half the time of zstd's own default, and 2 % larger.
const ZSTD_LEVEL: i32 = 1;
/// What each of zstd's threads works on, in bytes; its own choice would take 80 MB in all.
const ZSTD_JOB_SIZE: u32 = 1 << 20;
/// How much of the stream's end is kept, in bytes.
const TAIL_SIZE: usize = 256;

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Before compression.
    pub stream_bytes: u64,
    pub size_bytes: u64,
    pub sha256: String,
    /// The last of the stream.
    pub tail: Vec<u8>,
}

/// Write all of `stream` to `file`. `passed` counts the stream's bytes meanwhile.
///
/// # Errors
/// The stream cannot be read or the file not written.
pub fn write(
    stream: impl Read + Send,
    file: File,
    compression: Compression,
    passed: &AtomicU64,
) -> io::Result<Written> {
    let mut stream = Watched { inner: stream, passed, tail: Vec::new() };
    let mut out = Digesting { inner: Flushing::new(file), hash: Sha256::new() };
    match compression {
        Compression::None => {
            io::copy(&mut BufReader::with_capacity(BLOCK_SIZE, &mut stream), &mut out)?;
        }
        Compression::Gzip => gzip(&mut stream, &mut out)?,
        Compression::Zstd => {
            let mut encoder = zstd::Encoder::new(&mut out, ZSTD_LEVEL)?;
            encoder.include_checksum(true)?;
            encoder.multithread(THREADS as u32)?;
            encoder.set_parameter(CParameter::JobSize(ZSTD_JOB_SIZE))?;
            io::copy(&mut BufReader::with_capacity(BLOCK_SIZE, &mut stream), &mut encoder)?;
            encoder.finish()?;
        }
    }
    let (size_bytes, sha256) = (out.inner.finish()?, hexadecimal(&out.hash.finalize()));
    Ok(Written { stream_bytes: passed.load(Ordering::Relaxed), size_bytes, sha256, tail: stream.tail })
}

/// What one thread is to compress, and where to.
struct Job {
    block: Vec<u8>,
    member: SyncSender<io::Result<Vec<u8>>>,
}

/// One member a block, each on whichever thread is free, and written in the order of the blocks.
fn gzip(stream: &mut (impl Read + Send), out: &mut impl Write) -> io::Result<()> {
    thread::scope(|scope| {
        let (give, jobs) = sync_channel::<Job>(QUEUE);
        let (promise, members) = sync_channel(QUEUE);
        let (give_back, spare) = channel();
        // Only the threads own the queue: when the last one ends, a sender that waits for room gets an error.
        let jobs = Arc::new(Mutex::new(jobs));
        for _ in 0..THREADS {
            let (jobs, give_back) = (jobs.clone(), give_back.clone());
            scope.spawn(move || {
                let mut compressor = Compressor::new(CompressionLvl::new(GZIP_LEVEL).unwrap_or_default());
                let mut scratch = vec![0; compressor.gzip_compress_bound(BLOCK_SIZE)];
                loop {
                    let next = jobs.lock().ok().and_then(|jobs| jobs.recv().ok());
                    let Some(Job { block, member }) = next else { return };
                    // Either receiver may be gone: an earlier block could not be written, or this one is among the last.
                    let _ = member.send(compress(&mut compressor, &block, &mut scratch));
                    let _ = give_back.send(block);
                }
            });
        }
        drop(jobs);
        let reading = scope.spawn(move || -> io::Result<()> {
            // In pieces as large as what is taken: a block by itself would begin with small ones, and wait for each.
            let mut stream = BufReader::with_capacity(BLOCK_SIZE, stream);
            for number in 0.. {
                let mut block: Vec<u8> = spare.try_recv().unwrap_or_default();
                block.clear();
                block.reserve(BLOCK_SIZE);
                let length = stream.by_ref().take(BLOCK_SIZE as u64).read_to_end(&mut block)?;
                // An empty stream is one empty member: no file is none.
                if length == 0 && number > 0 {
                    break;
                }
                let (member, promised) = sync_channel(1);
                let taken = give.send(Job { block, member }).is_ok() && promise.send(promised).is_ok();
                if !taken || length < BLOCK_SIZE {
                    break;
                }
            }
            Ok(())
        });
        let gone = |_| io::Error::other("a compressing thread panicked");
        let write = |promised: Receiver<io::Result<Vec<u8>>>| out.write_all(&promised.recv().map_err(gone)??);
        let written = members.iter().try_for_each(write);
        // The end of the channel tells the threads that still read.
        drop(members);
        let read = reading.join().unwrap_or_else(|_| Err(io::Error::other("the reading thread panicked")));
        written.and(read)
    })
}

/// One gzip member (RFC 1952, section 2.3); `scratch` has room for it.
fn compress(compressor: &mut Compressor, block: &[u8], scratch: &mut [u8]) -> io::Result<Vec<u8>> {
    let length = compressor.gzip_compress(block, scratch).map_err(io::Error::other)?;
    Ok(scratch[..length].to_vec())
}

/// What is in the file at `path`, uncompressed.
///
/// # Errors
/// It cannot be opened; what is wrong with its content shows as it is read.
pub fn read(path: &Path, compression: Compression) -> io::Result<Box<dyn Read + Send>> {
    let file = BufReader::with_capacity(BLOCK_SIZE, File::open(path)?);
    Ok(match compression {
        Compression::None => Box::new(file),
        Compression::Gzip => Box::new(MultiGzDecoder::new(file)),
        Compression::Zstd => Box::new(zstd::Decoder::with_buffer(file)?),
    })
}

struct Watched<'a, R> {
    inner: R,
    passed: &'a AtomicU64,
    tail: Vec<u8>,
}

impl<R: Read> Read for Watched<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.passed.fetch_add(length as u64, Ordering::Relaxed);
        let new = &buffer[..length];
        if length >= TAIL_SIZE {
            self.tail.clear();
        }
        self.tail.extend_from_slice(&new[length.saturating_sub(TAIL_SIZE)..]);
        let excess = self.tail.len().saturating_sub(TAIL_SIZE);
        self.tail.drain(..excess);
        Ok(length)
    }
}

struct Digesting<W> {
    inner: W,
    hash: Sha256,
}

impl<W: Write> Write for Digesting<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let length = self.inner.write(buffer)?;
        self.hash.update(&buffer[..length]);
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::super::files::digest;
    use super::*;

    #[test]
    fn every_size_and_way_comes_back_and_the_digest_is_the_files() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("file");
        let text: Vec<u8> = (0..3 * BLOCK_SIZE + 7).map(|at| ((at * at) >> 7) as u8).collect();
        for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
            for length in [0, 1, BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + 1, 3 * BLOCK_SIZE + 7] {
                let passed = AtomicU64::new(0);
                let written = write(&text[..length], File::create(&path).unwrap(), compression, &passed).unwrap();
                assert_eq!((written.sha256.clone(), written.size_bytes), digest(&path).unwrap());
                assert_eq!(written.stream_bytes, length as u64);
                assert_eq!(written.tail, text[length.saturating_sub(TAIL_SIZE)..length]);
                let mut back = Vec::new();
                read(&path, compression).unwrap().read_to_end(&mut back).unwrap();
                assert!(back == text[..length], "{compression:?} {length}");
            }
        }
    }

    #[test]
    fn a_file_that_takes_no_more_ends_the_reading_too() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let endless = io::repeat(b'x');
        let error = write(endless, full, Compression::Gzip, &AtomicU64::new(0)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
}
