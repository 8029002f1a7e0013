//! What sees to it that no process of a run outlives it: the mark, the keeper, and a note for the next start.

use std::fs;
use std::io;
use std::path::PathBuf;

use tokio::task::JoinHandle;

use crate::boot::NOTE_LIMIT;
use crate::event_loop::{self, elsewhere, within};
use crate::postgres::home::Home;
use crate::process::keeper::{Keeper, ServerEnd};
use crate::process::mark::{self, RunId};
use crate::process::orphans;
use crate::telemetry::UnderWay;

/// The note's name in the run directory: it is there while a run goes on, and after one that was killed.
const NOTE: &str = "running";

/// From before the first child to after the last.
pub struct MarkedRun {
    note: PathBuf,
    keeping: Option<JoinHandle<()>>,
    dismiss: Option<tokio::sync::oneshot::Sender<()>>,
}

impl MarkedRun {
    /// Mark the children from now on, end what a run of this state directory left that was killed, and start the keeper.
    ///
    /// The caller holds the state directory: so any other run in it is over. `end` is how the server is to end if Tandem is
    /// killed.
    pub async fn begin(home: &Home, end: ServerEnd) -> Self {
        let note = home.run.join(NOTE);
        let (state, path) = (home.state.clone(), note.clone());
        let marked = elsewhere(move || async move {
            let run = mark::begin(&state)?;
            // Blocks: elsewhere.
            if path.exists() {
                let _shown = UnderWay::begin("ending what a run of Tandem that was killed left behind");
                orphans::end_earlier(run.clone()).await;
            }
            // Blocks: elsewhere.
            if let Err(error) = fs::write(&path, run.to_string()) {
                tracing::warn!("write {}: {error}", path.display());
            }
            io::Result::Ok(run)
        });
        let run = match marked.await {
            Ok(run) => run,
            Err(error) => {
                tracing::warn!("mark the processes of this run: {error}");
                return Self { note, keeping: None, dismiss: None };
            }
        };
        let (dismiss, dismissed) = tokio::sync::oneshot::channel();
        let keeping = event_loop::spawn("the keeper", keep(run, end, dismissed));
        Self { note, keeping: Some(keeping), dismiss: Some(dismiss) }
    }

    /// Every process has ended.
    pub async fn end(self) {
        if let (Some(dismiss), Some(keeping)) = (self.dismiss, self.keeping) {
            let _ = dismiss.send(());
            let _ = keeping.await;
        }
        let what = format!("remove {}", self.note.display());
        let _ = within(NOTE_LIMIT, what, move || fs::remove_file(self.note)).await;
    }
}

async fn keep(run: RunId, end: ServerEnd, dismissed: tokio::sync::oneshot::Receiver<()>) {
    match Keeper::start(run, end) {
        Ok(Some(mut keeper)) => {
            tokio::select! {
                () = keeper.keep() => {}
                _ = dismissed => {}
            }
            keeper.dismiss().await;
        }
        Ok(None) => {}
        Err(error) => tracing::warn!("start the keeper, which ends the processes of a Tandem that was killed: {error}"),
    }
}
