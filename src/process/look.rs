//! What `/proc` shows of other users' processes.
//!
//! Their environment, their working directory and their descriptors are shown to their own user, and to a process with
//! CAP_SYS_PTRACE (proc(5), "ptrace access mode"). Root has that capability on a machine, and not in a container of
//! Docker's, where it may still become any user. So a look that was refused is repeated as that user.

use std::io;
use std::thread;
use std::time::Duration;

use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
use procfs::process::Process;

use super::identity;
use crate::event_loop::within;

/// The right that is missing where even [`as_owner`] is refused.
pub const RIGHT: &str = "CAP_SYS_PTRACE";

/// Read something of process `pid`, as its owner if it is refused to this process. Blocks for as long as `read` does.
///
/// # Errors
/// As `read`.
pub fn as_owner<T: Send>(pid: i32, read: impl Fn() -> io::Result<T> + Sync) -> io::Result<T> {
    let refused = match read() {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => error,
        outcome => return outcome,
    };
    let status = Process::new(pid).and_then(|process| process.status());
    let Some(status) = status.ok().filter(|_| identity::is_root()) else { return Err(refused) };
    // On a thread of its own, which ends with that user's rights: the kernel keeps them per thread (setfsuid(2)), and it
    // takes a thread's death signal away when they change.
    let asked = thread::scope(|scope| {
        let asking = thread::Builder::new().spawn_scoped(scope, || {
            // The group first, for which the thread must still be root.
            setfsgid(Gid::from_raw(status.egid));
            setfsuid(Uid::from_raw(status.euid));
            read()
        });
        asking.ok().and_then(|asking| asking.join().ok())
    });
    asked.unwrap_or(Err(refused))
}

/// How long a look at many processes may take: one whose memory is locked, as a disk that hangs may keep it, holds it up.
const LOOK_LIMIT: Duration = Duration::from_secs(30);

/// Do `work`, which looks at many processes, on another thread than the event loop's; `what` names it. `None` when it does
/// not end within 30 s, or when an earlier look of this name has not ended since.
pub async fn apart<T: Send + 'static>(what: &'static str, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    within(LOOK_LIMIT, what, work).await.ok()
}
