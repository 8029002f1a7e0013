//! Which machine archives to a destination: one. The second is refused, whichever it is: another cluster, another machine
//! with the same cluster, or a copy of this very machine.
//!
//! The note of it is put only where none is, or in place of the version that was read. It names a session, which is new with
//! every start: who finds another one than the last of its own knows that a copy of it has been there.

use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::Away;
use super::names::OWNER;
use crate::backup::catalog::read_json;
use crate::backup::files;
use crate::backup::store::Version;
use crate::exit::{Code, Failure};
use crate::telemetry::rfc3339;

/// How often it is tried where others write the note at the same time.
const TRIES: u32 = 3;

/// What the note says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    pub system_identifier: u64,
    pub owner: String,
    session: String,
    pub machine: String,
    pub since: String,
}

/// What this machine knows of its own notes in one destination.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Own {
    owner: String,
    /// Those that may be in the note: it is written down before it is put.
    sessions: Vec<String>,
}

/// The place that a machine has in a destination, for one session.
#[derive(Debug)]
pub struct Tenure {
    session: String,
}

impl Away {
    /// Take the place in it; `dir` is where is written down what this machine knows of it.
    ///
    /// # Errors
    /// [`Failure`] where another has it, with the next step; or the destination cannot be reached.
    pub async fn take(&self, dir: &Path) -> anyhow::Result<Tenure> {
        self.enter(dir, false).await
    }

    /// Take the place in it from another machine with the same cluster, which is refused from then on.
    ///
    /// # Errors
    /// It holds the WAL of another cluster, or cannot be reached.
    pub async fn claim(&self, dir: &Path) -> anyhow::Result<Option<Owner>> {
        let before = self.owner().await?.map(|(owner, _)| owner);
        self.enter(dir, true).await?;
        Ok(before)
    }

    /// Whose it is, and which version of the note says so.
    ///
    /// # Errors
    /// It cannot be reached, or the note is not Tandem's.
    pub async fn owner(&self) -> anyhow::Result<Option<(Owner, Version)>> {
        let Some(small) = self.store().read_small(OWNER).await.map_err(Failure::from)? else { return Ok(None) };
        let owner = serde_json::from_slice(&small.bytes).map_err(|error| {
            let place = &self.destination;
            let text =
                format!("{OWNER} in {place} is damaged ({error}): remove it, if no other machine archives there");
            Failure::new(Code::Config, text)
        })?;
        Ok(Some((owner, small.version)))
    }

    async fn enter(&self, dir: &Path, by_force: bool) -> anyhow::Result<Tenure> {
        let path = path(dir);
        let mut own: Own = read_json(&path).unwrap_or_default();
        if own.owner.is_empty() {
            own.owner = random();
        }
        let mine = Owner {
            system_identifier: self.system,
            owner: own.owner.clone(),
            session: random(),
            machine: hostname(),
            since: rfc3339(std::time::SystemTime::now()),
        };
        for _ in 0..TRIES {
            let there = self.owner().await?;
            if let Some((there, _)) = &there {
                self.check_place(
                    there,
                    by_force || (there.owner == own.owner && own.sessions.contains(&there.session)),
                )?;
                own.sessions.retain(|session| *session == there.session);
            }
            own.sessions.push(mine.session.clone());
            files::write_json(&path, &own)?;
            let bytes = serde_json::to_vec_pretty(&mine).context("describe this machine")?;
            let instead = there.map(|(_, version)| version);
            if self.store().put_small(OWNER, bytes, instead.as_ref()).await.map_err(Failure::from)? {
                // Where the server does not compare, another may have put its own at the same moment.
                let tenure = Tenure { session: mine.session.clone() };
                self.check_tenure(&tenure).await?;
                return Ok(tenure);
            }
        }
        let text = format!("{} is claimed by another machine at this moment", self.destination);
        Err(Failure::new(Code::Temporary, text).into())
    }

    /// Whether this machine still has the place.
    ///
    /// # Errors
    /// Another has it, or the destination cannot be reached.
    pub async fn check_tenure(&self, tenure: &Tenure) -> anyhow::Result<()> {
        let Some((there, _)) = self.owner().await? else {
            let text = format!("{OWNER} in {} is gone, with the rest of it maybe", self.destination);
            return Err(Failure::new(Code::Temporary, text).into());
        };
        self.check_place(&there, there.session == tenure.session)
    }

    fn check_place(&self, there: &Owner, is_ours: bool) -> anyhow::Result<()> {
        let Owner { system_identifier, machine, since, .. } = there;
        let place = &self.destination;
        let text = if *system_identifier != self.system {
            format!(
                "{place} holds the WAL of another cluster ({system_identifier}, of the machine {machine}): give this one a \
                 destination of its own, such as another prefix"
            )
        } else if !is_ours {
            format!(
                "another machine archives to {place}: {machine}, since {since}. If it is gone or is to stop, `tandem backup \
                 claim {place}` takes its place; otherwise give this machine a destination of its own, such as another prefix"
            )
        } else {
            return Ok(());
        };
        Err(Failure::new(Code::Config, text).into())
    }
}

fn path(dir: &Path) -> PathBuf {
    dir.join("owner.json")
}

fn random() -> String {
    format!("{:032x}", rand::random::<u128>())
}

fn hostname() -> String {
    nix::unistd::gethostname().map_or_else(|_| "unknown".into(), |name| name.to_string_lossy().into_owned())
}
