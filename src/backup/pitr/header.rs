//! What a segment says of itself, in the long header of its first page (PostgreSQL's
//! src/include/access/xlog_internal.h).

use std::fs::File;
use std::io::Read;
use std::path::Path;

/// The flag of a long header.
pub(super) const LONG: u16 = 2;
const SIZE: usize = 40;

/// A segment's header, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The position that the segment begins at.
    pub address: u64,
    /// Whose it is.
    pub system: u64,
    pub segment_size: u64,
}

impl Header {
    /// Read it from a segment's first bytes; `None` when that is no segment.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..SIZE)?;
        let u64_at = |at: usize| Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        let info = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?);
        let segment_size = u64::from(u32::from_ne_bytes(bytes.get(32..36)?.try_into().ok()?));
        let sound = info & LONG != 0 && segment_size.is_power_of_two() && segment_size >= 1 << 20;
        sound.then_some(Self { address: u64_at(8)?, system: u64_at(24)?, segment_size })
    }

    /// That of the segment at `path`.
    pub fn of(path: &Path) -> Option<Self> {
        let mut bytes = [0; SIZE];
        File::open(path).ok()?.read_exact(&mut bytes).ok()?;
        Self::read(&bytes)
    }
}
