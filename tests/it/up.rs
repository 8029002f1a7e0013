//! The main job: one command from nothing to serving, and the second start.

use crate::common::project::Project;
use crate::common::tandem::{self, Tandem};
use serde_json::json;

#[test]
fn one_command_runs_postgres_the_migrations_four_workers_and_the_health_port() {
    let project = Project::backend();
    let mut tandem = Tandem::up(&project);

    let health = tandem.health();
    assert_eq!(health["status"], "healthy", "{health:#}");
    assert_eq!(tandem.workers().len(), 4);
    let made = json!({ "asset_pair": "BTCUSD", "timeframe": "1h", "confidence": 80, "decision": { "action": "BUY" } });
    let (status, body) = tandem::post(project.app, "/decisions", &made).unwrap();
    assert_eq!(status, 201, "{body}");
    let id = serde_json::from_str::<serde_json::Value>(&body).unwrap()["id"].as_str().unwrap().to_owned();

    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    assert!(tandem::left_in(project.dir()).is_empty());

    // The second start finds all of it.
    let mut tandem = Tandem::up(&project);
    let (status, body) = tandem.get(&format!("/decisions/{id}")).unwrap();
    assert_eq!(status, 200);
    let read: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!((&read["asset_pair"], &read["decision"]), (&made["asset_pair"], &made["decision"]));
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn health_has_the_guides_database_object_and_no_secret() {
    let project = Project::backend();
    let mut tandem = Tandem::up(&project);
    // The tables are in the first sample after the migrations.
    tandem::wait_for("the migrated schema in /health", || {
        tandem.health()["database"]["schema_version"] == "004_add_indexes"
    });
    let health = tandem.health();
    let database = health["database"].as_object().unwrap();
    for key in ["available", "latency_ms", "schema_version", "tables", "connections", "pool_size", "error"] {
        assert!(database.contains_key(key), "{key} is missing in {health:#}");
    }
    let tables = [
        "alembic_version",
        "api_keys",
        "auth_audit",
        "cache_stats",
        "decision_cache",
        "provider_performance",
        "thompson_stats",
        "trade_outcomes",
    ];
    assert_eq!(database["tables"], json!(tables));
    assert_eq!((&health["phase"], &health["workers_ready"]), (&json!("serving"), &json!(4)));
    assert_eq!(
        (&health["migrations"]["newest"], &health["migrations"]["applied"]),
        (&json!("004_add_indexes"), &json!(4))
    );
    assert!(health["disk"]["free_bytes"].as_u64() > Some(0), "{health:#}");
    let password = std::fs::read_to_string(project.state().join("run/password")).unwrap();
    assert!(password.trim().len() >= 43, "256 bits in base64 are 43 characters");
    assert!(!health.to_string().contains(password.trim()));
    assert!(!tandem.log().contains(password.trim()));
    for alias in ["/live", "/livez", "/healthz", "/readyz"] {
        assert_eq!(tandem::get(project.health, alias).unwrap().0, 200, "{alias}");
    }
    assert_eq!(tandem.stop(), 0);
}

#[test]
fn a_worker_gets_the_database_in_its_environment_and_sees_its_clients_address() {
    let project = Project::app_with("plain:app", "name = 'shop'\nworkers.count = 1\nworkers.env.COLOUR = 'blue'");
    project.write(".env", "FROM_DOTENV=yes\n");
    let mut tandem = Tandem::up(&project);
    let env = |name: &str| tandem.get(&format!("/env?name={name}")).unwrap().1;
    assert!(env("DATABASE_URL").starts_with("postgresql+psycopg2://app:"));
    assert_eq!(env("PGPORT"), project.postgres.to_string());
    assert_eq!(env("PGAPPNAME"), "shop-worker-0");
    assert_eq!((env("COLOUR"), env("FROM_DOTENV"), env("DB_POOL_SIZE")), ("blue".into(), "yes".into(), "20".into()));
    assert!(tandem.get("/client").unwrap().1.starts_with("[\"127.0.0.1\""));
    assert_eq!(tandem.stop(), 0);
}

#[test]
fn one_banner_says_where_everything_is_and_how_long_it_took() {
    let project = Project::app("plain:app");
    let mut tandem = Tandem::up(&project);
    tandem.wait_log("is ready after");
    let log = tandem.log();
    let wanted = [
        format!("http://127.0.0.1:{}", project.app),
        format!("http://127.0.0.1:{}/health", project.health),
        "tandem psql".into(),
        "migrate ".into(),
    ];
    for text in wanted {
        assert!(log.contains(&text), "{text} is missing in\n{log}");
    }
    assert_eq!(log.matches("is ready after").count(), 1);
    assert!(log.contains("********"), "the URL is shown without its password");
    assert_eq!(tandem.stop(), 0);
}

#[test]
fn lines_are_json_where_nobody_watches() {
    let project = Project::app("plain:app");
    let mut command = tandem::command(&project);
    command.env("TANDEM_LOG__FORMAT", "auto");
    let mut tandem = Tandem::start_with(&project, command, &["up"]);
    tandem.wait_ready();
    assert_eq!(tandem.stop(), 0);
    let log = tandem.log();
    let lines: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.iter().any(|line| line["service.name"] == "postgres"), "{log}");
    assert!(lines.iter().any(|line| line["service.name"] == "worker-3"), "{log}");
    assert!(lines.iter().all(|line| line["timestamp"].is_string() && line["level"].is_string()), "{log}");
}

#[test]
fn two_first_starts_at_once_share_one_install() {
    let projects = [Project::app("plain:app"), Project::app("plain:app")];
    let cache = tempfile::Builder::new().prefix("tandem-test-").tempdir().unwrap();
    open_to_all(cache.path());
    for project in &projects {
        project.configure(&format!("cache_dir = '{}'", cache.path().display()));
    }
    let mut both: Vec<Tandem> = projects.iter().map(Tandem::start).collect();
    both.iter_mut().for_each(Tandem::wait_ready);
    both.iter_mut().for_each(|tandem| assert_eq!(tandem.stop(), 0));
    let entries = std::fs::read_dir(cache.path().join("postgresql")).unwrap();
    let installed = entries.filter(|entry| entry.as_ref().unwrap().path().join("bin/postgres").exists()).count();
    assert_eq!(installed, 1);
}

fn open_to_all(dir: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755)).unwrap();
}
