//! Retention: what a month of nightly backups with weekly proofs comes down to.

use std::fs;

use crate::common::backups::{backup, dir};
use crate::common::project::Project;
use crate::common::refusal;
use crate::common::tandem::Tandem;
use chrono::{TimeDelta, Utc};
use serde_json::Value;

/// The same backup again, as it would be after `days` more days without another.
fn again(project: &Project, stem: &str, days: i64, proven: bool) {
    let aged = format!("app_backup_{}", (Utc::now() - TimeDelta::days(days)).format("%Y%m%d_020000"));
    for ending in ["sql.gz", "globals.sql", "manifest.json", "verdict.json"] {
        let from = dir(project).join(format!("{stem}.{ending}"));
        if ending == "verdict.json" && !proven {
            continue;
        }
        let bytes = fs::read(from).unwrap();
        let named = if ending == "manifest.json" {
            String::from_utf8(bytes).unwrap().replace(stem, &aged).into_bytes()
        } else {
            bytes
        };
        fs::write(dir(project).join(format!("{aged}.{ending}")), named).unwrap();
    }
}

/// How old in days the backups are that stay.
fn stay(project: &Project, flags: &[&str]) -> Vec<usize> {
    let rows = crate::common::tandem::run(project, &[&["backup", "prune", "--dry-run", "--json"], flags].concat());
    let mut rows: Vec<Value> = serde_json::from_slice(&rows.stdout).unwrap();
    rows.reverse();
    assert_eq!(rows.len(), 35, "{rows:#?}");
    (0..35).filter(|at| rows[*at]["remove"] == false).collect()
}

#[test]
fn retention_counts_whole_backups_and_a_proof_protects() {
    let lines = "workers.count = 1\nmigrations.run = 'none'\nbackup.schedule = 'never'\nbackup.retention_days = 0";
    let project = Project::app_with("plain:app", lines);
    let mut tandem = Tandem::up(&project);
    let manifest = backup(&project, &[]);
    refusal::run(&project, &["backup", "verify"]).expect(0, &["verified"]);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    let stem = manifest["file"].as_str().unwrap().strip_suffix(".sql.gz").unwrap();
    // The last that is proven is six days old.
    for days in 1..=35 {
        again(&project, stem, days, days % 7 == 0);
    }
    for ending in ["sql.gz", "globals.sql", "manifest.json", "verdict.json"] {
        fs::remove_file(dir(&project).join(format!("{stem}.{ending}"))).unwrap();
    }
    let set = |settings: &[&str]| -> Vec<usize> {
        let flags: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
        stay(&project, &flags)
    };
    assert_eq!(set(&["backup.retention_count=7"]), (0..7).collect::<Vec<_>>());
    assert_eq!(set(&["backup.retention_count=3"]), [0, 1, 2, 6], "and the newest that is proven");
    let daily = ["backup.retention_days=1", "backup.keep_daily=10"];
    assert_eq!(set(&daily), (0..10).collect::<Vec<_>>());
    assert_eq!(set(&[]).len(), 35, "without a limit, none goes");
}
