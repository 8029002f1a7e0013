//! A plain pytest beside the project's live database, which it must not reach, however the application finds its address.

use std::os::unix::process::ExitStatusExt;
use std::process::Output;

use crate::common::project::Project;
use crate::common::python::{environment_without, pytest};
use crate::common::refusal::{Refusal, run, said};
use crate::common::tandem::Tandem;

/// An application that opens its database as it is imported, and tests that empty its table.
const APPLICATION: &str = "
import os, psycopg2
url = os.environ.get('DATABASE_URL', '')
places = {name: os.environ.get(name) for name in ('DATABASE_URL', 'PGPORT', 'POSTGRES_PORT', 'PGSERVICE')}
with open('imported', 'a') as file:
    file.write(repr(places) + '\\n')
def empty():
    connection = psycopg2.connect(url.replace('+psycopg2', ''))
    with connection, connection.cursor() as cursor:
        cursor.execute('SELECT pg_advisory_xact_lock(1); CREATE TABLE IF NOT EXISTS rows (id int); DELETE FROM rows')
    connection.close()
";
const TESTS: &str = "
import shop
def test_empty(database_url):
    shop.empty()
def test_without_a_database():
    shop.empty()
";

/// A project that runs, with rows in its database.
fn live() -> (Project, Tandem) {
    let project = Project::app_with("plain:app", "migrations.run = 'none'\nworkers.count = 1\n");
    let tandem = Tandem::up(&project);
    sql(&project, "CREATE TABLE rows AS SELECT generate_series(1, 1000) AS id").expect(0, &[]);
    environment_without(&project.dir().join("env"), &[]);
    project.write("shop.py", APPLICATION);
    project.write("conftest.py", "import shop\n");
    project.write("test_shop.py", TESTS);
    (project, tandem)
}

fn sql(project: &Project, text: &str) -> Refusal {
    run(project, &["psql", "-XAtqc", text])
}

fn digest(project: &Project) -> String {
    let text = "SELECT count(*) || md5(string_agg(id::text, ',' ORDER BY id)) || count(DISTINCT xmin::text) FROM rows";
    let said = sql(project, text);
    said.expect(0, &["1000"]);
    said.said
}

/// pytest as somebody starts it in whose shell the live database stands under all its names.
fn plain(project: &Project, args: &[&str]) -> Output {
    let url = run(project, &["url"]);
    let mut command = pytest(&project.dir().join("env"), project.dir(), args);
    command.env("DATABASE_URL", url.said.trim()).env("PGSERVICE", "prod").env("PGPORT", project.postgres.to_string());
    command.env("PGHOST", "127.0.0.1").env("PGPASSWORD", "x").output().unwrap()
}

#[test]
fn an_application_that_reads_its_address_at_import_never_touches_the_live_database() {
    let (project, mut tandem) = live();
    let before = digest(&project);
    let live = project.postgres.to_string();
    for (args, expected) in [
        (&[][..], "2 passed"),
        (&["-n", "2"], "2 passed"),
        (&["--collect-only"], "2 tests collected"),
        (&["test_shop.py::test_without_a_database"], "1 passed"),
        (&["--fixtures", "-q"], "database_url"),
    ] {
        said(plain(&project, args)).expect(0, &[expected]);
        let imported = std::fs::read_to_string(project.dir().join("imported")).unwrap();
        std::fs::remove_file(project.dir().join("imported")).unwrap();
        assert!(imported.contains("'PGSERVICE': None") && !imported.contains(&live), "{args:?}: {imported}");
        assert_eq!(digest(&project), before, "{args:?}");
    }
    assert_eq!(tandem.stop(), 0);
}

#[test]
fn a_plain_pytest_that_would_reach_the_live_database_is_refused_or_ended() {
    let (project, mut tandem) = live();
    let before = digest(&project);
    // By a variable that Tandem does not know.
    let url = run(&project, &["url"]).said.trim().to_owned();
    let mut command = pytest(&project.dir().join("env"), project.dir(), &[]);
    let refused = said(command.env("SHOP_PORT", project.postgres.to_string()).output().unwrap());
    refused.expect(4, &["SHOP_PORT would lead the tests to this project's own live database"]);
    let mut command = pytest(&project.dir().join("env"), project.dir(), &["--collect-only"]);
    let refused = said(command.env("SHOP_PORT", project.postgres.to_string()).output().unwrap());
    refused.expect(4, &["SHOP_PORT would lead"]);

    // By an address of its own.
    let reaching = format!("import psycopg2, time\nlive = psycopg2.connect({url:?})\n");
    project.write("test_shop.py", &format!("{reaching}def test_it():\n    time.sleep(1000)\n"));
    let ended = plain(&project, &[]);
    assert_eq!(ended.status.signal(), Some(9));
    let words = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(words.contains("was connected to this project's own live database"), "{words}");
    // Before there was a server of the tests: then nothing has run, and nothing is ended.
    project.write("early.py", &reaching);
    project.write("test_shop.py", "def test_it():\n    assert False, 'it ran'\n");
    let early = pytest(&project.dir().join("env"), project.dir(), &["-p", "early"]).output().unwrap();
    let refused = said(early);
    refused.expect(4, &["is already connected to this project's own live database", "no test was run"]);
    assert!(!refused.said.contains("it ran"), "{}", refused.said);
    assert_eq!(digest(&project), before);
    assert_eq!(tandem.stop(), 0);
}
