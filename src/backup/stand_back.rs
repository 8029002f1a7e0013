//! The server's processes that serve a backup stand as far back for the processor as the backup does itself: most of what a
//! backup costs an application is what they take.

use std::convert::Infallible;
use std::fs;
use std::future::pending;
use std::time::Duration;

use sea_orm::sqlx::{ConnectOptions, query_scalar};

use super::reach::APPLICATION_NAME;
use crate::postgres::home::Home;
use crate::postgres::provision::superuser_options;
use crate::postgres::settings::SUPERUSER;
use crate::process::priority;
use crate::schema::{ANSWER_LIMIT, answered};

/// Time between two looks: pg_dump opens its sessions when it likes.
const LOOK: Duration = Duration::from_secs(1);
/// Sessions of backups. A process that works for one in parallel has its name.
const SESSIONS: &str =
    "SELECT pid FROM pg_catalog.pg_stat_activity WHERE application_name = $1 AND pid <> pg_catalog.pg_backend_pid()";

/// Lower the priority of every process of the server of `home` on `port` that serves a backup, for as long as it is awaited.
///
/// Best effort: a server that cannot be asked, or processes that cannot be seen from here or belong to others, go on as they do.
pub async fn sessions(home: &Home, port: u16) -> Infallible {
    let nice = priority::own();
    if nice > 0
        && let Err(error) = look(home, port, nice).await
    {
        tracing::debug!("the server's part of a backup keeps its priority: {error:#}");
    }
    pending().await
}

async fn look(home: &Home, port: u16, nice: i32) -> anyhow::Result<()> {
    let options = superuser_options(home, port, SUPERUSER);
    let mut session = answered(ANSWER_LIMIT, "connect to PostgreSQL", options.connect()).await?;
    loop {
        let asked = query_scalar::<_, i32>(SESSIONS).bind(APPLICATION_NAME).fetch_all(&mut session);
        for pid in answered(ANSWER_LIMIT, "list the backup's sessions", asked).await? {
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
