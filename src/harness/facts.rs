//! What is known of the databases in a template; it lies in the data directory, which only the server's user reads.

use std::fs;
use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::postgres::data::THROWAWAY_MARKER;
use crate::postgres::home::Home;
use crate::postgres::write_whole;

/// What is known.
#[derive(Default, Serialize, Deserialize)]
pub struct TemplateFacts {
    /// Of the application's role.
    pub password: String,
    /// Whether it holds unlogged tables or sequences: their pages reach no file at a checkpoint, so that nothing tells
    /// whether a test changed them.
    pub unlogged: bool,
}

impl TemplateFacts {
    /// Of the data directory `data`.
    ///
    /// # Errors
    /// It was not made here.
    pub fn of(data: &Path) -> anyhow::Result<Self> {
        let path = data.join(THROWAWAY_MARKER);
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("understand {}", path.display()))
    }

    /// Write them into the data directory of `home`, which marks it as a throwaway one.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn note(&self, home: &Home) -> anyhow::Result<()> {
        write_whole(&home.data.join(THROWAWAY_MARKER), &serde_json::to_string(self)?, 0o600, home.server.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_that_the_directorys_owner_put_there_is_not_followed() {
        let temp = tempfile::tempdir().unwrap();
        let home = Home::at(temp.path(), None);
        fs::create_dir_all(&home.data).unwrap();
        let victim = temp.path().join("victim");
        fs::write(&victim, "of root").unwrap();
        std::os::unix::fs::symlink(&victim, home.data.join(THROWAWAY_MARKER)).unwrap();
        TemplateFacts { password: "p".into(), unlogged: true }.note(&home).unwrap();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "of root");
        let facts = TemplateFacts::of(&home.data).unwrap();
        assert_eq!((facts.password.as_str(), facts.unlogged), ("p", true));
    }
}
