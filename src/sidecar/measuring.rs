//! Takes the samples for `/metrics`, off the event loop: the database over one session, the memory of every process, this
//! process itself. A scrape reads what was last taken.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use procfs::WithCurrentSystemInfo;
use procfs::process::Process;
use tokio::sync::watch;
use tokio::time::sleep;

use super::Context;
use crate::config::PostgresMode;
use crate::event_loop::{elsewhere, within};
use crate::health::picture::Picture;
use crate::metrics::{DatabaseText, Family, Kind, registry};
use crate::phase::Phase;
use crate::postgres::measure::Sampler;
use crate::process::{limits, memory};
use crate::scrub::scrubbed;

/// How often memory is measured at least.
const MEMORY_INTERVAL: Duration = Duration::from_secs(15);
/// How often it is looked at again whether the database is to be measured.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// So long after the last scrape nobody reads any more.
const IDLE_AFTER: Duration = Duration::from_secs(300);
/// How often the database is measured while nobody reads.
const IDLE_INTERVAL: Duration = Duration::from_secs(300);
/// How long a look at this process may take.
const OWN_LIMIT: Duration = Duration::from_secs(2);

type Pictures = watch::Sender<Arc<Picture>>;

/// Take samples for ever.
pub async fn follow(context: Rc<Context>, pictures: Pictures) {
    tokio::join!(follow_database(&context, pictures.subscribe()), follow_processes(&context, &pictures));
}

/// Measure the database while Tandem serves: every `metrics.interval` while somebody reads `/metrics`, else now and then, so
/// that the first who does finds something.
async fn follow_database(context: &Context, mut pictures: watch::Receiver<Arc<Picture>>) {
    let mut sampler = match context.settings().postgres.mode {
        PostgresMode::Managed => Sampler::managed(&context.home, &context.url()),
        PostgresMode::Attach => Sampler::attached(&context.url()),
    };
    // It closes only with the process.
    if pictures.wait_for(|picture| picture.phase >= Phase::Serving).await.is_err() {
        return;
    }
    let mut told: Option<String> = None;
    while pictures.borrow().phase == Phase::Serving {
        let settings = context.settings().metrics;
        if settings.interval.is_some() {
            let error;
            (sampler, error) = take(sampler, settings.tables).await;
            // The probe tells of a server that is away; of what holds up this session alone, nothing else does.
            if error != told {
                let words = error.as_deref().unwrap_or("it answers");
                tracing::debug!("measure the database for /metrics: {words}");
                told = error;
            }
        }
        tokio::select! {
            () = next(context, &mut sampler) => {}
            // A server that stops is not to find the session.
            _ = pictures.wait_for(|picture| picture.phase > Phase::Serving) => break,
        }
    }
    sampler.close().await;
}

/// Until the next sample is due.
async fn next(context: &Context, sampler: &mut Sampler) {
    let Some(interval) = context.settings().metrics.interval else {
        sampler.close().await;
        return sleep(LOOK_AGAIN).await;
    };
    if registry().is_read_within(IDLE_AFTER.max(4 * interval)) {
        return sleep(interval).await;
    }
    // Nobody reads: the session is not kept for the next.
    sampler.close().await;
    tokio::select! {
        () = sleep(IDLE_INTERVAL.max(interval)) => {}
        () = registry().next_scrape() => {}
    }
}

/// Take one sample on another thread: a thousand tables make megabytes of text. Returns why there is none of the server.
async fn take(mut sampler: Sampler, tables: u32) -> (Sampler, Option<String>) {
    let formats = registry().scraped_within(IDLE_AFTER);
    let taken = elsewhere(move || async move {
        let measured = sampler.sample(tables).await;
        for news in &measured.news {
            tracing::info!("{news}");
        }
        let text = DatabaseText::new(measured.families, |text| scrubbed(&text).into_owned());
        formats.into_iter().for_each(|format| drop(text.text(format)));
        (sampler, text, measured.error)
    });
    let (sampler, text, error) = taken.await;
    registry().set_database(Arc::new(text));
    (sampler, error)
}

/// Measure the processes.
async fn follow_processes(context: &Context, pictures: &Pictures) {
    let began = SystemTime::now().checked_sub(pictures.borrow().started.elapsed());
    loop {
        let pids: Vec<i32> = pictures.borrow().services.iter().filter_map(|service| service.pid).collect();
        let found: HashMap<_, _> = pids.iter().copied().zip(memory::lightly(&pids).await).collect();
        pictures.send_if_modified(|picture| {
            let picture = Arc::make_mut(picture);
            let of = |pid: Option<i32>| found.get(&pid?).copied().flatten();
            for worker in &mut picture.workers {
                worker.memory_bytes = of(worker.pid).or(worker.memory_bytes);
            }
            for service in &mut picture.services {
                service.memory_bytes = of(service.pid).or(service.memory_bytes);
            }
            !found.is_empty()
        });
        if let Ok(Some(families)) = within(OWN_LIMIT, "measure this process", move || of_this_process(began)).await {
            registry().set_own(families);
        }
        let starting = pictures.borrow().phase < Phase::Serving;
        let interval = context.settings().metrics.interval.unwrap_or(MEMORY_INTERVAL).min(MEMORY_INTERVAL);
        sleep(if starting { LOOK_AGAIN.min(interval) } else { interval }).await;
    }
}

/// What every Prometheus client says of its process, under the same names.
fn of_this_process(began: Option<SystemTime>) -> Option<Vec<Family>> {
    // Blocks: called by `within`.
    let process = Process::myself().ok()?;
    let stat = process.stat().ok()?;
    let open = process.fd_count().ok()?;
    #[expect(clippy::cast_precision_loss, reason = "exact up to 2^53")]
    let number = |number: u64| number as f64;
    // Blocks: the same.
    let seconds = number(stat.utime + stat.stime) / number(procfs::ticks_per_second());
    let files = limits::open_files();
    let began = began.and_then(|began| began.duration_since(UNIX_EPOCH).ok()).map(|since| since.as_secs_f64());
    let mut families = vec![
        Family::new("process_cpu_seconds", "Processor time that Tandem itself has used", Kind::Counter)
            .with(&[], seconds),
        Family::gauge("process_resident_memory_bytes", "Tandem's own resident memory", number(stat.rss_bytes().get())),
        Family::gauge("process_virtual_memory_bytes", "Tandem's own address space", number(stat.vsize)),
        Family::gauge("process_open_fds", "Files that Tandem has open", number(open as u64)),
        Family::gauge("process_max_fds", "Files that Tandem may have open", number(files as u64)),
    ];
    let help = "When Tandem was started, in seconds since 1970";
    families.extend(began.map(|began| Family::gauge("process_start_time_seconds", help, began)));
    Some(families)
}
