//! What follows on a scheduled backup that failed: what is told of it, and what is tried again.

use std::fs;
use std::process::Command;

use crate::common::backups::{finals, sql};
use crate::common::project::Project;
use crate::common::refusal::{self, names};
use crate::common::tandem::{self, Tandem, wait_for};
use crate::s3_server::{KEY_ID, SECRET, Server};
use nix::sys::signal::Signal;
use serde_json::Value;

const EACH_SECOND: &str = "* * * * * *";
const SELDOM: &str = "0 0 1 1 *";

fn project(lines: &str) -> Project {
    Project::app_with("plain:app", &format!("workers.count = 1\nbackup.schedule = '{EACH_SECOND}'\n{lines}"))
}

fn last(tandem: &Tandem) -> Value {
    tandem.health()["backups"]["last"].clone()
}

/// From now on the next planned run is next year's.
fn plan_seldom(project: &Project, tandem: &Tandem) {
    project.reconfigure(|text| text.replace(EACH_SECOND, SELDOM));
    tandem.signal(Signal::SIGHUP);
    wait_for("the new schedule", || {
        tandem.health()["backups"]["schedule"] == format!("{SELDOM} (local time)")
            && tandem.health()["backups"]["running"] == false
    });
}

fn dumps(project: &Project) -> usize {
    finals(project).into_iter().filter(|name| name.ends_with(".sql.gz")).count()
}

