//! Rights around backups: who may read them, as whom they are restored, what the operator has set, who gets which role.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Stdio;

use crate::common::backups::{as_superuser, backup, command, dir, running, sql};
use crate::common::project::Project;
use crate::common::refusal;
use crate::common::tandem::{self, Tandem, wait_for};

/// A function that takes its time for each row, and a table that calls it.
const SLOW: &str = "
    CREATE FUNCTION slow(int) RETURNS bool LANGUAGE plpgsql AS 'BEGIN PERFORM pg_catalog.pg_sleep(0.8); RETURN true; END';
    CREATE TABLE slow (a int CHECK (slow(a))); INSERT INTO slow VALUES (1)";

#[test]
fn a_backup_is_for_its_owner_alone_from_its_first_byte() {
    let (project, _tandem) = running();
    let open = project.dir().join("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o755)).unwrap();
    for format in ["plain", "custom", "directory"] {
        // The dump waits for a table.
        let socket = project.state().join("run/postgres");
        let mut holding = tandem::command(&project);
        holding.args(["psql", "-XAtq", "-U", "postgres", "-d", "app", "-h"]).arg(socket);
        let mut holding = holding.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut input = holding.stdin.take().unwrap();
        use std::io::{BufRead, Write};
        input.write_all(b"BEGIN; LOCK TABLE api_keys; SELECT 'locked';\n").unwrap();
        let mut line = String::new();
        std::io::BufReader::new(holding.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let args = ["backup", "--format", format, "--dir", open.to_str().unwrap()];
        let mut taking = Tandem::start_in(project.dir(), tandem::command(&project), &args);
        let mode = || {
            let mut parts = fs::read_dir(&open).unwrap().map(|entry| entry.unwrap());
            let part = parts.find(|entry| {
                let name = entry.file_name().into_string().unwrap();
                name.starts_with(".partial-") && !name.contains("globals")
            });
            part.and_then(|part| Some(part.metadata().ok()?.permissions().mode() & 0o777))
        };
        let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted";
        wait_for("the dump", || mode().is_some() && as_superuser(&project, "postgres", waiting) != "0");
        assert_eq!(mode(), Some(if format == "directory" { 0o700 } else { 0o600 }), "{format}");
        drop(input);
        holding.wait().unwrap();
        assert_eq!(taking.wait_exit().code(), Some(0), "{}", taking.log());
    }
    for entry in fs::read_dir(&open).unwrap().map(|entry| entry.unwrap()) {
        let mode = entry.metadata().unwrap().permissions().mode() & 0o077;
        assert_eq!(mode, 0, "{}", entry.path().display());
    }
}

#[test]
fn what_reads_a_backup_runs_as_the_servers_user() {
    let (project, _tandem) = running();
    sql(&project, SLOW);
    let owner = project.data().metadata().unwrap().uid();
    for format in ["plain", "custom"] {
        backup(&project, &["--format", format]);
        for args in [&["restore", "latest", "--yes"][..], &["backup", "verify"]] {
            assert_eq!(reader(&project, args), Some(owner), "{format} {args:?}");
        }
    }
}

/// The user as whom psql runs below a command, which must succeed.
fn reader(project: &Project, args: &[&str]) -> Option<u32> {
    let mut running = Tandem::start_in(project.dir(), tandem::command(project), args);
    let mut seen = None;
    wait_for("psql", || {
        let psql = running.descendants().into_iter().find(|process| process.name == "psql");
        seen = psql.and_then(|psql| Some(fs::metadata(format!("/proc/{}", psql.pid)).ok()?.uid()));
        seen.is_some() || running.ended()
    });
    assert_eq!(running.wait_exit().code(), Some(0), "{}", running.log());
    seen
}

#[test]
fn what_reads_a_backup_for_a_server_elsewhere_runs_as_that_user_too() {
    let (server, _tandem) = running();
    sql(&server, SLOW);
    as_superuser(&server, "app", "ALTER ROLE app SUPERUSER");
    let owner = server.data().metadata().unwrap().uid();
    let url = String::from_utf8(tandem::run(&server, &["url"]).stdout).unwrap();
    let lines = format!("workers.count = 1\nmigrations.run = 'none'\npostgres.url = '{}'", url.trim());
    let project = Project::app_with("plain:app", &lines).without("postgres.port");
    for format in ["plain", "custom"] {
        backup(&project, &["--format", format]);
        assert_eq!(reader(&project, &["restore", "latest", "--yes"]), Some(owner), "{format}");
    }
}

#[test]
fn limits_by_the_system_a_role_or_a_database_interrupt_no_backup_and_no_restore() {
    let project = Project::app_with(
        "plain:app",
        "workers.count = 1\nmigrations.run = 'none'\nbackup.pitr.enabled = true\nbackup.schedule = 'never'",
    );
    let _tandem = Tandem::up(&project);
    sql(&project, &format!("{SLOW}; CREATE TABLE hidden (a int); INSERT INTO hidden VALUES (1), (2)"));
    sql(&project, "ALTER TABLE hidden ENABLE ROW LEVEL SECURITY; ALTER TABLE hidden FORCE ROW LEVEL SECURITY");
    for statement in [
        "ALTER SYSTEM SET statement_timeout = '100ms'",
        "ALTER SYSTEM SET idle_session_timeout = '600ms'",
        "ALTER SYSTEM SET lock_timeout = '50ms'",
        "ALTER SYSTEM SET idle_in_transaction_session_timeout = '100ms'",
        "ALTER DATABASE app SET default_transaction_read_only = on",
        "ALTER DATABASE app SET search_path = nowhere",
        "ALTER DATABASE app SET row_security = off",
        "ALTER ROLE postgres SET default_transaction_read_only = on",
        "ALTER ROLE postgres SET statement_timeout = '70ms'",
        "ALTER ROLE postgres SET search_path = nowhere",
        "ALTER ROLE postgres SET default_transaction_isolation = 'serializable'",
        "ALTER ROLE app SET statement_timeout = '70ms'",
        "ALTER ROLE app SET default_transaction_read_only = on",
    ] {
        let statements = ["SET default_transaction_read_only = off", statement];
        // ALTER SYSTEM stands alone.
        let mut psql = tandem::command(&project);
        psql.args(["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", "postgres", "-h"]);
        psql.arg(project.state().join("run/postgres"));
        let output = psql.args(statements.map(|it| ["-c", it]).concat()).output().unwrap();
        assert!(output.status.success(), "{statement}: {output:?}");
    }
    as_superuser(&project, "postgres", "SELECT pg_reload_conf()");
    for format in ["plain", "custom", "directory"] {
        backup(&project, &["--format", format]);
        refusal::run(&project, &["backup", "verify"]).expect(0, &["verified, 3 rows in 2 tables"]);
        refusal::run(&project, &["restore", "latest", "--yes"]).expect(0, &["3 rows in 2 tables"]);
    }
    refusal::run(&project, &["backup", "base"]).expect(0, &["verified"]);
    assert_eq!(as_superuser(&project, "app", "SELECT count(*) FROM public.hidden"), "2");
}

#[test]
fn a_transaction_that_is_prepared_is_named_before_anything_is_restored() {
    let project = Project::app_with(
        "plain:app",
        "workers.count = 1\nmigrations.run = 'none'\npostgres.settings.max_prepared_transactions = '3'",
    );
    let _tandem = Tandem::up(&project);
    sql(&project, "CREATE TABLE note (id int)");
    backup(&project, &[]);
    sql(&project, "BEGIN; INSERT INTO note VALUES (1); PREPARE TRANSACTION 'the forgotten one'");
    let refused = refusal::run(&project, &["restore", "latest", "--yes"]);
    refused.expect(1, &["prepared transaction", "the forgotten one", "ROLLBACK PREPARED", "database app is as it was"]);
    sql(&project, "ROLLBACK PREPARED 'the forgotten one'");
    refusal::run(&project, &["restore", "latest", "--yes"]).expect(0, &["holds"]);

    // In the database that goes, and in the one that comes back.
    let kept = "SELECT datname FROM pg_database WHERE datname ~ '^app_before'";
    let kept = as_superuser(&project, "postgres", kept);
    let prepare = "BEGIN; INSERT INTO note VALUES (1); PREPARE TRANSACTION 'the forgotten one'";
    // A session that was there before is there afterwards: nobody was cut.
    let sessions = "SELECT string_agg(pid::text, ' ' ORDER BY pid) FROM pg_stat_activity WHERE datname = 'app' AND application_name = 'waits'";
    let socket = project.state().join("run/postgres");
    let mut waiting = tandem::command(&project);
    waiting.args(["psql", "-XAtq", "-U", "postgres", "-d", "dbname=app application_name=waits", "-h"]).arg(socket);
    let mut waiting = waiting.stdin(Stdio::piped()).spawn().unwrap();
    wait_for("the session", || !as_superuser(&project, "postgres", sessions).is_empty());
    let before = as_superuser(&project, "postgres", sessions);
    for database in ["app", kept.as_str()] {
        as_superuser(&project, database, prepare);
        let refused = refusal::run(&project, &["restore", "--undo", "--yes"]);
        let words = ["prepared transaction", database, "the forgotten one", "ROLLBACK PREPARED", "Nothing was changed"];
        refused.expect(1, &words);
        assert_eq!(as_superuser(&project, "postgres", sessions), before, "{database}");
        as_superuser(&project, database, "ROLLBACK PREPARED 'the forgotten one'");
    }
    drop(waiting.stdin.take());
    waiting.wait().unwrap();
    refusal::run(&project, &["restore", "--undo", "--yes"]).expect(0, &["again"]);
}

#[test]
fn a_database_without_an_encoding_is_backed_up_whatever_its_names_are() {
    let (project, _tandem) = running();
    as_superuser(
        &project,
        "postgres",
        "CREATE DATABASE bytes TEMPLATE template0 ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' OWNER app",
    );
    let latin = "SET client_encoding = 'SQL_ASCII'; CREATE TABLE \"t\\xfcr\" (\"\\xe4\" int CHECK (\"\\xe4\" > 0)); INSERT INTO \"t\\xfcr\" VALUES (1), (2)";
    let bytes: Vec<u8> =
        latin.replace("\\xfc", "\u{fc}").replace("\\xe4", "\u{e4}").chars().map(|letter| letter as u8).collect();
    let file = project.dir().join("latin.sql");
    fs::write(&file, bytes).unwrap();
    let run = |args: &[&str]| refusal::run(&project, &[&["--set", "postgres.database=bytes"], args].concat());
    run(&["psql", "-Xqf", file.to_str().unwrap()]).expect(0, &[]);
    run(&["backup"]).expect(0, &["2 rows in 1 tables"]);
    run(&["backup", "verify"]).expect(0, &["verified, 2 rows in 1 tables"]);
    run(&["restore", "latest", "--yes"]).expect(0, &["2 rows in 1 tables"]);
}

/// Roles, who may log in, their comments and who is a member of what.
const ROLES: &str = "
    SELECT string_agg(concat_ws(' ', rolname, rolcanlogin, rolpassword IS NOT NULL, shobj_description(a.oid, 'pg_authid'),
                                (SELECT string_agg(m.roleid::regrole::text, ',' ORDER BY m.roleid::regrole::text) FROM pg_auth_members m WHERE m.member = a.oid)),
                      E'\n' ORDER BY rolname)
    FROM pg_authid AS a WHERE rolname !~ '^pg_' AND rolname <> 'postgres'";

#[test]
fn a_restore_grants_no_role_that_the_live_server_has_revoked_and_a_new_server_gets_them_all() {
    let (project, _tandem) = running();
    as_superuser(
        &project,
        "app",
        "CREATE ROLE gone LOGIN PASSWORD 'x'; CREATE ROLE \"go; ne\"; CREATE ROLE gone2; CREATE ROLE team;
         COMMENT ON ROLE gone IS E'one\ntwo; it''s \\\\ it'; COMMENT ON ROLE \"go; ne\" IS 'CREATE ROLE never;';
         GRANT team TO gone2, gone, app; GRANT gone TO app; ALTER ROLE gone SET work_mem = '1MB';
         GRANT SELECT ON api_keys TO gone, \"go; ne\", gone2",
    );
    let had = as_superuser(&project, "postgres", ROLES);
    backup(&project, &[]);
    refusal::run(&project, &["backup", "verify"]).expect(0, &["verified"]);
    as_superuser(
        &project,
        "app",
        "REVOKE team FROM gone2, app; DROP OWNED BY gone, \"go; ne\"; DROP ROLE gone, \"go; ne\"",
    );
    let restored = refusal::run(&project, &["restore", "latest", "--yes"]);
    restored.expect(0, &["2010 rows", "made without login, password, memberships and settings", "role go; ne, gone"]);
    let has = as_superuser(&project, "postgres", ROLES);
    let wanted = [
        "app t t pg_read_all_stats",
        "go; ne f f CREATE ROLE never;",
        "gone f f one\ntwo; it's \\ it",
        "gone2 f f",
        "team f f",
    ];
    assert_eq!(has, wanted.join("\n"));
    let grants = "SELECT count(*) FROM pg_class, aclexplode(relacl) WHERE relname = 'api_keys' AND grantee::regrole::text ~ 'go'";
    assert_eq!(as_superuser(&project, "app", grants), "3");

    // On a new server nothing was revoked.
    let key = project.dir().join("key");
    fs::write(&key, tandem::run(&project, &["backup", "key"]).stdout).unwrap();
    let lines = format!("workers.count = 1\nmigrations.run = 'none'\nbackup.dir = '{}'", dir(&project).display());
    let other = Project::app_with("plain:app", &lines);
    refusal::run(&other, &["backup", "key", "--import", key.to_str().unwrap()]).expect(0, &["accepted"]);
    let _other_tandem = Tandem::up(&other);
    refusal::run(&other, &["restore", "latest", "--yes"]).expect(0, &["2010 rows"]);
    assert_eq!(as_superuser(&other, "postgres", ROLES), had);
}

/// What a restore gives to whom is what it was, whoever loads it.
#[test]
fn owners_rights_and_extensions_come_back_as_they_were() {
    let (project, _tandem) = running();
    as_superuser(
        &project,
        "app",
        "CREATE ROLE reader; CREATE ROLE writer; GRANT writer TO app; CREATE EXTENSION hstore; CREATE EXTENSION pg_trgm;
         CREATE EXTENSION btree_gist; COMMENT ON EXTENSION hstore IS 'ours'",
    );
    sql(
        &project,
        "CREATE SCHEMA own; CREATE TABLE own.t (id serial PRIMARY KEY, h public.hstore); GRANT USAGE ON SCHEMA own TO reader;
         GRANT SELECT (id), INSERT ON own.t TO reader WITH GRANT OPTION; ALTER DEFAULT PRIVILEGES IN SCHEMA own GRANT SELECT ON TABLES TO reader;
         CREATE FUNCTION own.f() RETURNS int LANGUAGE sql AS 'SELECT 1';
         REVOKE ALL ON FUNCTION own.f() FROM PUBLIC; GRANT EXECUTE ON FUNCTION own.f() TO writer; CREATE VIEW own.v AS SELECT id FROM own.t;
         CREATE TYPE own.mood AS ENUM ('a'); GRANT USAGE ON TYPE own.mood TO reader; SELECT lo_create(4711); GRANT SELECT ON LARGE OBJECT 4711 TO reader;
         CREATE PUBLICATION few FOR TABLE own.t; CREATE STATISTICS own.s ON id, h FROM own.t; GRANT CREATE ON SCHEMA public TO writer",
    );
    let dumped = |project: &Project| {
        let socket = project.state().join("run/postgres");
        let mut dump = command("sh");
        let tool = as_superuser(project, "app", "SELECT setting FROM pg_config() WHERE name = 'BINDIR'");
        dump.args(["-c", &format!("LD_LIBRARY_PATH={tool}/../lib {tool}/pg_dump -U postgres -d app -h \"$0\"")])
            .arg(socket);
        let port = as_superuser(project, "app", "SHOW port");
        let output = dump.env("PGPORT", port).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().filter(|line| !line.contains("restrict ")).collect::<Vec<_>>().join("\n")
    };
    let extensions = "SELECT string_agg(extname || ' ' || extowner::regrole || ' ' || extnamespace::regnamespace, ',' ORDER BY extname) FROM pg_extension";
    let (before, owners) = (dumped(&project), as_superuser(&project, "app", extensions));
    for format in ["plain", "custom", "directory"] {
        let manifest = backup(&project, &["--format", format]);
        assert_eq!(manifest["needs_superuser"], serde_json::json!([]), "{format}");
        refusal::run(&project, &["restore", "latest", "--yes"]).expect(0, &["holds"]);
        assert_eq!(as_superuser(&project, "app", extensions), owners, "{format}");
        similar(&dumped(&project), &before);
    }
    // What only a superuser can make is declared, and comes back too.
    as_superuser(
        &project,
        "app",
        "CREATE FUNCTION watch() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END'; CREATE EVENT TRIGGER guard ON ddl_command_start EXECUTE FUNCTION watch();
         CREATE PUBLICATION everything FOR ALL TABLES; CREATE SCHEMA ext; CREATE EXTENSION citext SCHEMA ext; CREATE TABLE theirs (a ext.citext);
         CREATE EXTENSION postgres_fdw; CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw; ALTER TABLE theirs OWNER TO writer; GRANT SELECT ON pg_stat_statements TO reader",
    );
    let (before, owners) = (dumped(&project), as_superuser(&project, "app", extensions));
    for format in ["plain", "custom", "directory"] {
        let manifest = backup(&project, &["--format", format]);
        let needs = manifest["needs_superuser"].to_string();
        assert!(needs.contains("event trigger guard") && needs.contains("publication everything"), "{needs}");
        refusal::run(&project, &["backup", "verify"]).expect(0, &["verified"]);
        refusal::run(&project, &["restore", "latest", "--yes"]).expect(0, &["holds"]);
        assert_eq!(as_superuser(&project, "app", extensions), owners, "{format}");
        similar(&dumped(&project), &before);
    }
}

/// The same lines, or the first that differ.
fn similar(found: &str, wanted: &str) {
    for (found, wanted) in found.lines().zip(wanted.lines()) {
        assert_eq!(found, wanted);
    }
    assert_eq!(found.lines().count(), wanted.lines().count());
}
