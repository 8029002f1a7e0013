//! `tandem test`: a throwaway server around one command.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::Signal;

use super::cluster::{Cluster, Wish};
use super::guard::Guard;
use super::stack::Stack;
use super::template::Recipe;
use super::{client, endpoint, integresql, leads, of_test, plugin};
use crate::config::{MigrationRun, Python, Settings};
use crate::control;
use crate::exit::{Code, Failure};
use crate::plan::{CommandLine, DatabaseUrl};
use crate::process::{self, Exit, Foreground, orphans};
use crate::signals::{Passed, Passing};
use crate::telemetry::say_aside;
use crate::workers::surroundings::Variables;

/// What shells answer for a command that is not there, and for one that cannot be run (POSIX, 2.8.2).
const NOT_FOUND: u8 = 127;
const NOT_RUNNABLE: u8 = 126;
/// Lines of the server's log that are shown when the command fails.
const LINES_SHOWN: usize = 20;
/// How long a command may go on after it was told to end for the second time.
const SECOND_GRACE: Duration = Duration::from_secs(10);

/// Whether the server stays when the command has ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Keep {
    #[default]
    Never,
    /// If the command failed.
    OnFailure,
    Always,
}

/// What `tandem test` is to do.
pub struct Job {
    pub settings: Settings,
    /// The server that the configuration attaches to, which is not the tests'.
    pub other: Option<DatabaseUrl>,
    /// The environment that the command inherits.
    pub inherited: BTreeMap<String, String>,
    pub migrations: MigrationRun,
    /// Beside those of the settings.
    pub seeds: Vec<String>,
    /// Program first.
    pub command: Vec<String>,
    pub keep: Keep,
    pub rebuild: bool,
    /// Serve IntegreSQL's interface too.
    pub integresql: bool,
    /// Arguments of `tandem up` that runs the workers beside the command; `None`: no workers.
    pub workers: Option<Vec<String>>,
}

/// Run the command with a server around it; its exit code.
///
/// # Errors
/// What kept the command from being started.
pub async fn run(job: Job) -> anyhow::Result<u8> {
    orphans::adopt();
    // Before the server, so that nothing comes unheard: from now on signals are the command's.
    let mut passing = Passing::open().context("install signal handlers")?;
    let guard = Guard::start(&job.settings, job.other.as_ref())?;
    let prepared = async {
        let recipe = Recipe::gather(job.settings.clone(), job.migrations.clone(), &job.seeds).await?;
        leads::refuse(&recipe.settings, &recipe.python, job.other.as_ref())?;
        let lasting = job.keep != Keep::Never;
        let cluster = Cluster::start(&recipe, Wish { rebuild: job.rebuild, lasting, is_watched: false }).await?;
        let stage = stage(&job, &recipe, &cluster).await?;
        anyhow::Ok((recipe, cluster, stage))
    };
    let (recipe, mut cluster, stage) = tokio::select! {
        biased;
        // A migration or a seed.
        text = guard.tripped() => bail!(Failure::new(Code::Config, text)),
        prepared = prepared => match prepared {
            Ok(prepared) => prepared,
            Err(error) => match guard.finish().await {
                // It failed because its process was ended.
                Some(text) => bail!(Failure::new(Code::Config, text)),
                None => return Err(error),
            },
        },
        signal = told_to_end(&mut passing) => return Ok(128 + signal as u8),
    };
    let mut code = match attend(&stage, &mut passing, &guard).await {
        Ok(exit) => code(exit),
        Err(error) => not_started(&job, &error)?,
    };
    if let Some(stack) = stage.stack {
        stack.end().await;
    }
    orphans::end_strays().await;
    if let Some(text) = guard.finish().await {
        say_aside(&format!("tandem: {text}"));
        code = Code::Config as u8;
    }
    let failed = code != 0;
    if failed {
        explain(&cluster);
        let kept = cluster.databases.census().kept.len();
        if kept > 0 && job.keep == Keep::Never {
            say_aside(&format!(
                "tandem: {kept} databases of failed tests were kept; `tandem test --keep-on-failure` leaves the server running"
            ));
        }
    }
    if job.keep == Keep::Always || (job.keep == Keep::OnFailure && failed) {
        keep(&mut cluster, &recipe)?;
    } else if job.keep != Keep::Never
        && let Some(server) = cluster.postmaster.pid()
    {
        // It would not follow us by itself; the janitor sees to the rest.
        process::signal(server, Signal::SIGQUIT);
    }
    Ok(code)
}

