//! The watch over the live server while `tandem test` runs, on a server with very many sessions.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::common::project::{Project, venv};
use crate::common::refusal::said;
use crate::common::tandem::{self, Tandem, command, wait_for};

/// Sessions of the live application, some of which come and go all the time.
const SESSIONS: usize = 250;
/// How long the tests' session may live: it would last for ever.
const FOUND: Duration = Duration::from_secs(60);

const OPEN: &str = "
import sys, threading, psycopg2
where = dict(host='127.0.0.1', port=sys.argv[1], user='app', password='p', dbname='app')
kept = [psycopg2.connect(**where) for _ in range(int(sys.argv[2]))]
def come_and_go():
    while True:
        psycopg2.connect(**where).close()
for _ in range(2):
    threading.Thread(target=come_and_go, daemon=True).start()
print('open', flush=True)
sys.stdin.read()
";

/// A live application, ended on drop.
struct Application(Child);

impl Application {
    fn start(project: &Project) -> Self {
        let mut command = tandem::command_as(&venv().join("bin/python").display().to_string(), project.dir());
        command.args(["-c", OPEN, &project.postgres.to_string(), &SESSIONS.to_string()]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "open\n");
        Self(child)
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        let _ = self.0.stdin.take().map(|mut stdin| stdin.flush());
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn among_very_many_sessions_that_of_the_tests_is_found_and_no_other_is_ended() {
    let lines = "workers.count = 1\ntest.pool = 1\npostgres.password = 'p'\nmigrations.run = 'none'\n\
                 postgres.max_connections = 400\npostgres.shared_buffers = '32MB'";
    let project = Project::app_with("plain:app", lines);
    let mut live = Tandem::up(&project);
    let application = Application::start(&project);
    let count = || {
        let output =
            tandem::run(&project, &["psql", "-XAtc", "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app'"]);
        String::from_utf8_lossy(&output.stdout).trim().parse::<usize>().unwrap_or_default()
    };
    assert!(count() > SESSIONS, "{}", count());
    let (port, socket) = (project.postgres, project.state().join("run/postgres"));
    for host in ["127.0.0.1", &socket.display().to_string()] {
        let script = format!("PGPASSWORD=p exec psql -Xqh '{host}' -p {port} -U app app -c 'SELECT pg_sleep(1000)'");
        let began = Instant::now();
        let run = said(command(&project).args(["test", "--", "sh", "-c", &script]).output().unwrap());
        run.expect(78, &["this project's own live database", "(`psql`)"]);
        assert!(began.elapsed() < FOUND, "{:?}", began.elapsed());
        // What the server says of a session that has ended by itself meanwhile is no warning to anybody.
        assert!(!run.said.contains("is not a PostgreSQL backend"), "{}", run.said);
    }
    // A suite that keeps to its own server runs to its end beside all of them.
    let run = said(command(&project).args(["test", "--", "psql", "-XAtc", "SELECT 6 * 7"]).output().unwrap());
    run.expect(0, &["42\n"]);
    assert!(count() > SESSIONS, "the application's sessions are still there");
    drop(application);
    wait_for("the end of its sessions", || count() < SESSIONS);
    assert_eq!(live.stop(), 0, "{}", live.log());
}
