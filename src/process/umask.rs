//! The umask: Tandem's own files are never other people's to write, and its children get the umask that it was given.

use std::sync::OnceLock;

use nix::sys::stat::{Mode, umask};

static GIVEN: OnceLock<Mode> = OnceLock::new();

/// Take the right to write from group and others, in every file that this process makes from now on. It changes what the
/// whole process is: for the program, not for a library.
pub fn tighten() {
    let given = umask(Mode::S_IWGRP | Mode::S_IWOTH);
    umask(given | Mode::S_IWGRP | Mode::S_IWOTH);
    let _ = GIVEN.set(given);
}

/// Give a child the umask that Tandem was given. Async-signal-safe, for between fork and exec.
pub(super) fn restore() {
    if let Some(given) = GIVEN.get() {
        umask(*given);
    }
}
