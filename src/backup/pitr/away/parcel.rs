//! One file of WAL, one base backup or one small note: sent, and fetched and checked.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::task::spawn_blocking;

use super::super::bases::{self, Base};
use super::names::{BaseName, Held, ROOT};
use super::{Away, UNSEEN, head};
use crate::backup::store::{Kind, Progress, SUFFIX, Sent, StoredFile};
use crate::exit::{Code, Failure};

/// The longest note that is read, in bytes.
const NOTE_MAX: u64 = 1 << 20;

/// A base backup's description, as it is in a destination.
#[derive(Serialize, Deserialize)]
struct Described {
    #[serde(flatten)]
    base: Base,
    data_bytes: u64,
    data_sha256: String,
}

/// The digest of a base backup's data, and its length in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataDigest {
    pub size: u64,
    pub sha256: String,
}

impl Away {
    /// What of it is there, sealed or not.
    ///
    /// # Errors
    /// It cannot be listed.
    pub(super) async fn listing(&self) -> anyhow::Result<Vec<(Held, StoredFile)>> {
        let listed = self.store().list_under(ROOT).await.map_err(Failure::from)?;
        Ok(listed.into_iter().filter_map(|file| Some((Held::read(&file.name)?, file))).collect())
    }

    /// Send the archived file at `path`; `None` where it is gone meanwhile.
    pub(super) async fn send_wal(&self, held: &Held, path: PathBuf) -> anyhow::Result<Option<Sent>> {
        if !path.exists() {
            return Ok(None);
        }
        let name = held.to_string();
        let head = self.head(&name, &path).with_context(|| format!("read {}", path.display()))?;
        let sent = self.store().put_behind(head, &path, &name, UNSEEN).await;
        sent.map(Some).map_err(|error| Failure::from(error).into())
    }

    /// Send a base backup: its data, then its description, which says that all of it is there.
    pub(super) async fn send_base(
        &self,
        base: &Base,
        dir: &Path,
        progress: Progress<'_>,
    ) -> anyhow::Result<(Sent, Sent)> {
        let (name, data) = (BaseName::of(base), dir.join(bases::DATA));
        let digested = digest_of(data.clone()).await?;
        let sent = self.store().put(&data, &Held::Data(name.clone()).to_string(), progress).await;
        let sent = sent.map_err(Failure::from)?;
        let described = Described { base: base.clone(), data_bytes: digested.size, data_sha256: digested.sha256 };
        let description = self.send_value(&Held::Description(name), &described).await?;
        Ok((sent, description))
    }

    /// Send a note: the object in the JSON file at `path`, or its text.
    pub(super) async fn send_note(&self, held: &Held, path: &Path) -> anyhow::Result<Sent> {
        let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let value = match serde_json::from_str(&text) {
            Ok(Value::Object(object)) => Value::Object(object),
            _ => serde_json::json!({ "text": text }),
        };
        self.send_value(held, &value).await
    }

    async fn send_value(&self, held: &Held, value: &impl Serialize) -> anyhow::Result<Sent> {
        let mut value = serde_json::to_value(value).context("put into JSON")?;
        if let Some(object) = value.as_object_mut() {
            // Signed with its place and its cluster: it is of no use in another.
            object.insert("place".into(), held.to_string().into());
            object.insert("cluster".into(), self.system.into());
        }
        let text = serde_json::to_vec_pretty(&self.keys.sign(&value)?).context("put into JSON")?;
        let file = tempfile::NamedTempFile::new().context("make a file for a note")?;
        fs::write(file.path(), text).context("write a note")?;
        let sent = self.store().put(file.path(), &held.to_string(), UNSEEN).await;
        sent.map_err(|error| Failure::from(error).into())
    }

    /// Fetch `held`, the file `there`, to `to`, with nothing checked but that it came whole.
    async fn fetch(&self, there: &StoredFile, to: &Path, progress: Progress<'_>) -> anyhow::Result<()> {
        let fetched = self.store().get(&there.name, to, progress).await;
        fetched.map_err(|error| match error.kind {
            Kind::Missing => Failure::new(
                Code::Failed,
                format!("{} was in the listing of {}, and is not there", there.name, self.destination),
            ),
            _ => Failure::from(error),
        })?;
        Ok(())
    }

