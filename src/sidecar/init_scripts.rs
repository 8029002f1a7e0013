//! `postgres.init_scripts`: scripts of the operator's that run once in a new cluster, before the migrations.
//!
//! ```text
//! *.sql  *.sql.gz  *.sql.zst      by psql, which stops at the first error
//! *.sh                            executed, or read by bash where they are not executable
//! ```
//!
//! They run in the order of their names, as the server's user, over its socket, as the application's role, which is a superuser
//! meanwhile. Until all have succeeded the cluster bears a mark ([`initial`]): the next start makes it anew.
//!
//! Blocks: what looks at files or waits for programs runs elsewhere.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, bail};

use super::Context;
use crate::backup::compress;
use crate::backup::reach::Reach;
use crate::backup::restore;
use crate::config::{Compression, Settings};
use crate::event_loop::elsewhere;
use crate::exit::{Code, Failure};
use crate::plan::{CommandLine, DatabaseUrl};
use crate::postgres::binaries::Installation;
use crate::postgres::embedded::{PsqlBuilder, command};
use crate::postgres::home::Home;
use crate::postgres::initial;
use crate::process::{self, Exit, RunError, Streaming};
use crate::scrub;
use crate::telemetry::{self, Stream};
use crate::workers::surroundings::Surroundings;

/// What their output is called in the log.
const SERVICE: &str = "init";
/// Lines of output that an error shows.
const LINES_MAX: usize = 20;
/// Reads a script that is not executable, as docker-library/postgres does: the script may use `docker_process_sql`.
const READ: &str =
    "set -Eeo pipefail; docker_process_sql() { psql --no-psqlrc --set ON_ERROR_STOP=1 \"$@\"; }; . \"$0\"";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Sql(Compression),
    /// Executable.
    Program,
    /// A shell script that is not.
    Read,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Script {
    name: String,
    path: PathBuf,
    kind: Kind,
}

/// What the scripts run with.
struct Run {
    settings: Settings,
    home: Home,
    url: DatabaseUrl,
    installation: Installation,
    /// With the environment of every script.
    surroundings: CommandLine,
}

