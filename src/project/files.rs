//! Reads the files of a project: regular ones, of a size that people and their tools write.

use std::fs;
use std::path::{Path, PathBuf};

/// Locks of large projects have some megabytes.
const BYTES_MAX: u64 = 32 << 20;

/// The text of `path`, if it is a regular file that can be read. What is no UTF-8 in it is replaced.
pub fn text(path: &Path) -> Option<String> {
    // A pipe or a device would be waited for.
    let is_readable = fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.len() <= BYTES_MAX);
    let bytes = fs::read(path).ok().filter(|_| is_readable)?;
    let text = String::from_utf8_lossy(&bytes);
    Some(text.strip_prefix('\u{feff}').unwrap_or(&text).to_owned())
}

/// The names in `dir`, sorted.
pub fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// `path` without a `./` in front, so that it can be shown and compared.
pub fn plain(path: &Path) -> PathBuf {
    path.components().filter(|part| *part != std::path::Component::CurDir).collect()
}
