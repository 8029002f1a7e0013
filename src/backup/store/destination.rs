//! Where copies go, as one text: `file:///dir`, `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use percent_encoding::percent_decode_str;

use super::keys::{self, Bucket, Cloudy};
use super::trouble::{Kind, StoreError};

/// A place for copies, with the keys to it. `Display` and `Debug` show the address alone.
#[derive(Clone)]
pub struct Destination {
    place: Place,
}

#[derive(Clone)]
pub(super) enum Place {
    Directory(PathBuf),
    Bucket(Bucket),
}

impl Destination {
    /// Read an address, and the keys to it from `environment` under the names that the clouds' own tools use.
    ///
    /// A prefix is taken as it is written; a `file://` path may be percent-encoded. Without keys it is refused, unless
    /// `?metadata=true` lets the cloud's own machines ask their metadata address for some.
    ///
    /// # Errors
    /// [`Kind::Address`], with nothing of the text in it that could be a secret.
    pub fn parse(text: &str, environment: &BTreeMap<String, String>) -> Result<Self, StoreError> {
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(wrong("it has no scheme; write file:///dir, s3://bucket/prefix, gs://… or az://…"));
        };
        let (address, query) = rest.split_once('?').map_or((rest, None), |(address, query)| (address, Some(query)));
        let cloud = match scheme {
            "file" => return directory(address, query).map(|path| Self { place: Place::Directory(path) }),
            "s3" => Cloudy::S3,
            "gs" => Cloudy::Google,
            "az" => Cloudy::Azure,
            "http" | "https" => {
                return Err(wrong("for a server that talks S3 write s3://bucket/prefix, and set AWS_ENDPOINT_URL"));
            }
            _ => return Err(wrong("its scheme is none of file, s3, gs and az")),
        };
        let (name, prefix) = address.split_once('/').unwrap_or((address, ""));
        if name.contains(['@', ':']) || address.split('/').any(|part| part.contains('@') && part.contains(':')) {
            return Err(wrong(&format!("keys do not belong into it; set {}", cloud.key_names())));
        }
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || "-._$".contains(c)) {
            return Err(wrong(&format!("it names no bucket; write {scheme}://bucket/prefix")));
        }
        let prefix = prefix.trim_end_matches('/');
        if !prefix.is_empty() {
            super::name::check(prefix).map_err(|error| wrong(&format!("its prefix cannot be used: {error}")))?;
        }
        let bucket = Bucket {
            cloud,
            name: name.to_owned(),
            prefix: prefix.to_owned(),
            keys: keys::of(cloud, metadata(query)?, environment)?,
        };
        Ok(Self { place: Place::Bucket(bucket) })
    }

    /// The directory, where the copies go to a file system of this machine.
    pub fn directory(&self) -> Option<&Path> {
        match &self.place {
            Place::Directory(path) => Some(path),
            Place::Bucket(_) => None,
        }
    }

    pub(super) fn place(&self) -> &Place {
        &self.place
    }
}

fn directory(address: &str, query: Option<&str>) -> Result<PathBuf, StoreError> {
    let address = address.strip_prefix("localhost").unwrap_or(address);
    if query.is_some() {
        return Err(wrong("a `?` in a path is written %3F"));
    }
    if !address.starts_with('/') {
        return Err(wrong("the path must be absolute: file:///dir"));
    }
    let path = percent_decode_str(address).decode_utf8().map_err(|_| wrong("its path is no UTF-8"))?;
    Ok(PathBuf::from(path.into_owned()))
}

/// Whether the cloud's metadata address may be asked for keys.
fn metadata(query: Option<&str>) -> Result<bool, StoreError> {
    let mut asked = false;
    for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
        asked = match pair {
            "metadata=true" => true,
            "metadata=false" => false,
            _ => return Err(wrong("after `?` only metadata=true may follow; keys come from the environment")),
        };
    }
    Ok(asked)
}

fn wrong(why: &str) -> StoreError {
    StoreError::new(Kind::Address, format!("the address for copies cannot be used: {why}"))
}

impl fmt::Display for Destination {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Directory(path) => write!(formatter, "file://{}", path.display()),
            Place::Bucket(bucket) => bucket.fmt(formatter),
        }
    }
}

