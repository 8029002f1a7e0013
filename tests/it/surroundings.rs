//! What children start with: one environment for all of them, and nothing of a shell that leads elsewhere.

use std::fs;
use std::process::Command;

use crate::common::project::Project;
use crate::common::refusal::{said, up_as};
use crate::common::tandem::{self, Tandem, command, wait_for};

const ONE: &str = "workers.count = 1\npool.size = 1\npool.overflow = 1";

/// What a shell may say to libpq, each of which alone led a child or Tandem itself astray.
fn misled(mut command: Command, service_file: &str) -> Command {
    for (name, value) in [
        ("PGSERVICE", "prod"),
        ("PGSERVICEFILE", service_file),
        ("PGHOSTADDR", "127.0.0.2"),
        ("PGOPTIONS", "-c nosuch=1"),
        ("PGSSLMODE", "verify-full"),
        ("PGSSLROOTCERT", "/nowhere/root.crt"),
        ("PGREQUIREAUTH", "none"),
        ("PGTARGETSESSIONATTRS", "standby"),
        ("PGCONNECT_TIMEOUT", "nonsense"),
        ("PGGSSENCMODE", "require"),
        ("PGCLUSTER", "9.6/main"),
        ("PGADMIN_DEFAULT_EMAIL", "kept@example.org"),
    ] {
        command.env(name, value);
    }
    command
}

/// The worker's variable `name`; `not set` where it is not.
fn env(tandem: &Tandem, name: &str) -> String {
    tandem.get(&format!("/env?name={name}")).unwrap().1
}

#[test]
fn what_a_shell_says_to_libpq_leads_nobody_to_another_server() {
    let prod = Project::app_with("plain:app", &format!("{ONE}\nmigrations.run = 'none'"));
    let mut live = Tandem::up(&prod);
    let sql = |statement: &str| said(tandem::run(&prod, &["psql", "-XAtc", statement]));
    sql("CREATE TABLE victim (x int); INSERT INTO victim VALUES (42)").expect(0, &[]);

    let password = fs::read_to_string(prod.state().join("run/password")).unwrap();
    let own = Project::app_with("plain:app", ONE);
    let service = own.dir().join("pg_service.conf");
    own.write(
        "pg_service.conf",
        &format!(
            "[prod]\nhost=127.0.0.1\nport={}\nuser=app\ndbname=app\npassword={}\n",
            prod.postgres,
            password.trim()
        ),
    );
    // A line of `.env` is no better than the shell.
    own.write(
        ".env",
        "PGDATABASE=elsewhere\nPGSERVICE=prod\nPGOPTIONS=-c role=nosuch\nPGPASSFILE=/nowhere\nFINE=yes\n",
    );
    let service = service.display().to_string();
    let tandem = |args: &[&str]| {
        let mut command = misled(command(&own), &service);
        said(command.args(args).output().unwrap())
    };

    let mut up = Tandem::start_as(&own, misled(command(&own), &service));
    up.wait_ready();
    for name in ["PGSERVICE", "PGHOSTADDR", "PGOPTIONS", "PGSSLMODE", "PGPASSFILE", "PGCLUSTER", "PGCONNECT_TIMEOUT"] {
        assert_eq!(env(&up, name), "not set", "{name}");
    }
    assert_eq!((env(&up, "PGADMIN_DEFAULT_EMAIL"), env(&up, "FINE")), ("kept@example.org".into(), "yes".into()));
    assert_eq!(env(&up, "PGDATABASE"), "app");

    let port = format!("{}\n", own.postgres);
    tandem(&["psql", "-XAtc", "SELECT current_setting('port')"]).expect(0, &[&port]);
    tandem(&["migrate", "status"]).expect(0, &["004_add_indexes"]);
    tandem(&["backup"]).expect(0, &[]);
    tandem(&["check"]).expect(0, &["PGSERVICE ", "ignored", "environment PGHOSTADDR", ".env:4"]);
    // The worst of it: tests that drop a table dropped it in production.
    let test = tandem(&["test", "--migrations", "none", "--", "psql", "-Xc", "DROP TABLE victim"]);
    test.expect(1, &["does not exist"]);
    let script = "python3 -c 'import os; print(sorted(n for n in os.environ if n.startswith(\"PG\")))'";
    let names = tandem(&["test", "--", "sh", "-c", script]);
    names.expect(
        0,
        &["['PGADMIN_DEFAULT_EMAIL', 'PGAPPNAME', 'PGDATABASE', 'PGHOST', 'PGPASSWORD', 'PGPORT', 'PGSERVICEFILE', \
           'PGSYSCONFDIR', 'PGUSER']"],
    );
    // Named by the tests themselves, it is found in no file of the user's.
    std::fs::copy(&service, own.dir().join(".pg_service.conf")).unwrap();
    let named = format!("HOME='{}' psql service=prod -Xc 'DROP TABLE victim'", own.dir().display());
    tandem(&["test", "--migrations", "none", "--", "sh", "-c", &named]).expect(2, &["definition of service"]);
    sql("SELECT x FROM victim").expect(0, &["42\n"]);
    assert_eq!((up.stop(), live.stop()), (0, 0));
}

