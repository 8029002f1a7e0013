//! Who made a backup: its manifest, which has the digests of all its files, is signed with a key of this deployment
//! (HMAC-SHA256, RFC 2104).
//!
//! A process with access to a destination can put other files there, and their digests into the manifest; without the key they
//! cannot sign it. The key lies in the state directory, for its owner alone. `tandem backup key` shows it, so that it can be
//! kept elsewhere, and brings it to another machine.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use hmac::{Hmac, KeyInit, Mac};
use rand::TryRng;
use rand::rngs::SysRng;
use serde::Serialize;
use serde_json::Value;
use sha2::Sha256;

use crate::durable::{self, WriteOptions};
use crate::exit::{Code, Failure};
use crate::install::{hexadecimal, sha256};
use crate::postgres::home::{Home, make_dir};
use crate::process::identity;

/// What the file of keys is called in the state directory.
const FILE: &str = "backup.key";
/// Where the signature stands in a manifest.
const FIELD: &str = "signature";
/// The length of a key in bytes: that of the digest.
const LENGTH: usize = 32;
const HEADER: &str =
    "# Tandem's backup key: whoever has it can sign backups. The first key signs; all of them are accepted.\n";

/// What a manifest's signature says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signed {
    /// It is signed with a key of this deployment.
    Here,
    /// It has no signature: an older Tandem made it.
    Not,
    /// It is signed with another key, or was changed since.
    Elsewhere,
}

/// The keys of a deployment.
#[derive(Clone)]
pub struct SigningKeys {
    path: PathBuf,
    /// The first one signs.
    keys: Vec<[u8; LENGTH]>,
}

impl SigningKeys {
    /// The keys in the file `path`; there may be none yet.
    ///
    /// # Errors
    /// [`Failure`]: the file cannot be read, or is not as it was written.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => {
                let why = format!("cannot read the backup key{}", identity::refused(path, &error));
                return Err(anyhow::Error::new(error).context(Failure::new(Code::CannotCreate, why)));
            }
        };
        let keys = parse(&text).map_err(|why| {
            let message = format!("{} cannot be used: {why}", path.display());
            Failure::new(Code::CannotCreate, message)
        })?;
        Ok(Self { path: path.to_owned(), keys })
    }

    /// The same, with a key that is made now if there was none.
    ///
    /// # Errors
    /// As [`SigningKeys::read`], or it cannot be written.
    pub fn ensure(path: &Path) -> anyhow::Result<Self> {
        let mut keys = Self::read(path)?;
        if keys.keys.is_empty() {
            let mut key = [0; LENGTH];
            SysRng.try_fill_bytes(&mut key).context("ask the system for randomness")?;
            keys.keys.push(key);
            keys.write()?;
        }
        Ok(keys)
    }

    /// Accept the keys in `text` too. The first of them signs from now on, if there was none. Returns how many are new.
    ///
    /// # Errors
    /// It holds no key, or the file cannot be written.
    pub fn import(path: &Path, text: &str) -> anyhow::Result<usize> {
        let new = parse(text).map_err(|why| Failure::new(Code::Usage, format!("this is no backup key: {why}")))?;
        if new.is_empty() {
            return Err(Failure::new(Code::Usage, "this holds no backup key").into());
        }
        let mut keys = Self::read(path)?;
        let before = keys.keys.len();
        for key in new {
            if !keys.keys.contains(&key) {
                keys.keys.push(key);
            }
        }
        keys.write()?;
        Ok(keys.keys.len() - before)
    }

    /// As they stand in the file.
    pub fn text(&self) -> String {
        let lines: String = self.keys.iter().map(|key| format!("{}\n", hexadecimal(key))).collect();
        format!("{HEADER}{lines}")
    }

    fn write(&self) -> anyhow::Result<()> {
        if let Some(parent) = self.path.parent() {
            make_dir(parent, 0o755, None)?;
        }
        let options = WriteOptions::default().mode(0o600);
        durable::replace(&self.path, self.text().as_bytes(), &options)
            .with_context(|| format!("write {}", self.path.display()))
    }

    /// `manifest` with its signature.
    ///
    /// # Errors
    /// It cannot be put into JSON.
    pub fn sign(&self, manifest: &impl Serialize) -> anyhow::Result<Value> {
        let mut value = serde_json::to_value(manifest).context("put into JSON")?;
        let Some(key) = self.keys.first() else { return Ok(value) };
        let text = unsigned(&value);
        if let Some(object) = value.as_object_mut() {
            let hmac = hexadecimal(&mac(key, &text).finalize().into_bytes());
            object.insert(FIELD.to_owned(), serde_json::json!({ "key": name(key), "hmac_sha256": hmac }));
        }
        Ok(value)
    }

    /// What the signature of `manifest` says.
    pub fn check(&self, manifest: &Value) -> Signed {
        let Some(signature) = manifest.get(FIELD) else { return Signed::Not };
        let Some(hmac) = signature.get("hmac_sha256").and_then(Value::as_str).and_then(bytes) else {
            return Signed::Elsewhere;
        };
        let text = unsigned(manifest);
        // Compared in constant time.
        let fits = self.keys.iter().any(|key| mac(key, &text).verify_slice(&hmac).is_ok());
        if fits { Signed::Here } else { Signed::Elsewhere }
    }
}

