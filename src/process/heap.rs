//! How much of its memory this process keeps: what a busy moment took goes back to the system.
//!
//! The C library gives threads arenas of their own, up to eight for each processor, and each keeps the most that it ever had.
//! Tandem's threads take turns at short work, such as reading the configuration again or looking at a disk: so after some
//! hundred reloads every arena holds a part of it. What is freed at the end of the heap is kept as well, the more the larger
//! the pieces were that were freed before (mallopt(3), M_MMAP_THRESHOLD).

/// How many arenas there are: one for the event loop, one for what runs beside it.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const ARENAS: nix::libc::c_int = 2;
/// Larger pieces have pages of their own, which go back when they are freed; so does as much at the end of the heap. In bytes;
/// it is where the C library begins, and set here it stays there.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const KEPT: nix::libc::c_int = 128 << 10;

/// Keep little of what is freed, in few arenas. For the program that runs for months, before it has a second thread.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "mallopt(3) has no safe door")]
pub fn keep_little() {
    use nix::libc::{M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, mallopt};
    for (parameter, value) in [(M_ARENA_MAX, ARENAS), (M_MMAP_THRESHOLD, KEPT), (M_TRIM_THRESHOLD, KEPT)] {
        // SAFETY: plain numbers, and this is the only thread.
        unsafe { mallopt(parameter, value) };
    }
}

/// Other C libraries have other ways.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn keep_little() {}
