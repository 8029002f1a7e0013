//! Tests that change the environment, the directory or the umask of the process: each runs again in a process of its own.

use std::process::Command;

/// Set in the process that runs one test alone.
const ALONE: &str = "TEST_RUNS_ALONE";

/// Run `body` in a process of its own: this test program again, for `test` (its path, as libtest shows it) alone.
pub fn alone(test: &str, body: impl FnOnce()) {
    #[expect(clippy::disallowed_methods, reason = "what this process was started with")]
    if std::env::var_os(ALONE).is_some_and(|name| name == test) {
        return body();
    }
    #[expect(clippy::disallowed_methods, reason = "a test starts what it tests")]
    let mut command = Command::new(std::env::current_exe().unwrap());
    let output = command.args(["--exact", test, "--nocapture"]).env(ALONE, test).output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}
