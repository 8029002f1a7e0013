//! Copies in a bucket.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt;
use object_store::{
    Attribute, Attributes, GetOptions, GetRange, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMultipartOptions, PutOptions, PutPayload,
};
use tokio::sync::mpsc::Receiver;
use tokio::task::JoinSet;

use super::arriving::{Arriving, Expected};
use super::keys::Bucket;
use super::parts::{End, Local, ON_THE_WAY, Outgoing, Part, next};
use super::seal::{Identities, Recipients};
use super::trouble::{Kind, StoreError, foreign};
use super::{Progress, Scope, Sent, StoredFile};

/// How much is asked for at once: small enough that a line that breaks off costs little.
const PIECE: u64 = 8 << 20;

/// How long the parts of an upload that failed are tried to be deleted. The bucket's lifecycle rule deletes the rest.
const ABORT_MAX: Duration = Duration::from_secs(10);

/// Kept beside a copy: its SHA-256, where it was known before the first byte went.
const SHA256: Attribute = Attribute::Metadata(std::borrow::Cow::Borrowed("sha256"));
/// Kept beside a copy: a random word, by which an upload knows its own copy from an older one of the same size.
const UPLOAD: Attribute = Attribute::Metadata(std::borrow::Cow::Borrowed("upload"));

/// A bucket for copies.
pub(super) struct Cloud {
    pub(super) bucket: Bucket,
    pub(super) client: Arc<dyn ObjectStore>,
}

/// Parts that are sent, and how large each is.
type OnTheWay = JoinSet<object_store::Result<u64>>;

/// One upload: where to, and how it is known again.
struct Target<'a> {
    name: &'a str,
    path: object_store::path::Path,
    /// The local file, for messages, and its digest, if it is sent as it is.
    shown: String,
    sha256: Option<String>,
    upload: String,
    attributes: Attributes,
}

/// What is kept, with what is kept beside it.
struct StoredObject {
    meta: ObjectMeta,
    sha256: Option<String>,
    upload: Option<String>,
}

impl Cloud {
    pub(super) fn new(bucket: &Bucket, client: Arc<dyn ObjectStore>) -> Self {
        Self { bucket: bucket.clone(), client }
    }

    pub(super) async fn put(
        &self,
        outgoing: Outgoing<'_>,
        name: &str,
        seal: Option<Recipients>,
        progress: Progress<'_>,
    ) -> Result<Sent, StoreError> {
        let mut local = Local::open(outgoing).await?;
        let mut sha256 = None;
        // Nobody knows the digest of what will be sealed; and the digest of what is in it would tell what it is.
        if seal.is_none() {
            let (same, digest) = local.digest().await?;
            (local, sha256) = (same, Some(digest));
        }
        let target = self.target(name, &local, sha256)?;
        let total = local.size;
        let mut parts = local.read(seal);
        let first = next(&mut parts).await?;
        let end = match first.end {
            Some(end) => {
                target.check_unchanged(&end)?;
                self.put_whole(&target, first.bytes).await?;
                end
            }
            None => {
                let said = |done: u64| progress(done.min(total), total);
                self.put_parts(&target, first, parts, &said).await?
            }
        };
        self.check_kept(&target, &end).await?;
        progress(total, total);
        Ok(Sent { name: name.to_owned(), size: end.size, sha256: end.sha256 })
    }

