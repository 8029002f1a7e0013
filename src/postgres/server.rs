//! The postmaster as a child: its command line, when it is ready, and its protection from the OOM killer.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::binaries::Installation;
use super::home::Home;
use super::names;
use super::settings::owned;
use crate::plan::CommandLine;
use crate::process::identity;

/// Where archive commands and initdb find the system's programs.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Time between two reads of postmaster.pid: one costs 20 µs, and the server is ready after some 30 ms.
const READY_POLL: Duration = Duration::from_millis(2);
/// The postmaster's own OOM score; its children go back to [`OOM_SCORE_CHILD`].
const OOM_SCORE_POSTMASTER: &str = "-900";
const OOM_SCORE_CHILD: &str = "0";

/// The command that runs the postmaster of `home`, with `extra_env` from [`super::stale::clear`].
pub fn command(home: &Home, installation: &Installation, extra_env: &[(String, String)]) -> CommandLine {
    let command = program(home, installation, extra_env).arg("-D").arg(&home.data);
    let conf = fs::read_to_string(home.data.join("postgresql.conf")).unwrap_or_default();
    // postgresql.auto.conf, where ALTER SYSTEM writes, wins over postgresql.conf; the command line wins over both.
    let own = owned(&conf, &home.data).into_iter();
    own.fold(command, |command, (name, value)| command.arg("-c").arg(format!("{name}={value}")))
}

/// The program `postgres` of `home` as its user runs it, without its arguments.
pub fn program(home: &Home, installation: &Installation, extra_env: &[(String, String)]) -> CommandLine {
    let mut command = CommandLine::new(installation.tool("postgres"))
        .clean_env()
        .env("PATH", PATH)
        .env("LANG", "C.UTF-8")
        // The mark by which `stale` knows its processes, from the first moment on.
        .dir(&home.data)
        .identity(home.server.clone());
    if let Some(lib) = &installation.lib {
        // The pinned package's extensions carry a RUNPATH from where it was built, and would load the system's libpq.
        command = command.env("LD_LIBRARY_PATH", lib);
    }
    if identity::is_root() {
        command =
            command.env("PG_OOM_ADJUST_FILE", "/proc/self/oom_score_adj").env("PG_OOM_ADJUST_VALUE", OOM_SCORE_CHILD);
    }
    let command =
        names::environment(&home.run).into_iter().fold(command, |command, (name, value)| command.env(name, value));
    extra_env.iter().fold(command, |command, (name, value)| command.env(name, value))
}

/// Protect the postmaster from the OOM killer, because its death ends every session. Without root this does nothing.
pub fn oom_protect(pid: i32) {
    if identity::is_root()
        && let Err(error) = fs::write(format!("/proc/{pid}/oom_score_adj"), OOM_SCORE_POSTMASTER)
    {
        tracing::debug!(process.pid = pid, %error, "protect the postmaster from the OOM killer");
    }
}

/// Whether the postmaster `pid` of the cluster in `data` says that it accepts connections.
pub fn ready(data: &Path, pid: i32) -> bool {
    let Ok(text) = fs::read_to_string(data.join("postmaster.pid")) else { return false };
    let mut lines = text.lines().map(str::trim);
    // Lines 1 and 8 of the file, PostgreSQL's src/include/utils/pidfile.h.
    lines.next() == Some(pid.to_string().as_str()) && lines.nth(6) == Some("ready")
}

/// Wait until [`ready`]. The caller sets the limit and watches the child.
pub async fn wait_ready(data: &Path, pid: i32) {
    while !ready(data, pid) {
        tokio::time::sleep(READY_POLL).await;
    }
}

/// The port of the server that runs, or ran last, in `data`: line 4 of postmaster.pid.
pub fn running_port(data: &Path) -> Option<u16> {
    let text = fs::read_to_string(data.join("postmaster.pid")).ok()?;
    text.lines().nth(3)?.trim().parse().ok()
}

/// As [`running_port`], but only if the server's socket directory (line 5) is that of `home`: a server that another state
/// directory runs on the same data has its socket elsewhere.
pub fn own_running_port(home: &Home) -> Option<u16> {
    let text = fs::read_to_string(home.data.join("postmaster.pid")).ok()?;
    let own = text.lines().nth(4).is_some_and(|dir| Path::new(dir.trim_end()) == home.socket_dir);
    if own { running_port(&home.data) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_needs_our_own_pid_and_the_word() {
        let temp = tempfile::tempdir().unwrap();
        let write = |text: &str| fs::write(temp.path().join("postmaster.pid"), text).unwrap();
        let file = "42\n/d\n1700000000\n5433\n/run/s\n127.0.0.1\n  1234  5678\nready   \n";
        assert!(!ready(temp.path(), 42) && running_port(temp.path()).is_none());
        write(file);
        assert!(ready(temp.path(), 42) && !ready(temp.path(), 4));
        assert_eq!(running_port(temp.path()), Some(5433));
        write(&file.replace("ready   ", "starting"));
        assert!(!ready(temp.path(), 42));
    }
}
