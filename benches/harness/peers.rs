//! The servers that cold starts are compared with, and how each is started: as its own documentation says.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::ground::{Ground, search_path};
use crate::sheet::Sheet;

/// One way to get a server for a command.
pub struct Contestant {
    /// Names its directory.
    pub name: &'static str,
    /// Heads its row.
    pub title: String,
    /// A command that starts a server, lets the client ask, and ends; temporary files go below the directory.
    pub command: fn(&Ground, &Path) -> Result<Command>,
    /// Whether all is done that it does in the background after its end.
    pub settled: fn(&Path) -> bool,
    /// From its start to the answer in the first place, in milliseconds.
    pub goal: Option<f64>,
    /// Whether the caller is to get the prompt back at once.
    pub waits_for_nothing: bool,
}

impl Contestant {
    fn new(name: &'static str, title: String, command: fn(&Ground, &Path) -> Result<Command>) -> Self {
        Self { name, title, command, settled: |_| true, goal: None, waits_for_nothing: false }
    }

    fn goal(self, limit: f64) -> Self {
        Self { goal: Some(limit), waits_for_nothing: true, ..self }
    }

    fn settled(self, settled: fn(&Path) -> bool) -> Self {
        Self { settled, ..self }
    }
}

/// All that can be had here.
pub fn contestants(ground: &Ground, sheet: &mut Sheet) -> Vec<Contestant> {
    let of = |package: &str| ground.version(package).map_or_else(|_| package.to_owned(), |v| format!("{package} {v}"));
    let mut all = vec![
        Contestant::new("t", "**Tandem**, template cached, no spare directory".into(), tandem)
            .goal(60.0)
            .settled(is_gone),
        Contestant::new("s", "**Tandem**, repeated".into(), tandem_again).goal(30.0).settled(has_spare),
        Contestant::new("r", "Tandem, template built anew (`--rebuild`)".into(), tandem_rebuild).settled(is_gone),
        Contestant::new("pytest-postgresql", of("pytest-postgresql"), pytest_postgresql),
        Contestant::new("testing.postgresql", of("testing.postgresql"), testing_postgresql),
        Contestant::new("pgserver", format!("{}, its own PostgreSQL 16.2", of("pgserver")), pgserver),
    ];
    match installed("pg_tmp") {
        true => all.extend([
            Contestant::new("pg_tmp", "pg_tmp, no spare directory".into(), pg_tmp_first).settled(pg_tmp_ready),
            Contestant::new("pg_tmp-again", "pg_tmp, repeated".into(), pg_tmp).settled(pg_tmp_ready),
        ]),
        false => sheet.note("pg_tmp: not measured: not installed; Debian has no package of it (ephemeralpg)"),
    }
    match (installed("pg_virtualenv"), debian_postgres()) {
        (true, Some(version)) => {
            let title = format!("pg_virtualenv (postgresql-common), the system's PostgreSQL {version}");
            all.push(Contestant::new("pg_virtualenv", title, pg_virtualenv));
        }
        _ => sheet.note("pg_virtualenv: not measured: Debian's postgresql-common and a server are not installed"),
    }
    all
}

fn installed(program: &str) -> bool {
    search_path().split(':').any(|dir| Path::new(dir).join(program).exists())
}

/// The newest major version of Debian's servers, which is what pg_virtualenv takes.
fn debian_postgres() -> Option<u32> {
    let entries = fs::read_dir("/usr/lib/postgresql").ok()?.flatten();
    let servers = entries.filter(|entry| entry.path().join("bin/pg_ctl").exists());
    servers.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).max()
}

fn tandem_test(ground: &Ground, tmp: &Path, options: &[&str]) -> Command {
    let mut command = ground.tandem_test(tmp, options);
    command.args(ground.client());
    command
}

fn tandem(ground: &Ground, tmp: &Path) -> Result<Command> {
    let mut command = tandem_test(ground, tmp, &[]);
    command.env("TANDEM_TEST__SPARE", "false");
    Ok(command)
}

fn tandem_again(ground: &Ground, tmp: &Path) -> Result<Command> {
    Ok(tandem_test(ground, tmp, &[]))
}

fn tandem_rebuild(ground: &Ground, tmp: &Path) -> Result<Command> {
    let mut command = tandem_test(ground, tmp, &["--rebuild"]);
    command.env("TANDEM_TEST__SPARE", "false");
    Ok(command)
}

/// What Tandem has below `tmp`: directories of runs, which go in the background, and spare ones.
fn tandem_dirs(tmp: &Path, prefix: &str) -> usize {
    let bases = fs::read_dir(tmp).into_iter().flatten().flatten();
    let entries = bases.flat_map(|base| fs::read_dir(base.path()).into_iter().flatten().flatten());
    entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix)).count()
}

fn is_gone(tmp: &Path) -> bool {
    tandem_dirs(tmp, "run-") == 0
}

fn has_spare(tmp: &Path) -> bool {
    is_gone(tmp) && tandem_dirs(tmp, "spare-") > 0
}

fn script(ground: &Ground, tmp: &Path, name: &str) -> Command {
    let mut command = ground.python(tmp);
    command.arg(ground.script(name));
    command
}

fn pytest_postgresql(ground: &Ground, tmp: &Path) -> Result<Command> {
    let mut command = script(ground, tmp, "cold/pytest_postgresql_server.py");
    command.arg(ground.bin.join("pg_ctl")).args(ground.client());
    Ok(command)
}

fn testing_postgresql(ground: &Ground, tmp: &Path) -> Result<Command> {
    let mut command = script(ground, tmp, "cold/testing_postgresql_server.py");
    command.arg(&ground.bin).args(ground.client());
    Ok(command)
}

fn pgserver(ground: &Ground, tmp: &Path) -> Result<Command> {
    let mut command = script(ground, tmp, "cold/pgserver_server.py");
    command.args(ground.client());
    Ok(command)
}

/// `url=$(pg_tmp)`, as its manual has it. Its server ends by itself, five seconds after its last client.
fn pg_tmp(ground: &Ground, tmp: &Path) -> Result<Command> {
    let mut command = ground.program("sh", tmp);
    command.args(["-c", "url=$(pg_tmp -w 5) && \"$@\" \"$url\"", "sh"]).args(ground.client()).env("SYSTMP", tmp);
    Ok(command)
}

fn pg_tmp_first(ground: &Ground, tmp: &Path) -> Result<Command> {
    for spare in pg_tmp_spares(tmp) {
        fs::remove_dir_all(spare)?;
    }
    pg_tmp(ground, tmp)
}

/// Directories that pg_tmp holds ready.
fn pg_tmp_spares(tmp: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(tmp).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.join("NEW").exists()).collect()
}

fn pg_tmp_ready(tmp: &Path) -> bool {
    !pg_tmp_spares(tmp).is_empty()
}

fn pg_virtualenv(ground: &Ground, tmp: &Path) -> Result<Command> {
    let mut command = ground.program("pg_virtualenv", tmp);
    command.args(ground.client());
    Ok(command)
}
