//! Point-in-time recovery: whatever was archived comes back, to any moment, and nothing that was confirmed is lost.

#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

mod common;

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;

use ::tandem::backup::pitr::archive::{Archive, Pushed};
use ::tandem::backup::pitr::wal::{Name, Segment};
use ::tandem::process::identity;
use common::backups::command;
use common::namespace::mount_namespace;
use common::project::Project;
use common::refusal;
use common::server::binaries;
use common::small_disk::{on_a_small_disk, once_a_server_runs_in};
use common::tandem::{self, Tandem, still_lives, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// A project whose WAL is archived, with more lines of configuration.
fn project(lines: &str) -> Project {
    let own = "workers.count = 1\nmigrations.run = 'none'\nbackup.pitr.enabled = true\npostgres.shared_buffers = '32MB'\n\
         backup.schedule = 'never'";
    Project::app_with("plain:app", &format!("{own}\n{lines}"))
}

/// Run a command of the binary, which must succeed; what it printed.
fn succeed(project: &Project, args: &[&str]) -> String {
    let output = tandem::run(project, args);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {}\n{said}", output.status);
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

/// Run a command of the binary, which must fail; what it said.
fn fail(project: &Project, args: &[&str]) -> String {
    let output = tandem::run(project, args);
    assert!(!output.status.success(), "{args:?} succeeded");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Run SQL as the application's role; rows alone, `|` between columns.
fn sql(project: &Project, text: &str) -> String {
    succeed(project, &["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-c", text])
}

fn archive(project: &Project) -> PathBuf {
    project.state().join("pitr")
}

fn pitr(tandem: &Tandem) -> Value {
    tandem.health()["backups"]["pitr"].clone()
}

#[test]
fn a_base_backup_is_verified_listed_and_the_oldest_goes_with_its_wal() {
    let project = project("backup.pitr.base_backups = 1");
    let mut tandem = Tandem::up(&project);
    sql(&project, "CREATE TABLE t AS SELECT generate_series(1, 10000) AS n");
    let first: Value = serde_json::from_str(&succeed(&project, &["backup", "base", "--json"])).unwrap();
    assert!(first["size"].as_u64().unwrap() > 20 << 20, "{first:#}");
    let dir = archive(&project).join("base").join(first["name"].as_str().unwrap());
    for file in ["base.json", "base.tar.zst"] {
        assert!(dir.join(file).exists(), "{file}");
    }
    let wal = archive(&project).join("wal/0000000100000000");
    let oldest = || std::fs::read_dir(&wal).unwrap().map(|entry| entry.unwrap().file_name()).min().unwrap();
    assert!(oldest().to_str().unwrap().starts_with("00000001000000000000000"), "{:?}", oldest());
    // Names are of seconds.
    wait_for("another second", || {
        let name = format!("base_{}", humantime::format_rfc3339_seconds(std::time::SystemTime::now()));
        let digits = |text: &str| text.chars().filter(char::is_ascii_digit).collect::<String>();
        digits(&name) > digits(first["name"].as_str().unwrap())
    });
    let before = oldest();
    let said = succeed(&project, &["backup", "base"]);
    assert!(said.contains("verified") && said.contains("removed base_"), "{said}");
    assert!(!dir.exists() && oldest() > before, "{:?}", oldest());
    let list: Value = serde_json::from_str(&succeed(&project, &["backup", "bases", "--json"])).unwrap();
    assert_eq!(list.as_array().unwrap().len(), 1);
    assert!(succeed(&project, &["backup", "bases"]).contains("base_"));
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    assert!(fail(&project, &["backup", "base"]).contains("no server runs"));
}

/// Insert a row and return a time after it, and before whatever follows.
fn insert(project: &Project, number: u32) -> String {
    sql(project, &format!("INSERT INTO t VALUES ({number})"));
    sql(project, "SELECT clock_timestamp()")
}

fn rows(project: &Project) -> String {
    sql(project, "SELECT coalesce(string_agg(n::text, ',' ORDER BY n), '') FROM t")
}

#[test]
fn a_restore_has_exactly_what_was_committed_by_then_and_so_has_one_on_the_new_timeline() {
    let project = project("");
    let mut tandem = Tandem::up(&project);
    sql(&project, "CREATE TABLE t (n integer)");
    succeed(&project, &["backup", "base"]);
    insert(&project, 1);
    let two = insert(&project, 2);
    insert(&project, 3);
    let refused = fail(&project, &["restore", "--at", &two, "--yes"]);
    assert!(refused.contains("tandem stop") && refused.contains("`tandem up`"), "{refused}");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());

    let refused = fail(&project, &["restore", "--at", &two]);
    assert!(refused.contains("--yes"), "nobody can be asked: {refused}");
    let restored: Value =
        serde_json::from_str(&succeed(&project, &["restore", "--at", &two, "--yes", "--json"])).unwrap();
    assert_eq!(restored["timeline"], 2, "{restored:#}");
    let kept = PathBuf::from(restored["kept"].as_str().unwrap());
    assert!(
        kept.file_name().unwrap().to_str().unwrap().starts_with("16_before_restore_")
            && kept.join("PG_VERSION").exists()
    );
    assert!(tandem::left_in(project.dir()).is_empty());

    let mut tandem = Tandem::up(&project);
    assert_eq!(rows(&project), "1,2");
    let four = insert(&project, 4);
    insert(&project, 5);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());

    let refused = fail(&project, &["restore", "--at", "2020-01-01 00:00:00+00", "--yes"]);
    assert!(refused.contains("before the end of the oldest base backup"), "{refused}");
    let refused = fail(&project, &["restore", "--at", "2120-01-01 00:00:00+00", "--yes"]);
    assert!(refused.contains("the WAL ends before") && refused.contains("--to-end"), "{refused}");
    assert!(!project.data().join("recovery.signal").exists(), "a failure leaves the old data as it was");

    let restored: Value =
        serde_json::from_str(&succeed(&project, &["restore", "--at", &four, "--yes", "--json"])).unwrap();
    assert_eq!((&restored["followed_timeline"], &restored["timeline"]), (&2.into(), &3.into()), "{restored:#}");
    let mut tandem = Tandem::up(&project);
    assert_eq!(rows(&project), "1,2,4");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());

    // The way that was left is still there for who asks for it.
    succeed(&project, &["restore", "--to-end", "--timeline", "1", "--yes"]);
    let mut tandem = Tandem::up(&project);
    assert_eq!(rows(&project), "1,2,3");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn a_restore_ends_at_a_position_or_with_the_last_that_a_crash_left() {
    let project = project("");
    let mut tandem = Tandem::up(&project);
    sql(&project, "CREATE TABLE t (n integer)");
    succeed(&project, &["backup", "base"]);
    insert(&project, 1);
    let lsn = sql(&project, "SELECT pg_current_wal_insert_lsn()");
    insert(&project, 2);
    // Killed both, nobody archives what was written last, and nobody starts the server again.
    let postmaster = tandem.postmaster(&project);
    tandem.signal(Signal::SIGSTOP);
    kill(Pid::from_raw(postmaster), Signal::SIGKILL).unwrap();
    tandem.signal(Signal::SIGKILL);
    drop(tandem);

    let beyond = fail(&project, &["restore", "--to-lsn", "FF/0", "--yes"]);
    assert!(beyond.contains("ends at"), "{beyond}");
    succeed(&project, &["restore", "--to-end", "--yes"]);
    tandem = Tandem::up(&project);
    assert_eq!(rows(&project), "1,2", "the last was never archived");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    succeed(&project, &["restore", "--to-lsn", &lsn, "--timeline", "1", "--yes"]);
    tandem = Tandem::up(&project);
    assert_eq!(rows(&project), "1");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());

    // In the segment that it had begun, the timeline that was left goes on to what was written last.
    succeed(&project, &["restore", "--to-end", "--timeline", "1", "--yes"]);
    tandem = Tandem::up(&project);
    assert_eq!(rows(&project), "1,2");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());

    // The whole data directory may be gone.
    std::fs::remove_dir_all(project.data()).unwrap();
    succeed(&project, &["restore", "--to-end", "--yes"]);
    tandem = Tandem::up(&project);
    assert_eq!(rows(&project), "1,2");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

