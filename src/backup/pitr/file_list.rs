//! PostgreSQL's own manifest of a base backup, `backup_manifest`, and whether files are those that it names.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};

use anyhow::{Context, bail};
use crc_fast::CrcAlgorithm;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::wal::Lsn;
use crate::install::hexadecimal;

/// What the file is called, in the backup's root.
pub const NAME: &str = "backup_manifest";
/// How much is read at once, in bytes.
const CHUNK: usize = 256 * 1024;

/// How a backup's files are checked, by PostgreSQL's names.
///
/// A checksum tells of what a disk or a network did to a file; who has made it is another question, which no checksum in a
/// manifest that is not signed answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Checksums {
    /// Of new backups: hundreds of times as fast as the disk.
    #[serde(rename = "CRC32C")]
    Crc32c,
    /// Of those that an older Tandem made.
    #[serde(rename = "SHA256")]
    Sha256,
}

impl Checksums {
    /// What those were that say nothing of it.
    pub fn older() -> Self {
        Self::Sha256
    }

    /// As pg_basebackup and the manifest call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Crc32c => "CRC32C",
            Self::Sha256 => "SHA256",
        }
    }
}

/// A checksum that is being made.
enum Sum {
    Crc32c(crc_fast::Digest),
    Sha256(Sha256),
}

impl Sum {
    fn new(checksums: Checksums) -> Self {
        match checksums {
            Checksums::Crc32c => Self::Crc32c(crc_fast::Digest::new(CrcAlgorithm::Crc32Iscsi)),
            Checksums::Sha256 => Self::Sha256(Sha256::new()),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Crc32c(crc) => crc.update(bytes),
            Self::Sha256(digest) => digest.update(bytes),
        }
    }

    /// In hexadecimal, as PostgreSQL writes it: of a CRC the bytes as they lie in memory.
    fn end(self) -> String {
        match self {
            #[expect(clippy::cast_possible_truncation, reason = "a CRC of 32 bits")]
            Self::Crc32c(crc) => hexadecimal(&(crc.finalize() as u32).to_ne_bytes()),
            Self::Sha256(digest) => hexadecimal(&digest.finalize()),
        }
    }
}

/// A backup's manifest.
#[derive(Debug, Deserialize)]
pub struct FileManifest {
    #[serde(rename = "Files")]
    files: Vec<Listed>,
    #[serde(rename = "WAL-Ranges")]
    ranges: Vec<Range>,
}

#[derive(Debug, Deserialize)]
struct Listed {
    #[serde(rename = "Path")]
    path: Option<String>,
    /// A path that is not UTF-8, in hexadecimal.
    #[serde(rename = "Encoded-Path")]
    encoded_path: Option<String>,
    #[serde(rename = "Size")]
    size: u64,
    #[serde(rename = "Checksum-Algorithm")]
    algorithm: Option<String>,
    #[serde(rename = "Checksum")]
    checksum: Option<String>,
}

/// The WAL that a backup needs to be whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Range {
    #[serde(rename = "Timeline")]
    pub timeline: u32,
    #[serde(rename = "Start-LSN")]
    pub start: Lsn,
    #[serde(rename = "End-LSN")]
    pub end: Lsn,
}

/// Length and checksum of each file that was seen, by its path in the data directory.
#[derive(Debug)]
pub struct Seen {
    checksums: Checksums,
    files: BTreeMap<Vec<u8>, (u64, String)>,
}

impl Seen {
    pub fn new(checksums: Checksums) -> Self {
        Self { checksums, files: BTreeMap::new() }
    }

    /// Read `from` to its end, into `to`, as the file `path`.
    ///
    /// # Errors
    /// One cannot be read, or the other written.
    pub fn copy(&mut self, path: &[u8], from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
        let (mut sum, mut size, mut chunk) = (Sum::new(self.checksums), 0, vec![0; CHUNK]);
        loop {
            let count = from.read(&mut chunk)?;
            if count == 0 {
                break;
            }
            sum.update(&chunk[..count]);
            to.write_all(&chunk[..count])?;
            size += count as u64;
        }
        self.files.insert(path.to_owned(), (size, sum.end()));
        Ok(())
    }

    /// Bytes of all files together.
    pub fn size(&self) -> u64 {
        self.files.values().map(|(size, _)| size).sum()
    }

    pub fn count(&self) -> usize {
        self.files.len()
    }
}

