//! Base backups and WAL off the machine: in each of `backup.destinations`, from which alone a new machine is restored.
//!
//! ```text
//! names        what lies where in a destination, pure
//! head         who made a file of WAL: a signed frame before its first byte
//! owner        which machine archives to a destination: one
//! ledger       what each destination was sent, and how far behind it is, in files of the state directory
//! spool        what there is to send: the archive of this machine
//! send         send it, in order and several at once, for ever
//! parcel       one file of WAL, one base backup, one small note: sent, fetched, checked
//! expire       which of it may go, pure, and its removal
//! bring        what a restore needs, fetched into an archive of its own
//! audit        read all of it again
//! ```
//!
//! ```text
//! pitr/owner.json                                      whose it is; never sealed
//! pitr/wal/0000000100000000/<segment>.zst              as in the archive, behind a signed head
//! pitr/wal/00000002.history.zst
//! pitr/base/<name>.<start>.<stop>/base.tar.zst         as in the archive
//! pitr/base/<name>.<start>.<stop>/base.json            signed, with the digest of the data; put last
//! pitr/timelines/00000002.json · pitr/gaps/<segment>   signed
//! ```
//!
//! Sealed for age recipients, the names end in `.age`. Nothing of a destination is trusted before its signature was checked.

pub mod audit;
pub mod bring;
pub mod expire;
mod head;
pub mod ledger;
mod names;
pub mod owner;
mod parcel;
pub mod send;
mod spool;

use anyhow::Context;
use ledger::{Condition, SentEverywhere};

use crate::backup::copies::Copies;
use crate::backup::signature::{self, SigningKeys};
use crate::backup::store::{Destination, Store};
use crate::config::{PostgresMode, Settings};
use crate::postgres::home::Home;

/// Whether base backups and WAL of this deployment go to destinations.
pub fn is_wanted(settings: &Settings) -> bool {
    let pitr = &settings.backup.pitr;
    let has_any = !settings.backup.destinations.is_empty() && !settings.in_test();
    pitr.enabled && pitr.copy && has_any && settings.postgres.mode == PostgresMode::Managed
}

/// The addresses of all destinations, as they are written down.
pub fn destinations(settings: &Settings) -> Vec<String> {
    let shown = |text: &String| match Destination::parse(text, &settings.cloud_variables.0) {
        Ok(destination) => destination.to_string(),
        Err(_) => text.clone(),
    };
    settings.backup.destinations.iter().map(shown).collect()
}

/// What all destinations were sent, where base backups and WAL go there.
pub fn sent_everywhere(settings: &Settings, home: &Home) -> SentEverywhere {
    let places = if is_wanted(settings) { destinations(settings) } else { Vec::new() };
    SentEverywhere::of(&home.state, &places)
}

/// How all destinations are, where base backups and WAL go there.
pub fn conditions(settings: &Settings, home: &Home) -> Vec<Condition> {
    let places = if is_wanted(settings) { destinations(settings) } else { Vec::new() };
    places.iter().map(|place| Condition::read(&home.state, place)).collect()
}

/// A destination, with what tells our own files in it from others.
pub struct Away {
    /// Its address.
    pub destination: String,
    copies: Copies,
    keys: SigningKeys,
    /// Of the cluster whose files these are.
    system: u64,
    /// Whether what nobody here has signed is taken all the same.
    trust: bool,
}

impl Away {
    /// The destination behind `copies`, for the files of the cluster `system`. Where there is no key that signs, one is made.
    ///
    /// # Errors
    /// The keys cannot be read or made.
    pub fn of(copies: Copies, home: &Home, system: u64) -> anyhow::Result<Self> {
        let keys = SigningKeys::ensure(&signature::path(home)).context("read the key that signs backups")?;
        Ok(Self { destination: copies.destination.to_string(), copies, keys, system, trust: false })
    }

    fn store(&self) -> &Store {
        self.copies.store()
    }
}

/// Nobody looks on.
const UNSEEN: &(dyn Fn(u64, u64) + Send + Sync) = &|_, _| {};
