//! Disks that are full and data directories that are not what they should be.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use crate::common::namespace::in_namespace;
use crate::common::project::Project;
use crate::common::refusal;
use crate::common::small_disk::Filling;
use crate::common::tandem::{self, Tandem, wait_for};
use ::tandem::process::identity;

fn project() -> Project {
    Project::app_with("plain:app", "workers.count = 1")
}

/// A project whose cluster was made, and that is not running.
fn stopped() -> Project {
    let project = project();
    refusal::run(&project, &["migrate", "up"]).expect(0, &["applied"]);
    project
}

#[test]
fn a_disk_that_fills_during_initdb_leaves_nothing_half_made() {
    let project = project();
    fs::create_dir(project.state()).unwrap();
    let script = "mount -t tmpfs -o size=24m,mode=0755 tmpfs \"$0\"/.tandem; set +e; \"$@\"; code=$?
        ls -A \"$0\"/.tandem/postgres >\"$0\"/left; exit $code";
    let Some(command) = in_namespace(&project, script) else { return };
    refusal::up_as(&project, command).expect(73, &["disk is full", ".tandem", "state_dir"]);
    assert_eq!(fs::read_to_string(project.dir().join("left")).unwrap(), "");
}

#[test]
fn a_tandem_whose_disk_is_full_starts_and_serves() {
    let project = stopped();
    // A launcher of another version: it has to be written, though not a byte is left.
    project.write(".tandem/run/launcher.py", "raise SystemExit('an old one')");
    let Some(disk) = Filling::prepare(&project, "130m") else { return };
    let mut tandem = disk.up_when_it_is_full();
    tandem.wait_ready();
    disk.run(&tandem, &["doctor", "--set", "disk.warn_free=10%"])
        .expect(70, &["disk of the data: 0.", "less than disk.warn_free asks for"]);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn where_wal_is_archived_a_tandem_whose_disk_is_full_starts_too() {
    let project =
        Project::app_with("plain:app", "workers.count = 1\nbackup.pitr.enabled = true\nbackup.schedule = 'never'");
    let mut first = Tandem::up(&project);
    assert_eq!(first.stop(), 0, "{}", first.log());
    let Some(disk) = Filling::prepare(&project, "420m") else { return };
    let mut tandem = disk.up_when_it_is_full();
    wait_for("the wait for room", || tandem.log().contains("it is started again when there is room"));
    disk.free();
    tandem.wait_ready();
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn a_server_without_room_to_start_is_waited_for_and_what_can_go_is_said() {
    let project = project();
    let mut first = Tandem::up(&project);
    assert_eq!(first.stop(), 0, "{}", first.log());
    // Not even what Tandem keeps for itself is left.
    fs::remove_file(project.state().join("run/reserve")).unwrap();
    let Some(disk) = Filling::prepare(&project, "130m") else { return };
    let mut tandem = disk.up_when_it_is_full();
    wait_for("the wait for room", || tandem.log().contains("it is started again when there is room"));
    wait_for("the reason", || tandem.health()["database"]["error"].to_string().contains("its disk is full"));
    let log = tandem.log();
    assert!(log.contains("No space left on device") && log.contains("`tandem doctor --fix`"), "{log}");
    disk.run(&tandem, &["doctor", "--set", "disk.warn_free=10%"])
        .expect(70, &["less than disk.warn_free asks for", "no server runs"]);
    disk.free();
    tandem.wait_ready();
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

/// Make the data directory of a cluster that never was.
fn data_with(project: &Project, files: &[(&str, &str)]) {
    fs::create_dir_all(project.data()).unwrap();
    for (name, text) in files {
        fs::write(project.data().join(name), text).unwrap();
    }
    if identity::is_root() {
        let server = ["postgres", "nobody"].iter().find_map(|name| identity::lookup(name)).unwrap();
        for dir in [project.data().parent().unwrap().to_path_buf(), project.data()] {
            chown(dir, Some(server.uid), Some(server.gid)).unwrap();
        }
    }
    fs::set_permissions(project.data(), Permissions::from_mode(0o700)).unwrap();
}

fn content(dir: &Path) -> Vec<(String, Vec<u8>)> {
    refusal::names(dir).into_iter().map(|name| (name.clone(), fs::read(dir.join(name)).unwrap())).collect()
}

#[test]
fn a_directory_that_is_no_cluster_is_left_alone() {
    let project = project();
    data_with(&project, &[("thesis.txt", "years of work")]);
    let before = content(&project.data());
    refusal::up(&project).expect(73, &["holds no PostgreSQL cluster", ".tandem/postgres/16", "state_dir"]);
    assert_eq!(content(&project.data()), before);
}

#[test]
fn a_file_in_the_data_directorys_place_is_called_a_file() {
    let project = project();
    project.write(".tandem/postgres/16", "not a directory");
    refusal::up(&project).expect(73, &[".tandem/postgres/16", "is a file"]);
    assert_eq!(fs::read_to_string(project.data()).unwrap(), "not a directory");
}

#[test]
fn a_cluster_of_another_major_version_is_untouched_and_the_way_out_is_named() {
    let project = project();
    data_with(&project, &[("PG_VERSION", "15\n"), ("postgresql.conf", "port = 1\n")]);
    let before = content(&project.data());
    refusal::up(&project).expect(73, &["PostgreSQL 15", "pg_dumpall", "state_dir"]);
    assert_eq!(content(&project.data()), before);
}

#[test]
fn a_data_directory_of_somebody_else_is_refused() {
    let project = stopped();
    if identity::is_root() {
        chown(project.data(), Some(12_345), None).unwrap();
        refusal::up(&project).expect(73, &["belongs to user id 12345", "chown -R"]);
    } else {
        fs::set_permissions(project.data(), Permissions::from_mode(0o000)).unwrap();
        refusal::up(&project).expect(73, &["cannot read the data directory", "owner"]);
        fs::set_permissions(project.data(), Permissions::from_mode(0o700)).unwrap();
    }
}

#[test]
fn a_damaged_cluster_ends_with_postgres_own_last_words() {
    let project = stopped();
    let control = project.data().join("global/pg_control");
    let whole = fs::read(&control).unwrap();
    fs::OpenOptions::new().write(true).open(&control).unwrap().set_len(100).unwrap();
    let mut tandem = Tandem::start(&project);
    assert_eq!(tandem.wait_code(), 69, "{}", tandem.log());
    let log = tandem.log();
    // Once in the error, and not only where it passed by in the log.
    let (_, error) = log.rsplit_once("tandem: ").expect(&log);
    assert!(error.contains("postgres gave up") && error.contains("pg_control"), "{log}");
    assert!(tandem::left_in(project.dir()).is_empty());

    // Put back from a backup, it starts again.
    fs::write(&control, whole).unwrap();
    let mut tandem = Tandem::up(&project);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

/// What cannot be listed is not empty: to take it for that would have retention keep nothing, and `restore latest` find an older
/// backup elsewhere. The network of a process that has ended is a directory that can be opened and not read (proc(5)).
#[test]
fn a_directory_of_backups_that_cannot_be_read_is_not_taken_for_an_empty_one() {
    let project = stopped();
    #[expect(clippy::disallowed_methods, reason = "a process to be looked at when it has ended")]
    let mut ended = std::process::Command::new("true").spawn().unwrap();
    let pid = ended.id().cast_signed();
    wait_for("its end", || !tandem::lives(pid));
    let dir = format!("backup.dir=/proc/{pid}/net");
    for args in [["backup", "list"], ["backup", "verify"]] {
        let said = refusal::run(&project, &[&args[..], &["--set", &dir]].concat());
        assert!(said.code != 0 && said.said.contains("Invalid argument"), "{said:?}");
    }
    ended.wait().unwrap();
}
