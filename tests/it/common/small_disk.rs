//! A project's state on a disk that fills.

use std::fs;
use std::process::Command;

use super::namespace::mount_namespace;
use super::project::Project;
use super::refusal::{self, Refusal};
use super::tandem;

/// Run the binary with `args` while the project's state is on a disk of `size`, which `fill` fills: a script that begins the
/// command that its arguments are, makes `$small/filler`, and leaves the command's exit code in `$code`. The state is what
/// it was left as afterwards. No server may run. `None` as for [`mount_namespace`].
pub fn on_a_small_disk(project: &Project, size: &str, fill: &str, args: &[&str]) -> Option<Refusal> {
    let namespace = mount_namespace()?;
    // Of /dev/shm there is too little for a server to be made in it.
    let script = format!(
        "small=\"$0\"/small; mkdir \"$small\"; mount -t tmpfs -o size={size},mode=0755 tmpfs \"$small\"
         cp -a \"$0\"/.tandem/. \"$small\"; mount --bind \"$small\" \"$0\"/.tandem
         mount -t tmpfs -o size=512m,mode=1777 tmpfs /dev/shm
         {fill}
         rm \"$small\"/filler; cp -a \"$small\" \"$0\"/after; exit $code"
    );
    let binary = tandem::command(project);
    #[expect(clippy::disallowed_methods, reason = "a test starts what it tests")]
    let mut unshare = Command::new("unshare");
    // It ends with the command, which may hang.
    unshare
        .args(namespace)
        .args(["timeout", "300", "sh", "-euc", &script])
        .arg(project.dir())
        .arg(binary.get_program())
        .args(args);
    let refused = refusal::said(unshare.current_dir(project.dir()).output().unwrap());
    let after = project.dir().join("after");
    assert!(after.exists(), "{}", refused.said);
    fs::remove_dir_all(project.state()).unwrap();
    fs::rename(after, project.state()).unwrap();
    Some(refused)
}

/// For [`on_a_small_disk`]: fill it as soon as a server runs in a directory that `name` begins with.
pub fn once_a_server_runs_in(name: &str) -> String {
    filled_when(name, "", "")
}

/// As [`once_a_server_runs_in`], while the server and the command stand still: for work that may be done before the disk is
/// full.
pub fn while_a_server_stands_still_in(name: &str) -> String {
    let halt = "server=$(head -n 1 \"$found\")
        halt() { kill -$1 $server $command || true; pkill -$1 -P $server || true; }
        halt STOP";
    filled_when(name, halt, "halt CONT")
}

fn filled_when(name: &str, before: &str, after: &str) -> String {
    format!(
        "\"$@\" & command=$!
         until found=$(find \"$small\" -path \"$small/{name}*/postmaster.pid\" -size +0 | grep .); do kill -0 $command; done
         {before}
         dd if=/dev/zero of=\"$small\"/filler bs=64k 2>/dev/null || true
         {after}
         set +e; wait $command; code=$?"
    )
}
