//! The power is cut at every moment of a backup, of a push of WAL, of a base backup, and the disk has kept what POSIX
//! lets it: what was acknowledged is there and whole, and whatever has its final name is whole.
//!
//! What the commands write, name and flush is recorded; what a disk may have of it is worked out in
//! `common::power_cut`.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::common::backups::{running, running_with};
use crate::common::pitr;
use crate::common::power_cut::{Disk, Step, Tree, read_tree};
use crate::common::project::Project;
use crate::common::skip::skip;
use crate::common::system_calls::{Recording, read, record, refused};
use crate::common::tandem::{self, Tandem, wait_for};
use ::tandem::backup::pitr::archive::Archive;
use ::tandem::backup::pitr::wal::WalFile;

/// A name that says of itself and of others that they are there and whole. Names are those below the recorded
/// directory, of files or of directories with all that is in them.
struct Promise {
    name: String,
    needs: Vec<String>,
    /// It may itself be lost or cut: it promises where it says something.
    is_note: bool,
}

fn promise(name: &str, needs: &[&str]) -> Promise {
    Promise { name: name.to_owned(), needs: needs.iter().map(|name| (*name).to_owned()).collect(), is_note: false }
}

/// A command that was recorded, and the files before and after it.
pub struct Cut {
    pub before: Tree,
    pub after: Tree,
    pub recording: Recording,
}

impl Cut {
    /// Run `command`, which must succeed, and record what it does below `root`. `is_foreign` names what other processes
    /// write there.
    pub fn of(command: &Command, root: &Path, is_foreign: impl Fn(&str) -> bool) -> Self {
        let before = read_tree(root);
        let recording = record(command, root);
        assert!(recording.output.status.success(), "{:?}", recording.output);
        let cut = Self { before, after: read_tree(root), recording };
        // Whatever the recorder did not see would be missing here.
        let mut disk = Disk::holding(&cut.before);
        cut.recording.steps.iter().for_each(|step| disk.take(step));
        let own = |tree: &Tree| -> Tree {
            tree.iter().filter(|(path, _)| !is_foreign(path)).map(|(path, it)| (path.clone(), it.clone())).collect()
        };
        let (replayed, real) = (own(&disk.tree()), own(&cut.after));
        let paths: BTreeSet<&String> = replayed.keys().chain(real.keys()).collect();
        let length = |tree: &Tree, path: &String| tree.get(path).map(|it| it.as_ref().map(|it| it.len()));
        let other = paths.into_iter().filter(|path| replayed.get(*path) != real.get(*path));
        let other: Vec<_> = other.map(|path| (path, length(&replayed, path), length(&real, path))).collect();
        assert!(other.is_empty(), "recorded and there: {other:?}");
        cut
    }

    /// Cut the power after every step; the first promise that is broken then, if any.
    fn broken(&self, promises: &[Promise]) -> Option<String> {
        self.fails(0, |tree, acknowledged| promises.iter().find_map(|promise| self.check(promise, tree, acknowledged)))
    }

    /// Cut the power after every step from the one at `from` on; what `check` says first of what is found then, and of whether the
    /// command had told that it was done.
    pub fn fails(&self, from: usize, check: impl Fn(&Tree, bool) -> Option<String>) -> Option<String> {
        let mut disk = Disk::holding(&self.before);
        let mut cuts = 0;
        for (at, step) in self.recording.steps.iter().enumerate() {
            disk.take(step);
            if at < from {
                continue;
            }
            // Between two writes nothing else is at stake than before the next flush or name.
            let next = self.recording.steps.get(at + 1);
            if next.is_some_and(|next| matches!(next, Step::Write { .. } | Step::Seek { .. })) {
                continue;
            }
            for tree in disk.after_power_cut() {
                cuts += 1;
                if let Some(why) = check(&tree, disk.is_acknowledged()) {
                    let recent = &self.recording.steps[at.saturating_sub(8)..=at];
                    let recent: Vec<String> = recent.iter().map(brief).collect();
                    return Some(format!("{why}, after\n  {}", recent.join("\n  ")));
                }
            }
        }
        assert!(cuts > 10, "only {cuts} power cuts");
        None
    }

    fn hold(&self, promises: &[Promise]) {
        if let Some(why) = self.broken(promises) {
            panic!("a power cut broke a promise: {why}");
        }
    }

