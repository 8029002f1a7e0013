//! A project's state and its backups on a file system with quotas, of which the file system's free bytes tell nothing: a
//! Btrfs image whose subvolumes may hold no more than the test says.

use std::process::Command;

use super::namespace::mount_namespace;
use super::project::Project;
use super::refusal::{self, Refusal};
use super::skip::skip;
use super::tandem::{self, Tandem};

/// Where a project's backups have a quota of their own, below its directory.
pub const BACKUPS: &str = "mounted/backups";
/// Where its state is.
pub const STATE: &str = "mounted/state";

/// Makes the image and mounts it; the state that is there goes into the subvolume `state`.
const MOUNT: &str = "image=\"$0\"/image; mounted=\"$0\"/mounted; mkdir \"$mounted\" \"$0\"/.tandem 2>/dev/null || true
    truncate -s 1G \"$image\"; mkfs.btrfs --quiet \"$image\" >/dev/null; mount -o loop \"$image\" \"$mounted\"
    btrfs quota enable \"$mounted\"; btrfs subvolume create \"$mounted\"/state >/dev/null
    btrfs subvolume create \"$mounted\"/backups >/dev/null; chmod 755 \"$mounted\" \"$mounted\"/*; cp -a \"$0\"/.tandem/. \"$mounted\"/state
    mount --bind \"$mounted\"/state \"$0\"/.tandem";

/// The quota under a project's state.
pub struct Quota<'a> {
    project: &'a Project,
}

impl<'a> Quota<'a> {
    /// For a project that does not run. `None` where this user or kernel can have none.
    pub fn prepare(project: &'a Project) -> Option<Self> {
        // Only root mounts a file system of a device.
        if !nix::unistd::Uid::effective().is_root() {
            skip("only root can mount a file system with a quota");
            return None;
        }
        let quota = Self { project };
        let tried = quota.command("", "true").output().unwrap();
        if !tried.status.success() {
            let said = String::from_utf8_lossy(&tried.stderr).into_owned();
            skip(&format!("this machine can have no file system with a quota: {}", said.trim().replace('\n', "; ")));
            return None;
        }
        Some(quota)
    }

    /// A command in a mount namespace of its own that runs `then` and after it `program`; more arguments may follow.
    fn command(&self, then: &str, program: &str) -> Command {
        let script = format!("{MOUNT}\n{then}\nexec \"$@\"");
        let namespace = mount_namespace().expect("root may have one");
        let mut command = tandem::command_as("unshare", self.project.dir());
        // Gone first: what an earlier try left.
        let script = format!("rm -rf \"$0\"/image \"$0\"/mounted\n{script}");
        command.args(namespace).args(["sh", "-euc", &script]).arg(self.project.dir()).arg(program);
        command
    }

    /// Start `tandem up` on it.
    pub fn up(&self) -> Tandem {
        Tandem::start_as(self.project, self.command("", env!("CARGO_BIN_EXE_tandem")))
    }

    /// Run the binary on it with `args`, while the state may hold no more than `megabytes`.
    pub fn run_within(&self, megabytes: u64, args: &[&str]) -> Refusal {
        let limit = format!("btrfs qgroup limit {megabytes}M \"$mounted\"/state");
        refusal::said(self.command(&limit, env!("CARGO_BIN_EXE_tandem")).args(args).output().unwrap())
    }

    /// Run the binary with `args` beside the running `tandem`.
    pub fn run(&self, tandem: &Tandem, args: &[&str]) -> Refusal {
        refusal::said(self.inside(tandem).arg(env!("CARGO_BIN_EXE_tandem")).args(args).output().unwrap())
    }

    /// Run another program there.
    pub fn run_program(&self, tandem: &Tandem, program: &[&str]) -> Refusal {
        refusal::said(self.inside(tandem).args(program).output().unwrap())
    }

    /// A command where `tandem` runs.
    fn inside(&self, tandem: &Tandem) -> Command {
        let mut command = tandem::command_as("nsenter", self.project.dir());
        // The working directory that is inherited is outside, where the quota is not.
        command.args(["--target", &tandem.pid().to_string(), "--mount"]);
        command.args(["timeout", "120", "sh", "-euc", "cd \"$0\"; exec \"$@\""]).arg(self.project.dir());
        command
    }

    /// Let a subvolume grow by no more than `megabytes`.
    pub fn leave(&self, tandem: &Tandem, subvolume: &str, megabytes: u64) {
        let script = format!(
            "sync; used=$(btrfs qgroup show --raw -f {subvolume} | awk 'END {{ print $2 }}')
            btrfs qgroup limit $((used + {megabytes} * 1048576)) {subvolume}"
        );
        self.script(tandem, &script);
    }

    /// Let it grow as far as the disk allows.
    pub fn lift(&self, tandem: &Tandem, subvolume: &str) {
        self.script(tandem, &format!("btrfs qgroup limit none {subvolume}"));
    }

    fn script(&self, tandem: &Tandem, script: &str) {
        let output = self.inside(tandem).args(["sh", "-euc", script]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
}
