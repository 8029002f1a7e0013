//! The application's database password: the operator's own, or one made here and kept in the run directory.

use std::fs;
use std::io;
use std::num::NonZeroU32;
use std::path::PathBuf;

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::TryRng;
use rand::rngs::SysRng;

use super::files::write_whole;
use super::home::Home;
use super::scram;
use crate::exit::{Code, Failure};
use crate::plan::Secret;
use crate::scrub;

/// A password, and whether Tandem made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Password {
    pub secret: Secret,
    pub generated: bool,
}

impl Password {
    /// The rounds its verifier gets: see [`scram`].
    pub fn iterations(&self) -> NonZeroU32 {
        if self.generated { scram::ITERATIONS_GENERATED } else { scram::ITERATIONS_GIVEN }
    }
}

/// Length of a password made here: 256 bits in base64.
const LENGTH: usize = 43;

/// Where it is kept.
pub(super) fn path(home: &Home) -> PathBuf {
    home.run.join("password")
}

/// The password to use: `given` if there is one, else the one kept in `home`, if it was made yet.
///
/// # Errors
/// [`Failure`] with [`Code::CannotCreate`] when the password file cannot be read, or is not as it was written.
pub fn existing(home: &Home, given: Option<&Secret>) -> anyhow::Result<Option<Password>> {
    if let Some(secret) = given {
        return Ok(Some(Password { secret: secret.clone(), generated: false }));
    }
    let path = path(home);
    match fs::read(&path).map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned()) {
        // An empty file is what a full disk leaves behind under other programs: make a new one.
        Ok(text) if text.is_empty() => Ok(None),
        Ok(text) if is_ours(&text) => {
            scrub::learn(&text);
            Ok(Some(Password { secret: Secret::new(text), generated: true }))
        }
        Ok(_) => {
            // A truncated file would become a short password that a single round of SCRAM protects.
            let what = format!("the password file {} is damaged: it is not what Tandem wrote", path.display());
            let ways = "remove it, and the next `tandem up` makes another password; or give your own with postgres.password_file";
            Err(Failure::new(Code::CannotCreate, format!("{what}; {ways}")).into())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => {
            let message =
                format!("cannot read the password file {}; run this as the user who runs Tandem", path.display());
            Err(anyhow::Error::new(error).context(Failure::new(Code::CannotCreate, message)))
        }
    }
}

/// Letters, digits, `-` and `_`, as [`ensure`] makes them.
fn is_ours(text: &str) -> bool {
    text.len() == LENGTH && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
}

/// As [`existing`], and makes and keeps a password when there is none.
///
/// # Errors
/// When the password file cannot be read or written.
pub fn ensure(home: &Home, given: Option<&Secret>) -> anyhow::Result<Password> {
    if let Some(password) = existing(home, given)? {
        return Ok(password);
    }
    let made = make()?;
    keep(home, &made)?;
    Ok(made)
}

/// A new password of Tandem's own, not kept yet.
///
/// # Errors
/// The system has no randomness to give.
pub fn make() -> anyhow::Result<Password> {
    let mut bits = [0; 32];
    SysRng.try_fill_bytes(&mut bits).context("ask the system for randomness")?;
    // Letters, digits, `-` and `_`: nothing that a URL must encode, because Alembic's configuration chokes on `%`.
    let text = URL_SAFE_NO_PAD.encode(bits);
    scrub::learn(&text);
    Ok(Password { secret: Secret::new(text), generated: true })
}

/// Keep `password`, one of Tandem's own, for the next start and for commands.
///
/// # Errors
/// The file cannot be written; the old one is then still there.
pub fn keep(home: &Home, password: &Password) -> anyhow::Result<()> {
    write_whole(&path(home), password.secret.expose(), 0o600, None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_made_password_is_kept_private_and_a_given_one_wins() {
        let temp = tempfile::tempdir().unwrap();
        let home = Home::at(temp.path(), None);
        home.prepare().unwrap();
        assert_eq!(existing(&home, None).unwrap(), None);
        let made = ensure(&home, None).unwrap();
        let text = made.secret.expose();
        assert!(made.generated && is_ours(text), "{text}");
        assert_eq!(path(&home).metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(ensure(&home, None).unwrap(), made);
        let given = ensure(&home, Some(&Secret::new("mine"))).unwrap();
        assert_eq!((given.secret.expose(), given.generated), ("mine", false));
        assert_eq!(ensure(&home, None).unwrap(), made, "the given one is not kept");
    }
}