impl fmt::Debug for Destination {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Destination({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, environment: &[(&str, &str)]) -> Result<Destination, StoreError> {
        let environment = environment.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        Destination::parse(text, &environment)
    }

    const KEYS: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", "AKIA"), ("AWS_SECRET_ACCESS_KEY", "hush")];

    #[test]
    fn every_scheme_is_read_and_shown_without_keys() {
        let google = [("GOOGLE_SERVICE_ACCOUNT_KEY", "hush")];
        let azure = [("AZURE_STORAGE_ACCOUNT_NAME", "a"), ("AZURE_STORAGE_ACCOUNT_KEY", "hush")];
        for (text, environment, shown) in [
            ("file:///srv/my%20copies", &[][..], "file:///srv/my copies"),
            ("s3://bucket", &KEYS[..], "s3://bucket"),
            ("s3://bucket/a b/", &KEYS[..], "s3://bucket/a b"),
            ("s3://bucket/a?metadata=true", &[][..], "s3://bucket/a"),
            ("gs://bucket/a", &google[..], "gs://bucket/a"),
            ("az://container/a", &azure[..], "az://container/a"),
        ] {
            let destination = parse(text, environment).unwrap();
            assert_eq!(destination.to_string(), shown);
            assert!(!format!("{destination:?}").contains("hush"));
        }
    }

    #[test]
    fn what_is_wrong_is_said_and_no_secret() {
        for (text, words) in [
            ("/srv/copies", "no scheme"),
            ("ftp://hush", "none of file"),
            ("https://minio:9000/b", "AWS_ENDPOINT_URL"),
            ("file://srv/copies", "absolute"),
            ("file:///a?b", "%3F"),
            ("s3://AKIA:hush@bucket/a", "AWS_SECRET_ACCESS_KEY"),
            ("s3:///a", "names no bucket"),
            ("s3://bucket/a/../b", "`..`"),
            ("s3://bucket/a?secret=hush", "metadata=true"),
        ] {
            let error = parse(text, &KEYS).unwrap_err();
            assert_eq!(error.kind, Kind::Address);
            assert!(error.to_string().contains(words) && !format!("{error:?}").contains("hush"), "{error}");
        }
    }

    #[test]
    fn without_keys_the_metadata_address_is_not_asked() {
        for (text, environment, words) in [
            ("s3://b", &[][..], "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
            ("s3://b", &KEYS[..1], "AWS_SECRET_ACCESS_KEY is not set"),
            ("s3://b", &[("AWS_ACCESS_KEY_ID", ""), ("AWS_SECRET_ACCESS_KEY", "")][..], "?metadata=true"),
            ("gs://b", &[][..], "GOOGLE_APPLICATION_CREDENTIALS"),
            ("az://b", &[("AZURE_STORAGE_ACCOUNT_NAME", "a")][..], "AZURE_STORAGE_ACCOUNT_KEY"),
            ("az://b", &[("AZURE_STORAGE_ACCOUNT_KEY", "hush")][..], "AZURE_STORAGE_ACCOUNT_NAME is not set"),
        ] {
            let error = parse(text, environment).unwrap_err();
            assert!(error.to_string().contains(words) && !error.to_string().contains("hush"), "{text}: {error}");
        }
    }

    #[test]
    fn plain_http_goes_to_this_machine_alone_unless_allowed() {
        let with = |endpoint: &'static str, more: &[(&'static str, &'static str)]| {
            let environment = [&KEYS[..], &[("AWS_ENDPOINT_URL", endpoint)], more].concat();
            parse("s3://b", &environment)
        };
        for endpoint in ["http://127.0.0.1:9000", "http://[::1]:9000", "http://localhost:9000", "https://minio:9000"] {
            with(endpoint, &[]).unwrap();
        }
        with("http://minio:9000", &[("AWS_ALLOW_HTTP", "true")]).unwrap();
        for (endpoint, words) in [
            ("http://minio:9000", "AWS_ALLOW_HTTP"),
            ("https://u:hush@minio", "AWS_ENDPOINT_URL"),
            ("minio:9000", "https://"),
        ] {
            let error = with(endpoint, &[]).unwrap_err();
            assert!(error.to_string().contains(words) && !error.to_string().contains("hush"), "{error}");
        }
    }
}
