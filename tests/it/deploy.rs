//! `tandem deploy`: requirements, migrations and code into a Tandem that serves; what fails leaves what was.

use std::fs;
use std::io::Write;
use std::process::Stdio;
use std::time::{Duration, Instant};

use ::tandem::exit::sql_state;
use ::tandem::schema;
use nix::sys::signal::Signal;
use sea_orm::sqlx::raw_sql;

use crate::common::control;
use crate::common::project::{Project, python, venv};
use crate::common::server::TestServer;
use crate::common::strict::{Crowd, Habit};
use crate::common::tandem::{self, Tandem, command_as, wait_for};

const BARE: &str = "workers.count = 1\npool.size = 1\npool.overflow = 1\n";

/// Migrates with the environment's own library, and as the files beside it say.
const MIGRATE: &str = "import os, sys, time, lib\n\
    print('migrated with', lib.VALUE, flush=True)\n\
    while os.path.exists('hold'): time.sleep(0.01)\n\
    sys.exit(3 if os.path.exists('broken') else 0)\n";

/// An application that answers with its library's value, after `more`.
fn source(more: &str) -> String {
    format!(
        "import lib\n{more}\nasync def app(scope, receive, send):\n    if scope['type'] != 'http': return\n    \
         await send({{'type': 'http.response.start', 'status': 200, 'headers': [(b'content-length', b'3')]}})\n    \
         await send({{'type': 'http.response.body', 'body': lib.VALUE.encode()}})\n"
    )
}

/// Let the requirements name version `version` of a package, whose module `lib` has the value `value`. It has the packages
/// of the tests' environment along, so that nothing is fetched.
fn require(project: &Project, version: u32, value: &str) {
    let packages = fs::read_dir(venv().join("lib")).unwrap().next().unwrap().unwrap().path().join("site-packages");
    let script = "import sys, zipfile\n\
        version, value, packages = sys.argv[1:]\n\
        info = f'kit-{version}.dist-info/'\n\
        with zipfile.ZipFile(f'kit-{version}-py3-none-any.whl', 'w') as wheel:\n    \
            wheel.writestr('lib.py', f'VALUE = {value!r}\\n')\n    \
            wheel.writestr('kit.pth', packages + '\\n')\n    \
            wheel.writestr(info + 'METADATA', f'Metadata-Version: 2.1\\nName: kit\\nVersion: {version}\\n')\n    \
            wheel.writestr(info + 'WHEEL', 'Wheel-Version: 1.0\\nGenerator: test\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')\n    \
            wheel.writestr(info + 'RECORD', '')\n";
    let mut pack = command_as("python3", project.dir());
    pack.args(["-c", script, &version.to_string(), value]).arg(packages);
    assert!(pack.status().unwrap().success());
    project.write("requirements.txt", &format!("./kit-{version}-py3-none-any.whl\n"));
}

/// A project with an environment of its own, whose application answers "one".
async fn project(more: &str) -> Project {
    python().await;
    // Where the tests' packages lie, no other user may come.
    let user = if ::tandem::process::identity::is_root() { "workers.run_as = 'root'\n" } else { "" };
    let project = Project::app_with("main:app", &format!("{BARE}{user}{more}"));
    project.reconfigure(|text| {
        let kept = text.lines().filter(|line| !line.starts_with("python.") && !line.starts_with("workers.app_dir"));
        let text: String = kept.map(|line| format!("{line}\n")).collect();
        format!("workers.app_dir = '.'\npython.requirements = 'requirements.txt'\n{text}")
    });
    project.write("main.py", &source(""));
    project.write("migrate.py", MIGRATE);
    require(&project, 1, "one");
    project
}

const COMMAND: &str = "migrations.run = ['python', 'migrate.py']\n";

/// Wait until the application answers with `body`: an old worker may have accepted the connection before it left.
fn answers(tandem: &Tandem, body: &str) {
    wait_for(&format!("the answer {body:?}"), || tandem.get("/").unwrap() == (200, body.to_owned()));
}

