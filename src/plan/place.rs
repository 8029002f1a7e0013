//! A place where a server listens. Pure.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

/// Longest path of a unix socket, in bytes (unix(7): `sun_path` and its closing zero).
pub const SOCKET_PATH_MAX: usize = 107;

/// A place where a server listens, as the operator writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// `:8000`: every address of this machine, of both families where it has both.
    Every(u16),
    /// One address; `[::]` is every address too, on a machine that has IPv6.
    At(SocketAddr),
    /// `unix:/run/app.sock`: a unix socket.
    Unix(PathBuf),
}

impl Place {
    /// The address by which this machine reaches the place, if it has one.
    pub fn reachable(&self) -> Option<SocketAddr> {
        match self {
            Self::Every(port) => Some(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), *port)),
            Self::At(address) => Some(reachable(*address)),
            Self::Unix(_) => None,
        }
    }

    /// Its port, if it has one.
    pub fn port(&self) -> Option<u16> {
        self.reachable().map(|address| address.port())
    }

    /// The address by which this machine reaches it, as a URL; of a unix socket as httpx, requests-unixsocket and others
    /// write it.
    pub fn url(&self, scheme: &str) -> String {
        match (self, self.reachable()) {
            (Self::Unix(path), _) => {
                let path = path.display().to_string();
                let path = percent_encoding::utf8_percent_encode(&path, percent_encoding::NON_ALPHANUMERIC);
                format!("{scheme}+unix://{path}")
            }
            (_, Some(address)) => format!("{scheme}://{address}"),
            (_, None) => String::new(),
        }
    }

    /// The place for people to read.
    pub fn shown(&self, scheme: &str) -> String {
        match self {
            Self::Every(port) => format!("{scheme}://*:{port}"),
            Self::At(address) => format!("{scheme}://{address}"),
            Self::Unix(_) => self.to_string(),
        }
    }

    /// Whether the other one is the same place, however either is written.
    pub fn is_same(&self, other: &Self) -> bool {
        let bare = |place: &Self| match place {
            Self::Every(port) => Self::At(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), *port)),
            place => place.clone(),
        };
        bare(self) == bare(other)
    }

    /// Whether both cannot be listened on: one port of one address, or one path. Port 0 is any free one.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.overlaps_as(other, [true, true])
    }

    /// The same for two places of one server: there `[::]` leaves IPv4 to an IPv4 address that is written beside it.
    pub fn overlaps_beside(&self, other: &Self) -> bool {
        let is_v4 = |place: &Self| matches!(place, Self::At(SocketAddr::V4(_)));
        self.overlaps_as(other, [!is_v4(other), !is_v4(self)])
    }

    fn overlaps_as(&self, other: &Self, dual: [bool; 2]) -> bool {
        if let (Self::Unix(one), Self::Unix(other)) = (self, other) {
            return one == other;
        }
        let same_port = self.port() == other.port() && self.port() != Some(0);
        let meet = |one: IpAddr, other: IpAddr| {
            one.is_ipv4() == other.is_ipv4() && (one == other || one.is_unspecified() || other.is_unspecified())
        };
        let (ours, theirs) = (self.addresses(dual[0]), other.addresses(dual[1]));
        same_port && ours.iter().any(|one| theirs.iter().any(|other| meet(*one, *other)))
    }

    /// What is listened on, of each family; `dual`: `[::]` is both.
    fn addresses(&self, dual: bool) -> Vec<IpAddr> {
        let every: [IpAddr; 2] = [Ipv6Addr::UNSPECIFIED.into(), Ipv4Addr::UNSPECIFIED.into()];
        match self {
            Self::Every(_) => every.to_vec(),
            Self::At(address) if dual && address.is_ipv6() && address.ip().is_unspecified() => every.to_vec(),
            Self::At(address) => vec![address.ip()],
            Self::Unix(_) => Vec::new(),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Every(port) => write!(formatter, ":{port}"),
            Self::At(address) => write!(formatter, "{address}"),
            Self::Unix(path) => write!(formatter, "unix:{}", path.display()),
        }
    }
}

/// Where to connect to for a socket that listens on `listen`: one on all addresses is reached through loopback.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let host = match listen.ip() {
        IpAddr::V4(host) if host.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(host) if host.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        host => host,
    };
    SocketAddr::new(host, listen.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(address: &str) -> Place {
        Place::At(address.parse().unwrap())
    }

    #[test]
    fn all_addresses_are_reached_through_loopback() {
        for (listen, expected) in [
            (at("0.0.0.0:8001"), "http://127.0.0.1:8001"),
            (at("[::]:8001"), "http://[::1]:8001"),
            (at("127.0.0.2:1"), "http://127.0.0.2:1"),
            (at("[::1]:9"), "http://[::1]:9"),
            (Place::Every(80), "http://127.0.0.1:80"),
            (Place::Unix("/run/a.sock".into()), "http+unix://%2Frun%2Fa%2Esock"),
        ] {
            assert_eq!(listen.url("http"), expected);
        }
    }

    #[test]
    fn places_that_cannot_both_be_listened_on_overlap() {
        let every = || Place::Every(80);
        for (one, other, apart, beside) in [
            (at("127.0.0.1:80"), at("127.0.0.1:80"), true, true),
            (at("127.0.0.1:80"), at("127.0.0.1:81"), false, false),
            (at("127.0.0.1:0"), at("127.0.0.1:0"), false, false),
            (at("127.0.0.1:80"), at("[::1]:80"), false, false),
            (at("0.0.0.0:80"), at("127.0.0.1:80"), true, true),
            (at("0.0.0.0:80"), at("[::]:80"), true, false),
            (at("127.0.0.1:80"), at("[::]:80"), true, false),
            (at("[::1]:80"), at("[::]:80"), true, true),
            (every(), at("127.0.0.1:80"), true, true),
            (every(), at("[::1]:80"), true, true),
            (every(), at("[::]:80"), true, true),
            (Place::Unix("/a".into()), Place::Unix("/a".into()), true, true),
            (Place::Unix("/a".into()), Place::Unix("/b".into()), false, false),
            (Place::Unix("/a".into()), every(), false, false),
        ] {
            assert_eq!((one.overlaps(&other), one.overlaps_beside(&other)), (apart, beside), "{one} {other}");
            assert_eq!((other.overlaps(&one), other.overlaps_beside(&one)), (apart, beside), "{other} {one}");
        }
        assert!(every().is_same(&at("[::]:80")) && !every().is_same(&at("0.0.0.0:80")));
    }
}