impl FileManifest {
    /// Read a manifest, which vouches for itself by its last line.
    ///
    /// # Errors
    /// It is damaged or of an unknown kind.
    pub fn read(bytes: &[u8]) -> anyhow::Result<Self> {
        #[derive(Deserialize)]
        struct Whole {
            #[serde(rename = "Manifest-Checksum")]
            checksum: String,
            #[serde(rename = "PostgreSQL-Backup-Manifest-Version")]
            version: u32,
        }
        let whole: Whole = serde_json::from_slice(bytes).context("read the backup's manifest")?;
        if whole.version != 1 {
            bail!("the backup's manifest is of version {}, and only 1 is known", whole.version);
        }
        let body = bytes.strip_suffix(b"\n").unwrap_or(bytes);
        let last_line = body.iter().rposition(|&byte| byte == b'\n').map_or(0, |newline| newline + 1);
        if hexadecimal(&Sha256::digest(&bytes[..last_line])) != whole.checksum {
            bail!("the backup's manifest is damaged: its checksum is another");
        }
        let manifest: Self = serde_json::from_slice(bytes).context("read the backup's manifest")?;
        if manifest.ranges.is_empty() {
            bail!("the backup's manifest names no WAL");
        }
        Ok(manifest)
    }

    /// The WAL from the beginning of the backup to its end.
    pub fn ranges(&self) -> &[Range] {
        &self.ranges
    }

    /// Whether what was `seen` is what the backup consists of.
    ///
    /// # Errors
    /// A file is missing, or its content another.
    pub fn verify(&self, seen: &Seen) -> anyhow::Result<()> {
        for file in &self.files {
            let path = file.path()?;
            let shown = String::from_utf8_lossy(&path).into_owned();
            let Some((size, checksum)) = seen.files.get(&path) else { bail!("the backup lacks {shown}") };
            if *size != file.size {
                bail!("{shown} in the backup has {size} bytes, not {}", file.size);
            }
            let name = seen.checksums.name();
            let Some(wanted) = file.checksum.as_ref().filter(|_| file.algorithm.as_deref() == Some(name)) else {
                bail!("the backup's manifest has no {name} of {shown}")
            };
            if wanted != checksum {
                bail!("{shown} in the backup is damaged: its checksum is another");
            }
        }
        Ok(())
    }
}

impl Listed {
    fn path(&self) -> anyhow::Result<Vec<u8>> {
        match (&self.path, &self.encoded_path) {
            (Some(path), _) => Ok(path.clone().into_bytes()),
            (None, Some(hex)) => {
                let byte = |at: usize| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok();
                let bytes: Option<Vec<u8>> = (0..hex.len()).step_by(2).map(byte).collect();
                bytes.context("the backup's manifest holds a path that cannot be read")
            }
            (None, None) => bail!("the backup's manifest holds a file without a path"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(files: &str) -> Vec<u8> {
        let body = format!(
            "{{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [\n{files}\n],\n\"WAL-Ranges\": [\n\
             {{ \"Timeline\": 1, \"Start-LSN\": \"0/2000028\", \"End-LSN\": \"0/2000100\" }}\n],\n"
        );
        let checksum = hexadecimal(&Sha256::digest(body.as_bytes()));
        format!("{body}\"Manifest-Checksum\": \"{checksum}\"}}\n").into_bytes()
    }

    #[test]
    fn a_backup_is_whole_when_every_file_is_as_the_manifest_says() {
        let sha256 = |bytes: &[u8]| hexadecimal(&Sha256::digest(bytes));
        checked(Checksums::Sha256, &sha256(b"16\n"), &sha256(b""));
        // As PostgreSQL 16 writes them.
        checked(Checksums::Crc32c, "13dca016", "00000000");
    }

    fn checked(checksums: Checksums, version: &str, empty: &str) {
        let mut seen = Seen::new(checksums);
        seen.copy(b"PG_VERSION", &mut &b"16\n"[..], &mut io::sink()).unwrap();
        seen.copy(b"caf\xe9", &mut &b""[..], &mut io::sink()).unwrap();
        let entry_of = |algorithm: &str, path: &str, size: u64, checksum: &str| {
            format!(
                "{{ {path}, \"Size\": {size}, \"Last-Modified\": \"2026-01-02 15:04:05 GMT\", \
                 \"Checksum-Algorithm\": \"{algorithm}\", \"Checksum\": \"{checksum}\" }}"
            )
        };
        let entry = |path: &str, size: u64, checksum: &str| entry_of(checksums.name(), path, size, checksum);
        let (first, second) = ("\"Path\": \"PG_VERSION\"", "\"Encoded-Path\": \"636166e9\"");
        let whole = manifest(&[entry(first, 3, version), entry(second, 0, empty)].join(",\n"));
        let read = FileManifest::read(&whole).unwrap();
        read.verify(&seen).unwrap();
        assert_eq!(read.ranges()[0].start.to_string(), "0/2000028");
        for wrong in [
            entry(first, 4, version),
            entry(first, 3, empty),
            entry("\"Path\": \"base/1/1\"", 0, empty),
            entry_of("SHA512", first, 3, version),
        ] {
            assert!(FileManifest::read(&manifest(&wrong)).unwrap().verify(&seen).is_err(), "{wrong}");
        }
        let mut damaged = whole.clone();
        let place = damaged.windows(4).position(|four| four == b": 3,").unwrap();
        damaged[place + 2] = b'4';
        assert!(FileManifest::read(&damaged).unwrap_err().to_string().contains("damaged"));
        assert!(FileManifest::read(&whole[..whole.len() / 2]).is_err());
    }
}
