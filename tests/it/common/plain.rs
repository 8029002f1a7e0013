//! A server without a supervisor, on the data of a project.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid};

use super::ports::free_port;
use super::project::Project;
use super::server::binaries;
use super::tandem::{descendants, wait_for};

/// A server without a supervisor, on the data of a project; ended on drop, with what it was started in.
pub struct Plain {
    child: Child,
    data: PathBuf,
    contained: bool,
    pub port: u16,
}

impl Plain {
    /// Start it by `inside`, the words before its command.
    pub async fn start(project: &Project, inside: &[&str]) -> Self {
        let (prefix, data) = (binaries().await, project.data());
        let owner = data.metadata().unwrap();
        let mut words: Vec<String> = inside.iter().map(|&word| word.to_owned()).collect();
        if Uid::effective().is_root() {
            words.extend(["setpriv".into(), "--clear-groups".into()]);
            words.extend([format!("--reuid={}", owner.uid()), format!("--regid={}", owner.gid())]);
        }
        words.push(prefix.join("bin/postgres").display().to_string());
        #[expect(clippy::disallowed_methods, reason = "a test starts what it tests")]
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg("-D").arg(&data).args(["-c", "unix_socket_directories=", "-c"]);
        let port = free_port();
        command.arg(format!("port={port}")).env("LD_LIBRARY_PATH", prefix.join("lib"));
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let plain = Self { child, data, contained: !inside.is_empty(), port };
        wait_for("the server", || plain.pid_file().contains("ready"));
        plain
    }

    pub fn pid_file(&self) -> String {
        std::fs::read_to_string(self.data.join("postmaster.pid")).unwrap_or_default()
    }

    pub fn lives(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        // In a container it is the first process, with which all of them end; setpriv(1) has undone --kill-child.
        let own = self.child.id().cast_signed();
        let first = descendants(own).into_iter().find(|process| process.parent == own && self.contained);
        let (pid, signal) = first.map_or((own, Signal::SIGINT), |first| (first.pid, Signal::SIGKILL));
        let _ = kill(Pid::from_raw(pid), signal);
        let _ = self.child.wait();
    }
}
