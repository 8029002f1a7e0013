//! What a shell offers for an argument whose values are known only where Tandem runs: services, backups.
//!
//! A person waits for it with a finger on Tab: whatever goes wrong or takes long, nothing is offered.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use clap_complete::engine::{ArgValueCompleter, CompletionCandidate};

use crate::backup::catalog::Catalog;
use crate::config::{self, Loaded, Source};
use crate::control::client;
use crate::postgres::home::Home;

/// How long a person waits.
const LIMIT: Duration = Duration::from_millis(300);

/// The services of the running Tandem.
pub fn services() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &OsStr| offered(current, running_services))
}

/// The backups that there are.
pub fn backups() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &OsStr| offered(current, kept_backups))
}

/// A value, and a word about it.
type Value = (String, String);

/// What `find` finds within the limit and begins with `current`.
fn offered(current: &OsStr, find: fn() -> Option<Vec<Value>>) -> Vec<CompletionCandidate> {
    let (sender, receiver) = sync_channel(1);
    // A thread that hangs ends with the process.
    std::thread::spawn(move || sender.send(find().unwrap_or_default()));
    let found = receiver.recv_timeout(LIMIT).unwrap_or_default();
    let begun = current.to_string_lossy();
    let found = found.into_iter().filter(|(value, _)| value.starts_with(&*begun));
    found.map(|(value, about)| CompletionCandidate::new(value).help(Some(about.into()))).collect()
}

/// The configuration that the command line being typed is about.
fn loaded() -> Option<Loaded> {
    let mut args = std::env::args_os();
    let named = args.by_ref().find(|arg| arg == "--config").and_then(|_| args.next());
    config::load(&Source::of_process(named.map(PathBuf::from), Vec::new()).ok()?).ok()
}

fn running_services() -> Option<Vec<Value>> {
    let control = Home::resolve(&loaded()?.settings).ok()?.control;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    let asked = async { tokio::time::timeout(LIMIT, client::status(&control)).await.ok()?.ok() };
    let status = runtime.block_on(asked)?;
    let mut values: Vec<Value> = status.services.into_iter().map(|service| (service.name, service.state)).collect();
    values.dedup_by(|one, other| one.0 == other.0);
    Some(values)
}

fn kept_backups() -> Option<Vec<Value>> {
    let settings = loaded()?.settings;
    let entries = Catalog::of(&settings, &Home::resolve(&settings).ok()?).entries(None).ok()?;
    let newest_first = entries.into_iter().rev();
    let named = newest_first.map(|entry| (entry.name.stem(), entry.name.taken.to_rfc3339()));
    Some([("latest".to_owned(), "the newest".to_owned())].into_iter().chain(named).collect())
}
