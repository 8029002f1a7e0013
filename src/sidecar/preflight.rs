//! What can be known to be missing before a server or a worker is started for it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};

use super::Context;
use crate::config::{Debugger, MigrationRun};
use crate::event_loop::within;
use crate::exit::{Code, Failure};
use crate::plan::CommandLine;
use crate::process;
use crate::project::Interpreter;
use crate::workers::surroundings::Surroundings;

/// How long a module may take to be imported.
const IMPORT_LIMIT: Duration = Duration::from_secs(30);
/// How long a look into an environment may take.
const LOOK_LIMIT: Duration = Duration::from_secs(5);

/// Uvicorn runs the workers, and no environment that somebody else made need have it. What is seen in its directories is
/// not asked for: a start is to be quick.
pub async fn uvicorn(context: &Context) -> anyhow::Result<()> {
    let settings = context.settings();
    if settings.workers.command.is_some() {
        return Ok(());
    }
    let (python, path, dir) =
        (context.python.borrow().clone(), settings.search_path.clone(), settings.directory.clone());
    let home = settings.inherited.0.get("HOME").cloned();
    let look = {
        let python = python.clone();
        move || Interpreter::of(&python, &path, home.as_deref().map(Path::new), &dir).has("uvicorn")
    };
    if within(LOOK_LIMIT, "look for Uvicorn", look).await? {
        return Ok(());
    }
    let import = CommandLine::new(&python).args(["-c", "import uvicorn"]);
    let make = |around: Surroundings<'_>| around.with_all(import, "tandem-uvicorn", around.work_dir());
    let command = context.around_aside(make).await?;
    let finished = process::run(&command, IMPORT_LIMIT).await.context("import uvicorn")?;
    if !finished.exit.success() {
        let python = python.display();
        let text = format!(
            "Uvicorn, which runs the workers, cannot be imported by {python}: `{python} -m pip install uvicorn`, or write into \
             python.requirements a file that names it\n{}",
            finished.last_lines()
        );
        bail!(Failure::new(Code::Config, text));
    }
    Ok(())
}

/// An editor attaches to debugpy, which the application's own environment must have.
pub async fn debugger(context: &Context) -> anyhow::Result<()> {
    if !matches!(context.settings().workers.debugger, Debugger::Listen(_)) {
        return Ok(());
    }
    let python = context.python.borrow().clone();
    let import = CommandLine::new(&python).args(["-c", "import debugpy"]);
    let make = |around: Surroundings<'_>| around.with_all(import, "tandem-debugger", around.work_dir());
    let command = context.around_aside(make).await?;
    let finished = process::run(&command, IMPORT_LIMIT).await.context("import debugpy")?;
    if !finished.exit.success() {
        let python = python.display();
        let text = format!(
            "--attach-debugger needs debugpy, which the application's Python cannot import: `{python} -m pip install debugpy`, \
             or add it to the requirements\n{}",
            finished.last_lines()
        );
        bail!(Failure::new(Code::Config, text));
    }
    Ok(())
}

/// A program of the migrations that is not there is told before the server is started for it. Where nobody wrote it, the
/// database may have another say.
pub async fn migrations(context: &Context) -> anyhow::Result<()> {
    let migrations = &context.settings().migrations;
    match &migrations.run {
        MigrationRun::Command(words) if migrations.chosen => program(context, words).await,
        _ => Ok(()),
    }
}

/// Whether the program of the command `words` is there.
pub async fn program(context: &Context, words: &[String]) -> anyhow::Result<()> {
    let Some(program) = words.first().cloned() else { return Ok(()) };
    let wanted = program.clone();
    if !context.around_aside(move |around| around.finds(&wanted)).await? {
        let text = format!("migrations.run: {program} is neither in the Python environment nor in PATH");
        bail!(Failure::new(Code::Config, text));
    }
    Ok(())
}
