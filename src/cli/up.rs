//! The arguments of `tandem up`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

/// How long a start in the background is waited for: a first one fetches PostgreSQL and makes the Python environment.
pub const WAIT_LIMIT: Duration = Duration::from_secs(15 * 60);

#[derive(Clone, Debug, Default, Args)]
pub struct UpArgs {
    /// How many workers [with --reload, where nothing says it: 1]
    #[arg(long, value_name = "N")]
    pub workers: Option<u32>,
    /// Where the application listens
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<String>,
    /// Replace the workers whenever a source of the application is saved, and log each request
    #[arg(long)]
    pub reload: bool,
    /// Let an editor attach to the one worker, through its debugpy, at this port of 127.0.0.1 [default: 5678]
    #[arg(long, value_name = "PORT", num_args = 0..=1, default_missing_value = "5678")]
    pub attach_debugger: Option<u16>,
    /// Run in the background: wait until it is ready, then return
    #[arg(short, long)]
    pub detach: bool,
    /// Wait so long until it is ready, such as 90s [default: 15m]; says --detach
    #[arg(long, value_name = "LIMIT", num_args = 0..=1, default_missing_value = "15m", value_parser = humantime::parse_duration)]
    pub wait: Option<Duration>,
    /// Be the process in the background, whose standard streams are this file
    #[arg(long, hide = true, value_name = "FILE", conflicts_with_all = ["detach", "wait"])]
    pub detached_log: Option<PathBuf>,
}

impl UpArgs {
    /// How long to wait for a start in the background, if it is to be one.
    pub fn background(&self) -> Option<Duration> {
        self.wait.or_else(|| self.detach.then_some(WAIT_LIMIT))
    }

    /// These as arguments for the process in the background, whose log is `log`.
    pub fn as_args(&self, log: &std::path::Path) -> Vec<String> {
        let workers = self.workers.iter().flat_map(|count| ["--workers".to_owned(), count.to_string()]);
        let listen = self.listen.iter().flat_map(|address| ["--listen".to_owned(), address.clone()]);
        let reload = self.reload.then(|| "--reload".to_owned());
        let attach = self.attach_debugger.iter().map(|port| format!("--attach-debugger={port}"));
        let log = ["--detached-log".to_owned(), log.display().to_string()];
        workers.chain(listen).chain(reload).chain(attach).chain(log).collect()
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn parsed(args: &[&str]) -> UpArgs {
        let cli = Cli::try_parse_from(["tandem", "up"].iter().chain(args)).unwrap();
        let Command::Up(args) = cli.command else { panic!("{cli:?}") };
        args
    }

    #[test]
    fn what_is_started_in_the_background_gets_all_flags_but_those_of_the_waiting() {
        let given = ["--workers", "2", "--listen", "0.0.0.0:80", "--reload", "--attach-debugger", "-d", "--wait", "9s"];
        let args = parsed(&given);
        assert_eq!(args.background(), Some(Duration::from_secs(9)));
        let handed = args.as_args(std::path::Path::new("/log"));
        let again = parsed(&handed.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!((again.workers, again.listen.as_deref(), again.reload), (Some(2), Some("0.0.0.0:80"), true));
        assert_eq!((again.attach_debugger, again.background()), (Some(5678), None));
        assert_eq!(again.detached_log, Some(PathBuf::from("/log")));
    }

    #[test]
    fn waiting_says_the_background_and_has_a_limit_of_its_own() {
        assert_eq!(parsed(&["-d"]).background(), Some(WAIT_LIMIT));
        assert_eq!(parsed(&["--wait"]).background(), Some(WAIT_LIMIT));
        assert_eq!(parsed(&["--wait", "1m"]).background(), Some(Duration::from_secs(60)));
        assert_eq!(parsed(&[]).background(), None);
    }
}
