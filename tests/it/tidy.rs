//! The walls of the house: which room may use which, and how large a file may grow.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The rooms from the top of the house to its cellar, as `lib.rs` lists them. A room uses only rooms below it; rooms of
/// one floor never meet.
const FLOORS: &[&[&str]] = &[
    &["build"],
    &["main"],
    &["commands"],
    &["cli"],
    &["doctor"],
    &["sidecar"],
    &["otlp", "backup", "sqlite"],
    &["harness"],
    &["boot"],
    &["postgres", "workers", "control", "page"],
    &["schema", "health", "compose"],
    &["install", "certificate", "companions", "signals", "systemd", "watch", "http", "scaffold", "stats"],
    &["service"],
    &["process"],
    &["telemetry"],
    &["room"],
    &["config"],
    &["project"],
    &["event_loop"],
    &["durable", "plan", "phase", "metrics"],
    &["supervise"],
    &["exit"],
    &["book"],
    &["scrub"],
];

/// What unit tests alone use, in every room.
const TESTS_ONLY: &[&str] = &["skip", "forks"];

/// A file past this asks for a wall.
const LINES_MAX: usize = 450;

pub fn files(dir: &Path, suffix: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, suffix));
        } else if path.to_string_lossy().ends_with(suffix) {
            found.push(path);
        }
    }
    found
}

pub fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// The room that a file of `src` belongs to.
fn room_of(path: &Path) -> String {
    let inside = path.strip_prefix(source()).unwrap();
    let first = inside.components().next().unwrap().as_os_str().to_string_lossy().into_owned();
    first.trim_end_matches(".rs").to_owned()
}

/// The rooms that `text` names as `crate::room`.
fn used(text: &str) -> BTreeSet<String> {
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    let name = |rest: &str| rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    code.flat_map(|line| line.split("crate::").skip(1).map(name).collect::<Vec<_>>()).collect()
}

fn floor(room: &str) -> usize {
    let found = FLOORS.iter().position(|floor| floor.contains(&room));
    found.unwrap_or_else(|| panic!("room `{room}` is on no floor: add it to the map in lib.rs and to FLOORS"))
}

#[test]
fn no_room_uses_one_above_it() {
    let mut arrows = 0;
    for path in files(&source(), ".rs") {
        let room = room_of(&path);
        // `supervise` is a crate of its own: its `crate::` is itself, and no other room can be named in it.
        if room == "lib" || room == "supervise" {
            continue;
        }
        for target in used(&fs::read_to_string(&path).unwrap()) {
            if target == room || target.is_empty() || TESTS_ONLY.contains(&target.as_str()) {
                continue;
            }
            arrows += 1;
            let (from, to) = (floor(&room), floor(&target));
            assert!(from < to, "{} uses `{target}`, which is not below `{room}`", path.display());
        }
    }
    assert!(arrows > 50, "only {arrows} uses were seen: the test reads the wrong files");
}

/// What only `durable` does, as it stands in code.
const OF_DURABLE: &[&str] = &[
    "fs::rename(",
    "renameat",
    ".persist(",
    ".persist_noclobber(",
    "Flock",
    "flock(",
    "lock_shared(",
    ".try_lock()",
    "lock_exclusive(",
];

#[test]
fn one_room_renames_and_locks_files() {
    let mut inside = 0;
    for path in files(&source(), ".rs") {
        let text = fs::read_to_string(&path).unwrap();
        let code = text.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//"));
        for (number, line) in code.filter(|(_, line)| OF_DURABLE.iter().any(|word| line.contains(word))) {
            let place = format!("{}:{}", path.display(), number + 1);
            assert_eq!(room_of(&path), "durable", "{place} renames or locks by itself: {}", line.trim());
            inside += 1;
        }
    }
    assert!(inside > 3, "only {inside} places were seen: the test looks for the wrong words");
}

#[test]
fn the_map_in_lib_names_every_room_in_order() {
    let text = fs::read_to_string(source().join("lib.rs")).unwrap();
    let map = &text[text.find("# The rooms").unwrap()..];
    let mut last = 0;
    for room in FLOORS.iter().copied().flatten() {
        let place = map.find(&format!("//! {room} ")).or_else(|| map.find(&format!("//! {room}/ ")));
        let place = place.unwrap_or_else(|| panic!("the map in lib.rs does not name `{room}`"));
        assert!(place > last, "the map in lib.rs has `{room}` out of order");
        last = place;
    }
}

#[test]
fn every_file_of_tests_is_run() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it");
    let main = fs::read_to_string(dir.join("main.rs")).unwrap();
    for entry in fs::read_dir(&dir).unwrap() {
        let name = entry.unwrap().file_name().to_string_lossy().trim_end_matches(".rs").to_owned();
        let is_run = name == "main" || main.lines().any(|line| line == format!("mod {name};"));
        assert!(is_run, "tests/it/main.rs does not name `{name}`, so no test in it runs");
    }
}

#[test]
fn no_file_grows_past_its_walls() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut seen = 0;
    for dir in ["src", "migration/src", "tests", "benches", "examples"] {
        let dir = root.join(dir);
        for path in files(&dir, ".rs").into_iter().chain(files(&dir, ".py")) {
            let lines = fs::read_to_string(&path).unwrap().lines().count();
            assert!(lines <= LINES_MAX, "{} has {lines} lines", path.display());
            seen += 1;
        }
    }
    assert!(seen > 50, "only {seen} files were seen");
}
