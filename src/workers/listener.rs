//! The listening sockets that workers inherit: bound once, for life, so that connections queue while workers change.
//!
//! This process never accepts on them. One closes when the last clone of its descriptor is dropped.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use anyhow::Context;
use socket2::{Domain, Protocol, Socket, Type};

use super::socket_file::{self, SocketFile};
use crate::config::SocketFiles;
use crate::exit::{Code, Failure};
use crate::plan::Place;
use crate::process::InheritedFd;

/// A TCP socket that listens.
#[derive(Clone, Debug)]
pub struct Listener {
    fd: Arc<OwnedFd>,
    address: SocketAddr,
}

impl Listener {
    /// The descriptor, for a child.
    pub fn inherited(&self) -> InheritedFd {
        InheritedFd(Arc::clone(&self.fd))
    }

    /// Where it listens; with the port that the kernel chose when 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    fn of(socket: Socket) -> anyhow::Result<Self> {
        let address = socket.local_addr().ok().and_then(|bound| bound.as_socket()).context("read the bound address")?;
        Ok(Self { fd: Arc::new(socket.into()), address })
    }

    /// A second descriptor of the socket, for an accept loop in this process.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn try_clone_std(&self) -> io::Result<std::net::TcpListener> {
        Ok(self.fd.try_clone()?.into())
    }
}

/// One of the application's sockets.
#[derive(Debug)]
pub struct Door {
    fd: Arc<OwnedFd>,
    /// With the port that the kernel chose when 0 was asked for.
    pub place: Place,
    /// The file of a unix socket of our own.
    file: Option<SocketFile>,
}

impl Door {
    /// The descriptor, for a child.
    pub fn inherited(&self) -> InheritedFd {
        InheritedFd(Arc::clone(&self.fd))
    }

    /// Let go of the descriptor, and keep the file of a unix socket, which goes when that is dropped.
    pub fn into_file(self) -> Option<SocketFile> {
        self.file
    }

    /// A socket that listens already, opened by the supervisor above, whose queue outlives Tandem.
    ///
    /// # Errors
    /// It has no address that is known here, or an option cannot be set.
    pub fn inherit(fd: OwnedFd) -> anyhow::Result<Self> {
        let socket = Socket::from(fd);
        let address = socket.local_addr().context("read the address of the socket handed down")?;
        let path = || address.as_pathname().map(|path| Place::Unix(path.to_owned()));
        let place = address.as_socket().map(Place::At).or_else(path);
        let place = place.context("the socket handed down has neither an address and port nor a path")?;
        prepare(&socket).with_context(|| format!("set the options of the socket handed down, {place}"))?;
        Ok(Self { fd: Arc::new(socket.into()), place, file: None })
    }
}

/// Listen on all of `places`, for the application. `holder` as for [`bind`].
///
/// # Errors
/// As [`bind`]; of unix sockets as [`socket_file::listen`].
pub fn open(
    places: &[Place],
    backlog: u32,
    files: &SocketFiles,
    holder: fn(u16) -> Option<String>,
) -> anyhow::Result<Vec<Door>> {
    const KEY: &str = "workers.listen";
    let beside = |address: SocketAddr| {
        let is_v4 =
            |place: &Place| matches!(place, Place::At(other) if other.is_ipv4() && other.port() == address.port());
        places.iter().any(is_v4)
    };
    let one = |place: &Place| match place {
        Place::Unix(path) => {
            let (socket, file) = socket_file::listen(path, backlog, files)?;
            Ok(Door { fd: Arc::new(socket.into()), place: place.clone(), file: Some(file) })
        }
        Place::At(address) => {
            let listener = bind_as(*address, backlog, KEY, !beside(*address), holder)?;
            Ok(Door { fd: listener.fd, place: Place::At(listener.address), file: None })
        }
        Place::Every(_) => {
            let listener = bind_place(place, backlog, KEY, holder)?;
            let place = if listener.address.is_ipv6() {
                Place::Every(listener.address.port())
            } else {
                Place::At(listener.address)
            };
            Ok(Door { fd: listener.fd, place, file: None })
        }
    };
    places.iter().map(one).collect()
}

