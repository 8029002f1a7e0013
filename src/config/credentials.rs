//! The credentials for copies of backups that only Tandem gets. No child inherits them.
//!
//! ```text
//! tandem.backup in $CREDENTIALS_DIRECTORY      systemd's LoadCredential=tandem.backup:/path
//!   < backup.credentials_file                  a file that only its owner reads
//!   < TANDEM_BACKUP_AWS_ACCESS_KEY_ID and so on, in .env or the environment
//! ```
//!
//! Each source sets variables that the cloud's own tools use. If one of them sets any variable of a cloud, Tandem ignores
//! the common variables of that cloud in the environment: they are the application's.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::Source;
use super::environment::effective_user;
use super::problem::{Origin, Problems};
use super::rows::{HIDDEN, Row};
use super::values::Values;
use super::{dotenv, text};

/// The prefix of each cloud's variables, and the scheme of its addresses.
pub(super) const CLOUDS: [(&str, &str); 3] = [("AWS_", "s3://"), ("GOOGLE_", "gs://"), ("AZURE_", "az://")];
/// The prefix of a variable that only Tandem reads.
const PREFIX: &str = "TANDEM_BACKUP_";
/// The name of systemd's credential.
const CREDENTIAL: &str = "tandem.backup";
/// The key of the file.
const KEY: &str = "backup.credentials_file";

/// Values by the cloud's variable, each with its origin.
pub(super) type Said = BTreeMap<String, (String, Origin)>;

/// The cloud's variable that `name` sets for Tandem alone, if it sets one.
pub(super) fn own_name(name: &str) -> Option<&str> {
    name.strip_prefix(PREFIX).filter(|name| cloud_of(name).is_some())
}

/// The prefix of the cloud that the variable `name` belongs to.
fn cloud_of(name: &str) -> Option<&'static str> {
    CLOUDS.iter().map(|(start, _)| *start).find(|start| name.starts_with(start))
}

/// Whether the cloud variable `name` holds a credential, and not an address or an option.
pub(super) fn lets_in(name: &str) -> bool {
    const TELLING: [&str; 6] = ["KEY", "SECRET", "TOKEN", "PASSWORD", "CREDENTIAL", "SERVICE_ACCOUNT"];
    cloud_of(name).is_some() && TELLING.iter().any(|word| name.contains(word))
}

/// Read the credentials of all three sources. `written` are those of `.env` and the environment.
pub(super) fn read(source: &Source, written: Said, values: &Values, problems: &mut Problems) -> Said {
    let mut said = Said::new();
    if let Some(dir) = source.environment.get("CREDENTIALS_DIRECTORY").filter(|dir| !dir.is_empty()) {
        let path = Path::new(dir).join(CREDENTIAL);
        if path.exists() {
            said.extend(file(&path, &Origin::Environment("CREDENTIALS_DIRECTORY".to_owned()), problems));
        }
    }
    if let Some(path) = values.path(KEY) {
        let origin = values.origin(KEY);
        match closed(&path) {
            Ok(()) => said.extend(file(&path, origin, problems)),
            Err((why, help)) => problems.add_to(KEY, origin, format!("{KEY}: {} {why}", path.display()), help),
        }
    }
    said.extend(written);
    said
}

/// Check that only its owner can read the file, and that the owner is Tandem's user or root.
fn closed(path: &Path) -> Result<(), (String, Option<String>)> {
    let meta = path.metadata().map_err(|error| (format!("cannot be read: {error}"), None))?;
    let shown = path.display();
    if !meta.is_file() {
        return Err(("is not a file".to_owned(), None));
    }
    if meta.mode() & 0o077 != 0 {
        let why = format!("is open to other users (mode {:04o})", meta.mode() & 0o7777);
        return Err((why, Some(format!("chmod 600 {shown}"))));
    }
    let user = effective_user();
    if meta.uid() != user && meta.uid() != 0 {
        let why = format!("belongs to user id {}", meta.uid());
        return Err((why, Some(format!("chown {user} {shown}"))));
    }
    Ok(())
}

/// Read the variables in the file at `path`. `origin` says who named the file.
fn file(path: &Path, origin: &Origin, problems: &mut Problems) -> Said {
    let text = match text::read(path) {
        Ok(text) => text,
        Err(error) => {
            problems.add(origin, format!("cannot read {}: {error}", path.display()), None);
            return Said::new();
        }
    };
    let at = |line| Origin::Line { file: path.to_path_buf(), line, name: None };
    // `${NAME}` is not replaced: a credential must not come from the environment by this way.
    let (variables, bad) = dotenv::parse(&text, &|_| None);
    bad.into_iter().for_each(|bad| problems.add(&at(bad.line), bad.message, None));
    let mut said = Said::new();
    for dotenv::Variable { name, value, line } in variables {
        let name = name.strip_prefix(PREFIX).unwrap_or(&name);
        if cloud_of(name).is_some() {
            said.insert(name.to_owned(), (value, at(line)));
        } else {
            let help =
                "write variables such as AWS_ACCESS_KEY_ID, AZURE_STORAGE_ACCOUNT_KEY or GOOGLE_SERVICE_ACCOUNT_KEY";
            problems.add(&at(line), format!("{name} is no variable of a cloud"), Some(help.to_owned()));
        }
    }
    said
}

