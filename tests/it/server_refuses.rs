//! A server that will not let us in, or will not start, for a reason that lasts: said once, at once, with the way out.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::common::backups::as_superuser;
use crate::common::namespace::in_namespace;
use crate::common::project::Project;
use crate::common::refusal::{self, Refusal};
use crate::common::server::binaries;
use crate::common::skip::skip;
use crate::common::tandem::{self, Tandem};
use ::tandem::process::identity;
use nix::unistd::Uid;

/// Six starts with their pauses took eight seconds, and waiting took half an hour.
const AT_ONCE: Duration = Duration::from_secs(30);

fn project(lines: &str) -> Project {
    Project::app_with("plain:app", &format!("workers.count = 1\nmigrations.run = 'none'\n{lines}"))
}

/// A project whose cluster was made, and that is not running.
fn stopped() -> Project {
    let project = project("");
    let mut tandem = Tandem::up(&project);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    project
}

/// `tandem up`, which ends by itself, soon, after one start of the server.
fn up_once(project: &Project) -> Refusal {
    let began = Instant::now();
    let refused = refusal::up(project);
    assert!(began.elapsed() < AT_ONCE, "{:?}\n{}", began.elapsed(), refused.said);
    assert!(refused.said.matches("FATAL:").count() <= 4, "{}", refused.said);
    assert!(!refused.said.contains("restart in"), "{}", refused.said);
    refused
}

/// The program `postgres` alone on the data of a project, as its owner, with `input`.
async fn single(project: &Project, input: &str) {
    let (prefix, data) = (binaries().await, project.data());
    let owner = data.metadata().unwrap();
    let program = prefix.join("bin/postgres").display().to_string();
    let user = [format!("--reuid={}", owner.uid()), format!("--regid={}", owner.gid()), "--clear-groups".into()];
    let script = "printf '%s\\n' \"$0\" | \"$@\"";
    let mut command = shell(script);
    command.arg(input);
    if Uid::effective().is_root() {
        command.arg("setpriv").args(user);
    }
    command.arg(program).args(["--single", "-D"]).arg(data).arg("template1").env("LD_LIBRARY_PATH", prefix.join("lib"));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

fn shell(script: &str) -> Command {
    #[expect(clippy::disallowed_methods, reason = "a test starts what it tests")]
    let mut command = Command::new("sh");
    command.args(["-euc", script]);
    command
}

fn alter(project: &Project, line: &str) {
    let path = project.data().join("postgresql.auto.conf");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("{text}{line}\n")).unwrap();
}

#[test]
fn a_wrong_setting_is_found_with_the_first_start_and_named_where_it_stands() {
    let settings = [
        ("work_memm = '8MB'", "`work_memm` in [postgres.settings]"),
        ("work_mem = '8 bananas'", "`work_mem` in [postgres.settings]"),
        ("shared_preload_libraries = 'nosuch'", "`shared_preload_libraries` in [postgres.settings]"),
        ("session_preload_libraries = 'nosuch'", "preload libraries in [postgres.settings]"),
        ("wal_level = 'minimal'", "max_wal_senders = \"0\""),
    ];
    for (line, words) in settings {
        up_once(&project(&format!("postgres.settings.{line}"))).expect(78, &["postgres gave up", words]);
    }
}

#[test]
fn check_asks_the_server_for_its_settings() {
    let wrong = project("postgres.settings.work_memm = '8MB'");
    refusal::run(&wrong, &["check"]).expect(78, &["work_memm", "[postgres.settings]"]);
    let right = project("postgres.settings.work_mem = '8MB'");
    refusal::run(&right, &["check"]).expect(0, &["work_mem"]);
}