/// A project that has stopped with the rows 1 to 3, and a moment after the second.
fn three_rows() -> (Project, String) {
    let project = project("");
    let mut tandem = Tandem::up(&project);
    sql(&project, "CREATE TABLE t (n integer)");
    succeed(&project, &["backup", "base"]);
    insert(&project, 1);
    let two = insert(&project, 2);
    insert(&project, 3);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    (project, two)
}

/// Directories of restores that have not ended.
fn restoring(project: &Project) -> Vec<String> {
    let beside = project.data().parent().unwrap().to_owned();
    refusal::names(&beside).into_iter().filter(|name| name.starts_with(".restoring")).collect()
}

#[test]
fn killed_in_the_middle_a_restore_to_a_moment_has_changed_nothing_and_the_next_one_sweeps() {
    let (project, two) = three_rows();
    let restore = ["restore", "--at", &two, "--yes"];
    let mut killed = Tandem::start_in(project.dir(), tandem::command(&project), &restore);
    let beside = project.data().parent().unwrap().to_owned();
    wait_for("the server that recovers", || {
        restoring(&project).iter().any(|name| beside.join(name).join("postmaster.pid").exists())
    });
    let family = killed.descendants();
    killed.signal(Signal::SIGKILL);
    killed.wait_exit();
    wait_for("the end of all it had started", || !family.iter().any(still_lives));
    let mut tandem = Tandem::up(&project);
    assert_eq!(rows(&project), "1,2,3");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    succeed(&project, &restore);
    assert!(restoring(&project).is_empty(), "{:?}", restoring(&project));
    let _tandem = Tandem::up(&project);
    assert_eq!(rows(&project), "1,2");
}

