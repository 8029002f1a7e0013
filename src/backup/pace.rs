//! Reads a stream of the server's in large pieces, at most at the configured rate, and with rests while the server works for
//! others.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};

use super::stand_back::{Others, Rests};

/// So much at once is enough, in bytes: pg_dump writes 4 kB at a time, and a reader that waits for each is woken a quarter of
/// a million times for a GB.
const ENOUGH: usize = 128 << 10;
/// How long more is waited for where there was less.
const PAUSE: Duration = Duration::from_millis(1);
/// The size of the pipe, in bytes: enough for the writer to go on while the reader pauses.
const PIPE_MIN: i32 = 512 << 10;
/// How much of a limited stream may come at once after it stood still.
const BURST: Duration = Duration::from_millis(100);

/// A pipe that is read at that pace.
#[derive(Debug)]
pub struct Paced<R> {
    pipe: R,
    /// Whether it holds what comes in a pause.
    is_wide: bool,
    /// Bytes a second, at most.
    rate: Option<u64>,
    /// When the next byte may be read.
    next: Instant,
    rests: Rests,
    /// Whether the pipe held less than was asked for when it was last read, and less than is enough.
    was_short: bool,
}

impl<R: Read + AsFd> Paced<R> {
    /// Read `pipe` with at most `rate` bytes a second, and stand back for `others`.
    pub fn new(pipe: R, rate: Option<u64>, others: Others) -> Self {
        let is_wide = fcntl(&pipe, FcntlArg::F_GETPIPE_SZ).is_ok_and(|size| size >= PIPE_MIN);
        Self { pipe, is_wide, rate, next: Instant::now(), rests: Rests::new(others), was_short: false }
    }

    #[expect(clippy::disallowed_methods, reason = "no pipe tells when it holds enough; and a rate is time")]
    fn pause(&mut self) {
        let for_more = if self.is_wide && self.was_short { PAUSE } else { Duration::ZERO };
        let for_rate = self.next.saturating_duration_since(Instant::now());
        let pause = for_more.max(for_rate).max(self.rests.due());
        if !pause.is_zero() {
            thread::sleep(pause);
        }
        self.rests.begin_work();
    }
}

impl<R: Read + AsFd> Read for Paced<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.pause();
        let length = self.pipe.read(buffer)?;
        // Who asks for little gets little, however much there is.
        self.was_short = length < ENOUGH.min(buffer.len());
        if let Some(rate) = self.rate.filter(|rate| *rate > 0) {
            let took = Duration::from_secs_f64(length as f64 / rate as f64);
            let now = Instant::now();
            self.next = self.next.max(now.checked_sub(BURST).unwrap_or(now)) + took;
        }
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn all_of_it_comes_and_no_faster_than_it_may() {
        let text: Vec<u8> = (0..300_000_u32).map(|at| (at >> 3) as u8).collect();
        for (rate, least) in [(None, Duration::ZERO), (Some(1_000_000), Duration::from_millis(150))] {
            let (reader, mut writer) = io::pipe().unwrap();
            let _ = fcntl(&writer, FcntlArg::F_SETPIPE_SZ(1 << 20));
            let began = Instant::now();
            let back = thread::scope(|scope| {
                scope.spawn(|| {
                    text.chunks(4096).for_each(|chunk| writer.write_all(chunk).unwrap());
                    drop(writer);
                });
                let mut back = Vec::new();
                Paced::new(reader, rate, Others::default()).read_to_end(&mut back).unwrap();
                back
            });
            assert!(back == text, "{} bytes", back.len());
            assert!(began.elapsed() >= least, "{:?}", began.elapsed());
        }
    }
}
