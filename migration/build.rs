//! Gives the migrations a digest, by which databases that were made from them are known.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::{fs, io};

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=src");
    let sources: BTreeSet<_> = fs::read_dir("src")?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
    // Of one toolchain it is the same everywhere; another one may write other SQL, and gets another digest.
    let mut digest = DefaultHasher::new();
    for source in sources {
        (source.file_name(), fs::read(&source)?).hash(&mut digest);
    }
    println!("cargo::rustc-env=MIGRATION_DIGEST={:016x}", digest.finish());
    Ok(())
}
