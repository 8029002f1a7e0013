//! The harness for a test runner that runs already: pytest, as a person or an editor starts it, with our plugin in it.
//!
//! ```text
//! runner                                      tandem test --serve PID
//!   starts it, reads one line              <─   {"protocol": 1, "server": "127.0.0.1:40123", "environment": {…}}
//!   takes the environment over, then imports what it tests
//!   runs the tests                         <─>  the harness's socket
//!   failed, keep                            ─>  a line each, on standard input
//!   closes standard input, or is killed     ─>  ends, as every run ends
//! ```
//!
//! A runner that only collects tests gets an environment without a server: the address in it is nobody's, and the live
//! database is in none of its variables. The watch over the live server is the same.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::Signal;
use serde::Serialize;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::time::sleep;

use super::cluster::{Cluster, Wish};
use super::guard::Guard;
use super::leads;
use super::run::{self, Keep};
use super::template::Recipe;
use crate::config::{MigrationRun, Settings, is_kept_from_children};
use crate::exit::{Code, Failure, in_words};
use crate::plan::{DatabaseUrl, Secret};
use crate::postgres::home::Home;
use crate::process::{self, Stranger, orphans};
use crate::signals::Passing;
use crate::telemetry::{print, say_aside};
use crate::workers::environment;
use crate::workers::surroundings::{Surroundings, Variables};

/// Counts up when the plugin and the harness no longer understand each other.
const PROTOCOL: u32 = 1;
/// Where no server answers: a port below 1024, which no PostgreSQL has, of this machine.
const NOWHERE: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 1);
/// How often the runner is looked at: what it forked may hold the pipe open when it has ended.
const RUNNER_POLL: Duration = Duration::from_millis(200);
/// Most that a runner may say, in bytes.
const ORDERS_MAX: usize = 4096;

/// What a test runner wants.
pub struct Job {
    pub settings: Settings,
    /// The server that the configuration attaches to, which is not the tests'.
    pub other: Option<DatabaseUrl>,
    /// The runner's environment.
    pub inherited: BTreeMap<String, String>,
    pub migrations: MigrationRun,
    /// Beside those of the settings.
    pub seeds: Vec<String>,
    pub rebuild: bool,
    pub keep: Keep,
    /// The runner's process.
    pub runner: i32,
    /// It runs no test, and needs no server.
    pub collects: bool,
}

/// The line that the runner reads.
#[derive(Default, Serialize)]
pub struct Offer {
    protocol: u32,
    /// Why there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    refused: Option<String>,
    /// Where the server listens.
    #[serde(skip_serializing_if = "Option::is_none")]
    server: Option<String>,
    /// Variables to set, or to remove.
    environment: BTreeMap<String, Option<String>>,
}

impl Offer {
    /// Say it.
    ///
    /// # Errors
    /// Standard output cannot be written.
    fn say(&self) -> anyhow::Result<()> {
        print(&format!("{}\n", serde_json::to_string(self)?))?;
        Ok(())
    }

    /// Say why there is no harness.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub fn refuse(error: &anyhow::Error) -> anyhow::Result<()> {
        Self { protocol: PROTOCOL, refused: Some(in_words(error)), ..Self::default() }.say()
    }
}

/// Serve the runner to its end; the exit code.
///
/// # Errors
/// What kept the server from starting.
pub async fn serve(job: Job) -> anyhow::Result<u8> {
    orphans::adopt();
    let mut passing = Passing::open().context("install signal handlers")?;
    let mut runner = Runner::of(job.runner)?;
    let guard = Guard::start(&job.settings, job.other.as_ref())?;
    let prepared = tokio::select! {
        biased;
        // A migration or a seed.
        text = guard.tripped() => bail!(Failure::new(Code::Config, text)),
        () = runner.ended() => return Ok(Code::Stopped as u8),
        signal = run::told_to_end(&mut passing) => return Ok(128 + signal as u8),
        prepared = prepare(&job) => prepared,
    };
    let (mut stand, environment) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => match guard.finish().await {
            // It failed because its process was ended.
            Some(text) => bail!(Failure::new(Code::Config, text)),
            None => return Err(error),
        },
    };
    guard.take_in(job.runner).await?;
    let server = stand.as_ref().map(|(_, cluster)| format!("127.0.0.1:{}", cluster.postmaster.port));
    let environment = taken_over(environment, &job.inherited);
    Offer { protocol: PROTOCOL, refused: None, server, environment }.say()?;
    tokio::select! {
        // Its words are the last ones.
        text = guard.tripped() => {
            say_aside(&format!("tandem: {text}"));
            return Ok(Code::Config as u8);
        }
        () = runner.ended() => {}
        signal = run::told_to_end(&mut passing) => return Ok(128 + signal as u8),
    }
    orphans::end_strays().await;
    if let Some(text) = guard.finish().await {
        say_aside(&format!("tandem: {text}"));
        return Ok(Code::Config as u8);
    }
    if let Some((recipe, cluster)) = &mut stand {
        end(&job, recipe, cluster, &runner)?;
    }
    Ok(Code::Stopped as u8)
}

