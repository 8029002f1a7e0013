//! `backup.pitr.ack = "remote"`: a file of WAL is archived when a destination has it. The archive_command waits for that here.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::thread::park_timeout;
use std::time::{Duration, Instant, SystemTime};

use anyhow::bail;

use super::archive::entries;
use super::away::ledger::{self, Condition};
use super::wal::WalFile;

/// How long one archive_command waits: PostgreSQL asks again afterwards, and ends no server before it has ended.
const WAIT: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(20);
/// What a process that sends has written down of itself is never older, but where it does not run.
const ALIVE: Duration = Duration::from_secs(10);

/// Wait until some destination was sent `name`, by what is written down in `dir`.
///
/// # Errors
/// None was in time, with the reason.
pub fn wait(dir: &Path, name: WalFile) -> anyhow::Result<()> {
    let began = Instant::now();
    let mut seen = BTreeMap::new();
    loop {
        let now = sizes(dir);
        if now != seen && ledger::is_sent(dir, name)? {
            return Ok(());
        }
        seen = now;
        let conditions = ledger::conditions(dir);
        let alive = |condition: &Condition| {
            let looked = condition.looked.map(SystemTime::from);
            looked.is_some_and(|looked| looked.elapsed().is_ok_and(|age| age < ALIVE))
        };
        let waited = began.elapsed();
        if waited < WAIT && (conditions.iter().any(alive) || waited < ALIVE) {
            park_timeout(LOOK);
            continue;
        }
        let why = conditions.into_iter().find_map(|condition| {
            Some(format!("{}: {}", condition.destination, condition.error?.lines().next().unwrap_or_default()))
        });
        let why = why.unwrap_or_else(|| "nothing is sent at this moment".to_owned());
        bail!("no destination has {name} yet, which backup.pitr.ack = \"remote\" waits for: {why}");
    }
}

/// How long the lists of what was sent are.
fn sizes(dir: &Path) -> BTreeMap<PathBuf, u64> {
    let lists = entries(dir).into_iter().map(|place| place.join(ledger::SENT));
    lists.filter_map(|list| Some((list.clone(), list.metadata().ok()?.len()))).collect()
}
