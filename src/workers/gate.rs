//! The gate at which a process that runs our Python waits, and its lifeline: a pipe whose writing end Tandem keeps.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;

use nix::fcntl::OFlag;

/// The writing end. A byte opens the gate. When this is dropped, or Tandem dies, the process ends too.
#[derive(Debug)]
pub struct Gate(File);

impl Gate {
    /// A gate, and the reading end for the process.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn new() -> io::Result<(Self, OwnedFd)> {
        let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        // Blocks: never; one byte is written to it, and a pipe holds more.
        Ok((Self(File::from(writer)), reader))
    }

    /// Let the process go on: it imports the application.
    ///
    /// # Errors
    /// `BrokenPipe` when the process has ended already.
    pub fn open(&mut self) -> io::Result<()> {
        self.0.write_all(b"1")
    }
}
