//! For unit tests, which share one process: a child that one of them forks has what another closes just then (a lock, a
//! listening socket, a pipe) open until it executes its own program.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

static FORKS: RwLock<()> = RwLock::new(());

/// While it lives, nobody forks.
#[expect(dead_code, reason = "held, not used")]
pub struct NoForks(RwLockWriteGuard<'static, ()>);

/// A fork that has not executed its program yet.
#[expect(dead_code, reason = "held, not used")]
pub struct Forking(RwLockReadGuard<'static, ()>);

/// For a test that expects what it closes to be closed; it must start no child itself.
pub fn none() -> NoForks {
    NoForks(FORKS.write().unwrap_or_else(PoisonError::into_inner))
}

/// Write an executable script: had this process it open for writing while another test forks, executing it could fail with
/// ETXTBSY.
pub fn script(path: &Path, content: &str) {
    let _alone = none();
    std::fs::write(path, format!("{content}\n")).unwrap();
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
}

/// For the one place that starts processes.
pub fn begin() -> Forking {
    Forking(FORKS.read().unwrap_or_else(PoisonError::into_inner))
}
