//! What comes before the tree: the health port answers, a stop is heard, and what an earlier run left behind is ended.
//!
//! That may take as long as a server's shutdown checkpoint, and a platform asks from the first moment on.

use std::rc::Rc;

use tokio::task::JoinHandle;

use super::marked_run::MarkedRun;
use super::view::View;
use super::{Configuration, Context};
use crate::config::Settings;
use crate::event_loop::{self, elsewhere};
use crate::health::server as health;
use crate::postgres::home::Home;
use crate::process::{orphans, ports};
use crate::signals::{Asked, Inbox};
use crate::workers::launch;
use crate::workers::listener;

/// Length of the health port's listening queue.
const HEALTH_BACKLOG: u32 = 128;

/// What others see of a Tandem that serves, from before its tree to the end.
pub struct Front {
    pub view: View,
    /// The tasks behind it.
    pub tasks: Vec<JoinHandle<()>>,
}

impl Front {
    /// Bind the health port and answer on it.
    ///
    /// # Errors
    /// The port is taken, or not ours to take.
    pub fn open(settings: &Settings) -> anyhow::Result<Self> {
        let view = View::new(settings);
        let port = listener::bind_place(&settings.health.listen, HEALTH_BACKLOG, "health.listen", ports::holder)?;
        let port = tokio::net::TcpListener::from_std(port.try_clone_std()?)?;
        let never = std::future::pending();
        let served = event_loop::spawn("the health port", health::serve(port, view.pictures(), never));
        Ok(Self { view, tasks: vec![served] })
    }

    /// What an errand has: nobody asks.
    pub fn closed(settings: &Settings) -> Self {
        Self { view: View::new(settings), tasks: Vec::new() }
    }
}

/// End what an earlier run left, and find out what must be known before the first child; `None` when a stop was asked for
/// meanwhile.
///
/// # Errors
/// What [`Context::resolve`] says; the run directory cannot be written.
pub async fn begin(
    configuration: Configuration,
    home: Home,
    inbox: &mut Inbox,
    serves: bool,
) -> anyhow::Result<Option<(Rc<Context>, MarkedRun)>> {
    let prepared = async {
        let context = Context::resolve(configuration, home).await?;
        let marked = MarkedRun::begin(&context.home, context.server_end()).await;
        if serves {
            let (run, notify) = (context.home.run.clone(), context.home.notify.clone());
            elsewhere(move || async move {
                // What a Tandem that was killed left there.
                let _ = std::fs::remove_dir_all(notify);
                launch::write_files(&run)
            })
            .await?;
        }
        anyhow::Ok((Rc::new(context), marked))
    };
    tokio::select! {
        prepared = prepared => prepared.map(Some),
        () = asked_to_stop(inbox) => Ok(None),
    }
}

/// Until a stop is asked for. There are no workers yet that another signal could be about.
async fn asked_to_stop(inbox: &mut Inbox) {
    loop {
        match inbox.next().await {
            Asked::Stop => return,
            Asked::Reap => orphans::reap(),
            Asked::Reload | Asked::ScaleUp | Asked::ScaleDown => {
                tracing::info!("still starting: there are no workers yet");
            }
        }
    }
}
