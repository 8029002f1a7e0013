//! Which processes have a TCP port or a connection of this machine.
//!
//! Blocks: it goes through all of `/proc`, which takes milliseconds where there are many processes. Called before the
//! event loop turns, or through `event_loop::within`.

use std::collections::HashSet;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::socket::{getsockopt, sockopt};
use procfs::net::{TcpNetEntry, TcpState};
use procfs::process::Process;
use socket2::{Domain, SockAddr, Socket, Type};

use super::{descriptors, identity, look, sockets};

/// A TCP port of loopback that is free at the moment. The caller must be ready to find it taken when it binds it.
///
/// # Errors
/// None is left.
pub fn free() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// The program that listens on `port`, such as `nginx (pid 12)`, as far as this user may see it.
pub fn holder(port: u16) -> Option<String> {
    let listening: Vec<TcpNetEntry> = [procfs::net::tcp(), procfs::net::tcp6()]
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.state == TcpState::Listen && entry.local_address.port() == port)
        .collect();
    let inodes = listening.iter().map(|entry| entry.inode).collect();
    named(&inodes).or_else(|| {
        // Other users' descriptors are hidden from us, their uid is not.
        let uid = listening.first()?.uid;
        Some(format!("a process of {}", identity::name_of(uid)))
    })
}

/// Whether something listens on `port` in this network namespace, whosever it is.
pub fn is_listened_to(port: u16) -> bool {
    let all = [procfs::net::tcp(), procfs::net::tcp6()].into_iter().flatten().flatten();
    all.into_iter().any(|entry| entry.state == TcpState::Listen && entry.local_address.port() == port)
}

/// The process that listens on the unix socket at `path`, as far as the kernel tells. Never waits: the queue of a process
/// that is stopped may be full.
///
/// # Errors
/// Nobody listens there, or it cannot be asked.
pub fn unix_listener(path: &Path) -> io::Result<Option<i32>> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    match socket.connect(&SockAddr::unix(path)?) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
        Err(error) => return Err(error),
    }
    let credentials = getsockopt(&socket, sockopt::PeerCredentials).ok();
    Ok(credentials.map(|credentials| credentials.pid()).filter(|&pid| pid > 0))
}

/// A connection to this machine, by what is known of it at its client.
#[derive(Clone, Debug)]
pub enum Accepted {
    /// On `port`, from `client`.
    Tcp { port: u16, client: SocketAddr },
    /// On the unix socket `path`, from the socket with the inode `client`.
    Unix { path: PathBuf, client: u64 },
}

impl Accepted {
    /// The inodes of the end that this machine accepted.
    fn inodes(&self) -> HashSet<u64> {
        match self {
            Self::Tcp { port, client } => {
                let is_it =
                    |entry: &TcpNetEntry| entry.local_address.port() == *port && same(entry.remote_address, *client);
                let all = [procfs::net::tcp(), procfs::net::tcp6()].into_iter().flatten().flatten();
                all.filter(is_it).map(|entry| entry.inode).filter(|&inode| inode != 0).collect()
            }
            Self::Unix { path, client } => sockets::accepted_over_unix(path, *client).into_iter().collect(),
        }
    }

    fn place(&self) -> String {
        match self {
            Self::Tcp { port, .. } => format!("port {port}"),
            Self::Unix { path, .. } => path.display().to_string(),
        }
    }
}

/// Whether both are one address: a socket of both families knows IPv4 clients as `::ffff:127.0.0.1`.
fn same(one: SocketAddr, other: SocketAddr) -> bool {
    (one.ip().to_canonical(), one.port()) == (other.ip().to_canonical(), other.port())
}

/// Whether the end that this machine accepted is held by a process of the process group `group`. Where that cannot be seen,
/// any process's end counts, and the log says so once.
pub async fn is_held_by_group(accepted: Accepted, group: i32) -> bool {
    static TOLD: AtomicBool = AtomicBool::new(false);
    let place = accepted.place();
    match look::apart("look who answers the application's clients", move || accepted_by(&accepted, group)).await {
        Some(AcceptedBy::Group) => true,
        Some(AcceptedBy::Other) | None => false,
        Some(AcceptedBy::Unseen) => {
            if !TOLD.swap(true, Ordering::Relaxed) {
                let right = look::RIGHT;
                tracing::warn!(
                    "cannot see who answers on {place}, for want of {right}: an answer counts for the process that is \
                     waited for, though another one there may have given it"
                );
            }
            true
        }
    }
}

/// Who holds the end that this machine accepted of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AcceptedBy {
    /// A process of the group that was asked about.
    Group,
    /// Another process, or none yet.
    Other,
    /// No process that could be looked at; and not all of the group could.
    Unseen,
}

/// Blocks.
fn accepted_by(accepted: &Accepted, group: i32) -> AcceptedBy {
    let inodes = accepted.inodes();
    let Ok(processes) = procfs::process::all_processes() else { return AcceptedBy::Other };
    if inodes.is_empty() {
        return AcceptedBy::Other;
    }
    let (members, others): (Vec<Process>, Vec<Process>) =
        processes.flatten().partition(|process| process.stat().is_ok_and(|stat| stat.pgrp == group));
    let mut unseen = false;
    for member in &members {
        match descriptors::sockets_of(member.pid()) {
            Ok(sockets) if sockets.iter().any(|inode| inodes.contains(inode)) => return AcceptedBy::Group,
            Ok(_) => {}
            Err(error) => unseen |= error.kind() == io::ErrorKind::PermissionDenied,
        }
    }
    if unseen && !others.iter().any(|process| holds(process, &inodes)) { AcceptedBy::Unseen } else { AcceptedBy::Other }
}

fn named(inodes: &HashSet<u64>) -> Option<String> {
    if inodes.is_empty() {
        return None;
    }
    let holder = procfs::process::all_processes().ok()?.flatten().find(|process| holds(process, inodes))?;
    Some(program(holder.pid()))
}

/// The program that the process `pid` runs, such as `nginx (pid 12)`.
pub fn program(pid: i32) -> String {
    let stat = Process::new(pid).and_then(|process| process.stat());
    let name = stat.map_or_else(|_| "a process".to_owned(), |stat| stat.comm);
    format!("{name} (pid {pid})")
}

fn holds(process: &Process, inodes: &HashSet<u64>) -> bool {
    descriptors::sockets_of(process.pid()).is_ok_and(|sockets| sockets.iter().any(|inode| inodes.contains(inode)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_accepted_connection_belongs_to_the_group_that_holds_it() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let client = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        let connection = Accepted::Tcp { port, client: client.local_addr().unwrap() };
        let group = nix::unistd::getpgrp().as_raw();
        assert_eq!(accepted_by(&connection, group), AcceptedBy::Other, "it is not accepted yet");
        let _accepted = listener.accept().unwrap();
        assert_eq!(accepted_by(&connection, group), AcceptedBy::Group);
        assert_eq!(accepted_by(&connection, 1), AcceptedBy::Other);

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let client = std::os::unix::net::UnixStream::connect(&path).unwrap();
        let client = nix::sys::stat::fstat(&client).unwrap().st_ino;
        let connection = Accepted::Unix { path, client };
        let _accepted = listener.accept().unwrap();
        assert_eq!(accepted_by(&connection, group), AcceptedBy::Group);
        assert_eq!(accepted_by(&connection, 1), AcceptedBy::Other);
    }

    #[test]
    fn the_listener_is_named() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let holder = holder(port).unwrap();
        assert!(holder.ends_with(&format!("(pid {})", std::process::id())), "{holder}");
        assert_eq!(named(&HashSet::new()), None);
    }
}
