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
        "small=\"$0\"/small; mkdir -p \"$small\"; mount -t tmpfs -o size={size},mode=0755 tmpfs \"$small\"
         cp -a \"$0\"/.tandem/. \"$small\"; mount --bind \"$small\" \"$0\"/.tandem
         mount -t tmpfs -o size=512m,mode=1777 tmpfs /dev/shm
         {fill}
         rm \"$small\"/filler
         # A janitor outlives its run for a moment.
         left=100; while [ $left -gt 0 ] && ls -d \"$small\"/tandem-test-*/run-* >/dev/null 2>&1; do
           left=$((left - 1)); sleep 0.1; done
         cp -a \"$small\" \"$0\"/after; exit $code"
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

/// For [`on_a_small_disk`]: fill it once there is a server in a directory that `name` begins with, while the server and the
/// command stand still: for work that may be done before the disk is full.
pub fn while_a_server_stands_still_in(name: &str) -> String {
    filled_while_still(name, "-size +0 -print")
}

/// As [`while_a_server_stands_still_in`], once the server accepts connections (PostgreSQL source, `miscadmin.h`,
/// `PM_STATUS_READY`).
pub fn while_a_ready_server_stands_still_in(name: &str) -> String {
    filled_while_still(name, r"-exec grep -q '^ready' {} \; -print")
}

fn filled_while_still(name: &str, that: &str) -> String {
    format!(
        "\"$@\" & command=$!
         until found=$(find \"$small\" -path \"$small/{name}*/postmaster.pid\" {that} | grep .); do kill -0 $command; done
         server=$(head -n 1 \"$found\")
         halt() {{ kill -$1 $server $command || true; pkill -$1 -P $server || true; }}
         halt STOP
         dd if=/dev/zero of=\"$small\"/filler bs=64k 2>/dev/null || true
         halt CONT
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
        self.start("")
    }

    /// As [`Filling::up`], when not a byte is left on it.
    pub fn up_when_it_is_full(&self) -> Tandem {
        self.start(
            "dd if=/dev/zero of=\"$small\"/filler bs=64k 2>/dev/null || true
            dd if=/dev/zero of=\"$small\"/filler.rest bs=4k 2>/dev/null || true; cat /dev/null >\"$small\"/last",
        )
    }

    fn start(&self, first: &str) -> Tandem {
        // What the test does to it goes by files, for it is in another namespace.
        let script = format!(
            "small=\"$0\"/small; mkdir \"$small\"; mount -t tmpfs -o size={},mode=0755 tmpfs \"$small\"
            cp -a \"$0\"/.tandem/. \"$small\"; mount --bind \"$small\" \"$0\"/.tandem
            mount -t tmpfs -o size=1g,mode=1777 tmpfs /dev/shm
            {first}
            ( while [ -d \"$0\" ]; do
                [ ! -e \"$0\"/fill ] || {{ rm \"$0\"/fill; dd if=/dev/zero of=\"$small\"/filler bs=64k 2>/dev/null || true; touch \"$0\"/filled; }}
                [ ! -e \"$0\"/free ] || {{ rm -f \"$0\"/free \"$small\"/filler*; touch \"$0\"/freed; }}
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

    /// A command that runs where `tandem` runs, and sees the disk.
    fn inside(&self, tandem: &Tandem) -> Command {
        #[expect(clippy::disallowed_methods, reason = "a test starts what it tests")]
        let mut command = Command::new("nsenter");
        command.args(["--target", &tandem.pid().to_string(), "--mount"]);
        if self.namespace.contains(&"--user") {
            command.args(["--user", "--preserve-credentials"]);
        }
        // The working directory that is inherited is outside, where the disk is not.
        command.args(["timeout", "300", "sh", "-euc", "cd \"$0\"; exec \"$@\""]).arg(self.project.dir());
        command
    }

    /// Run the binary with `args` beside the running `tandem`.
    pub fn run(&self, tandem: &Tandem, args: &[&str]) -> Refusal {
        let binary = tandem::command(self.project);
        refusal::said(self.inside(tandem).arg(binary.get_program()).args(args).output().unwrap())
    }

    /// Run a script of the shell beside the running `tandem`, with the disk as `$small`; what it printed.
    pub fn script(&self, tandem: &Tandem, script: &str) -> String {
        let small = self.project.dir().join("small");
        let script = format!("small='{}'; {script}", small.display());
        let output = self.inside(tandem).args(["sh", "-euc", &script]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    /// Free room on it, in megabytes.
    pub fn free_megabytes(&self, tandem: &Tandem) -> u64 {
        self.script(tandem, "df --output=avail -m \"$small\" | tail -n 1").trim().parse().unwrap()
    }

    /// Fill it but for so many megabytes.
    pub fn leave(&self, tandem: &Tandem, megabytes: u64) {
        let free = self.free_megabytes(tandem);
        assert!(free >= megabytes, "there are {free} MB only");
        // Holes take no room.
        self.script(tandem, &format!("head -c {}M /dev/zero >>\"$small\"/filler", free - megabytes));
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
