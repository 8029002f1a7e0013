//! Descriptors that this process got from the process that started it, known by their numbers alone.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

/// The numbers that were taken.
static TAKEN: Mutex<BTreeSet<RawFd>> = Mutex::new(BTreeSet::new());

/// Take ownership of descriptor `number` if `judge` accepts it. Children do not inherit it unless they are given it.
///
/// Call it before this process opens anything that `judge` would accept. A descriptor that is refused may be one of our own
/// and stays as it is.
///
/// # Errors
/// What `judge` said; the kernel's, when no such descriptor is open; `AlreadyExists` when it was taken before.
#[expect(unsafe_code, reason = "only a number is passed, and the descriptor needs an owner")]
pub fn take(number: RawFd, judge: impl FnOnce(BorrowedFd<'_>) -> anyhow::Result<()>) -> anyhow::Result<OwnedFd> {
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    if number < 0 || taken.contains(&number) {
        return Err(io::Error::from(io::ErrorKind::AlreadyExists).into());
    }
    // SAFETY: a number below zero was turned away; the first call says whether the number is open, and nothing else is
    // done with one that is not. It is not closed meanwhile: an owner in this process would have taken it through here.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    fcntl(fd, FcntlArg::F_GETFD)?;
    judge(fd)?;
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    taken.insert(number);
    // SAFETY: it is open, had no owner when the process began, and is given away once.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// The numbers that [`seal`] has closed to children.
static SEALED: Mutex<Vec<RawFd>> = Mutex::new(Vec::new());

/// Close the descriptors that this process was started with, beside the standard streams, to its children: one may be a
/// socket of another service, or a pipe whose end a process waits for. For the program, before it opens anything itself.
pub fn seal() {
    let mut sealed = SEALED.lock().unwrap_or_else(PoisonError::into_inner);
    // Blocks: for no disk, and before anything else.
    let listing = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let numbers: Vec<RawFd> = listing.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    for number in numbers.into_iter().filter(|number| *number > 2) {
        if flags(number).is_some_and(|flags| !flags.contains(FdFlag::FD_CLOEXEC)) {
            set_flags(number, FdFlag::FD_CLOEXEC);
            sealed.push(number);
        }
    }
}

/// The descriptors that [`seal`] has closed to children.
pub(super) fn sealed() -> Vec<RawFd> {
    SEALED.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Open them again to the program that this process executes next. Async-signal-safe: a child calls it between fork and exec.
pub(super) fn unseal(numbers: &[RawFd]) {
    for &number in numbers {
        set_flags(number, FdFlag::empty());
    }
}

#[expect(unsafe_code, reason = "a number is all that is known of what was handed down")]
fn flags(number: RawFd) -> Option<FdFlag> {
    // SAFETY: the call says whether the number is open, and changes nothing.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    fcntl(fd, FcntlArg::F_GETFD).ok().map(FdFlag::from_bits_retain)
}

#[expect(unsafe_code, reason = "a number is all that is known of what was handed down")]
fn set_flags(number: RawFd, flags: FdFlag) {
    // SAFETY: a number that is not open is refused by the kernel; of one that is, only this flag changes.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    let _ = fcntl(fd, FcntlArg::F_SETFD(flags));
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsRawFd, IntoRawFd};

    use super::*;

    #[test]
    fn it_is_given_away_once_and_not_to_children() {
        let (_reader, writer) = std::io::pipe().unwrap();
        let number = OwnedFd::from(writer).into_raw_fd();
        assert!(take(number, |_| anyhow::bail!("not this")).is_err(), "what is refused stays as it is");
        let taken = take(number, |_| Ok(())).unwrap();
        assert_eq!(taken.as_raw_fd(), number);
        let flags = FdFlag::from_bits_retain(fcntl(&taken, FcntlArg::F_GETFD).unwrap());
        assert!(flags.contains(FdFlag::FD_CLOEXEC));
        assert!(take(number, |_| Ok(())).is_err());
    }

    #[test]
    fn a_number_that_is_not_open_is_refused() {
        for number in [-1, 1_000_000] {
            assert!(take(number, |_| panic!("there is nothing to judge")).is_err());
        }
    }
}