/// Run the scripts of the new cluster of `context`, if they have not all run; whether there was anything to do. The cluster counts
/// as complete after [`finish`].
///
/// # Errors
/// The first script that fails: its name, its line, what the server said. The next start begins with a new cluster.
pub async fn run(context: &Rc<Context>) -> anyhow::Result<bool> {
    let home = context.home.clone();
    if !elsewhere(move || async move { initial::is_unfinished(&home) }).await? {
        return Ok(false);
    }
    let (settings, home, url) = ((*context.settings()).clone(), context.home.clone(), context.url());
    let installation = context.installation.borrow().clone().context("no PostgreSQL was installed")?;
    // The variables that the application's migrations get: a script may need what stands in `.env`.
    let application = format!("{}-init", settings.name);
    let variables = context.around_aside(move |around: Surroundings<'_>| around.variables(&application)).await?;
    let surroundings = variables.apply(surroundings(&settings, &home));
    let run = Run { settings, home, url, installation, surroundings };
    elsewhere(move || async move { run.all().await }).await?;
    Ok(true)
}

/// All scripts have run, and the application's role is as it should be: the cluster is complete.
///
/// # Errors
/// Another look at the database says no: `restore.if_empty` would have nothing to do. The server refuses.
pub async fn finish(context: &Rc<Context>) -> anyhow::Result<()> {
    let (settings, home, url) = (context.settings(), context.home.clone(), context.url());
    let installation = context.installation.borrow().clone().context("no PostgreSQL was installed")?;
    let restores = settings.restore_if_empty.is_some();
    elsewhere(move || async move {
        let reach = Reach::superuser(&home, url.port, installation);
        if restores && !restore::is_empty(&reach, &url.database).await? {
            let message = format!(
                "the scripts of postgres.init_scripts filled database {}, so restore.if_empty would restore nothing into it: \
                 leave roles and extensions to the scripts, and tables to the backup or to the migrations; or unset one of the two",
                url.database
            );
            bail!(Failure::new(Code::Config, message));
        }
        initial::finish(&home, url.port, &url.user).await
    })
    .await
}

/// As the server's user, who owns nothing of the application's.
fn surroundings(settings: &Settings, home: &Home) -> CommandLine {
    let command = CommandLine::new("").identity(home.server.clone()).no_new_privs(settings.workers.no_new_privs);
    match &home.server {
        Some(user) => command.env("HOME", &user.home).env("USER", &user.name).env("LOGNAME", &user.name),
        None => command,
    }
}

impl Run {
    async fn all(&self) -> anyhow::Result<()> {
        let Some(dir) = &self.settings.postgres.init_scripts else { return Ok(()) };
        // Blocks: elsewhere, as all of this.
        let scripts = list(dir)?;
        if !scripts.is_empty() {
            initial::lend_rights(&self.home, self.url.port, &self.url.user).await?;
        }
        for script in &scripts {
            let _progress = telemetry::progress(format!("running {}", script.path.display()));
            self.one(dir, script).await?;
        }
        Ok(())
    }

    /// Run one script to its end.
    async fn one(&self, dir: &Path, script: &Script) -> anyhow::Result<()> {
        let limit = self.settings.postgres.init_limit;
        let ended = match script.kind {
            Kind::Sql(Compression::None) => {
                let psql = self.place(dir, self.psql(&script.path));
                self.kept(psql, script, limit).await
            }
            Kind::Sql(compression) => {
                let psql = self.place(dir, self.psql(Path::new("-")));
                self.streamed(psql, script, compression, limit).await
            }
            Kind::Program => {
                let program = self.place(dir, CommandLine::new(&script.path));
                match self.kept(program, script, limit).await {
                    // No `#!`: a shell reads it (execve(2), ENOEXEC).
                    Err(error) if is_no_program(&error) => {
                        self.kept(self.place(dir, read(script)), script, limit).await
                    }
                    ended => ended,
                }
            }
            Kind::Read => self.kept(self.place(dir, read(script)), script, limit).await,
        };
        let name = &script.name;
        let why = match ended {
            Ok((exit, _)) if exit.success() => return Ok(()),
            Ok((exit, said)) => format!("{name} ended with {exit}\n{said}"),
            Err(error) => match error.downcast_ref() {
                Some(RunError::Limit(_, limit)) => {
                    format!("{name} did not end within {limit:?} (postgres.init_limit) and was killed")
                }
                _ => format!("{name}: {error:#}"),
            },
        };
        let next =
            "the new cluster is not complete: the next start makes it anew and runs all scripts from the first one on";
        bail!("{} (postgres.init_scripts): {why}\n{next}", dir.display())
    }

    /// psql with the script `file`, in the application's database.
    fn psql(&self, file: &Path) -> CommandLine {
        let psql = PsqlBuilder::new().no_psqlrc().quiet().no_password().variable(("ON_ERROR_STOP", "1")).file(file);
        command(&self.installation, &psql)
    }

    /// `command` in the directory of the scripts, with their environment: PostgreSQL's own programs come first, and connect
    /// over the socket.
    fn place(&self, dir: &Path, command: CommandLine) -> CommandLine {
        let CommandLine { program, args, .. } = command;
        let path = format!("{}:{}", self.installation.bin.display(), self.settings.search_path);
        let command = CommandLine { program, args, ..self.surroundings.clone() };
        command.dir(dir).env("PATH", path).env("PGHOST", &self.home.socket_dir)
    }

    /// Run `command`, whose output goes to the log; how it ended, and the last of what it said.
    async fn kept(&self, command: CommandLine, script: &Script, limit: Duration) -> anyhow::Result<(Exit, String)> {
        let on_line = |line: &str| telemetry::child_line(SERVICE, Stream::Stderr, &shown(line, script));
        let finished = process::run_with(&command, limit, on_line).await?;
        Ok((finished.exit, in_lines(&finished.last, script)))
    }

    /// Run psql, and hand it the script on its standard input.
    async fn streamed(
        &self,
        psql: CommandLine,
        script: &Script,
        compression: Compression,
        limit: Duration,
    ) -> anyhow::Result<(Exit, String)> {
        let mut sql = compress::read(&script.path, compression)?;
        let (psql, mut stdin) = Streaming::writing(&psql)?;
        let hand_over = tokio::task::spawn_blocking(move || io::copy(&mut sql, &mut stdin).map(drop));
        let ended = psql.end(limit).await?;
        ended.stderr.iter().for_each(|line| telemetry::child_line(SERVICE, Stream::Stderr, &shown(line, script)));
        match hand_over.await? {
            // psql says why it takes no more.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error).context("the file is damaged"),
            _ => Ok((ended.exit, in_lines(&ended.stderr, script))),
        }
    }
}

/// Has `script` read by bash, or by sh where there is no bash.
fn read(script: &Script) -> CommandLine {
    let bash = Path::new("/bin/bash");
    let (shell, text) = match bash.is_file() {
        true => (bash, READ.to_owned()),
        false => (Path::new("/bin/sh"), READ.replace("-Eeo pipefail", "-e")),
    };
    CommandLine::new(shell).arg("-c").arg(text).arg(&script.path)
}

fn is_no_program(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(RunError::Spawn(_, error)) if error.raw_os_error() == Some(nix::libc::ENOEXEC))
}

