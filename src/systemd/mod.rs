//! The supervisor above Tandem, as systemd's services know it: what it is told (sd_notify(3)), and the socket that it
//! hands down (sd_listen_fds(3)).
//!
//! Other supervisors speak the same protocol, a Tandem above this one included. Must not touch the environment: that
//! children do not inherit what is meant for Tandem alone is `process/`'s to see to.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use anyhow::Context;
use sd_notify::NotifyState;
use socket2::{Domain, Protocol, SockRef, Type};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::config;
use crate::exit::{Code, Failure};
use crate::phase::Phase;
use crate::process::handed;

/// Longest wait for a supervisor that does not read what it is told.
const SEND_LIMIT: Duration = Duration::from_secs(5);
/// What the application's socket is called in LISTEN_FDNAMES (`FileDescriptorName=`), where there are several.
const APP: &str = "app";

/// How far the supervisor above thinks we are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Standing {
    #[default]
    Starting,
    /// Ready, but for so many reloads under way.
    Serving {
        reloads: u32,
    },
    Stopping,
}

#[derive(Debug, Default)]
struct Told {
    standing: Standing,
    status: String,
}

/// Who is told how Tandem is; nobody, where nobody wants to know.
#[derive(Debug, Default)]
pub struct Upstream {
    queue: Option<UnboundedSender<String>>,
    told: RefCell<Told>,
}

impl Upstream {
    /// The supervisor that NOTIFY_SOCKET names, and what does the telling; that also says WATCHDOG=1 as often as
    /// WATCHDOG_USEC wants, for as long as the event loop it runs on turns.
    pub fn of_process() -> (Self, impl Future<Output = ()>) {
        let address = config::notify_socket().and_then(|name| {
            let address = address(&name);
            address.inspect_err(|error| tracing::warn!("NOTIFY_SOCKET={}: {error}", name.display())).ok()
        });
        let watchdog = sd_notify::watchdog_enabled().filter(|limit| !limit.is_zero());
        Self::to(address, watchdog)
    }

    fn to(address: Option<SocketAddr>, watchdog: Option<Duration>) -> (Self, impl Future<Output = ()>) {
        let (sender, receiver) = unbounded_channel();
        let upstream = Self { queue: address.is_some().then_some(sender), told: RefCell::default() };
        let telling = async move {
            if let Some(address) = address {
                tell(&address, receiver, watchdog).await;
            }
        };
        (upstream, telling)
    }

    /// Let it be known that Tandem is in `phase`, and `status` in words; what was told already is not told again.
    pub fn show(&self, phase: Phase, status: &str) {
        let mut told = self.told.borrow_mut();
        let news = match (told.standing, phase) {
            (Standing::Starting, Phase::Serving) => Some((Standing::Serving { reloads: 0 }, NotifyState::Ready)),
            (Standing::Starting | Standing::Serving { .. }, Phase::Draining | Phase::Stopping | Phase::Stopped) => {
                Some((Standing::Stopping, NotifyState::Stopping))
            }
            _ => None,
        };
        if news.is_none() && told.status == status {
            return;
        }
        status.clone_into(&mut told.status);
        let line = status.replace('\n', " ");
        let words = NotifyState::Status(&line);
        match news {
            Some((standing, state)) => {
                told.standing = standing;
                self.send(&[state, words]);
            }
            None => self.send(&[words]),
        }
    }

    /// Let it be known that a reload is under way, until what is returned is dropped.
    pub fn reloading(&self) -> Reloading<'_> {
        let mut told = self.told.borrow_mut();
        if let Standing::Serving { reloads } = &mut told.standing {
            *reloads += 1;
            // In one message, as systemd wants them for `Type=notify-reload`.
            match NotifyState::monotonic_usec_now() {
                Ok(now) => self.send(&[NotifyState::Reloading, now]),
                Err(error) => tracing::warn!("read the monotonic clock: {error}"),
            }
        }
        Reloading(self)
    }

    fn reloaded(&self) {
        let mut told = self.told.borrow_mut();
        if let Standing::Serving { reloads } = &mut told.standing {
            *reloads = reloads.saturating_sub(1);
            if *reloads == 0 {
                self.send(&[NotifyState::Ready]);
            }
        }
    }

    fn send(&self, states: &[NotifyState<'_>]) {
        if let Some(queue) = &self.queue {
            let lines: Vec<String> = states.iter().map(ToString::to_string).collect();
            // Fails when the telling has ended, which is at Tandem's own end.
            let _ = queue.send(lines.join("\n"));
        }
    }
}

/// A reload under way.
#[must_use = "dropped at once, the reload is over at once"]
pub struct Reloading<'a>(&'a Upstream);

impl Drop for Reloading<'_> {
    fn drop(&mut self) {
        self.0.reloaded();
    }
}

/// Where `NOTIFY_SOCKET=name` is.
fn address(name: &OsStr) -> io::Result<SocketAddr> {
    // sd-notify itself knows no names in the abstract namespace, which Tandem's own socket for its children has.
    match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        [b'/', ..] => SocketAddr::from_pathname(name),
        _ => Err(io::Error::other("neither a path nor an abstract name: nobody is told anything")),
    }
}