/// The first signal that asks for the end, while there is no command yet to hand it to.
pub async fn told_to_end(passing: &mut Passing) -> Signal {
    loop {
        match passing.next().await {
            Passed::On(signal @ (Signal::SIGTERM | Signal::SIGINT | Signal::SIGHUP | Signal::SIGQUIT)) => {
                return signal;
            }
            Passed::Child => orphans::reap(),
            Passed::On(_) => {}
        }
    }
}

/// What stands around the command.
struct Stage {
    command: CommandLine,
    stack: Option<Stack>,
}

/// Let the harness of `cluster` be asked, and make the environment of its tests: a worker's, with the way to their own
/// server and to the harness. `inherited` is the one that it is made for.
///
/// # Errors
/// Its socket cannot be made.
pub fn open(recipe: &Recipe, cluster: &Cluster, inherited: &BTreeMap<String, String>) -> anyhow::Result<Variables> {
    let (settings, databases) = (&recipe.settings, &cluster.databases);
    let around = recipe.around(databases.session_url());
    let mut environment = around.importing(&format!("{}-test", settings.name));
    let others = around.other_databases();
    if !others.is_empty() {
        let names = others.into_iter().collect::<Vec<_>>().join(", ");
        say_aside(&format!("tandem: {names} named another database: the tests get their own there too"));
    }
    let socket = control::open(&cluster.home.control)?;
    tokio::task::spawn_local(endpoint::serve(socket, databases.clone()));
    let mut say = |name: &str, value: String| environment.0.push((name.to_owned(), Some(value)));
    say(client::VARIABLE, cluster.home.control.display().to_string());
    // A `tandem` among the tests finds PostgreSQL where this one did.
    say("TANDEM_CACHE_DIR", settings.cache_dir.display().to_string());
    let bin = around.venv().map(|venv| venv.join("bin"));
    // Last in PATH, so that the user's own psql, pg_dump and so on come first.
    let path = inherited.get("PATH").map(PathBuf::from);
    let places = bin.as_deref().into_iter().chain(path.as_deref()).chain([recipe.installation.bin.as_path()]);
    say("PATH", places.map(|place| place.display().to_string()).collect::<Vec<_>>().join(":"));
    Ok(environment)
}

async fn stage(job: &Job, recipe: &Recipe, cluster: &Cluster) -> anyhow::Result<Stage> {
    let (databases, inherited) = (&cluster.databases, &job.inherited);
    let around = recipe.around(databases.session_url());
    let mut environment = open(recipe, cluster, inherited)?;
    let said = environment.clone().values();
    let mut say = |name: &str, value: String| environment.0.push((name.to_owned(), Some(value)));
    let plugin = plugin::write(&cluster.home.run)?;
    for (name, value) in plugin::variables(&plugin, |name| said.get(name).or_else(|| inherited.get(name)).cloned()) {
        say(name, value);
    }
    if job.integresql {
        let address = integresql::open(databases.clone()).await?;
        say("INTEGRESQL_CLIENT_BASE_URL", format!("http://{address}/api"));
        say("INTEGRESQL_CLIENT_API_VERSION", "v1".to_owned());
    }
    let stack = match &job.workers {
        None => None,
        Some(args) => {
            let stack = Stack::start(args, recipe, cluster).await?;
            say("TANDEM_BASE_URL", stack.base_url());
            Some(stack)
        }
    };
    let (program, args) = job.command.split_first().context("no command was given")?;
    let command = environment.apply(CommandLine::new(around.program(program)).args(args));
    Ok(Stage { command, stack })
}

