//! Paths and owners of the state directory, the cluster, the run directory and the socket directory.
//!
//! Resolving looks and touches nothing, so that `tandem url` and `tandem psql` find what `tandem up` made;
//! [`Home::prepare`] makes the directories. Must not know what is in a cluster: that is `data` and `cluster`.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use sha2::{Digest, Sha256};

use super::{names, secret, tls};
use crate::config::Settings;
use crate::durable::{open_itself, sync_parent};
use crate::exit::{Code, Failure};
use crate::install::{self, hexadecimal};
use crate::plan::Identity;
use crate::process::identity;

/// Longest path of a unix socket, in bytes without the closing NUL (unix(7), sun_path).
const SOCKET_PATH_MAX: usize = 107;
/// The longest name PostgreSQL puts into its socket directory.
const SOCKET_NAME_LONGEST: &str = ".s.PGSQL.65535.lock";
/// Tandem's own socket.
const CONTROL_NAME: &str = "control.sock";
/// The longest name in the directory of the sockets on which other servers' workers speak: a slot, and a number.
const NOTIFY_NAME_LONGEST: &str = "worker-4294967295.4294967295";
/// Where a short socket directory goes. Not TMPDIR: that differs between a login and a service, and both must agree.
const SHORT_ROOT: &str = "/tmp";
/// Where root keeps state that the server's user could not reach beside the configuration.
const ROOT_STATE: &str = "/var/lib/tandem";

/// The directories of one deployment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Home {
    /// Tandem's state directory. The other directories lie in it, except a socket directory whose path would be too
    /// long.
    pub state: PathBuf,
    /// The data directory.
    pub data: PathBuf,
    /// Password file, launcher, sockets.
    pub run: PathBuf,
    /// Where the server's unix socket is; only its user and root may enter.
    pub socket_dir: PathBuf,
    /// Tandem's control socket; only its user and root may connect.
    pub control: PathBuf,
    /// Where workers of another server speak of themselves; made when there is one.
    pub notify: PathBuf,
    /// The user the server runs as, when that is not Tandem's own.
    pub server: Option<Identity>,
}

impl Home {
    /// Find the home that `settings` describe.
    ///
    /// # Errors
    /// [`Failure`] when there is no user to run PostgreSQL as, or that user cannot reach the state directory.
    pub fn resolve(settings: &Settings) -> anyhow::Result<Self> {
        let server = server_identity(settings.postgres.run_as.as_deref())?;
        let state = state_dir(settings, server.as_ref())?;
        Ok(Self::at(&state, server))
    }

    /// The home in the state directory `state`.
    pub fn at(state: &Path, server: Option<Identity>) -> Self {
        // Canonical, because the kernel shows a process's working directory so, and `stale` compares.
        let state = real_path(state);
        let data = state.join("postgres/16");
        let run = state.join("run");
        let uid = server.as_ref().map_or_else(own_uid, |server| server.uid);
        let socket_dir = short_enough(run.join("postgres"), SOCKET_NAME_LONGEST, uid);
        // The path follows from the user that Tandem runs as, so that other users find the socket of a running Tandem.
        let owner = run.metadata().map_or_else(|_| own_uid(), |meta| meta.uid());
        let control = short_enough(run.clone(), CONTROL_NAME, owner).join(CONTROL_NAME);
        let notify = short_enough(run.join("notify"), NOTIFY_NAME_LONGEST, owner);
        Self { data: data.canonicalize().unwrap_or(data), run, socket_dir, control, notify, server, state }
    }

