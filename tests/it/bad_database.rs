//! Passwords with every character, databases elsewhere, and databases from the future.

use std::fs;
use std::process::Command;

use crate::common::ports::free_port;
use crate::common::project::Project;
use crate::common::refusal::{self, Refusal};
use crate::common::tandem::{self, Tandem};

/// Every character that a shell, a URL, a configuration file or SQL gives a meaning to, and some beyond ASCII.
const HARD: &str = r##"p@s:w/o#r?d&=+ $'"\`!{}[]<>|;,^~*()%20%zz-_.€ß"##;
/// A part of [`HARD`] in URLs; a log that holds it holds the password.
const HARD_ENCODED: &str = "p%40s%3Aw%2Fo%23r";

fn up_with(project: &Project, pairs: &[(&str, &str)]) -> Tandem {
    let mut command = tandem::command(project);
    command.envs(pairs.iter().copied());
    let mut tandem = Tandem::start_as(project, command);
    tandem.wait_ready();
    tandem
}

fn run_with(project: &Project, pairs: &[(&str, &str)], args: &[&str]) -> Refusal {
    let mut command = tandem::command(project);
    refusal::said(command.envs(pairs.iter().copied()).args(args).output().unwrap())
}

/// Whether the application's own pool gets into the database.
fn app_reaches_database(tandem: &Tandem) -> bool {
    let (_, body) = tandem.get("/health").unwrap();
    let health: serde_json::Value = serde_json::from_str(&body).unwrap();
    health["database"]["available"] == true
}

fn hides(what: &str, text: &str, password: &str) {
    assert!(!text.contains(password) && !text.contains(HARD_ENCODED), "{what} shows the password:\n{text}");
}

/// `password` is in use, given by `pairs`: it is in none of the places where others look.
fn assert_hidden(project: &Project, tandem: &Tandem, pairs: &[(&str, &str)], password: &str) {
    hides("the log", &tandem.log(), password);
    hides("/health", &tandem.health().to_string(), password);
    hides("tandem check", &run_with(project, pairs, &["check"]).said, password);
    hides("tandem check --json", &run_with(project, pairs, &["check", "--json"]).said, password);
    for process in tandem::processes() {
        hides("ps", &process.args, password);
    }
}

