//! Operator commands that run after the application is ready and before the stop.

use std::rc::Rc;

use super::Context;
use crate::config::OnFailure;
use crate::plan::in_one_line;
use crate::process::{self, RunError};
use crate::telemetry::{self, Stream};

/// When a hook runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookPoint {
    AfterReady,
    BeforeStop,
}

impl HookPoint {
    /// As the configuration calls it.
    fn key(self) -> &'static str {
        match self {
            Self::AfterReady => "hooks.after_ready",
            Self::BeforeStop => "hooks.before_stop",
        }
    }

    /// Its name in the log.
    fn service(self) -> &'static str {
        match self {
            Self::AfterReady => "hook:after_ready",
            Self::BeforeStop => "hook:before_stop",
        }
    }
}

/// Run the hook at `point`, if there is one; says in the log how it went.
///
/// # Errors
/// What went wrong, if `hooks.on_failure = "stop"`.
pub async fn run(context: Rc<Context>, point: HookPoint) -> Result<(), String> {
    let settings = context.settings();
    let hooks = &settings.hooks;
    let words = match point {
        HookPoint::AfterReady => hooks.after_ready.as_ref(),
        HookPoint::BeforeStop => hooks.before_stop.as_ref(),
    };
    let Some(words) = words else { return Ok(()) };
    let application = format!("{}-hook", settings.name);
    let owned = words.clone();
    let command = context.around_aside(move |around| around.command(&owned, &application, around.work_dir())).await;
    let service = point.service();
    let mut last = String::new();
    let on_line = |line: &str| {
        telemetry::child_line(service, Stream::Stderr, line);
        line.clone_into(&mut last);
    };
    let ended = match command {
        Ok(None) => return Ok(()),
        Ok(Some(command)) => {
            let command = context.whereabouts(command);
            process::run_with(&command, hooks.limit, on_line).await.map_err(anyhow::Error::from)
        }
        Err(hangs) => Err(hangs.into()),
    };
    let why = match ended {
        Ok(finished) if finished.exit.success() => {
            tracing::info!({ service.name = service }, "done");
            context.hook_failure.take();
            return Ok(());
        }
        Ok(finished) if last.is_empty() => format!("ended with {}", finished.exit),
        Ok(finished) => format!("ended with {}: {last}", finished.exit),
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
