//! How much memory the server's processes may share under a name.

use std::path::Path;

use super::files::free_bytes;
use crate::plan::Identity;
use crate::process::identity;

/// Where shm_open(3) makes its files.
const SHARED: &str = "/dev/shm";

/// Bytes that the server, run by `server` or by this process's user, may share by shm_open(3): none where its place is
/// missing, read-only or closed. `None` where the system has no such place.
pub fn available(server: Option<&Identity>) -> Option<u64> {
    let place = Path::new(SHARED);
    let there = cfg!(target_os = "linux").then(|| free_bytes(place).filter(|_| identity::may_write(place, server)))?;
    Some(there.unwrap_or(0))
}
