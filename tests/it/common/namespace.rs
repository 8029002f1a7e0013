//! Mounts of a test's own.

use std::process::Command;

use tandem::process::identity;

use super::skip::skip;

/// The options by which unshare(1) gives a command a mount namespace of its own; `None` where the kernel does not let an
/// ordinary user have one.
pub fn mount_namespace() -> Option<&'static [&'static str]> {
    let namespace: &[&str] =
        if identity::is_root() { &["--mount"] } else { &["--user", "--map-current-user", "--keep-caps", "--mount"] };
    #[expect(clippy::disallowed_methods, reason = "a test starts what it tests")]
    let allowed = Command::new("unshare").args(namespace).args(["mount", "-t", "tmpfs", "tmpfs", "/mnt"]).output();
    if allowed.is_ok_and(|output| output.status.success()) {
        return Some(namespace);
    }
    skip("this kernel lets this user have no mount namespace");
    None
}
