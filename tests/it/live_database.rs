//! Tests never touch a database that is not theirs: neither the project's own, live one, nor any that its environment names.

use std::process::Output;

use crate::common::project::Project;
use crate::common::refusal::{Refusal, names, said};
use crate::common::tandem::{self, Tandem, command};

/// A project whose live server runs, with two rows in it.
struct Live {
    project: Project,
    tandem: Tandem,
}

impl Live {
    fn new(lines: &str) -> Self {
        let project = Project::app_with(
            "plain:app",
            &format!("workers.count = 1\ntest.pool = 1\npostgres.password = 'p'\n{lines}"),
        );
        project.write("suite.py", SUITE);
        let tandem = Tandem::up(&project);
        let live = Self { project, tandem };
        live.sql("CREATE TABLE IF NOT EXISTS users (name text); INSERT INTO users VALUES ('ann'), ('bob')");
        live
    }

    fn sql(&self, statement: &str) -> String {
        let run = said(tandem::run(&self.project, &["psql", "-XAtc", statement]));
        run.expect(0, &[]);
        run.said
    }

    fn test(&self, environment: &[(&str, &str)], args: &[&str]) -> Refusal {
        let mut command = command(&self.project);
        said(command.arg("test").args(args).envs(environment.iter().copied()).output().unwrap())
    }

    /// Both rows are there, and Tandem stops well.
    fn end(mut self) {
        assert_eq!(self.sql("SELECT count(*) FROM users"), "2\n");
        assert_eq!(self.tandem.stop(), 0);
    }
}

/// Deletes all users of the database that some variables say, as a suite's cleaning up does.
const SUITE: &str = r#"
import os, sys, psycopg2
def dotenv():
    lines = [line.strip().split("=", 1) for line in open(".env")] if os.path.exists(".env") else []
    return {**dict(lines), **os.environ}  # pydantic-settings: the environment beats env_file
value = dotenv().__getitem__
if sys.argv[1] == "url":
    url = value(sys.argv[2])
    database = psycopg2.connect("postgresql" + url[url.index("://"):])
else:
    host, port, user, password, name = (value(name) for name in sys.argv[1:])
    database = psycopg2.connect(host=host, port=port, user=user, password=password, dbname=name)
with database, database.cursor() as cursor:
    cursor.execute("CREATE TABLE IF NOT EXISTS users (name text)")
    cursor.execute("DELETE FROM users")
    print("deleted", cursor.rowcount)
    if "LINGER" in os.environ:
        cursor.execute("COMMIT; SELECT pg_sleep(1000)")
"#;
const NAMES: [&str; 5] = ["POSTGRES_SERVER", "POSTGRES_PORT", "POSTGRES_USER", "POSTGRES_PASSWORD", "POSTGRES_DB"];

#[test]
fn an_application_that_reads_other_names_than_database_url_gets_the_tests_server() {
    let live = Live::new(
        "migrations.run = ['python', 'suite.py', 'POSTGRES_HOST', 'POSTGRES_PORT', 'PGUSER', 'POSTGRES_PASSWORD', 'POSTGRES_DB']",
    );
    let port = live.project.postgres.to_string();
    let dotenv = format!(
        "POSTGRES_SERVER=localhost\nPOSTGRES_PORT={port}\nPOSTGRES_USER=app\nPOSTGRES_PASSWORD=p\nPOSTGRES_DB=app\n\
         SQLALCHEMY_DATABASE_URI=postgresql+psycopg2://app:p@localhost:{port}/app\n\
         DB_PORT=${{POSTGRES_PORT}}\npostgres_port={port}\nBUILT_URL=postgresql://${{POSTGRES_USER}}:p@${{POSTGRES_SERVER}}:${{POSTGRES_PORT}}/app\n"
    );
    live.project.write(".env", &dotenv);
    let [server, port_name, user, password, database] = NAMES;
    let by_names = ["--", "python", "suite.py", server, port_name, user, password, database];
    // From `.env`, and exported; the migrations read them too.
    live.test(&[], &by_names).expect(0, &["deleted 0\n"]);
    live.test(&[], &[&by_names[..4], &["postgres_port"], &by_names[5..]].concat()).expect(0, &["deleted 0\n"]);
    live.test(&[("POSTGRES_PORT", &port), ("POSTGRES_SERVER", "127.0.0.1")], &by_names).expect(0, &["deleted 0\n"]);
    // Other names: whole addresses, and what `.env` puts together.
    for name in ["SQLALCHEMY_DATABASE_URI", "BUILT_URL", "REPORTS_DSN"] {
        let exported = format!("postgres://app:p@localhost:{port}/app");
        let run = live.test(&[("REPORTS_DSN", &exported)], &["--", "python", "suite.py", "url", name]);
        run.expect(0, &["deleted 0\n", "REPORTS_DSN", "named another database"]);
    }
    let dsn = format!("host=localhost port={port} user=app password=p dbname=app");
    let script = "import os, psycopg2; psycopg2.connect(os.environ['LIBPQ_DSN']).cursor().execute('TABLE users')";
    live.test(&[("LIBPQ_DSN", &dsn)], &["--migrations", "none", "--", "python", "-c", script])
        .expect(1, &["\"users\" does not exist"]);
    live.test(&[], &["--", "python", "suite.py", "PGHOST", "DB_PORT", "PGUSER", "PGPASSWORD", "PGDATABASE"])
        .expect(0, &["deleted 0\n"]);
    live.end();
}

