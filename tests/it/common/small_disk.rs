//! A project's state on a disk that fills.

use std::fs;
use std::process::Command;

use super::namespace::mount_namespace;
use super::project::Project;
use super::refusal::{self, Refusal};
use super::tandem::{self, Tandem, wait_for};

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

/// A disk under a project's state that a test fills and frees while `tandem up` runs on it.
pub struct Filling<'a> {
    project: &'a Project,
    size: &'static str,
    namespace: &'static [&'static str],
}

impl<'a> Filling<'a> {
    /// Of `size`; the project has been started once and does not run. `None` as for [`mount_namespace`].
    pub fn prepare(project: &'a Project, size: &'static str) -> Option<Self> {
        Some(Self { project, size, namespace: mount_namespace()? })
    }

    /// Start `tandem up` on it.
    pub fn up(&self) -> Tandem {
        // What the test does to it goes by files, for it is in another namespace.
        let script = format!(
            "small=\"$0\"/small; mkdir \"$small\"; mount -t tmpfs -o size={},mode=0755 tmpfs \"$small\"
            cp -a \"$0\"/.tandem/. \"$small\"; mount --bind \"$small\" \"$0\"/.tandem
            ( while [ -d \"$0\" ]; do
                [ ! -e \"$0\"/fill ] || {{ rm \"$0\"/fill; dd if=/dev/zero of=\"$small\"/filler bs=64k 2>/dev/null || true; touch \"$0\"/filled; }}
                [ ! -e \"$0\"/free ] || {{ rm -f \"$0\"/free \"$small\"/filler; touch \"$0\"/freed; }}
                kill -0 $$ || exit 0
                sleep 0.05
              done ) &
            exec \"$@\"",
            self.size
        );
        let binary = tandem::command(self.project);
        #[expect(clippy::disallowed_methods, reason = "a test starts what it tests")]
        let mut command = Command::new("unshare");
        command.args(self.namespace).args(["sh", "-euc", &script]).arg(self.project.dir()).arg(binary.get_program());
        command.current_dir(self.project.dir()).env("PYTHONDONTWRITEBYTECODE", "1").env_remove("DATABASE_URL");
        Tandem::start_as(self.project, command)
    }

    /// Leave no room on it.
    pub fn fill(&self) {
        self.wait_for("fill", "filled");
    }

    /// Give all the room back that [`Filling::fill`] took.
    pub fn free(&self) {
        self.wait_for("free", "freed");
    }

    fn wait_for(&self, what: &str, done: &str) {
        fs::write(self.project.dir().join(what), "").unwrap();
        wait_for(done, || self.project.dir().join(done).exists());
    }
}
