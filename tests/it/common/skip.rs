//! Tests that cannot run on this machine: they are counted, and named when the test program ends.

use std::fs::File;
use std::io::Write;
use std::sync::{Mutex, PoisonError};

/// A file that gets one line for each skipped test, so that `.ci/run` can see those of every test program.
const FILE: &str = "SKIPPED_TESTS_FILE";

static SKIPPED: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Note that the calling test does not run, and why. The caller returns.
pub fn skip(why: &str) {
    // libtest names a test's thread after the test.
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let mut skipped = SKIPPED.lock().unwrap_or_else(PoisonError::into_inner);
    if skipped.is_empty() {
        name_them_at_the_end();
    }
    skipped.push(format!("{test}: {why}"));
}

#[expect(unsafe_code, reason = "libtest has no hook after the last test, and atexit(3) has no safe door")]
fn name_them_at_the_end() {
    // SAFETY: the function is a plain one that lives as long as the program.
    unsafe { nix::libc::atexit(name_them) };
}

extern "C" fn name_them() {
    let skipped = SKIPPED.lock().unwrap_or_else(PoisonError::into_inner);
    println!("skipped: {} tests that cannot run here\n  {}", skipped.len(), skipped.join("\n  "));
    #[expect(clippy::disallowed_methods, reason = "a test program has no configuration")]
    let file = std::env::var_os(FILE).and_then(|path| File::options().append(true).create(true).open(path).ok());
    if let Some(mut file) = file {
        let _ = writeln!(file, "{}", skipped.join("\n"));
    }
}
