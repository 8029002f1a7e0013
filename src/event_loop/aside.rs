//! Blocking calls on other threads, with a limit.
//!
//! A thread cannot be interrupted in a call that the kernel does not end, such as a read on a dead network mount. So a call
//! that passed its limit is remembered by its name, and is not made a second time while it hangs: however often the event
//! loop asks, one thread waits for that disk.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// A call that passed its limit, and still hangs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: no answer for {:.1} s", .since.elapsed().as_secs_f64())]
pub struct Hangs {
    pub what: String,
    /// When the call began.
    pub since: Instant,
}

/// The calls that hang, with their begin.
static HANGING: Mutex<BTreeMap<String, Instant>> = Mutex::new(BTreeMap::new());

fn hanging() -> MutexGuard<'static, BTreeMap<String, Instant>> {
    HANGING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A call under way. The thread that makes the call has its other half, [`Running`].
pub struct Call {
    what: String,
    since: Instant,
    ended: Arc<AtomicBool>,
}

/// Dropped when the call has ended.
pub struct Running {
    what: String,
    ended: Arc<AtomicBool>,
}

impl Call {
    /// Begin the call that is named `what`.
    ///
    /// # Errors
    /// A call of this name hangs already.
    pub fn begin(what: String) -> Result<(Self, Running), Hangs> {
        if let Some(&since) = hanging().get(&what) {
            return Err(Hangs { what, since });
        }
        let ended = Arc::new(AtomicBool::new(false));
        let running = Running { what: what.clone(), ended: ended.clone() };
        Ok((Self { what, since: Instant::now(), ended }, running))
    }

    /// Wait for the outcome of the call, at most `limit`; `None` means that its thread ended without one.
    ///
    /// # Errors
    /// The limit passed. Until the call ends, [`Call::begin`] refuses another of the same name.
    pub async fn wait<T>(self, limit: Duration, outcome: impl Future<Output = Option<T>>) -> Result<T, Hangs> {
        let Self { what, since, ended } = self;
        if let Ok(Some(value)) = tokio::time::timeout(limit, outcome).await {
            return Ok(value);
        }
        // Under the lock that `Running` takes at its end: a call that ends just now leaves no entry behind.
        let mut hanging = hanging();
        if !ended.load(Ordering::Acquire) && hanging.insert(what.clone(), since).is_none() {
            drop(hanging);
            tracing::warn!("{what}: no answer within {limit:?}; it is not asked again before it answers");
        }
        Err(Hangs { what, since })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut hanging = hanging();
        self.ended.store(true, Ordering::Release);
        if let Some(since) = hanging.remove(&self.what) {
            drop(hanging);
            tracing::info!("{}: it answers again, after {:.1} s", self.what, since.elapsed().as_secs_f64());
        }
    }
}

/// Make the blocking call `work` on another thread and wait for it, at most `limit`. `what` names the call and what it
/// waits for, such as `look at the file system of /backups`.
///
/// # Errors
/// The limit passed, now or at an earlier call of this name that still hangs.
pub async fn within<T: Send + 'static>(
    limit: Duration,
    what: impl Into<String>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Hangs> {
    let (call, running) = Call::begin(what.into())?;
    // Blocks: another thread; this is the door.
    let made = tokio::task::spawn_blocking(move || {
        let _running = running;
        work()
    });
    let outcome = async {
        match made.await {
            Ok(value) => Some(value),
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            // The runtime shuts down.
            Err(_) => None,
        }
    };
    call.wait(limit, outcome).await
}

/// Run an async function that also makes blocking calls, with limits of its own or none, on another thread. Dropped, it
/// is cancelled: at once where it awaits, else when its blocking call returns.
pub async fn elsewhere<T, F>(work: impl FnOnce() -> F + Send + 'static) -> T
where
    T: Send + 'static,
    F: Future<Output = T>,
{
    let (wanted, dropped) = oneshot::channel::<Infallible>();
    let runtime = Handle::current();
    let run = move || {
        runtime.block_on(async move {
            tokio::select! {
                biased;
                _ = dropped => None,
                value = async { work().await } => Some(value),
            }
        })
    };
    // Blocks: another thread; this is the door.
    let done = tokio::task::spawn_blocking(run).await;
    drop(wanted);
    match done {
        Ok(Some(value)) => value,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // The runtime shuts down, and nobody waits for this any more.
        Ok(None) | Err(_) => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::sync::mpsc;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn a_call_that_hangs_is_not_made_twice_and_is_made_again_when_it_has_ended() {
        let (release, held) = mpsc::channel::<()>();
        let what = "a disk of this test";
        let hangs = within(Duration::from_millis(20), what, move || held.recv().is_ok()).await.unwrap_err();
        assert_eq!(hangs.what, what);
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let count = || MADE.fetch_add(1, Ordering::Relaxed);
        let again = within(LIMIT, what, count).await.unwrap_err();
        assert_eq!((again.since, MADE.load(Ordering::Relaxed)), (hangs.since, 0), "no second thread waits");
        assert!(again.to_string().starts_with("a disk of this test: no answer for "), "{again}");
        assert_eq!(within(LIMIT, "another disk", || 7).await, Ok(7), "others are not held up");
        release.send(()).unwrap();
        let ended = async {
            while within(LIMIT, what, count).await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(LIMIT, ended).await.unwrap();
        assert_eq!(MADE.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn work_elsewhere_keeps_its_timers_and_is_cancelled_with_its_caller() {
        let value = elsewhere(|| async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            std::thread::current().id()
        });
        assert_ne!(value.await, std::thread::current().id());
        let (told, ended) = oneshot::channel::<()>();
        let work = elsewhere(move || async move {
            let _told = told;
            std::future::pending::<()>().await
        });
        assert!(tokio::time::timeout(Duration::from_millis(20), work).await.is_err());
        assert!(tokio::time::timeout(LIMIT, ended).await.unwrap().is_err(), "it was dropped");
    }
}