/// Attached, what makes a connection safe stays, for workers and for Tandem's own sessions alike, and nothing else does.
#[test]
fn what_makes_an_attached_connection_safe_stays() {
    let server = Project::app_with("plain:app", &format!("{ONE}\nmigrations.run = 'none'"));
    let mut serving = Tandem::up(&server);
    let url = said(tandem::run(&server, &["url"])).said.trim().to_owned();
    let guest = Project::app_with("plain:app", &format!("{ONE}\nmigrations.run = 'none'")).without("postgres.port");
    let attached = |more: &[(&str, &str)]| {
        let mut command = command(&guest);
        command.env("DATABASE_URL", &url).envs(more.iter().copied());
        command
    };
    let safe =
        [("PGSSLMODE", "disable"), ("PGCHANNELBINDING", "disable"), ("PGSERVICE", "prod"), ("PGHOSTADDR", "9.9.9.9")];
    let mut up = Tandem::start_as(&guest, attached(&safe));
    up.wait_ready();
    assert_eq!((env(&up, "PGSSLMODE"), env(&up, "PGCHANNELBINDING")), ("disable".into(), "disable".into()));
    assert_eq!((env(&up, "PGSERVICE"), env(&up, "PGHOSTADDR")), ("not set".into(), "not set".into()));
    assert_eq!(up.stop(), 0);
    let rows = said(attached(&safe).arg("check").output().unwrap());
    rows.expect(0, &["PGSSLMODE", "kept", "PGSERVICE", "ignored"]);
    // A server without TLS is refused by Tandem's own sessions as it would be by the workers'.
    let mut strict = attached(&[("PGSSLMODE", "require"), ("TANDEM_POSTGRES__READY_LIMIT", "2s")]);
    strict.env("TANDEM_MIGRATIONS__RUN", "seaorm");
    let refused = up_as(&guest, strict);
    assert_ne!(refused.code, 0);
    assert!(refused.said.contains("TLS"), "{}", refused.said);
    assert_eq!(serving.stop(), 0);
}

