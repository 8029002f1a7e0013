//! Where the chain of an archive was given up.

use std::fs;

use anyhow::Context;

use super::archive::{Archive, entries};
use super::wal::{Segment, WalFile};

impl Archive {
    /// Note that no WAL from `segment` on was archived until the next base backup.
    ///
    /// # Errors
    /// The archive cannot be written.
    pub fn mark_gap(&self, segment: Segment, why: &str) -> anyhow::Result<()> {
        let dir = self.dir().join("gaps");
        let path = dir.join(segment.to_string());
        // One mark for all that is dropped for one reason: the first.
        if self.gaps().iter().any(|(_, marked)| marked == why) || path.exists() {
            return Ok(());
        }
        self.make_dir(&dir).with_context(|| self.cannot_make(&dir))?;
        self.write_small(&path, why)
    }

    /// Where the chain was given up, and why, oldest first.
    pub fn gaps(&self) -> Vec<(Segment, String)> {
        let found = entries(&self.dir().join("gaps")).into_iter().filter_map(|path| {
            let name: WalFile = path.file_name()?.to_str()?.parse().ok()?;
            Some((name.segment()?, fs::read_to_string(&path).unwrap_or_default()))
        });
        let mut gaps: Vec<_> = found.collect();
        gaps.sort();
        gaps
    }
}
