//! pytest as a person or an editor starts it, with what the wheel installs: nothing is around it.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::harness::{Suite, place, wait_gone};
use crate::common::python::{environment_without, pytest};
use crate::common::refusal::{Refusal, said};
use crate::common::tandem::{left_in, wait_for};

/// Tests that write to their databases, and say which server they have.
const TESTS: &str = "
import os, psycopg2, pytest
from urllib.parse import urlsplit

@pytest.mark.parametrize('number', range(8))
def test_own(database_url, number):
    connection = psycopg2.connect(database_url.replace('+psycopg2', ''))
    with connection, connection.cursor() as cursor:
        cursor.execute('SELECT count(*) FROM api_keys')  # the migrations are in
        cursor.execute('CREATE TABLE mine (id int)')     # and no other test was here
    connection.close()
    with open(os.environ['SERVERS'], 'a') as file:
        file.write('%s %s\\n' % (urlsplit(database_url).port, os.environ['TANDEM_TEST_SOCKET']))
";

/// A project with an environment in `env`, without the packages `without`.
fn project(without: &[&str]) -> Suite {
    let suite = Suite::bare();
    suite.write("tandem.toml", "migrations.run = 'seaorm'\n");
    environment_without(&suite.path("env"), without);
    suite
}

/// A plain pytest in the directory `dir` of the suite.
fn plain(suite: &Suite, dir: &str, args: &[&str]) -> Command {
    let mut command = pytest(&suite.path("env"), &suite.path(dir), args);
    command.env("SERVERS", suite.path("servers"));
    command
}

fn run(suite: &Suite, args: &[&str]) -> Refusal {
    said(plain(suite, "", args).output().unwrap())
}

/// The servers that the tests had, each by its port and its socket.
fn servers(suite: &Suite) -> Vec<(String, String)> {
    let text = fs::read_to_string(suite.path("servers")).unwrap_or_default();
    let mut servers: Vec<_> = text
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(port, socket)| (port.into(), socket.into()))
        .collect();
    servers.sort();
    servers.dedup();
    let _ = fs::remove_file(suite.path("servers"));
    servers
}

#[test]
fn a_plain_pytest_has_one_server_for_its_session_wherever_it_is_started() {
    let suite = project(&[]);
    suite.write("tests/unit/test_own.py", TESTS);
    let target = "tests/unit/test_own.py::test_own";
    for (dir, args) in [
        ("", &["-v"][..]),
        ("tests/unit", &["-n", "4"]),
        // As editors do: first the list, then one by one.
        ("", &["--rootdir", ".", &format!("{target}[3]")]),
        ("/", &[&suite.path(target).display().to_string()]),
    ] {
        let run = said(plain(&suite, dir, args).output().unwrap());
        run.expect(0, &["tandem: PostgreSQL at 127.0.0.1:", " passed"]);
        let servers = servers(&suite);
        assert_eq!(servers.len(), 1, "{servers:?}\n{}", run.said);
        wait_gone(&place(&servers[0].1));
    }
    // The list costs no server, and the address in it is nobody's.
    suite.write("conftest.py", "import os\nprint('AT', os.environ['DATABASE_URL'], os.environ['PGPORT'])\n");
    let list = run(&suite, &["--collect-only", "-q", "-s"]);
    list.expect(0, &["test_own.py::test_own[3]", "AT postgresql+psycopg2://", "@127.0.0.1:1/", "8 tests collected"]);
}

#[test]
fn two_sessions_of_pytest_at_once_have_a_server_each() {
    let suite = project(&[]);
    let wait = "
import os, time
def test_meets_the_other(database_url):
    with open(os.environ['SERVERS'], 'a') as file:
        file.write('%s %s\\n' % (os.environ['PGPORT'], os.environ['TANDEM_TEST_SOCKET']))
    began = time.monotonic()
    while len(open(os.environ['SERVERS']).readlines()) < 2:
        assert time.monotonic() - began < 100
        time.sleep(0.01)
";
    suite.write("test_two.py", wait);
    let (one, two) = std::thread::scope(|scope| {
        let one = scope.spawn(|| run(&suite, &[]));
        (run(&suite, &[]), one.join().unwrap())
    });
    one.expect(0, &["1 passed"]);
    two.expect(0, &["1 passed"]);
    let servers = servers(&suite);
    assert!(servers.len() == 2 && servers[0].0 != servers[1].0, "{servers:?}");
    servers.iter().for_each(|(_, socket)| wait_gone(&place(socket)));
}

#[test]
fn a_plain_pytest_that_is_killed_leaves_nothing() {
    let suite = project(&[]);
    suite.write(
        "test_long.py",
        "
import os, subprocess, time
def test_long(database_url):
    if not os.fork():  # it holds what its parent holds
        open('forked', 'w').write(str(os.getpid()))
        time.sleep(1000)
    subprocess.Popen(['sleep', '1000'], start_new_session=True)
    open('socket.new', 'w').write(os.environ['TANDEM_TEST_SOCKET'])
    os.rename('socket.new', 'socket')
    time.sleep(1000)
",
    );
    for workers in ["0", "2"] {
        let mut pytest = plain(&suite, "", &["-n", workers]).stdout(Stdio::null()).spawn().unwrap();
        wait_for("the test", || suite.path("socket").exists() && !suite.read("forked").is_empty());
        let place = place(&suite.read("socket"));
        fs::remove_file(suite.path("socket")).unwrap();
        pytest.kill().unwrap();
        pytest.wait().unwrap();
        wait_gone(&place);
        // xdist's worker had the socket's variable from its start on, and what it forked has: that is gone already.
        let _ = kill(Pid::from_raw(suite.read("forked").parse().unwrap()), Signal::SIGKILL);
        fs::remove_file(suite.path("forked")).unwrap();
        wait_for("the end of all", || left_in(suite.dir()).is_empty());
    }
}

