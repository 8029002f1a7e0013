//! A database that Tandem does not run goes away, and an application cannot start without it: it is tried again for as long as
//! the database is away. One that cannot start for a reason of its own ends Tandem.

use crate::common::backups::as_superuser;
use crate::common::project::Project;
use crate::common::tandem::{self, Tandem, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Knocks at the database when its lifespan begins, and takes its time to fail.
const SLOW: &str = "import asyncio, os, socket, urllib.parse

def knock():
    if os.path.exists('broken'):
        raise OSError('it is broken')
    url = urllib.parse.urlsplit(os.environ['DATABASE_URL'])
    socket.create_connection((url.hostname, url.port), 5).close()

async def app(scope, receive, send):
    if scope['type'] == 'lifespan':
        await receive()
        try:
            knock()
        except OSError as error:
            await asyncio.sleep(1.5)
            await send({'type': 'lifespan.startup.failed', 'message': f'cannot start: {error}'})
            return
        await send({'type': 'lifespan.startup.complete'})
        await receive()
        await send({'type': 'lifespan.shutdown.complete'})
        return
    await send({'type': 'http.response.start', 'status': 200, 'headers': []})
    await send({'type': 'http.response.body', 'body': b'ok'})
";

/// Knocks when it is imported.
const AT_IMPORT: &str = "import slow\nslow.knock()\napp = slow.app\n";

/// A failure or two in a second would be one too many.
const LINES: &str = "migrations.run = 'none'\nworkers.count = 1\npool.size = 1\npool.overflow = 1\n\
                     workers.restart_intensity = 2\nworkers.restart_period = '1s'\nworkers.backoff_first = '10ms'\n\
                     workers.backoff_max = '10ms'\npostgres.probe_interval = '100ms'\npostgres.probe_deadline = '500ms'";

/// A Tandem that runs the application `module` on the database of another one.
fn attached(module: &str, url: &str) -> (Project, Tandem) {
    let lines = format!("{LINES}\npostgres.mode = 'attach'\npostgres.url = '{url}'");
    let project =
        Project::app_with(&format!("{module}:app"), &lines).without("workers.app_dir").without("postgres.port");
    project.write("slow.py", SLOW);
    project.write("at_import.py", AT_IMPORT);
    let tandem = Tandem::up(&project);
    (project, tandem)
}

fn kill_worker(tandem: &Tandem) {
    wait_for("a worker", || !tandem.workers().is_empty());
    kill(Pid::from_raw(tandem.workers()[0]), Signal::SIGKILL).unwrap();
}

#[test]
fn an_application_that_cannot_start_without_its_database_is_tried_again_until_it_is_back() {
    let server = Project::app_with("plain:app", "migrations.run = 'none'\nworkers.count = 1");
    let mut theirs = Tandem::up(&server);
    let url = tandem::run(&server, &["url"]);
    let url = String::from_utf8(url.stdout).unwrap().trim().to_owned();
    let mut ours = [attached("slow", &url), attached("at_import", &url)];
    assert_eq!(theirs.stop(), 0, "{}", theirs.log());
    for (_, tandem) in &ours {
        wait_for("the end of readiness", || tandem.ready() == Some(false));
        kill_worker(tandem);
    }
    for (project, tandem) in &mut ours {
        let tries = |tandem: &Tandem| tandem.log().matches("while the database is away; restart in 5s").count();
        wait_for("three tries", || tries(tandem) >= 3 || tandem.ended());
        assert!(!tandem.ended(), "{}", tandem.log());
        let status = tandem::run(project, &["status"]);
        assert!(String::from_utf8_lossy(&status.stdout).contains("while the database is away"), "{status:?}");
    }
    let mut theirs = Tandem::up(&server);
    for (project, tandem) in &mut ours {
        wait_for("readiness", || tandem.ready() == Some(true) || tandem.ended());
        assert!(!tandem.ended(), "{}", tandem.log());
        // Now it is the application's own fault.
        project.write("broken", "");
        kill_worker(tandem);
        assert_eq!(tandem.wait_code(), 69, "{}", tandem.log());
        assert!(tandem::left_in(project.dir()).is_empty());
    }
    assert_eq!(theirs.stop(), 0, "{}", theirs.log());
}

/// A Tandem that is attached to the database of another one, and whose migrations go on until there is a file `on`, then end
/// with `code`: so the database can go away in the middle of the boot.
fn migrating(url: &str, code: u8) -> (Project, Tandem) {
    let script = format!("touch migrating; while [ ! -e on ]; do sleep 0.05; done; exit {code}");
    let lines = LINES.replace("'none'", &format!("['/bin/sh', '-c', '{script}']"));
    let lines = format!("{lines}\npostgres.mode = 'attach'\npostgres.url = '{url}'");
    let project = Project::app_with("slow:app", &lines).without("workers.app_dir").without("postgres.port");
    project.write("slow.py", SLOW);
    // The workers' user writes here.
    std::fs::set_permissions(project.dir(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let tandem = Tandem::start(&project);
    wait_for("the migration", || project.dir().join("migrating").exists());
    (project, tandem)
}

#[test]
fn a_database_that_goes_away_in_the_middle_of_the_boot_is_told_and_a_stop_is_heard_at_once() {
    let server = Project::app_with("plain:app", "migrations.run = 'none'\nworkers.count = 1");
    let mut theirs = Tandem::up(&server);
    let url = tandem::run(&server, &["url"]);
    let url = String::from_utf8(url.stdout).unwrap().trim().to_owned();
    // A database each: one migration at a time runs in one.
    let other = |name: &str, code| {
        as_superuser(&server, "postgres", &format!("CREATE DATABASE {name} OWNER app"));
        migrating(&format!("{}{name}", url.strip_suffix("app").unwrap()), code)
    };
    let [mut fails, mut stopped, mut starves, mut returns] =
        [("one", 1), ("two", 0), ("three", 0), ("four", 0)].map(|(name, code)| other(name, code));
    assert_eq!(theirs.stop(), 0, "{}", theirs.log());
    for (project, tandem) in [&mut fails, &mut stopped, &mut starves, &mut returns] {
        tandem.wait_log("went away: ");
        let (status, body) = tandem::get(project.health, "/ready").unwrap();
        assert!(status == 503 && body.contains("database: "), "{body}");
    }
    // A migration that fails meanwhile may succeed later.
    fails.0.write("on", "");
    assert_eq!(fails.1.wait_code(), 75, "{}", fails.1.log());
    assert!(fails.1.log().contains("went away during the migrations: "), "{}", fails.1.log());
    // One that goes on is broken off by a stop.
    let asked = std::time::Instant::now();
    assert_eq!(stopped.1.stop(), 0, "{}", stopped.1.log());
    assert!(asked.elapsed() < std::time::Duration::from_secs(15), "{:?}\n{}", asked.elapsed(), stopped.1.log());
    // Workers that cannot start without it are tried again, and a stop is heard then too.
    for (project, tandem) in [&mut starves, &mut returns] {
        project.write("on", "");
        tandem.wait_log("while the database is away; restart in 5s");
    }
    let asked = std::time::Instant::now();
    assert_eq!(starves.1.stop(), 0, "{}", starves.1.log());
    assert!(asked.elapsed() < std::time::Duration::from_secs(15), "{:?}\n{}", asked.elapsed(), starves.1.log());
    let mut theirs = Tandem::up(&server);
    returns.1.wait_ready();
    returns.1.wait_log("serves again, after ");
    assert_eq!(returns.1.stop(), 0, "{}", returns.1.log());
    assert_eq!(theirs.stop(), 0, "{}", theirs.log());
    for project in [fails.0, stopped.0, starves.0, returns.0] {
        assert!(tandem::left_in(project.dir()).is_empty());
    }
}
