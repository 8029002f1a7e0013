//! `postgres.init_scripts`: what users of docker-library/postgres keep in /docker-entrypoint-initdb.d runs once in a new cluster,
//! and no cluster in which only some of it ran is taken for a complete one.

use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;

use flate2::Compression;
use flate2::write::GzEncoder;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::backups::{as_superuser, sql};
use crate::common::project::Project;
use crate::common::refusal;
use crate::common::tandem::{self, Tandem, wait_for};

const LINES: &str = "migrations.run = 'none'\nworkers.count = 1\npostgres.init_scripts = './init'";

/// A project with `scripts` for a new cluster.
fn project(lines: &str, scripts: &[(&str, &str)]) -> Project {
    let project = Project::app_with("plain:app", &format!("{LINES}\n{lines}"));
    fs::create_dir(project.dir().join("init")).unwrap();
    for (name, text) in scripts {
        project.write(&format!("init/{name}"), text);
    }
    project
}

fn zipped(text: &str) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

/// The order in which the scripts ran, as they wrote it down.
fn ran(project: &Project) -> String {
    sql(project, "SELECT string_agg(who, ' ' ORDER BY n) FROM ran")
}

fn is_marked(project: &Project) -> bool {
    project.data().join("tandem.initializing").exists()
}

#[test]
fn scripts_of_every_kind_run_once_in_the_order_of_their_names_before_the_migrations() {
    let note = |who: &str| format!("INSERT INTO ran (who) VALUES ('{who}');");
    let project = project(
        "postgres.user = 'clerk'\npostgres.database = 'shop'",
        &[
            (
                "10-first.sql",
                "CREATE TABLE ran (n serial, who text); INSERT INTO ran (who) VALUES ('sql');\nCREATE EXTENSION hstore;\n",
            ),
            // As the image's own documentation has it: the script is not executable, and uses the image's variables.
            (
                "40-read.sh",
                "psql -v ON_ERROR_STOP=1 --username \"$POSTGRES_USER\" --dbname \"$POSTGRES_DB\" <<-EOSQL\n\
                 \tCREATE USER docker;\n\tCREATE DATABASE docker OWNER docker;\nEOSQL\n\
                 docker_process_sql <<< \"INSERT INTO ran (who) VALUES ('read')\"\n",
            ),
            ("notes.txt", "no script"),
            (
                "90-last.sql",
                &format!(
                    "{}\nALTER ROLE clerk PASSWORD 'changed by a script';\nSET synchronous_commit = off;\n{}",
                    note("last"),
                    note("async")
                ),
            ),
        ],
    );
    fs::write(project.dir().join("init/20-zipped.sql.gz"), zipped(&note("gz"))).unwrap();
    fs::write(project.dir().join("init/25-zstd.sql.zst"), zstd::encode_all(note("zst").as_bytes(), 1).unwrap())
        .unwrap();
    project.write_script(
        "init/50-program.sh",
        "#!/bin/sh\nset -e\nwhoami >&2; echo \"$0 $PGHOST $OF_DOTENV\"\npsql -c \"INSERT INTO ran (who) VALUES ('program')\"",
    );
    // No `#!`: a shell reads it.
    project.write_script("init/60-plain.sh", "psql -qc \"INSERT INTO ran (who) VALUES ('plain')\"");
    project.write(".env", "OF_DOTENV=from-dotenv\n");
    let mut tandem = Tandem::up(&project);
    let log = tandem.log();
    assert_eq!(ran(&project), "sql gz zst read program plain last async", "{log}");
    assert!(log.contains("from-dotenv") && log.contains("notes.txt is no script"), "{log}");
    assert!(!is_marked(&project));
    // What they made is the application's, which is no superuser any more, and whose password is the configured one.
    let owner = "SELECT tableowner, (SELECT rolsuper FROM pg_roles WHERE rolname = 'clerk') FROM pg_tables WHERE tablename = 'ran'";
    assert_eq!(sql(&project, owner), "clerk|f");
    assert_eq!(as_superuser(&project, "docker", "SELECT current_database()"), "docker");
    assert_eq!(sql(&project, "SELECT 'a=>1'::hstore -> 'a'"), "1");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    // Once: whatever stands there at the next start.
    project.write("init/99-broken.sql", "SELECT 1/0;");
    let mut tandem = Tandem::up(&project);
    assert_eq!(ran(&project), "sql gz zst read program plain last async");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn a_script_that_fails_ends_the_start_and_the_next_one_begins_with_a_new_cluster() {
    let first = "CREATE TABLE ran (n serial, who text); INSERT INTO ran (who) VALUES ('first');";
    let project =
        project("", &[("1.sql", first), ("2.sql", "SELECT 1;\n\nCREATE ROLE x PASSWORD 'hush-hush' oops;\n")]);
    let refused = refusal::up(&project);
    refused.expect(
        1,
        &["2.sql ended with", "2.sql:3: ERROR:  unrecognized role option \"oops\"", "from the first one on"],
    );
    assert!(!refused.said.contains("hush-hush"), "{}", refused.said);
    assert!(is_marked(&project));
    // A command with one job does not take it for complete either.
    refusal::run(&project, &["migrate", "up", "--set", "migrations.run=seaorm"]).expect(1, &["2.sql:3: ERROR"]);
    fs::remove_file(project.dir().join("init/2.sql")).unwrap();
    fs::write(project.dir().join("init/2.sql.gz"), &zipped("SELECT 1;\nSELECT nothing;\n")[..]).unwrap();
    refusal::up(&project).expect(1, &["2.sql.gz ended with", "2.sql.gz:2: ERROR:  column \"nothing\" does not exist"]);
    let damaged = zipped(&format!("SELECT 1; -- {}\n", "x".repeat(1000)));
    fs::write(project.dir().join("init/2.sql.gz"), &damaged[..damaged.len() - 6]).unwrap();
    refusal::up(&project).expect(1, &["2.sql.gz: the file is damaged"]);
    fs::remove_file(project.dir().join("init/2.sql.gz")).unwrap();
    project.write("init/2.sh", "echo 'what the script says' >&2; false; echo 'not reached'");
    let refused = refusal::up(&project);
    refused.expect(1, &["2.sh ended with", "what the script says"]);
    assert!(!refused.said.contains("not reached"), "{}", refused.said);
    project.write("init/2.sh", "sleep 1000");
    let with_limit = refusal::up_as(&project, {
        let mut command = tandem::command(&project);
        command.env("TANDEM_POSTGRES__INIT_LIMIT", "5s");
        command
    });
    with_limit.expect(1, &["2.sh did not end within 5s (postgres.init_limit)"]);
    fs::remove_file(project.dir().join("init/2.sh")).unwrap();
    project.write("init/2.sql.xz", "");
    refusal::up(&project).expect(78, &["2.sql.xz: xz is not known here"]);
    fs::remove_file(project.dir().join("init/2.sql.xz")).unwrap();
    // Each time the first script found a new cluster, or its table would have been there.
    let mut tandem = Tandem::up(&project);
    assert!(tandem.log().contains("it is removed and made anew"), "{}", tandem.log());
    assert_eq!((ran(&project), is_marked(&project)), ("first".to_owned(), false));
    assert_eq!(refusal::names(project.data().parent().unwrap()), ["16"]);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

/// `kill -9` of Tandem, of the script and of PostgreSQL, and a stop: each in the middle of a script.
#[test]
fn what_is_broken_off_in_the_middle_begins_anew() {
    let script =
        "psql -qc 'CREATE TABLE half (id int)'; touch \"$OF_TEST\"/begun; [ -e \"$OF_TEST\"/go ] || sleep 1000";
    let project = project("", &[("1.sh", script)]);
    fs::set_permissions(project.dir(), Permissions::from_mode(0o777)).unwrap();
    project.write(".env", &format!("OF_TEST={}\n", project.dir().display()));
    let begun = project.dir().join("begun");
    type Break = fn(&Project, &mut Tandem);
    let breaks: [(&str, Break); 4] = [
        ("tandem", |_, tandem| tandem.signal(Signal::SIGKILL)),
        ("the script", |_, tandem| {
            let script = tandem.descendants().into_iter().find(|process| process.args.contains("1.sh")).unwrap();
            kill(Pid::from_raw(script.pid), Signal::SIGKILL).unwrap();
        }),
        ("PostgreSQL", |project, tandem| {
            let script = tandem.descendants().into_iter().find(|process| process.args.contains("1.sh")).unwrap();
            kill(Pid::from_raw(tandem.postmaster(project)), Signal::SIGKILL).unwrap();
            // Tandem may have ended it by now.
            let _ = kill(Pid::from_raw(script.pid), Signal::SIGKILL);
        }),
        ("a stop", |_, tandem| tandem.signal(Signal::SIGTERM)),
    ];
    for (what, break_off) in breaks {
        let _ = fs::remove_file(&begun);
        let mut tandem = Tandem::start(&project);
        wait_for("the script", || begun.exists());
        assert!(is_marked(&project), "{what}");
        break_off(&project, &mut tandem);
        tandem.wait_exit();
        wait_for("the end of all processes", || tandem::left_in(project.dir()).is_empty());
        assert!(is_marked(&project), "{what}: {}", tandem.log());
    }
    project.write("go", "");
    let mut tandem = Tandem::up(&project);
    assert_eq!((sql(&project, "SELECT count(*) FROM half"), is_marked(&project)), ("0".to_owned(), false));
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn scripts_that_fill_the_database_leave_nothing_for_a_restore() {
    let project = project("restore.if_empty = 'latest'", &[("1.sql", "CREATE TABLE seed (id int);")]);
    refusal::up(&project).expect(78, &["restore.if_empty would restore nothing", "unset one of the two"]);
    assert!(is_marked(&project));
    project.write("init/1.sql", "CREATE ROLE reporting;");
    let mut tandem = Tandem::up(&project);
    assert_eq!(sql(&project, "SELECT count(*) FROM pg_roles WHERE rolname = 'reporting'"), "1");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn a_new_cluster_gets_the_options_of_initdb_and_one_that_is_there_stays() {
    let project = Project::app_with("plain:app", "migrations.run = 'none'\nworkers.count = 1");
    let with = |args: &str| {
        let mut command = tandem::command(&project);
        command.env("POSTGRES_INITDB_ARGS", args);
        command
    };
    refusal::up_as(&project, with("--auth=trust"))
        .expect(78, &["POSTGRES_INITDB_ARGS: --auth cannot be set here", "SCRAM"]);
    // What initdb itself refuses leaves nothing behind.
    refusal::up_as(&project, with("--locale=xx_YY")).expect(73, &["initdb failed", "xx_YY"]);
    assert_eq!(refusal::names(project.data().parent().unwrap()), [""; 0]);
    let mut tandem = Tandem::start_as(&project, with("--data-checksums --locale=C '--lc-messages=C.UTF-8'"));
    tandem.wait_ready();
    let asked = "SELECT datcollate, pg_encoding_to_char(encoding), current_setting('data_checksums') \
                 FROM pg_database WHERE datname = current_database()";
    assert_eq!(sql(&project, asked), "C|UTF8|on");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    let mut tandem = Tandem::start_as(&project, with("--locale=C.UTF-8"));
    tandem.wait_ready();
    assert_eq!(sql(&project, asked), "C|UTF8|on");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}
