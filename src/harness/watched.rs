//! The servers that are not the tests', and the connections to them as this machine shows them.

use std::net::{IpAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};

use tokio::time::timeout;

use super::guard::ANSWER_LIMIT;
use crate::plan::DatabaseUrl;
use crate::process::sockets;

/// A server that is not the tests'.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Server {
    /// The project's own.
    Live { port: u16 },
    /// Another one that the configuration names.
    Other { host: String, port: u16 },
}

/// A server, by the connections to it.
#[derive(Clone)]
pub struct Address {
    pub server: Server,
    /// `None`: this machine's.
    pub ips: Option<Vec<IpAddr>>,
    pub port: u16,
    pub socket: Option<PathBuf>,
}

impl Address {
    /// The sockets that are connected to it.
    pub fn clients(&self) -> Vec<u64> {
        let is_it = |end: &sockets::ConnectionEnd| match &self.ips {
            Some(ips) => ips.contains(&end.remote.ip()),
            None => end.remote.ip().is_loopback() || end.remote.ip() == end.local.ip(),
        };
        let over_tcp = sockets::established(self.port).into_iter().filter(is_it).map(|end| end.inode);
        over_tcp.chain(self.socket.iter().flat_map(|path| sockets::clients_of_unix(path))).collect()
    }
}

/// The addresses that `url` stands for. Names are resolved on another thread: that may take its time.
pub async fn addresses(url: DatabaseUrl) -> Vec<Address> {
    let server = Server::Other { host: url.host.clone(), port: url.port };
    if url.host.starts_with('/') {
        let socket = Path::new(&url.host).join(format!(".s.PGSQL.{}", url.port));
        return vec![Address { server, ips: Some(Vec::new()), port: url.port, socket: Some(socket) }];
    }
    let (host, port) = (url.host.clone(), url.port);
    let resolve = move || (host.trim_matches(['[', ']']), port).to_socket_addrs().map(Vec::from_iter);
    match timeout(ANSWER_LIMIT, tokio::task::spawn_blocking(resolve)).await {
        Ok(Ok(Ok(found))) => {
            let ips = found.iter().map(|address| address.ip().to_canonical()).collect();
            vec![Address { server, ips: Some(ips), port, socket: None }]
        }
        // Tests cannot find it either, unless they know another name of it.
        failed => {
            tracing::debug!(?failed, "resolve {}", url.host);
            Vec::new()
        }
    }
}
