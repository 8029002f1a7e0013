//! Reads the files of a configuration: UTF-8, of a size that people write, and never waiting for long.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// How long whoever holds the other end of a named pipe may take: secret stores offer a `.env` in that way. For a terminal
/// and other devices too.
const PIPE_LIMIT: Duration = Duration::from_secs(2);
/// No configuration is as large; a device that never ends is.
const BYTES_MAX: usize = 4 << 20;

/// The text of `path`.
///
/// # Errors
/// It cannot be opened or read, nothing comes out of the pipe or device that it is, or it is no text in UTF-8.
pub fn read(path: &Path) -> io::Result<String> {
    // To open a pipe would wait until somebody opens its other end.
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let mut file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)?;
    let kind = file.metadata()?.file_type();
    let slow = || {
        let what = if kind.is_fifo() { "a pipe" } else { "no regular file" };
        io::Error::other(format!("it is {what}, and nothing came out of it for {PIPE_LIMIT:?}"))
    };
    let (mut bytes, mut buffer, began) = (Vec::new(), vec![0; 64 * 1024], Instant::now());
    loop {
        // A terminal that nobody types at answers EAGAIN for ever.
        if !kind.is_file() && !is_readable(&file, PIPE_LIMIT.saturating_sub(began.elapsed()))? {
            return Err(slow());
        }
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) if bytes.len() + count > BYTES_MAX => {
                return Err(io::Error::other(format!("it is larger than {} MB", BYTES_MAX >> 20)));
            }
            Ok(count) => bytes.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock && began.elapsed() < PIPE_LIMIT => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Err(slow()),
            Err(error) => return Err(error),
        }
    }
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err(io::Error::other("it is UTF-16: save it as UTF-8"));
    }
    String::from_utf8(bytes).map_err(|error| {
        let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        io::Error::other(format!("line {line} is not UTF-8: save it as UTF-8"))
    })
}

/// Whether something, or its end, comes out of `pipe` (or a device) within `limit`. One that nobody has opened for writing yet has no end.
fn is_readable(pipe: &File, limit: Duration) -> io::Result<bool> {
    let mut watched = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
    let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
    match poll(&mut watched, limit) {
        Ok(count) => Ok(count > 0),
        Err(Errno::EINTR) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::Mode;

    #[test]
    fn what_is_no_text_is_told_and_a_pipe_is_not_waited_for_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(".env");
        let said = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            read(&path).map_err(|error| error.to_string())
        };
        assert_eq!(said("A=ö".as_bytes()).unwrap(), "A=ö");
        assert_eq!(said(b"A=1\nB=\xf6\n").unwrap_err(), "line 2 is not UTF-8: save it as UTF-8");
        assert_eq!(said(b"\xff\xfeA\0=\0").unwrap_err(), "it is UTF-16: save it as UTF-8");
        assert_eq!(read(Path::new("/dev/null")).unwrap(), "", "what containers put over a file that is not to be seen");
        assert_eq!(read(Path::new("/dev/zero")).unwrap_err().to_string(), "it is larger than 4 MB");

        let pipe = dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, Mode::S_IRWXU).unwrap();
        assert!(read(&pipe).unwrap_err().to_string().contains("nothing came out of it"));
        let writing = std::thread::spawn({
            let pipe = pipe.clone();
            move || std::fs::write(pipe, "A=1").unwrap()
        });
        assert_eq!(read(&pipe).unwrap(), "A=1");
        writing.join().unwrap();
    }

    #[test]
    fn a_terminal_that_nobody_types_at_is_not_waited_for_for_ever() {
        let terminal = nix::pty::openpty(None, None).unwrap();
        let name = nix::unistd::ttyname(&terminal.slave).unwrap();
        assert!(read(&name).unwrap_err().to_string().contains("no regular file, and nothing came out of it"));
    }
}
