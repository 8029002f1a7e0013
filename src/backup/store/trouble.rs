//! What can go wrong with a copy, told apart for people. No message holds a secret.

use std::error::Error;
use std::fmt;
use std::io;

use object_store::client::{HttpError, HttpErrorKind};

use super::keys::Bucket;
use crate::exit::{Code, Failure};

/// How much of a foreign message is shown.
const FOREIGN_MAX: usize = 300;

/// What kind of trouble it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The address, a key beside it or a certificate cannot be used as it is written.
    Address,
    /// The name of the copy cannot be used.
    Name,
    /// There is no such bucket, container or directory.
    NoBucket,
    /// There is no copy of this name.
    Missing,
    /// The keys are wrong or expired.
    Credentials,
    /// The keys were refused, and it does not say why: they are wrong, or may not do this.
    Denied,
    /// The store does not answer, or its answer breaks off or is an error.
    Unreachable,
    /// It took longer than allowed.
    TimedOut,
    /// A file on this machine cannot be read or written.
    Local,
    /// A disk on this machine is full.
    DiskFull,
    /// A key to seal or to open a copy is missing, wrong or unreadable.
    Key,
    /// What is there is not what was sent.
    Altered,
    /// Something else; the message holds what the other side said.
    Other,
}

/// Why a copy could not be made, fetched or seen. The message says what to do next.
pub struct StoreError {
    pub kind: Kind,
    message: String,
    source: Option<io::Error>,
}

impl StoreError {
    pub(super) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    /// `verb` says what was to be done with which file: "read /srv/a".
    pub(super) fn local(verb: impl fmt::Display, source: io::Error) -> Self {
        let (kind, next) = match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => (Kind::DiskFull, "; make room and try again"),
            _ => (Kind::Local, ""),
        };
        Self { kind, message: format!("cannot {verb}: {source}{next}"), source: Some(source) }
    }

    /// The local file `shown` changed under our hands: the copy would be of no moment at all.
    pub(super) fn changed(shown: &str) -> Self {
        Self::new(Kind::Altered, format!("{shown} changed while it was copied; copy it when nobody writes it"))
    }

    /// A thread of ours died.
    pub(super) fn thread(error: &tokio::task::JoinError) -> Self {
        Self::new(Kind::Other, format!("the thread that copies ended early: {error}"))
    }

    /// The exit code for a command that failed of this.
    pub fn code(&self) -> Code {
        match self.kind {
            Kind::Address | Kind::NoBucket | Kind::Credentials | Kind::Denied | Kind::Key => Code::Config,
            Kind::Unreachable | Kind::TimedOut => Code::Temporary,
            Kind::DiskFull => Code::CannotCreate,
            Kind::Name | Kind::Missing | Kind::Local | Kind::Altered | Kind::Other => Code::Failed,
        }
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl fmt::Debug for StoreError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?}: {}", self.kind, self.message)
    }
}

impl Error for StoreError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_ref().map(|source| source as _)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::new(error.code(), error.message)
    }
}

/// Codes by which S3, Google and Azure say that they do not know the keys.
const KEY_CODES: &[&str] = &[
    "SignatureDoesNotMatch",
    "InvalidAccessKeyId",
    "InvalidToken",
    "InvalidSecurity",
    "AuthenticationFailed",
    "InvalidAuthenticationInfo",
    "NotSignedUp",
    "invalid_grant",
    "invalid_client",
];

/// Put what the other side answered into words. `verb` says what was to be done: "put `a` into".
pub(super) fn foreign(verb: &str, bucket: &Bucket, error: &object_store::Error) -> StoreError {
    let text = spelled(error);
    let code = between(&text, "<Code>", "</Code>").unwrap_or_default();
    let (kind, why) = sorted(error, code, &text, bucket);
    StoreError::new(kind, bucket.hide(&format!("cannot {verb} {bucket}: {why}")))
}

