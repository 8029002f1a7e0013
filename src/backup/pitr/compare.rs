//! Whether an archived file holds what another does.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

/// How much is compared at once, in bytes.
const CHUNK: usize = 256 * 1024;

/// What is under a final name cannot be read.
pub struct Damaged(pub io::Error);

/// Whether the archived file at `place` holds what is in `source`.
///
/// # Errors
/// The archived file cannot be read to its end.
pub fn same(place: &Path, source: &Path) -> Result<bool, Damaged> {
    let stored = File::open(place).and_then(zstd::Decoder::new).map_err(Damaged)?;
    let mut stored = BufReader::with_capacity(CHUNK, stored);
    let mut source = match File::open(source) {
        Ok(file) => BufReader::with_capacity(CHUNK, file),
        Err(_) => return Ok(false),
    };
    let (mut left, mut right) = (Vec::with_capacity(CHUNK), Vec::with_capacity(CHUNK));
    loop {
        left.clear();
        right.clear();
        (&mut stored).take(CHUNK as u64).read_to_end(&mut left).map_err(Damaged)?;
        let Ok(_) = (&mut source).take(CHUNK as u64).read_to_end(&mut right) else { return Ok(false) };
        if left != right {
            return Ok(false);
        }
        if left.is_empty() {
            return Ok(true);
        }
    }
}
