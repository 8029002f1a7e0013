//! Says what a step of the boot does that takes longer than a moment: a spinner on a terminal, elsewhere a line now and then.

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::boot::Step;
use crate::config::{MigrationRun, Settings};
use crate::event_loop;
use crate::plan::in_one_line;
use crate::supervise::tree::TreePhase;
use crate::telemetry;
use crate::workers::life::{Life, Roster};

/// A step that is over by then needs no word.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often a spinner's text is renewed.
const RENEWED: Duration = Duration::from_secs(1);
/// How often a line says again what goes on.
const SAID_AGAIN: Duration = Duration::from_secs(30);

/// The word about the step under way; dropped, it is over.
#[derive(Default)]
pub struct SlowStep(Option<JoinHandle<()>>);

impl SlowStep {
    /// The tree entered `phase`.
    pub fn enter(&mut self, phase: TreePhase, steps: &[Step], settings: &Settings, roster: &Roster) {
        self.end();
        let TreePhase::Booting { stage } = phase else { return };
        let Some(text) = words(steps[stage], settings) else { return };
        let wanted = (steps[stage] == Step::Workers).then_some(settings.workers.count as usize);
        self.0 = Some(event_loop::spawn("the word about a slow step", tell(text, wanted, roster.clone())));
    }

    /// It is over.
    fn end(&mut self) {
        if let Some(task) = self.0.take() {
            task.abort();
        }
    }
}

impl Drop for SlowStep {
    fn drop(&mut self) {
        self.end();
    }
}

/// What goes on in `step`; `None` where the step says so itself.
fn words(step: Step, settings: &Settings) -> Option<String> {
    let application = match &settings.workers.command {
        Some(words) => in_one_line(words),
        None => format!("importing {}", settings.workers.app),
    };
    Some(match step {
        Step::Cluster => "the database cluster is made or opened".to_owned(),
        Step::Postgres => "PostgreSQL is starting".to_owned(),
        Step::Provision => "the role and the database are made".to_owned(),
        Step::Migrate => match &settings.migrations.run {
            MigrationRun::Command(words) => format!("migrations are running: {}", in_one_line(words)),
            MigrationRun::SeaOrm | MigrationRun::Sql | MigrationRun::None => "migrations are running".to_owned(),
        },
        Step::Template => format!("the template is starting: {application}"),
        Step::Workers => format!("workers are starting: {application}"),
        Step::Install | Step::Attach | Step::Companions | Step::Errand => return None,
    })
}

/// Say `text` for as long as this goes on, with how many of the `wanted` workers are ready.
async fn tell(text: String, wanted: Option<usize>, roster: Roster) {
    let began = Instant::now();
    sleep(PATIENCE).await;
    // Whatever is under way says so itself.
    while !telemetry::under_way().is_empty() {
        sleep(RENEWED).await;
    }
    let words = || match wanted {
        Some(wanted) => {
            let ready = roster.lives().iter().filter(|life| life.is_worker() && Life::is_ready(life)).count();
            format!("{text}, {ready} of {wanted} ready")
        }
        None => text.clone(),
    };
    let progress = telemetry::progress(words());
    let mut said = Instant::now();
    loop {
        sleep(RENEWED).await;
        progress.say(words());
        if said.elapsed() >= SAID_AGAIN {
            said = Instant::now();
            tracing::info!("{}, for {:.0?} now", words(), began.elapsed());
        }
    }
}
