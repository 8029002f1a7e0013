//! Where `tandem top` has its facts from: the control socket, asked again and again, also while no Tandem runs.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;
use tokio::time::sleep;

use crate::control::client;
use crate::control::messages::{LogEntry, LogQuery, Status};
use crate::exit::in_words;
use crate::health::overview::Overview;

/// How often the status is asked for, and a Tandem that is gone is looked for.
const INTERVAL: Duration = Duration::from_secs(1);
/// How many lines of the log there are at the beginning.
const LINES: usize = 500;

/// News for the screen.
#[derive(Debug)]
pub enum News {
    Status(Box<Status>, Instant),
    /// The database, disks and health.
    Overview(Box<Overview>),
    /// It does not answer, and why.
    Lost(String),
    /// The log begins, with the lines that are there.
    LogBegins,
    Line(LogEntry),
}

/// Send the status once a second until nobody receives it.
pub async fn statuses(socket: PathBuf, news: UnboundedSender<News>) {
    while !news.is_closed() {
        let asked = client::status(&socket).await;
        let _ = news.send(match asked {
            Ok(status) => News::Status(Box::new(status), Instant::now()),
            Err(error) => News::Lost(in_words(&error)),
        });
        sleep(INTERVAL).await;
    }
}

/// Send the overviews as they come, those of the next Tandem too.
pub async fn overviews(socket: PathBuf, news: UnboundedSender<News>) {
    while !news.is_closed() {
        // What went wrong the status tells.
        let asked = client::events(&socket, |overview| {
            news.send(News::Overview(Box::new(overview)))?;
            Ok(())
        });
        let _ = asked.await;
        sleep(INTERVAL).await;
    }
}

/// Send the log as it grows, that of the next Tandem too.
pub async fn lines(socket: PathBuf, news: UnboundedSender<News>) {
    while !news.is_closed() {
        // What went wrong the status tells.
        let _ = log_once(&socket, &news).await;
        sleep(INTERVAL).await;
    }
}

async fn log_once(socket: &Path, news: &UnboundedSender<News>) -> anyhow::Result<()> {
    let query = LogQuery { service: None, lines: Some(LINES), follow: true };
    let mut has_begun = false;
    client::logs(socket, &query, |entry| {
        if !std::mem::replace(&mut has_begun, true) {
            news.send(News::LogBegins)?;
        }
        news.send(News::Line(entry))?;
        Ok(())
    })
    .await
}