/// Listen on `place`, an address: on every one of both families, or of IPv4 where the machine has no IPv6.
///
/// # Errors
/// As [`bind`].
pub fn bind_place(
    place: &Place,
    backlog: u32,
    setting: &str,
    holder: impl Fn(u16) -> Option<String>,
) -> anyhow::Result<Listener> {
    let every = |ip: std::net::IpAddr| SocketAddr::new(ip, place.port().unwrap_or_default());
    match place {
        Place::At(address) => bind(*address, backlog, setting, holder),
        Place::Every(_) | Place::Unix(_) => match listen(every(Ipv6Addr::UNSPECIFIED.into()), backlog, true) {
            Ok(socket) => Listener::of(socket),
            Err(error) if lacks_ipv6(&error) => bind(every(Ipv4Addr::UNSPECIFIED.into()), backlog, setting, holder),
            Err(error) => Err(explain(&error, every(Ipv6Addr::UNSPECIFIED.into()), setting, holder).into()),
        },
    }
}

/// Whether the error is that of a machine without IPv6: the kernel lacks it, or has it turned off for every device.
fn lacks_ipv6(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(nix::libc::EAFNOSUPPORT | nix::libc::EADDRNOTAVAIL))
}

/// Listen on `address`. `setting` is the configuration key that chose it, for messages; `holder` names the program
/// that has a port, where that can be known.
///
/// # Errors
/// A [`Failure`] with [`Code::Temporary`] when the port is taken, with [`Code::Config`] when the address cannot be had
/// here; both say what to do.
pub fn bind(
    address: SocketAddr,
    backlog: u32,
    setting: &str,
    holder: impl FnOnce(u16) -> Option<String>,
) -> anyhow::Result<Listener> {
    bind_as(address, backlog, setting, true, holder)
}

/// `dual`: `[::]` takes IPv4 too.
fn bind_as(
    address: SocketAddr,
    backlog: u32,
    setting: &str,
    dual: bool,
    holder: impl FnOnce(u16) -> Option<String>,
) -> anyhow::Result<Listener> {
    // listen(2) answers EADDRINUSE too, when another process bound with SO_REUSEADDR and listened in between.
    let socket = listen(address, backlog, dual).map_err(|error| explain(&error, address, setting, holder))?;
    Listener::of(socket)
}

fn listen(address: SocketAddr, backlog: u32, dual: bool) -> io::Result<Socket> {
    // socket2 sets CLOEXEC: a descriptor that leaks into an unrelated child would keep the port after our end.
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if let SocketAddr::V6(address) = address {
        // Not left to /proc/sys/net/ipv6/bindv6only: `::` means every address, of both families, on every machine.
        socket.set_only_v6(!dual || *address.ip() != Ipv6Addr::UNSPECIFIED)?;
    }
    // Without it, connections in TIME_WAIT keep the port from a restart for a minute. Never SO_REUSEPORT: with it a hung
    // worker takes a share of the new connections with it, and a second Tandem starts without an error.
    socket.set_reuse_address(true)?;
    prepare(&socket)?;
    socket.bind(&address.into())?;
    socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
    Ok(socket)
}

/// Set the options that workers rely on, also on a socket that was handed down.
fn prepare(socket: &Socket) -> io::Result<()> {
    // Accepted sockets inherit it; Uvicorn does not set it on a descriptor it was given (keep-alive at 44 ms).
    if socket.domain()? != Domain::UNIX {
        socket.set_tcp_nodelay(true)?;
    }
    // A flag of the open file, shared by all who inherit it: a worker that lost the race to accept must not block.
    socket.set_nonblocking(true)
}

