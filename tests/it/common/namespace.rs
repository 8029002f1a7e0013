//! Mounts of a test's own.

use std::process::Command;

use ::tandem::process::identity;

use super::project::Project;
use super::skip::skip;
use super::tandem;

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

/// `tandem` in a mount namespace of its own, after `script` has run there; `None` where the kernel does not let an
/// ordinary user have one. The script gets the project's directory as `$0` and runs `"$@"` itself; its mounts go with it.
pub fn in_namespace(project: &Project, script: &str) -> Option<Command> {
    Some(within(mount_namespace()?, project, script))
}

/// As [`in_namespace`], in a user namespace, where the limits of user_namespaces(7) are its own and the user is an ordinary
/// one.
pub fn in_user_namespace(project: &Project, script: &str) -> Option<Command> {
    let namespace: &[&str] = if identity::is_root() {
        &["--user", "--map-user=1000", "--map-group=1000", "--keep-caps"]
    } else {
        &["--user", "--map-current-user", "--keep-caps"]
    };
    #[expect(clippy::disallowed_methods, reason = "a test starts what it tests")]
    let allowed = Command::new("unshare").args(namespace).arg("true").output();
    if allowed.is_ok_and(|output| output.status.success()) {
        return Some(within(namespace, project, script));
    }
    skip("this kernel lets this user have no user namespace");
    None
}

fn within(namespace: &[&str], project: &Project, script: &str) -> Command {
    let binary = tandem::command(project);
    #[expect(clippy::disallowed_methods, reason = "a test starts what it tests")]
    let mut command = Command::new("unshare");
    command.args(namespace).args(["sh", "-euc", script]).arg(project.dir()).arg(binary.get_program());
    command.current_dir(project.dir());
    for (name, value) in binary.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
}