    fn check(&self, promise: &Promise, tree: &Tree, acknowledged: bool) -> Option<String> {
        if !tree.contains_key(&promise.name) || (promise.is_note && tree[&promise.name] != self.after[&promise.name]) {
            let is_promised = acknowledged && !promise.is_note && self.after.contains_key(&promise.name);
            return is_promised.then(|| format!("{} was acknowledged and is gone", promise.name));
        }
        let mut names = promise.needs.iter().chain([&promise.name]);
        names.find_map(|name| {
            let is_part = |path: &String| path == name || path.strip_prefix(name).is_some_and(|it| it.starts_with('/'));
            // What it removes was whole before.
            let meant = if self.after.contains_key(&promise.name) { &self.after } else { &self.before };
            let mut parts = meant.iter().filter(|(path, _)| is_part(path)).peekable();
            assert!(parts.peek().is_some(), "{name} is nowhere");
            let (path, _) = parts.find(|(path, content)| tree.get(*path) != Some(*content))?;
            let state = tree.get(path).map_or("missing", |_| "not whole");
            Some(format!("{} is there, and {path} is {state}", promise.name))
        })
    }

    /// The names that were not there before and begin and end so.
    fn added(&self, beginning: &str, ending: &str) -> Vec<String> {
        let new = self.after.keys().filter(|path| !self.before.contains_key(*path));
        new.filter(|path| path.starts_with(beginning) && path.ends_with(ending)).cloned().collect()
    }
}

/// A step without the bytes that it writes.
fn brief(step: &Step) -> String {
    match step {
        Step::Write { path, bytes, .. } => format!("Write {{ path: {path:?}, {} bytes }}", bytes.len()),
        other => format!("{other:?}"),
    }
}

pub fn tandem_command(project: &Project, args: &[&str]) -> Command {
    let mut command = tandem::command(project);
    command.args(args);
    command
}

fn nothing(_: &str) -> bool {
    false
}

pub fn can_record() -> bool {
    let refused = refused();
    if let Some(why) = &refused {
        skip(why);
    }
    refused.is_none()
}

/// A shell's command below a directory of its own.
fn shell(script: &str) -> Option<String> {
    let temp = tempfile::tempdir().unwrap();
    let mut command = tandem::command_as("sh", temp.path());
    command.args(["-c", script]);
    Cut::of(&command, temp.path(), nothing).broken(&[promise("a", &[]), promise("b", &["a"])])
}

#[test]
fn calls_that_others_interrupt_are_put_together_and_a_flush_covers_what_was_before_its_beginning() {
    let log = [
        r#"7 openat(AT_FDCWD<\x2f>, "\x61\x2f\x62", O_WRONLY|O_CREAT, 0600) = 3<\x2f\x61\x2f\x62>"#,
        r"8 fsync(3<\x2f\x61\x2f\x62> <unfinished ...>",
        r#"7 writev(3<\x2f\x61\x2f\x62>, [{iov_base="\x31", iov_len=1}, {iov_base="\x32\x33", iov_len=2}], 2) = 2"#,
        r"8 <... fsync resumed>) = 0",
        r#"7 write(1<\x2f\x62>, "\x31", 1) = 1"#,
        r#"7 rename("\x2f\x61\x2f\x62", "\x2f\x61\x2f\x63") = -1 ENOENT (No such file or directory)"#,
    ];
    let path = "b".to_owned();
    let wanted = [
        Step::Open { path: path.clone(), create: true, cut: false, append: false },
        Step::Flushing { path: Some(path.clone()) },
        Step::Write { path, at: None, bytes: b"12".to_vec() },
        Step::Flushed { begun: 1 },
    ];
    assert_eq!(read(&log.join("\n"), Path::new("/a"), Path::new("/"), Path::new("/nowhere")), wanted);
}

#[test]
fn a_program_that_forgets_a_flush_is_caught() {
    if !can_record() {
        return;
    }
    let broken = shell("echo 1 >.new; mv .new a; sync .").unwrap();
    assert!(broken.contains("a is there, and a is not whole"), "{broken}");
    let broken = shell("echo 1 >.new; sync .new; mv .new a").unwrap();
    assert!(broken.contains("a was acknowledged and is gone"), "{broken}");
    let broken = shell("echo 1 >.new; sync .new; mv .new a; echo done; sync .").unwrap();
    assert!(broken.contains("a was acknowledged and is gone"), "{broken}");
    let broken = shell("echo 1 >.a; sync .a; mv .a a; echo 2 >.b; sync .b; mv .b b; sync .").unwrap();
    assert!(broken.contains("b is there, and a is missing"), "{broken}");
    let broken = shell("mkdir d; echo 1 >d/a; sync d/a; mv d/a a; echo 2 >>a; sync .").unwrap();
    assert!(broken.contains("a is there, and a is not whole"), "{broken}");
    let whole = "echo 1 >.a; sync .a; mv .a a; sync .; echo 2 >.b; sync .b; mv .b b; sync .; echo done";
    assert_eq!(shell(whole), None);
}

