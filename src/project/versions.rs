//! Which Python a project asks for.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use pep440_rs::{Version, VersionSpecifiers};

use super::{Found, Manifest, Seen, Trouble, files};

/// The Python that is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// As it was written: `3.12`, `>=3.10,<4`.
    pub text: String,
    specifiers: VersionSpecifiers,
}

impl Wanted {
    /// Read a version (`3.12`) or what one must fulfil (`>=3.12`, Poetry's `^3.12`).
    pub fn read(text: &str) -> Option<Self> {
        let text = text.trim();
        if text.is_empty() {
            return None;
        }
        let bare = text.trim_start_matches("cpython").trim_start_matches(['@', '-']);
        let specifiers = if bare.starts_with(|letter: char| letter.is_ascii_digit()) {
            let version = Version::from_str(bare.trim_end_matches(".*")).ok()?;
            // `3.12` is any 3.12, and so is `3.12.1`: who has another patch level means it no other way.
            let parts: Vec<String> = version.release().iter().take(2).map(u64::to_string).collect();
            VersionSpecifiers::from_str(&format!("=={}.*", parts.join(".")))
        } else {
            VersionSpecifiers::from_str(&caret(bare)?)
        };
        Some(Self { text: text.to_owned(), specifiers: specifiers.ok()? })
    }

    /// Whether Python `major.minor.patch` is one that is asked for.
    pub fn fits(&self, (major, minor, patch): (u32, u32, u32)) -> bool {
        self.specifiers.contains(&Version::new([u64::from(major), u64::from(minor), u64::from(patch)]))
    }

    /// As `uv` is asked for it.
    pub fn specifiers(&self) -> String {
        self.specifiers.to_string().replace(' ', "")
    }
}

/// Poetry's `^3.10` and `~3.10` as PEP 440 has them; other text as it is.
pub fn caret(text: &str) -> Option<String> {
    let one = |part: &str| -> Option<String> {
        let part = part.trim();
        let (is_caret, version) =
            match (part.strip_prefix('^'), part.strip_prefix('~').filter(|it| !it.starts_with('='))) {
                (Some(version), _) => (true, version),
                (None, Some(version)) => (false, version),
                (None, None) => return Some(part.to_owned()),
            };
        let version = version.trim();
        let numbers: Vec<u64> = version.split('.').map(|part| part.parse().ok()).collect::<Option<_>>()?;
        // The first number that is not zero may not change; with `~` the second, or the only one.
        let fixed = if is_caret {
            numbers.iter().position(|number| *number != 0).unwrap_or(numbers.len() - 1)
        } else {
            1.min(numbers.len() - 1)
        };
        let mut next = numbers[..=fixed].to_vec();
        *next.last_mut()? += 1;
        let next = next.iter().map(u64::to_string).collect::<Vec<_>>().join(".");
        Some(format!(">={version},<{next}"))
    };
    let parts: Option<Vec<String>> = text.split(',').filter(|part| !part.trim().is_empty()).map(one).collect();
    parts.map(|parts| parts.join(","))
}

/// Whether `version` is one that `specifiers` (PEP 440) ask for; `None` where either cannot be read.
pub fn fits(specifiers: &str, version: &str) -> Option<bool> {
    let specifiers = VersionSpecifiers::from_str(specifiers).ok()?;
    Some(specifiers.contains(&Version::from_str(version).ok()?))
}

/// The Python that the project in `directory` asks for: by `.python-version`, else by its metadata. The second is a file that
/// says it in a way that cannot be understood.
pub fn find(directory: &Path, roots: &[PathBuf], manifest: &Manifest) -> (Option<Found<Wanted>>, Option<Trouble>) {
    for root in roots {
        let file = root.join(".python-version");
        let Some(text) = files::text(&directory.join(&file)) else { continue };
        let lines = text.lines().enumerate().map(|(at, line)| (at, line.split('#').next().unwrap_or_default().trim()));
        let found = lines.filter(|(_, line)| !line.is_empty()).find_map(|(at, line)| Some((at, Wanted::read(line)?)));
        // It may also name an environment of pyenv's, or another kind of Python: that is for those tools.
        if let Some((at, wanted)) = found {
            return (Some(Found::new(wanted, Seen::at(file, at + 1))), None);
        }
    }
    for root in roots {
        let read;
        let manifest = if root.as_os_str().is_empty() {
            manifest
        } else {
            read = Manifest::read(directory, &root.join("pyproject.toml")).unwrap_or_default();
            &read
        };
        let paths: [&[&str]; 2] = [&["project", "requires-python"], &["tool", "poetry", "dependencies", "python"]];
        let Some(written) = paths.into_iter().find_map(|path| manifest.text(path)) else { continue };
        return match Wanted::read(&written.value) {
            Some(wanted) => (Some(Found::new(wanted, written.seen)), None),
            // Poetry has more ways to say it than PEP 440: `*`, `^3.9 || ^3.11`.
            None if manifest.get(paths[0]).is_none() => (None, None),
            None => {
                let message = format!("{:?} names no versions of Python, such as \">=3.10\"", written.value);
                (None, Some(Trouble { seen: written.seen, message }))
            }
        };
    }
    (None, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_people_write_them() {
        for (text, fits, not) in [
            ("3.12", &[(3, 12, 0), (3, 12, 9)][..], &[(3, 11, 9), (3, 13, 0)][..]),
            ("3.12.1", &[(3, 12, 0), (3, 12, 9)], &[(3, 13, 0)]),
            ("cpython@3.11", &[(3, 11, 2)], &[(3, 12, 0)]),
            (">=3.10", &[(3, 10, 0), (3, 14, 0)], &[(3, 9, 18)]),
            (">=3.10,<3.13", &[(3, 12, 7)], &[(3, 13, 0)]),
            ("~=3.11", &[(3, 11, 0), (3, 12, 0)], &[(3, 10, 0)]),
            ("==3.12.*", &[(3, 12, 3)], &[(3, 13, 0)]),
            ("^3.11", &[(3, 11, 0), (3, 14, 0)], &[(3, 10, 9)]),
            ("~3.11", &[(3, 11, 8)], &[(3, 12, 0)]),
            ("^3.9, <3.14", &[(3, 9, 0)], &[(3, 14, 1)]),
        ] {
            let wanted = Wanted::read(text).unwrap_or_else(|| panic!("{text}"));
            assert!(fits.iter().all(|version| wanted.fits(*version)), "{text}");
            assert!(!not.iter().any(|version| wanted.fits(*version)), "{text}");
        }
        for text in ["shop-env", "pypy3.9", "", "latest"] {
            assert_eq!(Wanted::read(text), None, "{text}");
        }
        assert_eq!(Wanted::read(">= 3.10, <4").unwrap().specifiers(), ">=3.10,<4");
    }
}
