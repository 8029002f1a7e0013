//! What `tandem doctor` takes.

use std::path::PathBuf;

use clap::Args;
use clap::builder::PossibleValuesParser;

use crate::doctor::{CHECKS, Group};

#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Remove leftovers and close Tandem's own files to others, then look again; what restores replaced goes only after a
    /// confirmation
    #[arg(long)]
    pub fix: bool,
    /// Do not ask for confirmation
    #[arg(long, requires = "fix")]
    pub yes: bool,
    /// Do what takes long too: checksums of a stopped cluster, tables and indexes, modules of PostgreSQL
    #[arg(long)]
    pub deep: bool,
    /// Show what is well too
    #[arg(long, conflicts_with = "json")]
    pub all: bool,
    /// Leave out a check or a group of checks; may be repeated
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(names()), hide_possible_values = true)]
    pub skip: Vec<String>,
    /// Write what was found, the configuration, versions and the last lines of the log into a .tar.gz without secrets, to
    /// attach to a report of a fault
    #[arg(long, value_name = "FILE")]
    pub bundle: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// The names of checks, and of their groups.
fn names() -> Vec<&'static str> {
    let mut names: Vec<&str> = Group::ALL.map(Group::word).to_vec();
    let checks =
        CHECKS.iter().map(|check| check.name).filter(|name| !Group::ALL.iter().any(|group| group.word() == *name));
    names.extend(checks);
    names
}
