//! A process of the server dies while a start asks it: the server throws every session out and recovers by itself. The start
//! waits for it and asks again.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::backups::{as_superuser, sql};
use crate::common::project::Project;
use crate::common::readiness::{Idle, of_server};
use crate::common::refusal;
use crate::common::tandem::{self, Tandem, left_in, wait_for};

/// How often a recovery is to be met.
const TRIES: usize = 5;

/// What the server tells of sessions, as soon as it answers.
fn found(project: &Project, query: &str) -> String {
    let socket = project.state().join("run/postgres");
    let mut psql = tandem::command(project);
    psql.args(["psql", "-XAtq", "-U", "postgres", "-d", "app", "-c", query, "-h"]).arg(socket);
    String::from_utf8(psql.output().unwrap().stdout).unwrap().trim().to_owned()
}

/// Kill a process of the server.
fn crash(tandem: &mut Tandem, project: &Project) {
    assert!(!tandem.ended(), "{}", tandem.log());
    let walwriter = of_server(&tandem.descendants(), tandem.postmaster(project), "walwriter").unwrap();
    kill(Pid::from_raw(walwriter), Signal::SIGKILL).unwrap();
}

/// Wait for the session that `query` finds.
fn wait_session(tandem: &mut Tandem, project: &Project, query: &str) -> String {
    // A psql that comes before the server would start one itself.
    wait_for("the server", || tandem.descendants().iter().any(|process| process.args.contains("walwriter")));
    let mut session = String::new();
    wait_for("the session", || {
        session = found(project, query);
        !session.is_empty() || tandem.ended()
    });
    session
}

fn runs_and_stops(mut tandem: Tandem, project: &Project) {
    tandem.wait_ready();
    assert!(tandem.log().contains("is asked again"), "{}", tandem.log());
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    assert!(left_in(project.dir()).is_empty());
}

#[test]
fn a_crash_of_the_server_breaks_no_start_off() {
    let project =
        Project::app_with("plain:app", "workers.count = 1\npostgres.settings.max_prepared_transactions = 2\n");
    let mut tandem = Tandem::up(&project);
    // A lock that outlives the crash: on what the migrations read first.
    as_superuser(
        &project,
        "app",
        "BEGIN; LOCK TABLE alembic_version IN ACCESS EXCLUSIVE MODE; PREPARE TRANSACTION 'held'",
    );
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    let mut tandem = Tandem::start(&project);
    let waits = "SELECT pid FROM pg_locks WHERE NOT granted AND relation = 'alembic_version'::regclass";
    let broken_off = wait_session(&mut tandem, &project, waits);
    crash(&mut tandem, &project);
    wait_for("another session", || {
        let now = found(&project, waits);
        !now.is_empty() && now != broken_off || tandem.ended()
    });
    as_superuser(&project, "app", "ROLLBACK PREPARED 'held'");
    runs_and_stops(tandem, &project);

    // Whoever is let in waits a while before it can ask: the superuser first, who provides the database.
    project.configure("postgres.settings.post_auth_delay = '1s'\npostgres.probe_deadline = '9s'");
    let mut tandem = Tandem::start(&project);
    wait_for("the superuser's session", || {
        tandem.descendants().iter().any(|process| process.args.contains("postgres app [local]")) || tandem.ended()
    });
    crash(&mut tandem, &project);
    runs_and_stops(tandem, &project);
}

#[test]
fn nor_the_first_start_of_all() {
    let slow = "workers.count = 1\npostgres.settings.post_auth_delay = '1s'\npostgres.probe_deadline = '9s'";
    let project = Project::app_with("plain:app", slow);
    let mut tandem = Tandem::start(&project);
    // The database is made, and entered for what belongs into it.
    wait_for("the superuser's session", || {
        tandem.descendants().iter().any(|process| process.args.contains("postgres app [local]")) || tandem.ended()
    });
    crash(&mut tandem, &project);
    runs_and_stops(tandem, &project);
}

#[test]
fn nor_does_one_under_a_command_that_migrates() {
    let project = Project::app_with("plain:app", "workers.count = 1\nmigrations.run = ['python', 'migrate.py']");
    // The first time it begins and hangs.
    let migrate = "import psycopg2\n\
                   session = psycopg2.connect('')\n\
                   session.autocommit = True\n\
                   cursor = session.cursor()\n\
                   cursor.execute(\"SELECT to_regclass('begun')\")\n\
                   if cursor.fetchone()[0]:\n    \
                       cursor.execute('CREATE TABLE done ()')\n\
                   else:\n    \
                       cursor.execute('CREATE TABLE begun ()')\n    \
                       cursor.execute('SELECT pg_sleep(600)')\n";
    project.write("migrate.py", migrate);
    let mut tandem = Tandem::start(&project);
    let hangs = "SELECT pid FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(600)'";
    wait_session(&mut tandem, &project, hangs);
    crash(&mut tandem, &project);
    tandem.wait_ready();
    assert_eq!(sql(&project, "SELECT to_regclass('done')"), "done");
    runs_and_stops(tandem, &project);
}

#[test]
fn a_command_that_meets_a_server_in_recovery_may_succeed_later() {
    let project = Project::app_with("plain:app", "workers.count = 1");
    let mut tandem = Tandem::up(&project);
    let meets_it = || {
        // A recovery begins when the last process has ended, and this one hears of it after some seconds.
        let idle = Idle::open(&project);
        kill(Pid::from_raw(idle.backend), Signal::SIGSTOP).unwrap();
        crash(&mut tandem, &project);
        wait_for("the postmaster's notice", || tandem.ready() == Some(false));
        let met = refusal::run(&project, &["backup"]);
        if met.code != 0 {
            met.expect(75, &["57P03"]);
        }
        wait_for("the recovery", || tandem.ready() == Some(true));
        met.code != 0
    };
    // On a busy machine the command may come after it.
    assert!(std::iter::repeat_with(meets_it).take(TRIES).any(|met| met));
    refusal::run(&project, &["backup"]).expect(0, &[]);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}
