//! Clients that write rows through the application, and remember each that was acknowledged.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::rest;

/// How many write at once.
const CLIENTS: usize = 4;
/// Longest wait for an acknowledgement.
const ANSWER_LIMIT: Duration = Duration::from_secs(3);
/// Between two rows of a client: the machine has other work.
const PAUSE: Duration = Duration::from_millis(15);

/// Clients at work.
pub struct Clients {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    port: u16,
    over: AtomicBool,
    /// Counts up by one at each [`Clients::mark`].
    era: AtomicU64,
    /// The newest era of which a row was acknowledged that was sent in it.
    acknowledged_era: AtomicU64,
    rows: Mutex<Vec<String>>,
    refused: AtomicU64,
}

impl Clients {
    /// Set them to work on the application at `port`.
    pub fn start(port: u16) -> Self {
        let shared = Arc::new(Shared {
            port,
            over: AtomicBool::new(false),
            era: AtomicU64::new(0),
            acknowledged_era: AtomicU64::new(0),
            rows: Mutex::default(),
            refused: AtomicU64::new(0),
        });
        let work = |number| {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || shared.write(number))
        };
        Self { threads: (0..CLIENTS).map(work).collect(), shared: Arc::clone(&shared) }
    }

    /// From now on, [`Clients::write_again`] asks for a row that was sent after this moment.
    pub fn mark(&self) {
        self.shared.era.fetch_add(1, SeqCst);
    }

    /// Whether a row was acknowledged that was sent after the last mark.
    pub fn write_again(&self) -> bool {
        self.shared.acknowledged_era.load(SeqCst) == self.shared.era.load(SeqCst)
    }

    /// How many requests were not acknowledged so far.
    pub fn refused(&self) -> u64 {
        self.shared.refused.load(SeqCst)
    }

    /// The rows that were acknowledged so far.
    pub fn rows(&self) -> HashSet<String> {
        self.shared.rows.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// Let them finish what they are at.
    pub fn stop(&mut self) {
        self.shared.over.store(true, SeqCst);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn write(&self, number: usize) {
        let agent: ureq::Agent = ureq::Agent::config_builder().timeout_global(Some(ANSWER_LIMIT)).build().into();
        let url = format!("http://127.0.0.1:{}/decisions", self.port);
        let began = Instant::now();
        let mut count = 0;
        while !self.over.load(SeqCst) {
            let era = self.era.load(SeqCst);
            count += 1;
            let row = serde_json::json!({"asset_pair": "BTCUSD", "timeframe": "1h", "confidence": 50,
                "decision": {"client": number, "count": count, "since": began.elapsed().as_millis()}});
            let answer = agent.post(&url).header("content-type", "application/json").send(row.to_string());
            // Whatever is not an acknowledgement may be written or not: nothing was promised.
            let id = answer.ok().and_then(|mut answer| {
                let body: serde_json::Value = serde_json::from_str(&answer.body_mut().read_to_string().ok()?).ok()?;
                Some(body["id"].as_str()?.to_owned())
            });
            match id {
                Some(id) => {
                    self.rows.lock().unwrap_or_else(PoisonError::into_inner).push(id);
                    self.acknowledged_era.fetch_max(era, SeqCst);
                }
                None => {
                    self.refused.fetch_add(1, SeqCst);
                }
            }
            rest(PAUSE);
        }
    }
}
