//! A ready data directory as one file: packed once, laid out in milliseconds for each run.
//!
//! One file is there or it is not; and it is read with two system calls a file fewer than a directory. An image that was
//! cut short is told by its last member, which is packed when all else is in.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::num::NonZero;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, bail, ensure};
use nix::fcntl::OFlag;
use tempfile::NamedTempFile;

use crate::durable::{self, open_itself};
use crate::plan::Identity;
use crate::postgres::data::THROWAWAY_MARKER;

/// More threads than this wait for one another in the file system.
const THREADS_MAX: usize = 4;
/// What a member takes beside its content, which ends at a multiple of it.
const HEADER: u64 = 512;
/// Members that a thread takes at a time.
const BATCH: usize = 16;
/// Read and written at a time, in bytes: most files of a cluster have 8 to 64 KB.
const CHUNK: usize = 256 * 1024;

/// Pack the data directory `data` into the file `image`, which appears when it is whole.
///
/// # Errors
/// `data` cannot be read, or `image` cannot be written.
pub fn pack(data: &Path, image: &Path) -> anyhow::Result<()> {
    let parent = image.parent().context("an image has a directory")?;
    let staged = NamedTempFile::new_in(parent).with_context(|| format!("write into {}", parent.display()))?;
    let mut tar = tar::Builder::new(io::BufWriter::with_capacity(CHUNK, staged));
    tar.follow_symlinks(false);
    // Sparse members lie in pieces, which are not read by an offset.
    tar.sparse(false);
    append(&mut tar, data, Path::new("")).context("pack the data directory")?;
    tar.append_path_with_name(data.join(THROWAWAY_MARKER), THROWAWAY_MARKER).context("pack the data directory")?;
    let staged = tar.into_inner()?.into_inner().map_err(io::IntoInnerError::into_error)?;
    // After a power cut a name that stands for half a file would be worse than no name.
    durable::put(staged, image).with_context(|| format!("write {}", image.display()))
}

/// How long an image of the data directory `data` can be at the most, in bytes.
///
/// # Errors
/// It cannot be read.
pub fn size(data: &Path) -> io::Result<u64> {
    let mut total = HEADER;
    for entry in fs::read_dir(data)? {
        let entry = entry?;
        total += match entry.file_type()?.is_dir() {
            true => size(&entry.path())?,
            false => entry.metadata()?.len().next_multiple_of(HEADER) + HEADER,
        };
    }
    Ok(total)
}

fn append(tar: &mut tar::Builder<impl io::Write>, data: &Path, inside: &Path) -> io::Result<()> {
    let mut entries = fs::read_dir(data.join(inside))?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let name = inside.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            tar.append_dir(&name, entry.path())?;
            append(tar, data, &name)?;
        } else if name != Path::new(THROWAWAY_MARKER) && !is_made_again(&name) {
            tar.append_path_with_name(entry.path(), &name)?;
        }
    }
    Ok(())
}

/// Whether PostgreSQL makes a file again when it needs it: the maps of free space and of visibility (PostgreSQL
/// documentation, "Free Space Map", "Visibility Map"). Of the files of a new database they are every fifth, and each is copied
/// for every clone.
fn is_made_again(name: &Path) -> bool {
    let fork = name.file_name().and_then(|name| name.to_str()?.split_once('_'));
    name.starts_with("base")
        && fork
            .is_some_and(|(node, fork)| node.bytes().all(|byte| byte.is_ascii_digit()) && matches!(fork, "fsm" | "vm"))
}

/// A regular file in an image.
struct Member {
    path: PathBuf,
    offset: u64,
    size: u64,
}

/// What an image holds, by its headers.
#[derive(Default)]
struct Index {
    /// Parents before what lies in them.
    dirs: Vec<PathBuf>,
    files: Vec<Member>,
}

/// Lay the image out as the new directory `data`, owned by `owner`, or by this process's user.
///
/// # Errors
/// The image is damaged, or the file system is full.
pub fn lay_out(image: &Path, data: &Path, owner: Option<&Identity>) -> anyhow::Result<()> {
    let file = File::open(image).with_context(|| format!("open {}", image.display()))?;
    let index = index(&file).with_context(|| format!("{} is damaged", image.display()))?;
    for dir in std::iter::once(data.to_path_buf()).chain(index.dirs.iter().map(|dir| data.join(dir))) {
        make_dir(&dir, owner).with_context(|| format!("create {}", dir.display()))?;
    }
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get).min(THREADS_MAX);
    let work = || -> io::Result<()> {
        let mut chunk = vec![0; CHUNK];
        loop {
            let begin = next.fetch_add(BATCH, Ordering::Relaxed);
            let Some(rest) = index.files.get(begin..).filter(|rest| !rest.is_empty()) else { return Ok(()) };
            for member in rest.iter().take(BATCH) {
                copy(&file, member, &data.join(&member.path), owner, &mut chunk)?;
            }
        }
    };
    let done = std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let own = work();
        others
            .into_iter()
            .map(|other| other.join().unwrap_or_else(|_| Err(io::Error::other("panicked"))))
            .fold(own, io::Result::and)
    });
    done.with_context(|| format!("lay out a data directory in {}", data.display()))
}