/// A line of a script's, without passwords of statements, and with its name in front of the line's number.
fn shown(line: &str, script: &Script) -> String {
    let line = scrub::without_passwords(line);
    let stands = [format!("psql:{}:", script.path.display()), "psql:<stdin>:".to_owned()];
    let rest = stands.iter().find_map(|start| line.strip_prefix(start.as_str()));
    rest.map_or_else(|| line.to_string(), |rest| format!("{}:{rest}", script.name))
}

fn in_lines(lines: &[String], script: &Script) -> String {
    let last = lines.iter().skip(lines.len().saturating_sub(LINES_MAX));
    last.map(|line| format!("    {}", shown(line, script))).collect::<Vec<_>>().join("\n")
}

/// The scripts in `dir`, in the order in which they run. What is not for this is named in the log.
///
/// # Errors
/// `dir` cannot be read, or holds a script that cannot be run: a cluster without it would not be what it should be.
fn list(dir: &Path) -> anyhow::Result<Vec<Script>> {
    let read = || fs::read_dir(dir)?.collect::<io::Result<Vec<_>>>();
    let mut paths: Vec<PathBuf> =
        read().with_context(|| format!("read {}", dir.display()))?.iter().map(fs::DirEntry::path).collect();
    paths.sort();
    let mut scripts = Vec::new();
    for path in paths {
        let Some(name) = path.file_name().map(|name| name.to_string_lossy().into_owned()) else { continue };
        // Kubernetes keeps the files of a ConfigMap in directories with such names.
        if name.starts_with('.') {
            continue;
        }
        let meta = path.metadata().with_context(|| format!("look at {}", path.display()))?;
        let kind = match &name {
            _ if !meta.is_file() => None,
            name if name.ends_with(".sql") => Some(Kind::Sql(Compression::None)),
            name if name.ends_with(".sql.gz") => Some(Kind::Sql(Compression::Gzip)),
            name if name.ends_with(".sql.zst") => Some(Kind::Sql(Compression::Zstd)),
            name if name.ends_with(".sh") && meta.permissions().mode() & 0o111 != 0 => Some(Kind::Program),
            name if name.ends_with(".sh") => Some(Kind::Read),
            name if name.ends_with(".sql.xz") => {
                bail!(Failure::new(
                    Code::Config,
                    format!("{}: xz is not known here: compress it with gzip or zstd", path.display())
                ))
            }
            _ => None,
        };
        match kind {
            Some(kind) => scripts.push(Script { name, path, kind }),
            None => tracing::info!("{} is no script of a new cluster, and is not run", path.display()),
        }
    }
    Ok(scripts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_run_in_the_order_of_their_names_and_links_to_hidden_directories_count() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("..data")).unwrap();
        fs::create_dir_all(at("40.sql")).unwrap();
        for name in ["20-b.sql.gz", "10-a.sql", "30.sql.zst", "..data/05.sql", "notes.txt", "50.sh", "60.sh"] {
            fs::write(at(name), "").unwrap();
        }
        fs::set_permissions(at("60.sh"), fs::Permissions::from_mode(0o755)).unwrap();
        std::os::unix::fs::symlink("..data/05.sql", at("05.sql")).unwrap();
        let kinds: Vec<(String, Kind)> =
            list(dir.path()).unwrap().into_iter().map(|script| (script.name, script.kind)).collect();
        let expected = [
            ("05.sql", Kind::Sql(Compression::None)),
            ("10-a.sql", Kind::Sql(Compression::None)),
            ("20-b.sql.gz", Kind::Sql(Compression::Gzip)),
            ("30.sql.zst", Kind::Sql(Compression::Zstd)),
            ("50.sh", Kind::Read),
            ("60.sh", Kind::Program),
        ];
        assert_eq!(kinds, expected.map(|(name, kind)| (name.to_owned(), kind)));
        fs::write(at("70.sql.xz"), "").unwrap();
        assert!(list(dir.path()).unwrap_err().to_string().contains("compress it with gzip or zstd"));
    }

    #[test]
    fn a_line_has_the_name_of_its_script_and_no_password() {
        let script = Script { name: "1.sql".into(), path: "/d/1.sql".into(), kind: Kind::Read };
        assert_eq!(shown("psql:/d/1.sql:3: ERROR:  no", &script), "1.sql:3: ERROR:  no");
        assert_eq!(shown("psql:<stdin>:3: ERROR:  no", &script), "1.sql:3: ERROR:  no");
        assert_eq!(
            shown("LINE 1: CREATE ROLE x PASSWORD 'hush' oops", &script),
            "LINE 1: CREATE ROLE x PASSWORD '********' oops"
        );
    }
}