/// The environments that there are.
fn environments(project: &Project) -> Vec<String> {
    let entries = fs::read_dir(project.state()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut found: Vec<_> = entries.filter(|name| name.starts_with("venv")).collect();
    found.sort();
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_takes_up_requirements_migrations_and_code_and_fails_no_request() {
    let project = project(COMMAND).await;
    let mut tandem = Tandem::up(&project);
    answers(&tandem, "one");
    let crowd = Crowd::start(([127, 0, 0, 1], tandem.app()).into(), "/", None, &[(Habit::Close, 2), (Habit::Idle, 2)]);
    // Nothing changed: only the code may have.
    control::run(&project, &["deploy", "--dry-run"])
        .expect(0, &["1. run the migrations (python migrate.py)", "2. replace the worker"]);

    require(&project, 2, "two");
    let reload = control::run(&project, &["reload"]);
    reload.expect(
        0,
        &["requirements.txt has changed", "`tandem deploy` installs what it says now", "replaced 1 workers"],
    );
    answers(&tandem, "one");
    control::run(&project, &["deploy", "--dry-run"])
        .expect(0, &["1. ", "requirements.txt has changed", "2. run the migr", "3. replace"]);
    answers(&tandem, "one");
    assert_eq!(environments(&project), ["venv"]);

    control::run(&project, &["deploy"]).expect(0, &["replaced 1 workers"]);
    answers(&tandem, "two");
    tandem.wait_log("migrated with two");
    assert_eq!(environments(&project), ["venv", "venv.1"]);
    assert_eq!(crowd.finish().failures(), Vec::<String>::new(), "{}", tandem.log());

    // The way back needs nothing to be installed, and the next start finds what is in use.
    require(&project, 1, "one");
    control::run(&project, &["deploy"]).expect(0, &["replaced 1 workers"]);
    answers(&tandem, "one");
    require(&project, 2, "two");
    control::run(&project, &["deploy"]).expect(0, &["replaced 1 workers"]);
    assert_eq!(tandem.log().matches("Making the Python environment").count(), 2, "{}", tandem.log());
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    let mut tandem = Tandem::up(&project);
    answers(&tandem, "two");
    assert!(!tandem.log().contains("Making the Python environment"), "{}", tandem.log());
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    assert!(tandem::left_in(project.dir()).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_step_fails_the_workers_that_were_there_serve_on() {
    let project = project(COMMAND).await;
    let mut tandem = Tandem::up(&project);
    let worker = tandem.workers();
    let untouched = |tandem: &Tandem| {
        answers(tandem, "one");
        assert_eq!(tandem.workers(), worker, "{}", tandem.log());
    };
    // The configuration.
    project.reconfigure(|text| format!("workers.cuont = 2\n{text}"));
    control::run(&project, &["deploy"]).expect(78, &["workers.count", "nothing was changed"]);
    project.reconfigure(|text| text.replace("workers.cuont = 2\n", ""));
    // The requirements: not there, and not to be installed.
    let text = fs::read(project.dir().join("requirements.txt")).unwrap();
    fs::remove_file(project.dir().join("requirements.txt")).unwrap();
    control::run(&project, &["deploy"]).expect(78, &["requirements.txt is not a file", "nothing was changed"]);
    project.write("requirements.txt", "./kit-9-py3-none-any.whl\n");
    let failed = control::run(&project, &["deploy"]);
    assert!(failed.code != 0, "{failed:?}");
    failed.expect(failed.code, &["requirements.txt", "the workers that were there serve on"]);
    untouched(&tandem);
    assert_eq!(environments(&project), ["venv"]);
    fs::write(project.dir().join("requirements.txt"), text).unwrap();

    // The migrations; the environment that they ran in is there for the next time.
    require(&project, 2, "two");
    project.write("broken", "");
    control::run(&project, &["deploy"])
        .expect(1, &["exit status 3", "serve on", "is kept for the next `tandem deploy`"]);
    untouched(&tandem);
    fs::remove_file(project.dir().join("broken")).unwrap();
    // The code.
    project.write("main.py", &source("raise RuntimeError('not ' + 'yet')"));
    control::run(&project, &["deploy"])
        .expect(1, &["not yet", "the workers that were there serve on", "the migrations are in, and stay"]);
    untouched(&tandem);
    // What restarts by itself starts with what is in use.
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(worker[0]), Signal::SIGKILL).unwrap();
    project.write("main.py", &source(""));
    wait_for("another worker", || tandem.workers().first().is_some_and(|pid| *pid != worker[0]));
    answers(&tandem, "one");
    control::run(&project, &["deploy"]).expect(0, &["replaced 1 workers"]);
    answers(&tandem, "two");
    let log = tandem.log();
    assert_eq!(log.matches("Making the Python environment").count(), 3, "{log}");
    assert_eq!(tandem.stop(), 0, "{log}");
    assert!(tandem::left_in(project.dir()).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_roll_that_fails_on_its_way_says_who_is_new_and_leaves_every_worker_serving() {
    let project = project("migrations.run = 'none'\n").await;
    project.reconfigure(|text| text.replace("workers.count = 1", "workers.count = 3"));
    let mut tandem = Tandem::up(&project);
    let before = tandem.workers();
    require(&project, 2, "two");
    // It can be imported once.
    project.write("main.py", &source("open('imported', 'x').close()"));
    control::run(&project, &["deploy"])
        .expect(1, &["FileExistsError", "1 worker was replaced before, the others serve on", "is the one in use"]);
    let after = tandem.workers();
    assert_eq!((after.len(), after.iter().filter(|pid| before.contains(pid)).count()), (3, 2), "{}", tandem.log());
    ["one", "two"].into_iter().for_each(|body| answers(&tandem, body));
    // Whoever is in an environment keeps it, also when the next deployment fails in the same way.
    require(&project, 3, "six");
    project.write("main.py", &source("open('imported.again', 'x').close()"));
    control::run(&project, &["deploy"]).expect(1, &["1 worker was replaced before"]);
    assert_eq!(environments(&project), ["venv", "venv.1", "venv.2"]);
    answers(&tandem, "one");
    project.write("main.py", &source(""));
    control::run(&project, &["deploy"]).expect(0, &["replaced 3 workers"]);
    assert!(tandem.workers().iter().all(|pid| !before.contains(pid)), "{}", tandem.log());
    assert_eq!((0..30).filter(|_| tandem.get("/").unwrap().1 == "one").count(), 0);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    assert!(tandem::left_in(project.dir()).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_deployment_at_a_time_and_one_that_is_killed_harms_nothing() {
    let project = project(COMMAND).await;
    let mut tandem = Tandem::up(&project);
    require(&project, 2, "two");
    project.write("hold", "");
    let first = control::start(&project, &["deploy"]);
    tandem.wait_log("migrated with two");
    control::run(&project, &["deploy"]).expect(75, &["another deployment is under way"]);
    answers(&tandem, "one");
    tandem.signal(Signal::SIGKILL);
    tandem.wait_exit();
    let output = first.wait_with_output().unwrap();
    assert!(!output.status.success());
    fs::remove_file(project.dir().join("hold")).unwrap();
    wait_for("the end of all", || tandem::left_in(project.dir()).is_empty());
    let mut tandem = Tandem::up(&project);
    answers(&tandem, "two");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

/// Where the database is, for a client of the test's own.
fn psql(project: &Project) -> std::process::Command {
    let mut psql = tandem::command(project);
    psql.args(["psql", "-X", "-q", "-v", "ON_ERROR_STOP=1"]).stdout(Stdio::null());
    psql
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_that_waits_for_a_lock_lets_the_application_pass() {
    let project = project(
        "migrations.run = ['python', 'migrate.py']\nmigrations.lock_timeout = '300ms'\nmigrations.limit = '4s'\n",
    )
    .await;
    let alter = "import os, psycopg2\n\
                 with psycopg2.connect(os.environ['DATABASE_URL'].replace('+psycopg2', '')) as session:\n    \
                 session.cursor().execute('CREATE TABLE IF NOT EXISTS orders (id int)')\n    \
                 session.cursor().execute('ALTER TABLE orders ADD COLUMN IF NOT EXISTS price int') if os.path.exists('alter') else None\n";
    project.write("migrate.py", alter);
    let mut tandem = Tandem::up(&project);
    // A transaction of somebody's, which has read the table and stays open.
    let mut holder = psql(&project).stdin(Stdio::piped()).spawn().unwrap();
    let mut input = holder.stdin.take().unwrap();
    input.write_all(b"BEGIN; SELECT count(*) FROM orders; \\! touch held\n").unwrap();
    input.flush().unwrap();
    wait_for("the open transaction", || project.dir().join("held").exists());
    project.write("alter", "");

    let began = Instant::now();
    let first = control::start(&project, &["deploy"]);
    tandem.wait_log("the migrations waited 300ms for a lock (migrations.lock_timeout)");
    // Who comes after it waits for its lock at most so long.
    let read =
        psql(&project).args(["-c", "SET statement_timeout = '2s'; SELECT count(*) FROM orders"]).status().unwrap();
    assert!(read.success());
    let output = first.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && began.elapsed() < Duration::from_secs(60));
    for words in ["tried for 4s (migrations.limit)", "lock timeout", "the workers that were there serve on"] {
        assert!(said.contains(words), "{said}");
    }
    answers(&tandem, "one");

    let tries = |tandem: &Tandem| tandem.log().matches("waited 300ms for a lock").count();
    let before = tries(&tandem);
    let second = control::start(&project, &["deploy"]);
    wait_for("the next try", || tries(&tandem) > before);
    drop(input);
    holder.wait().unwrap();
    let output = second.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let priced = psql(&project).args(["-c", "SELECT price FROM orders"]).status().unwrap();
    assert!(priced.success());
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[tokio::test]
async fn the_built_in_migrations_wait_for_no_lock_longer_than_they_may() {
    let server = TestServer::start().await;
    let url = server.database("live").await;
    let (limit, patience) = (Duration::from_secs(60), Duration::from_millis(200));
    schema::up(&url, limit, limit).await.unwrap();
    schema::down(&url, 1, limit, limit).await.unwrap();
    let mut holder = schema::session(&url, "holder").await.unwrap();
    raw_sql("BEGIN; SELECT count(*) FROM api_keys").execute(&mut holder).await.unwrap();
    let refused = schema::up_beside(&url, limit, limit, patience).await.unwrap_err();
    assert_eq!(sql_state(&refused).as_deref(), Some("55P03"), "{refused:#}");
    raw_sql("ROLLBACK").execute(&mut holder).await.unwrap();
    assert_eq!(schema::up_beside(&url, limit, limit, patience).await.unwrap().applied.len(), 1);
}