#[test]
fn a_session_of_the_tests_on_the_live_server_is_ended_and_fails_the_run() {
    let live = Live::new("migrations.run = 'none'");
    let port = live.project.postgres.to_string();
    live.project.write("suite.py", SUITE.replace("cursor.execute(\"DELETE FROM users\")", "pass").as_str());
    let names = ["OTHER_HOST", "OTHER_PORT", "OTHER_USER", "OTHER_PASSWORD", "OTHER_DB"];
    let socket = live.project.state().join("run/postgres").display().to_string();
    for host in ["127.0.0.1", &socket] {
        // As an application that has the address from a file of its own.
        let values = [host, &port, "app", "p", "app"];
        let own: String = names.iter().zip(values).map(|(name, value)| format!("export {name}={value}\n")).collect();
        live.project.write("suite.sh", &format!("{own}export LINGER=1\nexec python suite.py {}\n", names.join(" ")));
        // In the command, in a process of its own session below it, in the migrations.
        let words = "sh suite.sh";
        let detached = format!("setsid {words} & sleep 1000");
        for args in [
            vec!["--", "sh", "suite.sh"],
            vec!["--", "sh", "-c", &detached],
            vec!["--rebuild", "--migrations", words, "--", "true"],
        ] {
            let run = live.test(&[], &args);
            run.expect(78, &["this project's own live database", &format!("(port {port})"), "(`python", "${PGPORT}"]);
        }
        assert_eq!(
            live.sql(
                "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(1000)' AND pid <> pg_backend_pid()"
            ),
            "0\n"
        );
    }
    // Short ones too, as far as they can be seen: a statement of psql is ended, or has ended before it was looked at.
    let script = format!(
        "i=0; while [ $((i += 1)) -lt 1000 ]; do \
         PGPASSWORD=p psql -Xqh 127.0.0.1 -p {port} -U app app -c 'SELECT pg_sleep(0.03)'; done"
    );
    let run = live.test(&[], &["--", "sh", "-c", &script]);
    run.expect(78, &["(`psql`)"]);
    // Sessions of others, the live application's for one, are none of the tests' business.
    live.test(&[], &["--", "psql", "-XAtc", "SELECT 6 * 7"]).expect(0, &["42\n"]);
    live.end();
}

#[test]
fn a_session_of_the_tests_on_the_server_that_is_attached_to_fails_the_run_too() {
    let live = Live::new("migrations.run = 'none'");
    let port = live.project.postgres.to_string();
    let other = Project::app_with("plain:app", "workers.count = 1\ntest.pool = 1\nmigrations.run = 'none'");
    other.write(".env", &format!("DATABASE_URL=postgres://app:p@localhost:{port}/app\n"));
    let script =
        format!("PGPASSWORD=p psql -Xqh localhost -p {port} -U app app -c 'SELECT pg_sleep(1000)'; sleep 1000");
    let test = |args: &[&str]| said(command(&other).arg("test").args(args).output().unwrap());
    test(&["--", "sh", "-c", &script]).expect(78, &["names (localhost, port", "(`psql`)"]);
    // What leads there is refused before.
    let named = said(
        command(&other)
            .args(["test", "--", "true"])
            .env("DB_HOST", "localhost")
            .env("DB_PORT", &port)
            .output()
            .unwrap(),
    );
    named.expect(78, &["DB_PORT would lead the tests to"]);
    test(&["--", "psql", "-XAtc", "SELECT 6 * 7"]).expect(0, &["42\n"]);
    // Nor does the stack beside the tests go there.
    let url = format!("postgres.url=postgres://app:p@localhost:{port}/app");
    let count = ["--workers", "--set", &url, "--", "psql", "-XAtc", "SELECT 6 * 7"];
    test(&count).expect(0, &["42\n"]);
    live.end();
}

