//! Scheduled backups of `tandem up`, and the guard of the disk.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::Duration;

use crate::common::backups::{backup, command, dir, finals, sql};
use crate::common::namespace::mount_namespace;
use crate::common::project::Project;
use crate::common::refusal::{self, names};
use crate::common::scraped::{PROMETHEUS, scrape};
use crate::common::tandem::{self, Tandem, wait_for};
use nix::sys::signal::Signal;
use serde_json::Value;

/// A schedule with seconds: croner takes a sixth field, and no test waits for a minute.
const EACH_SECOND: &str = "* * * * * *";

fn project(lines: &str) -> Project {
    Project::app_with("plain:app", &format!("workers.count = 1\n{lines}"))
}

fn backups(tandem: &Tandem) -> Value {
    tandem.health()["backups"].clone()
}

#[test]
fn scheduled_backups_are_taken_verified_and_shown() {
    let project = project(&format!("backup.schedule = '{EACH_SECOND}'\nbackup.verify = 'always'"));
    let mut tandem = Tandem::up(&project);
    wait_for("two backups", || backups(&tandem)["count"].as_u64() >= Some(2));
    wait_for("a verified one", || backups(&tandem)["last"]["verified"] == true);
    let shown = backups(&tandem);
    assert_eq!(shown["last"]["ok"], true, "{shown}");
    assert!(shown["last"]["name"].as_str().unwrap().starts_with("app_backup_20"), "{shown}");
    assert_eq!(shown["schedule"], format!("{EACH_SECOND} (local time)"));
    assert!(shown["next"].is_string() && shown["newest_verified"].is_string(), "{shown}");
    assert_eq!(tandem.health()["status"], "healthy");
    refusal::run(&project, &["status"]).expect(0, &["backups: ", "ok, verified"]);
    // A stop in the middle of one leaves nothing under a final name that is not whole.
    assert_eq!(tandem.stop(), 0);
    assert!(tandem::left_in(project.dir()).is_empty());
    let whole = |name: &String| name.ends_with(".manifest.json");
    let dumps = finals(&project).into_iter().filter(|name| name.ends_with(".sql.gz")).count();
    assert_eq!(finals(&project).iter().filter(|name| whole(name)).count(), dumps, "{:?}", finals(&project));
    refusal::run(&project, &["backup", "verify"]).expect(0, &["verified"]);
}

#[test]
fn a_backup_that_was_missed_is_made_up_for_after_the_start_and_only_once() {
    let project = project("backup.schedule = '0 2 * * *'");
    let mut tandem = Tandem::up(&project);
    // Nothing was missed by who never had one.
    wait_for("the schedule", || backups(&tandem)["next"].is_string());
    assert_eq!((backups(&tandem)["count"].as_u64(), &backups(&tandem)["last"]), (Some(0), &Value::Null));
    let first = backup(&project, &[]);
    backup(&project, &[]);
    assert_eq!(tandem.stop(), 0);
    // They were of other days, long ago.
    let first = first["file"].as_str().unwrap().split_once('.').unwrap().0.to_owned();
    for name in finals(&project) {
        let (stem, ending) = name.split_once('.').unwrap();
        let day = if stem == first { 2 } else { 3 };
        let (then, old) = (format!("2020-02-0{day}T04:05:06Z"), format!("app_backup_2020020{day}_040506"));
        let from = dir(&project).join(&name);
        if ending == "manifest.json" {
            let mut manifest: Value = serde_json::from_slice(&fs::read(&from).unwrap()).unwrap();
            manifest["file"] = format!("{old}.sql.gz").into();
            manifest["taken"] = then.into();
            manifest["globals"]["file"] = format!("{old}.globals.sql").into();
            fs::write(&from, manifest.to_string()).unwrap();
        }
        fs::rename(from, dir(&project).join(format!("{old}.{ending}"))).unwrap();
    }
    let mut tandem = Tandem::up(&project);
    wait_for("the missed one", || backups(&tandem)["last"]["ok"] == true);
    // The two newest stay whatever their age; the third went for its own.
    wait_for("retention", || backups(&tandem)["count"] == 2);
    assert!(finals(&project).iter().all(|name| !name.contains("20200202")), "{:?}", finals(&project));
    let next = backups(&tandem)["next"].as_str().unwrap().to_owned();
    assert_eq!(tandem.stop(), 0);
    let tandem = Tandem::up(&project);
    wait_for("the schedule", || backups(&tandem)["next"].is_string());
    assert_eq!(backups(&tandem)["next"], next, "nothing is missed any more");
    assert_eq!(backups(&tandem)["count"], 2);
}

