//! The power is cut when a new cluster gets its name, and when a recovered one takes the place of the old: there is one whole
//! cluster under the name, or none yet, and the old one is kept.

use crate::common::pitr;
use crate::common::power_cut::{Disk, Step, Tree};
use crate::common::project::Project;
use crate::common::system_calls::record;
use crate::common::tandem::Tandem;
use crate::power_cut::{Cut, can_record, tandem_command};
use std::fs;

/// What is below `dir`, apart from what PostgreSQL makes again when it is lost, and so never flushes.
fn below(tree: &Tree, dir: &str) -> Tree {
    let is_made_again = |path: &str| {
        let name = path.rsplit('/').next().unwrap_or_default();
        matches!(name, "pg_internal.init" | "postmaster.opts" | "postmaster.pid" | "current_logfiles")
            || ["pg_stat/", "pg_stat_tmp/", "pg_subtrans/", "pg_notify/", "pg_dynshmem/"]
                .iter()
                .any(|dir| path.starts_with(dir))
    };
    let inside = tree.iter().filter_map(|(path, it)| Some((path.strip_prefix(dir)?.strip_prefix('/')?, it)));
    inside.filter(|(path, _)| !is_made_again(path)).map(|(path, it)| (path.to_owned(), it.clone())).collect()
}

/// In what a data directory that was found differs from the one that is meant.
fn unlike(found: &Tree, meant: &Tree) -> Option<String> {
    let lost = meant.iter().find(|(path, it)| found.get(*path) != Some(*it)).map(|(path, _)| path);
    let path = lost.or_else(|| found.keys().find(|path| !meant.contains_key(*path)))?;
    Some(format!("{path} is {}", found.get(path).map_or("missing", |_| "another")))
}

#[test]
fn a_new_cluster_is_whole_or_absent_after_a_power_cut() {
    if !can_record() {
        return;
    }
    let project = Project::app_with("plain:app", "workers.count = 1\nmigrations.run = 'seaorm'");
    let state = project.state().join("postgres");
    // PostgreSQL and the Python environment are there by then.
    assert_eq!(Tandem::up(&Project::app("plain:app")).stop(), 0);
    fs::create_dir_all(&state).unwrap();
    let recording = record(&tandem_command(&project, &["migrate", "up"]), &state);
    assert!(recording.output.status.success(), "{:?}", recording.output);
    let steps = &recording.steps;
    let is_named = |step: &Step| matches!(step, Step::Rename { to, .. } if to == "16");
    let named = steps.iter().position(is_named).expect("the cluster got its name");
    let mut disk = Disk::holding(&Tree::new());
    steps[..=named].iter().for_each(|step| disk.take(step));
    let whole = below(&disk.tree(), "16");
    assert!(whole.len() > 900 && whole.contains_key("global/pg_control"), "{} files", whole.len());
    // From when on it is there for good.
    let flushed = steps[named..].iter().position(|step| *step == Step::Flushing { path: Some(String::new()) });
    let begun = named + flushed.expect("the directory around it is flushed");
    let flushed = begun + steps[begun..].iter().position(|step| *step == Step::Flushed { begun }).unwrap();
    let mut disk = Disk::holding(&Tree::new());
    for (at, step) in steps[..=flushed].iter().enumerate() {
        disk.take(step);
        for tree in (at >= named).then(|| disk.after_power_cut()).into_iter().flatten() {
            let found = below(&tree, "16");
            if found.is_empty() && !tree.contains_key("16") {
                assert!(at < flushed, "the new cluster is gone");
            } else if let Some(why) = unlike(&found, &whole) {
                panic!("the new cluster is not whole: {why}");
            }
        }
    }
}

#[test]
fn a_restore_to_a_moment_leaves_one_whole_cluster_under_the_name_and_keeps_the_old_one() {
    if !can_record() {
        return;
    }
    let project = pitr::project("postgres.settings.wal_init_zero = 'off'");
    let mut tandem = Tandem::up(&project);
    pitr::sql(&project, "CREATE TABLE t (n int); INSERT INTO t VALUES (1)");
    pitr::succeed(&project, &["backup", "base"]);
    pitr::sql(&project, "INSERT INTO t VALUES (2)");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    let command = tandem_command(&project, &["restore", "--to-end", "--yes"]);
    let cut = Cut::of(&command, &project.state().join("postgres"), |path| {
        below(&[(path.to_owned(), None)].into(), "16").is_empty()
    });
    let (old, new) = (below(&cut.before, "16"), below(&cut.after, "16"));
    let kept = cut.after.keys().find(|path| path.starts_with("16_before_restore_") && !path.contains('/')).unwrap();
    assert!(old != new && unlike(&below(&cut.after, kept), &old).is_none());
    // Until then nothing has happened to what is there.
    let is_ready = |step: &Step| matches!(step, Step::Remove { path } if path.ends_with("/tandem.restoring"));
    let ready = cut.recording.steps.iter().position(is_ready).expect("a new one is ready");
    let broken = cut.fails(ready, |tree, acknowledged| {
        // Nothing that may be removed.
        let is_kept = |dir: &String| {
            unlike(&below(tree, dir), &old).is_none() && !tree.contains_key(&format!("{dir}/tandem.restoring"))
        };
        let kept = tree.keys().any(|path| !path.contains('/') && *path != "16" && is_kept(path));
        let found = below(tree, "16");
        if unlike(&found, &old).is_none() {
            // Whoever drops what was kept would drop the live one.
            let twice = kept.then(|| "the old cluster has two names".to_owned());
            return twice.or(acknowledged.then(|| "the restore was acknowledged and is gone".to_owned()));
        }
        if let Some(why) = unlike(&found, &new) {
            return Some(format!("the cluster is neither the old one nor the new: {why}"));
        }
        (!kept).then(|| "the old cluster is gone".to_owned())
    });
    assert_eq!(broken, None);
}
