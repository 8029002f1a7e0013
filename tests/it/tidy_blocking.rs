//! Nothing that may block runs on the event loop: the code of the rooms on it is searched for calls that wait for a disk, a
//! pipe, a resolver or another process.
//!
//! What is found stands in the arguments of `event_loop::within` or `elsewhere`, or under a comment `// Blocks:` that says
//! why it holds nobody up: it runs on another thread, or only before the loop turns, or cannot wait. A file that has
//! nothing but such calls says so in its head.

use std::fs;
use std::path::Path;

use super::tidy::{files, source};

/// What runs on the event loop.
const ON_THE_LOOP: &[&str] = &[
    "companions.rs",
    "control/",
    "event_loop/",
    "health/",
    "http/",
    "page/",
    "postgres/door.rs",
    "postgres/probe.rs",
    "postgres/provision.rs",
    "postgres/service.rs",
    "process/",
    "sidecar/",
    "service.rs",
    "signals.rs",
    "systemd/",
    "telemetry/",
    "workers/",
];

/// What is called from jobs alone, which run elsewhere; and what only commands use, which run beside.
const OFF_THE_LOOP: &[&str] = &["control/client.rs", "http/client.rs", "workers/environment/"];

/// The system's calls that may wait.
const SYSTEM: &[&str] = &[
    "fs::",
    "File::",
    "OpenOptions::",
    "tempfile::",
    ".metadata()",
    ".symlink_metadata()",
    ".exists()",
    ".is_file()",
    ".is_dir()",
    ".canonicalize()",
    ".read_dir()",
    "procfs::",
    "statvfs(",
    "to_socket_addrs(",
    "waitpid(",
    "User::from_",
    "thread::sleep(",
    "println!(",
    "print!(",
    "io::stdout()",
    "io::stderr()",
    "UnixStream::connect(",
];

/// The house's own that do, and what starts a task or a thread past `event_loop`.
const OWN: &[&str] = &[
    "spawn_blocking(",
    "spawn_local(",
    "process::spawn(",
    "spawn_with(",
    "config::load(",
    "binaries::ensure(",
    "environment::ensure(",
    "cluster::ensure(",
    "identity::lookup(",
    "identity::current(",
    "identity::barrier(",
    "identity::may_write(",
    "identity::refused(",
    "ports::holder(",
    "memory::pss(",
    "memory::rss(",
    "memory::of_families(",
    "memory::available(",
    "stale::",
    "server::wait_ready(",
    "conf::altered(",
    "hold_data(",
    "scheduled::last(",
    "scheduled::record(",
    "catalog::bases(",
    "catalog::listing(",
    "FileSystem::of(",
];

/// What takes a call to another thread.
const DOORS: &[&str] = &["within(", "elsewhere(", "around_aside("];

/// A mark counts for so many lines below it.
const REACH: usize = 4;

/// The blocking calls in `text` that no mark explains: their lines, counted from 1.
fn unmarked(text: &str) -> Vec<usize> {
    let lines: Vec<&str> = text.lines().take_while(|line| !line.starts_with("#[cfg(test)]")).collect();
    if lines.iter().any(|line| line.starts_with("//! Blocks: ")) {
        return Vec::new();
    }
    let is_mark =
        |line: &&str| line.trim_start().starts_with("// Blocks: ") || DOORS.iter().any(|door| line.contains(door));
    let calls = |line: &str| {
        let code = line.trim_start();
        let is_code = !["//", "use ", "pub use ", "pub mod ", "mod "].iter().any(|start| code.starts_with(start));
        // A log event has metadata too.
        is_code && SYSTEM.iter().chain(OWN).any(|word| code.replace("event.metadata()", "").contains(word))
    };
    let found = lines.iter().enumerate().filter(|(_, line)| calls(line));
    let found = found.filter(|(place, _)| !lines[place.saturating_sub(REACH)..=*place].iter().any(is_mark));
    found.map(|(place, _)| place + 1).collect()
}

fn is_on_the_loop(path: &Path) -> bool {
    let inside = path.strip_prefix(source()).unwrap().to_string_lossy().into_owned();
    let is_test = inside.ends_with("tests.rs") || inside.contains("/tests/");
    let named = |list: &[&str]| list.iter().any(|start| inside.starts_with(start));
    named(ON_THE_LOOP) && !named(OFF_THE_LOOP) && !is_test
}

#[test]
fn nothing_that_may_block_runs_on_the_event_loop() {
    let mut wrong = Vec::new();
    let mut seen = 0;
    for path in files(&source(), ".rs").into_iter().filter(|path| is_on_the_loop(path)) {
        seen += 1;
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        wrong.extend(
            unmarked(&text).iter().map(|line| format!("{}:{line}: {}", path.display(), lines[line - 1].trim())),
        );
    }
    assert!(seen > 50, "only {seen} files were seen: the test reads the wrong ones");
    assert!(wrong.is_empty(), "may block, and no `// Blocks:` says why that is fine:\n{}", wrong.join("\n"));
}

#[test]
fn a_blocking_call_is_found_and_a_mark_explains_those_below_it() {
    let text = "use std::fs::File;\nfn a() {\n    let b = fs::read(c);\n    // Blocks: on another thread.\n    fs::read(c)\n}\n";
    assert_eq!(unmarked(text), [3]);
    assert_eq!(unmarked("let it = path.exists();"), [1]);
    assert_eq!(unmarked("//! Blocks: for jobs.\nfs::read(c)\n"), [0; 0]);
    assert_eq!(unmarked("// fs::read\n#[cfg(test)]\nfs::read(c)\n"), [0; 0]);
}