#[test]
fn migrations_that_leave_the_template_empty_are_an_error_that_says_what_was_read() {
    let project = Project::app_with("plain:app", "test.pool = 1\nmigrations.run = ['python', 'manage.py', 'migrate']");
    // As a settings file without these variables does: into SQLite.
    let manage = "import os, sqlite3, psycopg2\n\
                  names = ('DB_HOST', 'DB_PORT', 'DB_USER', 'DB_PASSWORD', 'DB_NAME')\n\
                  host, port, user, password, name = (os.environ.get(name) for name in names)\n\
                  other = os.environ.get('DB') != 'postgres'\n\
                  database = sqlite3.connect('x.sqlite') if other else psycopg2.connect(host=host, port=port, user=user, password=password, dbname=name)\n\
                  database.cursor().execute('CREATE TABLE IF NOT EXISTS made (x int)')\n\
                  database.commit()\n";
    project.write("manage.py", manage);
    let count = ["test", "--", "psql", "-XAtc", "SELECT count(*) FROM made"];
    let run = || -> Output { tandem::run(&project, &count) };
    said(run())
        .expect(78, &["`python manage.py migrate` changed nothing", "DATABASE_URL", "[workers.env]", "\"none\""]);
    let mut tandem = Tandem::up(&project);
    tandem.wait_log("WARN migrations: `python manage.py migrate` succeeded, and database app has no table");
    assert_eq!(tandem.stop(), 0);
    // The same table for `up` and for tests.
    project.write(".env", "DB=postgres\n");
    project.reconfigure(|text| {
        format!("{text}\n[workers.env]\nDB_HOST = '${{PGHOST}}'\nDB_PORT = '${{PGPORT}}'\nDB_USER = '${{PGUSER}}'\nDB_PASSWORD = '${{PGPASSWORD}}'\nDB_NAME = '${{PGDATABASE}}'\n")
    });
    said(run()).expect(0, &["0\n"]);
    let mut tandem = Tandem::up(&project);
    said(tandem::run(&project, &["psql", "-XAtc", "SELECT count(*) FROM made"])).expect(0, &["0\n"]);
    assert_eq!(tandem.stop(), 0);
}

#[test]
fn a_variable_that_leads_to_the_live_database_is_refused_before_anything_runs() {
    let live = Live::new("migrations.run = 'none'");
    let port = live.project.postgres.to_string();
    let address = format!("127.0.0.1:{port}");
    let ran = live.project.dir().join("ran");
    // A session of a millisecond has emptied a table before it is seen.
    for (name, value) in [("DB_PORT", &port), ("DATABASE__ADDRESS", &address)] {
        let run = live.test(&[(name, value)], &["--", "touch", "ran"]);
        run.expect(78, &[name, "this project's own live database", "${PGPORT}", "[workers.env]"]);
    }
    live.project.write(".env", &format!("DB_HOST=localhost\nDB_PORT={port}\n"));
    live.test(&[], &["--", "touch", "ran"]).expect(78, &["DB_PORT would lead the tests to"]);
    live.test(&[], &["--migrations", "touch ran", "--", "true"]).expect(78, &["DB_PORT would lead the tests to"]);
    assert!(!ran.exists());
    // Mapped, or taken away, it leads nowhere.
    live.test(&[], &["--set", "workers.env.DB_PORT=${PGPORT}", "--", "sh", "-c", "[ $DB_PORT = $PGPORT ]"])
        .expect(0, &[]);
    live.test(&[("DB_PORT", "")], &["--", "true"]).expect(0, &[]);
    live.end();
}

#[test]
fn a_backup_of_the_tests_database_is_none_of_the_projects() {
    let project = Project::app_with(
        "plain:app",
        "workers.count = 1\ntest.pool = 1\nbackup.schedule = '* * * * * *'\nbackup.dir = 'kept'\n",
    );
    let away = project.dir().join("away");
    std::fs::create_dir(&away).unwrap();
    project.configure(&format!("backup.destinations = ['file://{}']", away.display()));
    // By a suite that tries its backups, and by the schedule of the stack beside it: the suite waits until that has none.
    let mut command = command(&project);
    let suite = "\"$TANDEM\" backup && \"$TANDEM\" backup --dir asked && \"$TANDEM\" restore latest --yes && \
                 log=$(dirname \"$(dirname \"$TANDEM_TEST_SOCKET\")\")/up.log && \
                 timeout 60 sh -c 'until grep -q \"no backup is scheduled\" \"$0\"; do sleep 0.05; done' \"$log\"";
    command.args(["test", "--workers", "--", "sh", "-c", suite]).env("TANDEM", env!("CARGO_BIN_EXE_tandem"));
    command.env("TANDEM_LOG__FILTER", "info,tandem::sidecar=debug");
    said(command.output().unwrap()).expect(0, &["app holds app_backup_20"]);
    assert!(!project.dir().join("kept").exists() && !project.state().join("backups").exists());
    assert_eq!(names(&away), [""; 0]);
    assert!(names(&project.dir().join("asked")).iter().any(|name| name.ends_with(".sql.gz")));
}
