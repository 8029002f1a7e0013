//! Writes the commit into a release, for `tandem --version`. A build from a tarball has none, and needs no git.
//!
//! Not into a development build: each commit would compile all of it anew.

use std::fs;
use std::path::{Path, PathBuf};

#[expect(clippy::disallowed_methods, reason = "cargo speaks to a build script through the environment")]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn main() {
    println!("cargo::rerun-if-changed=src/build.rs");
    println!("cargo::rerun-if-env-changed=TANDEM_COMMIT");
    let is_release = variable("PROFILE").as_deref() == Some("release");
    let root = PathBuf::from(variable("CARGO_MANIFEST_DIR").unwrap_or_default());
    let commit = variable("TANDEM_COMMIT").or_else(|| if is_release { head(&root) } else { None });
    let commit: String = commit.unwrap_or_default().chars().filter(char::is_ascii_hexdigit).take(12).collect();
    println!("cargo::rustc-env=TANDEM_BUILT_FROM={commit}");
}

/// The commit that is checked out in `root`, as its files tell.
fn head(root: &Path) -> Option<String> {
    let git = root.join(".git");
    // Of a worktree it is a file that says where its directory is.
    let git = match fs::read_to_string(&git) {
        Ok(text) => root.join(text.strip_prefix("gitdir: ")?.trim()),
        Err(_) => git,
    };
    // It changes with each commit, wherever that is written.
    let _ = read(&git.join("logs/HEAD"));
    let text = read(&git.join("HEAD"))?;
    let Some(name) = text.trim().strip_prefix("ref: ") else { return Some(text.trim().to_owned()) };
    // The references of a worktree are in the directory that all of them share.
    let common = fs::read_to_string(git.join("commondir")).ok();
    let common = common.map_or_else(|| git.clone(), |text| git.join(text.trim()));
    let found = read(&common.join(name)).map(|text| text.trim().to_owned());
    found.or_else(|| {
        let packed = read(&common.join("packed-refs"))?;
        packed.lines().find_map(|line| line.strip_suffix(name)?.strip_suffix(' ').map(str::to_owned))
    })
}

/// The text of a file that the build depends on.
fn read(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    println!("cargo::rerun-if-changed={}", path.display());
    Some(text)
}
