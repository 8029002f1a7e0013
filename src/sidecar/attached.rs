//! A server that Tandem does not run: waited for at the boot, sampled for ever, and told of while it is away.

use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::bail;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch as channel;

use super::Context;
use super::absence::{Absence, News};
use crate::config::{PostgresMode, Settings};
use crate::exit::{Code, Failure, code_of};
use crate::health::picture::Fault;
use crate::postgres::lookup;
use crate::postgres::probe::{Probe, Sample, Woken};
use crate::postgres::service::DatabaseReading;
use crate::postgres::trouble::{self, Meaning};
use crate::supervise::tree::TreeEvent;

/// How often a server that is not there yet is asked again.
const ATTACH_POLL: Duration = Duration::from_millis(200);
/// How long at most to wait for it. Its own operator knows why it is down, and this process is cheap to start again.
const ATTACH_LIMIT: Duration = Duration::from_secs(60);
/// How soon at most one that does not answer is asked again while Tandem serves.
const RETRY: Duration = Duration::from_millis(500);

/// [`super::Step::Attach`]: wait until the server that Tandem does not run answers and takes writes.
pub async fn attach(context: Rc<Context>) -> anyhow::Result<()> {
    let postgres = &context.settings().postgres;
    let url = &context.url();
    let mut probe = Probe::attached(url);
    let (mut last, mut answers) = (String::new(), false);
    let answered = async {
        loop {
            let sample = probe.sample(postgres.probe_deadline).await;
            if sample.serves() {
                return Ok(sample.max_connections);
            }
            answers = sample.available;
            let meaning = sample.answer.as_ref().map(|answer| answer.meaning(trouble::AskedServer::Other(url)));
            if let Some(Meaning::Lasting(lasting)) = meaning {
                return Err(Failure::new(lasting.code, format!("the database {url}: {}", lasting.why)));
            }
            let error = said_of(&sample);
            if error != last {
                let why = why_away(&context, &sample).await;
                tracing::warn!("waiting for the database {url}: {why}");
                last = error;
            }
            tokio::time::sleep(ATTACH_POLL).await;
        }
    };
    let limit = postgres.ready_limit.min(ATTACH_LIMIT);
    match tokio::time::timeout(limit, answered).await {
        Ok(accepted) => {
            if let Some(accepted) = accepted? {
                hold_against_budget(&context.settings(), accepted);
            }
            Ok(())
        }
        Err(_) => {
            let what = if answers { "took no writes" } else { "did not answer" };
            let last = lookup::unresolved(postgres).await.unwrap_or(last);
            bail!(Failure::new(Code::Temporary, format!("the database {url} {what} within {limit:?}: {last}")))
        }
    }
}

/// Why the server elsewhere cannot be used, as `sample` has it.
async fn why_away(context: &Context, sample: &Sample) -> String {
    lookup::unresolved(&context.settings().postgres).await.unwrap_or_else(|| said_of(sample))
}

fn said_of(sample: &Sample) -> String {
    let fault = || sample.fault.map(|fault| fault.to_string());
    sample.error.clone().or_else(fault).unwrap_or_default()
}

/// Warn if the pools may open more connections than the server that was found accepts. It may stand behind a pooler, which
/// shares few among many, so this is no reason to stop.
fn hold_against_budget(settings: &Settings, accepted: u32) {
    let budget = crate::plan::Budget { max_connections: accepted, ..settings.budget() };
    if let Err(over) = budget.check() {
        tracing::warn!("{over}; behind a pooler that may do, else {}", over.help());
    }
}

/// The `error` of migrations, as that of the server elsewhere if it is away by now: trying again may succeed.
pub async fn of_absence(context: &Context, error: anyhow::Error) -> anyhow::Error {
    let postgres = &context.settings().postgres;
    if postgres.mode != PostgresMode::Attach || !matches!(code_of(&error), Code::Failed | Code::Temporary) {
        return error;
    }
    let sample = Probe::attached(&context.url()).sample(postgres.probe_deadline).await;
    if sample.available || sample.fault == Some(Fault::NoDescriptors) {
        return error;
    }
    let (url, why) = (&context.url(), why_away(context, &sample).await);
    error.context(Failure::new(Code::Temporary, format!("the database {url} went away during the migrations: {why}")))
}

/// Sample a server that Tandem does not run, for ever; `events` wakes the tree when it begins or ceases to serve.
pub async fn sample(
    mut probe: Probe,
    context: Rc<Context>,
    samples: channel::Sender<DatabaseReading>,
    events: UnboundedSender<TreeEvent>,
) {
    let settings = context.settings();
    let postgres = &settings.postgres;
    let mut stocked = context.database.get();
    let (mut woken, mut absence) = (Woken::Due, Absence::Unknown);
    let publish = |sample: Sample| {
        let (serves, now) = (sample.serves(), Instant::now());
        if sample.fault == Some(Fault::NoDescriptors) && samples.borrow().is_some() {
            // It says nothing about the server.
            return;
        }
        let before = samples.send_replace(Some((now, sample))).map(|(_, sample)| sample);
        if before.is_none_or(|before| before.serves() != serves) {
            let _ = events.send(TreeEvent::Tick);
        }
    };
    loop {
        if context.database.get() != stocked {
            stocked = context.database.get();
            probe.refresh();
        }
        let sample = match woken {
            Woken::Due => probe.sample(postgres.probe_deadline).await,
            Woken::Alarm => probe.sample_after_alarm(postgres.probe_deadline, publish).await,
        };
        let answers = sample.available;
        if sample.fault != Some(Fault::NoDescriptors)
            && let Some(news) = absence.see(sample.serves(), Instant::now())
        {
            tell(&context, &sample, news).await;
        }
        publish(sample);
        woken = if answers {
            probe.pause(postgres.probe_interval).await
        } else {
            tokio::time::sleep(postgres.probe_interval.min(RETRY)).await;
            Woken::Due
        };
    }
}

/// Say what became of the server elsewhere.
async fn tell(context: &Context, sample: &Sample, news: News) {
    let url = &context.url();
    let seconds = |time: Duration| humantime::format_duration(Duration::from_secs(time.as_secs().max(1)));
    if let News::Back(after) = news {
        return tracing::info!("the database {url} serves again, after {}", seconds(after));
    }
    let why = why_away(context, sample).await;
    match news {
        News::Still(time) => tracing::warn!("the database {url} has been away for {}: {why}", seconds(time)),
        News::Gone | News::Back(_) => tracing::warn!("the database {url} went away: {why}"),
    }
}
