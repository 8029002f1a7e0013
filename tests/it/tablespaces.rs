//! Tablespaces and the recovery to a moment: it writes nowhere but into its own directory, and what it cannot do is said
//! before it begins.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::common::pitr::{archive, fail, project, sql, succeed, superuser, with_base};
use crate::common::project::Project;
use crate::common::refusal;
use crate::common::tandem::{self, Tandem, wait_for};

/// An empty directory of the server's user.
fn place(project: &Project, name: &str) -> PathBuf {
    let (place, owner) = (project.dir().join(name), project.data().metadata().unwrap());
    fs::create_dir(&place).unwrap();
    std::os::unix::fs::chown(&place, Some(owner.uid()), Some(owner.gid())).unwrap();
    place
}

fn create(project: &Project, name: &str) -> PathBuf {
    let place = place(project, name);
    superuser(project, &format!("CREATE TABLESPACE {name} LOCATION '{}'", place.display()));
    superuser(project, &format!("GRANT CREATE ON TABLESPACE {name} TO PUBLIC"));
    place
}

fn now(project: &Project) -> String {
    sql(project, "SELECT clock_timestamp()")
}

const COUNTS: &str = "SELECT (SELECT count(*) FROM f), (SELECT count(*) FROM n)";

#[test]
fn a_restore_to_a_moment_writes_nothing_into_the_tablespaces_of_the_old_cluster() {
    let (project, mut tandem) = with_base("n (a integer)");
    sql(&project, "INSERT INTO n VALUES (1)");
    let before = now(&project);
    sql(&project, "INSERT INTO n VALUES (2)");
    create(&project, "fast");
    sql(&project, "CREATE TABLE f (a integer) TABLESPACE fast; INSERT INTO f VALUES (1)");
    let within = now(&project);
    sql(&project, "INSERT INTO f SELECT generate_series(2, 5000); INSERT INTO n SELECT generate_series(3, 5000)");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());

    let refused = fail(&project, &["restore", "--at", &within, "--yes"]);
    for words in ["tablespace", "fast", "Nothing was changed"] {
        assert!(refused.contains(words), "{refused}");
    }
    let mut tandem = Tandem::up(&project);
    assert_eq!(sql(&project, COUNTS), "5000|5000", "the old cluster is as it was");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());

    // Before there was one, the cluster can be restored to; the old one is whole then too.
    let kept = succeed(&project, &["restore", "--at", &before, "--yes", "--json"]);
    let kept: serde_json::Value = serde_json::from_str(&kept).unwrap();
    let mut tandem = Tandem::up(&project);
    assert_eq!(sql(&project, "SELECT count(*) FROM n"), "1");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    fs::remove_dir_all(project.data()).unwrap();
    fs::rename(kept["kept"].as_str().unwrap(), project.data()).unwrap();
    let mut tandem = Tandem::up(&project);
    assert_eq!(sql(&project, COUNTS), "5000|5000");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn a_directory_that_was_a_tablespace_once_is_left_alone_by_a_restore() {
    let (project, mut tandem) = with_base("n (a integer)");
    let place = create(&project, "once");
    superuser(&project, "DROP TABLESPACE once");
    sql(&project, "INSERT INTO n VALUES (1)");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    // Somebody uses it for something else now.
    fs::set_permissions(&place, fs::Permissions::from_mode(0o755)).unwrap();
    let refused = fail(&project, &["restore", "--to-end", "--yes"]);
    assert!(refused.contains(&place.display().to_string()), "{refused}");
    assert_eq!((refusal::names(&place), place.metadata().unwrap().mode() & 0o777), (vec![], 0o755));
}

/// The files below `dir`, with what they hold.
fn held(dir: &Path) -> Vec<(PathBuf, Option<Vec<u8>>)> {
    let mut entries: Vec<PathBuf> = dir.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    let with_content = |path: PathBuf| match path.is_dir() {
        true => [vec![(path.clone(), None)], held(&path)].concat(),
        false => vec![(path.clone(), Some(fs::read(&path).unwrap()))],
    };
    entries.into_iter().flat_map(with_content).collect()
}

