//! One migrator at a time, whatever migrates, and `tandem migrate` speaks of the tool that the configuration names.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Stdio};

use crate::common::ports::free_port;
use crate::common::project::{Project, root};
use crate::common::refusal::{self, Refusal};
use crate::common::server::{APP_ROLE, TestServer};
use crate::common::skip::skip;
use crate::common::tandem::{self, Tandem, wait_for};
use ::tandem::schema::LOCK_KEY;

const PGBOUNCER: &str = "/usr/sbin/pgbouncer";

fn start_at(project: &Project, url: &str) -> Tandem {
    let mut command = tandem::command(project);
    command.env("DATABASE_URL", url);
    Tandem::start_as(project, command)
}

fn run_at(project: &Project, url: &str, args: &[&str]) -> Refusal {
    refusal::said(tandem::command(project).env("DATABASE_URL", url).args(args).output().unwrap())
}

/// A project whose migrations `command` runs, a list as TOML writes it.
fn migrated_by(command: &str) -> Project {
    Project::app_with("plain:app", &format!("workers.count = 1\nmigrations.run = {command}"))
}

fn alembic() -> String {
    format!("['alembic', '-c', '{}', 'upgrade', 'head']", root().join("tests/fixtures/alembic/alembic.ini").display())
}

#[tokio::test]
async fn commands_that_migrate_run_one_at_a_time() {
    let server = TestServer::start().await;
    let url = server.database("raced").await.expose().expose().to_owned();
    let place = tempfile::tempdir().unwrap();
    // The workers' user writes here, whatever the umask.
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o777)).unwrap();
    // Fails where another is at it.
    let jealous = format!("['sh', '-ec', 'mkdir {0}/busy; sleep 0.3; rmdir {0}/busy']", place.path().display());
    for command in [alembic(), jealous] {
        let projects = [(); 3].map(|()| migrated_by(&command));
        let mut tandems: Vec<_> = projects.iter().map(|project| start_at(project, &url)).collect();
        for tandem in &mut tandems {
            tandem.wait_ready();
        }
        for tandem in &mut tandems {
            assert_eq!(tandem.stop(), 0, "{}", tandem.log());
        }
    }
    assert_eq!(server.sql("raced", "SELECT version_num FROM alembic_version").await, "004_add_indexes");

    // Ours and theirs know each other, as two machines would.
    let holder = format!("SELECT pg_advisory_lock({LOCK_KEY}), pg_sleep(60)");
    let project = migrated_by(&alembic());
    let mut held = tandem::command(&project);
    let held = held.env("DATABASE_URL", &url).args(["psql", "-c", &holder]).stdout(Stdio::null()).spawn().unwrap();
    let held = Held(held);
    let locks = "SELECT 'locks: ' || count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted";
    wait_for("the lock", || run_at(&project, &url, &["psql", "-Atc", locks]).said.contains("locks: 1"));
    let refused = run_at(&project, &url, &["migrate", "up", "--set", "migrations.lock_limit=200ms"]);
    refused.expect(75, &["another migration is running on this database after 200ms"]);
    drop(held);
}

/// Who fills an empty database is one as well: a second restore would take the place of what the first one's workers wrote.
#[tokio::test]
async fn an_empty_database_is_filled_from_a_backup_once() {
    let server = TestServer::start().await;
    let from = server.database("fleet").await.expose().expose().to_owned();
    server.sql_as_owner("fleet", "CREATE TABLE note AS SELECT generate_series(1, 3) AS id").await;
    let place = Project::app_with("plain:app", "workers.count = 1\nmigrations.run = 'none'");
    run_at(&place, &from, &["backup"]).expect(0, &[]);
    let backups = place.state().join("backups");
    server.sql("postgres", "DROP DATABASE fleet WITH (FORCE)").await;
    let url = server.database("fleet").await.expose().expose().to_owned();
    // Whoever comes second finds the rows that came in meanwhile.
    let add = r#"['python', '-c', "import psycopg2; c = psycopg2.connect(''); c.autocommit = True; c.cursor().execute('INSERT INTO note VALUES (0)')"]"#;
    let lines = format!(
        "workers.count = 1\nmigrations.run = {add}\nrestore.if_empty = 'latest'\nbackup.dir = '{}'",
        backups.display()
    );
    let projects = [(); 3].map(|()| Project::app_with("plain:app", &lines));
    let mut tandems: Vec<_> = projects.iter().map(|project| start_at(project, &url)).collect();
    for tandem in &mut tandems {
        tandem.wait_ready();
    }
    assert_eq!(server.sql("fleet", "SELECT count(*), count(*) FILTER (WHERE id = 0) FROM note").await, "6|3");
    let restored = tandems.iter().filter(|tandem| tandem.log().contains("restored fleet_backup")).count();
    assert_eq!(restored, 1);
    for tandem in &mut tandems {
        assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    }
    assert_eq!(server.sql("postgres", "SELECT count(*) FROM pg_database WHERE datname LIKE 'fleet%'").await, "1");
}