#[test]
fn without_a_configuration_a_fixture_that_is_asked_for_starts_the_server() {
    let suite = project(&[]);
    fs::remove_file(suite.path("tandem.toml")).unwrap();
    suite.write("test_plain.py", "import os, sys\ndef test_it():\n    assert 'pytest_tandem.starting' not in sys.modules\n    assert 'http.client' not in sys.modules and not os.environ.get('PGPORT')\n");
    let nothing = run(&suite, &["test_plain.py"]);
    nothing.expect(0, &["1 passed"]);
    assert!(!nothing.said.contains("tandem:"), "{}", nothing.said);
    // Nor for a configuration that another user could have put above them.
    suite.write("shared/tandem.toml", "migrations.run = ['false']\n");
    fs::set_permissions(suite.path("shared"), fs::Permissions::from_mode(0o777)).unwrap();
    suite.write("shared/mine/test_plain.py", &fs::read_to_string(suite.path("test_plain.py")).unwrap());
    run(&suite, &["shared/mine/test_plain.py"]).expect(0, &["1 passed"]);
    suite.write("test_own.py", &TESTS.replace("SELECT count(*) FROM api_keys", "SELECT 1"));
    run(&suite, &["test_own.py"]).expect(0, &["8 passed"]);
    let alone = servers(&suite);
    assert_eq!(alone.len(), 1, "{alone:?}");
    run(&suite, &["-n", "2", "test_own.py"]).expect(0, &["8 passed"]);
    alone.iter().chain(&servers(&suite)).for_each(|(_, socket)| wait_gone(&place(socket)));
}

#[test]
fn a_project_can_do_without_and_the_plugin_is_loaded_once() {
    let suite = project(&[]);
    suite.write("test_own.py", TESTS);
    suite.write("test_plain.py", "import os\ndef test_plain():\n    assert 'PGPORT' not in os.environ\n");
    let off = run(&suite, &["-p", "no:tandem"]);
    off.expect(1, &["fixture 'database_url' not found", "1 passed, 8 errors"]);
    suite.write("pytest.ini", "[pytest]\ntandem = false\n");
    run(&suite, &[]).expect(1, &["start the tests with `tandem test -- pytest", "8 errors"]);
    // It stands aside of `tandem test` in any case, which brings the plugin too.
    let (python, servers) = (suite.path("env/bin/python"), suite.path("servers"));
    let args =
        ["--", &python.display().to_string(), "-m", "pytest", "-p", "no:cacheprovider", "-n", "2", "test_own.py"];
    let mut command = suite.command(&args);
    said(command.env("SERVERS", servers).output().unwrap()).expect(0, &["8 passed"]);
}

#[test]
fn a_harness_that_cannot_start_ends_pytest_with_its_reason() {
    let suite = project(&[]);
    suite.write("conftest.py", "raise SystemExit('the application was imported')\n");
    suite.write("tandem.toml", "workers.cuont = 1\n");
    let wrong = run(&suite, &[]);
    wrong.expect(4, &["workers.cuont", "pytest -p no:tandem"]);
    suite.write("tandem.toml", "migrations.run = ['sh', '-c', 'echo no such table; exit 3']\n");
    run(&suite, &[]).expect(4, &["no such table", "pytest -p no:tandem"]);
    fs::remove_file(suite.path("env/bin/tandem")).unwrap();
    let mut command = plain(&suite, "", &[]);
    said(command.env("PATH", "/usr/bin:/bin").output().unwrap()).expect(4, &["tandem is neither in"]);
    // Another program of the same name.
    symlink("/bin/echo", suite.path("env/bin/tandem")).unwrap();
    run(&suite, &[]).expect(4, &["did not start a server"]);
}

#[test]
fn the_database_of_a_failed_test_is_opened_with_one_command() {
    let suite = project(&[]);
    suite.write(
        "test_bad.py",
        "import os, psycopg2\ndef test_bad(database_url):\n    connection = psycopg2.connect(database_url.replace('+psycopg2', ''))\n    with connection, connection.cursor() as cursor:\n        cursor.execute(\"CREATE TABLE seen AS SELECT 'what it saw' AS what\")\n    connection.close()\n    open('socket', 'w').write(os.environ['TANDEM_TEST_SOCKET'])\n    assert False\n",
    );
    let look = || {
        let mut psql = crate::common::tandem::command_in(suite.dir());
        said(psql.args(["psql", "--test", "bad", "-XAtc", "TABLE seen"]).output().unwrap())
    };
    run(&suite, &[]).expect(1, &["databases kept by tandem", "--tandem-keep"]);
    wait_gone(&place(&suite.read("socket")));
    look().expect(1, &["no test called", "has a database now"]);

    let python = suite.path("env/bin/python").display().to_string();
    let under = || {
        let args = ["--keep-on-failure", "--", &python, "-m", "pytest", "-p", "no:cacheprovider"];
        said(suite.command(&args).output().unwrap())
    };
    let plain = || run(&suite, &["--tandem-keep"]);
    for failed in [&plain as &dyn Fn() -> Refusal, &under] {
        let failed = failed();
        failed.expect(1, &["open it:  tandem psql --test test_bad.py::test_bad", "end it:  kill -INT "]);
        look().expect(0, &["what it saw\n"]);
        let pid = failed.said.split("kill -INT ").nth(1).unwrap().lines().next().unwrap().trim().parse().unwrap();
        kill(Pid::from_raw(pid), Signal::SIGINT).unwrap();
        wait_gone(&place(&suite.read("socket")));
    }
}
