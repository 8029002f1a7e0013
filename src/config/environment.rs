//! The one place that reads the process environment, and the one that takes libpq's variables out of it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::OnceLock;

use anyhow::Context;

use super::Source;
use crate::plan::libpq::{TEST_SOCKET, is_libpq};

impl Source {
    /// What this process was given: its working directory and environment, beside `--config` and the flags.
    ///
    /// # Errors
    /// When the working directory does not exist any more.
    pub fn of_process(file: Option<PathBuf>, flags: Vec<super::Flag>) -> anyhow::Result<Self> {
        let cwd = std::env::current_dir().context("read the working directory")?;
        Ok(Self { file, flags, cwd, environment: variables(), ..Self::default() })
    }
}

#[expect(clippy::disallowed_methods, reason = "this is the file that may")]
fn variables() -> BTreeMap<String, String> {
    // Names and values that are not UTF-8 are of no use to Tandem; children inherit them unchanged.
    let aside = ASIDE.get().into_iter().flatten().cloned();
    std::env::vars_os()
        .chain(aside)
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

/// libpq's variables, as they were before [`set_libpq_aside`].
static ASIDE: OnceLock<Vec<(OsString, OsString)>> = OnceLock::new();

/// Take libpq's variables out of this process's environment. Tandem's database driver reads them too, and cannot be told
/// not to: a PGOPTIONS of somebody's shell would hold for every session of Tandem's own. [`Source::of_process`] still
/// knows them.
///
/// # Safety
/// No other thread may be there yet: the environment belongs to all of them.
#[expect(clippy::disallowed_methods, unsafe_code, reason = "once, before there is a second thread or a child")]
pub unsafe fn set_libpq_aside() {
    let found: Vec<_> = std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(is_libpq)).collect();
    for (name, _) in &found {
        // SAFETY: the caller's promise.
        unsafe { std::env::remove_var(name) };
    }
    let _ = ASIDE.set(found);
}

/// The names in this process's environment that no child inherits: libpq's, which a program that uses Tandem as a library
/// has still, and the operator's `TANDEM_*`, which may hold passwords and keys to backups. A child that `is_tandem` gets
/// the latter.
#[expect(clippy::disallowed_methods, reason = "this is the file that may")]
pub fn names_kept_from_children(is_tandem: bool) -> Vec<OsString> {
    let kept = |name: &str| is_libpq(name) || (!is_tandem && is_operators(name));
    std::env::vars_os().map(|(name, _)| name).filter(|name| name.to_str().is_some_and(kept)).collect()
}

/// Whether no child inherits the variable `name`, one that `is_tandem` excepted.
pub fn is_kept_from_children(name: &str) -> bool {
    is_libpq(name) || is_operators(name)
}

/// By these, processes below `tandem test` and below a Tandem (`process::mark`) are known, however deep they are.
const INHERITED: [&str; 2] = [TEST_SOCKET, "TANDEM_RUN"];

/// Whether the variable `name` is the operator's, for Tandem alone.
fn is_operators(name: &str) -> bool {
    name.starts_with("TANDEM_") && !INHERITED.contains(&name)
}

/// Whether the user wants no colours (no-color.org).
#[expect(clippy::disallowed_methods, reason = "this is the file that may")]
pub fn no_color() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}

/// Where the supervisor above Tandem wants to be told how it is (sd_notify(3)).
#[expect(clippy::disallowed_methods, reason = "this is the file that may")]
pub fn notify_socket() -> Option<std::ffi::OsString> {
    std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty())
}

/// Where temporary files go (TMPDIR, else /tmp).
pub fn temp_dir() -> PathBuf {
    std::env::temp_dir()
}

/// The user id that this process runs as.
pub(super) fn effective_user() -> u32 {
    nix::unistd::Uid::effective().as_raw()
}

/// Whether this process runs as root. (`process/` knows it too, but stands above this room.)
pub fn is_root() -> bool {
    nix::unistd::Uid::effective().is_root()
}