#[test]
fn what_alter_system_broke_is_named_with_the_way_to_undo_it_by_hand() {
    let project = stopped();
    let auto = project.data().join("postgresql.auto.conf");
    let whole = fs::read(&auto).unwrap();
    for (line, words) in [
        ("shared_preload_libraries = 'nosuch'", "`shared_preload_libraries` is set in"),
        ("ssl = 'on'", "`ssl` is set in"),
        ("this is garbage", "syntax error"),
    ] {
        alter(&project, line);
        up_once(&project).expect(78, &[words, "postgresql.auto.conf"]);
        fs::write(&auto, &whole).unwrap();
    }
    // These would take the server away from Tandem: its own hold.
    for line in
        ["port = '6543'", "unix_socket_directories = '/tmp'", "logging_collector = 'on'", "max_connections = '5'"]
    {
        alter(&project, line);
    }
    let mut tandem = Tandem::up(&project);
    let log = tandem.log();
    for name in ["port", "unix_socket_directories", "logging_collector", "max_connections"] {
        assert!(log.contains(&format!("ALTER SYSTEM has set {name} = ")) && log.contains("does not hold"), "{log}");
    }
    let holds: u64 = as_superuser(&project, "postgres", "SHOW max_connections").parse().unwrap();
    assert_ne!(holds, 5);
    tandem::wait_for("the facts", || tandem.health()["database"]["max_connections"] == holds);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[tokio::test]
async fn a_cluster_with_another_superuser_is_taken_over() {
    let project = project("postgres.user = 'ffe_user'\npostgres.database = 'ffe'");
    let (prefix, data) = (binaries().await, project.data());
    // As PostgreSQL's container image makes it, with POSTGRES_USER.
    let script = "mkdir -p \"$0\"; umask 077; mkdir \"$0\"/16; shift 0
        if [ \"$(id -u)\" = 0 ]; then user=$(id -un postgres 2>/dev/null || echo nobody); chown \"$user\" \"$0\"/16 \"$0\"; as=\"setpriv --reuid=$user --clear-groups\"; else as=; fi
        $as \"$1\"/bin/initdb -D \"$0\"/16 -U ffe_user -A trust --no-sync >/dev/null
        echo \"work_mem = '77MB'\" >>\"$0\"/16/postgresql.conf
        echo 'CREATE DATABASE ffe;' | $as env LD_LIBRARY_PATH=\"$1\"/lib \"$1\"/bin/postgres --single -D \"$0\"/16 template1";
    let made = shell(script).arg(data.parent().unwrap()).arg(&prefix).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    let mut tandem = Tandem::up(&project);
    let log = tandem.log();
    assert!(log.contains("made beside its superuser ffe_user"), "{log}");
    // What its operator had configured does not hold any more, and is not lost.
    for (name, words) in
        [("postgresql.conf", "work_mem = '77MB'"), ("pg_hba.conf", "trust"), ("pg_ident.conf", "MAPNAME")]
    {
        let name = format!("{name}.before-tandem");
        let kept = fs::read_to_string(data.join(&name)).unwrap();
        assert!(kept.contains(words) && log.contains(&name), "{kept}\n{log}");
    }
    assert_eq!(as_superuser(&project, "ffe", "SELECT rolsuper FROM pg_roles WHERE rolname = 'postgres'"), "t");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    assert!(!data.join("tandem.adopting.conf").exists());

    // Only the first time; where the role goes later, the way back is told.
    let mut tandem = Tandem::up(&project);
    assert!(!tandem.log().contains("before-tandem"), "{}", tandem.log());
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    single(&project, "ALTER ROLE postgres RENAME TO somebody").await;
    let way = ["role \"postgres\" does not exist", "CREATE ROLE postgres SUPERUSER LOGIN' |", "--single -D"];
    up_once(&project).expect(78, &way);
    single(&project, "ALTER ROLE somebody NOLOGIN").await;
    single(&project, "ALTER ROLE somebody RENAME TO postgres").await;
    up_once(&project).expect(78, &["not permitted to log in", "ALTER ROLE postgres LOGIN"]);
}

#[tokio::test]
async fn files_that_the_server_may_not_read_and_a_missing_database_are_told_at_once() {
    let project = stopped();
    let control = project.data().join("global/pg_filenode.map");
    let (mode, owner) = (fs::metadata(&control).unwrap().permissions(), fs::metadata(&control).unwrap());
    if Uid::effective().is_root() {
        chown(&control, Some(0), Some(0)).unwrap();
    } else {
        fs::set_permissions(&control, std::os::unix::fs::PermissionsExt::from_mode(0o000)).unwrap();
    }
    up_once(&project).expect(69, &["Permission denied", "chown -R"]);
    fs::set_permissions(&control, mode).unwrap();
    chown(&control, Some(owner.uid()), Some(owner.gid())).unwrap();

    single(&project, "ALTER DATABASE postgres RENAME TO gone").await;
    up_once(&project).expect(78, &["database \"postgres\" does not exist", "CREATE DATABASE postgres"]);
    single(&project, "ALTER DATABASE gone RENAME TO postgres").await;

    let lock = project.data().join("postmaster.pid");
    fs::create_dir(&lock).unwrap();
    refusal::up(&project).expect(73, &["postmaster.pid is a directory"]);
    fs::remove_dir(&lock).unwrap();
    let mut tandem = Tandem::up(&project);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[tokio::test]
async fn a_database_whose_locale_this_machine_lacks_is_told_at_once() {
    let project = stopped();
    let way = ["database locale is incompatible with operating system", "locale-gen"];
    let set = |database: &str, locale: &str| {
        format!("UPDATE pg_database SET datcollate = '{locale}', datctype = '{locale}' WHERE datname = '{database}'")
    };
    for database in ["postgres", "app"] {
        single(&project, &set(database, "xx_XX.utf8")).await;
        up_once(&project).expect(78, &way);
        single(&project, &set(database, "C.UTF-8")).await;
    }
    // Nor is a cluster taken over that is so as a whole.
    for database in ["postgres", "app", "template1"] {
        single(&project, &set(database, "xx_XX.utf8")).await;
    }
    let conf = project.data().join("postgresql.conf");
    let text = fs::read_to_string(&conf).unwrap();
    let foreign: String = text.lines().filter(|line| !line.starts_with('#')).map(|line| format!("{line}\n")).collect();
    fs::write(&conf, foreign).unwrap();
    up_once(&project).expect(78, &way);
}

/// `tandem up` where one more locale is installed: a machine for tests has none but C.
fn with_locale(project: &Project, name: &str) -> Option<Tandem> {
    let script = format!(
        "mkdir -p \"$0\"/locales; cp -r /usr/lib/locale/. \"$0\"/locales; cp -r /usr/lib/locale/C.utf8 \"$0\"/locales/{name}
         mount --bind \"$0\"/locales /usr/lib/locale; exec \"$@\""
    );
    let mut tandem = Tandem::start_as(project, in_namespace(project, &script)?);
    tandem.wait_ready();
    Some(tandem)
}

#[test]
fn texts_that_were_sorted_otherwise_where_a_database_was_made_are_told_at_every_start() {
    if !Path::new("/usr/lib/locale/C.utf8").is_dir() {
        return skip("this machine has no locale in a directory of its own");
    }
    let project = project("");
    let Some(mut tandem) = with_locale(&project, "de_DE.utf8") else { return };
    // Of another version, and of a C library that has no versions, as musl is. C is sorted in one way everywhere.
    let databases = [("older", "'1'"), ("musl", "NULL")];
    for name in ["same", "older", "musl"] {
        let make = format!("CREATE DATABASE {name} TEMPLATE template0 LOCALE 'de_DE.utf8'");
        as_superuser(&project, "postgres", &make);
    }
    for (name, version) in databases {
        let was = format!("UPDATE pg_database SET datcollversion = {version} WHERE datname = '{name}'");
        as_superuser(&project, "postgres", &was);
    }
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    let told = |log: &str, name: &str| {
        log.lines().any(|line| line.contains(&format!("database {name} ")) && line.contains("sorts texts otherwise"))
    };
    let mut tandem = with_locale(&project, "de_DE.utf8").unwrap();
    let log = tandem.log();
    for (name, _) in databases {
        assert!(told(&log, name) && log.contains(&format!("REINDEX DATABASE \"{name}\"")), "{log}");
    }
    assert_eq!(log.matches("sorts texts otherwise").count(), 2, "{log}");
    // Whoever reads no log reads /health, until the indexes are made anew.
    let reasons = || tandem.health()["reasons"].to_string();
    tandem::wait_for("both in /health", || reasons().matches("sorts texts otherwise").count() == 2);
    assert_eq!(tandem.health()["status"], "degraded");
    assert!(reasons().contains("REINDEX DATABASE"), "{}", reasons());
    // The way out that each line names between its backticks.
    for (name, _) in databases {
        let line = log.lines().find(|line| line.contains(&format!("REINDEX DATABASE \"{name}\""))).unwrap();
        let statements = line.split('`').find(|part| part.starts_with("REINDEX")).unwrap();
        for statement in statements.split("; ") {
            as_superuser(&project, name, statement);
        }
    }
    tandem::wait_for("nothing more to say", || tandem.health()["status"] == "healthy");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    let mut tandem = with_locale(&project, "de_DE.utf8").unwrap();
    assert!(!tandem.log().contains("sorts texts otherwise"), "{}", tandem.log());
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

fn attach(url: &str, lines: &str) -> Refusal {
    let project = project(lines);
    let mut command = tandem::command(&project);
    command.env("DATABASE_URL", url);
    let began = Instant::now();
    let refused = refusal::up_as(&project, command);
    assert!(began.elapsed() < AT_ONCE, "{}", refused.said);
    refused
}

#[test]
fn an_attached_server_that_refuses_for_good_is_not_waited_for() {
    let owner = project("");
    let mut server = Tandem::up(&owner);
    let url = refusal::run(&owner, &["url"]).said.trim().to_owned();
    as_superuser(&owner, "postgres", "CREATE DATABASE closed; ");
    as_superuser(&owner, "postgres", "REVOKE CONNECT ON DATABASE closed FROM PUBLIC");
    let (head, tail) = url.split_once("://app:").unwrap();
    let (_, place) = tail.split_once('@').unwrap();
    let with = |user: &str, database: &str| format!("{head}://{user}@{}/{database}", place.split_once('/').unwrap().0);
    let password = tail.split_once('@').unwrap().0;
    attach(&with("app:wrong", "app"), "").expect(78, &["password authentication failed", "look at the user"]);
    attach(&with("app", "app"), "").expect(78, &["the URL has no password"]);
    attach(&with(&format!("app:{password}"), "nosuch"), "")
        .expect(78, &["\"nosuch\" does not exist", "CREATE DATABASE"]);
    attach(&with(&format!("app:{password}"), "closed"), "").expect(78, &["permission denied", "GRANT CONNECT"]);
    attach(&format!("{url}?sslmode=require"), "").expect(78, &["TLS", "sslmode"]);
    assert_eq!(server.stop(), 0, "{}", server.log());
}

#[tokio::test]
async fn a_postgresql_without_contrib_is_used_without_it() {
    let project = project("");
    let prefix = binaries().await;
    let copy = project.dir().join("pg");
    let script = "cp -r \"$1\" \"$0\"; find \"$0\" -name 'pg_stat_statements*' -delete; chmod -R go+rX \"$0\"";
    assert!(shell(script).arg(&copy).arg(&prefix).status().unwrap().success());
    let found = |name: &str| Path::new(&copy).join("lib").join(name).exists() || identity::is_root();
    assert!(found("plpgsql.so"));
    project.configure(&format!("postgres.source = '{}'", copy.display()));
    let mut tandem = Tandem::up(&project);
    let log = tandem.log();
    assert_eq!(log.matches("has no pg_stat_statements").count(), 1, "{log}");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}