/// A process of the test's, ended with it.
struct Held(Child);

impl Drop for Held {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// A pooler in front of `server`, as a distribution sets it up: it refuses the startup parameters that it does not know.
fn pooler(dir: &Path, server_port: u16, password: &str, mode: &str) -> (Held, u16) {
    let port = free_port();
    let (users, file) = (dir.join("users"), dir.join(format!("{mode}.ini")));
    fs::write(&users, format!("\"{APP_ROLE}\" \"{password}\"\n")).unwrap();
    let text = format!(
        "[databases]\n* = host=127.0.0.1 port={server_port}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
         unix_socket_dir =\nauth_type = md5\nauth_file = {}\npool_mode = {mode}\n",
        users.display()
    );
    fs::write(&file, text).unwrap();
    #[expect(clippy::disallowed_methods, reason = "a test starts what it tests against")]
    let mut command = std::process::Command::new(PGBOUNCER);
    // It refuses to be root.
    if nix::unistd::Uid::effective().is_root() {
        command.args(["-u", "nobody"]);
    }
    let child = command.arg(&file).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let held = Held(child);
    wait_for("the pooler", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    (held, port)
}

#[tokio::test]
async fn a_pooler_in_transaction_mode_is_told_of_and_one_in_session_mode_is_used() {
    if !Path::new(PGBOUNCER).exists() {
        return skip("pgbouncer is not installed");
    }
    let server = TestServer::start().await;
    let url = server.database("pooled").await;
    server.sql("postgres", &format!("ALTER ROLE {APP_ROLE} PASSWORD 'pw'")).await;
    let place = tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o755)).tempdir().unwrap();
    let through = |port: u16| format!("postgresql://{APP_ROLE}:pw@127.0.0.1:{port}/pooled");
    let ours = Project::backend_with("workers.count = 1");

    let (_transaction, port) = pooler(place.path(), url.port, "pw", "transaction");
    for project in [&ours, &migrated_by(&alembic())] {
        let refused = run_at(project, &through(port), &["up", "--log-format", "text"]);
        refused.expect(78, &["a connection pooler in transaction mode", "migrations.run = \"none\""]);
        assert!(!refused.said.contains("prepared statement"), "{}", refused.said);
    }
    run_at(&ours, &through(port), &["restore", "--undo", "--yes"])
        .expect(78, &["a connection pooler in transaction mode"]);
    // A dump is one transaction; what a pooler makes of the rest is called by its name.
    let backed = run_at(&ours, &through(port), &["backup"]);
    assert!(backed.code == 0 || backed.said.contains("this is a connection pooler"), "{}", backed.said);
    assert_eq!(server.sql("pooled", "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").await, "0");

