//! Where templates lie, and which of them is the one for a recipe.
//!
//! ```text
//! <cache>/test/<key>.tar             appears by a rename when it is whole; one maker at a time, under <base>.lock
//! <cache>/test/<base>.<key>.inputs   what it was made from beside its recipe, where that was recorded
//! ```
//!
//! The base is the key of the recipe. Where a migration command or a seed is part of it, what they read decides too: the key
//! of the template is that of the base and of the files that were read, as they are now.
//!
//! An installed cache may be closed to the user who runs this, as in an image: then `cache` in the state directory takes its
//! place, or a directory for temporary files.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::Context;

use super::inputs::Inputs;
use crate::config::{Settings, temp_dir};
use crate::durable;
use crate::exit::{Code, Failure};
use crate::install;
use crate::postgres::home::make_dir;
use crate::process::identity;

/// How many images are kept, the last used ones.
const IMAGES_MAX: usize = 12;
/// Ends of the names.
const IMAGE: &str = "tar";
const RECORD: &str = "inputs";

/// Where images may lie, the best place first.
pub fn shelves(cache: &Path, state: &Path) -> [PathBuf; 3] {
    let temporary = temp_dir().join(format!("tandem-templates-{}", nix::unistd::Uid::effective()));
    [cache.join("test"), state.join("cache/test"), temporary]
}

/// The first of them that can be written, made if it is not there.
///
/// # Errors
/// [`Code::CannotCreate`]: none can.
pub fn open_shelf(shelves: &[PathBuf; 3]) -> anyhow::Result<PathBuf> {
    for dir in &shelves[..2] {
        if let Some(state) = shelves[1].ancestors().nth(2).filter(|_| *dir == shelves[1]) {
            let _told_below = install::make_shared_dir(state);
            install::keep_out_of_git(state);
        }
        match install::make_shared_dir(dir) {
            Ok(()) if identity::may_write(dir, None) => return Ok(dir.clone()),
            made => tracing::debug!("templates are not kept in {}, which cannot be written: {made:?}", dir.display()),
        }
    }
    let dir = &shelves[2];
    let why = || {
        let [cache, state, temporary] = shelves.each_ref().map(|dir| dir.display());
        let text = format!("cannot keep the tests' template in {cache}, in {state} or in {temporary}");
        Failure::new(Code::CannotCreate, format!("{text}: name another place with `cache_dir`, or open one of these"))
    };
    make_dir(dir, 0o700, None).with_context(why)?;
    // In a directory that all users share, another user may have been first.
    let meta = dir.symlink_metadata().with_context(why)?;
    let ours = meta.is_dir() && meta.uid() == nix::unistd::Uid::effective().as_raw() && meta.mode() & 0o022 == 0;
    if ours { Ok(dir.clone()) } else { Err(why().into()) }
}

/// Where the image with this key is in `dir`.
pub fn image(dir: &Path, key: &str) -> PathBuf {
    dir.join(format!("{key}.{IMAGE}"))
}

/// Whether the image is there; if so, it counts as used now.
pub fn touch(image: &Path) -> bool {
    File::open(image).is_ok_and(|file| {
        let _ = file.set_modified(SystemTime::now());
        true
    })
}

/// The key of the image in `dir` that was made by the recipe `base` from what is there now; `recorded` says that such
/// images have a record of what was read.
pub fn find(dir: &Path, base: &str, recorded: bool, settings: &Settings) -> Option<String> {
    if !recorded {
        return touch(&image(dir, base)).then(|| base.to_owned());
    }
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).find_map(|name| {
        let made = name.strip_prefix(base)?.strip_prefix('.')?.strip_suffix(RECORD)?.strip_suffix('.')?.to_owned();
        let inputs: Inputs = serde_json::from_slice(&fs::read(dir.join(&name)).ok()?).ok()?;
        (inputs.key(base, settings) == made && touch(&image(dir, &made))).then_some(made)
    })
}

/// Note in `dir` what the image with this key was made from.
///
/// # Errors
/// The note cannot be written.
pub fn note(dir: &Path, base: &str, key: &str, inputs: &Inputs) -> anyhow::Result<()> {
    let path = dir.join(format!("{base}.{key}.{RECORD}"));
    let options = durable::WriteOptions::default();
    durable::replace(&path, &serde_json::to_vec(inputs)?, &options).with_context(|| format!("write {}", path.display()))
}

/// Remove the images that were not used for longest, and the records without an image.
pub fn sweep(dir: &Path) {
    let with_end = |end: &str| {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
        entries.filter(|path| path.extension().is_some_and(|extension| extension == end)).collect::<Vec<_>>()
    };
    let images = with_end(IMAGE).into_iter();
    let mut images: Vec<_> = images.filter_map(|path| Some((path.metadata().ok()?.modified().ok()?, path))).collect();
    images.sort();
    for (_, image) in &images[..images.len().saturating_sub(IMAGES_MAX)] {
        let _ = fs::remove_file(image);
    }
    for record in with_end(RECORD) {
        let key = record.file_stem().and_then(|stem| stem.to_str()?.split_once('.'));
        if !key.is_some_and(|(_, key)| image(dir, key).exists()) {
            let _ = fs::remove_file(record);
        }
    }
}
