//! The WAL archive: nothing that PostgreSQL was told is archived is lost, and what cannot be archived is told.

use std::os::unix::fs::PermissionsExt;

use crate::common::pitr::{archive, fail, pitr, project, rows, sql, succeed, superuser};
use crate::common::project::Project;
use crate::common::skip::skip;
use crate::common::tandem::{self, Tandem, wait_for};
use ::tandem::backup::pitr::archive::{Archive, Pushed};
use ::tandem::backup::pitr::wal::{Lsn, SEGMENT_SIZE, Segment, WalFile};
use ::tandem::process::identity;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

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
            assert_eq!(archive.push(&source, 1).unwrap(), Pushed::AlreadyThere, "{name}");
        }
        assert!(archive.has(name.parse().unwrap()), "{name}");
    }
    // And what was recycled or removed was told so before: all that is older than what is there.
    let segments = |names: &[&str]| -> Vec<Segment> {
        names.iter().filter_map(|name| name.parse::<WalFile>().ok()?.segment()).collect()
    };
    let present = names(project, "pg_wal");
    let present = segments(&present.iter().map(String::as_str).collect::<Vec<_>>());
    // They are ordered by place, and a place counts logs first: a segment's number begins anew in each.
    let oldest = present.into_iter().min().unwrap();
    let newest = segments(&done).into_iter().chain(before(oldest)).max().unwrap();
    let mut archived = 0;
    let mut segment = Segment { log: 0, number: 1, ..newest };
    let temp = tempfile::tempdir().unwrap();
    while segment <= newest {
        let fetched = temp.path().join(segment.to_string());
        assert!(archive.fetch(WalFile::Segment(segment), &fetched).unwrap(), "{segment}");
        let bytes = std::fs::read(&fetched).unwrap();
        // Its first page says where it begins (PostgreSQL's src/include/access/xlog_internal.h, xlp_pageaddr).
        let begins = u64::from_ne_bytes(bytes[8..16].try_into().unwrap());
        assert_eq!((bytes.len() as u64, Lsn(begins)), (SEGMENT_SIZE, segment.start(SEGMENT_SIZE)), "{segment}");
        std::fs::remove_file(&fetched).unwrap();
        archived += 1;
        segment = segment.next(SEGMENT_SIZE);
    }
    archived
}

/// The segment before `segment`.
fn before(segment: Segment) -> Option<Segment> {
    let start = segment.start(SEGMENT_SIZE).0.checked_sub(SEGMENT_SIZE)?;
    Some(Segment::of(segment.timeline, Lsn(start), SEGMENT_SIZE))
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
    assert!(assert_acknowledged_is_archived(&project) >= 36);
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
        archive.push(&source, 1).unwrap();
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
        return skip("only root runs the server as somebody else");
    }
    let closed = tempfile::tempdir().unwrap();
    std::fs::set_permissions(closed.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
    let project = project("");
    let command = tandem::command_as(&tandem::program_in(closed.path()), project.dir());
    let mut tandem = Tandem::start_as(&project, command);
    tandem.wait_ready();
    switch(&project, 1);
    wait_for("an archived segment", || pitr(&tandem)["last_archived"].is_string());
    assert!(project.state().join("run/tandem-wal").exists());
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}