/// A running project that keeps backups two directories deep in `kept`, none of which is there, and copies in
/// `kept/far`.
fn with_copies() -> (Project, Tandem) {
    let (project, tandem) = running();
    let kept = project.dir().join("kept");
    fs::create_dir_all(kept.join("far")).unwrap();
    let (dir, far) = (kept.join("on/backups"), kept.join("far"));
    project.configure(&format!("backup.dir = '{}'\nbackup.destinations = ['file://{}']", dir.display(), far.display()));
    (project, tandem)
}

/// The file that a recorded `tandem backup` says that it made.
fn file_of(cut: &Cut) -> String {
    let manifest: Value = serde_json::from_slice(&cut.recording.output.stdout).unwrap();
    manifest["file"].as_str().unwrap().to_owned()
}

/// What the names that a backup of `file` leaves in `on/backups` promise.
fn of_backup(file: &str) -> Vec<Promise> {
    let path = |name: &str| format!("on/backups/{name}");
    let stem = file.split('.').next().unwrap();
    let beside = ["manifest.json", "globals.sql"].map(|ending| path(&format!("{stem}.{ending}")));
    let mut promises: Vec<Promise> = beside.iter().map(|name| promise(name, &[])).collect();
    promises.push(promise(&path(file), &[&beside[0], &beside[1]]));
    promises
}

#[test]
fn a_backup_and_its_copies_outlive_a_power_cut() {
    if !can_record() {
        return;
    }
    let (project, _tandem) = with_copies();
    let kept = project.dir().join("kept");
    for format in ["plain", "custom"] {
        let cut = Cut::of(&tandem_command(&project, &["backup", "--json", "--format", format]), &kept, nothing);
        let file = file_of(&cut);
        let ledgers = cut.added("on/backups/", ".copies.json");
        let copies = cut.added("far/", "");
        assert!(ledgers.len() == 1 && copies.iter().any(|copy| copy.ends_with(&file)), "{ledgers:?}, {copies:?}");
        let copies: Vec<&str> = copies.iter().map(String::as_str).collect();
        let mut promises = of_backup(&file);
        promises.extend(copies.iter().map(|copy| promise(copy, &[])));
        promises.push(promise(&ledgers[0], &copies));
        cut.hold(&promises);
    }
    // A directory is not copied.
    project.reconfigure(|text| text.replace("backup.destinations", "# backup.destinations"));
    let cut = Cut::of(&tandem_command(&project, &["backup", "--json", "--format", "directory"]), &kept, nothing);
    cut.hold(&of_backup(&file_of(&cut)));
    // What is left in the worst case restores as what was whole.
    let command = tandem_command(&project, &["backup", "--json"]);
    let cut = Cut::of(&command, &kept, nothing);
    let mut disk = Disk::holding(&cut.before);
    cut.recording.steps.iter().for_each(|step| disk.take(step));
    fs::remove_dir_all(&kept).unwrap();
    for (path, content) in disk.after_power_cut().next().unwrap() {
        match content {
            Some(bytes) => fs::write(kept.join(path), &*bytes).unwrap(),
            None => fs::create_dir_all(kept.join(path)).unwrap(),
        }
    }
    crate::common::refusal::run(&project, &["backup", "verify", "--all"]).expect(0, &["verified"]);
}

#[test]
fn a_backup_that_is_removed_is_there_or_gone_after_a_power_cut() {
    if !can_record() {
        return;
    }
    let (project, _tandem) = running_with("backup.retention_days = 0\nbackup.verify = 'never'");
    let dir = project.state().join("backups");
    for format in ["plain", "directory"] {
        crate::common::backups::backup(&project, &["--format", format]);
    }
    project.configure("backup.retention_count = 1");
    let command = tandem_command(&project, &["backup", "prune"]);
    let cut = Cut::of(&command, &dir, nothing);
    let gone: Vec<&String> = cut.before.keys().filter(|path| !cut.after.contains_key(*path)).collect();
    let dump = gone.iter().find(|path| path.ends_with(".sql.gz"));
    let dump = dump.unwrap_or_else(|| panic!("{}", String::from_utf8_lossy(&cut.recording.output.stdout)));
    let stem = dump.split('.').next().unwrap();
    cut.hold(&[promise(dump, &[&format!("{stem}.manifest.json"), &format!("{stem}.globals.sql")])]);
}

