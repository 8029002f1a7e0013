//! Backups stand back: they wait for the processor behind the application, read no faster than they may, and are gone from the
//! server when they are interrupted.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::backups::{SLOW, backup, command as program, running_with, sql};
use crate::common::control::{said, start};
use crate::common::pitr::{archive, project, superuser};
use crate::common::project::Project;
use crate::common::tandem::{Tandem, descendants, wait_for};

/// The niceness of every thread of a process; none where it has ended.
fn nice(pid: i32) -> Vec<i64> {
    let process = procfs::process::Process::new(pid).and_then(|process| process.tasks());
    let threads = process.into_iter().flatten().flatten();
    threads.filter_map(|thread| thread.stat().ok()).map(|stat| stat.nice).collect()
}

/// Run `tandem` with `args` while `slow` keeps it busy, and look at it and at what it starts, until a program called
/// `until` is below it. Returns the niceness of each, by name.
fn seen(project: &Project, args: &[&str], until: &str) -> Vec<(String, Vec<i64>)> {
    let child = start(project, args);
    let pid = child.id().cast_signed();
    let mut seen = Vec::new();
    wait_for(until, || {
        let below = descendants(pid);
        let found = below.iter().any(|process| process.name == until);
        if found {
            seen = below.iter().map(|process| (process.name.clone(), nice(process.pid))).collect();
            seen.push(("tandem".to_owned(), nice(pid)));
        }
        found || procfs::process::Process::new(pid).is_err()
    });
    let ended = said(child);
    assert_eq!(ended.code, 0, "{}", ended.said);
    assert!(seen.iter().any(|(name, _)| name == until), "{until} was not seen: {}", ended.said);
    seen
}

#[test]
fn backups_and_their_proofs_wait_for_the_processor_behind_the_application() {
    let (project, tandem) = running_with("backup.rate = '300KB'\nbackup.nice = 10");
    sql(&project, SLOW);
    let server = nice(tandem.postmaster(&project));
    let own = server[0];
    assert!(own < 10, "a server of niceness {own} shows nothing");
    for (wanted, key) in [(10, 10), (own, 0)] {
        project.reconfigure(|text| text.replace("backup.nice = 10", &format!("backup.nice = {key}")));
        let began = Instant::now();
        for (args, until) in [(&["backup"][..], "pg_dump"), (&["backup", "verify"][..], "psql")] {
            for (name, all) in seen(&project, args, until) {
                // What ends at that moment has no threads, and the keeper of a process does no work.
                assert!(name == "tandem" || all.iter().all(|nice| *nice == wanted), "{name} of {args:?}: {all:?}");
                assert!(all.contains(&wanted) || all.is_empty(), "{name} of {args:?}: {all:?}");
            }
        }
        let bytes = backup(&project, &[])["sql_bytes"].as_f64().unwrap();
        let least = Duration::from_secs_f64(2.0 * bytes / 300e3 * 0.9);
        assert!(began.elapsed() > least, "two dumps of {bytes} bytes after {:?}", began.elapsed());
    }
    assert_eq!(nice(tandem.postmaster(&project)), server, "the application's server does not stand back");
}

#[test]
fn the_servers_part_of_a_backup_waits_for_the_processor_too() {
    let project = project("backup.rate = '100KB'\nbackup.nice = 10");
    let tandem = Tandem::up(&project);
    superuser(&project, "CREATE TABLE large AS SELECT md5(n::text) FROM generate_series(1, 50000) AS n");
    let server = nice(tandem.postmaster(&project));
    let sessions = "SELECT pid FROM pg_stat_activity WHERE application_name = 'tandem-backup'";
    for args in [&["backup", "--format", "plain"][..], &["backup", "base"]] {
        let child = start(&project, args);
        wait_for("what the server does for it", || {
            let pids = superuser(&project, sessions);
            pids.lines().any(|pid| nice(pid.parse().unwrap()) == [10])
        });
        kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).unwrap();
        child.wait_with_output().unwrap();
    }
    assert_eq!(nice(tandem.postmaster(&project)), server, "what serves the application does not stand back");
}

#[test]
fn a_base_backup_that_is_interrupted_is_gone_from_the_server_and_from_the_archive() {
    // The slowest that PostgreSQL knows.
    let project = project("backup.rate = '1KB'\nbackup.nice = 10");
    let tandem = Tandem::up(&project);
    let session = || {
        superuser(
            &project,
            "SELECT coalesce(string_agg(query, ';'), '') FROM pg_stat_activity WHERE backend_type = 'walsender'",
        )
    };
    let bases = || fs::read_dir(archive(&project).join("base")).unwrap().count();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGKILL] {
        let child = start(&project, &["backup", "base"]);
        let pid = child.id().cast_signed();
        wait_for("the server to send", || session().contains("MAX_RATE 32"));
        wait_for("the first of it", || bases() == 1);
        assert!(nice(pid).iter().all(|nice| *nice >= 10), "{:?}", nice(pid));
        kill(Pid::from_raw(pid), signal).unwrap();
        let ended = child.wait_with_output().unwrap();
        assert!(!ended.status.success(), "{signal}: {ended:?}");
        wait_for("the session's end", || session().is_empty());
        // Of what was killed the rest is removed by the next.
        assert!(signal != Signal::SIGINT || bases() == 0, "{ended:?}");
    }
    // The server itself gives up: what it said is told.
    let child = start(&project, &["backup", "base"]);
    wait_for("the server to send", || session().contains("MAX_RATE 32"));
    superuser(&project, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'walsender'");
    let ended = said(child);
    assert!(ended.code != 0 && ended.said.contains("terminating connection"), "{}", ended.said);
    assert_eq!(bases(), 0);
    drop(tandem);
}

#[test]
fn a_base_backup_is_a_tar_archive_that_others_can_read_too() {
    let project = project("");
    let _tandem = Tandem::up(&project);
    let made: serde_json::Value =
        serde_json::from_str(&crate::common::pitr::succeed(&project, &["backup", "base", "--json"])).unwrap();
    assert_eq!(made["checksums"], "CRC32C");
    let data = archive(&project).join("base").join(made["name"].as_str().unwrap()).join("base.tar.zst");
    let tar = project.dir().join("base.tar");
    zstd::stream::copy_decode(fs::File::open(data).unwrap(), fs::File::create(&tar).unwrap()).unwrap();
    let output = program("tar").arg("-tf").arg(&tar).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let listed = String::from_utf8(output.stdout).unwrap();
    let names: Vec<&str> = listed.lines().map(|name| name.trim_start_matches("./")).collect();
    for name in ["backup_label", "global/pg_control", "backup_manifest"] {
        assert_eq!(names.iter().filter(|found| **found == name).count(), 1, "{name}");
    }
    assert_eq!(names.last(), Some(&"backup_manifest"));
    assert_eq!(fs::metadata(&tar).unwrap().len() % 512, 0);
}
