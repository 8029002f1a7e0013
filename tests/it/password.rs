//! Another password for the application's role: no request fails, whatever is killed in the middle heals, what was given is not
//! Tandem's to choose; and passwords that others guess.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Stdio};

use nix::sys::signal::Signal;

use crate::common::control;
use crate::common::project::Project;
use crate::common::refusal::{self, Refusal};
use crate::common::strict::{Crowd, Habit};
use crate::common::tandem::{self, Tandem, wait_for};

const BARE: &str = "migrations.run = 'none'\nworkers.count = 2\npool.size = 1\npool.overflow = 1\n";
const SECOND: &str = "tandem_rotation";

/// An application whose every request opens a connection, and which gets ready only while there is no file `gate`.
fn project(lines: &str) -> Project {
    let project = Project::app_with("connects:app", &format!("{BARE}{lines}"));
    let gate = project.dir().join("gate").display().to_string();
    project.configure(&format!("workers.env.GATE = '{gate}'"));
    project
}

fn password(project: &Project) -> String {
    fs::read_to_string(project.state().join("run/password")).unwrap()
}

fn superuser(project: &Project, sql: &str) -> Refusal {
    control::run(project, &["psql", "--superuser", "-XAtc", sql, "-d", "app"])
}

/// Of a session of the application's: who it is at first, who it acts as, whether it is encrypted, two settings, the owner.
fn session(tandem: &Tandem) -> Vec<serde_json::Value> {
    let (status, body) = tandem.get("/session").unwrap();
    assert_eq!(status, 200, "{body}\n{}", tandem.log());
    serde_json::from_str(&body).unwrap()
}

fn crowd(tandem: &Tandem) -> Crowd {
    Crowd::start(([127, 0, 0, 1], tandem.app()).into(), "/", Some("ok"), &[(Habit::Close, 2), (Habit::Busy, 1)])
}

fn nobody_lost_anything(crowd: Crowd, tandem: &Tandem) {
    let answers = crowd.answers();
    wait_for("more answers", || crowd.answers() > answers + 20);
    let outcome = crowd.finish();
    assert_eq!(outcome.failures(), Vec::<String>::new(), "of {} requests\n{}", outcome.requests(), tandem.log());
}

/// The password of before lets nobody in, the new one does, and nothing else is left of the change.
fn has_changed(project: &Project, tandem: &Tandem, before: &str, now: &str) {
    let tried = |password: &str| {
        control::run(project, &["psql", "-XAtc", "SELECT session_user", &format!("password={}", password.trim())])
    };
    tried(before).expect(2, &["password authentication failed"]);
    tried(now).expect(0, &["app"]);
    assert_eq!(session(tandem)[..2], ["app", "app"]);
    superuser(project, &format!("SELECT count(*) FROM pg_roles WHERE rolname = '{SECOND}'")).expect(0, &["0"]);
}

#[test]
fn a_new_password_fails_no_request_of_an_application_that_connects_for_each() {
    for lines in ["", "workers.preload = true"] {
        let project = project(lines);
        let worker = "import os, time\nimport psycopg2\nurl = os.environ['DATABASE_URL'].replace('+psycopg2', '')\n\
                      while True:\n    try:\n        psycopg2.connect(url).close()\n    except Exception as error:\n        \
                      print('the queue failed:', error, flush=True)\n    time.sleep(0.01)\n";
        project.write("queue.py", worker);
        fs::set_permissions(project.dir(), fs::Permissions::from_mode(0o755)).unwrap();
        project.reconfigure(|text| format!("{text}\n[[process]]\nname = 'queue'\ncommand = ['python', 'queue.py']\n"));
        let mut tandem = Tandem::up(&project);
        let crowd = crowd(&tandem);
        wait_for("the crowd at work", || crowd.answers() > 20);
        let (before, workers) = (password(&project), tandem.workers());
        control::run(&project, &["password", "rotate"]).expect(0, &["app has a new password, and every process"]);
        let now = password(&project);
        assert_ne!(before, now);
        has_changed(&project, &tandem, &before, &now);
        assert!(tandem.workers().iter().all(|pid| !workers.contains(pid)));
        let said = tandem.log();
        assert!(!said.contains(before.trim()) && !said.contains(now.trim()), "{said}");
        nobody_lost_anything(crowd, &tandem);
        let said = tandem.log();
        assert!(!said.contains("the queue failed") && !said.contains("readiness is withdrawn"), "{said}");
        assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    }
}

