//! Who listens on a TCP port of this machine.

use std::collections::HashSet;

use nix::unistd::{Uid, User};
use procfs::net::{TcpNetEntry, TcpState};
use procfs::process::{FDTarget, Process};

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
    process.fd().is_ok_and(|fds| {
        fds.flatten().any(|fd| matches!(fd.target, FDTarget::Socket(inode) if inodes.contains(&inode)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_listener_is_named() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let holder = holder(port).unwrap();
        assert!(holder.ends_with(&format!("(pid {})", std::process::id())), "{holder}");
        assert_eq!(named(&HashSet::new()), None);
    }
}
