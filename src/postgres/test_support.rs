//! For tests: a PostgreSQL to run, a home of its own in a temporary directory, and a server that ends with the test.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::binaries::{self, Installation};
use super::home::Home;
use super::provision::{Wanted, provision};
use super::secret::{self, Password};
use super::settings::{Inputs, Purpose, render};
use super::{cluster, port, server, stale};
use crate::config::{BinarySource, Port, Postgres, PostgresMode, PostgresTls};
use crate::process::{self, Child, identity, lines, signal};

const LIMIT: Duration = Duration::from_secs(30);

/// The PostgreSQL that tests run: the package, fetched once into the user's cache.
pub async fn installation() -> Installation {
    let own = identity::current().expect("a user with a passwd entry");
    let cache = if own.uid == 0 { PathBuf::from("/var/cache/tandem") } else { own.home.join(".cache/tandem") };
    binaries::ensure(&BinarySource::Package, &cache, "python3", "".as_ref()).await.expect("a PostgreSQL 16")
}

/// `[postgres]` as small as it can be.
pub fn settings() -> Postgres {
    Postgres {
        mode: PostgresMode::Managed,
        url: None,
        scheme: None,
        unresolved_help: None,
        source: BinarySource::Auto,
        listen: IpAddr::V4(Ipv4Addr::LOCALHOST),
        port: Port { number: 0, chosen: false },
        tls: PostgresTls::Off,
        user: "ffe".into(),
        password: None,
        database: "ffe".into(),
        run_as: None,
        max_connections: 20,
        max_connections_auto: false,
        reserved_connections: 5,
        shared_buffers: None,
        slow_query: None,
        read_all_stats: true,
        initdb_args: Vec::new(),
        init_scripts: None,
        init_limit: LIMIT,
        settings: BTreeMap::new(),
        ready_limit: LIMIT,
        probe_interval: Duration::from_secs(1),
        probe_deadline: Duration::from_secs(1),
        hang_limit: None,
    }
}

/// A home in a temporary directory that goes with it.
pub struct Place {
    pub home: Home,
    pub dir: tempfile::TempDir,
}

/// A home with its directories made, for the user that the tests' server runs as.
pub fn place() -> Place {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let server = identity::is_root().then(|| identity::lookup("postgres").or_else(|| identity::lookup("nobody")));
    let home = Home::at(&dir.path().join("state"), server.flatten());
    home.prepare().unwrap();
    Place { home, dir }
}

/// A running server.
pub struct Running {
    pub child: Child,
    pub port: u16,
    log: tokio::task::JoinHandle<String>,
}

/// Start the server of `home` and wait until it is ready.
pub async fn start(home: &Home) -> Running {
    start_with(home, &Postgres { shared_buffers: Some(16 * 1024 * 1024), ..settings() }).await
}

/// As [`start`], configured as `postgres` says.
pub async fn start_with(home: &Home, postgres: &Postgres) -> Running {
    let port = port::choose(postgres.listen, postgres.port).unwrap();
    let trusted_users = home.trusted_users().unwrap();
    let inputs = Inputs {
        postgres,
        socket_dir: &home.socket_dir,
        port,
        memory: 1 << 30,
        shared: None,
        trusted_users: &trusted_users,
        archiving: None,
        statements: true,
        tls: None,
        purpose: Purpose::Durable,
    };
    cluster::configure(home, &render(&inputs).unwrap()).unwrap();
    let extra = stale::clear(home, stale::FAST_GRACE).await.unwrap();
    let command = server::command(home, &installation().await, &extra);
    let (mut child, output) = process::spawn(&command, &[], Signal::SIGQUIT).unwrap();
    let log = tokio::spawn(async move {
        let mut text = String::new();
        lines(output.stderr.unwrap(), |line| text.extend([line, "\n"])).await;
        text
    });
    server::oom_protect(child.pid());
    let pid = child.pid();
    tokio::select! {
        ready = tokio::time::timeout(LIMIT, server::wait_ready(&home.data, pid)) => ready.unwrap(),
        exit = child.wait() => panic!("the server ended ({exit}): {}", log.await.unwrap()),
    }
    Running { child, port, log }
}

impl Running {
    /// Stop the server and return what it wrote.
    pub async fn stop(self, request: Signal) -> String {
        signal(self.child.pid(), request);
        self.ended().await
    }

    /// Wait for the server's end and return what it wrote.
    pub async fn ended(mut self) -> String {
        tokio::time::timeout(LIMIT, self.child.wait()).await.unwrap();
        tokio::time::timeout(LIMIT, self.log).await.unwrap().unwrap()
    }
}

/// Make the role and the database `ffe`.
pub async fn provisioned(home: &Home, port: u16, fresh: bool) -> Password {
    let password = secret::ensure(home, None).unwrap();
    provision(home, port, &Wanted { user: "ffe", password: &password, database: "ffe", reads_all_stats: true }, fresh)
        .await
        .unwrap();
    password
}
