//! Values that stand in files of their own: Docker's and Kubernetes' secrets, systemd's credentials.
//!
//! ```text
//! NAME_FILE=/run/secrets/url                        the value of NAME, where NAME gives a secret
//! tandem.postgres.url in $CREDENTIALS_DIRECTORY     the value of postgres.url; where a key names a file, that file
//! ```

use std::path::{Path, PathBuf};

use super::keys::{self, GUIDE_NAMES, Kind};
use super::layers::{Entry, Layer};
use super::problem::{Origin, Problems};
use super::value::Raw;
use super::{references, text};

/// What the names of systemd's credentials for Tandem begin with.
const CREDENTIAL: &str = "tandem.";
/// The credential that holds variables for copies of backups: `credentials` reads it.
const OF_COPIES: &str = "tandem.backup";
const FILE: &str = "_FILE";

/// The key whose value stands in the file that the variable `name` names, if it names one.
pub(super) fn key_of(name: &str) -> Option<&'static str> {
    let plain = name.strip_suffix(FILE)?;
    let guide = GUIDE_NAMES.iter().find(|(guide, _)| *guide == plain).map(|(_, key)| *key);
    let key = match (guide, plain.strip_prefix("TANDEM_")) {
        (Some(key), _) => keys::find(key)?,
        (None, Some(rest)) => keys::find(&rest.to_lowercase().replace("__", "."))?,
        (None, None) => return None,
    };
    // `postgres.password_file` is a key by itself.
    let has_own = keys::find(&format!("{}_file", key.name)).is_some();
    let is_secret = matches!(key.kind, Kind::Secret | Kind::Url | Kind::UrlOrCommand);
    (is_secret && !has_own).then_some(key.name)
}

/// The text of the file at `path`, without the newline that editors and `echo` end it with.
pub(super) fn read(path: &Path) -> Result<String, String> {
    let text = text::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    Ok(text.trim_end_matches(['\n', '\r']).to_owned())
}

/// Refuse where a variable and the one that names a file give the same key in one layer.
pub(super) fn refuse_both(entries: &[Entry], problems: &mut Problems) {
    for file in entries {
        let name = file.origin.name_of(&file.key);
        let Some(plain) = name.strip_suffix(FILE).filter(|_| key_of(name) == Some(file.key.as_str())) else { continue };
        let is_other = |other: &&Entry| {
            other.key == file.key && other.rank / 4 == file.rank / 4 && other.origin.name_of(&other.key) == plain
        };
        if entries.iter().any(|other| is_other(&other)) {
            let message = format!("{name} and {plain} both give {}", file.key);
            problems.add_to(&file.key, &file.origin, message, Some("keep one of them".into()));
        }
    }
}

/// What systemd's credentials in `dir` say.
pub(super) fn credentials(dir: &Path, problems: &mut Problems) -> Vec<Entry> {
    let Ok(found) = dir.read_dir() else { return Vec::new() };
    let mut paths: Vec<PathBuf> = found.flatten().map(|entry| entry.path()).filter(|path| path.is_file()).collect();
    paths.sort();
    paths.iter().filter_map(|path| credential(path, problems)).collect()
}

fn credential(path: &Path, problems: &mut Problems) -> Option<Entry> {
    let name = path.file_name()?.to_str()?;
    let key = name.strip_prefix(CREDENTIAL).filter(|_| name != OF_COPIES)?;
    let origin = Origin::Environment(format!("CREDENTIALS_DIRECTORY/{name}"));
    let table = keys::find_table(key).map(|(table, _)| table);
    let Some(known) = keys::find(key).filter(|known| !known.kind.is_table()).or(table) else {
        let help = keys::closest(key).map(|key| format!("did you mean {CREDENTIAL}{key}?"));
        problems.add(&origin, format!("the credential {name} names no key of the configuration"), help);
        return None;
    };
    let value = match known.kind {
        Kind::Path => path.display().to_string(),
        kind => match read(path) {
            Ok(text) if kind == Kind::SecretTable => references::literal(&text),
            Ok(text) => text,
            Err(why) => {
                problems.add(&origin, format!("the credential {name}: {why}"), None);
                return None;
            }
        },
    };
    // Above the variables: whoever made a credential of it did so on purpose.
    let rank = Layer::Environment as u8 * 4 + 3;
    Some(Entry { key: key.to_owned(), raw: Raw::Word(value), origin, rank, base: path.parent()?.to_path_buf() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_names_a_file_where_the_other_gives_a_secret() {
        for (name, key) in [
            ("DATABASE_URL_FILE", Some("postgres.url")),
            ("TANDEM_POSTGRES__URL_FILE", Some("postgres.url")),
            ("TANDEM_BACKUP__ON_FAILURE_FILE", Some("backup.on_failure")),
            // Keys by themselves.
            ("POSTGRES_PASSWORD_FILE", None),
            ("TANDEM_POSTGRES__PASSWORD_FILE", None),
            ("TANDEM_POSTGRES__PORT_FILE", None),
            ("AWS_WEB_IDENTITY_TOKEN_FILE", None),
            ("_FILE", None),
        ] {
            assert_eq!(key_of(name), key, "{name}");
        }
    }

    #[test]
    fn credentials_are_read_by_their_keys_names() {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("tandem.postgres.password", "a secret\n"),
            ("tandem.postgres.tls_key", "a key\n"),
            ("tandem.workers.env.SECRET_KEY", "of the ${PGHOST} application"),
            ("tandem.backup", "AWS_ACCESS_KEY_ID=x\n"),
            ("tandem.postgres.pasword", "mistyped"),
            ("another", "of another program"),
        ] {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let mut problems = Problems::default();
        let entries = credentials(dir.path(), &mut problems);
        let of = |key: &str| entries.iter().find(|entry| entry.key == key).unwrap().raw.to_plain().unwrap();
        assert_eq!((entries.len(), of("postgres.password").as_str()), (3, "a secret"));
        assert_eq!(of("postgres.tls_key"), dir.path().join("tandem.postgres.tls_key").display().to_string());
        assert!(of("workers.env.SECRET_KEY").ends_with("{PGHOST} application"));
        let told = problems.sentences().collect::<String>();
        assert!(
            told.contains("tandem.postgres.pasword") && told.contains("did you mean tandem.postgres.password?"),
            "{told}"
        );
        assert!(credentials(&dir.path().join("none"), &mut problems).is_empty());
    }
}
