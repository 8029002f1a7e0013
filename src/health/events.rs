//! The stream behind `GET /events`: server-sent events for the status page and for `tandem top`.
//!
//! Each event is one [`Overview`] as JSON, in a `data:` line of its own. There is one at once, then one whenever something
//! changed, a second apart at least; one comes every five seconds in any case, so that a reader knows that Tandem lives.
//! An event is made when the connection has room for it: a reader that is slow gets fewer, and one that reads nothing
//! is ended by the limit of `http::server`. While nobody looks, nothing is made.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::stream::unfold;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, StreamBody};
use hyper::Response;
use hyper::body::{Bytes, Frame};
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::overview::{self, Overview, overview};
use super::picture::Picture;
use super::report::Now;
use super::server::supervisor;
use super::statistics::Statistics;
use super::viewers::Viewer;
use crate::scrub::scrubbed;
use crate::telemetry::{self, Cursor, Ring};

/// The time between two events, at least and at most.
const INTERVAL_MIN: Duration = Duration::from_secs(1);
const INTERVAL_MAX: Duration = Duration::from_secs(5);
/// How long a reader waits before it connects again, in milliseconds.
const RETRY_MS: u32 = 1000;
/// So many lines of the log come first, and so many at most in one event.
pub const LOG_LINES: usize = 100;
/// About how much text of the log one event carries, in bytes.
const LOG_SIZE_MAX: usize = 64 * 1024;

/// The body of an answer that may be a stream.
pub type Body = UnsyncBoxBody<Bytes, Infallible>;

/// What one viewer reads from.
pub struct Source {
    pub pictures: watch::Receiver<Arc<Picture>>,
    pub ring: &'static Ring,
    pub viewer: Viewer,
}

/// The answer with an event for each [`Overview`], which `write` turns into the event's lines; it ends when `closing` completes.
pub fn stream(
    source: Source,
    write: impl FnMut(&Overview) -> String + Send + 'static,
    closing: impl Future<Output = ()> + Send + 'static,
) -> Response<Body> {
    let Source { pictures, ring, viewer } = source;
    let (cursor, news) = (ring.reader(None, Some(LOG_LINES), true), ring.news());
    let reader = Reader { pictures, ring, cursor, news, told: None, last: None, _viewer: viewer };
    let begin = (reader, write, Box::pin(closing));
    let stream = unfold(begin, |(mut reader, mut write, mut closing)| async move {
        tokio::select! {
            () = reader.due() => {}
            () = &mut closing => return None,
        }
        let is_first = reader.last.is_none();
        let text = write(&reader.next());
        let text = if is_first { format!("retry: {RETRY_MS}\n{text}") } else { text };
        Some((Ok(Frame::data(Bytes::from(scrubbed(&text).into_owned()))), (reader, write, closing)))
    });
    let mut response = Response::new(StreamBody::new(stream).boxed_unsync());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// An event without a name whose data is `overview` as JSON.
pub fn json(overview: &Overview) -> String {
    // Its strings are UTF-8 and its keys are text: it can be written.
    format!("data: {}\n\n", serde_json::to_string(overview).unwrap_or_default())
}

/// What is now, for a page that is fetched once: with the statistics, and the last lines of the log.
pub fn now(picture: &Picture, ring: &Ring) -> Overview {
    let mut overview = of(picture);
    overview.statistics = Some(overview::statistics(picture));
    let mut cursor = ring.reader(None, Some(LOG_LINES), false);
    overview.log = ring.read(&mut cursor, LOG_SIZE_MAX).lines.into_iter().map(overview::log_line).collect();
    overview
}

fn of(picture: &Picture) -> Overview {
    let under_way = telemetry::under_way();
    // tokio's clock, which tests can set.
    let instant = Instant::now().into_std();
    overview(picture, Now { instant, wall: SystemTime::now(), supervisor: supervisor(), under_way: &under_way })
}

struct Reader {
    pictures: watch::Receiver<Arc<Picture>>,
    ring: &'static Ring,
    cursor: Cursor,
    news: watch::Receiver<u64>,
    /// The statistics of the last event that had some.
    told: Option<Arc<Statistics>>,
    /// When the last event was made.
    last: Option<Instant>,
    _viewer: Viewer,
}

impl Reader {
    /// Until the next event is due.
    async fn due(&mut self) {
        let Some(last) = self.last else { return };
        sleep_until(last + INTERVAL_MIN).await;
        let changed = async {
            tokio::select! {
                changed = self.pictures.changed() => changed,
                changed = self.news.changed() => changed,
            }
        };
        tokio::select! {
            changed = changed => if changed.is_err() {
                // Nothing will change any more.
                sleep_until(last + INTERVAL_MAX).await;
            },
            () = sleep_until(last + INTERVAL_MAX) => {}
        }
    }

    fn next(&mut self) -> Overview {
        self.last = Some(Instant::now());
        let picture = Arc::clone(&self.pictures.borrow_and_update());
        self.news.mark_unchanged();
        let mut overview = of(&picture);
        let statistics = &picture.details.statistics;
        if self.told.as_ref().is_none_or(|told| !Arc::ptr_eq(told, statistics)) {
            overview.statistics = Some(overview::statistics(&picture));
            self.told = Some(statistics.clone());
        }
        (overview.log, overview.log_skipped) = self.lines();
        overview
    }

    /// The lines since the last event; the last of them where there are many.
    fn lines(&mut self) -> (Vec<overview::LogLine>, bool) {
        let batch = self.ring.read(&mut self.cursor, LOG_SIZE_MAX);
        let mut skipped = batch.skipped > 0;
        let mut lines = batch.lines;
        let size: usize = lines.iter().map(|line| line.text.len()).sum();
        if let (Some(first), true) = (lines.first(), size > LOG_SIZE_MAX) {
            // There may be more than fits: the last of it.
            let first = first.sequence;
            self.cursor = self.ring.reader(None, Some(LOG_LINES), true);
            lines = self.ring.read(&mut self.cursor, LOG_SIZE_MAX).lines;
            lines.retain(|line| line.sequence >= first);
            skipped = true;
        }
        if lines.len() > LOG_LINES {
            skipped = true;
            lines.drain(..lines.len() - LOG_LINES);
        }
        (lines.into_iter().map(overview::log_line).collect(), skipped)
    }
}

#[cfg(test)]
#[path = "events_tests.rs"]
mod tests;