#[test]
fn a_disk_that_fills_during_a_restore_to_a_moment_leaves_the_data_as_it_was() {
    let (project, _) = three_rows();
    let mut tandem = Tandem::up(&project);
    sql(&project, "CREATE TABLE much AS SELECT n, md5(n::text) AS text FROM generate_series(1, 1000000) AS n");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    let fill = once_a_server_runs_in("postgres/.restoring");
    let Some(refused) = on_a_small_disk(&project, "900m", &fill, &["restore", "--to-end", "--yes"]) else { return };
    refused.expect(73, &["No space left on device"]);
    assert!(restoring(&project).is_empty(), "{:?}", restoring(&project));
    assert!(tandem::left_in(project.dir()).is_empty());
    let _tandem = Tandem::up(&project);
    assert_eq!(rows(&project), "1,2,3");
}

#[test]
fn a_disk_that_fills_during_a_base_backup_leaves_nothing_of_it() {
    let Some(namespace) = mount_namespace() else { return };
    let project = project("");
    let _tandem = Tandem::up(&project);
    sql(&project, "CREATE TABLE t AS SELECT n, md5(n::text) AS text FROM generate_series(1, 100000) AS n");
    let script = "mount -t tmpfs -o size=3m,mode=0700 tmpfs \"$0\"; set +e; \"$@\"; code=$?; ls -A \"$0\"; exit $code";
    let mut unshare = command("unshare");
    unshare.args(namespace).args(["sh", "-euc", script]).arg(archive(&project).join("base"));
    let binary = tandem::command(&project);
    let output =
        unshare.arg(binary.get_program()).args(["backup", "base"]).current_dir(project.dir()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "", "nothing is left");
    refusal::said(output).expect(73, &["No space left on device"]);
    let said = succeed(&project, &["backup", "base"]);
    assert!(said.contains("verified"), "{said}");
    assert_eq!(refusal::names(&archive(&project).join("base")).len(), 1);
}

/// Run SQL as the superuser, over the unix socket.
fn superuser(project: &Project, text: &str) -> String {
    let socket = project.state().join("run/postgres").display().to_string();
    succeed(project, &["psql", "-XAtq", "-h", &socket, "-U", "postgres", "-d", "postgres", "-c", text])
}