    /// Make the directories that are missing, and check those that must be private.
    ///
    /// # Errors
    /// [`Failure`] with [`Code::CannotCreate`] naming the directory.
    pub fn prepare(&self) -> anyhow::Result<()> {
        for dir in [&self.state, &self.run] {
            // Searchable by all: the server's user and the workers' user pass through; what is secret is 0600 or 0700.
            make_dir(dir, 0o755, None).with_context(|| {
                let elsewhere = "state_dir (TANDEM_STATE_DIR) says where else the state can go";
                Failure::new(Code::CannotCreate, elsewhere.to_owned())
            })?;
        }
        install::keep_out_of_git(&self.state);
        if let Some(parent) = self.data.parent() {
            make_dir(parent, 0o700, self.server.as_ref())?;
        }
        make_dir(&self.socket_dir, 0o700, self.server.as_ref())?;
        self.close_again()?;
        if self.socket_dir.starts_with(&self.run) {
            self.check_owner(&self.socket_dir)?;
        } else {
            check_private(&self.socket_dir, self.server_uid())?;
        }
        if let Some(dir) = self.control.parent().filter(|dir| *dir != self.run) {
            make_dir(dir, 0o700, None)?;
            check_private(dir, own_uid())?;
        }
        names::write(&self.run)?;
        // Up to the data directory, and not into it: whose that is, `data` says in words of its own.
        let (Some(server), Some(way)) = (&self.server, self.data.parent()) else { return Ok(()) };
        match identity::barrier(way, server) {
            Some(barrier) => Err(unreachable_state(&self.state, &barrier, server).into()),
            None => Ok(()),
        }
    }

    /// Remove rights that others have on private files and directories: Kubernetes opens a volume to its `fsGroup` each
    /// time it mounts it. Not in /tmp, where a directory that was open may hold what others put there.
    ///
    /// # Errors
    /// The mode of one of them cannot be changed.
    pub fn close_again(&self) -> anyhow::Result<()> {
        let (own, server) = (own_uid(), self.server_uid());
        let mut closed = Vec::new();
        let mut close = |path: &Path, owner: u32, allowed: u32, mode: u32| -> anyhow::Result<()> {
            if let Some(was) = close(path, owner, allowed, mode).with_context(|| cannot_close(path))? {
                closed.push(format!("{} (mode {was:04o}, now {mode:04o})", path.display()));
            }
            Ok(())
        };
        close(&self.run, own, 0o755, 0o755)?;
        close(&secret::path(self), own, 0o600, 0o600)?;
        close(&self.state.join("backups"), own, 0o750, 0o700)?;
        // The key that signs backups: `backup::signature`.
        close(&self.state.join("backup.key"), own, 0o600, 0o600)?;
        close(&tls::authority_key_file(self), own, 0o600, 0o600)?;
        // PostgreSQL refuses a key that a group may read.
        close(&tls::server_file(self), server, 0o600, 0o600)?;
        if let Some(parent) = self.data.parent() {
            close(parent, server, 0o700, 0o700)?;
        }
        // PostgreSQL lets its owner open it to a group for reading.
        close(&self.data, server, 0o750, 0o700)?;
        if self.socket_dir.starts_with(&self.run) {
            close(&self.socket_dir, server, 0o700, 0o700)?;
        }
        if !closed.is_empty() {
            tracing::info!("open to other users, and closed again: {}", closed.join(", "));
        }
        Ok(())
    }

    /// Refuse a part of the state directory that belongs to another user, because the server could not use it.
    fn check_owner(&self, dir: &Path) -> anyhow::Result<()> {
        let meta = dir.symlink_metadata().with_context(|| format!("look at {}", dir.display()))?;
        if !meta.is_dir() {
            let text = format!("{} must be a directory, and is not: remove it", dir.display());
            bail!(Failure::new(Code::CannotCreate, text));
        }
        let (owner, wanted) = (meta.uid(), self.server_uid());
        if owner == wanted {
            return Ok(());
        }
        let (dir, state) = (dir.display(), self.state.display());
        let ways = match &self.server {
            Some(_) => "set postgres.run_as to its owner".to_owned(),
            None => format!("run Tandem as user id {owner}"),
        };
        let message = format!("{dir} belongs to user id {owner}, but PostgreSQL would run as {wanted}");
        let give = format!("give the state directory to that user (chown -R {wanted} {state})");
        bail!(Failure::new(Code::CannotCreate, format!("{message}: {give}, or {ways}")))
    }

