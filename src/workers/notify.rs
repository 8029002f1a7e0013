//! What workers say about themselves: sd_notify(3) datagrams on a unix socket of ours.
//!
//! The socket is in the abstract namespace, so no file is left behind and a worker that runs as another user reaches it.
//! Anybody on the machine can write to it: a notice counts only for the pid that the *kernel* put beside it
//! (SCM_CREDENTIALS), and it is for the caller to know whether that pid is a worker of its own.

use std::io::{self, IoSliceMut};
use std::os::fd::AsRawFd;

use nix::cmsg_space;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, UnixCredentials, bind, recvmsg,
    setsockopt, socket, sockopt,
};
use tokio::io::Interest;
use tokio::net::UnixDatagram;

use crate::http::Counts;

/// Longest datagram read whole, in bytes. Only an import error's traceback can come near it.
const DATAGRAM_SIZE_MAX: usize = 64 * 1024;

/// One datagram, and who sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// The sender, as the kernel knows it.
    pub pid: i32,
    /// In the order they were written; `Other` lines are kept so that a caller can log them.
    pub messages: Vec<Message>,
}

/// What one datagram can say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// `READY=1`: started, lifespan included.
    Ready,
    /// `WATCHDOG=1`: the event loop turns.
    Watchdog,
    /// `STOPPING=1`: leaves of its own will, or as told.
    Stopping,
    /// `X_TANDEM_REQUESTS=`, `X_TANDEM_CONNECTIONS=` and `X_TANDEM_IN_FLIGHT=`, all three.
    Counts(Counts),
    /// `X_TANDEM_IMPORT_ERROR=<json string>`: the application cannot be imported; the traceback.
    ImportError(String),
    /// `X_TANDEM_FORK_UNSAFE=<json list of strings>`: what the template holds that does not come through a fork.
    ForkUnsafe(Vec<String>),
    /// Any other line: another program's assignment, or garbage.
    Other(String),
}

/// The receiving end.
#[derive(Debug)]
pub struct NotifySocket {
    socket: UnixDatagram,
    name: String,
}

impl NotifySocket {
    /// Open a socket under a name of its own. Needs a running tokio runtime.
    ///
    /// # Errors
    /// The kernel's, when there is no descriptor left.
    pub fn open() -> io::Result<Self> {
        // 128 random bits: containers that share the host's network share this namespace too.
        let name = format!("tandem-{:032x}", rand::random::<u128>());
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Unix, SockType::Datagram, flags, None)?;
        // Before the bind: a datagram that comes earlier would carry no credentials.
        setsockopt(&fd, sockopt::PassCred, &true)?;
        bind(fd.as_raw_fd(), &UnixAddr::new_abstract(name.as_bytes())?)?;
        Ok(Self { socket: UnixDatagram::from_std(fd.into())?, name: format!("@{name}") })
    }

    /// The value of `NOTIFY_SOCKET` for a worker.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Wait for the next datagram that says who sent it. Cancel-safe: a datagram is taken or left, never lost.
    ///
    /// # Errors
    /// The socket itself is broken; never because of what somebody sent.
    pub async fn recv(&self) -> io::Result<Notice> {
        loop {
            let received = self.socket.async_io(Interest::READABLE, || receive(&self.socket)).await?;
            if let Some(notice) = received {
                return Ok(notice);
            }
        }
    }
}

/// Take one datagram off the socket; `None` if it does not say who sent it.
fn receive(socket: &UnixDatagram) -> io::Result<Option<Notice>> {
    let mut bytes = vec![0; DATAGRAM_SIZE_MAX];
    // Room for credentials and nothing else: the kernel then drops descriptors that a sender attached, instead of
    // opening them here.
    let mut control = cmsg_space!(UnixCredentials);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let message = match recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags) {
        Ok(message) => message,
        Err(nix::errno::Errno::EINTR) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    // An error here is a control message that was cut off: something other than credentials came along.
    let pid = message.cmsgs().ok().and_then(|mut messages| {
        messages.find_map(|control| match control {
            ControlMessageOwned::ScmCredentials(credentials) => Some(credentials.pid()),
            _ => None,
        })
    });
    let (length, cut) = (message.bytes, message.flags.contains(MsgFlags::MSG_TRUNC));
    // The kernel writes 0 for a process that this pid namespace does not show.
    let Some(pid) = pid.filter(|&pid| pid > 0) else {
        tracing::debug!(datagram.bytes = length, "notice without a sender");
        return Ok(None);
    };
    let text = String::from_utf8_lossy(bytes.get(..length).unwrap_or_default());
    Ok(Some(Notice { pid, messages: parse(&text, cut) }))
}

/// The messages in a datagram; `cut` tells that its end is missing.
fn parse(text: &str, cut: bool) -> Vec<Message> {
    let mut lines: Vec<&str> = text.split('\n').collect();
    // Half a line can lie (`X_TANDEM_REQUESTS=12` of 1234); half a traceback is still worth reading.
    if cut && lines.last().is_some_and(|line| !line.starts_with(IMPORT_ERROR)) {
        lines.pop();
    }
    let (mut requests, mut connections, mut in_flight) = (None, None, None);
    let mut messages = Vec::new();
    for line in lines {
        let Some((key, value)) = line.split_once('=') else {
            if !line.is_empty() {
                messages.push(Message::Other(line.to_owned()));
            }
            continue;
        };
        match (key, value) {
            ("READY", "1") => messages.push(Message::Ready),
            ("WATCHDOG", "1") => messages.push(Message::Watchdog),
            ("STOPPING", "1") => messages.push(Message::Stopping),
            ("X_TANDEM_REQUESTS", value) => requests = value.parse().ok(),
            ("X_TANDEM_CONNECTIONS", value) => connections = value.parse().ok(),
            ("X_TANDEM_IN_FLIGHT", value) => in_flight = value.parse().ok(),
            ("X_TANDEM_IMPORT_ERROR", value) => messages.push(Message::ImportError(import_error(value))),
            ("X_TANDEM_FORK_UNSAFE", value) => messages.push(
                serde_json::from_str(value).map_or_else(|_| Message::Other(line.to_owned()), Message::ForkUnsafe),
            ),
            _ => messages.push(Message::Other(line.to_owned())),
        }
    }
    if let (Some(requests), Some(connections), Some(in_flight)) = (requests, connections, in_flight) {
        messages.push(Message::Counts(Counts { requests, connections, in_flight }));
    }
    messages
}

const IMPORT_ERROR: &str = "X_TANDEM_IMPORT_ERROR=";

/// The text of an import error; one that is not the JSON it should be is shown as it came.
fn import_error(value: &str) -> String {
    serde_json::from_str(value).unwrap_or_else(|_| value.to_owned())
}

#[cfg(test)]
#[path = "notify_tests.rs"]
mod tests;