/// Run the command to its end, passing signals on.
async fn attend(stage: &Stage, passing: &mut Passing, guard: &Guard) -> std::io::Result<Exit> {
    let mut foreground = process::spawn_foreground(&stage.command)?;
    let group = foreground.child.pid();
    let mut guarded = true;
    let mut requests = 0;
    let mut last_chance = None;
    loop {
        let Foreground { child, .. } = &mut foreground;
        let too_late = async {
            match last_chance {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            exit = child.wait() => return Ok(exit),
            _ = guard.tripped(), if guarded => {
                guarded = false;
                process::signal_group(group, Signal::SIGKILL);
            }
            () = too_late => {
                last_chance = None;
                process::signal_group(group, Signal::SIGKILL);
            }
            passed = passing.next() => match passed {
                Passed::Child => {
                    foreground.follow_stop();
                    orphans::reap();
                }
                Passed::On(signal) => {
                    process::signal_group(group, signal);
                    requests += u32::from(matches!(signal, Signal::SIGTERM | Signal::SIGINT));
                    if requests == 2 {
                        last_chance = Some(tokio::time::Instant::now() + SECOND_GRACE);
                    } else if requests > 2 {
                        process::signal_group(group, Signal::SIGKILL);
                    }
                }
            }
        }
    }
}

/// The exit code that stands for `exit`, as shells have it.
fn code(exit: Exit) -> u8 {
    match exit {
        Exit::Code(code) => u8::try_from(code & 0xff).unwrap_or(1),
        Exit::Signal(number) => u8::try_from(128 + number).unwrap_or(u8::MAX),
    }
}

/// Say why the command could not be started; the exit code for it.
fn not_started(job: &Job, error: &std::io::Error) -> anyhow::Result<u8> {
    let Some(program) = job.command.first() else { bail!(Failure::new(Code::Usage, "no command was given")) };
    let (code, what) = match error.kind() {
        std::io::ErrorKind::NotFound if program == "pytest" => {
            let ways = ways_to_pytest(&job.settings.python);
            (NOT_FOUND, format!("pytest is not installed: {ways}; another command goes after `--`"))
        }
        std::io::ErrorKind::NotFound => (NOT_FOUND, format!("{program}: command not found")),
        _ => (NOT_RUNNABLE, format!("{program}: cannot be run: {error}")),
    };
    say_aside(&format!("tandem: {what}"));
    Ok(code)
}

/// How pytest comes into the Python environment that the tests get.
fn ways_to_pytest(python: &Python) -> String {
    let own = || python.venv.as_ref().filter(|_| !python.managed);
    let file = python.requirements.as_ref();
    let name = file.and_then(|file| file.file_name()).and_then(|name| name.to_str()).unwrap_or_default();
    match (own(), file, name) {
        (Some(venv), ..) => format!("install it into {} (`python.venv`), which is used as it is", venv.display()),
        (None, _, "uv.lock" | "pyproject.toml") => {
            "name the dependency group or the extra that has it, as in python.groups = [\"dev\"] or python.extras = [\"test\"] \
             (`uv add --dev pytest` puts it into a group called dev)"
                .to_owned()
        }
        (None, Some(file), _) => format!("add it to {} (`python.requirements`)", file.display()),
        (None, None, _) => "install it (pip install pytest), or name a file that lists it with python.requirements".to_owned(),
    }
}

/// What the server has to say about a failed run.
pub fn explain(cluster: &Cluster) {
    if cluster.postmaster.was_full() {
        let max = cluster.databases.census().max_connections;
        say_aside(&format!(
            "tandem: the tests used all {max} connections of their PostgreSQL: close connections and engines after each test, \
             or raise test.max_connections"
        ));
    }
    let lines = cluster.postmaster.last_lines(LINES_SHOWN);
    if !lines.is_empty() {
        say_aside("tandem: the last lines of PostgreSQL's log:");
        for line in &lines {
            say_aside(&format!("  {line}"));
        }
    }
    for hint in lines.iter().filter_map(|line| missing_library(line)).collect::<BTreeSet<_>>() {
        say_aside(&format!("tandem: {hint}"));
    }
}

/// What to install, where `line` of the server's log says that an extension needs a library that this machine lacks.
fn missing_library(line: &str) -> Option<String> {
    let (_, rest) = line.split_once("could not load library \"")?;
    let (extension, rest) = rest.split_once("\": ")?;
    let (library, _) = rest.split_once(": cannot open shared object file")?;
    let (name, version) = library.split_once(".so.")?;
    // Debian Policy, 8.1: the package is called after the library and its version.
    let dash = if name.ends_with(|last: char| last.is_ascii_digit()) { "-" } else { "" };
    Some(format!(
        "{extension} needs {library}, which this machine lacks: install it (Debian and Ubuntu: apt install {name}{dash}{version}), \
         or use a PostgreSQL of the system's own with postgres.source"
    ))
}

/// Leave the server, and say how to get in and how to end it.
pub fn keep(cluster: &mut Cluster, recipe: &Recipe) -> anyhow::Result<()> {
    let Some(pid) = cluster.postmaster.pid() else {
        say_aside("tandem: PostgreSQL has ended (its reason is above): there is nothing to keep");
        return Ok(());
    };
    let of_tests = cluster.databases.census().of_tests;
    of_test::note(&cluster.place.dir, &of_tests)?;
    cluster.let_live()?;
    let url = cluster.databases.session_url().with_scheme("postgresql").expose();
    let psql = recipe.installation.tool("psql");
    say_aside(&format!(
        "tandem: PostgreSQL stays, as process {pid}, with its log in {}",
        super::postmaster::log(&cluster.home).display()
    ));
    say_aside(&format!("  connect: {} '{}'", psql.display(), url.expose()));
    for url in cluster.databases.census().kept {
        say_aside(&format!("  of a failed test: {url}"));
    }
    for of_test in of_tests.iter().filter(|of_test| of_test.failed) {
        say_aside(&format!("  open it:  tandem psql --test {}", of_test.quoted()));
    }
    say_aside(&format!("  end it:  kill -INT {pid}"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Installer;

    #[test]
    fn a_library_that_an_extension_lacks_is_named_with_its_package() {
        let line = "[1] 58P01 (app@test_1) ERROR:  could not load library \"/lib/uuid-ossp.so\": libossp-uuid.so.16: cannot open \
                    shared object file: No such file or directory";
        let hint = missing_library(line).unwrap();
        assert!(hint.contains("uuid-ossp.so needs libossp-uuid.so.16") && hint.contains("libossp-uuid16)"), "{hint}");
        assert_eq!(missing_library("ERROR:  could not access file \"none\": No such file or directory"), None);
    }

    #[test]
    fn the_way_to_pytest_is_the_one_of_the_environment_that_is_used() {
        let python = |requirements: Option<&str>, venv: Option<&str>, managed| Python {
            interpreter: "python3".into(),
            requirements: requirements.map(PathBuf::from),
            groups: Vec::new(),
            extras: Vec::new(),
            venv: venv.map(PathBuf::from),
            managed,
            installer: Installer::Auto,
            limit: Duration::from_secs(1),
            wanted: None,
        };
        for (python, words) in [
            (python(Some("/app/uv.lock"), None, true), "python.groups = [\"dev\"]"),
            (python(Some("/app/pyproject.toml"), Some("/app/.venv"), true), "python.groups"),
            (python(Some("/app/dev.txt"), None, true), "add it to /app/dev.txt (`python.requirements`)"),
            (python(Some("/app/uv.lock"), Some("/app/.venv"), false), "install it into /app/.venv (`python.venv`)"),
            (python(None, None, true), "pip install pytest"),
        ] {
            let ways = ways_to_pytest(&python);
            assert!(ways.contains(words), "{ways}");
        }
    }
}
