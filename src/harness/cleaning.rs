//! What becomes of the databases that tests gave back: their connections are ended, and those that are as they were cloned are
//! told from the others.

use std::sync::Weak;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::databases::Inner;
use super::pool::Event;
use super::superuser::{LEAVE_LIMIT, Superuser};
use crate::exit::in_words;

/// How often what came back is looked at.
const INTERVAL: Duration = Duration::from_millis(20);

/// See to the databases that came back: end their connections, tell those that are as they were cloned from the others. Many
/// at a time, because two questions to the server cost as much for one as for all; no caller waits for it.
pub async fn clean(databases: Weak<Inner>, mut back: mpsc::UnboundedReceiver<(String, String)>) {
    let mut here: Vec<(String, String, Instant)> = Vec::new();
    loop {
        if here.is_empty() {
            let Some((template, name)) = back.recv().await else { return };
            here.push((template, name, Instant::now()));
        }
        sleep(INTERVAL).await;
        here.extend(
            std::iter::from_fn(|| back.try_recv().ok()).map(|(template, name)| (template, name, Instant::now())),
        );
        let Some(databases) = databases.upgrade() else { return };
        let outcome = clean_once(&databases, &mut here).await;
        if let Err(error) = outcome {
            // Whatever is in them, they are not handed out again.
            tracing::debug!("look at what came back: {}", in_words(&error));
            cleaned(&databases, here.drain(..).map(|(template, name, _)| (template, name, false)));
        }
    }
}

async fn clean_once(databases: &Inner, here: &mut Vec<(String, String, Instant)>) -> anyhow::Result<()> {
    let catalog = &databases.catalog;
    let names: Vec<String> = here.iter().map(|(_, name, _)| name.clone()).collect();
    let busy = catalog.busy(&names).await?;
    let leaking = |(_, name, since): &&(String, String, Instant)| busy.contains(name) && since.elapsed() > LEAVE_LIMIT;
    let leaking: Vec<String> = here.iter().filter(leaking).map(|(_, name, _)| name.clone()).collect();
    if !leaking.is_empty() {
        catalog.disconnect(&leaking).await?;
    }
    let free: Vec<_> = here.extract_if(.., |(_, name, _)| !busy.contains(name)).collect();
    let names: Vec<String> = free.iter().map(|(_, name, _)| name.clone()).collect();
    let untouched = if free.is_empty() { Vec::new() } else { untouched(catalog, &names).await };
    cleaned(
        databases,
        free.into_iter().map(|(template, name, _)| {
            let untouched = untouched.contains(&name);
            (template, name, untouched)
        }),
    );
    Ok(())
}

/// Those of the databases `names` that are as they were cloned. Where that cannot be told, they count as changed.
async fn untouched(catalog: &Superuser, names: &[String]) -> Vec<String> {
    // Before they are dropped, which may be much later: it may hold locks on what belongs to the whole server.
    let asked = async {
        catalog.release(names).await?;
        catalog.untouched(names).await
    };
    asked.await.unwrap_or_else(|error| {
        tracing::debug!("look at what was changed: {}", in_words(&error));
        Vec::new()
    })
}

fn cleaned(databases: &Inner, cleaned: impl Iterator<Item = (String, String, bool)>) {
    for (template, name, untouched) in cleaned {
        let _ = databases.events.send((template, Event::Cleaned { name, untouched }));
    }
}