    /// The uid the server runs with.
    pub fn server_uid(&self) -> u32 {
        self.server.as_ref().map_or_else(own_uid, |server| server.uid)
    }

    /// The path of the server's unix socket for `port`.
    pub fn socket(&self, port: u16) -> PathBuf {
        self.socket_dir.join(format!(".s.PGSQL.{port}"))
    }

    /// Names of the operating-system users that may be the database superuser: Tandem's own and the server's.
    ///
    /// # Errors
    /// When Tandem's uid has no name, without which neither initdb nor peer authentication works.
    pub fn trusted_users(&self) -> anyhow::Result<Vec<String>> {
        let mut names = vec![names::own()?];
        names.extend(self.server.as_ref().map(|server| server.name.clone()));
        names.dedup();
        Ok(names)
    }
}

fn own_uid() -> u32 {
    nix::unistd::Uid::effective().as_raw()
}

/// The user PostgreSQL runs as: it refuses to run as root.
fn server_identity(run_as: Option<&str>) -> anyhow::Result<Option<Identity>> {
    if !identity::is_root() {
        return Ok(None);
    }
    let found = match run_as {
        Some(name) => identity::lookup(name),
        None => identity::lookup("postgres").or_else(|| identity::lookup("nobody")),
    };
    match found {
        Some(server) if server.uid == 0 => {
            bail!(Failure::new(Code::Config, "postgres.run_as: PostgreSQL refuses to run as root; name another user"))
        }
        Some(server) => Ok(Some(server)),
        None => {
            let wanted = run_as.map_or_else(|| "`postgres` or `nobody`".to_owned(), |name| format!("`{name}`"));
            let message = format!("PostgreSQL refuses to run as root, and this machine has no user {wanted}");
            bail!(Failure::new(
                Code::Config,
                format!("{message}; make one (useradd -r postgres) or set postgres.run_as")
            ))
        }
    }
}

fn state_dir(settings: &Settings, server: Option<&Identity>) -> anyhow::Result<PathBuf> {
    let wanted = settings.state_dir.clone().unwrap_or_else(|| settings.directory.join(".tandem"));
    let Some((server, barrier)) =
        server.and_then(|server| Some((server, identity::barrier(&real_path(&wanted), server)?)))
    else {
        return Ok(wanted);
    };
    if settings.state_dir.is_some() {
        bail!(unreachable_state(&wanted, &barrier, server));
    }
    let directory = real_path(&settings.directory);
    let digest = Sha256::digest(directory.as_os_str().as_encoded_bytes());
    let moved = Path::new(ROOT_STATE).join(format!("{}-{}", settings.name, hexadecimal(&digest[..4])));
    tracing::info!(
        "user {} may not enter {}, so the state is kept in {}",
        server.name,
        barrier.display(),
        moved.display()
    );
    Ok(moved)
}

fn unreachable_state(state: &Path, barrier: &Path, server: &Identity) -> Failure {
    let (state, barrier, name) = (state.display(), barrier.display(), &server.name);
    let ways = format!(
        "let it pass (chmod o+x {barrier}), set state_dir to a place it can reach, or set postgres.run_as to a user who can"
    );
    Failure::new(
        Code::CannotCreate,
        format!(
            "PostgreSQL runs as user {name}, who may not enter {barrier} on the way to the state directory {state}: {ways}"
        ),
    )
}

/// `path` with the part of it that exists made canonical.
fn real_path(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    match (path.canonicalize(), path.parent(), path.file_name()) {
        (Ok(real), ..) => real,
        (Err(_), Some(parent), Some(name)) => real_path(parent).join(name),
        _ => path,
    }
}

