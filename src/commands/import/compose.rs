//! `tandem import compose`

use std::path::Path;

use crate::cli::{Common, ComposeArgs};
use crate::commands::open;
use crate::commands::running::say;
use crate::compose::{self, Wish};
use crate::durable::{self, WriteOptions};
use crate::exit::{Code, Failure};
use crate::scaffold;
use crate::telemetry::{print, say_aside};

/// The file that is written.
const FILE: &str = "tandem.toml";

/// Print the configuration, or write it, and tell what does not carry over.
///
/// # Errors
/// A file cannot be read or understood, or `tandem.toml` is there already.
pub fn run(common: &Common, args: &ComposeArgs) -> anyhow::Result<Code> {
    // The log's format is all that the command needs of a configuration.
    let source = open::source(common, Vec::new())?;
    let path = source.cwd.join(FILE);
    if args.write && path.symlink_metadata().is_ok() {
        return Err(there(&path).into());
    }
    if let Some(place) = scaffold::elsewhere(&source.cwd).filter(|_| args.write) {
        let text =
            format!("{place} is there already, and tandem.toml would take its place; without --write it is printed");
        return Err(Failure::new(Code::CannotCreate, text).into());
    }
    let wish = Wish { files: args.files.clone(), profiles: args.profile.clone(), app: args.app.clone() };
    let converted = compose::convert(&wish)?;
    if args.write {
        let written = durable::create(&path, converted.toml.as_bytes(), &WriteOptions::default().mode(0o644));
        written.map_err(|error| match error.kind() {
            std::io::ErrorKind::AlreadyExists => there(&path),
            _ => Failure::new(Code::CannotCreate, format!("write {}: {error}", path.display())),
        })?;
        converted.told.iter().try_for_each(|line| say(line))?;
        say(&format!("{} is written: read it through, then `tandem check` and `tandem up`", path.display()))?;
        return Ok(Code::Stopped);
    }
    print(&converted.toml)?;
    converted.told.iter().for_each(|line| say_aside(line));
    Ok(Code::Stopped)
}

fn there(path: &Path) -> Failure {
    let text =
        format!("{} is there already and stays as it is; without --write the configuration is printed", path.display());
    Failure::new(Code::CannotCreate, text)
}
