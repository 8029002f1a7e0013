//! A channel to one child for messages that carry descriptors: a SOCK_SEQPACKET socket pair (unix(7)).

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair};
use tokio::io::Interest;
use tokio::net::UnixDatagram;

/// Longest message read whole, in bytes.
const MESSAGE_SIZE_MAX: usize = 64 * 1024;

/// Our end. The methods of datagram sockets fit: this kind differs in having two ends, and in telling when one is closed.
#[derive(Debug)]
pub struct Channel(UnixDatagram);

/// A channel: our end, and the one that a child is to inherit. Needs a running tokio runtime.
///
/// # Errors
/// No descriptor is left.
pub fn pair() -> io::Result<(Channel, OwnedFd)> {
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    // For our end alone: O_NONBLOCK belongs to the open file, and the child's end blocks as it is.
    let ours = std::os::unix::net::UnixDatagram::from(ours);
    ours.set_nonblocking(true)?;
    Ok((Channel(UnixDatagram::from_std(ours)?), theirs))
}

impl Channel {
    /// Send one message; the receiver gets duplicates of `fds` with it (SCM_RIGHTS).
    ///
    /// # Errors
    /// `BrokenPipe` when the other end is closed; `EMSGSIZE` when the message is longer than the socket's buffer, about
    /// 200 KB.
    pub async fn send(&self, message: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let numbers: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&numbers)];
        let control = if numbers.is_empty() { &[][..] } else { &rights[..] };
        self.0
            .async_io(Interest::WRITABLE, || {
                let parts = [IoSlice::new(message)];
                Ok(sendmsg::<()>(self.0.as_raw_fd(), &parts, control, MsgFlags::MSG_NOSIGNAL, None)?)
            })
            .await?;
        Ok(())
    }

    /// The next message, or `None` when the other end is closed. Descriptors that come along are not taken.
    /// Cancel-safe.
    ///
    /// # Errors
    /// The kernel's; `ConnectionReset` when the other end was closed with messages of ours unread.
    pub async fn recv(&self) -> io::Result<Option<Vec<u8>>> {
        let mut buffer = vec![0; MESSAGE_SIZE_MAX];
        let length = self.0.recv(&mut buffer).await?;
        buffer.truncate(length);
        Ok((length > 0).then_some(buffer))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{IoSliceMut, Read, Write};
    use std::time::Duration;

    use std::os::fd::AsFd;

    use nix::sys::socket::{ControlMessageOwned, recv, recvmsg};
    use tokio::time::timeout;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn messages_keep_their_bounds_and_bring_their_descriptors() {
        let _alone = crate::forks::none();
        let (ours, theirs) = pair().unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        ours.send(b"one", &[writer.as_fd()]).await.unwrap();
        ours.send(b"two", &[]).await.unwrap();
        drop(writer);
        let mut buffer = [0; 100];
        let mut control = nix::cmsg_space!([RawFd; 1]);
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let message =
            recvmsg::<()>(theirs.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC).unwrap();
        assert_eq!(message.bytes, 3);
        let Some(ControlMessageOwned::ScmRights(fds)) = message.cmsgs().unwrap().next() else {
            panic!("no descriptor")
        };
        let mut passed = std::fs::OpenOptions::new().write(true).open(format!("/proc/self/fd/{}", fds[0])).unwrap();
        nix::unistd::close(fds[0]).unwrap();
        passed.write_all(b"through").unwrap();
        drop(passed);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
        assert_eq!(recv(theirs.as_raw_fd(), &mut buffer, MsgFlags::empty()).unwrap(), 3);

        nix::unistd::write(&theirs, b"answer").unwrap();
        assert_eq!(timeout(LIMIT, ours.recv()).await.unwrap().unwrap().as_deref(), Some(&b"answer"[..]));
        drop(theirs);
        assert_eq!(timeout(LIMIT, ours.recv()).await.unwrap().unwrap(), None);
        assert_eq!(ours.send(b"three", &[]).await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