#[test]
fn a_recovery_that_comes_upon_a_tablespace_nobody_saw_ends_before_it_writes_there() {
    let (project, mut tandem) = with_base("n (a integer)");
    let switch = || superuser(&project, "SELECT pg_walfile_name(pg_switch_wal())");
    sql(&project, "INSERT INTO n VALUES (1)");
    let last = switch();
    let place = create(&project, "fast");
    sql(&project, "CREATE TABLE f (a integer) TABLESPACE fast; INSERT INTO f VALUES (1)");
    let behind = switch();
    sql(&project, "INSERT INTO f VALUES (2)");
    let segments = archive(&project).join("wal").join(&last[..16]);
    wait_for("the archive", || refusal::names(&segments).iter().any(|name| name.starts_with(&behind)));
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    // The machine is lost, and what comes behind reaches the archive when the way has been found: its medium hung, say.
    fs::remove_dir_all(project.data()).unwrap();
    let (late, aside) = (held(&place), project.dir().join("aside"));
    fs::create_dir(&aside).unwrap();
    let names = refusal::names(&segments).into_iter().filter(|name| *name > format!("{last}~"));
    let hidden: Vec<String> = names.collect();
    assert!(hidden.iter().any(|name| name.starts_with(&behind)), "{hidden:?}");
    hidden.iter().for_each(|name| fs::rename(segments.join(name), aside.join(name)).unwrap());
    let mut restore = Tandem::start_in(project.dir(), tandem::command(&project), &["restore", "--to-end", "--yes"]);
    let beside = project.data().parent().unwrap().to_owned();
    wait_for("the recovery's own directory", || {
        refusal::names(&beside).iter().any(|name| name.starts_with(".restoring-"))
    });
    hidden.iter().for_each(|name| fs::rename(aside.join(name), segments.join(name)).unwrap());
    assert_eq!(restore.wait_code(), 1, "{}", restore.log());
    assert!(restore.log().contains("would make a tablespace"), "{}", restore.log());
    assert!(held(&place) == late, "the recovery wrote into the tablespace");
}

#[test]
fn what_the_cluster_was_told_to_run_is_not_run_by_a_recovery() {
    let project = project("");
    let mut tandem = Tandem::up(&project);
    let made = place(&project, "made");
    for name in ["recovery_end_command", "archive_cleanup_command"] {
        superuser(&project, &format!("ALTER SYSTEM SET {name} = 'touch {}/{name}'", made.display()));
    }
    // As another program leaves it behind.
    superuser(&project, "ALTER SYSTEM SET recovery_target_name = 'before the update'");
    sql(&project, "CREATE TABLE n (a integer)");
    succeed(&project, &["backup", "base"]);
    sql(&project, "INSERT INTO n VALUES (1)");
    let one = now(&project);
    sql(&project, "INSERT INTO n VALUES (2)");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    succeed(&project, &["restore", "--at", &one, "--yes"]);
    assert_eq!(refusal::names(&made), [""; 0]);
    let mut tandem = Tandem::up(&project);
    assert_eq!(sql(&project, "SELECT count(*) FROM n"), "1");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn a_base_backup_of_a_cluster_with_tablespaces_is_refused_in_words_and_the_start_says_so() {
    let project = project("");
    let mut tandem = Tandem::up(&project);
    let place = create(&project, "fast");
    for words in ["tablespace", &place.display().to_string(), "SET TABLESPACE pg_default"] {
        let refused = fail(&project, &["backup", "base"]);
        assert!(refused.contains(words), "{refused}");
    }
    refusal::run(&project, &["doctor"]).expect(1, &["SET TABLESPACE pg_default"]);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    let mut tandem = Tandem::up(&project);
    tandem.wait_log("SET TABLESPACE pg_default");
    superuser(&project, "DROP TABLESPACE fast");
    assert!(succeed(&project, &["backup", "base"]).contains("verified"));
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn wal_for_logical_replication_is_archived_too() {
    let project = project("postgres.settings.wal_level = 'logical'");
    let mut tandem = Tandem::up(&project);
    assert_eq!(superuser(&project, "SHOW wal_level"), "logical");
    sql(&project, "CREATE TABLE n (a integer)");
    assert!(succeed(&project, &["backup", "base"]).contains("verified"));
    sql(&project, "INSERT INTO n VALUES (1)");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    succeed(&project, &["restore", "--to-end", "--yes"]);
    let mut tandem = Tandem::up(&project);
    assert_eq!(sql(&project, "SELECT count(*) FROM n"), "1");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}