/// Say what the server has to say about failed tests; leave it, if that is wanted.
fn end(job: &Job, recipe: &Recipe, cluster: &mut Cluster, runner: &Runner) -> anyhow::Result<()> {
    let failed = runner.has_said("failed");
    if failed {
        run::explain(cluster);
    }
    if job.keep == Keep::Always || (job.keep == Keep::OnFailure && failed) {
        run::keep(cluster, recipe)?;
    } else if job.keep != Keep::Never
        && let Some(server) = cluster.postmaster.pid()
    {
        // It would not follow us by itself; the janitor sees to the rest.
        process::signal(server, Signal::SIGQUIT);
    }
    Ok(())
}

/// Start the server, if there is to be one, and make the tests' environment.
async fn prepare(job: &Job) -> anyhow::Result<(Option<(Recipe, Cluster)>, Variables)> {
    if job.collects {
        return Ok((None, nowhere(job)?));
    }
    let recipe = Recipe::gather(job.settings.clone(), job.migrations.clone(), &job.seeds).await?;
    leads::refuse(&recipe.settings, &recipe.python, job.other.as_ref())?;
    let lasting = job.keep != Keep::Never;
    let cluster = Cluster::start(&recipe, Wish { rebuild: job.rebuild, lasting, is_watched: false }).await?;
    let environment = run::open(&recipe, &cluster, &job.inherited)?;
    Ok((Some((recipe, cluster)), environment))
}

/// The tests' environment without a server.
fn nowhere(job: &Job) -> anyhow::Result<Variables> {
    let settings = &job.settings;
    let state = Home::resolve(settings)?.state;
    let python = environment::existing(&settings.python, &state, &settings.directory);
    leads::refuse(settings, &python, job.other.as_ref())?;
    let url = DatabaseUrl {
        scheme: "postgresql".into(),
        user: settings.postgres.user.clone(),
        password: Some(Secret::new("none")),
        host: NOWHERE.0.to_string(),
        port: NOWHERE.1,
        database: settings.postgres.database.clone(),
        parameters: Vec::new(),
    };
    let around = Surroundings { settings, url: &url, python: &python, identity: None, of_tests: true };
    Ok(around.importing(&format!("{}-test", settings.name)))
}

/// What the runner is to change in its own environment, which was made without us.
fn taken_over(environment: Variables, inherited: &BTreeMap<String, String>) -> BTreeMap<String, Option<String>> {
    let withheld = inherited.keys().filter(|name| is_kept_from_children(name));
    let mut all: BTreeMap<_, _> = withheld.map(|name| (name.clone(), None)).collect();
    all.extend(environment.0);
    // The runner has its Python.
    all.remove("PYTHONHOME");
    all
}

/// The process that the harness is for.
struct Runner {
    process: Option<Stranger>,
    orders: pipe::Receiver,
    said: Vec<u8>,
}

impl Runner {
    fn of(pid: i32) -> anyhow::Result<Self> {
        let stdin = io::stdin().as_fd().try_clone_to_owned().context("look at standard input")?;
        let orders = pipe::Receiver::from_owned_fd(stdin);
        let only = "--serve is for a test runner, which holds a pipe at its standard input";
        let orders = orders.map_err(|error| anyhow::Error::new(error).context(Failure::new(Code::Usage, only)))?;
        Ok(Self { process: Stranger::hold(pid), orders, said: Vec::new() })
    }

    /// Wait until it closes the pipe or is gone.
    async fn ended(&mut self) {
        loop {
            let mut some = [0; 256];
            tokio::select! {
                read = self.orders.read(&mut some) => match read {
                    Ok(0) | Err(_) => return,
                    Ok(count) if self.said.len() < ORDERS_MAX => self.said.extend(&some[..count]),
                    Ok(_) => {}
                },
                () = sleep(RUNNER_POLL) => {
                    if !self.process.as_ref().is_some_and(Stranger::is_there) {
                        return;
                    }
                }
            }
        }
    }

    fn has_said(&self, word: &str) -> bool {
        String::from_utf8_lossy(&self.said).lines().any(|line| line == word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runner_drops_what_no_child_inherits_and_keeps_its_python() {
        let inherited = ["PGSERVICE", "TANDEM_TEST__POOL", "HOME", "PYTHONHOME"];
        let inherited = inherited.map(|name| (name.to_owned(), "x".to_owned())).into();
        let mut environment = Variables::default();
        environment.0.push(("PGPORT".into(), Some("1".into())));
        environment.0.push(("PYTHONHOME".into(), None));
        let all = taken_over(environment, &inherited);
        let names: Vec<_> = all.iter().map(|(name, value)| (name.as_str(), value.as_deref())).collect();
        assert_eq!(names, [("PGPORT", Some("1")), ("PGSERVICE", None), ("TANDEM_TEST__POOL", None)]);
    }
}