/// A tool of the environment, its directory, `.env`, `[workers.env]`, the user: all as workers have them.
#[test]
fn a_migration_a_hook_and_a_companion_get_what_workers_get() {
    let script = "import os, sys, app_module; \
                  print(os.environ['SECRET_KEY'], os.environ['DB_PORT'], os.environ['POSTGRES_PORT'], os.getcwd(), os.getuid(), \
                  'VIRTUAL_ENV' in os.environ)";
    let project = Project::app_with("plain:app", &format!("{ONE}\nmigrations.run = ['sh', 'migrate.sh']"));
    project.reconfigure(|text| {
        let app_dir = project.dir().join("backend");
        let text: String = text.lines().filter(|line| !line.starts_with("workers.app_dir")).map(|line| format!("{line}\n")).collect();
        format!(
            "workers.app_dir = '{}'\nhooks.after_ready = ['sh', 'told.sh', 'hook']\n{text}\n\
             [workers.env]\nDB_PORT = '${{PGPORT}}'\nDB_LITERAL = '$${{PGPORT}} ${{HOME}}'\n\
             [[process]]\nname = 'queue'\ncommand = ['sh', 'told.sh', 'queue']\nenv = {{ QUEUE = 'q${{PGDATABASE}}' }}\n",
            app_dir.display()
        )
    });
    project.write("backend/plain.py", &fs::read_to_string(tandem_fixture("plain.py")).unwrap());
    project.write("backend/app_module.py", "");
    // Only there does Alembic's or Django's own file lie: so a migration command runs there.
    project.write("backend/alembic.ini", "");
    project.write("backend/told.py", script);
    project.write("backend/migrate.sh", "echo migration: $(python told.py); alembic --version\n");
    project.write("told.sh", "echo $1: $(python backend/told.py) $QUEUE; sleep 1000\n");
    project.write(".env", "SECRET_KEY=s3cret\nPOSTGRES_SERVER=live\n");
    let mut tandem = Tandem::up(&project);
    let (port, uid) = (project.postgres, env_uid(&tandem));
    let words = format!("s3cret {port} {port}");
    let (dir, below) = (project.dir().display(), project.dir().join("backend"));
    tandem.wait_log(&format!("migration: {words} {} {uid} True", below.display()));
    tandem.wait_log("alembic 1.");
    tandem.wait_log(&format!("hook: {words} {dir} {uid} True"));
    tandem.wait_log(&format!("queue: {words} {dir} {uid} True qapp"));
    assert_eq!(env(&tandem, "DB_PORT"), port.to_string());
    assert_eq!(env(&tandem, "DB_LITERAL"), "${PGPORT} ${HOME}");
    assert_eq!(env(&tandem, "POSTGRES_SERVER"), "127.0.0.1");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

/// Whatever the command is: pytest would find the directory by itself, a script of the project's does not.
#[test]
fn tests_import_the_application_from_any_directory() {
    let project = Project::app_with("plain:app", "");
    project.write("own/own_module.py", "");
    let mut command = command(&project);
    command.env("PYTHONPATH", project.dir().join("own"));
    let script = "import plain, own_module, pytest_tandem";
    said(command.args(["test", "--migrations", "none", "--", "python", "-c", script]).output().unwrap()).expect(0, &[]);
}

fn tandem_fixture(name: &str) -> std::path::PathBuf {
    crate::common::project::root().join("tests/fixtures/apps").join(name)
}

/// The user that the worker runs as.
fn env_uid(tandem: &Tandem) -> u32 {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(format!("/proc/{}", tandem.workers()[0])).unwrap().uid()
}

#[test]
fn the_scheme_is_that_of_the_driver_that_is_installed() {
    let project = Project::app_with("plain:app", "migrations.run = 'none'");
    let script = "import os, sqlalchemy; print(os.environ['DATABASE_URL'].split(':')[0], sqlalchemy.create_engine(os.environ['DATABASE_URL']).driver)";
    let run = |set: &str| said(tandem::run(&project, &["test", "--set", set, "--", "python", "-c", script]));
    run("test.pool=1").expect(0, &["postgresql+psycopg2 psycopg2\n"]);
    project.write(".env", "DATABASE_URL=postgresql+asyncpg://u@localhost/db\n");
    let script = "import os; print(os.environ['DATABASE_URL'].split(':')[0])";
    let run = |set: &str| said(tandem::run(&project, &["test", "--set", set, "--", "python", "-c", script]));
    run("test.pool=1").expect(0, &["postgresql+asyncpg\n"]);
    run("workers.url_scheme=postgresql").expect(0, &["postgresql\n"]);
}

#[test]
fn a_command_ends_when_it_ends_and_what_fails_says_how() {
    let lines = format!(
        "{ONE}\nmigrations.run = ['sh', '-c', 'sleep 1000 & echo made; exit 0']\nmigrations.limit = '60s'\n\
         hooks.after_ready = ['sh', '-c', \"\"\"sleep 1000 & echo one\n  exit 3\"\"\"]\nhooks.limit = '60s'"
    );
    let project = Project::app_with("plain:app", &lines);
    let mut tandem = Tandem::start(&project);
    tandem.wait_log("ended with exit status 3: one");
    assert!(tandem.log().contains("(`sh -c sleep 1000 & echo one …`)"), "{}", tandem.log());
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    wait_for("what they left", || tandem::left_in(project.dir()).is_empty());

    let refused = |run: &str, code: i32, words: &[&str]| {
        let project =
            Project::app_with("plain:app", &format!("{ONE}\nmigrations.run = {run}\nmigrations.limit = '2s'"));
        let refused = up_as(&project, command(&project));
        refused.expect(code, words);
        refused.said
    };
    let said = refused("['nosuchprog', 'x']", 78, &["migrations.run: nosuchprog"]);
    assert!(!said.contains("database system is ready"), "{said}");
    refused("['./missing.sh']", 78, &["migrations.run: ", "missing.sh is not a file"]);
    refused("['sh', '-c', 'sleep 1000']", 1, &["did not end within 2s (migrations.limit) and was killed"]);
    let script = "['sh', '-c', 'echo to stdout; echo to stderr >&2; exit 9']";
    // The last line goes on with where the documentation explains it.
    let said = refused(script, 1, &["tandem: migrations: `sh -c", "exit status 9\n    to std"]);
    for line in ["    to stdout", "    to stderr"] {
        let is_shown = said.lines().any(|said| said == line || said.starts_with(&format!("{line} (see: ")));
        assert!(is_shown, "{line} is not in:\n{said}");
    }
}
