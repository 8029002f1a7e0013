//! The real stack beside a test command: `tandem up` as a child, attached to the throwaway server.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::Signal;
use tokio::time::{sleep, timeout};

use super::cluster::Cluster;
use super::template::Recipe;
use crate::boot;
use crate::exit::{Code, Failure};
use crate::health::client::probe;
use crate::plan::libpq::TEST_SOCKET;
use crate::plan::{CommandLine, Place};
use crate::postgres::home::Home;
use crate::process::{self, Child, Streams, ports};

/// How often it is asked whether it is ready, and how long one answer may take.
const POLL: Duration = Duration::from_millis(10);
const PROBE_LIMIT: Duration = Duration::from_secs(2);
/// How long it may take to be ready beyond what its workers may, and to stop beyond its own ladder.
const MARGIN: Duration = Duration::from_secs(30);
/// How often other ports are tried.
const PORT_TRIES: usize = 3;
/// Lines of its log that are shown when it does not come up.
const LINES_SHOWN: usize = 20;

/// `args` without what they say of a server: a flag would win over the variable below, and the stack would be another's.
fn forwarded(args: &[String]) -> Vec<String> {
    let mut kept: Vec<String> = Vec::new();
    for word in args {
        let of_server = word.trim_start().starts_with("postgres.");
        if of_server && kept.last().is_some_and(|last| last == "--set") {
            kept.pop();
        } else {
            kept.push(word.clone());
        }
    }
    kept
}

/// A stack that serves. Dropped, it goes with this process (PR_SET_PDEATHSIG).
pub struct Stack {
    child: Child,
    listen: SocketAddr,
    stop_limit: Duration,
}

impl Stack {
    /// Start the stack with `args` (those that `tandem test` itself was given) on ports of its own, and wait until it is
    /// ready.
    ///
    /// # Errors
    /// The last lines it logged, when it does not get ready.
    pub async fn start(args: &[String], recipe: &Recipe, cluster: &Cluster) -> anyhow::Result<Self> {
        let mut tried = 0;
        loop {
            tried += 1;
            match Self::on_free_ports(args, recipe, cluster).await {
                // Free when it was asked for, a port may be taken by another program a moment later.
                Err(error) if tried < PORT_TRIES && error.to_string().contains("is taken") => {}
                outcome => return outcome,
            }
        }
    }

    async fn on_free_ports(args: &[String], recipe: &Recipe, cluster: &Cluster) -> anyhow::Result<Self> {
        let settings = &recipe.settings;
        let free =
            || ports::free().map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port))).context("find a free port");
        let (listen, health) = (free()?, free()?);
        let program = std::env::current_exe().context("find this program")?;
        let mut set = vec![
            ("state_dir", cluster.place.dir.join("up").display().to_string()),
            ("workers.listen", listen.to_string()),
            ("health.listen", health.to_string()),
            ("migrations.run", "none".to_owned()),
            ("postgres.mode", "attach".to_owned()),
            // One of the tests' database would be the newest of the project's own.
            ("backup.schedule", "never".to_owned()),
        ];
        if settings.python.requirements.is_some() && settings.python.venv.is_none() {
            // The one that it would use in its usual state directory.
            let venv = Home::resolve(settings)?.state.join("venv");
            set.push(("python.venv", venv.display().to_string()));
        }
        let set = set.iter().flat_map(|(key, value)| ["--set".to_owned(), format!("{key}={value}")]);
        let log = cluster.place.dir.join("up.log");
        let streams = Streams::to_log(&log).with_context(|| format!("write {}", log.display()))?;
        let url = cluster.databases.session_url().with_scheme("postgresql").expose();
        let command = CommandLine::tandem(program)
            .arg("up")
            .args(forwarded(args))
            .args(set)
            // Not an argument, which all users of the machine can read.
            .env("TANDEM_POSTGRES__URL", url.expose())
            // Its workers are part of the test.
            .env(TEST_SOCKET, &cluster.home.control)
            .env_remove("DATABASE_URL");
        let mut child = process::spawn_with(&command, Some(Signal::SIGTERM), streams).context("start `tandem up`")?;
        let ready = async {
            while !matches!(probe(&Place::At(health), "/ready", PROBE_LIMIT).await, Ok((200, _))) {
                sleep(POLL).await;
            }
        };
        let limit = settings.workers.ready_limit + MARGIN;
        let why = tokio::select! {
            ready = timeout(limit, ready) => match ready {
                Ok(()) => None,
                Err(_) => Some(format!("is not ready after {limit:?}")),
            },
            exit = child.wait() => Some(format!("ended as it started ({exit})")),
        };
        if let Some(why) = why {
            process::signal(child.pid(), Signal::SIGTERM);
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let last = lines[lines.len().saturating_sub(LINES_SHOWN)..].join("\n  ");
            bail!(Failure::new(Code::Failed, format!("the stack of --workers {why}; the last it said:\n  {last}")));
        }
        let stop_limit = boot::stop_ladder(settings).total() + MARGIN;
        Ok(Self { child, listen, stop_limit })
    }

    /// Where the application is.
    pub fn base_url(&self) -> String {
        format!("http://{}", self.listen)
    }

    /// Stop it in its own orderly way.
    pub async fn end(mut self) {
        process::signal(self.child.pid(), Signal::SIGTERM);
        if timeout(self.stop_limit, self.child.wait()).await.is_err() {
            process::signal(self.child.pid(), Signal::SIGKILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_arguments_say_of_a_server_is_not_forwarded() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let args = words(
            "--config a.toml --set postgres.url=postgres://live/x --set pool.size=2 --set postgres.mode=managed --log-format json",
        );
        assert_eq!(forwarded(&args), words("--config a.toml --set pool.size=2 --log-format json"));
        assert_eq!(forwarded(&words("--set postgres.port=1")), Vec::<String>::new());
    }
}
