//! Which descendant of this process has a connection to a server of this machine, or to any server at an address. It reads
//! `/proc` and asks the kernel for its sockets, which may block: not for the event loop's thread.
//!
//! Blocks: its callers are on threads of their own.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

use super::stranger::{Identifier, Stranger};
use super::{descriptors, orphans};

/// A descendant.
#[derive(Clone, Debug)]
pub struct Owner {
    pub pid: i32,
    start: u64,
    /// Its program's name, and the file that it runs if it is an interpreter; never other arguments, which may be passwords.
    pub program: String,
}

impl Owner {
    /// End it, unless it has ended already.
    pub fn kill(&self) {
        if let Some(process) = Stranger::hold_this(Identifier { pid: self.pid, start: self.start }) {
            process.signal(Signal::SIGKILL);
        }
    }
}

/// The end of an established TCP connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionEnd {
    pub inode: u64,
    pub local: SocketAddr,
    pub remote: SocketAddr,
}

/// The descendants' sockets at one moment, and what the kernel was asked about the others then.
pub struct OpenSockets {
    owners: HashMap<u64, Identifier>,
    established: OnceCell<Vec<ConnectionEnd>>,
    unix: OnceCell<Vec<(u64, u64)>>,
}

impl OpenSockets {
    /// Of the descendants, and of the process `root` with its own, where there is one.
    pub fn take(root: Option<i32>) -> Self {
        let all = root.map_or_else(orphans::descendants, orphans::family).into_iter();
        let pairs = all.flat_map(|id| sockets_of(id.pid).into_iter().map(move |inode| (inode, id)));
        Self { owners: pairs.collect(), established: OnceCell::new(), unix: OnceCell::new() }
    }

    /// The descendant that has the socket `inode`.
    pub fn owner(&self, inode: u64) -> Option<Owner> {
        let Identifier { pid, start } = *self.owners.get(&inode)?;
        Some(Owner { pid, start, program: program_of(pid) })
    }

    /// The descendant whose end of the TCP connection from `client` to one of `servers` it is.
    pub fn owner_over_tcp(&self, client: SocketAddr, servers: &[SocketAddr]) -> Option<Owner> {
        let exact = servers.iter().find_map(|server| tcp_inode(client, *server).ok().flatten());
        // All connections must be gone through where the server's address is another: that takes its time.
        let any = || {
            let port = servers.first()?.port();
            let ends = self.established.get_or_init(|| established(port));
            ends.iter().find(|end| end.local == canonical(client) && end.remote.port() == port).map(|end| end.inode)
        };
        self.owner(exact.or_else(any)?)
    }

    /// The descendant that is connected to the unix socket `path`, with its connection's other end in the process `server`.
    /// All questions to one snapshot are about the same `path`.
    pub fn owner_over_unix(&self, path: &Path, server: i32) -> Option<Owner> {
        let all = self.unix.get_or_init(|| unix(path).unwrap_or_default());
        let mut ours = all.iter().filter(|(client, _)| self.owners.contains_key(client)).peekable();
        ours.peek()?;
        let theirs = sockets_of(server);
        self.owner(ours.find(|(_, end)| theirs.contains(end))?.0)
    }
}

/// The clients' sockets that are connected to the unix socket `path`.
pub fn clients_of_unix(path: &Path) -> Vec<u64> {
    unix(path).unwrap_or_default().into_iter().map(|(client, _)| client).collect()
}

/// The ends that this machine accepted on the unix socket `path` from the socket `client`: one, where it is still there.
pub fn accepted_over_unix(path: &Path, client: u64) -> Vec<u64> {
    let all = unix(path).unwrap_or_default().into_iter();
    all.filter(|(theirs, _)| *theirs == client).map(|(_, ours)| ours).collect()
}

fn sockets_of(pid: i32) -> Vec<u64> {
    descriptors::sockets_of(pid).unwrap_or_default()
}

