//! What comes before the tree: a stop is heard, and what an earlier run left behind is ended.
//!
//! That may take as long as a server's shutdown checkpoint, and a platform asks from the first moment on.

use std::rc::Rc;

use super::front::Front;
use super::marked_run::MarkedRun;
use super::{Configuration, Context};
use crate::event_loop::elsewhere;
use crate::postgres::home::Home;
use crate::process::orphans;
use crate::signals::{Asked, Inbox};
use crate::workers::launch;

/// End what an earlier run left, and find out what must be known before the first child; `None` when a stop was asked for
/// meanwhile.
///
/// # Errors
/// What [`Context::resolve`] says; the run directory cannot be written.
pub async fn begin(
    configuration: Configuration,
    home: Home,
    inbox: &mut Inbox,
    front: &mut Front,
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
        () = front.ordered_to_stop() => Ok(None),
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