    fn target<'a>(&self, name: &'a str, local: &Local, sha256: Option<String>) -> Result<Target<'a>, StoreError> {
        let upload = format!("{:032x}", rand::random::<u128>());
        let mut attributes = Attributes::from_iter([(UPLOAD, upload.clone())]);
        if let Some(sha256) = &sha256 {
            attributes.insert(SHA256, sha256.clone().into());
        }
        Ok(Target { name, path: self.path(name)?, shown: local.shown.clone(), sha256, upload, attributes })
    }

    async fn put_whole(&self, target: &Target<'_>, bytes: Vec<u8>) -> Result<(), StoreError> {
        let options = PutOptions { attributes: target.attributes.clone(), ..PutOptions::default() };
        let put = self.client.put_opts(&target.path, PutPayload::from(bytes), options).await;
        put.map(drop).map_err(|error| self.put_failed(target, &error))
    }

    async fn put_parts(
        &self,
        target: &Target<'_>,
        first: Part,
        rest: Receiver<Result<Part, StoreError>>,
        said: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<End, StoreError> {
        let options = PutMultipartOptions { attributes: target.attributes.clone(), ..PutMultipartOptions::default() };
        let begun = self.client.put_multipart_opts(&target.path, options).await;
        let mut upload = Upload(Some(begun.map_err(|error| self.put_failed(target, &error))?));
        let mut on_the_way = OnTheWay::new();
        let sent = self.send(target, &mut upload, &mut on_the_way, first, rest, said).await;
        let sent = sent.and_then(|end| target.check_unchanged(&end).map(|()| end));
        let completed = match sent {
            Ok(end) => self.complete(target, &mut upload, &end).await.map(|()| end),
            Err(error) => Err(error),
        };
        match completed {
            Ok(_) => upload.0 = None,
            Err(_) => {
                // A part that arrives after the abort would stay, and cost, for good.
                let arrive = async { while on_the_way.join_next().await.is_some() {} };
                let _ = tokio::time::timeout(ABORT_MAX, arrive).await;
                upload.abort().await;
            }
        }
        completed
    }

    /// Send all parts, a few at once.
    async fn send(
        &self,
        target: &Target<'_>,
        upload: &mut Upload,
        on_the_way: &mut OnTheWay,
        first: Part,
        mut rest: Receiver<Result<Part, StoreError>>,
        said: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<End, StoreError> {
        let mut done = 0;
        let mut arrived = |part: Result<object_store::Result<u64>, tokio::task::JoinError>| {
            done +=
                part.map_err(|error| StoreError::thread(&error))?.map_err(|error| self.put_failed(target, &error))?;
            said(done);
            Ok::<_, StoreError>(())
        };
        let mut part = first;
        let end = loop {
            let size = part.bytes.len() as u64;
            let put = upload.part(part.bytes);
            let room = part.room;
            on_the_way.spawn(async move {
                let put = put.await;
                drop(room);
                put.map(|()| size)
            });
            if let Some(end) = part.end {
                break end;
            }
            while on_the_way.len() >= ON_THE_WAY {
                if let Some(part) = on_the_way.join_next().await {
                    arrived(part)?;
                }
            }
            part = next(&mut rest).await?;
        };
        while let Some(part) = on_the_way.join_next().await {
            arrived(part)?;
        }
        Ok(end)
    }

    async fn complete(&self, target: &Target<'_>, upload: &mut Upload, end: &End) -> Result<(), StoreError> {
        let Err(error) = upload.complete().await else { return Ok(()) };
        // The answer may have got lost, and asked again they know of no such upload: the copy itself tells.
        match self.check_kept(target, end).await {
            Ok(()) => Ok(()),
            Err(_) => Err(self.put_failed(target, &error)),
        }
    }

    /// Whether the very copy that was sent stands under its name.
    async fn check_kept(&self, target: &Target<'_>, end: &End) -> Result<(), StoreError> {
        let kept = self.kept(target.name).await?;
        let wrong = match kept {
            None => "is not there, although they took it; try again".to_owned(),
            Some(kept) if kept.meta.size != end.size => {
                format!("has {} bytes there and not {}; try again", kept.meta.size, end.size)
            }
            // A server that keeps nothing beside an object is believed by the size alone.
            Some(kept) if kept.upload.as_ref().is_some_and(|upload| *upload != target.upload) => {
                "was overwritten by somebody else at the same time; use different names".to_owned()
            }
            Some(_) => return Ok(()),
        };
        Err(StoreError::new(Kind::Altered, format!("the copy `{}` in {} {wrong}", target.name, self.bucket)))
    }

    fn put_failed(&self, target: &Target<'_>, error: &object_store::Error) -> StoreError {
        let failed = foreign(&format!("put `{}` into", target.name), &self.bucket, error);
        // Where something is to be put, only the bucket itself can be missing.
        if failed.kind == Kind::Missing { self.no_bucket() } else { failed }
    }

    pub(super) async fn get(
        &self,
        name: &str,
        local: &Path,
        keys: Option<Identities>,
        progress: Progress<'_>,
    ) -> Result<(), StoreError> {
        let Some(kept) = self.kept(name).await? else {
            let message = format!("there is no copy `{name}` in {}; list shows what is there", self.bucket);
            return Err(StoreError::new(Kind::Missing, message));
        };
        let mut file = Arriving::begin(local.to_path_buf(), keys);
        let came = self.fetch(name, kept, &mut file, progress).await;
        file.conclude(came).await.map(drop)
    }

    /// Fetch what is kept, piece by piece.
    async fn fetch(
        &self,
        name: &str,
        kept: StoredObject,
        file: &mut Arriving,
        progress: Progress<'_>,
    ) -> Result<Expected, StoreError> {
        let failed = |error| foreign(&format!("get `{name}` from"), &self.bucket, &error);
        let (path, total, mut done) = (self.path(name)?, kept.meta.size, 0);
        while done < total {
            let range = Some(GetRange::Bounded(done..total.min(done + PIECE)));
            // The object must stay the same one, or its pieces would not fit together.
            let options = GetOptions { range, if_match: kept.meta.e_tag.clone(), ..GetOptions::default() };
            let bytes = self.client.get_opts(&path, options).await.map_err(failed)?.bytes().await.map_err(failed)?;
            if bytes.is_empty() {
                break;
            }
            done += bytes.len() as u64;
            file.write(bytes).await?;
            progress(done, total);
        }
        Ok(Expected { size: total, sha256: kept.sha256 })
    }

    pub(super) async fn list(&self, scope: Scope<'_>) -> Result<Vec<StoredFile>, StoreError> {
        let prefix = if let Scope::Under(dir) = scope { Some(self.path(dir)?) } else { self.prefix()? };
        let found: object_store::Result<Vec<ObjectMeta>> = match scope {
            Scope::Top => self.client.list_with_delimiter(prefix.as_ref()).await.map(|listed| listed.objects),
            Scope::All | Scope::Under(_) => self.client.list(prefix.as_ref()).try_collect().await,
        };
        let found = found.map_err(|error| self.listing_failed(&error))?;
        Ok(found.iter().filter_map(|meta| self.entry(meta)).collect())
    }

    pub(super) async fn head(&self, name: &str) -> Result<Option<StoredFile>, StoreError> {
        Ok(self.kept(name).await?.and_then(|kept| self.entry(&kept.meta)))
    }

    pub(super) async fn delete(&self, name: &str) -> Result<(), StoreError> {
        match self.client.delete(&self.path(name)?).await {
            Ok(()) => Ok(()),
            Err(object_store::Error::NotFound { .. }) => self.check_bucket().await,
            Err(error) => Err(foreign(&format!("delete `{name}` from"), &self.bucket, &error)),
        }
    }

    async fn kept(&self, name: &str) -> Result<Option<StoredObject>, StoreError> {
        let options = GetOptions { head: true, ..GetOptions::default() };
        match self.client.get_opts(&self.path(name)?, options).await {
            Ok(found) => {
                let beside = |attribute| found.attributes.get(&attribute).map(|value| value.to_string());
                Ok(Some(StoredObject { sha256: beside(SHA256), upload: beside(UPLOAD), meta: found.meta.clone() }))
            }
            // An answer to HEAD has no body that could say what is missing.
            Err(object_store::Error::NotFound { .. }) => self.check_bucket().await.map(|()| None),
            Err(error) => Err(foreign(&format!("look at `{name}` in"), &self.bucket, &error)),
        }
    }

    /// Whether the bucket is there.
    pub(super) async fn check_bucket(&self) -> Result<(), StoreError> {
        let prefix = self.prefix()?;
        let first = self.client.list(prefix.as_ref()).try_next().await;
        first.map(drop).map_err(|error| self.listing_failed(&error))
    }

    fn listing_failed(&self, error: &object_store::Error) -> StoreError {
        let failed = foreign("list", &self.bucket, error);
        if failed.kind == Kind::Missing { self.no_bucket() } else { failed }
    }

    pub(super) fn no_bucket(&self) -> StoreError {
        let container = self.bucket.container();
        let message = format!("cannot use {}: there is no {container}; create it, or correct its name", self.bucket);
        StoreError::new(Kind::NoBucket, message)
    }

    fn entry(&self, meta: &ObjectMeta) -> Option<StoredFile> {
        let key = meta.location.as_ref();
        let name = match self.bucket.prefix.as_str() {
            "" => key,
            prefix => key.strip_prefix(prefix)?.strip_prefix('/')?,
        };
        Some(StoredFile { name: name.to_owned(), size: meta.size, modified: meta.last_modified.into() })
    }

    pub(super) fn path(&self, name: &str) -> Result<object_store::path::Path, StoreError> {
        let key =
            if self.bucket.prefix.is_empty() { name.to_owned() } else { format!("{}/{name}", self.bucket.prefix) };
        // As it is written: another way to make a path would encode what S3 takes as it is.
        object_store::path::Path::parse(&key).map_err(|error| {
            StoreError::new(Kind::Name, format!("the name {name:?} of a copy cannot be used: {error}"))
        })
    }

    fn prefix(&self) -> Result<Option<object_store::path::Path>, StoreError> {
        let Bucket { prefix, .. } = &self.bucket;
        let parse = || object_store::path::Path::parse(prefix);
        if prefix.is_empty() {
            return Ok(None);
        }
        parse().map(Some).map_err(|error| StoreError::new(Kind::Address, format!("the prefix cannot be used: {error}")))
    }
}

impl Target<'_> {
    /// What was sent must be what was digested before.
    fn check_unchanged(&self, end: &End) -> Result<(), StoreError> {
        let same = self.sha256.as_ref().is_none_or(|sha256| *sha256 == end.sha256);
        if same { Ok(()) } else { Err(StoreError::changed(&self.shown)) }
    }
}

/// An upload in parts. Its parts cost money until it is completed or aborted: dropped, as by a stop in the middle, it is
/// aborted in the background.
struct Upload(Option<Box<dyn MultipartUpload>>);

impl Upload {
    fn part(&mut self, bytes: Vec<u8>) -> object_store::UploadPart {
        match &mut self.0 {
            Some(upload) => upload.put_part(PutPayload::from(bytes)),
            None => Box::pin(async { Err(object_store::Error::NotSupported { source: "it has ended".into() }) }),
        }
    }

    async fn complete(&mut self) -> object_store::Result<()> {
        match &mut self.0 {
            Some(upload) => upload.complete().await.map(drop),
            None => Ok(()),
        }
    }

    async fn abort(&mut self) {
        if let Some(mut upload) = self.0.take() {
            // Where even this fails, the error that led here is the one to tell.
            let _ = tokio::time::timeout(ABORT_MAX, upload.abort()).await;
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let Some(mut upload) = self.0.take() else { return };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                let _ = tokio::time::timeout(ABORT_MAX, upload.abort()).await;
            });
        }
    }
}
