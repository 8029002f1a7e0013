//! Decide whether the data directory may be used: it is absent, ours, or refused with an explanation.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use anyhow::Context;

use super::home::Home;
use crate::exit::{Code, Failure};
use crate::process::identity;

/// The major version that Tandem runs.
pub const MAJOR: &str = "16";
/// Marks the data directory of a throwaway cluster, whose data may be lost at any time.
pub const THROWAWAY_MARKER: &str = "tandem.throwaway";

/// A file that makes a server follow another one (PostgreSQL documentation, "Standby Server Operation").
const STANDBY_SIGNAL: &str = "standby.signal";

/// What was found at the data directory's path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataDirectory {
    /// Nothing, or an empty directory.
    Nothing,
    /// A PostgreSQL 16 cluster of the server's user.
    Cluster,
}

/// Look at the data directory of `home`.
///
/// # Errors
/// [`Failure`] with [`Code::CannotCreate`] for a directory that is foreign, unreadable, no cluster, or of another major
/// version.
pub fn inspect(home: &Home) -> anyhow::Result<DataDirectory> {
    let data = home.data.display();
    let refuse = |message: String| anyhow::Error::new(Failure::new(Code::CannotCreate, message));
    let entries = match fs::read_dir(&home.data) {
        Ok(entries) => entries.collect::<io::Result<Vec<_>>>().with_context(|| format!("read {data}"))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(DataDirectory::Nothing),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            return Err(refuse(format!(
                "{data} is a file, where the data directory belongs: move it away, or set state_dir to another place"
            )));
        }
        Err(error) => {
            let ways = "run Tandem as the directory's owner, or set state_dir to another place";
            let refused = identity::refused(&home.data, &error);
            let message = format!("cannot read the data directory {data}{refused}: {ways}");
            return Err(anyhow::Error::new(error).context(Failure::new(Code::CannotCreate, message)));
        }
    };
    if entries.is_empty() {
        return Ok(DataDirectory::Nothing);
    }
    let version = match fs::read_to_string(home.data.join("PG_VERSION")) {
        Ok(version) => version,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let what = "is not empty and holds no PostgreSQL cluster (it has no PG_VERSION)";
            return Err(refuse(format!("{data} {what}: move its content away, or set state_dir to another place")));
        }
        Err(error) => return Err(error).with_context(|| format!("read {data}/PG_VERSION")),
    };
    let version = version.trim();
    if version.is_empty() {
        let what = "has an empty PG_VERSION, as after a full disk: what else it lost is not known";
        return Err(refuse(format!(
            "{data} {what}. Restore a backup into an empty place, or look at a copy of it with {MAJOR} in that file"
        )));
    }
    if version != MAJOR {
        let ways = format!(
            "dump it with PostgreSQL {version}'s own pg_dumpall and load that into a new cluster, with state_dir set to another place"
        );
        return Err(refuse(format!("{data} belongs to PostgreSQL {version}, and Tandem runs {MAJOR}: {ways}")));
    }
    if home.data.join(THROWAWAY_MARKER).exists() {
        return Err(refuse(format!(
            "{data} was made for tests, without durability; it cannot be opened as a real cluster"
        )));
    }
    if home.data.join(STANDBY_SIGNAL).exists() {
        return Err(refuse(format!(
            "{data} was a replica: with {data}/{STANDBY_SIGNAL} the server follows another one and takes no writes. To go on \
             as a server of its own, make sure that the other one is gone for good, and remove that file"
        )));
    }
    let meta = home.data.metadata().with_context(|| format!("look at {data}"))?;
    let (owner, wanted) = (meta.uid(), home.server_uid());
    if owner != wanted {
        let ways = format!("give it to that user (chown -R {wanted} {data}), or set postgres.run_as to its owner");
        return Err(refuse(format!("{data} belongs to user id {owner}, but PostgreSQL would run as {wanted}: {ways}")));
    }
    // PostgreSQL refuses a data directory that others can read, as a restored copy often is.
    if meta.permissions().mode() & 0o027 != 0 {
        return Err(refuse(format!("{data} is open to other users, which PostgreSQL refuses: chmod 0700 {data}")));
    }
    Ok(DataDirectory::Cluster)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::code_of;

    fn refused(home: &Home) -> String {
        let error = inspect(home).unwrap_err();
        assert_eq!(code_of(&error), Code::CannotCreate);
        error.to_string()
    }

    #[test]
    fn only_an_empty_place_or_our_own_cluster_is_taken() {
        let temp = tempfile::tempdir().unwrap();
        let home = Home::at(temp.path(), None);
        assert_eq!(inspect(&home).unwrap(), DataDirectory::Nothing);
        fs::create_dir_all(&home.data).unwrap();
        fs::set_permissions(&home.data, fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(inspect(&home).unwrap(), DataDirectory::Nothing);

        fs::write(home.data.join("thesis.txt"), "years of work").unwrap();
        assert!(refused(&home).contains("holds no PostgreSQL cluster"));
        fs::write(home.data.join("PG_VERSION"), "15\n").unwrap();
        assert!(refused(&home).contains("pg_dumpall"));
        fs::write(home.data.join("PG_VERSION"), "").unwrap();
        assert!(refused(&home).contains("empty PG_VERSION"));
        fs::write(home.data.join("PG_VERSION"), "16\n").unwrap();
        assert_eq!(inspect(&home).unwrap(), DataDirectory::Cluster);

        fs::write(home.data.join(STANDBY_SIGNAL), "").unwrap();
        assert!(refused(&home).contains("takes no writes"));
        fs::remove_file(home.data.join(STANDBY_SIGNAL)).unwrap();

        fs::write(home.data.join(THROWAWAY_MARKER), "").unwrap();
        assert!(refused(&home).contains("made for tests"));
        fs::remove_file(home.data.join(THROWAWAY_MARKER)).unwrap();
        fs::set_permissions(&home.data, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(refused(&home).contains("chmod 0700"));
        if identity::is_root() {
            fs::set_permissions(&home.data, fs::Permissions::from_mode(0o700)).unwrap();
            std::os::unix::fs::chown(&home.data, Some(12_345), None).unwrap();
            assert!(refused(&home).contains("belongs to user id 12345"));
        } else {
            fs::set_permissions(&home.data, fs::Permissions::from_mode(0o000)).unwrap();
            assert!(refused(&home).contains("cannot read"));
            fs::set_permissions(&home.data, fs::Permissions::from_mode(0o700)).unwrap();
        }
    }
}