#[test]
fn wal_and_base_backups_outlive_a_power_cut() {
    if !can_record() {
        return;
    }
    let project = pitr::project("backup.pitr.base_backups = 1");
    let _tandem = Tandem::up(&project);
    let archive = Archive::new(pitr::archive(&project));
    for _ in 0..6 {
        pitr::superuser(&project, "SELECT pg_logical_emit_message(false, 'test', 'x'); SELECT pg_switch_wal()");
    }
    wait_for("archived WAL", || archive.names().unwrap().len() >= 6);
    push(&project, &archive);
    pitr::succeed(&project, &["backup", "base"]);
    pitr::superuser(&project, "SELECT pg_logical_emit_message(false, 'test', 'x'); SELECT pg_switch_wal()");
    // The second base backup removes the first, and the WAL that only that one needed.
    let is_wal = |path: &str| path.starts_with("wal/");
    let cut = Cut::of(&tandem_command(&project, &["backup", "base"]), archive.dir(), is_wal);
    let bases = |tree: &Tree| -> BTreeSet<String> {
        tree.keys().filter(|path| path.starts_with("base/") && path.matches('/').count() == 1).cloned().collect()
    };
    let (first, second) = (bases(&cut.before), bases(&cut.after));
    assert!(first.len() == 1 && second.len() == 1 && first.is_disjoint(&second), "{first:?}, {second:?}");
    let removed: Vec<&str> = cut.before.keys().filter(|path| is_wal(path)).map(String::as_str).collect();
    let removed: Vec<&str> = removed.into_iter().filter(|path| !cut.after.contains_key(*path)).collect();
    assert!(!removed.is_empty(), "{:?}", cut.before.keys());
    cut.hold(&[promise(first.first().unwrap(), &removed), promise(second.first().unwrap(), &[])]);
}

/// Push what is in `pg_wal`, into another archive: one by itself, and a queue.
fn push(project: &Project, archive: &Archive) {
    let temp = tempfile::tempdir().unwrap();
    let (pg_wal, other) = (temp.path().join("pg_wal"), Archive::new(temp.path().join("pitr")));
    fs::create_dir_all(pg_wal.join("archive_status")).unwrap();
    other.prepare(archive.system_identifier().unwrap().unwrap(), None).unwrap();
    let mut names: Vec<WalFile> = archive.names().unwrap();
    names.retain(|name| matches!(name, WalFile::Segment(_)) && archive_source(project, name).exists());
    names.sort_by_key(WalFile::to_string);
    assert!(names.len() >= 5, "{names:?}");
    for name in &names {
        fs::copy(archive_source(project, name), pg_wal.join(name.to_string())).unwrap();
    }
    let pushed = |name: &WalFile| {
        let path = pg_wal.join(name.to_string()).display().to_string();
        let args = ["wal", "push", "--archive", other.dir().to_str().unwrap(), &path];
        let cut = Cut::of(&tandem_command(project, &args), temp.path(), nothing);
        let segments = cut.added("pitr/wal/", ".zst");
        assert!(segments.iter().any(|path| path.contains(&name.to_string())), "{segments:?}");
        let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
        let mut promises: Vec<Promise> = segments.iter().map(|path| promise(path, &[])).collect();
        // What the note says is confirmed without a look into it.
        if cut.after.contains_key("pg_wal/tandem.ahead") {
            promises.push(Promise { is_note: true, ..promise("pg_wal/tandem.ahead", &segments) });
        }
        cut.hold(&promises);
        segments.len()
    };
    assert_eq!(pushed(&names[0]), 1);
    for name in &names[1..] {
        fs::write(pg_wal.join(format!("archive_status/{name}.ready")), "").unwrap();
    }
    assert!(pushed(&names[1]) > 2, "a queue is pushed ahead");
    // Another archive than the one that the notes are of, and in it a folder that a killed push has made just now.
    let fresh = Archive::new(temp.path().join("fresh"));
    fresh.prepare(archive.system_identifier().unwrap().unwrap(), None).unwrap();
    let (place, source) = (fresh.path(names[2]), pg_wal.join(names[2].to_string()));
    let script = format!(
        "mkdir -m 700 {}; exec {} wal push --archive {} {}",
        place.parent().unwrap().display(),
        env!("CARGO_BIN_EXE_tandem"),
        fresh.dir().display(),
        source.display()
    );
    let mut command = tandem::command_as("sh", temp.path());
    command.args(["-c", &script]);
    let cut = Cut::of(&command, temp.path(), nothing);
    let segments = cut.added("fresh/wal/", ".zst");
    assert!(segments.iter().any(|path| path.contains(&names[2].to_string())), "{segments:?}");
    let promises: Vec<Promise> = segments.iter().map(|path| promise(path, &[])).collect();
    cut.hold(&promises);
}

fn archive_source(project: &Project, name: &WalFile) -> std::path::PathBuf {
    project.data().join("pg_wal").join(name.to_string())
}
