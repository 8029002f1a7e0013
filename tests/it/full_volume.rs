//! A disk that fills under the server: it is said as what it is, waited for, and over once there is room.

use crate::common::project::Project;
use crate::common::small_disk::Filling;
use crate::common::tandem::{self, Tandem, wait_for};

#[test]
fn a_full_disk_is_told_and_waited_for_and_the_server_comes_back_by_itself() {
    let lines = "workers.count = 1\nmigrations.run = 'none'\npostgres.shared_buffers = '16MB'\n\
                 postgres.settings.max_wal_size = '48MB'\npostgres.settings.min_wal_size = '32MB'";
    let project = Project::app_with("plain:app", lines);
    let mut first = Tandem::up(&project);
    assert_eq!(first.stop(), 0, "{}", first.log());
    let Some(disk) = Filling::prepare(&project, "160m") else { return };
    let mut tandem = disk.up();
    tandem.wait_ready();
    let psql = |sql: &str| tandem::run(&project, &["psql", "-XAtqc", sql]);
    assert!(psql("CREATE TABLE kept AS SELECT 42 AS n").status.success());
    disk.fill();
    // WAL that has no room to go to ends the server.
    let write = "SELECT count(pg_logical_emit_message(false, 'x', repeat(md5(n::text), 30000))) FROM generate_series(1, 100) AS n";
    let began = std::time::Instant::now();
    while !tandem.log().contains("the disk is full") {
        let said = psql(write);
        assert!(began.elapsed().as_secs() < 60, "{said:?}\n{}", tandem.log());
    }
    let log = tandem.log();
    assert!(log.contains("MB free of 160.0 MB") && log.contains("pg_wal"), "{log}");
    wait_for("the reason", || tandem.health()["database"]["error"].to_string().contains("its disk is full"));
    let health = tandem.health();
    assert!(health["reasons"].to_string().contains("waits for room"), "{health}");
    let tries = |log: &str| log.matches("No space left on device").count();
    let before = tries(&tandem.log());

    // No start is tried in vain, and none fails for good.
    assert!(!tandem.log().contains("gives up"));
    disk.free();
    tandem.wait_ready();
    let log = tandem.log();
    assert!(log.contains("there is room on the disk again") && tries(&log) <= before + 1, "{log}");
    let kept = psql("SELECT n FROM kept");
    assert_eq!(String::from_utf8_lossy(&kept.stdout).trim(), "42", "{kept:?}");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}