/// The error of a socket that could not be opened, with what to do about it.
fn explain(
    error: &io::Error,
    address: SocketAddr,
    setting: &str,
    holder: impl FnOnce(u16) -> Option<String>,
) -> Failure {
    let (host, port) = (address.ip(), address.port());
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            let by = holder(port).unwrap_or_else(|| "another program".to_owned());
            Failure::new(
                Code::Temporary,
                format!("port {port} is taken by {by}: stop that, or set {setting} to a free port"),
            )
        }
        io::ErrorKind::PermissionDenied => Failure::new(
            Code::Config,
            format!(
                "{address} needs a privilege (EACCES): ports below net.ipv4.ip_unprivileged_port_start, usually 1024, \
                 are for root or CAP_NET_BIND_SERVICE; set {setting} to a higher port"
            ),
        ),
        io::ErrorKind::AddrNotAvailable => Failure::new(
            Code::Config,
            format!(
                "{host} is not an address of this machine: set {setting} to one that `ip address` shows, to \
                 127.0.0.1:{port} for this machine only, or to 0.0.0.0:{port} for all"
            ),
        ),
        _ if error.raw_os_error() == Some(nix::libc::EAFNOSUPPORT) => Failure::new(
            Code::Config,
            format!("this machine has no IPv6, which {address} needs: set {setting} to an IPv4 address"),
        ),
        _ => Failure::new(Code::Failed, format!("listen on {address} ({setting}): {error}")),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::os::fd::AsFd;

    use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
    use nix::sys::socket::{getsockopt, sockopt};

    use super::*;
    use crate::exit::code_of;

    fn bind_to(address: &str) -> anyhow::Result<Listener> {
        bind(address.parse().unwrap(), 64, "workers.listen", |_| None)
    }

    #[test]
    fn it_listens_with_the_options_that_workers_need() {
        let listener = bind_to("127.0.0.1:0").unwrap();
        assert_ne!(listener.address().port(), 0);
        let fd = listener.inherited().0;
        assert!(getsockopt(&fd, sockopt::AcceptConn).unwrap());
        assert!(getsockopt(&fd, sockopt::TcpNoDelay).unwrap());
        assert!(getsockopt(&fd, sockopt::ReuseAddr).unwrap());
        assert!(!getsockopt(&fd, sockopt::ReusePort).unwrap());
        let flags = FdFlag::from_bits_retain(fcntl(fd.as_fd(), FcntlArg::F_GETFD).unwrap());
        assert!(flags.contains(FdFlag::FD_CLOEXEC));
        let status = OFlag::from_bits_retain(fcntl(fd.as_fd(), FcntlArg::F_GETFL).unwrap());
        assert!(status.contains(OFlag::O_NONBLOCK));
    }

    #[test]
    fn a_socket_handed_down_gets_the_options_that_workers_need() {
        let given = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = given.local_addr().unwrap();
        let door = Door::inherit(given.into()).unwrap();
        assert_eq!(door.place, Place::At(address));
        let fd = door.inherited().0;
        assert!(getsockopt(&fd, sockopt::TcpNoDelay).unwrap());
        let status = OFlag::from_bits_retain(fcntl(fd.as_fd(), FcntlArg::F_GETFL).unwrap());
        assert!(status.contains(OFlag::O_NONBLOCK));
    }

    #[test]
    fn connections_queue_before_anybody_accepts_and_inherit_nodelay() {
        let listener = bind_to("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.address()).unwrap();
        client.write_all(b"early").unwrap();
        let accepting = listener.try_clone_std().unwrap();
        accepting.set_nonblocking(false).unwrap();
        let (mut server, _) = accepting.accept().unwrap();
        assert!(getsockopt(&server, sockopt::TcpNoDelay).unwrap());
        let mut bytes = [0; 5];
        server.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"early");
    }

    #[test]
    fn a_taken_port_is_temporary_and_names_its_holder_and_the_setting() {
        let first = bind_to("127.0.0.1:0").unwrap();
        let port = first.address().port();
        let taken = |holder: Option<&str>| {
            bind(first.address(), 64, "workers.listen", |asked| {
                assert_eq!(asked, port);
                holder.map(str::to_owned)
            })
            .unwrap_err()
        };
        let error = taken(Some("nginx (pid 7)"));
        assert_eq!(code_of(&error), Code::Temporary);
        assert_eq!(
            error.to_string(),
            format!("port {port} is taken by nginx (pid 7): stop that, or set workers.listen to a free port")
        );
        assert!(taken(None).to_string().contains("another program"));
    }

    #[test]
    fn dropping_the_last_clone_frees_the_port_even_with_a_connection_left_over() {
        let _alone = crate::forks::none();
        let listener = bind_to("127.0.0.1:0").unwrap();
        let address = listener.address();
        let for_child = listener.inherited();
        let _client = TcpStream::connect(address).unwrap();
        drop(listener);
        assert!(bind_to(&address.to_string()).is_err(), "a clone still listens");
        drop(for_child);
        bind_to(&address.to_string()).unwrap();
    }

    #[test]
    fn an_address_of_another_machine_says_so() {
        let error = bind_to("192.0.2.1:8000").unwrap_err();
        assert_eq!(code_of(&error), Code::Config);
        assert!(error.to_string().contains("not an address of this machine"), "{error}");
    }

    #[test]
    fn a_privileged_port_says_so() {
        let error = io::Error::from_raw_os_error(nix::libc::EACCES);
        let failure = explain(&error, "0.0.0.0:80".parse().unwrap(), "workers.listen", |_| None);
        assert_eq!(failure.code, Code::Config);
        assert!(failure.to_string().contains("CAP_NET_BIND_SERVICE"), "{failure}");
    }

    #[test]
    fn all_addresses_means_both_families() {
        match bind_to("[::]:0") {
            Ok(listener) => {
                TcpStream::connect(("127.0.0.1", listener.address().port())).unwrap();
            }
            Err(error) => assert!(error.to_string().contains("no IPv6"), "{error:#}"),
        }
    }
}
