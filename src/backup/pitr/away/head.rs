//! Who made a file of WAL: before its first byte in a destination stands a frame that zstd passes over (RFC 8878, 3.1.2), with
//! what the file is called, whose it is and its digest, signed.
//!
//! It is one object with the file, so that neither is ever there without the other, and `zstd -d` reads it still.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::Away;
use crate::backup::restore::NOT_SIGNED;
use crate::backup::signature::Signed;
use crate::exit::{Code, Failure};
use crate::install::hexadecimal;

/// One of the sixteen magic numbers of frames that are passed over.
const MAGIC: u32 = 0x184D_2A5A;
/// The longest that is read, in bytes.
const LENGTH_MAX: u32 = 4096;

/// What is signed.
#[derive(Serialize, Deserialize)]
struct Label {
    name: String,
    system_identifier: u64,
    /// Of what follows, in bytes.
    size_bytes: u64,
    sha256: String,
}

impl Away {
    /// The frame for the file `name` that lies at `path`.
    ///
    /// # Errors
    /// It cannot be read.
    pub(super) fn head(&self, name: &str, path: &Path) -> anyhow::Result<Vec<u8>> {
        let (size_bytes, sha256) = digest(&mut File::open(path)?)?;
        let label = Label { name: name.to_owned(), system_identifier: self.system, size_bytes, sha256 };
        let text = serde_json::to_vec(&self.keys.sign(&label)?).context("describe the file")?;
        let length = u32::try_from(text.len()).context("describe the file")?;
        Ok([&MAGIC.to_le_bytes()[..], &length.to_le_bytes(), &text].concat())
    }

    /// Check that the fetched file at `path` is the file `name`, as this deployment sent it.
    ///
    /// # Errors
    /// It is another, or was changed; or nobody here has signed it.
    pub(super) fn check_head(&self, name: &str, path: &Path) -> anyhow::Result<()> {
        let shown = || format!("{name} in {}", self.destination);
        let mut file = File::open(path).with_context(|| format!("read {}", path.display()))?;
        let Some(value) = read(&mut file).with_context(shown)? else {
            return match self.trust {
                true => Ok(()),
                false => Err(Failure::new(Code::Failed, format!("{}: {NOT_SIGNED}", shown())).into()),
            };
        };
        self.check_signed(&value, &shown())?;
        let label: Label = serde_json::from_value(value).with_context(shown)?;
        let (size, sha256) = digest(&mut file).with_context(shown)?;
        let same_place = label.name == name && label.system_identifier == self.system;
        if !same_place || (label.size_bytes, label.sha256) != (size, sha256) {
            let text =
                format!("{} is not what was sent there: it is damaged, or another file was put in its place", shown());
            return Err(Failure::new(Code::Failed, text).into());
        }
        Ok(())
    }

    /// Check that this deployment has signed `value`, which is from `shown`.
    ///
    /// # Errors
    /// It has not, and what it has not signed is not trusted.
    pub(super) fn check_signed(&self, value: &Value, shown: &str) -> anyhow::Result<()> {
        match self.keys.check(value) {
            Signed::Here => Ok(()),
            Signed::Not | Signed::Elsewhere if self.trust => Ok(()),
            Signed::Not | Signed::Elsewhere => Err(Failure::new(Code::Failed, format!("{shown}: {NOT_SIGNED}")).into()),
        }
    }
}

/// The frame's content; the file is read from behind it on then. `None`: it has none.
fn read(file: &mut File) -> anyhow::Result<Option<Value>> {
    let mut start = [0; 8];
    if file.read_exact(&mut start).is_err() {
        file.seek(SeekFrom::Start(0))?;
        return Ok(None);
    }
    let [a, b, c, d, e, f, g, h] = start;
    let length = u32::from_le_bytes([e, f, g, h]);
    if u32::from_le_bytes([a, b, c, d]) != MAGIC {
        file.seek(SeekFrom::Start(0))?;
        return Ok(None);
    }
    if length > LENGTH_MAX {
        bail!("its head is damaged");
    }
    let mut text = vec![0; usize::try_from(length)?];
    file.read_exact(&mut text).context("its head is cut")?;
    serde_json::from_slice(&text).map(Some).context("its head is damaged")
}

/// The length of the rest of `file` in bytes, and its SHA-256 in hexadecimal.
pub(super) fn digest(file: &mut File) -> io::Result<(u64, String)> {
    let (mut digest, mut size, mut chunk) = (Sha256::new(), 0, vec![0; 256 << 10]);
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok((size, hexadecimal(&digest.finalize()))),
            count => {
                digest.update(&chunk[..count]);
                size += count as u64;
            }
        }
    }
}
