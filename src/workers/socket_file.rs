//! The file of a unix socket that the application is served on: made with its mode and owner before anybody can connect, and
//! removed at the end. What a killed server left there is replaced; a socket that is in use and anything else is left alone.
//!
//! Blocks: before the event loop turns, and at the end of all.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use nix::unistd::Uid;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::config::SocketFiles;
use crate::durable::Lock;
use crate::exit::{Code, Failure};
use crate::process::{identity, ports};

/// Ends a message about a path that something else has.
const ELSEWHERE: &str = "or set workers.listen to another path";

/// The file of a socket. Dropping it removes the file.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode of the file that was made. Another file in its place is left alone.
    file: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.path.symlink_metadata().is_ok_and(|meta| (meta.dev(), meta.ino()) == self.file) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The ids that `workers.socket_owner` names; `None`: they stay as they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Owner {
    uid: Option<u32>,
    gid: Option<u32>,
}

/// Listen on a unix socket at `path`.
///
/// # Errors
/// A [`Failure`] that says what to do: with [`Code::Temporary`] when another server listens there, else with
/// [`Code::Config`].
pub fn listen(path: &Path, backlog: u32, files: &SocketFiles) -> anyhow::Result<(Socket, SocketFile)> {
    let owner = owner(files.owner.as_deref())?;
    // Two servers that find the same stale socket must not remove each other's. Where the directory cannot be locked, or
    // somebody holds it, that is left to chance.
    let directory = path.parent().unwrap_or(Path::new("/"));
    let _lock = File::open(directory).ok().and_then(|directory| Lock::on(directory).ok());
    clear(path, owner)?;
    let bound = || -> io::Result<(Socket, SocketFile)> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.bind(&SockAddr::unix(path)?)?;
        let meta = path.symlink_metadata()?;
        let file = SocketFile { path: path.to_owned(), file: (meta.dev(), meta.ino()) };
        // connect(2) is refused until listen(2), whatever the mode; so no client comes in between these lines (unix(7)).
        fs::set_permissions(path, Permissions::from_mode(files.mode))?;
        if owner != Owner::default() {
            chown(path, owner.uid, owner.gid).map_err(|error| not_given(error, files))?;
        }
        socket.set_nonblocking(true)?;
        socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
        Ok((socket, file))
    };
    bound().map_err(|error| explain(&error, path).into())
}

fn not_given(error: io::Error, files: &SocketFiles) -> io::Error {
    let owner = files.owner.as_deref().unwrap_or_default();
    let help = "only root gives files away; another user may name a group that it is in, as \":group\"";
    io::Error::new(error.kind(), format!("workers.socket_owner = {owner:?}: {error}; {help}"))
}

/// Remove what a killed server left at `path`.
fn clear(path: &Path, owner: Owner) -> Result<(), Failure> {
    let shown = path.display();
    let meta = match path.symlink_metadata() {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(explain(&error, path)),
    };
    if !meta.file_type().is_socket() {
        let kind = if meta.is_dir() { "a directory" } else { "no socket" };
        let text = format!("workers.listen: {shown} is there already and is {kind}: remove it, {ELSEWHERE}");
        return Err(Failure::new(Code::Config, text));
    }
    match ports::unix_listener(path).map(|pid| pid.map(ports::program)) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
        Err(error) => {
            let refused = identity::refused(path, &error);
            let text = format!("workers.listen: cannot tell who has the socket {shown}{refused}: {error}");
            return Err(Failure::new(Code::Config, text));
        }
        Ok(by) => {
            let by = by.unwrap_or_else(|| "another program".to_owned());
            let text = format!("workers.listen: {by} listens on {shown}: stop that, {ELSEWHERE}");
            return Err(Failure::new(Code::Temporary, text));
        }
    }
    let ours = [Some(Uid::effective().as_raw()), Some(0), owner.uid];
    if !ours.contains(&Some(meta.uid())) {
        let user = identity::name_of(meta.uid());
        let text = format!(
            "workers.listen: the socket {shown} belongs to {user}, though nobody listens there: remove it, {ELSEWHERE}"
        );
        return Err(Failure::new(Code::Config, text));
    }
    fs::remove_file(path).map_err(|error| {
        let refused = identity::refused(path.parent().unwrap_or(path), &error);
        let text =
            format!("workers.listen: cannot remove the socket {shown}, which a killed server left{refused}: {error}");
        Failure::new(Code::Config, text)
    })
}