impl std::fmt::Debug for SigningKeys {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "SigningKeys({})", self.keys.len())
    }
}

/// Where the keys of `home` lie.
pub fn path(home: &Home) -> PathBuf {
    home.state.join(FILE)
}

/// Whether nobody but Tandem's user and root can have put a file into `dir`: manifests there that have no signature are of an
/// older Tandem.
pub fn is_private(dir: &Path) -> bool {
    let own = nix::unistd::Uid::effective().as_raw();
    dir.metadata().is_ok_and(|meta| [0, own].contains(&meta.uid()) && meta.mode() & 0o022 == 0)
}

fn mac(key: &[u8; LENGTH], text: &[u8]) -> Hmac<Sha256> {
    let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(key)
        .unwrap_or_else(|_| unreachable!("HMAC takes keys of any length"));
    mac.update(text);
    mac
}

/// The bytes that are signed: the manifest without its signature, its names in order.
fn unsigned(manifest: &Value) -> Vec<u8> {
    let mut value = manifest.clone();
    if let Some(object) = value.as_object_mut() {
        object.remove(FIELD);
    }
    value.to_string().into_bytes()
}

/// What a key is called: a part of its digest.
fn name(key: &[u8; LENGTH]) -> String {
    sha256(key)[..16].to_owned()
}

fn parse(text: &str) -> Result<Vec<[u8; LENGTH]>, String> {
    let lines = text.lines().map(str::trim).enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    let key = |(number, line): (usize, &str)| {
        let key = bytes(line).and_then(|key| <[u8; LENGTH]>::try_from(key).ok());
        key.ok_or_else(|| format!("line {} is no key, which is {} hexadecimal digits", number + 1, LENGTH * 2))
    };
    lines.map(key).collect()
}

fn bytes(text: &str) -> Option<Vec<u8>> {
    let digits = text.len().is_multiple_of(2) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    digits.then(|| (0..text.len()).step_by(2).filter_map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn only_this_deployments_signature_counts_and_any_change_voids_it() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let [here, there] = [&one, &other].map(|dir| path(&Home::at(dir.path(), None)));
        assert_eq!(
            SigningKeys::read(&here).unwrap().sign(&serde_json::json!({ "a": 1 })).unwrap(),
            serde_json::json!({ "a": 1 })
        );
        let keys = SigningKeys::ensure(&here).unwrap();
        let signed = keys.sign(&serde_json::json!({ "file": "a", "sha256": "b", "rows": { "t": 7 } })).unwrap();
        let read: Value = serde_json::from_str(&serde_json::to_string_pretty(&signed).unwrap()).unwrap();
        assert_eq!(keys.check(&read), Signed::Here);
        assert_eq!(SigningKeys::ensure(&there).unwrap().check(&read), Signed::Elsewhere);
        for (pointer, value) in [("/sha256", "c"), ("/signature/hmac_sha256", "00"), ("/rows/t", "7")] {
            let mut changed = read.clone();
            *changed.pointer_mut(pointer).unwrap() = value.into();
            assert_eq!(keys.check(&changed), Signed::Elsewhere, "{pointer}");
        }
        let mut without = read.clone();
        without.as_object_mut().unwrap().remove(FIELD);
        assert_eq!(keys.check(&without), Signed::Not);
        // The key travels.
        assert_eq!(SigningKeys::import(&there, &keys.text()).unwrap(), 1);
        assert_eq!(SigningKeys::import(&there, &keys.text()).unwrap(), 0);
        let both = SigningKeys::read(&there).unwrap();
        assert_eq!((both.check(&read), both.keys.len()), (Signed::Here, 2));
        assert_eq!(there.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        SigningKeys::import(&there, "# nothing\n").unwrap_err();
        SigningKeys::import(&there, "abc\n").unwrap_err();
    }

    #[test]
    fn a_directory_that_others_write_to_is_not_private() {
        let temp = tempfile::tempdir().unwrap();
        for (mode, private) in [(0o700, true), (0o755, true), (0o775, false), (0o777, false)] {
            fs::set_permissions(temp.path(), fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(is_private(temp.path()), private, "{mode:o}");
        }
    }
}
