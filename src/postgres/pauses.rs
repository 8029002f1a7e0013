//! How long the probe of Tandem's own server waits between two samples where nothing is watched meanwhile.

use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::probe::Woken;

/// How often a booting server's probe looks whether the database was made or migrated meanwhile.
const STAGE_POLL: Duration = Duration::from_millis(100);

/// After `pause`.
pub async fn due_after(pause: Duration) -> Woken {
    sleep(pause).await;
    Woken::Due
}

/// As soon as `is_further` says yes, at the latest after `pause`.
pub async fn due_when(is_further: impl Fn() -> bool, pause: Duration) -> Woken {
    let further = async {
        while !is_further() {
            sleep(STAGE_POLL).await;
        }
    };
    let _ = timeout(pause, further).await;
    Woken::Due
}

/// When a server that does not answer is asked again. Each question may leave a line in its log, and one that recovers by
/// itself, as after the death of a process of its own, does so for a tenth of a second at least.
pub fn retry(waited: Duration, has_answered: bool) -> Duration {
    match waited.as_secs() {
        0 if has_answered => Duration::from_millis(50),
        0 => Duration::from_millis(20),
        1..5 => Duration::from_millis(100),
        5..30 => Duration::from_millis(500),
        _ => Duration::from_secs(2),
    }
}
