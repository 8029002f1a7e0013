//! A cache of what was found out about files, such as versions and digests. An entry holds until its file changes.
//!
//! A warm start has milliseconds: asking a system PostgreSQL for its version costs five of them, a stat a few
//! microseconds. A cache that cannot be read or written only costs time.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::install::{make_shared_dir, write_whole};

/// What was found out about files, by question and path.
#[derive(Debug)]
pub(super) struct FileAnswerCache {
    file: PathBuf,
    answers: BTreeMap<String, CachedAnswer>,
}

#[derive(Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
struct CachedAnswer {
    /// Which state of the file the answer is about.
    stamp: String,
    answer: String,
}

impl FileAnswerCache {
    /// What is remembered in `root`.
    pub(super) fn open(root: &Path) -> Self {
        let file = root.join("known.json");
        let answers = std::fs::read(&file).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        Self { file, answers }
    }

    /// The answer to `question` about `path`, unless the file has changed since.
    pub(super) fn get(&self, question: &str, path: &Path) -> Option<&str> {
        let known = self.answers.get(&key(question, path))?;
        (known.stamp == stamp(path)?).then_some(known.answer.as_str())
    }

    /// Remember the answer to `question` about `path` as it is now.
    pub(super) fn remember(&mut self, question: &str, path: &Path, answer: &str) {
        let Some(stamp) = stamp(path) else { return };
        let answer = CachedAnswer { stamp, answer: answer.to_owned() };
        let key = key(question, path);
        if self.answers.get(&key) == Some(&answer) {
            return;
        }
        self.answers.insert(key, answer);
        let written = serde_json::to_vec_pretty(&self.answers).map_err(Into::into).and_then(|text| {
            self.file.parent().map_or(Ok(()), make_shared_dir)?;
            write_whole(&self.file, &text)
        });
        if let Err(error) = written {
            tracing::debug!(path = %self.file.display(), %error, "remember what was found");
        }
    }
}

fn key(question: &str, path: &Path) -> String {
    format!("{question} {}", path.display())
}

/// Size, time of change and inode: a package manager's replacement changes at least one.
fn stamp(path: &Path) -> Option<String> {
    let meta = path.metadata().ok()?;
    Some(format!("{}:{}.{:09}:{}", meta.len(), meta.mtime(), meta.mtime_nsec(), meta.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_holds_until_the_file_changes() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("postgres");
        std::fs::write(&file, "16").unwrap();
        let mut known = FileAnswerCache::open(dir.path());
        assert_eq!(known.get("version", &file), None);
        known.remember("version", &file, "16.3");
        let known = FileAnswerCache::open(dir.path());
        assert_eq!((known.get("version", &file), known.get("bindir", &file)), (Some("16.3"), None));
        std::fs::write(&file, "160").unwrap();
        assert_eq!(known.get("version", &file), None);
    }
}
