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
    let (mut left, mut right) = (vec![0; CHUNK], vec![0; CHUNK]);
    loop {
        let count = fill(&mut stored, &mut left).map_err(Damaged)?;
        let Ok(other) = fill(&mut source, &mut right) else { return Ok(false) };
        if left[..count] != right[..other] {
            return Ok(false);
        }
        if count == 0 {
            return Ok(true);
        }
    }
}

/// Read until `buffer` is full or nothing is left.
fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