    /// Fetch the file of WAL `there` to `to`, and check who made it.
    ///
    /// # Errors
    /// It does not come whole, or is not what was sent; `to` is as it was then.
    pub(super) async fn fetch_wal(&self, held: &Held, there: &StoredFile, to: &Path) -> anyhow::Result<()> {
        let mut arrived = to.as_os_str().to_owned();
        arrived.push(".unfinished");
        let arrived = Arrived(PathBuf::from(arrived));
        self.fetch(there, &arrived.0, UNSEEN).await?;
        self.check_head(&held.to_string(), &arrived.0)?;
        crate::durable::rename(&arrived.0, to).with_context(|| format!("write {}", to.display()))
    }

    /// A small note, checked.
    ///
    /// # Errors
    /// It does not come, is not signed here, or is of another place.
    pub(super) async fn fetch_value(&self, held: &Held, there: &StoredFile) -> anyhow::Result<Value> {
        let shown = format!("{held} in {}", self.destination);
        if there.size > NOTE_MAX {
            let text = format!("{shown} has {} bytes, which no note of Tandem's has", there.size);
            return Err(Failure::new(Code::Failed, text).into());
        }
        let dir = tempfile::tempdir().context("make a directory for a note")?;
        let path = dir.path().join("note");
        self.fetch(there, &path, UNSEEN).await?;
        let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        let value: Value = serde_json::from_slice(&text).with_context(|| format!("{shown} is damaged"))?;
        self.check_signed(&value, &shown)?;
        let of = |field: &str| value.get(field).cloned();
        if of("place") != Some(held.to_string().into()) || of("cluster") != Some(self.system.into()) {
            let text = format!("{shown} is of another place: another file was put there");
            return Err(Failure::new(Code::Failed, text).into());
        }
        Ok(value)
    }

    /// A base backup's description, and the digest of its data.
    ///
    /// # Errors
    /// As [`Away::fetch_value`], or it is none.
    pub(super) async fn fetch_description(
        &self,
        name: &BaseName,
        there: &StoredFile,
    ) -> anyhow::Result<(Base, DataDigest)> {
        let held = Held::Description(name.clone());
        let value = self.fetch_value(&held, there).await?;
        let described: Described = serde_json::from_value(value).with_context(|| format!("{held} is damaged"))?;
        let Described { base, data_bytes: size, data_sha256: sha256 } = described;
        if BaseName::of(&base) != *name || base.system_identifier != self.system {
            let text = format!("{held} in {} is of another base backup", self.destination);
            return Err(Failure::new(Code::Failed, text).into());
        }
        Ok((base, DataDigest { size, sha256 }))
    }

    /// Fetch the data of a base backup to `to`, and check it.
    ///
    /// # Errors
    /// It does not come whole, or is not what was sent; `to` is as it was then.
    pub(super) async fn fetch_data(
        &self,
        (there, digest): (&StoredFile, &DataDigest),
        to: &Path,
        progress: Progress<'_>,
    ) -> anyhow::Result<()> {
        let mut arrived = to.as_os_str().to_owned();
        arrived.push(".unfinished");
        let arrived = Arrived(PathBuf::from(arrived));
        self.fetch(there, &arrived.0, progress).await?;
        if digest_of(arrived.0.clone()).await? != *digest {
            let text = format!(
                "{} in {} is not what was sent there: it is damaged, or another file was put in its place",
                there.name, self.destination
            );
            return Err(Failure::new(Code::Failed, text).into());
        }
        crate::durable::rename(&arrived.0, to).with_context(|| format!("write {}", to.display()))
    }

    /// Remove `held`, sealed or not.
    ///
    /// # Errors
    /// It cannot be removed.
    pub(super) async fn remove(&self, held: &Held) -> anyhow::Result<()> {
        for name in [held.to_string(), format!("{held}{SUFFIX}")] {
            self.store().delete(&name).await.map_err(Failure::from)?;
        }
        Ok(())
    }
}

/// A file that has come and is not checked yet. Dropped, it is removed.
struct Arrived(PathBuf);

impl Drop for Arrived {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

async fn digest_of(path: PathBuf) -> anyhow::Result<DataDigest> {
    let digesting = spawn_blocking(move || {
        let digest = File::open(&path).and_then(|mut file| head::digest(&mut file));
        let (size, sha256) = digest.with_context(|| format!("read {}", path.display()))?;
        anyhow::Ok(DataDigest { size, sha256 })
    });
    digesting.await.context("read a base backup")?
}