/// `wanted`, or a short directory with a name of its own when the path of a socket called `name` would not fit, or when
/// libpq would take PostgreSQL's for several: it parts hosts at commas, and nothing keeps it from that.
fn short_enough(wanted: PathBuf, name: &str, uid: u32) -> PathBuf {
    let comma = name == SOCKET_NAME_LONGEST && wanted.as_os_str().as_encoded_bytes().contains(&b',');
    if !comma && wanted.as_os_str().len() + 1 + name.len() <= SOCKET_PATH_MAX {
        return wanted;
    }
    let digest = Sha256::digest(wanted.as_os_str().as_encoded_bytes());
    Path::new(SHORT_ROOT).join(format!("tandem-{uid}-{}", hexadecimal(&digest[..6])))
}

/// Make `dir` with `mode` and `owner` unless it is there; what is there is left as it is. What was made is there after
/// a power cut too: whatever is flushed inside it would be lost with its name.
pub fn make_dir(dir: &Path, mode: u32, owner: Option<&Identity>) -> anyhow::Result<()> {
    let cannot = |error: io::Error| {
        let why = format!("cannot create directory {}{}", dir.display(), identity::refused(dir, &error));
        anyhow::Error::new(error).context(Failure::new(Code::CannotCreate, why))
    };
    if let Some(parent) = dir.parent().filter(|parent| !parent.exists()) {
        make_dir(parent, 0o755, None)?;
    }
    match DirBuilder::new().mode(0o700).create(dir) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => return Ok(()),
        Err(error) => return Err(cannot(error)),
    }
    // Only what was made here gets another owner: an existing name could be a link to elsewhere, and so could this one
    // be by now, where others may write beside it.
    let made = open_itself(dir, OFlag::O_DIRECTORY).map_err(cannot)?;
    if let Some(owner) = owner {
        fchown(&made, Some(owner.uid), Some(owner.gid)).with_context(|| {
            let what = format!("cannot give directory {} to user {}", dir.display(), owner.name);
            let ways =
                "root needs CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_SETUID and CAP_SETGID; or run Tandem as an ordinary user";
            Failure::new(Code::CannotCreate, format!("{what}: {ways}"))
        })?;
    }
    made.set_permissions(fs::Permissions::from_mode(mode)).map_err(cannot)?;
    match sync_parent(dir) {
        // A directory in which we may write and that we may not read cannot be opened to be flushed.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        flushed => flushed.map_err(cannot),
    }
}

/// Set `path` to `mode` if it is `owner`'s and gives others more than `allowed`; the mode that it had then. What is
/// missing, a link or another user's is left as it is; the caller checks it.
fn close(path: &Path, owner: u32, allowed: u32, mode: u32) -> io::Result<Option<u32>> {
    let is_open = |meta: &fs::Metadata| meta.uid() == owner && meta.mode() & 0o7777 & !allowed != 0;
    let Ok(meta) = path.symlink_metadata() else { return Ok(None) };
    if meta.is_symlink() || !is_open(&meta) {
        return Ok(None);
    }
    // Another user may own the directory that it is in, and put a link in its place meanwhile.
    let file = match open_itself(path, OFlag::empty()) {
        Err(error) if [Errno::ELOOP, Errno::ENOENT].map(|it| Some(it as i32)).contains(&error.raw_os_error()) => {
            return Ok(None);
        }
        opened => opened?,
    };
    let meta = file.metadata()?;
    if !is_open(&meta) {
        return Ok(None);
    }
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    Ok(Some(meta.mode() & 0o7777))
}

fn cannot_close(path: &Path) -> Failure {
    let text = format!("{} is open to other users, and its mode cannot be changed", path.display());
    Failure::new(Code::CannotCreate, text)
}

/// Refuse a directory in /tmp that another user could have made or changed.
fn check_private(dir: &Path, uid: u32) -> anyhow::Result<()> {
    let meta = dir.symlink_metadata().with_context(|| format!("look at {}", dir.display()))?;
    if meta.is_dir() && meta.uid() == uid && meta.mode() & 0o077 == 0 {
        return Ok(());
    }
    let message = format!("{} must be a directory of user id {uid} with mode 0700, and is not", dir.display());
    bail!(Failure::new(Code::CannotCreate, format!("{message}; remove it, or set state_dir to a shorter path")))
}

#[cfg(test)]
mod tests;
