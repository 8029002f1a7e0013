//! Long work that is under way, for the health port: while Tandem boots, it says what it waits for.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

static ALL: Mutex<Works> = Mutex::new(Works { next: 0, texts: BTreeMap::new() });

struct Works {
    next: u64,
    /// By number, so that the oldest comes first.
    texts: BTreeMap<u64, String>,
}

fn all() -> MutexGuard<'static, Works> {
    ALL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Work that is under way until this is dropped.
#[derive(Debug)]
#[must_use = "the work counts as over when this is dropped"]
pub struct UnderWay(u64);

impl UnderWay {
    /// Note that `text` is under way.
    pub fn begin(text: impl Into<String>) -> Self {
        let mut all = all();
        let number = all.next;
        all.next += 1;
        all.texts.insert(number, text.into());
        Self(number)
    }

    /// Say how far it is.
    pub(super) fn say(&self, text: String) {
        all().texts.insert(self.0, text);
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        all().texts.remove(&self.0);
    }
}

/// What is under way, the oldest first.
pub fn under_way() -> Vec<String> {
    all().texts.values().cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_shown_until_it_is_over() {
        // Other tests may have work under way too.
        let mine = || under_way().into_iter().filter(|text| text.starts_with("mine: ")).collect::<Vec<_>>();
        let first = UnderWay::begin("mine: first");
        let second = UnderWay::begin("mine: second");
        first.say("mine: first, half of it".into());
        assert_eq!(mine(), ["mine: first, half of it", "mine: second"]);
        drop(first);
        assert_eq!(mine(), ["mine: second"]);
        drop(second);
        assert!(mine().is_empty());
    }
}
