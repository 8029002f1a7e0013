//! What commands print: their data to standard output, and what they say beside it to standard error.
//!
//! `println!` panics where a reader has closed the pipe, and `eprintln!` does too. Here a reader that has read enough
//! (`| head -1`) ends the output quietly, and anything else that keeps data from standard output is an error.

use std::io;
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::terminal;

/// What became of the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Printed {
    Whole,
    /// The reader has closed the pipe: nothing more needs to be printed.
    Unread,
}

/// Print `text` to standard output as it stands.
///
/// # Errors
/// Standard output cannot be written, as on a full disk.
pub fn print(text: &str) -> io::Result<Printed> {
    // Blocks: a command that waits for the reader of its data.
    match write_all(io::stdout(), text.as_bytes()) {
        Ok(()) => Ok(Printed::Whole),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Printed::Unread),
        Err(error) => {
            let told = error.to_string();
            let told = told.split(" (os error").next().unwrap_or_default();
            Err(io::Error::new(error.kind(), format!("write standard output: {told}")))
        }
    }
}

/// Say a line to the person at the terminal; that it cannot be written is no error.
pub fn say_aside(line: &str) {
    prompt(&format!("{line}\n"));
}

/// As [`say_aside`], and stay on that line.
pub fn prompt(text: &str) {
    terminal::outlet().put_urgent(text.as_bytes().to_vec());
    super::flush();
}

/// Write all of `text` to `stream`, without the standard library's lock and buffer.
pub(super) fn write_all(stream: impl AsFd, mut text: &[u8]) -> io::Result<()> {
    while !text.is_empty() {
        match nix::unistd::write(&stream, text) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(length) => text = &text[length..],
            Err(Errno::EINTR) => {}
            // Somebody who shares the terminal or the pipe has set O_NONBLOCK on it (open(2)).
            Err(Errno::EAGAIN) => {
                let mut fds = [PollFd::new(stream.as_fd(), PollFlags::POLLOUT)];
                poll(&mut fds, PollTimeout::NONE)?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