    let (_session, port) = pooler(place.path(), url.port, "pw", "session");
    let mut tandem = start_at(&ours, &through(port));
    tandem.wait_ready();
    run_at(&ours, &through(port), &["migrate", "status"]).expect(0, &["applied  004"]);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    // It refuses options of the startup, which are not needed.
    server.sql("postgres", &format!("ALTER ROLE {APP_ROLE} CREATEDB")).await;
    for format in ["plain", "custom", "directory"] {
        let chosen = format!("backup.format={format}");
        run_at(&ours, &through(port), &["backup", "--set", &chosen]).expect(0, &[]);
        run_at(&ours, &through(port), &["restore", "latest", "--yes", "--set", &chosen]).expect(0, &["now: 5 rows"]);
    }
    // All of them also write where transactions are read-only by default, and leave that as it was.
    server.sql("postgres", &format!("ALTER ROLE {APP_ROLE} SET default_transaction_read_only = on")).await;
    let (_fresh, fresh) = pooler(place.path(), url.port, "pw", "session");
    for port in [url.port, fresh] {
        for format in ["sql.gz", "dump", "dir"] {
            let backups = fs::read_dir(ours.state().join("backups")).unwrap().flatten();
            let mut names = backups.map(|entry| entry.file_name().into_string().unwrap());
            let name = names.find(|name| name.contains("_backup_") && name.ends_with(format)).unwrap();
            run_at(&ours, &through(port), &["restore", &name, "--yes"]).expect(0, &["now: 5 rows"]);
        }
    }
    assert_eq!(
        server.sql("pooled", "SELECT count(*) FROM pg_db_role_setting WHERE setrole <> 0 AND setdatabase <> 0").await,
        "0"
    );
    server.sql("postgres", &format!("ALTER ROLE {APP_ROLE} RESET default_transaction_read_only")).await;
    // What is migrated already needs no lock.
    let (_transaction, port) = pooler(place.path(), url.port, "pw", "transaction");
    let mut tandem = start_at(&ours, &through(port));
    tandem.wait_ready();
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[tokio::test]
async fn migrate_speaks_of_the_tool_that_the_configuration_names() {
    let server = TestServer::start().await;
    let url = server.database("spoken").await.expose().expose().to_owned();
    let project = migrated_by(&alembic());
    run_at(&project, &url, &["migrate", "status"]).expect(0, &["current  none", "head     004_add_indexes"]);
    run_at(&project, &url, &["migrate", "up"]).expect(0, &[]);
    let json = run_at(&project, &url, &["migrate", "status", "--json"]);
    json.expect(0, &[r#"{"current":["004_add_indexes"],"heads":["004_add_indexes"],"tool":"alembic"}"#]);
    run_at(&project, &url, &["migrate", "down", "2"]).expect(0, &[]);
    assert_eq!(server.sql("spoken", "SELECT version_num FROM alembic_version").await, "002_decision_cache_schema");
    run_at(&project, &url, &["migrate", "down", "9"]).expect(1, &["downgrade -9` ended with"]);
    assert_eq!(server.sql("spoken", "SELECT to_regnamespace('tandem') IS NULL").await, "t", "ours was not asked");

    let django = migrated_by("['python', 'manage.py', 'migrate', '--noinput', '--settings', 'shop.live']");
    let script = "import os, sys\nassert os.environ['PGDATABASE'] == 'spoken'\nprint('shop')\nprint(' [X] 0001_initial')\n\
                  print(' [ ] 0002_more')\nprint('ran', *sys.argv[1:], file=sys.stderr)\n";
    django.write("manage.py", script);
    run_at(&django, &url, &["migrate", "up"]).expect(0, &["ran migrate --noinput --settings shop.live"]);
    run_at(&django, &url, &["migrate", "status"]).expect(0, &["shop\n [X] 0001_initial\n [ ] 0002_more"]);
    let json = run_at(&django, &url, &["migrate", "status", "--json"]);
    json.expect(0, &[r#"{"applied":true,"name":"shop.0001_initial"},{"applied":false,"name":"shop.0002_more"}"#]);
    run_at(&django, &url, &["migrate", "down"]).expect(64, &["manage.py migrate APP NAME --settings shop.live"]);

    let other = migrated_by("['sh', '-c', 'echo migrated $PGDATABASE']");
    run_at(&other, &url, &["migrate", "up"]).expect(0, &["migrated spoken"]);
    for word in ["status", "down"] {
        run_at(&other, &url, &["migrate", word]).expect(64, &["migrations.run is `sh -c echo migrated"]);
    }
}
