//! The commands beside `up`: check, install, migrate, psql, url, env, health, completions.

use std::process::Output;

use crate::common::project::Project;
use crate::common::tandem::{self, Tandem, run};

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}

#[test]
fn check_prints_the_plan_with_origins_and_without_secrets() {
    let project = Project::app("plain:app");
    project.configure("postgres.password = 'hunter2-hunter2'\nworkers.count = 3");
    let text = stdout(&run(&project, &["check", "--set", "workers.backlog=100"]));
    let row = |key: &str| text.lines().find(|line| line.starts_with(key)).unwrap_or_default().to_owned();
    assert!(row("workers.count ").contains("tandem.toml:2"), "{text}");
    assert!(row("workers.backlog ").contains("--set"), "{text}");
    assert!(row("health.workers_min ").contains("default"), "{text}");
    assert!(text.contains("connections:") && text.contains("stop:"), "{text}");
    assert!(!text.contains("hunter2"), "{text}");

    let json: serde_json::Value = serde_json::from_str(&stdout(&run(&project, &["check", "--json"]))).unwrap();
    assert!(json["keys"].as_array().unwrap().iter().any(|row| row["key"] == "workers.app"));
    assert!(!json.to_string().contains("hunter2"));
    assert!(!project.state().exists(), "check made something");
}

#[test]
fn install_fetches_everything_and_starts_nothing() {
    let project = Project::app("plain:app");
    let json: serde_json::Value = serde_json::from_str(&stdout(&run(&project, &["install", "--json"]))).unwrap();
    assert!(json["postgres"]["version"].as_str().unwrap().starts_with("16."), "{json}");
    assert!(std::path::Path::new(json["python"].as_str().unwrap()).exists(), "{json}");
    assert!(!project.data().exists());
    assert!(tandem::left_in(project.dir()).is_empty());
}

/// As in an image, where the application is copied after its packages.
#[test]
fn an_installation_comes_before_the_application() {
    let project = Project::app_with("plain:app", "migrations.run = ['later/migrate']");
    let later = "migrations.dir = 'later/migrations'\nworkers.app_dir = 'later'\n\
                 [[process]]\nname = 'clock'\ncommand = ['true']\ndir = 'later'";
    let text = std::fs::read_to_string(project.dir().join("tandem.toml")).unwrap();
    let others = text.lines().filter(|line| !line.starts_with("workers.app_dir")).collect::<Vec<_>>().join("\n");
    project.write("tandem.toml", &format!("{others}\n{later}\n"));
    assert!(stdout(&run(&project, &["install"])).contains("PostgreSQL 16."));
    let refused = run(&project, &["check"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(78), "{said}");
    for key in ["workers.app_dir", "migrations.dir", "migrations.run", "process.dir"] {
        assert!(said.contains(key), "{key}: {said}");
    }
}

#[test]
fn psql_url_env_and_health_reach_a_running_tandem() {
    let project = Project::backend();
    assert_eq!(run(&project, &["health"]).status.code(), Some(1), "healthy before it ran");
    let url = run(&project, &["url"]);
    assert_eq!(url.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&url.stderr).contains("`tandem up` makes it"), "{url:?}");

    let mut tandem = Tandem::up(&project);
    let rows =
        stdout(&run(&project, &["psql", "-XAtc", "SELECT current_user || ' ' || version_num FROM alembic_version"]));
    assert_eq!(rows, "app 004_add_indexes");

    let url = stdout(&run(&project, &["url", "--scheme", "postgresql+psycopg2"]));
    assert!(url.starts_with("postgresql+psycopg2://app:"), "{url}");
    assert!(url.ends_with(&format!("@127.0.0.1:{}/app", project.postgres)), "{url}");
    assert!(!url.contains('%'), "a generated password needs no encoding: {url}");

    let env = stdout(&run(&project, &["env"]));
    assert!(env.contains(&format!("export PGPORT='{}'", project.postgres)), "{env}");
    assert!(env.contains("export DATABASE_URL='postgresql+psycopg2://app:"), "{env}");

    assert_eq!(stdout(&run(&project, &["health"])), "healthy (200)");
    assert_eq!(stdout(&run(&project, &["health", "--ready"])), "ready (200)");
    let ready: serde_json::Value =
        serde_json::from_str(&stdout(&run(&project, &["health", "--ready", "--json"]))).unwrap();
    assert_eq!(ready["ready"], true);
    assert_eq!(tandem.stop(), 0);
}

#[test]
fn migrate_works_beside_a_running_tandem_and_without_one() {
    let project = Project::backend();
    // Nothing runs: a server is started for it, and stopped afterwards.
    let status = stdout(&run(&project, &["migrate", "status"]));
    assert_eq!(status.lines().filter(|line| line.starts_with("pending")).count(), 4, "{status}");
    assert!(stdout(&run(&project, &["migrate", "up"])).contains("applied m004_add_indexes"));
    assert!(tandem::left_in(project.dir()).is_empty());

    let mut tandem = Tandem::up(&project);
    assert!(stdout(&run(&project, &["migrate", "down"])).contains("took back m004_add_indexes"));
    let rows: serde_json::Value =
        serde_json::from_str(&stdout(&run(&project, &["migrate", "status", "--json"]))).unwrap();
    assert_eq!(rows[3]["applied"], false);
    assert!(stdout(&run(&project, &["migrate", "up"])).contains("applied m004_add_indexes"));
    assert!(stdout(&run(&project, &["migrate", "up"])).contains("nothing to apply"));
    assert_eq!(tandem.stop(), 0);
}

#[test]
fn completions_are_printed_for_every_shell() {
    let project = Project::app("plain:app");
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(stdout(&run(&project, &["completions", shell])).contains("tandem"), "{shell}");
    }
}

#[test]
fn every_command_has_help_with_an_example() {
    let project = Project::app("plain:app");
    let running = ["status", "reload", "restart", "scale", "stop", "logs"];
    let others = ["up", "check", "migrate", "psql", "url", "env", "health", "install", "completions"];
    for command in running.into_iter().chain(others) {
        let help = stdout(&run(&project, &[command, "--help"]));
        assert!(help.contains("Example: ") || help.contains("Examples: "), "{help}");
        assert!(help.contains("--config"), "{help}");
    }
    assert_eq!(run(&project, &["upp"]).status.code(), Some(64));
}
