//! Stand-in: the room that finds and fetches PostgreSQL's binaries replaces this.

use std::path::PathBuf;

/// A PostgreSQL 16 on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installation {
    pub bin: PathBuf,
    pub lib: Option<PathBuf>,
    pub version: String,
    pub origin: String,
}

impl Installation {
    pub fn tool(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }
}
