//! Small files that several machines write: put only where nothing is, or in place of the very version that was read.
//!
//! A bucket compares by itself (`If-None-Match`, `If-Match`). They are not sealed: what holds them apart must be read by
//! whoever comes.

use std::fs;
use std::io;

use object_store::{GetOptions, ObjectStore, PutMode, PutOptions, PutPayload, UpdateVersion};

use super::cloud::Cloud;
use super::directory::{Directory, blocking, is_missing, look, make_dirs};
use super::trouble::{Kind, StoreError, foreign};
use super::{Medium, Store, name};
use crate::durable::{self, WriteOptions};

/// How large one may be, in bytes.
const SIZE_MAX: u64 = 64 << 10;

/// Which version of a small file was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version(Seen);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    Content(Vec<u8>),
    Tag(UpdateVersion),
}

/// A small file, and which version of it this is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Small {
    pub bytes: Vec<u8>,
    pub version: Version,
}

impl Store {
    /// The small file `name`; `None` when there is none.
    ///
    /// # Errors
    /// By [`Kind`].
    pub async fn read_small(&self, name: &str) -> Result<Option<Small>, StoreError> {
        name::check(name)?;
        match &self.medium {
            Medium::Directory(directory) => directory.read_small(name).await,
            Medium::Cloud(cloud) => cloud.read_small(name).await,
        }
    }

    /// Put `bytes` under `name`: where there is nothing, or in place of that very version. Whether it is there now; `false`:
    /// somebody else was quicker.
    ///
    /// # Errors
    /// By [`Kind`].
    pub async fn put_small(&self, name: &str, bytes: Vec<u8>, instead: Option<&Version>) -> Result<bool, StoreError> {
        name::check(name)?;
        match &self.medium {
            Medium::Directory(directory) => directory.put_small(name, bytes, instead.cloned()).await,
            Medium::Cloud(cloud) => cloud.put_small(name, bytes, instead).await,
        }
    }
}

impl Directory {
    async fn read_small(&self, name: &str) -> Result<Option<Small>, StoreError> {
        let (root, path) = (self.root.clone(), self.root.join(name));
        blocking(move || {
            look(&root)?;
            match fs::read(&path) {
                Ok(bytes) => Ok(Some(Small { version: Version(Seen::Content(bytes.clone())), bytes })),
                Err(error) if is_missing(&error) => Ok(None),
                Err(error) => Err(StoreError::local(format!("read {}", path.display()), error)),
            }
        })
        .await
    }

    async fn put_small(&self, name: &str, bytes: Vec<u8>, instead: Option<Version>) -> Result<bool, StoreError> {
        let (root, path) = (self.root.clone(), self.root.join(name));
        blocking(move || {
            make_dirs(&root, path.parent().unwrap_or(&root))?;
            let options = WriteOptions::default();
            let written = match instead {
                None => durable::create(&path, &bytes, &options),
                // Best effort: a file system has no other way to compare and write.
                Some(version) if fs::read(&path).ok().map(Seen::Content).as_ref() == Some(&version.0) => {
                    durable::replace(&path, &bytes, &options)
                }
                Some(_) => return Ok(false),
            };
            match written {
                Ok(()) => Ok(true),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
                Err(error) => Err(StoreError::local(format!("write {}", path.display()), error)),
            }
        })
        .await
    }
}

impl Cloud {
    async fn read_small(&self, name: &str) -> Result<Option<Small>, StoreError> {
        let failed = |error: &object_store::Error| foreign(&format!("get `{name}` from"), &self.bucket, error);
        let found = match self.client.get_opts(&self.path(name)?, GetOptions::default()).await {
            Ok(found) => found,
            Err(object_store::Error::NotFound { .. }) => return self.check_bucket().await.map(|()| None),
            Err(error) => return Err(failed(&error)),
        };
        if found.meta.size > SIZE_MAX {
            let message = format!("`{name}` in {} has {} bytes, which is not Tandem's", self.bucket, found.meta.size);
            return Err(StoreError::new(Kind::Altered, message));
        }
        let seen = UpdateVersion { e_tag: found.meta.e_tag.clone(), version: found.meta.version.clone() };
        let bytes = found.bytes().await.map_err(|error| failed(&error))?.to_vec();
        Ok(Some(Small { bytes, version: Version(Seen::Tag(seen)) }))
    }

    async fn put_small(&self, name: &str, bytes: Vec<u8>, instead: Option<&Version>) -> Result<bool, StoreError> {
        let mode = match instead {
            None => PutMode::Create,
            Some(Version(Seen::Tag(version))) => PutMode::Update(version.clone()),
            Some(Version(Seen::Content(_))) => return Ok(false),
        };
        let put = |mode| {
            let (payload, options) = (PutPayload::from(bytes.clone()), PutOptions { mode, ..PutOptions::default() });
            async move { self.client.put_opts(&self.path(name)?, payload, options).await.map_err(Refused::from) }
        };
        let put = match put(mode).await {
            // Not each server that talks S3 compares; then who comes second is seen when the file is read again.
            Err(Refused::Unknown) => put(PutMode::Overwrite).await,
            put => put,
        };
        match put {
            Ok(_) => Ok(true),
            Err(Refused::There) => Ok(false),
            Err(Refused::Unknown) => {
                Err(StoreError::new(Kind::Other, format!("{} takes no `{name}`; use another server", self.bucket)))
            }
            Err(Refused::Store(error)) => Err(error),
            Err(Refused::Foreign(object_store::Error::NotFound { .. })) => Err(self.no_bucket()),
            Err(Refused::Foreign(error)) => Err(foreign(&format!("put `{name}` into"), &self.bucket, &error)),
        }
    }
}

/// Why a file was not put.
enum Refused {
    There,
    /// The server cannot compare.
    Unknown,
    Store(StoreError),
    Foreign(object_store::Error),
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<object_store::Error> for Refused {
    fn from(error: object_store::Error) -> Self {
        use object_store::Error as E;
        match error {
            E::AlreadyExists { .. } | E::Precondition { .. } => Self::There,
            E::NotImplemented { .. } | E::NotSupported { .. } => Self::Unknown,
            other if other.to_string().contains("NotImplemented") => Self::Unknown,
            other => Self::Foreign(other),
        }
    }
}
