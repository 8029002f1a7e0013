//! Looks at the project, the machine and the server, side by side, each behind a limit. Finds facts; what they mean, the judges
//! say.
//!
//! Blocks nothing: what may hang is on other threads (`event_loop::within`), which are left behind when they do.

mod alembic;
mod backups;
mod data;
mod files;
mod machine;
mod project;
mod questions;
mod server;

pub use server::changed_settings;

use std::path::Path;
use std::time::Duration;

use chrono::Utc;

use super::facts::{Facts, Look, Unseen};
use super::subject::Subject;
use crate::backup::doctor as room;
use crate::config::Settings;
use crate::event_loop::within;
use crate::postgres::home::Home;

/// How long one look may take.
pub const LOOK_LIMIT: Duration = Duration::from_secs(8);
/// How long a deep look may take: it reads every page of the cluster.
pub const DEEP_LIMIT: Duration = Duration::from_hours(4);

/// All that can be seen of `subject`.
pub async fn look(subject: &Subject) -> Facts {
    let (tandem, data, programs) =
        tokio::join!(project::tandem(subject), data::data(subject), project::programs(subject));
    // Who listens on a port, and how the cluster is looked at, depend on what runs here.
    let runs = tandem.as_ref().is_ok_and(|tandem| tandem.is_there());
    let pid = tandem.as_ref().ok().and_then(|tandem| Some(tandem.status.as_ref()?.as_ref().ok()?.pid));
    let has_server = data.as_ref().is_ok_and(|data| !data.processes.is_empty());
    let installation = programs.as_ref().ok().map(|(installation, _)| installation.clone());
    let (machine, ports, owners, python, backups, copies, wal, certificates, hba, caches, server) = tokio::join!(
        machine::machine(subject, pid),
        project::ports(subject, runs || has_server),
        files::entries(subject),
        project::python(subject),
        backups::backups(subject),
        backups::copies(subject),
        backups::wal(subject),
        project::certificates(subject),
        data::hba(subject),
        project::caches(subject),
        server::server(subject, has_server),
    );
    let of_control = data::control(subject, data, installation.as_ref(), runs || has_server);
    let (data, places, disks, room, recovery) = tokio::join!(
        of_control,
        files::places(subject),
        on_home(subject, "look at the room on the disks", room::disks),
        on_home(subject, "look for leftovers", room::on_disks),
        on_home(subject, "look at the archive", room::of_recovery),
    );
    Facts {
        now: Utc::now(),
        deep: subject.deep,
        configuration: subject.configuration.clone(),
        settings: subject.settings.clone(),
        machine,
        ports,
        tandem,
        owners,
        data,
        disks,
        places,
        room,
        recovery,
        programs: programs.map(|(_, programs)| programs),
        python,
        backups,
        copies,
        wal,
        certificates,
        hba,
        server,
        caches,
    }
}

/// What `work` sees of the settings and the directories.
async fn on_home<T: Send + 'static>(
    subject: &Subject,
    what: &'static str,
    work: impl FnOnce(&Settings, &Home) -> T + Send + 'static,
) -> Look<T> {
    let (settings, home) = (subject.settings.clone()?, subject.home.clone()?);
    apart(what, move || work(&settings, &home)).await
}

/// What `work` sees, on another thread.
async fn apart<T: Send + 'static>(what: &'static str, work: impl FnOnce() -> T + Send + 'static) -> Look<T> {
    within(LOOK_LIMIT, what, work).await.map_err(|hangs| Unseen::unknown(hangs.to_string()))
}

/// What `asked` answers in time.
async fn in_time<T>(what: &str, limit: Duration, asked: impl Future<Output = Look<T>>) -> Look<T> {
    match tokio::time::timeout(limit, asked).await {
        Ok(answer) => answer,
        Err(_) => Err(Unseen::unknown(format!("{what}: no answer within {limit:?}"))),
    }
}

/// The text of a small file of the kernel's, which waits for no disk.
fn kernel_file(path: impl AsRef<Path>) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}
