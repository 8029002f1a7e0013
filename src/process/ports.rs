//! Which processes have a TCP port or a connection of this machine.
//!
//! Blocks: it goes through all of `/proc`, which takes milliseconds where there are many processes. Called before the
//! event loop turns, or through `event_loop::within`.

use std::collections::HashSet;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::unistd::{Uid, User};
use procfs::net::{TcpNetEntry, TcpState};
use procfs::process::Process;

use super::{descriptors, look};

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
        let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
        Some(
            user.map_or_else(
                || format!("a process of user id {uid}"),
                |user| format!("a process of user {}", user.name),
            ),
        )
    })
}

/// Whether the end that this machine accepted on `port` of the connection from `client` is held by a process of the
/// process group `group`. Where that cannot be seen, any process's end counts, and the log says so once.
pub async fn is_held_by_group(port: u16, client: SocketAddr, group: i32) -> bool {
    static TOLD: AtomicBool = AtomicBool::new(false);
    match look::apart("look who answers on a port", move || accepted_by(port, client, group)).await {
        Some(AcceptedBy::Group) => true,
        Some(AcceptedBy::Other) | None => false,
        Some(AcceptedBy::Unseen) => {
            if !TOLD.swap(true, Ordering::Relaxed) {
                let right = look::RIGHT;
                tracing::warn!(
                    "cannot see who answers on port {port}, for want of {right}: an answer counts for the process that is \
                     waited for, though another one on that port may have given it"
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
fn accepted_by(port: u16, client: SocketAddr, group: i32) -> AcceptedBy {
    let accepted = |entry: &TcpNetEntry| entry.local_address.port() == port && entry.remote_address == client;
    let all = [procfs::net::tcp(), procfs::net::tcp6()].into_iter().flatten().flatten();
    let inodes: HashSet<u64> = all.filter(accepted).map(|entry| entry.inode).filter(|&inode| inode != 0).collect();
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
    procfs::process::all_processes().ok()?.flatten().find(|process| holds(process, inodes)).map(|process| {
        let name = process.stat().map_or_else(|_| "a process".to_owned(), |stat| stat.comm);
        format!("{name} (pid {})", process.pid())
    })
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
        let address = client.local_addr().unwrap();
        let group = nix::unistd::getpgrp().as_raw();
        assert_eq!(accepted_by(port, address, group), AcceptedBy::Other, "it is not accepted yet");
        let _accepted = listener.accept().unwrap();
        assert_eq!(accepted_by(port, address, group), AcceptedBy::Group);
        assert_eq!(accepted_by(port, address, 1), AcceptedBy::Other);
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
