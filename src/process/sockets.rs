//! Which of this process's descendants has a connection to a server of this machine. Reads `/proc` and asks the kernel for
//! its unix sockets, so it may block: not for the event loop's thread.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

use super::orphans;

/// A descendant.
#[derive(Clone, Debug)]
pub struct Owner {
    pub pid: i32,
    /// Its command line.
    pub command: String,
}

/// The descendant whose end of the TCP connection from `client` to one of `servers` it is.
pub fn owner_over_tcp(client: SocketAddr, servers: &[SocketAddr]) -> Option<Owner> {
    let exact = servers.iter().find_map(|server| tcp_inode(client, *server).ok().flatten());
    // All connections must be gone through where the server's address is another: that takes its time.
    let any = || {
        let port = servers.first()?.port();
        tcp(port).into_iter().find(|(_, from)| *from == client.port()).map(|(inode, _)| inode)
    };
    owner(&[exact.or_else(any)?])
}

/// The descendant that is connected to the unix socket `path`, with its connection's other end in the process `server`.
pub fn owner_over_unix(path: &Path, server: i32) -> Option<Owner> {
    let theirs = sockets_of(server);
    let clients = unix(path).ok()?.into_iter().filter(|(_, end)| theirs.contains(end)).map(|(client, _)| client);
    owner(&clients.collect::<Vec<_>>())
}

fn owner(inodes: &[u64]) -> Option<Owner> {
    let is_it = |pid: &i32| sockets_of(*pid).iter().any(|inode| inodes.contains(inode));
    let pid = orphans::descendants().into_iter().find(is_it)?;
    Some(Owner { pid, command: command_of(pid) })
}

fn sockets_of(pid: i32) -> Vec<u64> {
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let links = fds.filter_map(|fd| std::fs::read_link(fd.path()).ok());
    links.filter_map(|link| link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()).collect()
}

fn command_of(pid: i32) -> String {
    let words = procfs::process::Process::new(pid).and_then(|process| process.cmdline());
    words.map(|words| words.join(" ")).unwrap_or_default()
}