#[test]
fn a_password_of_special_characters_works_everywhere_and_shows_nowhere() {
    let project = Project::backend_with("workers.count = 1");
    let given = [("POSTGRES_PASSWORD", HARD)];
    let mut tandem = up_with(&project, &given);
    assert!(app_reaches_database(&tandem), "{}", tandem.log());
    assert_hidden(&project, &tandem, &given, HARD);
    run_with(&project, &given, &["psql", "-Atc", "SELECT 'in as ' || current_user"]).expect(0, &["in as app"]);
    run_with(&project, &given, &["url"]).expect(0, &[HARD_ENCODED]);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    assert_hidden_in_server_log(&project);

    // Another one, from a file as Compose's secrets are, is taken over by the next start.
    let changed = "another 'one' with a \\ and a % in it";
    project.write("secret", &format!("{changed}\n"));
    let file = project.dir().join("secret").display().to_string();
    let given = [("POSTGRES_PASSWORD_FILE", file.as_str())];
    let mut tandem = up_with(&project, &given);
    assert!(app_reaches_database(&tandem), "{}", tandem.log());
    assert_hidden(&project, &tandem, &given, changed);
    let old = run_with(&project, &[("POSTGRES_PASSWORD", HARD)], &["psql", "-c", "SELECT 1"]);
    assert!(old.code != 0 && old.said.contains("password authentication failed"), "{}", old.said);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

/// PostgreSQL's own files: postgresql.conf and, should somebody turn it on, its log.
fn assert_hidden_in_server_log(project: &Project) {
    for name in ["postgresql.conf", "pg_hba.conf"] {
        hides(name, &fs::read_to_string(project.data().join(name)).unwrap(), HARD);
    }
}

#[test]
fn a_host_that_does_not_resolve_is_waited_for_and_then_explained() {
    let project = Project::app("plain:app");
    let said = ["DATABASE_URL", "`postgres` does not resolve", "Docker Compose", "unset DATABASE_URL"];
    let attached = || {
        let mut command = tandem::command(&project);
        command.env("DATABASE_URL", "postgresql://ffe_user:hunter2@postgres:5432/ffe");
        command.env("TANDEM_POSTGRES__READY_LIMIT", "1s");
        command
    };
    // Compose gives a container's name to the others when it starts, which may be after them.
    let refused = refusal::up_as(&project, attached());
    refused.expect(75, &said);
    refused.expect(75, &["waiting for the database", "did not answer within 1s"]);
    hides("the error", &refused.said, "hunter2");
    // Commands that need it at once do not wait, and one that only looks at the configuration does not mind.
    for (args, code) in [(&["backup"][..], 75), (&["migrate", "status"], 75), (&["check"], 0)] {
        let refused = refusal::said(attached().args(args).output().unwrap());
        refused.expect(code, &said);
        hides("the error", &refused.said, "hunter2");
    }
}

#[test]
fn a_server_of_another_tandem_is_attached_to_and_left_alone() {
    let owner = Project::app_with("plain:app", "workers.count = 1\nmigrations.run = 'none'");
    let mut server = Tandem::up(&owner);
    let url = refusal::run(&owner, &["url"]).said.trim().to_owned();

    let project = Project::backend_with("workers.count = 1");
    let mut tandem = up_with(&project, &[("DATABASE_URL", &url)]);
    let log = tandem.log();
    assert!(log.contains("attaches to it") && log.contains("applied migration"), "{log}");
    assert!(app_reaches_database(&tandem), "{log}");
    let revision = || tandem.health()["database"]["schema_version"] == "004_add_indexes";
    tandem::wait_for("the sample after the migrations", revision);
    let own: Vec<_> = tandem.descendants().into_iter().filter(|process| process.name.starts_with("postgres")).collect();
    assert!(own.is_empty() && !project.data().exists(), "{own:?}");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    assert_eq!(server.ready(), Some(true), "{}", server.log());

    // That server goes away for good.
    assert_eq!(server.stop(), 0, "{}", server.log());
    dead(&project, &url);
}

fn dead(project: &Project, url: &str) {
    let mut command = tandem::command(project);
    command.env("DATABASE_URL", url).env("TANDEM_POSTGRES__READY_LIMIT", "500ms");
    let refused = refusal::up_as(project, command);
    refused.expect(75, &["did not answer within 500ms", "127.0.0.1"]);
    let password = url.split([':', '@']).nth(2).unwrap();
    hides("the error", &refused.said, password);
}

#[test]
fn an_address_where_nobody_answers_is_a_temporary_failure() {
    let project = Project::app_with("plain:app", "workers.count = 1");
    dead(&project, &format!("postgresql://app:hunter2@127.0.0.1:{}/app", free_port()));
}

#[test]
fn a_database_from_the_future_is_refused_and_untouched() {
    let project = Project::backend_with("workers.count = 1");
    let mut tandem = Tandem::up(&project);
    let sql = "UPDATE alembic_version SET version_num = '999_future'";
    refusal::run(&project, &["psql", "-c", sql]).expect(0, &["UPDATE 1"]);
    // While it runs, and then while it does not.
    refusal::run(&project, &["migrate", "up"]).expect(65, &["999_future"]);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    refusal::run(&project, &["migrate", "up"]).expect(65, &["999_future"]);
    refusal::run(&project, &["migrate", "down"]).expect(65, &["999_future"]);
    refusal::up(&project).expect(65, &["999_future"]);

    let mut command: Command = tandem::command(&project);
    command.env("TANDEM_MIGRATIONS__RUN", "none");
    let mut tandem = Tandem::start_as(&project, command);
    tandem.wait_ready();
    let sql = "SELECT version_num, to_regclass('decision_cache') IS NOT NULL FROM alembic_version";
    refusal::run(&project, &["psql", "-Atc", sql]).expect(0, &["999_future|t"]);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn a_reload_is_not_refused_for_a_name_that_does_not_resolve() {
    let owner = Project::app_with("plain:app", "workers.count = 1\nmigrations.run = 'none'");
    let mut server = Tandem::up(&owner);
    let url = refusal::run(&owner, &["url"]).said.trim().to_owned();
    let project = Project::app_with("plain:app", "workers.count = 1\nmigrations.run = 'none'\nstop.grace = '9s'");
    project.write(".env", &format!("DATABASE_URL={url}\n"));
    let mut tandem = Tandem::up(&project);
    // As if its name had gone with the resolver.
    project.write(".env", &format!("DATABASE_URL={}\n", url.replace("127.0.0.1", "db-that-is-away.example")));
    project.reconfigure(|text| text.replace("'9s'", "'8s'"));
    refusal::run(&project, &["reload"]).expect(0, &["stop.grace", "postgres.url", "holds only after a restart"]);
    assert_eq!((tandem.stop(), server.stop()), (0, 0), "{}", tandem.log());
}
