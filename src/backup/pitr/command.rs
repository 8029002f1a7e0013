//! The command lines that PostgreSQL runs through a shell, and the program in them.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::archive::Archive;
use crate::durable;
use crate::plan::Identity;
use crate::process::identity;

/// What a copy of the program is called in the run directory.
const COPY: &str = "tandem-wal";

/// `archive_command`, for `program` and `archive`; where a destination acknowledges, with the directory `remote` that tells of
/// it.
///
/// # Errors
/// A path is not UTF-8, which the configuration file's reader would not take.
pub fn archive_command(program: &Path, archive: &Archive, remote: Option<&Path>) -> anyhow::Result<String> {
    let remote = remote.map(|dir| Ok::<_, anyhow::Error>(format!(" --remote {}", quoted(dir)?))).transpose()?;
    let remote = remote.unwrap_or_default();
    Ok(format!("{} wal push --archive {}{remote} \"%p\"", quoted(program)?, quoted(archive.dir())?))
}

/// `restore_command`, for `program` and `archive`.
///
/// # Errors
/// As [`archive_command`].
pub fn restore_command(program: &Path, archive: &Archive) -> anyhow::Result<String> {
    Ok(format!("{} wal fetch --archive {} \"%f\" \"%p\"", quoted(program)?, quoted(archive.dir())?))
}

/// `path` as one word of the shell's, in which PostgreSQL replaces nothing.
fn quoted(path: &Path) -> anyhow::Result<String> {
    let Some(text) = path.to_str() else {
        bail!("{} is not UTF-8, which a command of PostgreSQL must be", path.display())
    };
    Ok(shlex::try_quote(text).with_context(|| format!("quote {text:?}"))?.replace('%', "%%"))
}

/// This program, where the user that the server runs as can start it: itself, else a link or a copy of it in `run`.
///
/// # Errors
/// It cannot be found or copied.
pub fn program(run: &Path, server: Option<&Identity>) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("find tandem's own program")?;
    let Some(server) = server else { return Ok(own) };
    if identity::barrier(&own, server).is_none() && may_start(&own, server) {
        return Ok(own);
    }
    let copy = run.join(COPY);
    match place(&own, &copy) {
        // What is there is of an earlier version, and archives as well.
        Err(error) if is_full(&error) && copy.exists() => {
            tracing::warn!("{} stays as it was: {error}", copy.display());
        }
        placed => placed.with_context(|| format!("put a copy of {} at {}", own.display(), copy.display()))?,
    }
    Ok(copy)
}

fn may_start(program: &Path, user: &Identity) -> bool {
    let Ok(meta) = program.metadata() else { return false };
    let mode = meta.permissions().mode();
    let shift = if meta.uid() == user.uid {
        6
    } else if meta.gid() == user.gid {
        3
    } else {
        0
    };
    mode >> shift & 0o1 != 0
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn has_same_content(one: &Path, other: &Path) -> io::Result<bool> {
    let [mut one, mut other] = [BufReader::new(File::open(one)?), BufReader::new(File::open(other)?)];
    loop {
        let (left, right) = (one.fill_buf()?, other.fill_buf()?);
        let length = left.len().min(right.len());
        if left[..length] != right[..length] || (length == 0 && left.len() != right.len()) {
            return Ok(false);
        }
        if length == 0 {
            return Ok(true);
        }
        one.consume(length);
        other.consume(length);
    }
}

/// Have what is at `from` at `to` too, for everybody to start.
fn place(from: &Path, to: &Path) -> io::Result<()> {
    let (wanted, there) = (from.metadata()?, to.metadata().ok());
    let same = |there: &fs::Metadata| (there.dev(), there.ino()) == (wanted.dev(), wanted.ino());
    if there.as_ref().is_some_and(same) && wanted.permissions().mode() & 0o005 == 0o005 {
        return Ok(());
    }
    let mut staged = to.as_os_str().to_owned();
    staged.push(".new");
    let staged = PathBuf::from(staged);
    let _ = fs::remove_file(&staged);
    // A link shares the program's mode, which may be why it cannot be started.
    if wanted.permissions().mode() & 0o005 != 0o005 || fs::hard_link(from, &staged).is_err() {
        // Where links do not reach, a copy is not made anew at every start: the disk may be full by then.
        let is_there =
            |there: &fs::Metadata| there.permissions().mode() & 0o005 == 0o005 && there.len() == wanted.len();
        if there.as_ref().is_some_and(is_there) && has_same_content(from, to)? {
            return Ok(());
        }
        let copied = fs::copy(from, &staged);
        copied.inspect_err(|_| {
            let _ = fs::remove_file(&staged);
        })?;
        fs::set_permissions(&staged, fs::Permissions::from_mode(0o755))?;
    }
    // A server of an earlier run may be starting the old one at this moment.
    durable::rename(&staged, to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_one_word_to_the_shell_and_hold_nothing_for_postgresql() {
        let archive = Archive::new("/srv/our app/100% it's/pitr");
        let command = archive_command(Path::new("/usr/bin/tandem"), &archive, None).unwrap();
        assert_eq!(command, r#"/usr/bin/tandem wal push --archive "/srv/our app/100%% it's/pitr" "%p""#);
        let remote = Some(Path::new("/state/away"));
        let command = archive_command(Path::new("/t"), &Archive::new("/a"), remote).unwrap();
        assert_eq!(command, r#"/t wal push --archive /a --remote /state/away "%p""#);
        let command = restore_command(Path::new("/opt/a b/tandem"), &Archive::new("/a")).unwrap();
        assert_eq!(command, r#"'/opt/a b/tandem' wal fetch --archive /a "%f" "%p""#);
    }

    #[test]
    fn a_program_behind_a_closed_door_is_copied_to_where_the_server_is() {
        let Some(server) = identity::lookup("nobody").filter(|_| identity::is_root()) else {
            return crate::skip::skip("only root can be somebody else");
        };
        let temp = tempfile::tempdir().unwrap();
        let (from, to) = (temp.path().join("program"), temp.path().join("copy"));
        fs::write(&from, "one").unwrap();
        fs::set_permissions(&from, fs::Permissions::from_mode(0o700)).unwrap();
        assert!(!may_start(&from, &server));
        place(&from, &to).unwrap();
        assert!(may_start(&to, &server));
        let copied = to.metadata().unwrap().ino();
        place(&from, &to).unwrap();
        assert_eq!(to.metadata().unwrap().ino(), copied, "the same content is not copied again");
        fs::set_permissions(&from, fs::Permissions::from_mode(0o755)).unwrap();
        place(&from, &to).unwrap();
        assert_eq!(from.metadata().unwrap().ino(), to.metadata().unwrap().ino(), "a link where that is enough");
        fs::write(&from, "two").unwrap();
        place(&from, &to).unwrap();
        assert_eq!(fs::read_to_string(&to).unwrap(), "two");
    }
}
