//! The supervisor that started Tandem, usually systemd: Tandem tells it how it is (sd_notify(3)) and takes the sockets
//! that it passes (sd_listen_fds(3)).
//!
//! Other supervisors speak the same protocol, another Tandem included. This room must not touch the environment:
//! `process/` keeps from children what is meant for Tandem alone.

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
use tokio::time::{Interval, MissedTickBehavior, interval, timeout};

use crate::config;
use crate::exit::{Code, Failure};
use crate::phase::Phase;
use crate::process::handed;

/// Longest wait for a supervisor that does not read what it is told.
const SEND_LIMIT: Duration = Duration::from_secs(5);
/// While Tandem starts or reloads, its supervisor's limit on that is extended so often, by so much from then on: a start may
/// take a long recovery or migration, and Tandem has limits of its own for each step. It ends with the event loop.
const EXTEND_INTERVAL: Duration = Duration::from_secs(5);
const EXTENSION: Duration = Duration::from_secs(30);
/// What a stop gets beyond the limits that Tandem knows.
const STOP_MARGIN: Duration = Duration::from_secs(10);
/// What the application's socket is called in LISTEN_FDNAMES (`FileDescriptorName=`), where there are several.
const APP: &str = "app";

/// The state of Tandem that the supervisor was last told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Standing {
    #[default]
    Starting,
    /// Ready, or reloading while `reloads` is above zero.
    Serving {
        reloads: u32,
    },
    Stopping,
}

impl Standing {
    /// Whether the supervisor's limit is to be extended for as long as the event loop turns.
    fn extends(self) -> bool {
        match self {
            Self::Starting => true,
            Self::Serving { reloads } => reloads > 0,
            // A stop has one limit from its begin on.
            Self::Stopping => false,
        }
    }
}

#[derive(Debug, Default)]
struct Told {
    standing: Standing,
    status: String,
    /// How long the stop may take, as it was last told.
    stop_limit: Duration,
}

/// A message, and whether the supervisor's limit is to be extended from now on.
#[derive(Debug)]
struct Message {
    text: String,
    extends: bool,
}

/// Tells the supervisor how Tandem is; does nothing where no supervisor asked for it.
#[derive(Debug, Default)]
pub struct Upstream {
    queue: Option<UnboundedSender<Message>>,
    told: RefCell<Told>,
}

impl Upstream {
    /// The supervisor that NOTIFY_SOCKET names, and the task that sends to it. The task also sends WATCHDOG=1 as often as
    /// WATCHDOG_USEC asks for it, as long as the event loop that runs it turns.
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

    /// Tell the supervisor the `phase` and the `status` in words, if they differ from what it was last told; and when a stop
    /// begins or gets longer, that it may take `stop_limit`.
    pub fn show(&self, phase: Phase, status: &str, stop_limit: Duration) {
        let mut told = self.told.borrow_mut();
        let news = match (told.standing, phase) {
            (Standing::Starting, Phase::Serving) => Some((Standing::Serving { reloads: 0 }, NotifyState::Ready)),
            (Standing::Starting | Standing::Serving { .. }, Phase::Draining | Phase::Stopping | Phase::Stopped) => {
                Some((Standing::Stopping, NotifyState::Stopping))
            }
            _ => None,
        };
        if let Some((standing, _)) = &news {
            told.standing = *standing;
        }
        let longer = told.standing == Standing::Stopping && stop_limit > told.stop_limit;
        if longer {
            told.stop_limit = stop_limit;
        }
        if news.is_none() && !longer && told.status == status {
            return;
        }
        status.clone_into(&mut told.status);
        let line = status.replace('\n', " ");
        let limit = longer.then(|| extension(stop_limit.saturating_add(STOP_MARGIN)));
        let limit = limit.as_deref().map(NotifyState::Custom);
        let states = news.map(|(_, state)| state).into_iter().chain(limit).chain([NotifyState::Status(&line)]);
        self.send(&states.collect::<Vec<_>>(), told.standing);
    }

    /// Tell the supervisor that a reload is under way, until the value that is returned is dropped.
    pub fn reloading(&self) -> Reloading<'_> {
        let mut told = self.told.borrow_mut();
        if let Standing::Serving { reloads } = &mut told.standing {
            *reloads += 1;
            // In one message, as systemd wants them for `Type=notify-reload`.
            match NotifyState::monotonic_usec_now() {
                Ok(now) => self.send(&[NotifyState::Reloading, now], told.standing),
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
                self.send(&[NotifyState::Ready], told.standing);
            }
        }
    }

    fn send(&self, states: &[NotifyState<'_>], standing: Standing) {
        if let Some(queue) = &self.queue {
            let lines: Vec<String> = states.iter().map(ToString::to_string).collect();
            // It fails when the task has ended, which happens as Tandem ends.
            let _ = queue.send(Message { text: lines.join("\n"), extends: standing.extends() });
        }
    }
}

/// That what is under way may take `limit` from now on, whatever the supervisor's own limits are.
fn extension(limit: Duration) -> String {
    // sd-notify's own has 32 bits, 71 minutes.
    format!("EXTEND_TIMEOUT_USEC={}", limit.as_micros())
}

/// A reload under way.
#[must_use = "the reload counts as over when this is dropped"]
pub struct Reloading<'a>(&'a Upstream);

impl Drop for Reloading<'_> {
    fn drop(&mut self) {
        self.0.reloaded();
    }
}

