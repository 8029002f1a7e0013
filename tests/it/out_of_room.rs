//! No room on the disk: commands that do one thing say so and end, a stop interrupts the wait, and what was known of the
//! database stays known.

use std::time::{Duration, Instant};

use crate::common::project::Project;
use crate::common::refusal;
use crate::common::small_disk::{Filling, on_a_small_disk};
use crate::common::tandem::{self, Tandem, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Small files, so that a disk of 160 MB has room for them.
const LINES: &str = "workers.count = 1\nmigrations.run = 'none'\npostgres.shared_buffers = '16MB'\n\
    postgres.settings.max_wal_size = '48MB'\npostgres.settings.min_wal_size = '32MB'";
/// More WAL than the disk has room for.
const WRITE: &str =
    "SELECT count(pg_logical_emit_message(false, 'x', repeat(md5(n::text), 30000))) FROM generate_series(1, 100) AS n";
/// How long what ends at once may take.
const AT_ONCE: Duration = Duration::from_secs(60);

fn psql(project: &Project, sql: &str) -> std::process::Output {
    tandem::run(project, &["psql", "-XAtqc", sql])
}

/// A project whose cluster was made, and whose server ended in the middle of its work.
fn crashed(lines: &str) -> Project {
    let project = Project::app_with("plain:app", lines);
    let mut tandem = Tandem::up(&project);
    assert!(psql(&project, "CREATE TABLE kept AS SELECT 42 AS n").status.success());
    let postmaster = tandem.postmaster(&project);
    tandem.signal(Signal::SIGSTOP);
    kill(Pid::from_raw(postmaster), Signal::SIGKILL).unwrap();
    tandem.signal(Signal::SIGKILL);
    tandem.wait_exit();
    wait_for("the end of the server", || tandem::left_in(project.dir()).is_empty());
    project
}

#[test]
fn a_command_that_does_one_thing_starts_a_server_where_the_last_one_was_killed() {
    for args in [["migrate", "status"].as_slice(), &["migrate", "up"], &["backup"]] {
        let project = crashed(&LINES.replace("migrations.run = 'none'\n", ""));
        // What the killed server wrote of itself still says that it is ready.
        assert!(std::fs::read_to_string(project.data().join("postmaster.pid")).unwrap().contains("ready"));
        refusal::run(&project, args).expect(0, &[]);
    }
}

#[test]
fn a_command_that_does_one_thing_ends_on_a_full_disk_and_says_so() {
    let lines = LINES.replace("migrations.run = 'none'\n", "");
    let project = crashed(&lines);
    // A little is left for what comes before the server.
    let fill = "dd if=/dev/zero of=\"$small\"/filler bs=4k 2>/dev/null || true
        truncate -s -65536 \"$small\"/filler
        set +e; \"$@\"; code=$?";
    for args in [["migrate", "status"].as_slice(), &["backup"]] {
        let began = Instant::now();
        let Some(refused) = on_a_small_disk(&project, "130m", fill, args) else { return };
        refused.expect(73, &["the disk is full, and PostgreSQL cannot start in", "make room, and try again"]);
        assert!(began.elapsed() < AT_ONCE, "{:?}: {}", began.elapsed(), refused.said);
        assert!(!refused.said.contains("it is started again when there is room"), "{}", refused.said);
    }
    // With room it goes on where it was.
    refusal::run(&project, &["migrate", "status"]).expect(0, &["applied"]);
}

#[test]
fn a_stop_interrupts_the_wait_for_room() {
    for order in [Signal::SIGTERM, Signal::SIGINT] {
        let project = Project::app_with("plain:app", LINES);
        let mut first = Tandem::up(&project);
        assert_eq!(first.stop(), 0, "{}", first.log());
        let Some(disk) = Filling::prepare(&project, "160m") else { return };
        let mut tandem = disk.up();
        tandem.wait_ready();
        assert!(psql(&project, "CREATE TABLE kept AS SELECT 42 AS n").status.success());
        disk.fill();
        wait_for("the wait for room", || {
            drop(psql(&project, WRITE));
            tandem.log().contains("it is started again when there is room")
        });
        let began = Instant::now();
        tandem.signal(order);
        assert_eq!(tandem.wait_code(), 0, "{order}: {}", tandem.log());
        assert!(began.elapsed() < AT_ONCE, "{order}: {:?}", began.elapsed());
        assert!(tandem::left_in(project.dir()).iter().all(|process| !process.name.contains("postgres")));
    }
}

#[test]
fn what_was_known_of_the_database_stays_known_on_a_full_disk() {
    let project = Project::app_with("plain:app", LINES);
    let mut first = Tandem::up(&project);
    assert!(psql(&project, "CREATE TABLE kept AS SELECT 42 AS n").status.success());
    assert_eq!(first.stop(), 0, "{}", first.log());
    let Some(disk) = Filling::prepare(&project, "160m") else { return };
    let mut tandem = disk.up();
    tandem.wait_ready();
    // Full from the first samples on, and the server still answers.
    disk.fill();
    let database = || tandem.health()["database"].clone();
    let began = Instant::now();
    let mut samples = 0;
    while samples < 8 {
        let shown = database();
        // A monitor divides by it.
        assert_ne!(shown["max_connections"], 0, "{shown:#}");
        assert!(shown["tables"].is_array(), "{shown:#}");
        samples += usize::from(shown["available"] == true && shown["tables"] == serde_json::json!(["kept"]));
        assert!(began.elapsed() < AT_ONCE, "{shown:#}\n{}", tandem.log());
        tandem::pause();
    }
    let shown = database();
    assert!(shown["max_connections"].as_u64().unwrap() >= 100, "{shown:#}");
    disk.free();
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}