/// A session of the superuser's that keeps every change of a role waiting, until it is dropped.
struct Held(Child);

impl Held {
    fn new(project: &Project) -> Self {
        let mut command = tandem::command(project);
        command.args(["psql", "--superuser", "-XAtq", "-d", "app"]).stdin(Stdio::piped()).stdout(Stdio::null());
        let mut psql = command.spawn().unwrap();
        let input = psql.stdin.as_mut().unwrap();
        writeln!(input, "BEGIN; LOCK TABLE pg_catalog.pg_authid IN SHARE MODE;").unwrap();
        wait_for("the lock", || {
            let held = superuser(project, "SELECT count(*) FROM pg_locks WHERE mode = 'ShareLock' AND granted");
            held.said.trim() == "1"
        });
        Self(psql)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_change_that_is_killed_at_any_step_heals_at_the_next_start() {
    let project = project("");
    let gate = project.dir().join("gate");
    let mut tandem = Tandem::up(&project);
    superuser(&project, "ALTER ROLE app SET work_mem = '7MB'").expect(0, &[]);
    superuser(&project, "ALTER ROLE app IN DATABASE app SET search_path = \"$user\", public, pg_temp").expect(0, &[]);
    for step in ["the first roll", "the change itself", "the second roll", "the end"] {
        let before = password(&project);
        fs::write(&gate, "").unwrap();
        let changes = control::start(&project, &["password", "rotate"]);
        tandem.wait_log(&format!("all processes change over to role {SECOND}"));
        if step != "the first roll" {
            let held = Held::new(&project);
            fs::remove_file(&gate).unwrap();
            // The password is kept before it holds.
            wait_for("another password", || password(&project) != before);
            assert_eq!(session(&tandem)[..2], [SECOND, "app"]);
            assert_eq!(session(&tandem)[3..], ["7MB", "\"$user\", public, pg_temp", "app"]);
            if step != "the change itself" {
                fs::write(&gate, "").unwrap();
                drop(held);
                tandem.wait_log("app has the new one, and all processes change over to it");
                if step == "the end" {
                    let held = Held::new(&project);
                    fs::remove_file(&gate).unwrap();
                    wait_for("the application's role again", || {
                        (0..8).all(|_| session(&tandem)[..2] == ["app", "app"])
                    });
                    end(&mut tandem, &project);
                    drop(held);
                } else {
                    end(&mut tandem, &project);
                }
            } else {
                end(&mut tandem, &project);
                drop(held);
            }
        } else {
            end(&mut tandem, &project);
        }
        let _ = fs::remove_file(&gate);
        assert_ne!(control::said(changes).code, 0);
        tandem = Tandem::up(&project);
        let told = format!("a change of the password was interrupted: role {SECOND}");
        assert!(tandem.log().contains(&told), "{step}: {}", tandem.log());
        assert_eq!(session(&tandem)[..2], ["app", "app"], "{step}");
        let other = if password(&project) == before { "another" } else { &before };
        has_changed(&project, &tandem, other, &password(&project));
    }
    control::run(&project, &["password", "rotate"]).expect(0, &["app has a new password"]);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

/// Kill Tandem, and wait until all that it ran is gone.
fn end(tandem: &mut Tandem, project: &Project) {
    tandem.signal(Signal::SIGKILL);
    tandem.wait_exit();
    assert!(tandem::left_in(&project.data()).is_empty());
}

#[test]
fn workers_that_do_not_start_keep_the_password_and_serve_on() {
    let project = project("");
    let mut tandem = Tandem::up(&project);
    let (before, workers) = (password(&project), tandem.workers());
    fs::write(project.dir().join("gate"), "fail").unwrap();
    control::run(&project, &["password", "rotate"]).expect(1, &["the workers that were there serve on"]);
    assert_eq!((password(&project), tandem.workers()), (before.clone(), workers), "{}", tandem.log());
    superuser(&project, &format!("SELECT count(*) FROM pg_roles WHERE rolname = '{SECOND}'")).expect(0, &["0"]);
    fs::remove_file(project.dir().join("gate")).unwrap();
    control::run(&project, &["password", "rotate"]).expect(0, &["app has a new password"]);
    has_changed(&project, &tandem, &before, &password(&project));
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    // A stopped one gets it at its next start.
    let before = password(&project);
    control::run(&project, &["password", "rotate"]).expect(0, &["is stopped", "at the next start"]);
    let mut tandem = Tandem::up(&project);
    has_changed(&project, &tandem, &before, &password(&project));
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

/// A request that takes its time opens its connection after the change has begun.
#[test]
fn the_old_password_holds_while_a_worker_of_before_still_has_requests() {
    let project = project("");
    let mut tandem = Tandem::up(&project);
    let app = project.app;
    let slow = std::thread::spawn(move || tandem::get(app, "/slow"));
    wait_for("a request in flight", || {
        let status = control::status(&project);
        status["services"].as_array().unwrap().iter().any(|it| it["in_flight"].as_u64().unwrap_or(0) > 0)
    });
    let before = password(&project);
    let changes = control::start(&project, &["password", "rotate"]);
    wait_for("the second role in every worker", || (0..8).all(|_| session(&tandem)[0] == SECOND));
    assert_eq!(password(&project), before);
    project.write("gate.go", "");
    control::said(changes).expect(0, &["app has a new password"]);
    has_changed(&project, &tandem, &before, &password(&project));
    assert_eq!(slow.join().unwrap().unwrap(), (200, "ok".to_owned()), "{}", tandem.log());
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn a_password_that_was_given_is_changed_where_it_stands_and_a_reload_takes_it_over() {
    let (first, second) = ("W22ZaJ0SNY7soEsUEjb6gQ", "zZ1f0c2aa9d7e4b31-tulip");
    let project = project("postgres.password_file = 'secret'");
    project.write("secret", &format!("{first}\n"));
    let mut tandem = Tandem::up(&project);
    let rotate = || control::run(&project, &["password", "rotate"]);
    rotate().expect(
        64,
        &["postgres.password_file (tandem.toml:", "write the new one into that file, then `tandem reload`"],
    );
    let crowd = crowd(&tandem);
    wait_for("the crowd at work", || crowd.answers() > 20);
    project.write("secret", &format!("{second}\n"));
    control::run(&project, &["reload"]).expect(0, &["app has a new password, and every process"]);
    nobody_lost_anything(crowd, &tandem);
    has_changed(&project, &tandem, first, second);
    assert!(!project.state().join("run/password").exists());
    let quiet = control::run(&project, &["reload"]);
    assert!(quiet.code == 0 && !quiet.said.contains("password"), "{}", quiet.said);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());

    for (variables, words) in [
        (&[("POSTGRES_PASSWORD", first)][..], &["POSTGRES_PASSWORD (environment)", "restart Tandem"][..]),
        (
            &[("DATABASE_URL", "postgresql://u:tulip-from-afar-9@db/d"), ("TANDEM_POSTGRES__MODE", "managed")],
            &["DATABASE_URL"],
        ),
        (&[("DATABASE_URL", "postgresql://u:tulip-from-afar-9@localhost/d")], &["run by somebody else", "ALTER ROLE"]),
    ] {
        let bare = Project::app_with("connects:app", BARE);
        let mut command = tandem::command(&bare);
        command.args(["password", "rotate"]).envs(variables.iter().copied());
        let refused = refusal::said(command.output().unwrap());
        refused.expect(64, words);
        assert!(!refused.said.contains("tulip") && !refused.said.contains(first), "{}", refused.said);
    }
    let bare = Project::app_with("connects:app", BARE);
    control::run(&bare, &["password", "rotate"]).expect(1, &["no database", "`tandem up` makes it"]);
}

#[test]
fn a_password_that_others_guess_is_told_and_refused_beyond_this_machine() {
    let check = |lines: &str, password: &str| {
        let project = Project::app_with("connects:app", &format!("{BARE}{lines}"));
        let mut command = tandem::command(&project);
        let said = refusal::said(command.arg("check").env("POSTGRES_PASSWORD", password).output().unwrap());
        assert!(password.len() < 6 || !said.said.contains(password), "{}", said.said);
        said
    };
    let beyond = "postgres.listen = '0.0.0.0'\npostgres.tls = 'self-signed'";
    for password in ["changeme", "ChangeMe2026!", "mysecretpassword"] {
        check("", password)
            .expect(0, &["POSTGRES_PASSWORD (environment): the password is one that is tried first", "leave it out"]);
        check(beyond, password).expect(78, &["tried first, and PostgreSQL listens on 0.0.0.0", "openssl rand"]);
    }
    for lines in ["", beyond] {
        check(lines, "k3Qz!pT7x").expect(0, &["fewer than 12 characters"]);
        let strong = check(lines, "W22ZaJ0SNY7soEsUEjb6gQ");
        assert!(strong.code == 0 && !strong.said.contains("the password"), "{}", strong.said);
    }
}

#[test]
fn secrets_come_from_files_and_from_systemds_credentials() {
    let project = Project::app_with("connects:app", BARE);
    let dir = project.dir().join("credentials");
    fs::create_dir(&dir).unwrap();
    project.write("url", "postgresql://u:tulip-from-afar-9@localhost/d\n");
    project.write("credentials/tandem.postgres.password", "a-tulip-of-systemd\n");
    project.write("credentials/tandem.workers.env.SECRET_KEY", "a-tulip-of-the-app\n");
    let check = |variables: &[(&str, &str)]| {
        let mut command = tandem::command(&project);
        let said = refusal::said(command.args(["check", "--all"]).envs(variables.iter().copied()).output().unwrap());
        assert!(!said.said.contains("tulip"), "{}", said.said);
        said
    };
    check(&[("DATABASE_URL_FILE", "url")]).expect(0, &["environment DATABASE_URL_FILE", "attaches to it"]);
    let both = [("DATABASE_URL_FILE", "url"), ("DATABASE_URL", "postgresql://a@localhost/b")];
    check(&both).expect(78, &["DATABASE_URL_FILE and DATABASE_URL both give postgres.url", "keep one"]);
    check(&[("DATABASE_URL_FILE", "none")]).expect(78, &["DATABASE_URL_FILE: cannot read", "No such file"]);
    let credentials = ("CREDENTIALS_DIRECTORY", dir.to_str().unwrap());
    let told = check(&[credentials]);
    told.expect(0, &["CREDENTIALS_DIRECTORY/tandem.postgres.password", "workers.env.SECRET_KEY"]);
    check(&[credentials, ("POSTGRES_PASSWORD", "another-flower-9")]).expect(
        0,
        &["CREDENTIALS_DIRECTORY/tandem.postgres.password (environment) and POSTGRES_PASSWORD (environment) differ"],
    );
    project.write("credentials/tandem.postgres.pasword", "x");
    check(&[credentials]).expect(78, &["names no key", "did you mean tandem.postgres.password?"]);
    fs::remove_file(dir.join("tandem.postgres.pasword")).unwrap();
    let mut command = tandem::command(&project);
    command.env(credentials.0, credentials.1);
    let mut tandem = Tandem::start_as(&project, command);
    tandem.wait_ready();
    assert_eq!(tandem.get("/").unwrap().1, "ok", "{}", tandem.log());
    assert!(!project.state().join("run/password").exists());
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}
