//! Copies of files somewhere else: a directory, or a bucket of S3, Google Cloud Storage or Azure.
//!
//! ```text
//! put: local file ─> parts (a thread reads, seals, digests) ─> cloud, or durable file in a directory ─> looked at again
//! get: cloud, or file in a directory ─> arriving (a thread opens the seal, digests, writes) ─> local file
//! ```
//!
//! What stands under a name is whole: an upload that broke off leaves the name as it was. Three parts are in memory at
//! once at most: 15 MB, and more only for a file past 49 GB, whose parts must be larger. Takes plain parameters and must
//! not read the configuration, and no message of it holds a secret.

mod arriving;
mod client;
mod cloud;
mod destination;
mod directory;
mod keys;
mod name;
mod parts;
mod seal;
mod small;
mod trouble;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use cloud::Cloud;
pub use destination::Destination;
use destination::Place;
use directory::Directory;
pub use name::is_unfinished;
use parts::Outgoing;
use seal::Identities;
pub use seal::Recipients;
pub use seal::SUFFIX;
pub use small::{Small, Version};
pub use trouble::{Kind, StoreError};

/// Hears how many bytes are safe on the other side (or, in a download, on this one), and of how many.
pub type Progress<'a> = &'a (dyn Fn(u64, u64) + Send + Sync);

/// How long a bucket is waited for. A directory is never waited for.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    pub connect_max: Duration,
    /// For one request, of which the largest carries one part: five minutes for 5 MB is a line of 17 kB/s.
    pub request_max: Duration,
    /// For one request with all its retries, as long as the last of them begins in it.
    pub retry_max: Duration,
    pub backoff_first: Duration,
    pub backoff_max: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect_max: Duration::from_secs(10),
            request_max: Duration::from_secs(5 * 60),
            retry_max: Duration::from_secs(3 * 60),
            backoff_first: Duration::from_millis(200),
            backoff_max: Duration::from_secs(15),
        }
    }
}

/// A file in a place for copies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredFile {
    pub name: String,
    pub size: u64,
    pub modified: SystemTime,
}

/// What was put, as it was sent; the other side has said the same size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    pub name: String,
    pub size: u64,
    /// Lower-case hexadecimal.
    pub sha256: String,
}

/// Which files are listed.
#[derive(Clone, Copy)]
enum Scope<'a> {
    All,
    /// Those that lie in no directory.
    Top,
    /// Those in this directory and below it.
    Under(&'a str),
}

/// A place for copies, ready to be used. `Debug` shows where it is and no secret.
pub struct Store {
    shown: String,
    medium: Medium,
    recipients: Option<Recipients>,
    identity: Option<PathBuf>,
}

enum Medium {
    Directory(Directory),
    Cloud(Cloud),
}

impl Store {
    /// Make ready what talks to `destination`. Nothing is asked of it yet.
    ///
    /// # Errors
    /// [`Kind::Address`] for keys or certificates that cannot be read.
    pub fn open(destination: &Destination, patience: Patience) -> Result<Self, StoreError> {
        let medium = match destination.place() {
            Place::Directory(path) => Medium::Directory(Directory::new(path.clone())),
            Place::Bucket(bucket) => Medium::Cloud(Cloud::new(bucket, client::build(bucket, patience)?)),
        };
        Ok(Self { shown: destination.to_string(), medium, recipients: None, identity: None })
    }

    /// The same store, which seals what is put for `recipients`.
    pub fn sealed_for(self, recipients: Recipients) -> Self {
        Self { recipients: Some(recipients), ..self }
    }

    /// The same store, which opens sealed copies with the keys in the file `identity`.
    pub fn opened_with(self, identity: impl Into<PathBuf>) -> Self {
        Self { identity: Some(identity.into()), ..self }
    }

    /// Copy the file `local` to `name`, in place of what was there; a sealed copy gets a name that ends in `.age`. Its
    /// size is asked for afterwards, and that this very copy stands under the name.
    ///
    /// # Errors
    /// By [`Kind`]; what stood under the name is then still there, or nothing.
    pub async fn put(&self, local: &Path, name: &str, progress: Progress<'_>) -> Result<Sent, StoreError> {
        self.put_behind(Vec::new(), local, name, progress).await
    }

