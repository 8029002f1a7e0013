//! Copies of backups off the machine, as commands make and use them: a real S3 server, another directory, sealed or not.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use crate::common::backups::{dir, finals, running, sql};
use crate::common::project::Project;
use crate::common::refusal::{self, names};
use crate::common::tandem::{self, Tandem, wait_for};
use crate::s3_server::{Line, SECRET, Server};
use age::secrecy::ExposeSecret;
use nix::sys::signal::Signal;

/// A command of the binary beside an S3 server, whose thread must go on meanwhile.
async fn with_server(server: &Server, project: &Project, args: &[&str]) -> refusal::Refusal {
    let mut command = tandem::command(project);
    command.args(args).envs(server.environment());
    refusal::said(finished(command).await)
}

async fn finished(mut command: Command) -> Output {
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

/// The files of copies in a directory.
fn copied(dir: &Path) -> Vec<String> {
    names(dir).into_iter().filter(|name| name != ".tandem-copies").collect()
}

fn project(lines: &str) -> (Project, Tandem) {
    let (project, mut tandem) = running();
    assert_eq!(tandem.stop(), 0);
    project.configure(lines);
    (project, tandem)
}

#[test]
fn a_directory_whose_disk_is_not_mounted_gets_no_copies() {
    let (project, mut tandem) = running();
    let away = project.dir().join("away");
    fs::create_dir(&away).unwrap();
    project.configure(&format!("backup.destinations = ['file://{}']", away.display()));
    refusal::run(&project, &["backup"]).expect(0, &[]);
    let copies = || names(&away).into_iter().filter(|name| name.ends_with(".sql.gz")).count();
    assert_eq!(copies(), 1);
    // What is there without the disk.
    let disk = project.dir().join("disk");
    fs::rename(&away, &disk).unwrap();
    fs::create_dir(&away).unwrap();
    let refused = refusal::run(&project, &["backup"]);
    refused.expect(78, &["nothing of the 1 backups", "mount the disk", ".tandem-copies"]);
    assert_eq!(names(&away), [""; 0]);
    assert_eq!(finals(&project).iter().filter(|name| name.ends_with(".sql.gz")).count(), 2, "the backup itself stays");
    // Another disk, when that is said.
    fs::write(away.join(".tandem-copies"), "").unwrap();
    refusal::run(&project, &["backup"]).expect(0, &[]);
    assert_eq!(copies(), 1);
    // The former one, from before there was such a file.
    fs::remove_dir_all(&away).unwrap();
    fs::rename(&disk, &away).unwrap();
    fs::remove_file(away.join(".tandem-copies")).unwrap();
    refusal::run(&project, &["backup"]).expect(0, &[]);
    assert!(copies() == 2 && away.join(".tandem-copies").exists());
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    // A new disk gets again what the former one had.
    let former = copied(&away);
    fs::remove_dir_all(&away).unwrap();
    fs::create_dir(&away).unwrap();
    fs::write(away.join(".tandem-copies"), "").unwrap();
    project.configure("backup.schedule = '* * * * * *'");
    let mut tandem = Tandem::up(&project);
    wait_for("the former copies", || former.iter().all(|name| copied(&away).contains(name)));
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn a_destination_that_cannot_be_opened_keeps_no_copy_from_the_others() {
    let (project, _tandem) = running();
    let away = project.dir().join("away");
    fs::create_dir(&away).unwrap();
    // Without keys.
    project.configure(&format!("backup.destinations = ['s3://copies/nightly', 'file://{}']", away.display()));
    let told = refusal::run(&project, &["backup"]);
    assert!(told.code != 0 && told.said.contains("send copies to s3://copies/nightly"), "{told:?}");
    assert_eq!(copied(&away).iter().filter(|name| name.ends_with(".sql.gz")).count(), 1);
    refusal::run(&project, &["backup", "prune"]).expect(0, &[]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_is_copied_to_a_bucket_listed_there_and_restored_from_it_on_a_new_machine() {
    let server = Server::start().await;
    let (project, _tandem) = project("backup.destinations = ['s3://copies/nightly']");
    with_server(&server, &project, &["backup"]).await.expect(0, &["2010 rows in 10 tables"]);
    let stem = finals(&project)[0].split('.').next().unwrap().to_owned();
    let listed = with_server(&server, &project, &["backup", "list", "--from", "s3://copies/nightly"]).await;
    listed.expect(0, &[&format!("{stem}.sql.gz"), "whole"]);

    // A new machine has the configuration, and nothing else.
    let other = Project::app_with(
        "plain:app",
        "workers.count = 1\nbackup.destinations = ['s3://copies/nightly']\nrestore.if_empty = 'latest'",
    );
    let key = project.dir().join("key");
    let mut show = tandem::command(&project);
    show.args(["backup", "key"]).envs(server.environment());
    fs::write(&key, finished(show).await.stdout).unwrap();
    refusal::run(&other, &["backup", "key", "--import", key.to_str().unwrap()]).expect(0, &["accepted"]);
    let mut command = tandem::command(&other);
    command.envs(server.environment());
    let mut tandem = Tandem::start_as(&other, command);
    let mut tandem = tokio::task::spawn_blocking(move || {
        tandem.wait_ready();
        tandem
    })
    .await
    .unwrap();
    assert_eq!(sql(&other, "SELECT count(*) FROM api_keys"), "2000");
    assert!(tandem.log().contains("restored app_backup_20"), "{}", tandem.log());
    assert_eq!(tandem.stop(), 0);
    // And at its next start it is not empty any more.
    let source = format!("s3://copies/nightly/{stem}");
    let restored = with_server(&server, &other, &["restore", &source, "--yes"]).await;
    restored.expect(0, &["2010 rows in 10 tables"]);
    let missing = with_server(&server, &other, &["restore", "s3://copies/nightly/nothing", "--yes"]).await;
    missing.expect(64, &["holds no backup nothing"]);
}

#[test]
fn a_new_machine_whose_bucket_is_out_of_reach_does_not_begin_with_an_empty_database() {
    let away = tempfile::tempdir().unwrap();
    let place = away.path().join("unmounted");
    let project = Project::app_with(
        "plain:app",
        &format!(
            "workers.count = 1\nbackup.destinations = ['file://{}']\nrestore.if_empty = 'latest'",
            place.display()
        ),
    );
    refusal::up(&project).expect(78, &["restore.if_empty", "look for backups in file://", "unmounted"]);
    // Where there is nothing to restore, there is nothing to wait for.
    fs::create_dir(&place).unwrap();
    let mut tandem = Tandem::up(&project);
    assert!(tandem.log().contains("starts empty"), "{}", tandem.log());
    assert_eq!(tandem.stop(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_does_not_arrive_is_told_and_the_backup_here_stays() {
    let server = Server::start().await;
    let (project, _tandem) = project("backup.destinations = ['s3://copies/nightly']\nbackup.retry_limit = '1s'");
    let mut command = tandem::command(&project);
    command.arg("backup").envs(server.environment()).env("AWS_SECRET_ACCESS_KEY", "wrong-secret-wrong-secret");
    let refused = refusal::said(finished(command).await);
    assert_ne!(refused.code, 0, "{}", refused.said);
    assert!(refused.said.contains("the copy in s3://copies/nightly is missing"), "{}", refused.said);
    assert!(!refused.said.contains("wrong-secret"), "{}", refused.said);
    assert_eq!(finals(&project).len(), 3, "{:?}", finals(&project));

    let mut nobody = tandem::command(&project);
    nobody.arg("backup").envs(server.environment()).env("AWS_ENDPOINT_URL", "http://127.0.0.1:9");
    let refused = refusal::said(finished(nobody).await);
    assert_ne!(refused.code, 0, "{}", refused.said);
    assert!(!refused.said.contains(SECRET), "{}", refused.said);
    let mut without = tandem::command(&project);
    without.arg("backup");
    for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"] {
        without.env_remove(name);
    }
    refusal::said(finished(without).await).expect(78, &["AWS_ACCESS_KEY_ID"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_in_the_middle_of_an_upload_tandem_leaves_no_lie_in_the_bucket() {
    let server = Server::start().await;
    let (project, _tandem) = project("backup.destinations = ['s3://copies/nightly']\nbackup.compress = 'none'");
    {
        let mut up = Tandem::up(&project);
        sql(&project, "CREATE TABLE much AS SELECT n, md5(n::text) AS text FROM generate_series(1, 400000) AS n");
        // However it went: who comes next finds what is left of it.
        up.signal(Signal::SIGKILL);
        up.wait_exit();
    }
    // The line lets a part of the dump through and then refuses everything.
    let line = Line::cut_after(3_000_000, usize::MAX, server.address).await;
    let mut command = tandem::command(&project);
    command.envs(server.environment()).env("AWS_ENDPOINT_URL", format!("http://{}", line.address));
    let mut backup = Tandem::start_in(project.dir(), command, &["backup"]);
    tokio::task::block_in_place(|| {
        wait_for("the backup here", || {
            assert!(!backup.ended(), "{}", backup.log());
            finals(&project).iter().any(|name| name.ends_with(".sql") && !name.ends_with(".globals.sql"))
        });
    });
    backup.signal(Signal::SIGKILL);
    backup.wait_exit();
    let listed = with_server(&server, &project, &["backup", "list", "--from", "s3://copies/nightly"]).await;
    listed.expect(0, &["holds no backups"]);
    // What is here is whole, and the next backup is copied.
    with_server(&server, &project, &["backup", "verify"]).await.expect(0, &["verified"]);
    with_server(&server, &project, &["backup"]).await.expect(0, &["rows in 11 tables"]);
}

#[test]
fn sealed_copies_in_another_directory_are_opened_by_their_key_alone() {
    let (project, _tandem) = project("");
    let away = project.dir().join("away");
    fs::create_dir(&away).unwrap();
    let identity = age::x25519::Identity::generate();
    let key = project.dir().join("age.key");
    fs::write(&key, identity.to_string().expose_secret()).unwrap();
    project.configure(&format!(
        "backup.destinations = ['file://{}']\nbackup.encrypt_to = ['{}']",
        away.display(),
        identity.to_public()
    ));
    refusal::run(&project, &["backup"]).expect(0, &["2010 rows"]);
    let sealed = copied(&away);
    assert_eq!(sealed.len(), 3, "{sealed:?}");
    for name in &sealed {
        assert!(name.ends_with(".age"), "{name}");
        assert!(fs::read(away.join(name)).unwrap().starts_with(b"age-encryption.org/v1\n"), "{name}");
    }
    fs::remove_dir_all(dir(&project)).unwrap();
    let source = format!("file://{}/latest", away.display());
    refusal::run(&project, &["restore", &source, "--yes"]).expect(78, &["identity"]);
    assert_eq!(finals(&project), Vec::<String>::new());
    project.configure("backup.identity_file = 'age.key'");
    refusal::run(&project, &["restore", &source, "--yes"]).expect(0, &["2010 rows in 10 tables"]);
}

#[test]
fn retention_removes_copies_too() {
    let (project, _tandem) = project("backup.retention_count = 1\nbackup.retention_days = 0");
    let away = project.dir().join("away");
    fs::create_dir(&away).unwrap();
    project.configure(&format!("backup.destinations = ['file://{}']", away.display()));
    for _ in 0..2 {
        refusal::run(&project, &["backup"]).expect(0, &["2010 rows"]);
    }
    assert_eq!(copied(&away).len(), 6);
    refusal::run(&project, &["backup", "verify"]).expect(0, &["verified"]);
    refusal::run(&project, &["backup", "prune"]).expect(0, &["was removed"]);
    assert_eq!(copied(&away).len(), 3);
}

#[test]
fn a_place_that_is_none_is_told_before_anything_happens() {
    let project = Project::app_with("plain:app", "backup.destinations = ['ftp://x']\nbackup.format = 'directory'");
    refusal::run(&project, &["check"]).expect(78, &["is no place for copies", "a directory cannot be copied"]);
    assert!(!Path::new(&dir(&project)).exists());
}
