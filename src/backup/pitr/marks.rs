//! Named moments: a restore point in the WAL, and a file beside the archive that says what it is called.
//!
//! ```text
//! <dir>/marks/<name>.json
//! ```
//!
//! A recovery ends before the first record behind the mark, whatever other restore points are called.

use std::time::SystemTime;

use anyhow::Context;
use sea_orm::sqlx::{ConnectOptions, Connection, query_as, query_scalar};
use serde::{Deserialize, Serialize};

use super::archive::{Archive, entries};
use super::bases::{rfc3339, stamp};
use super::start;
use super::target::timestamp;
use super::wal::Lsn;
use crate::config::{PostgresMode, Settings};
use crate::exit::{Code, Failure, in_words};
use crate::postgres::home::Home;
use crate::postgres::provision::superuser_options;
use crate::postgres::server;
use crate::postgres::settings::SUPERUSER;
use crate::schema::{ANSWER_LIMIT, MAKE_LIMIT, answered};

/// The longest name: PostgreSQL's restore points have 63 bytes.
const NAME_MAX: usize = 48;
/// Once: a function that is written twice in a statement runs twice.
const SET: &str = "SELECT lsn::text, pg_catalog.pg_walfile_name(lsn)
     FROM (SELECT pg_catalog.pg_create_restore_point($1) AS lsn OFFSET 0) AS set";

/// A moment with a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    pub name: String,
    #[serde(with = "rfc3339")]
    pub at: SystemTime,
    /// On which it was set.
    pub timeline: u32,
    /// What is behind it in the WAL comes after it.
    pub lsn: Lsn,
}

/// Whether `name` can be a mark's: it is part of a file's name.
fn check(name: &str) -> Result<(), Failure> {
    let is_one = (1..=NAME_MAX).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
        && name.as_bytes()[0].is_ascii_alphanumeric();
    if is_one {
        return Ok(());
    }
    let text = format!(
        "{name:?} is no name for a mark: 1 to {NAME_MAX} letters of ASCII, digits, `-`, `_` and `.`, the first a letter or digit"
    );
    Err(Failure::new(Code::Usage, text))
}

/// Set the mark `name` now, in the server of `home` that runs on `port`.
///
/// # Errors
/// There is such a mark already, the server refuses, or the archive cannot be written.
pub async fn set(home: &Home, port: u16, archive: &Archive, name: &str) -> anyhow::Result<Mark> {
    check(name)?;
    if let Some(there) = find(archive, name)? {
        let text = format!(
            "there is a mark {name} already, of {} on timeline {}: say another name. Nothing was changed",
            timestamp(there.at),
            there.timeline
        );
        return Err(Failure::new(Code::Usage, text).into());
    }
    let options = superuser_options(home, port, SUPERUSER);
    let mut session = answered(ANSWER_LIMIT, "connect to PostgreSQL", options.connect()).await?;
    let set = query_as::<_, (String, String)>(SET).bind(name).fetch_one(&mut session);
    let (lsn, file) = answered(ANSWER_LIMIT, "set a restore point", set).await?;
    let at = SystemTime::now();
    // So it is archived at once, and there is a record behind it, before which a recovery ends.
    let switch = query_scalar::<_, String>("SELECT pg_catalog.pg_switch_wal()::text").fetch_one(&mut session);
    answered(MAKE_LIMIT, "begin a new segment of WAL", switch).await?;
    let _closed = answered(ANSWER_LIMIT, "close", session.close()).await;
    let timeline = file.get(..8).and_then(|digits| u32::from_str_radix(digits, 16).ok());
    let timeline = timeline.with_context(|| format!("{file} is no segment's name"))?;
    let mark = Mark { name: name.to_owned(), at, timeline, lsn: lsn.parse()? };
    let dir = archive.dir().join("marks");
    archive.make_dir(&dir).with_context(|| archive.cannot_make(&dir))?;
    archive.write_small(&dir.join(format!("{name}.json")), &serde_json::to_string_pretty(&mark)?)?;
    Ok(mark)
}

/// Set a mark before `what`, such as `deploy`, where WAL is archived and nobody has turned that off. It keeps nothing from being done.
pub async fn before(settings: &Settings, home: &Home, what: &str) {
    let pitr = &settings.backup.pitr;
    if settings.postgres.mode == PostgresMode::Attach || !pitr.enabled || !pitr.marks {
        return;
    }
    let name = format!("before-{what}-{}", stamp(SystemTime::now()));
    let set = async {
        let port = server::own_running_port(home).context("no server runs")?;
        set(home, port, &start::archive(settings, home), &name).await
    };
    match set.await {
        Ok(mark) => {
            tracing::info!("mark {}: `tandem restore --at-mark {}` leads back to before {what}", mark.name, mark.name)
        }
        Err(error) => tracing::warn!("no mark was set before {what}: {}", in_words(&error)),
    }
}

/// The mark `name`.
///
/// # Errors
/// Its file cannot be read.
pub fn find(archive: &Archive, name: &str) -> anyhow::Result<Option<Mark>> {
    check(name)?;
    let path = archive.dir().join("marks").join(format!("{name}.json"));
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    };
    serde_json::from_slice(&text).map(Some).with_context(|| format!("read {}", path.display()))
}

/// All marks, the oldest first. What cannot be read is named in the log.
pub fn all(archive: &Archive) -> Vec<Mark> {
    let mut marks = Vec::new();
    for path in entries(&archive.dir().join("marks")) {
        let Some(name) = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".json")) else { continue };
        match find(archive, name) {
            Ok(mark) => marks.extend(mark),
            Err(error) => tracing::warn!("a mark cannot be read: {}", in_words(&error)),
        }
    }
    marks.sort_by(|one, other| (one.at, &one.name).cmp(&(other.at, &other.name)));
    marks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_of_a_file_and_of_a_restore_point() {
        for name in ["a", "before-import_2.0", "2026", &"x".repeat(48)] {
            assert!(check(name).is_ok(), "{name}");
        }
        for name in ["", ".hidden", "-x", "a/b", "ä", "a b", &"x".repeat(49)] {
            assert!(check(name).is_err(), "{name}");
        }
        let at = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_767_366_245);
        assert!(check(&format!("before-migrate-{}", stamp(at))).is_ok());
    }
}