/// Names in a directory of the data directory.
fn names(project: &Project, dir: &str) -> Vec<String> {
    let entries = std::fs::read_dir(project.data().join(dir)).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// End this segment and begin another, so often.
fn switch(project: &Project, times: usize) {
    for _ in 0..times {
        superuser(project, "SELECT pg_logical_emit_message(false, 'test', 'x'); SELECT pg_switch_wal()");
    }
}

#[test]
fn an_archive_that_cannot_be_written_degrades_and_at_the_limit_the_chain_is_given_up_until_the_next_base_backup() {
    let project = project("backup.pitr.max_backlog = '96MB'\nbackup.pitr.at_limit = 'give_up'");
    let mut tandem = Tandem::up(&project);
    sql(&project, "CREATE TABLE t (n integer)");
    switch(&project, 1);
    wait_for("a first archived segment", || pitr(&tandem)["last_archived"].is_string());
    let health = tandem.health();
    assert_eq!(health["status"], "healthy", "{health:#}");
    assert_eq!(
        (&health["backups"]["pitr"]["failing"], &health["backups"]["pitr"]["last_base"]),
        (&false.into(), &Value::Null)
    );
    assert!(tandem.log().contains("no base backup yet"));

    // Whoever the server runs as, it cannot write into a file as into a directory.
    let (wal, away) = (archive(&project).join("wal"), archive(&project).join("away"));
    std::fs::rename(&wal, &away).unwrap();
    std::fs::write(&wal, "").unwrap();
    switch(&project, 1);
    wait_for("a failure in the health", || pitr(&tandem)["failing"] == true);
    let health = tandem.health();
    assert_eq!(health["status"], "degraded", "{health:#}");
    assert!(health["reasons"][0].as_str().unwrap().contains("archiving fails"), "{health:#}");

    switch(&project, 8);
    wait_for("the chain to be given up", || pitr(&tandem)["given_up"] == true);
    tandem.wait_log("the point-in-time chain was given up");
    let health = tandem.health();
    assert_eq!((&health["status"], tandem.get("/name").is_some()), (&"degraded".into(), true), "{health:#}");
    // From now on nothing piles up.
    wait_for("the backlog to go", || pitr(&tandem)["ready_segments"] == 0);
    for _ in 0..4 {
        switch(&project, 8);
        superuser(&project, "CHECKPOINT");
    }
    wait_for("the WAL to stay bounded", || {
        let ready = names(&project, "pg_wal/archive_status").iter().filter(|name| name.ends_with(".ready")).count();
        ready <= 1 && names(&project, "pg_wal").len() < 24
    });
    // It outlives a restart.
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    let mut tandem = Tandem::up(&project);
    wait_for("the state after a restart", || pitr(&tandem)["given_up"] == true);
    let refused = fail(&project, &["backup", "base"]);
    assert!(refused.contains("wal"), "the archive is still out of order: {refused}");

    std::fs::remove_file(&wal).unwrap();
    std::fs::rename(&away, &wal).unwrap();
    succeed(&project, &["backup", "base"]);
    wait_for("a new chain", || pitr(&tandem)["given_up"] == false && pitr(&tandem)["failing"] == false);
    wait_for("the base backup in the health", || pitr(&tandem)["last_base"].is_string());
    assert_eq!(tandem.health()["status"], "healthy");
    assert!(std::fs::read_dir(archive(&project).join("gaps")).unwrap().count() > 0, "the gap is noted");
    sql(&project, "INSERT INTO t VALUES (1)");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    succeed(&project, &["restore", "--to-end", "--yes"]);
    let mut tandem = Tandem::up(&project);
    assert_eq!(rows(&project), "1");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

/// Whatever PostgreSQL was told is archived is there, whole.
fn assert_acknowledged_is_archived(project: &Project) -> usize {
    let archive = Archive::new(archive(project));
    let statuses = names(project, "pg_wal/archive_status");
    let done: Vec<&str> = statuses.iter().filter_map(|name| name.strip_suffix(".done")).collect();
    for name in &done {
        let source = project.data().join("pg_wal").join(name);
        // Recycled, it has another name already.
        if source.exists() {
            assert_eq!(archive.push(&source).unwrap(), Pushed::AlreadyThere, "{name}");
        }
        assert!(archive.has(name.parse().unwrap()), "{name}");
    }
    // And what was recycled or removed was told so before.
    let newest = done.iter().filter_map(|name| name.parse::<Name>().ok()?.segment()).max().unwrap();
    for number in 1..=newest.number {
        assert!(archive.has(Name::Segment(Segment { number, ..newest })), "{number}");
    }
    usize::try_from(newest.number).unwrap()
}

#[test]
fn no_segment_that_was_acknowledged_is_lost_whoever_is_killed() {
    let project = project("backup.pitr.max_backlog = '1GB'");
    let mut tandem = Tandem::up(&project);
    for round in 0..3 {
        // Enough for a queue, which is archived ahead by two at a time.
        superuser(
            &project,
            "DO $$ BEGIN FOR n IN 1..12 LOOP PERFORM pg_logical_emit_message(false, 'test', repeat('x', 99999)); \
             PERFORM pg_switch_wal(); END LOOP; END $$",
        );
        kill(Pid::from_raw(tandem.postmaster(&project)), Signal::SIGKILL).unwrap();
        wait_for("the server to be back", || {
            let output = tandem::run(&project, &["psql", "-XAtqc", "SELECT 1"]);
            output.status.success()
        });
        if round == 1 {
            tandem.signal(Signal::SIGKILL);
            drop(tandem);
            tandem = Tandem::up(&project);
        }
    }
    wait_for("the queue's end", || {
        names(&project, "pg_wal/archive_status").iter().all(|name| !name.ends_with(".ready"))
    });
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    assert!(assert_acknowledged_is_archived(&project) > 36);
    let unfinished = |name: &String| name.ends_with(".unfinished");
    let wal = archive(&project).join("wal/0000000100000000");
    let entries = std::fs::read_dir(wal).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    // Those of the last killed pushes go with the next start.
    assert!(entries.filter(unfinished).count() <= 2 * 3);
}

#[test]
fn a_push_that_is_killed_leaves_a_whole_file_or_none() {
    let temp = tempfile::tempdir().unwrap();
    let archive = Archive::new(temp.path().join("pitr"));
    archive.prepare(7, None).unwrap();
    let mut bytes: Vec<u8> = (0..16_u32 << 20).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    bytes[2..4].copy_from_slice(&2_u16.to_ne_bytes());
    bytes[8..16].copy_from_slice(&(16_u64 << 20).to_ne_bytes());
    bytes[24..32].copy_from_slice(&7_u64.to_ne_bytes());
    bytes[32..36].copy_from_slice(&(16_u32 << 20).to_ne_bytes());
    let source = temp.path().join("000000010000000000000001");
    std::fs::write(&source, &bytes).unwrap();
    let (name, folder) = ("000000010000000000000001".parse().unwrap(), archive.dir().join("wal/0000000100000000"));
    let size = || {
        let entries = std::fs::read_dir(&folder).into_iter().flatten();
        entries.map(|entry| entry.unwrap().metadata().map_or(0, |meta| meta.len())).max().unwrap_or(0)
    };
    let to = temp.path().join("back");
    for step in 0..12_u64 {
        let _ = std::fs::remove_dir_all(&folder);
        let mut push = tandem::command_in(temp.path());
        push.args(["wal", "push", "--archive"]).arg(archive.dir()).arg(&source);
        let mut push = push.spawn().unwrap();
        // As much as that is written, or all of it.
        wait_for("the push to get somewhere", || size() >= step << 20 || push.try_wait().unwrap().is_some());
        let _ = push.kill();
        push.wait().unwrap();
        if archive.fetch(name, &to).unwrap() {
            assert!(std::fs::read(&to).unwrap() == bytes);
        }
        archive.push(&source).unwrap();
        assert!(archive.fetch(name, &to).unwrap() && std::fs::read(&to).unwrap() == bytes);
    }
}

#[test]
fn what_cannot_be_read_from_the_archive_stops_a_recovery_and_what_is_not_there_does_not() {
    let temp = tempfile::tempdir().unwrap();
    let archive = Archive::new(temp.path().join("pitr"));
    archive.prepare(7, None).unwrap();
    let history = temp.path().join("00000002.history");
    std::fs::write(&history, "1\t0/3000000\tx\n").unwrap();
    let run = |args: &[&str]| {
        let mut command = tandem::command_in(temp.path());
        command.args(["wal", args[0], "--archive", "pitr"]).args(&args[1..]).output().unwrap().status.code().unwrap()
    };
    assert_eq!(run(&["push", "00000002.history"]), 0);
    assert_eq!(run(&["push", "00000002.history"]), 0);
    std::fs::write(&history, "1\t0/4000000\tx\n").unwrap();
    assert_eq!(run(&["push", "00000002.history"]), 1);
    assert_eq!(run(&["fetch", "00000002.history", "to"]), 0);
    assert_eq!(std::fs::read_to_string(temp.path().join("to")).unwrap(), "1\t0/3000000\tx\n");
    assert_eq!((run(&["fetch", "00000003.history", "to"]), run(&["fetch", "RECOVERYXLOG", "to"])), (1, 1));
    std::fs::write(archive.path("00000002.history".parse().unwrap()), "torn").unwrap();
    let code = run(&["fetch", "00000002.history", "to"]);
    assert!(code > 125, "PostgreSQL goes on after {code}");
}

#[test]
fn a_program_that_the_servers_user_cannot_reach_archives_all_the_same() {
    if !identity::is_root() {
        return eprintln!("skipped: only root runs the server as somebody else");
    }
    let closed = tempfile::tempdir().unwrap();
    std::fs::set_permissions(closed.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
    let program = closed.path().join("tandem");
    let built = env!("CARGO_BIN_EXE_tandem");
    std::fs::hard_link(built, &program).or_else(|_| std::fs::copy(built, &program).map(drop)).unwrap();
    let project = project("");
    let command = tandem::command_as(program.to_str().unwrap(), project.dir());
    let mut tandem = Tandem::start_as(&project, command);
    tandem.wait_ready();
    switch(&project, 1);
    wait_for("an archived segment", || pitr(&tandem)["last_archived"].is_string());
    assert!(project.state().join("run/tandem-wal").exists());
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn an_ordinary_user_does_it_all_too() {
    let Some(user) = identity::lookup("nobody").filter(|_| identity::is_root()) else {
        return eprintln!("skipped: without root, all other tests are this one");
    };
    let binaries = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(binaries());
    // The tests' own environment may lie where only root gets.
    let lines =
        format!("python.managed = false\nworkers.watchdog = 'never'\npostgres.source = '{}'", binaries.display());
    let project = project(&lines).without("python.venv").without("python.requirements");
    let worker = "import os, signal, socket; to = os.environ['NOTIFY_SOCKET']; \
                  to = chr(0) + to[1:] if to[0] == '@' else to; \
                  socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'READY=1', to); signal.pause()";
    project.configure(&format!("python.venv = 'venv'\nworkers.command = {:?}", ["python3", "-c", worker]));
    std::fs::create_dir_all(project.dir().join("venv/bin")).unwrap();
    std::os::unix::fs::symlink("/usr/bin/python3", project.dir().join("venv/bin/python")).unwrap();
    std::os::unix::fs::chown(project.dir(), Some(user.uid), Some(user.gid)).unwrap();
    let command = || {
        let mut command = tandem::command(&project);
        command.uid(user.uid).gid(user.gid).env("HOME", project.dir());
        command
    };
    let run = |args: &[&str]| {
        let output = command().args(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let mut tandem = Tandem::start_as(&project, command());
    tandem.wait_ready();
    run(&["psql", "-c", "CREATE TABLE t (n integer)"]);
    run(&["backup", "base"]);
    run(&["psql", "-c", "INSERT INTO t VALUES (1)"]);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    run(&["restore", "--to-end", "--yes"]);
    let mut tandem = Tandem::start_as(&project, command());
    tandem.wait_ready();
    assert_eq!(run(&["psql", "-XAtqc", "TABLE t"]).trim(), "1");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}
