use std::os::unix::fs::PermissionsExt;

use sea_orm::sqlx::{AssertSqlSafe, ConnectOptions, query, raw_sql};

use super::*;
use crate::plan::CommandLine;
use crate::postgres::cluster::{Making, ensure};
use crate::postgres::provision::superuser_options;
use crate::postgres::test_support::{Place, installation, place, start};
use crate::process::{self, signal};

async fn with_cluster() -> Place {
    let place = place();
    ensure(&place.home, &installation().await, Making::default()).await.unwrap();
    place
}

/// Write a postmaster.pid, and a socket lock, with `first` as the first line; the server could read neither if not its own.
fn leave(home: &Home, first: &str) {
    let rest = "\n/nowhere\n1700000000\n5432\n/nowhere\n127.0.0.1\n  1234  5678\nready   \n";
    for path in [home.data.join("postmaster.pid"), home.socket_dir.join(".s.PGSQL.5432.lock")] {
        fs::write(&path, if first.is_empty() { String::new() } else { format!("{first}{rest}") }).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::chown(&path, home.server.as_ref().map(|server| server.uid), None).unwrap();
    }
}

#[tokio::test]
async fn files_of_the_dead_and_of_strangers_do_not_stop_a_start() {
    let place = with_cluster().await;
    let home = &place.home;
    // A live process of the server's own user: the one case that PostgreSQL itself refuses.
    let sleeper = CommandLine::new("/bin/sleep").arg("60").identity(home.server.clone()).dir("/");
    let (stranger, _) = process::spawn(&sleeper, &[], Signal::SIGKILL).unwrap();
    let own = std::process::id().to_string();
    for first in ["", "rubbish", "\u{fffd}\u{0}", "4194000", "-4194000", &own, "1", &stranger.pid().to_string()] {
        leave(home, first);
        let server = start(home).await;
        assert_eq!(crate::postgres::server::running_port(&home.data), Some(server.port), "{first:?}");
        server.stop(Signal::SIGINT).await;
        assert!(!home.data.join("postmaster.pid").exists());
    }
    signal(stranger.pid(), Signal::SIGKILL);
    assert_eq!(clear(home, FAST_GRACE).await.unwrap(), []);
}

#[tokio::test]
async fn an_orphaned_server_is_stopped_even_when_it_hangs() {
    let place = with_cluster().await;
    let home = &place.home;
    for hangs in [false, true] {
        let orphan = start(home).await;
        let pid = orphan.child.pid();
        if hangs {
            signal(pid, Signal::SIGSTOP);
        }
        let waiting = tokio::spawn(orphan.ended());
        assert_eq!(clear(home, FAST_GRACE).await.unwrap(), [], "a clean stop leaves no file");
        assert!(waiting.await.unwrap().contains("fast shutdown"));
        assert!(orphaned_backends(&home.data).is_empty());
    }
}

#[tokio::test]
async fn backends_that_outlive_their_postmaster_are_killed() {
    let place = with_cluster().await;
    let home = &place.home;
    let mut server = start(home).await;
    let options = superuser_options(home, server.port, "postgres");
    let mut busy = options.connect().await.unwrap();
    let pid: i32 = sea_orm::sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut busy).await.unwrap();
    let spin = tokio::spawn(async move {
        let endless = "DO $$ BEGIN LOOP END LOOP; END $$";
        raw_sql(AssertSqlSafe(endless)).execute(&mut busy).await.map(|_| ())
    });
    let mut watcher = options.connect().await.unwrap();
    let begun = Instant::now();
    let active = "SELECT FROM pg_stat_activity WHERE pid = $1 AND state = 'active'";
    while query(active).bind(pid).fetch_optional(&mut watcher).await.unwrap().is_none() {
        assert!(begun.elapsed() < KILL_LIMIT);
    }
    let begun = Instant::now();
    signal(server.child.pid(), Signal::SIGKILL);
    server.child.wait().await;
    assert!(orphaned_backends(&home.data).iter().any(|backend| backend.pid() == pid));
    let again = start(home).await;
    println!("kill -9 with a busy backend, to ready: {:?}", begun.elapsed());
    assert!(!orphaned_backends(&home.data).iter().any(|backend| backend.pid() == pid));
    assert!(spin.await.unwrap().is_err());
    again.stop(Signal::SIGINT).await;
}

#[test]
fn the_first_line_is_the_pid() {
    assert_eq!(pid_in(b"12\n/data\n"), Some(12));
    assert_eq!(pid_in(b"-12\n"), Some(12));
    for garbage in [&b""[..], b"\n", b"0\n", b"12abc\n", b"99999999999999\n", b"-2147483648\n", b"\xff\xfe\n"] {
        assert_eq!(pid_in(garbage), None);
    }
}
