//! Copies that only the holder of a key can read, in the format of age (age-encryption.org/v1).

use std::fmt;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use age::x25519;
use age::{DecryptError, Decryptor, Encryptor};
use tokio::task::spawn_blocking;

use super::trouble::{Kind, StoreError};

/// What the name of a sealed copy ends in.
pub const SUFFIX: &str = ".age";

/// Who will be able to read sealed copies: public keys of age-keygen(1).
#[derive(Clone)]
pub struct Recipients(Vec<x25519::Recipient>);

impl Recipients {
    /// Read `age1…` keys.
    ///
    /// # Errors
    /// [`Kind::Key`] for a key that is none, and when there is none at all. A secret key given by mistake is not shown.
    pub fn parse<S: AsRef<str>>(keys: &[S]) -> Result<Self, StoreError> {
        let parse = |(place, key): (usize, &S)| {
            let key = key.as_ref().trim();
            x25519::Recipient::from_str(key).map_err(|_| {
                let why = if key.to_ascii_uppercase().starts_with("AGE-SECRET-KEY-") {
                    "is a secret key; give the public one beside it, and take this one to be known"
                } else {
                    "is no public key of age (age1…, as age-keygen prints it)"
                };
                StoreError::new(Kind::Key, format!("recipient {} {why}", place + 1))
            })
        };
        let recipients = keys.iter().enumerate().map(parse).collect::<Result<Vec<_>, _>>()?;
        if recipients.is_empty() {
            return Err(StoreError::new(Kind::Key, "no recipient is given, so that nobody could read the copies"));
        }
        Ok(Self(recipients))
    }

    /// What seals all that is written to it, and passes it on to `output`.
    pub(super) fn seal<W: Write>(&self, output: W) -> io::Result<age::stream::StreamWriter<W>> {
        let recipients = self.0.iter().map(|recipient| recipient as &dyn age::Recipient);
        Encryptor::with_recipients(recipients).map_err(io::Error::other)?.wrap_output(output)
    }
}

impl fmt::Debug for Recipients {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Recipients({})", self.0.len())
    }
}

/// The secret keys of an identity file.
pub(super) struct Identities {
    keys: Vec<x25519::Identity>,
    path: PathBuf,
}

impl Identities {
    /// Read an identity file as age-keygen(1) writes it.
    pub(super) async fn read(path: &Path) -> Result<Self, StoreError> {
        let path = path.to_path_buf();
        let read = spawn_blocking(move || {
            let shown = path.display();
            let text = std::fs::read_to_string(&path).map_err(|error| {
                StoreError::new(Kind::Key, format!("cannot read the identity file {shown}: {error}"))
            })?;
            let keys = identities(&text).map_err(|why| {
                StoreError::new(Kind::Key, format!("the identity file {shown} cannot be used: {why}"))
            })?;
            Ok(Self { keys, path })
        });
        read.await.map_err(|error| StoreError::thread(&error))?
    }

    /// What is under the seal of `sealed`.
    pub(super) fn open<R: Read>(&self, sealed: R) -> Result<impl Read + use<R>, StoreError> {
        let opened = Decryptor::new(sealed)
            .and_then(|decryptor| decryptor.decrypt(self.keys.iter().map(|key| key as &dyn age::Identity)));
        opened.map_err(|error| match error {
            DecryptError::NoMatchingKeys | DecryptError::DecryptionFailed | DecryptError::KeyDecryptionFailed => {
                let why = "the copy was sealed for somebody else; name the identity file of one of its recipients";
                StoreError::new(Kind::Key, format!("no key in {} opens it: {why}", self.path.display()))
            }
            DecryptError::ExcessiveWork { .. } => {
                StoreError::new(Kind::Key, "the copy is sealed with a passphrase; open it with age -d")
            }
            error => damaged(&error),
        })
    }
}

/// The seal does not fit what is under it.
pub(super) fn damaged(error: &dyn fmt::Display) -> StoreError {
    StoreError::new(Kind::Altered, format!("the sealed copy is damaged or cut ({error}); take another copy"))
}

fn identities(text: &str) -> Result<Vec<x25519::Identity>, String> {
    if text.starts_with("age-encryption.org/") || text.starts_with("-----BEGIN AGE") {
        return Err("it is itself sealed with a passphrase; open it with age -d first".into());
    }
    let lines = text.lines().map(str::trim).enumerate();
    let written = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    let parse = |(number, line): (usize, &str)| {
        x25519::Identity::from_str(line).map_err(|_| format!("line {} is no AGE-SECRET-KEY-1…", number + 1))
    };
    let keys = written.map(parse).collect::<Result<Vec<_>, _>>()?;
    if keys.is_empty() { Err("it holds no key".into()) } else { Ok(keys) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use age::secrecy::ExposeSecret;

    #[test]
    fn a_secret_key_in_the_wrong_place_is_not_shown() {
        let key = x25519::Identity::generate();
        let secret = key.to_string();
        let (public, secret) = (key.to_public().to_string(), secret.expose_secret());
        Recipients::parse(&[&public, &format!(" {public} ")]).unwrap();
        for (keys, words) in [
            (vec![public.as_str(), secret], "recipient 2 is a secret key"),
            (vec!["ssh-ed25519 AAAA"], "age1"),
            (vec![], "no recipient"),
        ] {
            let error = Recipients::parse(&keys).unwrap_err();
            assert!(error.to_string().contains(words) && !format!("{error:?}").contains(secret), "{error}");
        }
        assert_eq!(identities(&format!("# created: today\n# public key: {public}\n\n{secret}\n")).unwrap().len(), 1);
        for (text, words) in [
            (format!("# a\n{public}"), "line 2"),
            ("# a\n".to_owned(), "holds no key"),
            ("age-encryption.org/v1\n".to_owned(), "passphrase"),
        ] {
            let why = identities(&text).err().unwrap();
            assert!(why.contains(words) && !why.contains(&public), "{why}");
        }
    }
}
