//! OTLP, behind the cargo feature `otlp`: traces of a boot, a roll, a deployment and a backup, and what `/metrics` has, sent to
//! a collector by HTTP with protobuf bodies (OpenTelemetry Protocol specification, "OTLP/HTTP").
//!
//! ```text
//! spans      what began and ended between two pictures, as spans (pure)
//! messages   families and spans as the protocol's messages (pure)
//! send       one message to the collector, tried again where the protocol allows it
//! ```
//!
//! Where to send comes from the variables of OpenTelemetry's own SDKs (`config::otlp`); without an endpoint nothing is sent. A
//! collector that is slow or gone costs nothing but what was not sent: at most [`WAITING_MAX`] spans wait for it. The stop of
//! Tandem itself has no span: it would have to be sent after its end.

mod messages;
mod send;
mod spans;

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use prost::Message as _;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use self::send::Collector;
use self::spans::{Span, Tracker};
use crate::config::otlp::Target;
use crate::health::metrics;
use crate::health::picture::Picture;
use crate::health::server::supervisor;
use crate::metrics::registry;

/// So many spans wait at most while the collector does not take them; older ones are dropped.
const WAITING_MAX: usize = 1000;

/// Send spans as they end, and all metrics at the target's interval, for ever. Errors are told in the log, once until it
/// works again.
pub async fn run(target: Target, mut pictures: watch::Receiver<Arc<Picture>>) {
    let mut collector = match Collector::new(&target) {
        Ok(collector) => collector,
        Err(error) => return tracing::warn!("OTLP is not sent: {error:#}"),
    };
    let resource = messages::resource(&target, &pictures.borrow().details.name);
    let began = SystemTime::now();
    let (mut tracker, mut waiting) = (Tracker::default(), Vec::new());
    let mut due = interval(target.interval);
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let is_due = tokio::select! {
            changed = pictures.changed() => match changed {
                Ok(()) => false,
                Err(_) => return,
            },
            _ = due.tick() => true,
        };
        let picture = Arc::clone(&pictures.borrow_and_update());
        waiting.extend(tracker.step(
            &picture,
            spans::failures(&registry().families()),
            Instant::now(),
            SystemTime::now(),
        ));
        keep_newest(&mut waiting);
        if !waiting.is_empty()
            && let Some(traces) = &target.traces
        {
            let message = messages::traces(&resource, &waiting);
            if collector.send(traces, message.encode_to_vec()).await {
                waiting.clear();
            }
        }
        if is_due && let Some(address) = &target.metrics {
            registry().note_reader();
            let now = SystemTime::now();
            let families = metrics::all(&picture, supervisor(), (Instant::now(), now), registry());
            let message = messages::metrics(&resource, &families, began, now);
            collector.send(address, message.encode_to_vec()).await;
        }
    }
}

fn keep_newest(waiting: &mut Vec<Span>) {
    let too_many = waiting.len().saturating_sub(WAITING_MAX);
    waiting.drain(..too_many);
}