/// Pass on what is queued, in order, and the sign of life in between, for ever.
async fn tell(address: &SocketAddr, mut queue: UnboundedReceiver<String>, watchdog: Option<Duration>) {
    // Half of it, as sd_watchdog_enabled(3) advises.
    let mut beats = watchdog.map(|limit| interval((limit / 2).max(Duration::from_millis(1))));
    if let Some(beats) = &mut beats {
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    }
    let mut complained = false;
    loop {
        let beat = async {
            match &mut beats {
                Some(beats) => beats.tick().await,
                None => std::future::pending().await,
            }
        };
        let message = tokio::select! {
            message = queue.recv() => match message {
                Some(message) => message,
                None => return,
            },
            _ = beat => NotifyState::Watchdog.to_string(),
        };
        if let Err(error) = deliver(address, &message).await
            && !std::mem::replace(&mut complained, true)
        {
            tracing::warn!("tell the supervisor above (NOTIFY_SOCKET): {error}");
        }
    }
}

/// Each message on a socket of its own: the other end may have been closed and made anew, as at a re-execution of systemd.
async fn deliver(address: &SocketAddr, message: &str) -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(address)?;
    socket.set_nonblocking(true)?;
    let socket = tokio::net::UnixDatagram::from_std(socket)?;
    timeout(SEND_LIMIT, socket.send(message.as_bytes())).await.map_err(|_| io::ErrorKind::TimedOut)??;
    Ok(())
}

/// The application's socket, if the supervisor above opened one and hands it down (LISTEN_FDS, LISTEN_PID and
/// LISTEN_FDNAMES). To be called once, and before this process listens anywhere itself.
///
/// # Errors
/// A [`Failure`] with [`Code::Config`] when what is handed down is not one TCP socket that listens, or several with none,
/// or not one alone, called `app`.
pub fn inherited_listener() -> anyhow::Result<Option<OwnedFd>> {
    let handed = sd_notify::listen_fds_with_names().map_err(|error| {
        let text = format!("take the sockets that LISTEN_FDS and LISTEN_FDNAMES announce: {error}");
        Failure::new(Code::Config, text)
    })?;
    let Some(number) = choose(&handed.collect::<Vec<_>>())? else { return Ok(None) };
    let judge = |fd: BorrowedFd<'_>| match other_kind(&SockRef::from(&fd)) {
        None => Ok(()),
        Some(kind) => {
            let text = format!(
                "descriptor {number}, handed down with LISTEN_FDS, is {kind}; the application needs a TCP socket that \
                 listens: in the socket unit, ListenStream= with an address and a port, and Accept=no"
            );
            Err(Failure::new(Code::Config, text).into())
        }
    };
    handed::take(number, judge).context("take the socket handed down with LISTEN_FDS").map(Some)
}

/// Which of the descriptors, each with its name, is the application's.
fn choose(handed: &[(RawFd, String)]) -> Result<Option<RawFd>, Failure> {
    let called: Vec<RawFd> = handed.iter().filter(|(_, name)| name == APP).map(|(number, _)| *number).collect();
    match (handed, called.as_slice()) {
        ([], _) => Ok(None),
        // Whatever it is called: unless told otherwise, systemd names it after its unit.
        ([(number, _)], _) => Ok(Some(*number)),
        (_, [number]) => {
            tracing::warn!(
                "LISTEN_FDS hands down {} sockets; all but the one called {APP:?} are left alone",
                handed.len()
            );
            Ok(Some(*number))
        }
        (_, called) => {
            let which = if called.is_empty() { "none of them is" } else { "more than one of them is" };
            let names: Vec<&str> = handed.iter().map(|(_, name)| name.as_str()).collect();
            let text = format!(
                "LISTEN_FDS hands down {} sockets and {which} called {APP:?} (LISTEN_FDNAMES: {}): let the socket unit \
                 have one ListenStream=, or set FileDescriptorName={APP} in the application's",
                handed.len(),
                names.join(", ")
            );
            Err(Failure::new(Code::Config, text))
        }
    }
}

/// What `socket` is, unless it is a TCP socket that listens.
fn other_kind(socket: &SockRef<'_>) -> Option<&'static str> {
    let (Ok(domain), Ok(kind)) = (socket.domain(), socket.r#type()) else { return Some("no socket") };
    let tcp = [Some(Protocol::TCP), Some(Protocol::MPTCP)];
    match (domain, kind) {
        (Domain::UNIX, _) => Some("a unix socket"),
        (Domain::IPV4 | Domain::IPV6, Type::DGRAM) => Some("a UDP socket"),
        (Domain::IPV4 | Domain::IPV6, Type::STREAM) if tcp.contains(&socket.protocol().ok().flatten()) => {
            (!socket.is_listener().unwrap_or(false)).then_some("a TCP socket that does not listen")
        }
        _ => Some("a socket of another kind"),
    }
}

#[cfg(test)]
mod tests;
