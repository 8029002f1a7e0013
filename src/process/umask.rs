//! The umask: no other user may write to Tandem's own files, and its children get the umask that Tandem was started with.

use std::sync::OnceLock;

use nix::sys::stat::{Mode, umask};

static GIVEN: OnceLock<Mode> = OnceLock::new();

/// From now on no file that this process makes is writable for group and others. This changes the whole process: it is for
/// the program, not for a library.
pub fn tighten() {
    let given = umask(Mode::S_IWGRP | Mode::S_IWOTH);
    umask(given | Mode::S_IWGRP | Mode::S_IWOTH);
    let _ = GIVEN.set(given);
}

/// Set the umask that Tandem was started with. Async-signal-safe: a child calls it between fork and exec.
pub(super) fn restore() {
    if let Some(given) = GIVEN.get() {
        umask(*given);
    }
}
