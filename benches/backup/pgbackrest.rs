//! pgBackRest, where it is installed and knows this PostgreSQL.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::gauge::{self, Cost};
use crate::ground::{Ground, size};

/// A repository of pgBackRest's for the running server.
pub struct Repository {
    pub title: String,
    dir: PathBuf,
}

impl Repository {
    /// Make one, compressed as Tandem's archive is.
    pub fn make(ground: &Ground) -> Result<Self> {
        let version =
            gauge::run(ground.program("pgbackrest").arg("version"), gauge::SLOW).context("is it installed?")?;
        let dir = ground.scratch.join("pgbackrest");
        fs::create_dir_all(dir.join("log"))?;
        let here = dir.display();
        let (data, port) = (ground.project.data().display().to_string(), ground.project.postgres);
        let text = format!(
            "[global]\nrepo1-path={here}/repo\nlog-path={here}/log\nlock-path={here}/lock\nspool-path={here}/spool\n\
             compress-type=zst\ncompress-level=1\nprocess-max=2\nstart-fast=y\nlog-level-console=error\n\
             [bench]\npg1-path={data}\npg1-port={port}\npg1-user=postgres\npg1-socket-path={}\n",
            ground.project.state().join("run/postgres").display()
        );
        fs::write(dir.join("pgbackrest.conf"), text)?;
        let repository = Self { title: version.said, dir };
        gauge::run(repository.command(ground).arg("stanza-create"), gauge::SLOW)
            .with_context(|| format!("{}: make a stanza", repository.title))?;
        Ok(repository)
    }

    /// pgBackRest with this repository; what it shall do follows.
    pub fn command(&self, ground: &Ground) -> Command {
        let mut command = ground.program("pgbackrest");
        command.arg(format!("--config={}", self.dir.join("pgbackrest.conf").display())).arg("--stanza=bench");
        command
    }
}

/// A full backup; what it costs, and what it takes, in bytes.
pub fn backup(ground: &Ground) -> Result<(String, Cost, f64)> {
    let repository = Repository::make(ground)?;
    // The server archives elsewhere: its WAL is not waited for.
    let mut command = repository.command(ground);
    let cost = gauge::run(command.args(["--no-archive-check", "--type=full", "backup"]), gauge::SLOW)?;
    #[expect(clippy::cast_precision_loss, reason = "gigabytes at most")]
    let size = size(&repository.dir.join("repo/backup"))? as f64;
    Ok((format!("{}, zstd 1, two processes", repository.title), cost, size))
}