fn program_of(pid: i32) -> String {
    let words = procfs::process::Process::new(pid).and_then(|process| process.cmdline()).unwrap_or_default();
    let is_file = |word: &&String| PathBuf::from(format!("/proc/{pid}/cwd")).join(word).is_file();
    let name = |word: &String| Path::new(word).file_name().unwrap_or_default().display().to_string();
    let script = words.get(1).filter(is_file).map(|word| format!(" {}", name(word)));
    words.first().map(name).unwrap_or_default() + &script.unwrap_or_default()
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// A request for TCP sockets (`struct inet_diag_req_v2`): family, protocol (IPPROTO_TCP), what to show, states (all of
/// those in the answer are looked at again), both ends, device, cookie (none).
fn tcp_request(family: AddressFamily, ends: [(IpAddr, u16); 2]) -> Vec<u8> {
    let bytes = |address: IpAddr| match address {
        IpAddr::V4(address) => [&address.octets()[..], &[0; 12]].concat(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let [client, server] = ends;
    let mut request = vec![family as u8, 6, 0, 0];
    request.extend((1u32 << TCP_ESTABLISHED).to_ne_bytes());
    request.extend(client.1.to_be_bytes());
    request.extend(server.1.to_be_bytes());
    request.extend(bytes(client.0));
    request.extend(bytes(server.0));
    request.extend(0u32.to_ne_bytes());
    request.extend([u8::MAX; 8]);
    request
}

/// The socket of the TCP connection from `client` to `server`, which the kernel finds without going through all of them.
fn tcp_inode(client: SocketAddr, server: SocketAddr) -> io::Result<Option<u64>> {
    let family = if client.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let request = tcp_request(family, [client, server].map(|end| (end.ip(), end.port())));
    let kernel = ask(NLM_F_REQUEST, &request)?;
    let mut buffer = vec![0; 4096];
    let length = recv(kernel.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
    let answer = &buffer[..length];
    let is_it = u16_at(answer, 4) == Some(SOCK_DIAG_BY_FAMILY);
    let end = answer.get(HEADER..).and_then(end).filter(|_| is_it);
    // Where there is no such connection, the kernel answers with a socket that listens on the client's port.
    Ok(end.filter(|end| (end.local, end.remote) == (canonical(client), canonical(server))).map(|end| end.inode))
}

/// The connections to `port` of any machine, by their clients' ends.
///
/// A dump of the kernel's, which looks at the ports itself; where it has no sock_diag for TCP, its list in `/proc`.
pub fn established(port: u16) -> Vec<ConnectionEnd> {
    let none = [(Ipv4Addr::UNSPECIFIED.into(), 0), (Ipv4Addr::UNSPECIFIED.into(), port)];
    let of = |family| dump(&tcp_request(family, none), end);
    let dumped = of(AddressFamily::Inet).map(|four| [four, of(AddressFamily::Inet6).unwrap_or_default()].concat());
    let mut ends = dumped.unwrap_or_else(|_: io::Error| listed());
    ends.retain(|end| end.remote.port() == port);
    ends
}

fn listed() -> Vec<ConnectionEnd> {
    let entries = [procfs::net::tcp(), procfs::net::tcp6()].into_iter().flatten().flatten();
    let open = entries.filter(|entry| entry.state == procfs::net::TcpState::Established && entry.inode != 0);
    let ends = open.map(|entry| ConnectionEnd {
        inode: entry.inode,
        local: canonical(entry.local_address),
        remote: canonical(entry.remote_address),
    });
    ends.collect()
}

/// What a `struct inet_diag_msg` says of a connection: family, state, timer and retries, ports, addresses; the inode is last.
fn end(message: &[u8]) -> Option<ConnectionEnd> {
    let (&family, &state) = message.first().zip(message.get(1))?;
    let address = |port: usize, at: usize| {
        let ip: IpAddr = if i32::from(family) == AddressFamily::Inet as i32 {
            Ipv4Addr::from(<[u8; 4]>::try_from(message.get(at..at + 4)?).ok()?).into()
        } else {
            Ipv6Addr::from(<[u8; 16]>::try_from(message.get(at..at + 16)?).ok()?).into()
        };
        Some(canonical(SocketAddr::new(ip, u16::from_be_bytes(message.get(port..port + 2)?.try_into().ok()?))))
    };
    let inode = u32_at(message, 68).map(u64::from).filter(|inode| *inode != 0)?;
    let end = ConnectionEnd { inode, local: address(4, 8)?, remote: address(6, 24)? };
    (state == TCP_ESTABLISHED).then_some(end)
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
/// Of `net/tcp_states.h`.
const TCP_ESTABLISHED: u8 = 1;

/// The connections to the unix socket at `path`, as the inodes of the client's and the server's end (sock_diag(7)): what
/// `/proc/net/unix` lists does not say who is connected to whom.
fn unix(path: &Path) -> io::Result<Vec<(u64, u64)>> {
    // struct unix_diag_req: family and protocol, states (all), inode, what to show, cookie.
    let mut request = vec![AddressFamily::Unix as u8, 0, 0, 0];
    request.extend(u32::MAX.to_ne_bytes());
    request.extend(0u32.to_ne_bytes());
    request.extend(UDIAG_SHOW_NAME_AND_PEER.to_ne_bytes());
    request.extend([0; 8]);
    dump(&request, |message| connection(message, path.as_os_str().as_bytes()))
}

/// What `read` makes of each message of the kernel's answer to a request for all sockets.
fn dump<T>(request: &[u8], read: impl Fn(&[u8]) -> Option<T>) -> io::Result<Vec<T>> {
    let kernel = ask(NLM_F_REQUEST_DUMP, request)?;
    let mut found = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = recv(kernel.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        let mut rest = &buffer[..length];
        while let Some((size, kind)) = u32_at(rest, 0).zip(u16_at(rest, 4)) {
            match kind {
                NLMSG_DONE => return Ok(found),
                NLMSG_ERROR => return Err(io::Error::other("the kernel does not list its sockets")),
                _ => {}
            }
            let size = size as usize;
            let Some(message) = rest.get(HEADER..size) else { return Ok(found) };
            found.extend(read(message));
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
        let there = client.peer_addr().unwrap();
        assert_eq!(established(port), [ConnectionEnd { inode: own, local: address, remote: there }]);
        assert!(listed().contains(&ConnectionEnd { inode: own, local: address, remote: there }));
        assert_eq!(tcp_inode(address, there).unwrap(), Some(own));
        // Another machine's client that comes from the port on which something listens here.
        assert_eq!(tcp_inode(there, ([127, 0, 0, 9], 1).into()).unwrap(), None);
        assert_eq!(tcp_inode(address, ([127, 0, 0, 9], port).into()).unwrap(), None);
    }

    #[test]
    fn a_process_is_named_without_what_it_was_told() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("job");
        std::fs::write(&path, "read word").unwrap();
        let name = |args: &[&str]| {
            #[expect(clippy::disallowed_methods, reason = "a process that is looked at")]
            let mut command = std::process::Command::new("/bin/sh");
            let piped = std::process::Stdio::piped();
            let forking = crate::forks::begin();
            let mut child = command.args(args).current_dir(temp.path()).stdin(piped).spawn().unwrap();
            drop(forking);
            // The kernel shows no arguments while it replaces the program.
            let (pid, began) = (child.id().cast_signed(), std::time::Instant::now());
            let mut name = program_of(pid);
            while name.is_empty() && began.elapsed().as_secs() < 10 {
                std::thread::yield_now();
                name = program_of(pid);
            }
            drop(child.stdin.take());
            child.wait().unwrap();
            name
        };
        assert_eq!(name(&["job", "postgres://app:secret@live/x"]), "sh job");
        assert_eq!(name(&["-c", "read word; : password=secret"]), "sh");
    }
}
