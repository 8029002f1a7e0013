//! What is kept so that data can come back.

use std::time::Duration;

use super::{APP, project};
use crate::config::AtLimit;

#[test]
fn a_nested_section_finds_its_fields() {
    let file = "[workers]\napp = 'main:app'\n[backup.pitr]\nenabled = true\ndir = '/backups/pitr'\nmax_backlog = '64MB'\n\
                at_limit = 'give_up'\narchive_timeout = '5s'\nbase_backups = 3\nkeep_days = 9\n\
                copy = false\nbehind_max = '5m'\n";
    let pitr = project(&[("tandem.toml", file)]).loaded().settings.backup.pitr;
    assert_eq!((pitr.enabled, pitr.dir.unwrap().to_str(), pitr.max_backlog), (true, Some("/backups/pitr"), 64 << 20));
    assert_eq!((pitr.at_limit, pitr.archive_timeout), (AtLimit::GiveUp, Duration::from_secs(5)));
    assert_eq!((pitr.base_backups, pitr.keep_days), (3, 9));
    assert_eq!((pitr.copy, pitr.behind_max, pitr.ack), (false, Duration::from_secs(300), Ack::Local));
    let pitr = project(&[("tandem.toml", APP)])
        .environment(&[("TANDEM_BACKUP__PITR__ENABLED", "true")])
        .loaded()
        .settings
        .backup
        .pitr;
    assert_eq!((pitr.enabled, pitr.dir, pitr.at_limit, pitr.copy), (true, None, AtLimit::Warn, true));
}

#[test]
fn what_archiving_needs_is_nobody_elses_to_set() {
    let with = |more: &str| project(&[("tandem.toml", &format!("{APP}\n{more}"))]).load().unwrap_err().to_string();
    let refused =
        with("[backup.pitr]\nenabled = true\n[postgres.settings]\narchive_command = 'true'\nWAL_level = 'minimal'\n");
    assert!(refused.contains("archive_command follows from [backup.pitr]"), "{refused}");
    assert!(refused.contains("wal_level follows from"), "{refused}");
    let logical = format!("{APP}\n[backup.pitr]\nenabled = true\n[postgres.settings]\nwal_level = 'Logical'\n");
    assert!(project(&[("tandem.toml", &logical)]).load().is_ok(), "it holds what recovery needs, and more");
    let refused = with("[backup.pitr]\nenabled = true\narchive_timeout = '1500ms'\n");
    assert!(refused.contains("whole seconds"), "{refused}");
    let refused = with("[backup.ptr]\nenabled = true\n");
    assert!(refused.contains("did you mean [backup.pitr]?"), "{refused}");
    let refused = with("[backup]\npitr = true\n");
    assert!(refused.contains("`backup.pitr` is a section"), "{refused}");
}

#[test]
fn where_the_server_is_somebody_elses_its_wal_is_too() {
    let loaded = project(&[("tandem.toml", &format!("{APP}\n[backup.pitr]\nenabled = true\n"))])
        .environment(&[("DATABASE_URL", "postgresql://user:secret@db.example.org/shop")])
        .loaded();
    assert!(loaded.notices.iter().any(|notice| notice.contains("[backup.pitr] has no effect")), "{:?}", loaded.notices);
}
