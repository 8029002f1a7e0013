//! The unix socket itself: no other user can connect to it at any moment, and the socket of a dead supervisor is replaced.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use nix::unistd::Uid;
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::{UnixListener, UnixStream};

use crate::exit::{Code, Failure};
use crate::http::server::Listener;
use crate::process::ports;

/// How long a client may read nothing of an answer: a person's terminal that follows the log may be paused for a while.
const WRITE_LIMIT: Duration = Duration::from_mins(10);
/// Length of the listening queue.
const BACKLOG: i32 = 64;

/// A bound and listening control socket. Dropping it removes its file.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the file that Tandem made. Another file in its place is left alone.
    file: (u64, u64),
}

/// Bind the control socket at `path`, which must have at most 107 bytes. Must be called within the runtime.
///
/// # Errors
/// [`Code::CannotCreate`] when a live Tandem answers there, something else lies there, or it cannot be bound.
pub fn open(path: &Path) -> anyhow::Result<ControlSocket> {
    clear(path)?;
    let bound = || -> io::Result<ControlSocket> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.bind(&SockAddr::unix(path)?)?;
        // Blocks: before the loop turns.
        // connect(2) is refused until listen(2), whatever the mode; so no client comes in between these lines (unix(7)).
        fs::set_permissions(path, Permissions::from_mode(0o600))?;
        socket.listen(BACKLOG)?;
        // Blocks: before the loop turns.
        socket.set_nonblocking(true)?;
        let meta = path.symlink_metadata()?;
        let listener =
            UnixListener::from_std(std::os::unix::net::UnixListener::from(std::os::fd::OwnedFd::from(socket)))?;
        Ok(ControlSocket { listener, path: path.to_owned(), file: (meta.dev(), meta.ino()) })
    };
    bound().with_context(|| {
        Failure::new(Code::CannotCreate, format!("cannot listen on the control socket {}", path.display()))
    })
}

/// Remove what a dead supervisor left at `path`.
fn clear(path: &Path) -> anyhow::Result<()> {
    let cannot = |why: String| Failure::new(Code::CannotCreate, why);
    // Blocks: before the loop turns.
    let meta = match path.symlink_metadata() {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => bail!(anyhow::Error::new(error).context(cannot(format!("cannot look at {}", path.display())))),
    };
    if !meta.file_type().is_socket() {
        bail!(cannot(format!("{} is in the control socket's place and is no socket: remove it", path.display())));
    }
    // Blocks: before the loop turns.
    match ports::unix_listener(path) {
        // No process listens: its supervisor was killed.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)
            .with_context(|| cannot(format!("cannot remove the stale control socket {}", path.display()))),
        Ok(by) => {
            let by = by.map_or_else(String::new, |pid| format!(" (pid {pid})"));
            bail!(cannot(format!("another tandem{by} answers on the control socket {}", path.display())))
        }
        Err(error) => bail!(
            anyhow::Error::new(error).context(cannot(format!("cannot tell who has the socket {}", path.display())))
        ),
    }
}

impl Listener for ControlSocket {
    type Stream = UnixStream;

    const WRITE_LIMIT: Duration = WRITE_LIMIT;

    fn name(&self) -> &'static str {
        "the control socket"
    }

    /// The next connection of our own user or root. The file's mode keeps others out already. If the mode is loosened, the
    /// check of the client's user still holds (SO_PEERCRED).
    async fn accept(&self) -> io::Result<UnixStream> {
        loop {
            let (stream, _) = self.listener.accept().await?;
            let uid = stream.peer_cred()?.uid();
            if may_enter(uid, Uid::effective().as_raw()) {
                return Ok(stream);
            }
            tracing::warn!("refused user id {uid} on the control socket");
        }
    }
}

fn may_enter(uid: u32, own: u32) -> bool {
    uid == own || uid == 0
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // Blocks: at the end of all, when nothing is left to answer for.
        let ours = self.path.symlink_metadata().is_ok_and(|meta| (meta.dev(), meta.ino()) == self.file);
        if ours {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::code_of;

    #[tokio::test]
    async fn the_file_is_private_and_goes_with_its_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        let socket = open(&path).unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o7777, 0o600);
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_a_live_one_and_other_files_are_not() {
        let _alone = crate::forks::none();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        // Bound, and closed without being removed: what SIGKILL leaves.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let socket = open(&path).unwrap();
        let error = open(&path).unwrap_err();
        assert_eq!(code_of(&error), Code::CannotCreate);
        assert!(error.to_string().contains(&format!("another tandem (pid {})", std::process::id())), "{error}");
        // One whose file was replaced leaves the new one alone.
        fs::remove_file(&path).unwrap();
        fs::write(&path, "something").unwrap();
        drop(socket);
        assert!(open(&path).unwrap_err().to_string().contains("is no socket"));
        assert!(path.exists());
    }

    #[tokio::test]
    async fn a_path_that_is_too_long_says_so() {
        let path = std::env::temp_dir().join("d".repeat(108));
        let error = open(&path).unwrap_err();
        assert_eq!(code_of(&error), Code::CannotCreate);
        assert!(format!("{error:#}").contains("control socket"), "{error:#}");
    }

    #[test]
    fn our_own_user_and_root_may_enter() {
        assert!(may_enter(0, 1000) && may_enter(1000, 1000) && may_enter(0, 0));
        assert!(!may_enter(1000, 0) && !may_enter(1001, 1000));
    }
}
