//! What people are answered whose order was refused, failed, or takes its time. Pure.

use std::time::Duration;

use super::context::Reread;
use crate::config::Settings;
use crate::control::Answer;
use crate::event_loop::Hangs;
use crate::exit::{Code, in_words};

/// Whether there may be `wanted` workers.
pub fn may_scale(settings: &Settings, wanted: u32) -> Result<(), String> {
    if wanted == 0 {
        return Err("no worker would be left to answer; `tandem stop` stops everything".into());
    }
    let most = settings.health.workers_min;
    if wanted < most {
        return Err(format!("health.workers_min asks for at least {most} ready workers"));
    }
    let budget = crate::plan::Budget { workers: wanted, ..settings.budget() };
    match budget.check() {
        Err(over) if settings.postgres.mode == crate::config::PostgresMode::Managed => {
            let later = budget.connections_for(settings.memory);
            if settings.postgres.max_connections_auto && u64::from(later) >= budget.total() {
                return Err(format!(
                    "{over} since the start: with workers.count = {wanted} in the configuration a restart of Tandem makes \
                     it {later}; or {}",
                    over.help()
                ));
            }
            Err(format!("{over}: {}", over.help()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// What became of each key that changed.
pub fn told(reading: &Reread) -> Vec<String> {
    let lines = [
        ("holds at once", &reading.live),
        ("holds in the workers that come now", &reading.rolled),
        ("holds only after a restart of Tandem", &reading.restart),
    ];
    let told = lines.into_iter().filter(|(_, keys)| !keys.is_empty());
    let told = told.map(|(what, keys)| format!("{}: {what}", keys.join(", ")));
    told.chain(reading.notices.iter().cloned()).collect()
}

pub fn aborted(why: &str, replaced: usize) -> String {
    let before = match replaced {
        0 => "the workers that were there serve on".to_owned(),
        count => format!("{count} were replaced before, the others that were there serve on"),
    };
    format!("{why}\n{before}")
}

/// The order is not done within `limit`, and not taken back.
pub fn goes_on(what: &str, limit: Duration) -> Answer {
    let limit = humantime::format_duration(Duration::from_secs(limit.as_secs()));
    Answer::failed(
        Code::Temporary,
        format!("{what} is not done after {limit} and goes on; `tandem status` shows how far"),
    )
}

/// The order `what` is refused before anything came of it.
pub fn nothing_changed(what: &str, error: &anyhow::Error) -> Answer {
    let text = format!("{}\nnothing was changed: Tandem goes on as before", in_words(error));
    tracing::error!("{what}: {text}");
    Answer::failed(if error.is::<Hangs>() { Code::Temporary } else { Code::Config }, text)
}

pub fn interrupted() -> Answer {
    Answer::failed(Code::Temporary, "a stop came first")
}