#[test]
fn what_is_told_of_a_failed_run_is_its_own_record_and_not_its_last_line() {
    let project = project("backup.verify = 'always'\nbackup.retry_after = 'never'\nmigrations.run = 'none'");
    let mut tandem = Tandem::up(&project);
    wait_for("a good one", || last(&tandem)["ok"] == true);
    // What a restore refuses: the check looks into a table that is filled after this one.
    sql(
        &project,
        "CREATE TABLE zoo (n int);
         CREATE FUNCTION known(n int) RETURNS bool LANGUAGE sql AS 'SELECT EXISTS (SELECT FROM public.zoo AS it WHERE it.n = $1)';
         INSERT INTO zoo VALUES (1); CREATE TABLE animals (n int CHECK (known(n))); INSERT INTO animals VALUES (1)",
    );
    wait_for("the bad one", || last(&tandem)["ok"] == false);
    let told = last(&tandem);
    assert!(told["name"].as_str().is_some_and(|name| name.starts_with("app_backup_20")), "it was made: {told}");
    let error = told["error"].as_str().unwrap();
    // The first of its lines and the last.
    assert!(error.contains("is bad: it does not restore") && error.contains("animals"), "{error}");
    assert!(error.contains("violates check constraint"), "{error}");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn a_run_that_goes_on_failing_is_tried_three_times_and_then_not_before_the_next_that_is_planned() {
    let project = project("backup.dir = 'later/backups'\nbackup.retry_after = '1s'");
    project.write("later", "");
    let mut tandem = Tandem::up(&project);
    wait_for("a failed one", || last(&tandem)["ok"] == false);
    plan_seldom(&project, &tandem);
    let gives_up = "; it was tried again 3 times, and is not before the next that is planned";
    tandem.wait_log(gives_up);
    let planned = tandem.health()["backups"]["next"].clone();
    assert!(
        planned.as_str().unwrap()[4..].starts_with("-01-01") || planned.as_str().unwrap()[4..].starts_with("-12-31")
    );
    let log = tandem.log();
    let again = log.lines().filter(|line| line.contains("the scheduled backup failed")).collect::<Vec<_>>();
    // Each run that was planned begins to count anew; the last three were none.
    assert!(again.last().unwrap().contains(gives_up), "{again:#?}");
    let tries = again.iter().rev().skip(1).take(2).all(|line| line.contains("; it is tried again in 1s"));
    assert!(again.len() >= 4 && tries, "{again:#?}");
    assert_eq!(again.iter().filter(|line| line.contains(gives_up)).count(), 1, "{again:#?}");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn where_only_a_copy_failed_the_copy_alone_is_tried_again_until_it_is_there() {
    let away = tempfile::tempdir().unwrap();
    let place = away.path().join("mounted");
    let project = project(&format!(
        "backup.verify = 'never'\nbackup.retry_after = '1s'\nbackup.destinations = ['file://{}']",
        place.display()
    ));
    let mut tandem = Tandem::up(&project);
    wait_for("a failed copy", || last(&tandem)["ok"] == false);
    plan_seldom(&project, &tandem);
    let (taken, failures) = (dumps(&project), tandem.log().matches("the copies are tried again in 1s").count());
    // More often than what takes a dump each time.
    wait_for("many tries", || tandem.log().matches("the copies are tried again in 1s").count() >= failures + 4);
    assert_eq!(dumps(&project), taken, "no try takes another backup");
    let named = last(&tandem)["name"].clone();
    fs::create_dir(&place).unwrap();
    wait_for("the copies", || last(&tandem)["ok"] == true);
    assert_eq!(last(&tandem)["name"], named, "the run is about the backup that was taken");
    assert_eq!(names(&place).into_iter().filter(|name| name.ends_with(".sql.gz")).count(), taken);
    assert_eq!((dumps(&project), tandem.health()["status"].clone()), (taken, "healthy".into()));
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

async fn finished(mut command: Command) -> refusal::Refusal {
    tokio::task::spawn_blocking(move || refusal::said(command.output().unwrap())).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_that_go_bad_fail_the_copies_and_neither_the_backups_here_nor_the_start() {
    use std::os::unix::fs::PermissionsExt;
    let server = Server::start().await;
    let away = tempfile::tempdir().unwrap();
    let lines = format!(
        "workers.count = 1\nmigrations.run = 'none'\nbackup.verify = 'never'\nbackup.retry_limit = '1s'\n\
         backup.credentials_file = 'copies.keys'\nbackup.destinations = ['s3://copies', 'file://{}']",
        away.path().display()
    );
    let project = Project::app_with("plain:app", &lines);
    let file = project.dir().join("copies.keys");
    let keys = format!("AWS_ACCESS_KEY_ID={KEY_ID}\nAWS_SECRET_ACCESS_KEY='{SECRET}'\n");
    fs::write(&file, format!("{keys}AWS_ENDPOINT_URL=http://{}\n", server.address)).unwrap();
    let open = |mode| fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
    open(0o644);
    let (mut tandem, project) = tokio::task::spawn_blocking(move || (Tandem::up(&project), project)).await.unwrap();
    assert!(tandem.log().contains("copies of backups to a cloud will fail: "), "{}", tandem.log());
    let command = |args: &[&str]| {
        let mut command = tandem::command(&project);
        command.args(args);
        command
    };
    let why = "copies.keys is open to other users (mode 0644)";
    finished(command(&["check"])).await.expect(78, &[why]);
    finished(command(&["backup"])).await.expect(78, &["send copies to s3://copies", why]);
    assert_eq!(dumps(&project), 1, "the backup itself is here");
    let copied = || names(away.path()).into_iter().filter(|name| name.ends_with(".sql.gz")).count();
    assert_eq!(copied(), 1, "and in the other place");
    fs::rename(&file, file.with_extension("gone")).unwrap();
    finished(command(&["backup", "scheduled"])).await.expect(78, &["copies.keys cannot be read"]);
    assert_eq!((dumps(&project), copied()), (2, 2));
    // What was missing is made up for.
    fs::rename(file.with_extension("gone"), &file).unwrap();
    open(0o600);
    finished(command(&["backup", "scheduled", "--copies"])).await.expect(0, &[]);
    let listed = finished(command(&["backup", "list", "--from", "s3://copies"])).await;
    assert_eq!((listed.code, listed.said.matches(".sql.gz").count()), (0, 2), "{}", listed.said);
    assert_eq!(dumps(&project), 2);
    tokio::task::spawn_blocking(move || {
        assert_eq!(tandem.stop(), 0, "{}", tandem.log());
        drop(project);
    })
    .await
    .unwrap();
}
