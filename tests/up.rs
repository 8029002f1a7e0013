//! The main job: one command from nothing to serving, the second start, and the commands beside it.

mod common;

use common::project::Project;
use common::tandem::{self, Tandem};
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
