//! Point-in-time recovery: a cluster comes back as it was at any moment.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;

use crate::common::backups::command;
use crate::common::namespace::mount_namespace;
use crate::common::pitr::{archive, fail, project, rows, sql, succeed, with_base};
use crate::common::project::Project;
use crate::common::refusal;
use crate::common::server::binaries;
use crate::common::skip::skip;
use crate::common::small_disk::{on_a_small_disk, while_a_server_stands_still_in};
use crate::common::tandem::{self, Tandem, still_lives, wait_for};
use ::tandem::process::identity;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

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

#[test]
fn a_restore_has_exactly_what_was_committed_by_then_and_so_has_one_on_the_new_timeline() {
    let (project, mut tandem) = with_base("t (n integer)");
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
    let (project, mut tandem) = with_base("t (n integer)");
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
    let (project, mut tandem) = with_base("t (n integer)");
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
    let fill = while_a_server_stands_still_in("postgres/.restoring");
    let Some(refused) = on_a_small_disk(&project, "900m", &fill, &["restore", "--to-end", "--yes"]) else { return };
    refused.expect(73, &[]);
    // Whichever is seen first.
    let full = ["No space left on device", "the restore was ended"];
    assert!(full.iter().any(|words| refused.said.contains(words)), "{}", refused.said);
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

#[test]
fn an_ordinary_user_does_it_all_too() {
    let Some(user) = identity::lookup("nobody").filter(|_| identity::is_root()) else {
        return skip("without root, all other tests are this one");
    };
    let binaries = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(binaries());
    // The tests' own environment may lie where only root gets.
    let lines =
        format!("python.managed = false\nworkers.watchdog = 'never'\npostgres.source = '{}'", binaries.display());
    let project =
        ["python.venv", "python.requirements", "workers.app_dir"].into_iter().fold(project(&lines), Project::without);
    let worker = "import os, signal, socket; to = os.environ['NOTIFY_SOCKET']; \
                  to = chr(0) + to[1:] if to[0] == '@' else to; \
                  socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'READY=1', to); signal.pause()";
    project.configure(&format!("python.venv = 'venv'\nworkers.command = {:?}", ["python3", "-c", worker]));
    std::fs::create_dir_all(project.dir().join("venv/bin")).unwrap();
    std::os::unix::fs::symlink("/usr/bin/python3", project.dir().join("venv/bin/python")).unwrap();
    std::os::unix::fs::chown(project.dir(), Some(user.uid), Some(user.gid)).unwrap();
    let program = tandem::program_in(project.dir());
    let command = || {
        let mut command = tandem::command_as(&program, project.dir());
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
