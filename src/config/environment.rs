//! The one place that reads the process environment. Nobody writes it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Context;

use super::Source;

impl Source {
    /// What this process was given: its working directory and environment, beside `--config` and the flags.
    ///
    /// # Errors
    /// When the working directory does not exist any more.
    pub fn of_process(file: Option<PathBuf>, flags: Vec<super::Flag>) -> anyhow::Result<Self> {
        let cwd = std::env::current_dir().context("read the working directory")?;
        Ok(Self { file, flags, cwd, environment: variables(), appless: false })
    }
}

#[expect(clippy::disallowed_methods, reason = "this is the file that may")]
fn variables() -> BTreeMap<String, String> {
    // Names and values that are not UTF-8 are of no use to Tandem; children inherit them unchanged.
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
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

/// Whether this process runs as root. (`process/` knows it too, but stands above this room.)
pub fn is_root() -> bool {
    nix::unistd::Uid::effective().is_root()
}