    /// As [`Store::put`], with `head` before the file's first byte.
    ///
    /// # Errors
    /// As [`Store::put`].
    pub async fn put_behind(
        &self,
        head: Vec<u8>,
        local: &Path,
        name: &str,
        progress: Progress<'_>,
    ) -> Result<Sent, StoreError> {
        let outgoing = Outgoing { path: local, head };
        let seal = self.recipients.clone();
        let name = match &seal {
            Some(_) if !name.ends_with(SUFFIX) => format!("{name}{SUFFIX}"),
            _ => name.to_owned(),
        };
        name::check(&name)?;
        match &self.medium {
            Medium::Directory(directory) => directory.put(outgoing, &name, seal, progress).await,
            Medium::Cloud(cloud) => cloud.put(outgoing, &name, seal, progress).await,
        }
    }

    /// Copy what is under `name` to the file `local`, in place of what was there. The size is checked, and the SHA-256
    /// where one was kept; what is sealed is opened, and its seal checked.
    ///
    /// # Errors
    /// By [`Kind`]; `local` is then as it was.
    pub async fn get(&self, name: &str, local: &Path, progress: Progress<'_>) -> Result<(), StoreError> {
        name::check(name)?;
        let keys = self.keys(name).await?;
        match &self.medium {
            Medium::Directory(directory) => directory.get(name, local, keys, progress).await,
            Medium::Cloud(cloud) => cloud.get(name, local, keys, progress).await,
        }
    }

    /// What opens the copy `name`, if it is sealed.
    async fn keys(&self, name: &str) -> Result<Option<Identities>, StoreError> {
        match &self.identity {
            _ if !name.ends_with(SUFFIX) => Ok(None),
            Some(identity) => Identities::read(identity).await.map(Some),
            None => {
                let message = format!("the copy `{name}` is sealed; name the identity file of one of its recipients");
                Err(StoreError::new(Kind::Key, message))
            }
        }
    }

    /// All that is kept, by name.
    ///
    /// # Errors
    /// By [`Kind`].
    pub async fn list(&self) -> Result<Vec<StoredFile>, StoreError> {
        self.list_in(Scope::All).await
    }

    /// What lies in no directory, by name.
    ///
    /// # Errors
    /// By [`Kind`].
    pub async fn list_top(&self) -> Result<Vec<StoredFile>, StoreError> {
        self.list_in(Scope::Top).await
    }

    /// What lies in the directory `dir` and below it, by name.
    ///
    /// # Errors
    /// By [`Kind`].
    pub async fn list_under(&self, dir: &str) -> Result<Vec<StoredFile>, StoreError> {
        self.list_in(Scope::Under(dir)).await
    }

    async fn list_in(&self, scope: Scope<'_>) -> Result<Vec<StoredFile>, StoreError> {
        let mut entries = match &self.medium {
            Medium::Directory(directory) => directory.list(scope).await?,
            Medium::Cloud(cloud) => cloud.list(scope).await?,
        };
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    /// What is under `name`, or `None` when nothing is.
    ///
    /// # Errors
    /// By [`Kind`]; a missing bucket or directory is an error, not a missing copy.
    pub async fn head(&self, name: &str) -> Result<Option<StoredFile>, StoreError> {
        name::check(name)?;
        match &self.medium {
            Medium::Directory(directory) => directory.head(name).await,
            Medium::Cloud(cloud) => cloud.head(name).await,
        }
    }

    /// Delete what is under `name`; when nothing is, that is as asked.
    ///
    /// # Errors
    /// By [`Kind`].
    pub async fn delete(&self, name: &str) -> Result<(), StoreError> {
        name::check(name)?;
        match &self.medium {
            Medium::Directory(directory) => directory.delete(name).await,
            Medium::Cloud(cloud) => cloud.delete(name).await,
        }
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Store({})", self.shown)
    }
}
