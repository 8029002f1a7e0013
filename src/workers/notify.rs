//! What processes say about themselves: sd_notify(3) datagrams, each process on a socket of its own.
//!
//! Tandem's own launcher inherits one end of a socket pair, which no other process can reach. Another server
//! (`workers.command`) knows sd_notify's way alone: it finds a path in `NOTIFY_SOCKET`, in a directory that only the
//! workers' user may enter. Beside each datagram the kernel puts the process that sent it (SCM_CREDENTIALS): it is for the
//! caller to know whether that process may speak.
//!
//! A sender that floods its socket costs little and harms no other: a turn takes a bounded number of datagrams, and pauses.

use std::cell::RefCell;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown, fchown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::cmsg_space;
use nix::fcntl::OFlag;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, UnixCredentials, bind, recvmsg,
    setsockopt, socket, socketpair, sockopt,
};
use tokio::io::Interest;
use tokio::net::UnixDatagram;
use tokio::time::sleep;

use crate::http::{Counts, Unfinished};
use crate::plan::Identity;

/// Longest datagram read whole, in bytes. Only an import error's traceback can come near it.
const DATAGRAM_SIZE_MAX: usize = 64 * 1024;
/// Most datagrams that one turn takes, and about how many bytes.
const TURN_MAX: usize = 32;
const TURN_SIZE_MAX: usize = 128 * 1024;
/// From so many datagrams in one turn on, others may have been lost: the kernel keeps 10 for a socket with a path
/// (net.unix.max_dgram_qlen), and a launcher drops what does not fit.
const OVERRUN: usize = 8;
/// Between two turns.
const TURN_PAUSE: Duration = Duration::from_millis(5);
/// How long to hold back after recvmsg(2) failed.
const ERROR_PAUSE: Duration = Duration::from_millis(100);

/// Most requests that a worker names, and letters of one.
const UNFINISHED_MAX: usize = 8;
const UNFINISHED_LENGTH_MAX: usize = 160;

/// One datagram, and its sender.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// The sender, as the kernel knows it.
    pub pid: i32,
    /// In the order in which they were written. Other lines are left out.
    pub messages: Vec<Message>,
}

/// What one datagram can say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// `READY=1`: started, lifespan included.
    Ready,
    /// `WATCHDOG=1`: the event loop turns.
    Watchdog,
    /// `X_TANDEM_REQUESTS=`, `X_TANDEM_CONNECTIONS=` and `X_TANDEM_IN_FLIGHT=`, all three, and perhaps `X_TANDEM_LOOP_LAG_MS=`.
    Counts(Counts),
    /// `STOPPING=1`: it ends.
    Stopping,
    /// `X_TANDEM_CLOSED=1`: it accepts no connections any more.
    Closed,
    /// `X_TANDEM_DRAINED=1`: it has no requests left.
    Drained,
    /// `X_TANDEM_DRAINING=<json>`: what it has still to finish.
    Draining(Unfinished),
    /// `X_TANDEM_IMPORT_ERROR=<json string>`, `X_TANDEM_LIFESPAN_ERROR=`, `X_TANDEM_CHECK_ERROR=`.
    StartError(StartError),
    /// `X_TANDEM_FORK_UNSAFE=<json list of strings>`: what the template holds that does not come through a fork.
    ForkUnsafe(Vec<String>),
}

/// Why a worker cannot serve, in its own words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartError {
    pub kind: StartErrorKind,
    /// A traceback, or a sentence.
    pub text: String,
}

/// What failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartErrorKind {
    /// The import of the application: the same code will fail again.
    Import,
    /// Its startup.
    Lifespan,
    /// It did not answer well at `workers.check`.
    Check,
}

impl StartErrorKind {
    /// As the end of a sentence.
    pub fn words(self) -> &'static str {
        match self {
            Self::Import => "the application cannot be imported",
            Self::Lifespan => "the application's startup (its lifespan) failed",
            Self::Check => "the application did not pass workers.check",
        }
    }
}

/// What Tandem orders on the same channel, beside the signal of that meaning: an application may have taken that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkerOrder {
    Retire,
    Stop,
}

impl WorkerOrder {
    /// As the launcher reads it.
    fn word(self) -> &'static [u8] {
        match self {
            Self::Retire => b"RETIRE",
            Self::Stop => b"STOP",
        }
    }
}

/// What comes in at a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    Notice(Notice),
    /// There may have been more than the socket's queue could hold, so silence proves nothing.
    Overrun,
}

/// The receiving end. A socket's file goes with it.
#[derive(Debug)]
pub struct NotifySocket {
    socket: UnixDatagram,
    path: Option<PathBuf>,
}

thread_local! {
    /// One for all sockets: a datagram is read and parsed in one go.
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; DATAGRAM_SIZE_MAX]);
}

