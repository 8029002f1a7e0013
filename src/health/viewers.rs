//! Who looks at the status page or at `tandem top`: what costs something is asked for only while somebody does.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// How long a page that was fetched without its events counts as looked at: a browser without JavaScript loads it again.
const LOOK_LASTS: Duration = Duration::from_secs(15);

/// Everybody who looks, at every door.
#[derive(Clone, Debug)]
pub struct Viewers(Arc<watch::Sender<Looks>>);

#[derive(Clone, Copy, Debug, Default)]
struct Looks {
    streams: usize,
    last: Option<Instant>,
}

impl Default for Viewers {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(Looks::default())))
    }
}

impl Viewers {
    /// A door through which `most` may look at a time.
    pub fn door(&self, most: usize) -> Door {
        Door { viewers: self.clone(), most, open: Arc::default() }
    }

    /// How many look.
    pub fn count(&self) -> usize {
        self.0.borrow().streams
    }

    /// Until somebody looks.
    pub async fn wanted(&self) {
        let mut looks = self.0.subscribe();
        // The sender lives as long as `self`.
        let _ = looks.wait_for(|looks| looks.is_wanted()).await;
    }

    /// Whether somebody looks now.
    pub fn is_wanted(&self) -> bool {
        self.0.borrow().is_wanted()
    }

    fn change(&self, change: impl FnOnce(&mut Looks)) {
        self.0.send_modify(change);
    }
}

impl Looks {
    fn is_wanted(&self) -> bool {
        self.streams > 0 || self.last.is_some_and(|last| last.elapsed() < LOOK_LASTS)
    }
}

/// Where they come in.
#[derive(Clone, Debug)]
pub struct Door {
    viewers: Viewers,
    most: usize,
    open: Arc<AtomicUsize>,
}

impl Door {
    /// One more who looks, until what this returns is dropped; `None`: there are too many.
    pub fn enter(&self) -> Option<Viewer> {
        let taken =
            self.open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |open| (open < self.most).then_some(open + 1));
        taken.ok()?;
        self.viewers.change(|looks| looks.streams += 1);
        Some(Viewer(self.clone()))
    }

    /// Somebody has fetched the page, and may be without its events.
    pub fn look(&self) {
        self.viewers.change(|looks| looks.last = Some(Instant::now()));
    }
}

/// Somebody who looks.
#[derive(Debug)]
pub struct Viewer(Door);

impl Drop for Viewer {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
        self.0.viewers.change(|looks| looks.streams -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_door_lets_so_many_in_and_whoever_leaves_makes_room() {
        let viewers = Viewers::default();
        let (page, control) = (viewers.door(2), viewers.door(1));
        assert!(!viewers.is_wanted());
        let (one, _two) = (page.enter().unwrap(), page.enter().unwrap());
        assert!(page.enter().is_none() && viewers.count() == 2);
        let _other = control.enter().unwrap();
        drop(one);
        assert!(page.enter().is_some() && viewers.is_wanted());
        assert_eq!(viewers.count(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_page_that_was_fetched_counts_for_a_while() {
        let viewers = Viewers::default();
        let door = viewers.door(1);
        let waiting = tokio::spawn({
            let viewers = viewers.clone();
            async move { viewers.wanted().await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        door.look();
        waiting.await.unwrap();
        tokio::time::advance(LOOK_LASTS).await;
        assert!(!viewers.is_wanted());
    }
}