#[test]
fn where_wal_is_archived_the_first_base_backup_is_made_by_itself() {
    let project = project("backup.pitr.enabled = true");
    let tandem = Tandem::up(&project);
    wait_for("the base backup", || backups(&tandem)["pitr"]["last_base"].is_string());
    refusal::run(&project, &["backup", "bases"]).expect(0, &["base_20"]);
    assert_eq!(tandem.health()["status"], "healthy");
}

#[test]
fn metrics_tell_of_room_backups_and_wal() {
    let project = project(&format!("backup.schedule = '{EACH_SECOND}'\nbackup.pitr.enabled = true"));
    let tandem = Tandem::up(&project);
    wait_for("a backup", || backups(&tandem)["last"]["ok"] == true);
    wait_for("a base backup", || backups(&tandem)["pitr"]["last_base"].is_string());
    let (code, text) = tandem::get(project.health, "/metrics").unwrap();
    assert_eq!(code, 200);
    let value = |name: &str| -> f64 {
        let line = text
            .lines()
            .find(|line| line.starts_with(&format!("{name} ")))
            .unwrap_or_else(|| panic!("{name} in\n{text}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    for of in ["data", "backups"] {
        let (free, size) = (
            format!("tandem_disk_free_bytes{{file_system=\"{of}\"}}"),
            format!("tandem_disk_size_bytes{{file_system=\"{of}\"}}"),
        );
        assert!(value(&free) > 0.0 && value(&free) <= value(&size), "{text}");
    }
    assert_eq!(value("tandem_backup_last_ok"), 1.0);
    assert!(value("tandem_backup_count") >= 1.0 && value("tandem_base_backup_timestamp_seconds") > 1.7e9);
    assert_eq!(value("tandem_wal_archiving_failing"), 0.0);
    assert!(scrape(project.health, Some(PROMETHEUS)).text.ends_with("# EOF\n"));
}

/// How long a request may take to be sent once it is begun.
const REQUEST_LIMIT: Duration = Duration::from_secs(30);

/// One request to a server of the test's own: what was sent, answered with 200.
fn hear(listener: &TcpListener) -> String {
    listener.set_nonblocking(true).unwrap();
    let mut accepted = None;
    wait_for("a request", || {
        accepted = listener.accept().ok();
        accepted.is_some()
    });
    let (mut stream, _) = accepted.unwrap();
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(REQUEST_LIMIT)).unwrap();
    let mut heard = Vec::new();
    let mut block = [0; 4096];
    while !String::from_utf8_lossy(&heard).ends_with('}') {
        match stream.read(&mut block).unwrap() {
            0 => break,
            length => heard.extend_from_slice(&block[..length]),
        }
    }
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").unwrap();
    String::from_utf8(heard).unwrap()
}

#[test]
fn a_failed_backup_degrades_health_and_calls_the_web_address() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let project = project(&format!(
        "backup.schedule = '{EACH_SECOND}'\nbackup.dir = '/proc/no/such'\nbackup.on_failure = 'http://127.0.0.1:{port}/hook?key=secret'"
    ));
    let tandem = Tandem::up(&project);
    let heard = hear(&listener);
    assert!(heard.starts_with("POST /hook?key=secret HTTP/1.1\r\n"), "{heard}");
    let body: Value = serde_json::from_str(heard.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    assert_eq!((&body["event"], &body["database"]), (&"backup_failed".into(), &"app".into()));
    assert!(body["error"].as_str().unwrap().contains("cannot create directory /proc/no"), "{body}");
    wait_for("the verdict", || tandem.health()["status"] == "degraded");
    let reasons = tandem.health()["reasons"].to_string();
    assert!(reasons.contains("the last backup failed: cannot create directory /proc/no"), "{reasons}");
    refusal::run(&project, &["status"]).expect(0, &["FAILED: cannot create directory"]);
    let check = refusal::run(&project, &["check"]);
    check.expect(0, &["backup.on_failure", "********"]);
    assert!(!check.said.contains("key=secret") && !tandem.log().contains("key=secret"));
}

#[test]
fn a_failed_backup_calls_the_command_and_the_next_good_one_heals() {
    let project = project(&format!(
        "backup.schedule = '{EACH_SECOND}'\nbackup.dir = 'later/backups'\n\
         backup.on_failure = ['sh', '-c', 'echo \"$TANDEM_BACKUP_DATABASE: $TANDEM_BACKUP_ERROR\" >>called']"
    ));
    // A file is in the way of the directory.
    project.write("later", "");
    let tandem = Tandem::up(&project);
    let called = || fs::read_to_string(project.dir().join("called")).unwrap_or_default();
    wait_for("the call", || called().contains("app: cannot create directory"));
    wait_for("the verdict", || tandem.health()["status"] == "degraded");
    fs::remove_file(project.dir().join("later")).unwrap();
    wait_for("a good one", || backups(&tandem)["last"]["ok"] == true);
    assert_eq!(tandem.health()["status"], "healthy");
}

#[test]
fn a_failed_run_is_tried_again_before_the_next_is_due() {
    let project =
        project(&format!("backup.schedule = '{EACH_SECOND}'\nbackup.dir = 'later/backups'\nbackup.retry_after = '1s'"));
    project.write("later", "");
    let mut tandem = Tandem::up(&project);
    wait_for("a failed one", || backups(&tandem)["last"]["ok"] == false);
    let seldom = "0 0 1 1 *";
    project.reconfigure(|text| text.replace(EACH_SECOND, seldom));
    tandem.signal(Signal::SIGHUP);
    wait_for("the new schedule", || backups(&tandem)["schedule"] == format!("{seldom} (local time)"));
    fs::remove_file(project.dir().join("later")).unwrap();
    wait_for("a good one", || backups(&tandem)["last"]["ok"] == true);
    assert!(tandem.log().contains("; it is tried again in 1s"), "{}", tandem.log());
    assert_eq!(tandem.stop(), 0);
}

#[test]
fn retention_goes_by_names_and_a_dry_run_only_says_so() {
    let project = project("backup.retention_days = 0\nbackup.retention_count = 1");
    refusal::run(&project, &["migrate", "up"]).expect(0, &["applied"]);
    for _ in 0..3 {
        backup(&project, &[]);
    }
    let nothing = refusal::run(&project, &["backup", "prune"]);
    nothing.expect(0, &[]);
    assert!(!nothing.said.contains("removed"), "none is verified, so none may go: {}", nothing.said);
    refusal::run(&project, &["backup", "verify"]).expect(0, &["verified"]);
    let before = names(&dir(&project));
    let dry = refusal::run(&project, &["backup", "prune", "--dry-run"]);
    dry.expect(0, &["would be removed: there are newer ones enough", "stays: it is the newest verified one"]);
    let recorded = |names: &[String]| names.iter().filter(|name| name.ends_with(".manifest.json")).count();
    assert_eq!((names(&dir(&project)), recorded(&before)), (before, 3));
    refusal::run(&project, &["backup", "prune"]).expect(0, &["was removed"]);
    assert_eq!(finals(&project).len(), 4, "the dump, its globals, its manifest, its verdict: {:?}", finals(&project));
}

#[test]
fn a_disk_without_room_refuses_a_backup_before_it_begins_and_degrades_health() {
    let Some(namespace) = mount_namespace() else { return };
    let project = project("disk.warn_free = '90%'\ndisk.stop_free = '50%'");
    let mut tandem = Tandem::up(&project);
    sql(&project, "CREATE TABLE t AS SELECT 1 AS one");
    fs::create_dir_all(dir(&project)).unwrap();
    let script =
        "mount -t tmpfs -o size=8m,mode=0700 tmpfs \"$0\"; dd if=/dev/zero of=\"$0\"/filler bs=1M count=5 2>/dev/null
        set +e; \"$@\"; code=$?; ls -A \"$0\"; exit $code";
    let output = command("unshare")
        .args(namespace)
        .args(["sh", "-euc", script])
        .arg(dir(&project))
        .arg(tandem::command(&project).get_program())
        .arg("backup")
        .current_dir(project.dir())
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), ".lock\nfiller\n");
    let refused = refusal::said(output);
    refused
        .expect(73, &["no backup is begun", "has 3 MB free of 8 MB", "disk.stop_free (50%) keeps 4 MB", "are missing"]);
    assert_eq!(tandem.stop(), 0);

    // A threshold that no disk meets.
    project.configure("disk.warn_free = '100%'");
    project.reconfigure(|text| text.replacen("disk.warn_free = '90%'\n", "", 1));
    let tandem = Tandem::up(&project);
    wait_for("the verdict", || tandem.health()["status"] == "degraded");
    let health = tandem.health();
    assert!(health["reasons"].to_string().contains("MB are free, disk.warn_free asks for"), "{health}");
    assert!(health["disk"]["backup_free_bytes"].as_u64().unwrap() > 0, "{health}");
    assert_eq!(tandem.ready(), Some(true), "it serves all the same");
}

#[test]
fn a_schedule_that_is_none_is_told_with_what_would_be_one() {
    let project =
        project("backup.schedule = '0 25 * * *'\nbackup.time_zone = 'Mars/Olympus'\nbackup.on_failure = 'mail'");
    refusal::run(&project, &["check"]).expect(
        78,
        &["backup.schedule: not a cron expression", "every night at two", "Mars/Olympus", "or a command as a list"],
    );
}
