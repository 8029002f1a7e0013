//! Logical replication and restores: what goes on in the kept database is told, and does not keep it from being dropped.

use crate::common::backups::{as_superuser, backup};
use crate::common::pitr::{self, succeed};
use crate::common::project::Project;
use crate::common::refusal;
use crate::common::tandem::Tandem;

#[test]
fn subscriptions_and_slots_of_the_kept_database_are_told_and_it_can_be_dropped() {
    let lines = "workers.count = 1\nmigrations.run = 'none'\nbackup.schedule = 'never'\n\
                 postgres.settings.wal_level = 'logical'";
    let project = Project::app_with("plain:app", lines);
    let mut tandem = Tandem::up(&project);
    as_superuser(
        &project,
        "app",
        "CREATE SUBSCRIPTION \"their orders\" CONNECTION 'host=127.0.0.1 port=1 dbname=x' PUBLICATION p
             WITH (connect = false, slot_name = 'theirs')",
    );
    as_superuser(&project, "app", "ALTER SUBSCRIPTION \"their orders\" ENABLE");
    as_superuser(&project, "app", "SELECT pg_create_logical_replication_slot('ours', 'pgoutput')");
    backup(&project, &[]);
    // What a killed restore left has the subscriptions of its dump.
    as_superuser(&project, "postgres", "CREATE DATABASE app_restoring_20260102_150405");
    let left =
        "CREATE SUBSCRIPTION theirs CONNECTION 'host=127.0.0.1 port=1 dbname=x' PUBLICATION p WITH (connect = false)";
    as_superuser(&project, "app_restoring_20260102_150405", left);
    let restored = refusal::run(&project, &["restore", "latest", "--yes"]);
    restored.expect(0, &[]);
    let told = restored.said;
    for words in ["\"their orders\"", "ENABLE", "DISABLE", "slot_name = NONE", "ours", "app_before_restore_"] {
        assert!(told.contains(words), "{words}: {told}");
    }
    let enabled = "SELECT datname ~ 'before', subenabled FROM pg_subscription JOIN pg_database d ON d.oid = subdbid \
                   ORDER BY 1";
    assert_eq!(as_superuser(&project, "postgres", enabled), "f|f\nt|t");

    // Nobody is to lose a slot without having read its name.
    let asked = refusal::run(&project, &["restore", "--drop-kept"]);
    asked.expect(64, &["their orders", "ours", "--yes"]);
    let dropped = refusal::run(&project, &["restore", "--drop-kept", "--yes"]);
    dropped.expect(0, &[]);
    let told = dropped.said;
    for words in ["theirs", "pg_drop_replication_slot('theirs')", "ours"] {
        assert!(told.contains(words), "{words}: {told}");
    }
    assert_eq!(as_superuser(&project, "postgres", "SELECT count(*) FROM pg_database WHERE datname ~ 'before'"), "0");
    assert_eq!(as_superuser(&project, "postgres", "SELECT subname FROM pg_subscription"), "their orders");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn a_restore_to_a_moment_disables_subscriptions_and_names_them_and_the_slots_that_are_gone() {
    let project = pitr::project("postgres.settings.wal_level = 'logical'");
    let mut tandem = Tandem::up(&project);
    as_superuser(
        &project,
        "app",
        "CREATE SUBSCRIPTION \"their orders\" CONNECTION 'host=127.0.0.1 port=1 dbname=x' PUBLICATION p
             WITH (connect = false, slot_name = 'theirs')",
    );
    as_superuser(&project, "app", "ALTER SUBSCRIPTION \"their orders\" ENABLE");
    as_superuser(&project, "app", "SELECT pg_create_logical_replication_slot('ours', 'pgoutput')");
    succeed(&project, &["backup", "base"]);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    let told = succeed(&project, &["restore", "--to-end", "--yes"]);
    for words in [
        "subscription \"their orders\" of database app is disabled",
        "ENABLE",
        "replication slots are in no",
        "had ours:",
    ] {
        assert!(told.contains(words), "{words}: {told}");
    }
    let mut tandem = Tandem::up(&project);
    assert_eq!(as_superuser(&project, "app", "SELECT subname, subenabled FROM pg_subscription"), "their orders|f");
    assert_eq!(as_superuser(&project, "app", "SELECT count(*) FROM pg_replication_slots"), "0");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    let told: serde_json::Value =
        serde_json::from_str(&succeed(&project, &["restore", "--to-end", "--yes", "--json"])).unwrap();
    assert_eq!(
        (&told["disabled_subscriptions"], &told["lost_slots"]),
        (&serde_json::json!([]), &serde_json::json!([]))
    );
}
