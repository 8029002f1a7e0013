//! The server's part of a backup stands back: most of what a backup costs an application is what the server does for it.
//!
//! Its processes get the niceness of the backup. And while the server works for others too, the backup rests after each piece as
//! long as it worked: niceness is about the processor, and there is no such thing for the disk and for what the server keeps in
//! memory.

use std::convert::Infallible;
use std::fs;
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sea_orm::sqlx::{ConnectOptions, query_as};

use super::reach::APPLICATION_NAME;
use crate::postgres::home::Home;
use crate::postgres::provision::superuser_options;
use crate::postgres::settings::SUPERUSER;
use crate::process::priority;
use crate::schema::{ANSWER_LIMIT, answered};

/// Time between two looks: pg_dump opens its sessions when it likes.
const LOOK: Duration = Duration::from_secs(1);
/// The longest rest at once: a server that stood still by itself was not worked on.
const REST_MAX: Duration = Duration::from_millis(100);
/// The sessions of backups, and whether anybody else's did something since the last look. A process that works for a session
/// in parallel has its name; Tandem's own sessions look at the server all the time.
const SESSIONS: &str = "SELECT
    ARRAY(SELECT pid FROM pg_catalog.pg_stat_activity WHERE application_name = $1 AND pid <> pg_catalog.pg_backend_pid()),
    EXISTS (SELECT FROM pg_catalog.pg_stat_activity WHERE backend_type = 'client backend' AND application_name !~ '^tandem(-|$)'
            AND (state = 'active' OR state_change > pg_catalog.clock_timestamp() - interval '1 second'))";

/// Whether the server works for others than the backup, as it was when it was last looked at.
#[derive(Clone, Debug, Default)]
pub struct Others(Arc<AtomicBool>);

impl Others {
    fn are_served(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The rests of one reader of what the server sends.
#[derive(Debug)]
pub struct Rests {
    others: Others,
    /// When the last one was over.
    over: Instant,
}

impl Rests {
    pub fn new(others: Others) -> Self {
        Self { others, over: Instant::now() }
    }

    /// How long to rest now: as long as it was worked since the last rest, if others are served.
    pub fn due(&self) -> Duration {
        if self.others.are_served() { self.over.elapsed().min(REST_MAX) } else { Duration::ZERO }
    }

    /// The rest is over, or none was taken.
    pub fn begin_work(&mut self) {
        self.over = Instant::now();
    }
}

/// Lower the priority of every process of the server of `home` on `port` that serves a backup, and note in `others` whether
/// it serves anybody else, for as long as it is awaited.
///
/// Best effort: a server that cannot be asked, or processes that cannot be seen from here or belong to others, go on as they
/// do. A backup that does not stand back itself (`backup.nice = 0`) neither lets the server.
pub async fn sessions(home: &Home, port: u16, others: &Others) -> Infallible {
    let nice = priority::own();
    if nice > 0
        && let Err(error) = look(home, port, nice, others).await
    {
        others.0.store(false, Ordering::Relaxed);
        tracing::debug!("the server's part of a backup keeps its priority: {error:#}");
    }
    pending().await
}

async fn look(home: &Home, port: u16, nice: i32, others: &Others) -> anyhow::Result<()> {
    let options = superuser_options(home, port, SUPERUSER);
    let mut session = answered(ANSWER_LIMIT, "connect to PostgreSQL", options.connect()).await?;
    loop {
        let asked = query_as::<_, (Vec<i32>, bool)>(SESSIONS).bind(APPLICATION_NAME).fetch_one(&mut session);
        let (pids, are_served) = answered(ANSWER_LIMIT, "list the backup's sessions", asked).await?;
        others.0.store(are_served, Ordering::Relaxed);
        for pid in pids {
            // The number is the server's; here it may be another process.
            if Some(pid) != postmaster(home) && parent(pid) == postmaster(home) {
                priority::stand_back_too(pid, nice);
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn postmaster(home: &Home) -> Option<i32> {
    // Blocks: a small file of the server that answers.
    fs::read_to_string(home.data.join("postmaster.pid")).ok()?.lines().next()?.trim().parse().ok()
}

fn parent(pid: i32) -> Option<i32> {
    // Blocks: /proc waits for no disk.
    procfs::process::Process::new(pid).and_then(|process| process.stat()).map(|stat| stat.ppid).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rest_is_as_long_as_the_work_before_it_and_only_for_others() {
        let others = Others::default();
        let mut rests =
            Rests { others: others.clone(), over: Instant::now().checked_sub(Duration::from_millis(40)).unwrap() };
        assert_eq!(rests.due(), Duration::ZERO);
        others.0.store(true, Ordering::Relaxed);
        let due = rests.due();
        assert!(due >= Duration::from_millis(40) && due <= REST_MAX, "{due:?}");
        rests.begin_work();
        assert!(rests.due() < due);
        // A server that stood still for a minute is not rested from for one.
        rests.over = Instant::now().checked_sub(Duration::from_secs(60)).unwrap();
        assert_eq!(rests.due(), REST_MAX);
    }
}
