//! Operator commands that run after the application is ready, before the stop, and when a worker has ended.

use std::rc::Rc;

use tokio::sync::mpsc::UnboundedReceiver;

use super::Context;
use crate::config::OnFailure;
use crate::plan::in_one_line;
use crate::process::{self, RunError};
use crate::telemetry::{self, Stream};
use crate::workers::launch::WORKER_SLOT;
use crate::workers::life::EndedWorker;
use crate::workers::surroundings::{NO_MODULE, Surroundings};

/// The variable that tells the hook which process has ended.
const WORKER_PID: &str = "TANDEM_WORKER_PID";
/// Workers that have ended and whose hook has not run yet; more are passed over, with a line in the log.
const ENDED_MAX: usize = 100;

/// When a hook runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookPoint {
    AfterReady,
    BeforeStop,
    WorkerExit,
}

impl HookPoint {
    /// As the configuration calls it.
    fn key(self) -> &'static str {
        match self {
            Self::AfterReady => "hooks.after_ready",
            Self::BeforeStop => "hooks.before_stop",
            Self::WorkerExit => "hooks.worker_exit",
        }
    }

    /// Its name in the log.
    fn service(self) -> &'static str {
        match self {
            Self::AfterReady => "hook:after_ready",
            Self::BeforeStop => "hook:before_stop",
            Self::WorkerExit => "hook:worker_exit",
        }
    }
}

/// Run the hook at `point`, if there is one; says in the log how it went.
///
/// # Errors
/// What went wrong, if `hooks.on_failure = "stop"`.
pub async fn run(context: Rc<Context>, point: HookPoint) -> Result<(), String> {
    run_with(context, point, &[]).await
}

/// As [`run`], with these variables.
///
/// # Errors
/// As [`run`].
pub async fn run_with(
    context: Rc<Context>,
    point: HookPoint,
    variables: &[(&'static str, String)],
) -> Result<(), String> {
    let settings = context.settings();
    let hooks = &settings.hooks;
    let words = match point {
        HookPoint::AfterReady => hooks.after_ready.as_ref(),
        HookPoint::BeforeStop => hooks.before_stop.as_ref(),
        HookPoint::WorkerExit => hooks.worker_exit.as_ref(),
    };
    let Some(words) = words else { return Ok(()) };
    let application = format!("{}-hook", settings.name);
    let owned = words.clone();
    let make =
        move |around: Surroundings<'_>| (around.command(&owned, &application, around.work_dir()), around.import_help());
    let (command, import_help) = match context.around_aside(make).await {
        Ok((command, import_help)) => (Ok(command), import_help),
        Err(hangs) => (Err(hangs), None),
    };
    let service = point.service();
    let mut last = String::new();
    let on_line = |line: &str| {
        telemetry::child_line(service, Stream::Stderr, line);
        line.clone_into(&mut last);
    };
    let ended = match command {
        Ok(None) => return Ok(()),
        Ok(Some(command)) => {
            let command = variables
                .iter()
                .fold(context.whereabouts(command), |command, (name, value)| command.env(*name, value.clone()));
            process::run_with(&command, hooks.limit, on_line).await.map_err(anyhow::Error::from)
        }
        Err(hangs) => Err(hangs.into()),
    };
    let why = match ended {
        Ok(finished) if finished.exit.success() => {
            match point {
                // There is one for every worker that goes.
                HookPoint::WorkerExit => tracing::debug!({ service.name = service }, "done"),
                HookPoint::AfterReady | HookPoint::BeforeStop => tracing::info!({ service.name = service }, "done"),
            }
            // A success of one says nothing of another.
            context.hook_failure.borrow_mut().take_if(|why| why.starts_with(point.key()));
            return Ok(());
        }
        Ok(finished) if last.is_empty() => format!("ended with {}", finished.exit),
        Ok(finished) => {
            let help = import_help.filter(|_| last.contains(NO_MODULE)).map(|help| format!("; {help}"));
            format!("ended with {}: {last}{}", finished.exit, help.unwrap_or_default())
        }
        Err(error) => match error.downcast_ref() {
            Some(RunError::Limit(_, limit)) => format!("did not end within {limit:?} (hooks.limit) and was killed"),
            _ => error.to_string(),
        },
    };
    let short = why.split(':').next().unwrap_or_default();
    context.hook_failure.replace(Some(format!("{} {short}; the log has the rest", point.key())));
    let text = format!("{} (`{}`) {why}", point.key(), in_one_line(words));
    match hooks.on_failure {
        OnFailure::Warn => {
            tracing::warn!("{text}");
            Ok(())
        }
        OnFailure::Stop => Err(text),
    }
}

/// Run `hooks.worker_exit` for each worker that has ended, one after the other, until no more can come; `on_failure` hears
/// what went wrong, if `hooks.on_failure = "stop"`.
pub async fn follow_exits(
    context: Rc<Context>,
    mut ended: UnboundedReceiver<EndedWorker>,
    on_failure: impl Fn(String),
) {
    while let Some(EndedWorker { slot, pid }) = ended.recv().await {
        if ended.len() > ENDED_MAX {
            tracing::warn!("hooks.worker_exit is too slow for the workers that end: it does not run for process {pid}");
            continue;
        }
        let variables = [(WORKER_SLOT, slot.to_string()), (WORKER_PID, pid.to_string())];
        if let Err(why) = run_with(context.clone(), HookPoint::WorkerExit, &variables).await {
            on_failure(why);
        }
    }
}