fn index(file: &File) -> anyhow::Result<Index> {
    let length = file.metadata()?.len();
    let mut index = Index::default();
    let mut archive = tar::Archive::new(file);
    for entry in archive.entries_with_seek()? {
        let entry = entry?;
        let path = entry.path()?.into_owned();
        ensure!(path.components().all(|part| matches!(part, Component::Normal(_))), "it leads out of itself");
        match entry.header().entry_type() {
            tar::EntryType::Directory => index.dirs.push(path),
            tar::EntryType::Regular => {
                let member = Member { path, offset: entry.raw_file_position(), size: entry.size() };
                ensure!(member.offset + member.size <= length, "it is cut short");
                index.files.push(member);
            }
            other => bail!("it holds a {other:?}"),
        }
    }
    ensure!(index.files.last().is_some_and(|last| last.path == Path::new(THROWAWAY_MARKER)), "it is cut short");
    Ok(index)
}

fn make_dir(dir: &Path, owner: Option<&Identity>) -> io::Result<()> {
    fs::create_dir(dir)?;
    let made = open_itself(dir, OFlag::O_DIRECTORY)?;
    made.set_permissions(Permissions::from_mode(0o700))?;
    owner.map_or(Ok(()), |owner| fchown(&made, Some(owner.uid), Some(owner.gid)))
}

fn copy(image: &File, member: &Member, to: &Path, owner: Option<&Identity>, chunk: &mut [u8]) -> io::Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
    let mut done = 0;
    while done < member.size {
        let length = usize::try_from(member.size - done).unwrap_or(usize::MAX).min(chunk.len());
        let part = &mut chunk[..length];
        image.read_exact_at(part, member.offset + done)?;
        file.write_all_at(part, done)?;
        done += length as u64;
    }
    owner.map_or(Ok(()), |owner| fchown(&file, Some(owner.uid), Some(owner.gid)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(root: &Path) -> PathBuf {
        let data = root.join("data");
        fs::create_dir_all(data.join("base/1")).unwrap();
        fs::create_dir(data.join("pg_twophase")).unwrap();
        fs::write(data.join("PG_VERSION"), "16\n").unwrap();
        for name in ["empty", "1247_fsm", "1247_vm"] {
            fs::write(data.join("base/1").join(name), "").unwrap();
        }
        fs::write(data.join("base/1/large"), vec![7; 3 * CHUNK + 1]).unwrap();
        fs::write(data.join(THROWAWAY_MARKER), "{}").unwrap();
        data
    }

    #[test]
    fn what_is_packed_comes_out_as_it_was() {
        let temp = tempfile::tempdir().unwrap();
        let (data, image, out) = (data(temp.path()), temp.path().join("image"), temp.path().join("out"));
        pack(&data, &image).unwrap();
        let meta = image.metadata().unwrap();
        // Two empty blocks end it.
        assert!(meta.len() <= size(&data).unwrap() + 2 * HEADER, "{} {}", meta.len(), size(&data).unwrap());
        assert_eq!(meta.permissions().mode() & 0o777, 0o600, "it holds a password");
        lay_out(&image, &out, None).unwrap();
        for name in ["PG_VERSION", "base/1/empty", "base/1/large", THROWAWAY_MARKER] {
            assert_eq!(fs::read(data.join(name)).unwrap(), fs::read(out.join(name)).unwrap(), "{name}");
        }
        assert!(!out.join("base/1/1247_fsm").exists() && !out.join("base/1/1247_vm").exists());
        assert!(out.join("pg_twophase").is_dir());
        assert_eq!(out.metadata().unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn an_image_that_is_cut_anywhere_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let (data, image) = (data(temp.path()), temp.path().join("image"));
        pack(&data, &image).unwrap();
        let whole = fs::read(&image).unwrap();
        let marker = whole.windows(THROWAWAY_MARKER.len()).rposition(|part| part == THROWAWAY_MARKER.as_bytes());
        for (number, length) in [0, 100, 512, 4096, CHUNK, marker.unwrap() & !511].into_iter().enumerate() {
            fs::write(&image, &whole[..length]).unwrap();
            let refused = lay_out(&image, &temp.path().join(format!("out{number}")), None).unwrap_err();
            assert!(format!("{refused:#}").contains("is damaged"), "{length}: {refused:#}");
        }
        fs::write(&image, vec![b'x'; 4096]).unwrap();
        assert!(lay_out(&image, &temp.path().join("garbage"), None).is_err());
    }
}
