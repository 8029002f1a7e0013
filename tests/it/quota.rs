//! A disk quota that is used up is told as what it is, not as a full disk, waited for, and over once it is raised.

use crate::common::project::Project;
use crate::common::quota::{BACKUPS, Quota, STATE};
use crate::common::refusal;
use crate::common::tandem::{Tandem, wait_for};

const SMALL: &str = "workers.count = 1\nmigrations.run = 'none'\npostgres.shared_buffers = '16MB'\n\
                     postgres.settings.max_wal_size = '48MB'\npostgres.settings.min_wal_size = '32MB'";

#[test]
fn a_quota_that_is_used_up_is_told_and_the_server_comes_back_when_it_is_raised() {
    let project = Project::app_with("plain:app", SMALL);
    let Some(quota) = Quota::prepare(&project) else { return };
    let mut tandem = quota.up();
    tandem.wait_ready();
    let psql = |tandem: &Tandem, sql: &str| quota.run(tandem, &["psql", "-XAtqc", sql]);
    assert_eq!(psql(&tandem, "CREATE TABLE kept AS SELECT 42 AS n").code, 0);
    quota.leave(&tandem, STATE, 8);
    // WAL that may not be written ends the server.
    let write = "SELECT count(pg_logical_emit_message(false, 'x', repeat(md5(random()::text), 30000))) FROM generate_series(1, 100)";
    wait_for("the quota's end", || {
        psql(&tandem, write);
        tandem.log().contains("the disk quota is used up")
    });
    let log = tandem.log();
    assert!(log.contains("Disk quota exceeded") && log.contains("pg_wal") && log.contains("Raise the quota"), "{log}");
    assert!(!log.contains("disk is full"), "{log}");
    wait_for("the reason", || tandem.health()["database"]["error"].to_string().contains("its disk quota is used up"));
    assert_eq!(tandem.ready(), Some(false));

    quota.lift(&tandem, STATE);
    tandem.wait_ready();
    assert!(!tandem.log().contains("gives up"));
    let kept = psql(&tandem, "SELECT n FROM kept");
    assert!(kept.code == 0 && kept.said.trim() == "42", "{kept:?}");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn a_backup_and_a_first_cluster_that_a_quota_does_not_allow_leave_nothing_and_say_why() {
    let project = Project::app_with("plain:app", &format!("{SMALL}\nbackup.dir = '{BACKUPS}'"));
    let Some(quota) = Quota::prepare(&project) else { return };
    let refused = quota.run_within(24, &["up"]);
    refused.expect(73, &["the disk quota is used up", "raise the quota"]);
    assert!(!refused.said.contains("disk is full"), "{}", refused.said);

    let mut tandem = quota.up();
    tandem.wait_ready();
    let run = |args: &[&str]| quota.run(&tandem, args);
    assert_eq!(run(&["backup"]).code, 0);
    let fill =
        "CREATE TABLE much AS SELECT md5(random()::text) || md5(random()::text) AS t FROM generate_series(1, 250000)";
    assert_eq!(run(&["psql", "-XAtqc", fill]).code, 0);
    let listed = || run(&["list", "--json"]).said;
    let before = listed();
    quota.leave(&tandem, BACKUPS, 3);
    let refused = run(&["backup"]);
    assert_eq!(refused.code, 73, "{}", refused.said);
    assert!(refused.said.to_lowercase().contains("quota"), "{}", refused.said);
    assert!(!refused.said.contains("disk is full"), "{}", refused.said);
    assert_eq!(listed(), before);
    let half_made = "find mounted/backups -name '*partial*'";
    assert_eq!(quota.run_program(&tandem, &["sh", "-c", half_made]).said, "", "a half-made file is left");
    assert_eq!(tandem.ready(), Some(true));
    quota.lift(&tandem, BACKUPS);
    assert_eq!(run(&["backup"]).code, 0);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    assert!(refusal::names(&project.dir().join("mounted")).is_empty(), "the mount is the namespace's own");
}