/// The socket of the TCP connection from `client` to `server`, which the kernel finds without going through all of them.
fn tcp_inode(client: SocketAddr, server: SocketAddr) -> io::Result<Option<u64>> {
    let bytes = |address: IpAddr| match address {
        IpAddr::V4(address) => [&address.octets()[..], &[0; 12]].concat(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let family = if client.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    // struct inet_diag_req_v2: family, protocol (IPPROTO_TCP), what to show, states (all), both ends, device, cookie (none).
    let mut request = vec![family as u8, 6, 0, 0];
    request.extend(u32::MAX.to_ne_bytes());
    request.extend(client.port().to_be_bytes());
    request.extend(server.port().to_be_bytes());
    request.extend(bytes(client.ip()));
    request.extend(bytes(server.ip()));
    request.extend(0u32.to_ne_bytes());
    request.extend([u8::MAX; 8]);
    let kernel = ask(NLM_F_REQUEST, &request)?;
    let mut buffer = vec![0; 4096];
    let length = recv(kernel.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
    let answer = &buffer[..length];
    let is_it = u16_at(answer, 4) == Some(SOCK_DIAG_BY_FAMILY);
    Ok(u32_at(answer, HEADER + 68).filter(|inode| is_it && *inode != 0).map(u64::from))
}

/// Send a sock_diag request.
fn ask(flags: u16, body: &[u8]) -> io::Result<std::os::fd::OwnedFd> {
    let kernel = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkSockDiag)?;
    let length = u32::try_from(HEADER + body.len()).map_err(io::Error::other)?;
    let mut request = length.to_ne_bytes().to_vec();
    request.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request.extend(flags.to_ne_bytes());
    request.extend([0; 8]);
    request.extend(body);
    send(kernel.as_raw_fd(), &request, MsgFlags::empty())?;
    Ok(kernel)
}

/// The clients' ends of TCP connections to `port` of this machine: inode and port.
fn tcp(port: u16) -> Vec<(u64, u16)> {
    let canonical = |address: SocketAddr| (address.ip().to_canonical(), address.port());
    let tables = [procfs::net::tcp(), procfs::net::tcp6()];
    let entries: Vec<_> = tables.into_iter().flatten().flatten().collect();
    let ends = entries.iter().map(|entry| (canonical(entry.local_address), canonical(entry.remote_address)));
    let ends: HashSet<_> = ends.collect();
    // Its other end is on this machine too; a server elsewhere may have the same port.
    let here = entries.iter().filter(|entry| {
        let (local, remote) = (canonical(entry.local_address), canonical(entry.remote_address));
        remote.1 == port && entry.inode != 0 && ends.contains(&(remote, local))
    });
    here.map(|entry| (entry.inode, entry.local_address.port())).collect()
}

/// Of `linux/sock_diag.h`, `linux/inet_diag.h`, `linux/unix_diag.h` and `linux/netlink.h`.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_REQUEST_DUMP: u16 = 0x301;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const UDIAG_SHOW_NAME_AND_PEER: u32 = 0x1 | 0x4;
const UNIX_DIAG_NAME: u16 = 0;
const UNIX_DIAG_PEER: u16 = 2;
const HEADER: usize = 16;

/// The connections to the unix socket at `path`, as the inodes of the client's and the server's end (sock_diag(7)): what
/// `/proc/net/unix` lists does not say who is connected to whom.
fn unix(path: &Path) -> io::Result<Vec<(u64, u64)>> {
    // struct unix_diag_req: family and protocol, states (all), inode, what to show, cookie.
    let mut request = vec![AddressFamily::Unix as u8, 0, 0, 0];
    request.extend(u32::MAX.to_ne_bytes());
    request.extend(0u32.to_ne_bytes());
    request.extend(UDIAG_SHOW_NAME_AND_PEER.to_ne_bytes());
    request.extend([0; 8]);
    let kernel = ask(NLM_F_REQUEST_DUMP, &request)?;
    let mut found = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = recv(kernel.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        let mut rest = &buffer[..length];
        while let Some((size, kind)) = u32_at(rest, 0).zip(u16_at(rest, 4)) {
            match kind {
                NLMSG_DONE => return Ok(found),
                NLMSG_ERROR => return Err(io::Error::other("the kernel does not list its unix sockets")),
                _ => {}
            }
            let size = size as usize;
            let Some(message) = rest.get(HEADER..size) else { return Ok(found) };
            found.extend(connection(message, path.as_os_str().as_bytes()));
            rest = rest.get(size.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

/// The ends of the connection that a `struct unix_diag_msg` with its attributes is the server's end of.
fn connection(message: &[u8], path: &[u8]) -> Option<(u64, u64)> {
    let inode = u32_at(message, 4)?;
    let (mut named, mut peer) = (false, None);
    let mut rest = message.get(HEADER..)?;
    while let Some((size, kind)) = u16_at(rest, 0).zip(u16_at(rest, 2)) {
        let value = rest.get(4..usize::from(size))?;
        match kind {
            UNIX_DIAG_NAME => named = value.strip_suffix(&[0]).unwrap_or(value) == path,
            UNIX_DIAG_PEER => peer = u32_at(value, 0),
            _ => {}
        }
        rest = rest.get(usize::from(size).next_multiple_of(4)..).unwrap_or_default();
    }
    peer.filter(|_| named).map(|peer| (u64::from(peer), u64::from(inode)))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::{UnixListener, UnixStream};

    #[test]
    fn both_ends_of_a_connection_are_found() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let client = UnixStream::connect(&path).unwrap();
        let (server, _) = listener.accept().unwrap();
        let inode = |fd: i32| {
            let link = std::fs::read_link(format!("/proc/self/fd/{fd}")).unwrap();
            let text = link.to_str().unwrap().trim_start_matches("socket:[").trim_end_matches(']').to_owned();
            text.parse::<u64>().unwrap()
        };
        let (client, server) = (inode(client.as_raw_fd()), inode(server.as_raw_fd()));
        assert_eq!(unix(&path).unwrap(), [(client, server)]);
        assert!(sockets_of(std::process::id().cast_signed()).contains(&client));

        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let client = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        let (own, address) = (inode(client.as_raw_fd()), client.local_addr().unwrap());
        assert_eq!(tcp(port), [(own, address.port())]);
        assert_eq!(tcp_inode(address, client.peer_addr().unwrap()).unwrap(), Some(own));
        assert_eq!(tcp_inode(address, ([127, 0, 0, 9], port).into()).unwrap(), None);
    }
}