/// The variables for backups: Tandem's own (`said`), and the `common` ones of each cloud that has none of its own.
pub(super) fn together(said: &Said, common: impl Iterator<Item = (String, String)>) -> BTreeMap<String, String> {
    let taken = |name: &str| cloud_of(name).is_some_and(|cloud| said.keys().any(|own| own.starts_with(cloud)));
    let shared = common.filter(|(name, _)| !taken(name));
    let own = said.iter().map(|(name, (value, _))| (name.clone(), value.clone()));
    shared.chain(own).collect()
}

/// The rows of `tandem check` for Tandem's own credentials.
pub(super) fn rows(said: &Said) -> impl Iterator<Item = Row> + '_ {
    said.iter().map(|(name, (_, origin))| Row {
        key: format!("{PREFIX}{name}"),
        value: HIDDEN.to_owned(),
        origin: origin.to_string(),
        doc: "What lets Tandem into the place for copies; no child gets it",
    })
}

/// A warning if children inherit credentials for a destination of copies. `inherited` are the names that children get.
pub(super) fn notice<'a>(
    said: &Said,
    destinations: &[String],
    inherited: impl Iterator<Item = &'a str> + Clone,
) -> Option<String> {
    let shared = |(start, scheme): &(&'static str, &str)| {
        let used = destinations.iter().any(|address| address.starts_with(scheme));
        used && !said.keys().any(|own| own.starts_with(start))
            && inherited.clone().any(|name| name.starts_with(start) && lets_in(name))
    };
    let starts: Vec<&str> = CLOUDS.iter().filter(|cloud| shared(cloud)).map(|(start, _)| *start).collect();
    let mut names: Vec<&str> =
        inherited.clone().filter(|name| lets_in(name) && starts.iter().any(|start| name.starts_with(start))).collect();
    names.sort_unstable();
    names.dedup();
    let (first, patterns) = (names.first()?, starts.iter().map(|start| format!("\"{start}*\"")).collect::<Vec<_>>());
    Some(format!(
        "the workers inherit {}: an attacker who controls the application could delete the copies of the backups. Set \
         {PREFIX}{first} and so on instead, or use backup.credentials_file, or keep them from the workers with \
         workers.drop_env = [{}]",
        names.join(", "),
        patterns.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(names: &[&str]) -> Said {
        names.iter().map(|name| ((*name).to_owned(), ("own".to_owned(), Origin::Default))).collect()
    }

    #[test]
    fn a_name_is_tandems_own_where_a_clouds_name_follows() {
        assert_eq!(own_name("TANDEM_BACKUP_AWS_REGION"), Some("AWS_REGION"));
        assert_eq!(own_name("TANDEM_BACKUP_AZURE_STORAGE_SAS_TOKEN"), Some("AZURE_STORAGE_SAS_TOKEN"));
        for other in ["TANDEM_BACKUP__DIR", "TANDEM_BACKUP_ERROR", "AWS_REGION", "TANDEM_AWS_REGION"] {
            assert_eq!(own_name(other), None, "{other}");
        }
    }

    #[test]
    fn what_is_tandems_own_leaves_nothing_of_the_applications_for_the_same_cloud() {
        let common =
            [("AWS_SECRET_ACCESS_KEY", "app"), ("AWS_ENDPOINT_URL", "app"), ("AZURE_CLIENT_ID", "app"), ("HOME", "/")];
        let common = common.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let all = together(&said(&["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]), common.into_iter());
        let got: Vec<_> = all.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let expected =
            [("AWS_ACCESS_KEY_ID", "own"), ("AWS_SECRET_ACCESS_KEY", "own"), ("AZURE_CLIENT_ID", "app"), ("HOME", "/")];
        assert_eq!(got, expected);
    }

    #[test]
    fn children_that_inherit_the_keys_to_the_copies_are_a_notice() {
        let inherited = ["AWS_ACCESS_KEY_ID", "AWS_REGION", "AZURE_CLIENT_SECRET", "PATH"];
        let told = |own: &[&str], destinations: &[&str]| {
            let destinations: Vec<String> = destinations.iter().map(|it| (*it).to_owned()).collect();
            notice(&said(own), &destinations, inherited.iter().copied())
        };
        let both = told(&[], &["s3://bucket", "az://container"]).unwrap();
        assert!(both.contains("AWS_ACCESS_KEY_ID, AZURE_CLIENT_SECRET:") && !both.contains("AWS_REGION"), "{both}");
        assert!(both.contains("workers.drop_env = [\"AWS_*\", \"AZURE_*\"]"), "{both}");
        let one = told(&["AWS_ACCESS_KEY_ID"], &["s3://bucket", "az://container"]).unwrap();
        assert!(!one.contains("AWS_ACCESS"), "{one}");
        assert_eq!(told(&[], &["file:///srv"]), None);
        assert_eq!(told(&["AWS_ACCESS_KEY_ID"], &["s3://bucket"]), None);
    }
}