/// The ids of `user`, `user:group` or `:group`, by name or number.
fn owner(text: Option<&str>) -> Result<Owner, Failure> {
    let Some(text) = text else { return Ok(Owner::default()) };
    let (user, group) = text.split_once(':').unwrap_or((text, ""));
    let unknown = |kind: &str, name: &str| {
        let text = format!("workers.socket_owner: there is no {kind} `{name}` on this machine");
        Failure::new(Code::Config, text)
    };
    let find = |kind: &str, name: &str, look: &dyn Fn(&str) -> Option<u32>| match name {
        "" => Ok(None),
        name => name.parse().ok().or_else(|| look(name)).map(Some).ok_or_else(|| unknown(kind, name)),
    };
    Ok(Owner {
        uid: find("user", user, &|name| identity::lookup(name).map(|user| user.uid))?,
        gid: find("group", group, &identity::group)?,
    })
}

/// The error of a socket that could not be made, with what to do about it.
fn explain(error: &io::Error, path: &Path) -> Failure {
    let (shown, dir) = (path.display(), path.parent().unwrap_or(Path::new("/")).display());
    let why = match error.kind() {
        io::ErrorKind::NotFound => {
            format!("the directory {dir} is not there: make it (under systemd RuntimeDirectory= does)")
        }
        io::ErrorKind::PermissionDenied if error.get_ref().is_none() => {
            let refused = identity::refused(path.parent().unwrap_or(path), error);
            format!("it may not be made there{refused}")
        }
        io::ErrorKind::AddrInUse => "another server has just begun to listen there".to_owned(),
        io::ErrorKind::InvalidInput => "the path is too long for a unix socket".to_owned(),
        _ => error.to_string(),
    };
    let code = if error.kind() == io::ErrorKind::AddrInUse { Code::Temporary } else { Code::Config };
    Failure::new(code, format!("workers.listen: unix:{shown}: {why}"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;
    use crate::exit::code_of;

    const FILES: SocketFiles = SocketFiles { mode: 0o660, owner: None };

    #[test]
    fn the_file_has_its_mode_and_goes_with_its_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.sock");
        // What SIGKILL leaves.
        drop(UnixListener::bind(&path).unwrap());
        let (socket, file) = listen(&path, 8, &FILES).unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o7777, 0o660);
        UnixStream::connect(&path).unwrap();
        drop((socket, file));
        assert!(!path.exists());
    }

    #[test]
    fn what_is_in_its_place_is_left_alone_and_named() {
        let dir = tempfile::tempdir().unwrap();
        let refused = |path: &Path, words: &[&str]| {
            let error = listen(path, 8, &FILES).unwrap_err();
            assert!(words.iter().all(|word| error.to_string().contains(word)), "{error}");
            code_of(&error)
        };
        let path = dir.path().join("live.sock");
        let _live = UnixListener::bind(&path).unwrap();
        let pid = format!("(pid {})", std::process::id());
        assert_eq!(refused(&path, &[&pid, "stop that"]), Code::Temporary);
        let file = dir.path().join("file");
        fs::write(&file, "kept").unwrap();
        assert_eq!(refused(&file, &["no socket", "remove it"]), Code::Config);
        assert_eq!(refused(dir.path(), &["a directory"]), Code::Config);
        assert_eq!(refused(&dir.path().join("none/app.sock"), &["RuntimeDirectory="]), Code::Config);
        assert_eq!(fs::read_to_string(file).unwrap(), "kept");
    }

    #[test]
    fn owners_are_users_and_groups_by_name_or_number() {
        assert_eq!(owner(Some("root")).unwrap(), Owner { uid: Some(0), gid: None });
        assert_eq!(owner(Some("7:root")).unwrap(), Owner { uid: Some(7), gid: Some(0) });
        assert_eq!(owner(Some(":8")).unwrap(), Owner { uid: None, gid: Some(8) });
        for (text, word) in [("nosuchuser", "no user `nosuchuser`"), (":nosuchgroup", "no group `nosuchgroup`")] {
            assert!(owner(Some(text)).unwrap_err().to_string().contains(word));
        }
    }
}
