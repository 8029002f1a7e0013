//! `tandem man`

use std::path::Path;
use std::{fs, io};

use anyhow::Context;
use clap::CommandFactory;
use clap_mangen::Man;

use crate::cli::Cli;
use crate::exit::Code;

/// Write the man page of `tandem`, and one for each of its commands, into `dir`.
///
/// # Errors
/// The directory or a page cannot be written.
pub fn run(dir: &Path) -> anyhow::Result<Code> {
    // `help` is a command that needs no page.
    let mut cli = Cli::command().disable_help_subcommand(true);
    // Gives each command its full name, such as `tandem-backup-list`, and the flags of every command.
    cli.build();
    fs::create_dir_all(dir)
        .and_then(|()| write(&cli, dir))
        .with_context(|| format!("write the man pages into {}", dir.display()))?;
    Ok(Code::Stopped)
}

/// The page of `command`, and those of the commands below it that people type.
fn write(command: &clap::Command, dir: &Path) -> io::Result<()> {
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        write(below, dir)?;
    }
    let version = concat!("Tandem ", env!("CARGO_PKG_VERSION"));
    Man::new(command.clone()).source(version).manual("Tandem").generate_to(dir).map(drop)
}