impl NotifySocket {
    /// A pair: our end, and the one that a process is to inherit. Needs a running tokio runtime.
    ///
    /// # Errors
    /// The kernel's, when there is no descriptor left.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::Datagram, None, SockFlag::SOCK_CLOEXEC)?;
        // Before anything is sent: an earlier datagram would carry no credentials.
        setsockopt(&ours, sockopt::PassCred, &true)?;
        // Ours alone: O_NONBLOCK belongs to the open file, and the process may wait as it likes.
        let ours = std::os::unix::net::UnixDatagram::from(ours);
        ours.set_nonblocking(true)?;
        Ok((Self { socket: UnixDatagram::from_std(ours)?, path: None }, theirs))
    }

    /// A socket for `service` in `dir`, to which only `user` may write, or Tandem's own user. Needs a running tokio
    /// runtime.
    ///
    /// # Errors
    /// `dir` cannot be made or belongs to another user; the path is too long for a socket; the kernel's.
    pub fn in_dir(dir: &Path, service: &str, user: Option<&Identity>) -> io::Result<Self> {
        make_private(dir, user)?;
        // A new process of a service may come before the old one has gone.
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let path = dir.join(format!("{service}.{}", NUMBER.fetch_add(1, Ordering::Relaxed)));
        // Blocks: called by `Launch::aside`, as all of this.
        match fs::remove_file(&path) {
            // Left by a Tandem that was killed.
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Unix, SockType::Datagram, flags, None)?;
        setsockopt(&fd, sockopt::PassCred, &true)?;
        bind(fd.as_raw_fd(), &UnixAddr::new(&path)?)?;
        let socket = Self { socket: UnixDatagram::from_std(fd.into())?, path: Some(path) };
        if let Some(path) = &socket.path {
            // Blocks: called by `Launch::aside`.
            chown(path, user.map(|user| user.uid), user.map(|user| user.gid))?;
            fs::set_permissions(path, Permissions::from_mode(0o600))?;
        }
        Ok(socket)
    }

    /// The value of `NOTIFY_SOCKET` for a process, where it has one.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Give an order to our own launcher. One that does not read is not waited for: its ladder looks after it.
    pub fn order(&self, order: WorkerOrder) {
        if self.path.is_none()
            && let Err(error) = self.socket.try_send(order.word())
        {
            tracing::debug!("tell a worker {order:?}: {error}");
        }
    }

    /// Hand what comes in to `on_heard`, for ever.
    pub async fn listen(&self, name: &str, mut on_heard: impl FnMut(Heard)) {
        let mut told = false;
        loop {
            let turn = match self.socket.readable().await {
                Ok(()) => self.take(&mut on_heard),
                Err(error) => Err(error),
            };
            if let Err(error) = turn {
                if !told {
                    tracing::error!({ service.name = %name }, "read what it says of itself: {error}; this goes on being tried");
                    told = true;
                }
                sleep(ERROR_PAUSE).await;
            }
            sleep(TURN_PAUSE).await;
        }
    }

    /// Hand what is there to `on_heard`, up to the bounds of one turn.
    ///
    /// # Errors
    /// The kernel's, with nothing lost; never because of what was sent.
    pub fn take(&self, mut on_heard: impl FnMut(Heard)) -> io::Result<()> {
        let (mut count, mut size) = (0, 0);
        while count < TURN_MAX && size < TURN_SIZE_MAX {
            match self.socket.try_io(Interest::READABLE, || receive(&self.socket)) {
                Ok((length, notice)) => {
                    count += 1;
                    size += length;
                    if let Some(notice) = notice {
                        on_heard(Heard::Notice(notice));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if count >= OVERRUN {
            on_heard(Heard::Overrun);
        }
        Ok(())
    }
}

impl Drop for NotifySocket {
    fn drop(&mut self) {
        let Some(path) = self.path.take() else { return };
        let remove = move || {
            // Blocks: another thread. No other socket has this path.
            let _ = fs::remove_file(path);
        };
        match tokio::runtime::Handle::try_current() {
            // Blocks: another thread.
            Ok(runtime) => drop(runtime.spawn_blocking(remove)),
            Err(_) => remove(),
        }
    }
}

/// Make `dir` what only `user` may pass through and only Tandem may change.
fn make_private(dir: &Path, user: Option<&Identity>) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    // The directory itself and no link in its place, which in /tmp could be anybody's.
    // Blocks: called by `Launch::aside`, as all of this.
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
    let opened: File =
        std::os::unix::fs::OpenOptionsExt::custom_flags(File::options().read(true), flags.bits()).open(dir)?;
    if opened.metadata()?.uid() != nix::unistd::Uid::effective().as_raw() {
        let text = format!("{} belongs to another user: remove it", dir.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    match user {
        Some(user) => {
            fchown(&opened, None, Some(user.gid))?;
            opened.set_permissions(Permissions::from_mode(0o710))
        }
        None => opened.set_permissions(Permissions::from_mode(0o700)),
    }
}

/// Take one datagram off the socket: its length, and its notice where the sender is known.
fn receive(socket: &UnixDatagram) -> io::Result<(usize, Option<Notice>)> {
    BUFFER.with_borrow_mut(|bytes| {
        // Room for credentials and nothing else: the kernel then drops descriptors that a sender attached, instead of
        // opening them here.
        let mut control = cmsg_space!(UnixCredentials);
        let mut parts = [IoSliceMut::new(bytes)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
        let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags)?;
        // An error here is a control message that was cut off: something other than credentials came along.
        let pid = message.cmsgs().ok().and_then(|mut messages| {
            messages.find_map(|control| match control {
                ControlMessageOwned::ScmCredentials(credentials) => Some(credentials.pid()),
                _ => None,
            })
        });
        let (length, cut) = (message.bytes, message.flags.contains(MsgFlags::MSG_TRUNC));
        // The kernel writes 0 for a process that this pid namespace does not show.
        let notice = pid.filter(|&pid| pid > 0).map(|pid| {
            let text = String::from_utf8_lossy(bytes.get(..length).unwrap_or_default());
            Notice { pid, messages: parse(&text, cut) }
        });
        Ok((length, notice))
    })
}

/// The messages in a datagram; `cut` tells that its end is missing.
fn parse(text: &str, cut: bool) -> Vec<Message> {
    let mut lines: Vec<&str> = text.split('\n').collect();
    // Half a line can lie (`X_TANDEM_REQUESTS=12` of 1234); half a traceback is still worth reading.
    if cut && lines.last().is_some_and(|line| !is_start_error(line)) {
        lines.pop();
    }
    let (mut requests, mut connections, mut in_flight, mut loop_lag_ms) = (None, None, None, None);
    let mut messages = Vec::new();
    for (key, value) in lines.into_iter().filter_map(|line| line.split_once('=')) {
        match (key, value) {
            ("READY", "1") => messages.push(Message::Ready),
            ("WATCHDOG", "1") => messages.push(Message::Watchdog),
            ("X_TANDEM_REQUESTS", value) => requests = value.parse().ok(),
            ("X_TANDEM_CONNECTIONS", value) => connections = value.parse().ok(),
            ("X_TANDEM_IN_FLIGHT", value) => in_flight = value.parse().ok(),
            ("X_TANDEM_LOOP_LAG_MS", value) => loop_lag_ms = value.parse().ok(),
            ("STOPPING", "1") => messages.push(Message::Stopping),
            ("X_TANDEM_CLOSED", "1") => messages.push(Message::Closed),
            ("X_TANDEM_DRAINED", "1") => messages.push(Message::Drained),
            ("X_TANDEM_DRAINING", value) => {
                messages.extend(serde_json::from_str(value).ok().map(bounded).map(Message::Draining));
            }
            (key, value) if let Some(kind) = start_error(key) => {
                messages.push(Message::StartError(StartError { kind, text: text_of(value) }));
            }
            ("X_TANDEM_FORK_UNSAFE", value) => {
                messages.extend(serde_json::from_str(value).ok().map(Message::ForkUnsafe));
            }
            // Another program's assignment, or garbage.
            _ => {}
        }
    }
    if let (Some(requests), Some(connections), Some(in_flight)) = (requests, connections, in_flight) {
        messages.push(Message::Counts(Counts { requests, connections, in_flight, loop_lag_ms }));
    }
    messages
}

/// What failed, where the assignment `key` says that something did.
fn start_error(key: &str) -> Option<StartErrorKind> {
    match key {
        "X_TANDEM_IMPORT_ERROR" => Some(StartErrorKind::Import),
        "X_TANDEM_LIFESPAN_ERROR" => Some(StartErrorKind::Lifespan),
        "X_TANDEM_CHECK_ERROR" => Some(StartErrorKind::Check),
        _ => None,
    }
}

fn is_start_error(line: &str) -> bool {
    line.split_once('=').is_some_and(|(key, _)| start_error(key).is_some())
}

/// A worker's word about its requests, no longer than a person reads.
fn bounded(mut unfinished: Unfinished) -> Unfinished {
    unfinished.on.truncate(UNFINISHED_MAX);
    for name in &mut unfinished.on {
        *name = name.chars().filter(|letter| !letter.is_control()).take(UNFINISHED_LENGTH_MAX).collect();
    }
    unfinished
}

/// The text of an error. What is not valid JSON is shown as it came.
fn text_of(value: &str) -> String {
    serde_json::from_str(value).unwrap_or_else(|_| value.to_owned())
}

#[cfg(test)]
#[path = "notify_tests.rs"]
mod tests;