/// Where `NOTIFY_SOCKET=name` is.
fn address(name: &OsStr) -> io::Result<SocketAddr> {
    // sd-notify itself knows no names in the abstract namespace.
    match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        [b'/', ..] => SocketAddr::from_pathname(name),
        _ => Err(io::Error::other("neither a path nor an abstract name: no supervisor is told anything")),
    }
}

/// Send the queued messages in order, and between them what is due again and again, until the queue is closed.
async fn tell(address: &SocketAddr, mut queue: UnboundedReceiver<Message>, watchdog: Option<Duration>) {
    // Half of it, as sd_watchdog_enabled(3) advises.
    let mut watchdog = watchdog.map(|limit| beats((limit / 2).max(Duration::from_millis(1))));
    let mut extensions = beats(EXTEND_INTERVAL);
    let mut extends = false;
    let mut complained = false;
    loop {
        let beat = async {
            match &mut watchdog {
                Some(beats) => beats.tick().await,
                None => std::future::pending().await,
            }
        };
        let text = tokio::select! {
            message = queue.recv() => match message {
                Some(message) => {
                    extends = message.extends;
                    message.text
                }
                None => return,
            },
            _ = beat => NotifyState::Watchdog.to_string(),
            _ = extensions.tick(), if extends => extension(EXTENSION),
        };
        if let Err(error) = deliver(address, &text).await
            && !std::mem::replace(&mut complained, true)
        {
            tracing::warn!("tell the supervisor (NOTIFY_SOCKET): {error}");
        }
    }
}

fn beats(period: Duration) -> Interval {
    let mut beats = interval(period);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    beats
}

/// Send one message on a socket of its own: systemd may have closed the other end and opened it again as it re-executed.
async fn deliver(address: &SocketAddr, message: &str) -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(address)?;
    socket.set_nonblocking(true)?;
    let socket = tokio::net::UnixDatagram::from_std(socket)?;
    timeout(SEND_LIMIT, socket.send(message.as_bytes())).await.map_err(|_| io::ErrorKind::TimedOut)??;
    Ok(())
}

/// The application's sockets, if the supervisor passes any (LISTEN_FDS, LISTEN_PID and LISTEN_FDNAMES). Call it once, before
/// this process listens anywhere itself.
///
/// # Errors
/// A [`Failure`] with [`Code::Config`] unless each is a stream socket that listens, and it is clear which are the
/// application's.
pub fn inherited_listeners() -> anyhow::Result<Vec<OwnedFd>> {
    let handed = sd_notify::listen_fds_with_names().map_err(|error| {
        let text = format!("take the sockets that LISTEN_FDS and LISTEN_FDNAMES announce: {error}");
        Failure::new(Code::Config, text)
    })?;
    let judge = |number: RawFd, fd: BorrowedFd<'_>| match other_kind(&SockRef::from(&fd)) {
        None => Ok(()),
        Some(kind) => {
            let text = format!(
                "descriptor {number}, handed down with LISTEN_FDS, is {kind}; the application needs a TCP or unix socket \
                 that listens: in the socket unit, ListenStream= with an address and a port or a path, and Accept=no"
            );
            Err(Failure::new(Code::Config, text).into())
        }
    };
    let take = |number: RawFd| {
        let taken = handed::take(number, |fd| judge(number, fd));
        taken.context("take the socket handed down with LISTEN_FDS")
    };
    choose(&handed.collect::<Vec<_>>())?.into_iter().map(take).collect()
}

/// The numbers of the application's descriptors among those that were passed, each with its name.
fn choose(handed: &[(RawFd, String)]) -> Result<Vec<RawFd>, Failure> {
    let called: Vec<RawFd> = handed.iter().filter(|(_, name)| name == APP).map(|(number, _)| *number).collect();
    let all = || handed.iter().map(|(number, _)| *number).collect();
    // One socket unit, whose sockets are all named after it by default; then the name does not matter.
    let are_of_one_unit = handed.iter().all(|(_, name)| *name == handed[0].1);
    if called.is_empty() && !are_of_one_unit {
        let names: Vec<&str> = handed.iter().map(|(_, name)| name.as_str()).collect();
        let text = format!(
            "LISTEN_FDS hands down {} sockets of several units and none of them is called {APP:?} (LISTEN_FDNAMES: {}): set \
             FileDescriptorName={APP} in the socket unit of the application",
            handed.len(),
            names.join(", ")
        );
        return Err(Failure::new(Code::Config, text));
    }
    if called.is_empty() {
        return Ok(all());
    }
    if called.len() < handed.len() {
        let text =
            format!("LISTEN_FDS hands down {} sockets; all but those called {APP:?} are left alone", handed.len());
        tracing::warn!("{text}");
    }
    Ok(called)
}

/// What `socket` is; `None` for a TCP or unix socket that listens.
fn other_kind(socket: &SockRef<'_>) -> Option<&'static str> {
    let (Ok(domain), Ok(kind)) = (socket.domain(), socket.r#type()) else { return Some("no socket") };
    let listens = socket.is_listener().unwrap_or(false);
    let tcp = [Some(Protocol::TCP), Some(Protocol::MPTCP)];
    match (domain, kind) {
        (Domain::UNIX, Type::STREAM) => (!listens).then_some("a unix socket that does not listen"),
        (Domain::UNIX, _) => Some("a unix socket of another kind"),
        (Domain::IPV4 | Domain::IPV6, Type::DGRAM) => Some("a UDP socket"),
        (Domain::IPV4 | Domain::IPV6, Type::STREAM) if tcp.contains(&socket.protocol().ok().flatten()) => {
            (!listens).then_some("a TCP socket that does not listen")
        }
        _ => Some("a socket of another kind"),
    }
}

#[cfg(test)]
mod tests;
