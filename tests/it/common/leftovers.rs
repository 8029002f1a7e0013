//! What the tests would leave in the machine's memory: spare data directories of `tandem test`, which serve a user's next
//! run. They go when the test program ends.

use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Instant;

use nix::unistd::Uid;

use super::refusal::names;
use super::tandem::{LIMIT, pause};

/// The directory of this user's throwaway servers, and whether it was there before the tests.
static PLACE: LazyLock<(PathBuf, bool)> = LazyLock::new(|| {
    let place = PathBuf::from(format!("/dev/shm/tandem-test-{}", Uid::effective()));
    let theirs = place.exists();
    at_the_end();
    (place, theirs)
});

/// To be called before the first throwaway server.
pub fn go_at_the_end() {
    LazyLock::force(&PLACE);
}

#[expect(unsafe_code, reason = "libtest has no hook after the last test, and atexit(3) has no safe door")]
fn at_the_end() {
    // SAFETY: the function is a plain one that lives as long as the program.
    unsafe { nix::libc::atexit(remove) };
}

extern "C" fn remove() {
    let (place, theirs) = &*PLACE;
    let begun = Instant::now();
    // A janitor outlives its run for a moment.
    let busy = |name: &String| ["run-", "making-", "gone-"].iter().any(|prefix| name.starts_with(prefix));
    while names(place).iter().any(busy) && begun.elapsed() < LIMIT / 8 {
        pause();
    }
    if !theirs {
        let _ = fs::remove_dir_all(place);
    }
}
