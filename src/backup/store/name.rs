//! What a copy may be called. Pure.

use super::trouble::{Kind, StoreError};

/// How a file in a directory is called until it is whole.
pub(super) const PART_PREFIX: &str = ".tandem-";
pub(super) const PART_SUFFIX: &str = ".part";

/// S3 and Google take 1024 bytes for the whole key, and most file systems 255 for each name.
const NAME_MAX: usize = 255;

/// Refuse a name that some kind of store could not keep, or that would leave the destination.
pub(super) fn check(name: &str) -> Result<(), StoreError> {
    let why = |part: &str| match part {
        "" => Some("has an empty part"),
        "." | ".." => Some("has a part that is `.` or `..`"),
        part if part.len() > NAME_MAX => Some("has a part of more than 255 bytes"),
        part if part.chars().any(char::is_control) => Some("holds a control character"),
        part if is_unfinished(part) => Some("is one that unfinished copies have"),
        _ => None,
    };
    match name.split('/').find_map(why) {
        Some(why) => Err(StoreError::new(Kind::Name, format!("the name {name:?} of a copy {why}"))),
        None => Ok(()),
    }
}

/// Whether this is a copy that never became whole.
pub fn is_unfinished(part: &str) -> bool {
    part.starts_with(PART_PREFIX) && part.ends_with(PART_SUFFIX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_inside_and_may_look_odd() {
        for name in ["a", "2026-01-01 \"nightly\".dump", "wal/000000010000000000000001", "100%é'`#?.age", ".hidden"] {
            check(name).unwrap();
        }
        for name in ["", "/a", "a/", "a//b", "../a", "a/./b", "a\nb", ".tandem-x.part", &"x".repeat(256)] {
            assert_eq!(check(name).unwrap_err().kind, Kind::Name, "{name:?}");
        }
    }
}
