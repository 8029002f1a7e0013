//! How much memory the server may share under a name (shm_open(3)), which is a file system of its own.

use std::path::Path;

use super::files::free_bytes;
use crate::plan::Identity;
use crate::process::identity;

const PLACE: &str = "/dev/shm";

/// Bytes that the server, run by `server` or by this process's user, may share: none where the place is missing, read-only
/// or closed. `None` where the system has no such place.
pub fn available(server: Option<&Identity>) -> Option<u64> {
    let place = Path::new(PLACE);
    let there = cfg!(target_os = "linux").then(|| free_bytes(place).filter(|_| identity::may_write(place, server)))?;
    Some(there.unwrap_or(0))
}