fn sorted(error: &object_store::Error, code: &str, text: &str, bucket: &Bucket) -> (Kind, String) {
    use object_store::Error as E;
    let keys = bucket.key_names();
    match (error, code) {
        (_, "NoSuchBucket" | "ContainerNotFound") => {
            (Kind::NoBucket, format!("there is no {}; create it, or correct its name", bucket.container()))
        }
        (_, "ExpiredToken" | "TokenRefreshRequired") => {
            (Kind::Credentials, format!("the keys are expired; renew {keys}"))
        }
        (_, "RequestTimeTooSkewed") => {
            (Kind::Credentials, "this machine's clock differs too much from theirs; set it".into())
        }
        (_, code) if KEY_CODES.contains(&code) => (Kind::Credentials, format!("wrong keys ({code}); correct {keys}")),
        (_, "PermanentRedirect" | "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException") => {
            (Kind::Address, "the bucket is in another region; set AWS_REGION".into())
        }
        // Not each server that talks S3 takes a checksum, so none is sent unasked (Amazon S3 User Guide, Object Lock).
        (_, "InvalidRequest") if text.contains("x-amz-checksum-") || text.contains("Content-MD5") => (
            Kind::Address,
            "the bucket wants a checksum with each upload, as those with Object Lock do; set AWS_CHECKSUM_ALGORITHM=sha256".into(),
        ),
        (E::Unauthenticated { .. }, _) => (Kind::Credentials, format!("the keys are not accepted; correct {keys}")),
        (E::PermissionDenied { .. }, code) => {
            let code = if code.is_empty() { "403" } else { code };
            (
                Kind::Denied,
                format!("not allowed ({code}); check {keys}, and that these may read, write, list and delete"),
            )
        }
        (E::NotFound { .. }, _) => (Kind::Missing, "there is nothing of this name".into()),
        _ if text.contains("redirect without LOCATION") => {
            (Kind::Address, "the bucket is in another region; set AWS_REGION".into())
        }
        _ => unanswered(error, code, text).unwrap_or_else(|| (Kind::Other, said(code, text))),
    }
}

/// The trouble when no answer came, or only one that a server gives who cannot do better at the moment.
fn unanswered(error: &object_store::Error, code: &str, text: &str) -> Option<(Kind, String)> {
    let later = "check the network and the endpoint, or try again later";
    let http = causes(error).find_map(|cause| cause.downcast_ref::<HttpError>()).map(HttpError::kind);
    let refused = causes(error).filter_map(|cause| cause.downcast_ref::<io::Error>()).map(io::Error::kind).next();
    let low = text.to_lowercase();
    if low.contains("certificate") || low.contains("unknownissuer") {
        return Some((Kind::Unreachable, "its certificate is not trusted; name the authority in AWS_CA_BUNDLE".into()));
    }
    let why = match http {
        Some(HttpErrorKind::Timeout) => return Some((Kind::TimedOut, format!("no answer in time; {later}"))),
        Some(HttpErrorKind::Connect) if refused == Some(io::ErrorKind::ConnectionRefused) => "nobody listens there",
        Some(HttpErrorKind::Connect) if low.contains("dns") || low.contains("lookup") => "its host name is not known",
        Some(HttpErrorKind::Connect) => "it cannot be reached",
        Some(HttpErrorKind::Request | HttpErrorKind::Interrupted) => "the connection breaks off",
        Some(_) => return Some((Kind::Unreachable, format!("{}; {later}", said(code, text)))),
        None if text.contains("status code: 5") || text.contains("status code: 429") || code == "SlowDown" => {
            return Some((Kind::Unreachable, format!("it fails ({}); {later}", said(code, text))));
        }
        None => return None,
    };
    Some((Kind::Unreachable, format!("{why}; {later}")))
}

fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |cause: &&'a (dyn Error + 'static)| (*cause).source())
}

/// The whole chain as one text: not each of its errors repeats its cause.
fn spelled(error: &object_store::Error) -> String {
    causes(error).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// The part of an answer that is for people. The rest of it may hold a session token, in what was to be signed.
fn said(code: &str, text: &str) -> String {
    if let Some(message) = between(text, "<Message>", "</Message>") {
        return format!("{code}: {message}");
    }
    let visible = text.split(['<', '{', '?']).next().unwrap_or_default();
    visible.chars().filter(|c| !c.is_control()).take(FOREIGN_MAX).collect()
}

fn between<'a>(text: &'a str, open: &str, close: &str) -> Option<&'a str> {
    let start = text.find(open)? + open.len();
    let end = text[start..].find(close)?;
    Some(&text[start..start + end])
}
