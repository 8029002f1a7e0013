//! An archive to attach to a report of a fault: what the checks said, the configuration, versions, the last lines of the log.
//!
//! It goes to strangers. So every secret that is known or may be one is replaced: passwords, the values of the workers'
//! environment, keys of clouds, whatever else the process has hidden from its texts.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::Value;
use tar::{Builder, Header};

use super::facts::{Facts, Look, Unseen};
use super::look::changed_settings;
use super::report::Diagnosis;
use super::subject::Subject;
use crate::control::client;
use crate::control::messages::{LogEntry, LogQuery};
use crate::durable::{self, WriteOptions};
use crate::event_loop::within;
use crate::exit::{Code, Failure, in_words};
use crate::plan::{DatabaseUrl, Secret};
use crate::postgres::secret;
use crate::scrub::{HIDDEN, scrubbed};

/// So many lines of the log.
const LINES: usize = 2_000;
/// So much of a log file, in bytes from its end.
const LOG_SIZE: u64 = 512 << 10;
/// How long the running Tandem, its server or a disk may take for one part.
const PART_LIMIT: Duration = Duration::from_secs(5);
/// Shorter values stand in too many texts.
const SECRET_MIN: usize = 4;
const VALUE_MIN: usize = 8;
/// Names of variables whose values are secrets, however short.
const TELLING: [&str; 11] =
    ["KEY", "SECRET", "TOKEN", "PASS", "PWD", "CREDENTIAL", "DSN", "AUTH", "PRIVATE", "COOKIE", "SALT"];
const DIR: &str = "tandem-doctor";

const README: &str = "What `tandem doctor --bundle` wrote, to attach to a report of a fault.

doctor.json         what each check found
configuration.json  every key with its value and origin, secrets hidden
versions.txt        Tandem, PostgreSQL, Uvicorn, the operating system
status.json         the processes, if Tandem runs
pg_controldata.txt  what the cluster says of itself
settings.txt        settings of the server that differ from PostgreSQL's defaults
log.txt             the last lines of the log

Passwords, keys, and the values of the workers' environment are replaced by ********. Look through it before you send it: what
the application wrote into its log may hold more that is nobody's business.
";

/// Write the archive `file`, of what was found about `subject`.
///
/// # Errors
/// There is a file of this name, which is left as it is; or it cannot be written.
pub async fn write(file: &Path, subject: &Subject, facts: &Facts, diagnosis: &Diagnosis) -> anyhow::Result<()> {
    let secrets = Secrets::of(subject);
    let mut parts: Vec<(&str, String)> = vec![
        ("README.txt", README.to_owned()),
        ("doctor.json", serde_json::to_string_pretty(diagnosis)?),
        ("versions.txt", versions(facts)),
        ("log.txt", log(subject).await),
    ];
    if let Some(loaded) = &subject.loaded {
        parts.push(("configuration.json", serde_json::to_string_pretty(&loaded.to_json())?));
    }
    if let Ok(running) = &facts.tandem
        && let Some(Ok(status)) = &running.status
    {
        parts.push(("status.json", serde_json::to_string_pretty(status)?));
    }
    if let Ok(data) = &facts.data
        && let Some(control) = &data.control
    {
        parts.push(("pg_controldata.txt", lines(control.as_ref().map_err(Clone::clone).map(table))));
    }
    if facts.server.is_ok() {
        let asked = tokio::time::timeout(PART_LIMIT, changed_settings(subject)).await;
        let asked: Look<Vec<String>> = asked.unwrap_or_else(|_| Err(Unseen::unknown("no answer from the server")));
        let told = asked.map_err(Unseen::words);
        parts.push(("settings.txt", lines(told.map(|all| all.join("\n")))));
    }
    let parts = parts.into_iter().map(|(name, text)| (name, secrets.hidden(&text))).collect::<Vec<_>>();
    let bytes = packed(&parts).context("pack the archive")?;
    durable::create(file, &bytes, &WriteOptions::default().mode(0o600)).map_err(|error| {
        let shown = file.display();
        let message = match error.kind() {
            io::ErrorKind::AlreadyExists => format!("{shown} is there already, and stays as it is: name another file"),
            _ => format!("cannot write {shown}: {error}"),
        };
        Failure::new(Code::CannotCreate, message).into()
    })
}

fn lines(told: Result<String, String>) -> String {
    told.unwrap_or_else(|why| format!("not known: {why}")) + "\n"
}

fn table(fields: &BTreeMap<String, String>) -> String {
    fields.iter().map(|(name, value)| format!("{name}: {value}")).collect::<Vec<_>>().join("\n")
}

fn versions(facts: &Facts) -> String {
    let commit = option_env!("TANDEM_BUILT_FROM").unwrap_or_default();
    let mut all = vec![format!("tandem {} {commit}", env!("CARGO_PKG_VERSION"))];
    if let Ok(programs) = &facts.programs {
        all.push(format!("PostgreSQL {} in {}", programs.version, programs.bin.display()));
    }
    if let Ok(python) = &facts.python {
        let uvicorn = python.uvicorn.as_deref().unwrap_or("not there");
        all.push(format!("Python {}, uvicorn {uvicorn}", python.interpreter.display()));
    }
    if let Ok(machine) = &facts.machine {
        all.push(machine.system.clone());
    }
    all.join("\n") + "\n"
}

/// The last lines of the running Tandem's log; else of the file of the last one in the background.
async fn log(subject: &Subject) -> String {
    let Ok(home) = &subject.home else { return "not known: there is no state directory\n".to_owned() };
    let mut text = String::new();
    let query = LogQuery { lines: Some(LINES), ..LogQuery::default() };
    let asked = client::logs(&home.control, &query, |entry| {
        if let LogEntry::Line { time, service, level, text: line, .. } = entry {
            text.push_str(&format!("{time} {level} {service}: {line}\n"));
        }
        Ok(())
    });
    let why = match tokio::time::timeout(PART_LIMIT, asked).await {
        Ok(Ok(())) => return text,
        Ok(Err(error)) => in_words(&error),
        Err(_) => "the running tandem does not answer".to_owned(),
    };
    let own = subject.settings.as_ref().ok().and_then(|settings| Some(settings.log.file.as_ref()?.path.clone()));
    let file = own.unwrap_or_else(|| home.state.join("tandem.log"));
    match within(PART_LIMIT, "read the log file", move || of_file(&file)).await {
        Ok(Some(text)) => text,
        _ => format!("not known: {why}\n"),
    }
}

fn of_file(file: &Path) -> Option<String> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = fs::File::open(file).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_SIZE))).ok()?;
    let mut bytes = Vec::new();
    file.take(LOG_SIZE).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// Everything that must not be in the archive.
struct Secrets(Vec<String>);

impl Secrets {
    fn of(subject: &Subject) -> Self {
        let mut all = BTreeSet::new();
        if let Ok(settings) = &subject.settings {
            let postgres = &settings.postgres;
            let passwords = postgres.password.iter().chain(postgres.url.iter().filter_map(|url| url.password.as_ref()));
            let names = [&postgres.user, &postgres.database, &settings.name];
            let passwords = passwords.map(Secret::expose).filter(|it| !names.iter().any(|name| name == it));
            all.extend(passwords.map(str::to_owned));
            all.extend(settings.cloud_variables.secrets().map(str::to_owned));
            let own = settings.workers.env.iter().chain(settings.processes.iter().flat_map(|it| &it.env));
            own.for_each(|(name, value)| of_variable(name, value, true, &mut all));
            settings.inherited.0.iter().for_each(|(name, value)| of_variable(name, value, false, &mut all));
        }
        // Whatever is wrong with the configuration.
        subject.source.environment.iter().for_each(|(name, value)| of_variable(name, value, false, &mut all));
        if let Ok(home) = &subject.home
            && let Ok(Some(password)) = secret::existing(home, None)
        {
            all.insert(password.secret.expose().to_owned());
        }
        let mut all: Vec<String> = all.into_iter().filter(|secret| secret.len() >= SECRET_MIN).collect();
        // The longest first, so that one inside another leaves no rest of it.
        all.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        Self(all)
    }

    fn hidden(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for secret in &self.0 {
            let encoded = percent_encoding::utf8_percent_encode(secret, percent_encoding::NON_ALPHANUMERIC).to_string();
            let json = Value::from(secret.as_str()).to_string();
            for form in [secret.as_str(), &encoded, json.trim_matches('"')] {
                text = text.replace(form, HIDDEN);
            }
        }
        let text = scrubbed(&text).into_owned();
        text.split_inclusive('\n').map(without_assigned).collect()
    }
}

/// What stands before a secret in connection strings and addresses, in small letters.
const BEFORE: [&str; 7] = ["password=", "passwd=", "pwd=", "passfile=", "token=", "secret=", "api_key="];

/// A line without what looks like a secret that somebody else wrote into it, such as a setting with `password=…` in the server's
/// log, or an address with a password.
fn without_assigned(line: &str) -> String {
    let ends = |letter: char| letter.is_whitespace() || "'\"&;,)".contains(letter);
    let mut line = line.to_owned();
    for before in BEFORE {
        let mut from = 0;
        while let Some(at) = line[from..].to_ascii_lowercase().find(before) {
            let begin = from + at + before.len();
            let end = line[begin..].find(ends).map_or(line.len(), |length| begin + length);
            line.replace_range(begin..end, HIDDEN);
            from = begin + HIDDEN.len();
        }
    }
    let mut from = 0;
    while let Some(at) = line[from..].find("://") {
        let begin = from + at + "://".len();
        let end = line[begin..].find(|letter: char| ends(letter) || letter == '/').map_or(line.len(), |it| begin + it);
        from = end;
        let Some(at_sign) = line[begin..end].rfind('@') else { continue };
        let Some(colon) = line[begin..begin + at_sign].find(':') else { continue };
        line.replace_range(begin + colon + 1..begin + at_sign, HIDDEN);
        from = begin + colon + 1 + HIDDEN.len();
    }
    line
}

/// Add the value of a variable if it is, or may be, a secret: what the project gives its workers is nobody's business, whatever
/// it is called.
fn of_variable(name: &str, value: &str, is_own: bool, all: &mut BTreeSet<String>) {
    let name = name.to_uppercase();
    let tells = TELLING.iter().any(|word| name.contains(word));
    let is_path = value.starts_with('/') && !value.contains('@');
    if let Some(password) = DatabaseUrl::parse(value).ok().and_then(|url| url.password) {
        all.insert(password.expose().to_owned());
    } else if let Some(password) = url::Url::parse(value).ok().and_then(|url| url.password().map(str::to_owned)) {
        all.insert(password);
    }
    // A reference to the server's own values has none itself, and a flag is no secret.
    let is_plain = value.parse::<f64>().is_ok() && value.len() < VALUE_MIN || matches!(value, "true" | "false");
    if !is_plain && !is_path && (tells || is_own && value.len() >= VALUE_MIN) {
        all.insert(value.to_owned());
    }
}

fn packed(parts: &[(&str, String)]) -> io::Result<Vec<u8>> {
    let mut archive = Builder::new(GzEncoder::new(Vec::new(), Compression::default()));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs();
    for (name, text) in parts {
        let mut header = Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(now);
        archive.append_data(&mut header, format!("{DIR}/{name}"), text.as_bytes())?;
    }
    let mut bytes = archive.into_inner()?.finish()?;
    bytes.flush()?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_workers_get_is_hidden_whatever_it_is_called() {
        let mut all = BTreeSet::new();
        for (name, value, is_own) in [
            ("STRIPE_KEY", "sk_1", true),
            ("GREETING", "hello to all of you", true),
            ("DEBUG", "true", true),
            ("PORT", "8000", true),
            ("PYTHONPATH", "/srv/app/lib", true),
            ("REDIS_URL", "redis://:rp4ss@cache/0", false),
            ("EDITOR", "something-long", false),
        ] {
            of_variable(name, value, is_own, &mut all);
        }
        assert_eq!(all.into_iter().collect::<Vec<_>>(), ["hello to all of you", "rp4ss", "sk_1"]);
        let secrets = Secrets(vec!["a\"b c/d".into()]);
        let said = format!("{} and {}", serde_json::json!({ "x": "a\"b c/d" }), "http://h/?q=a%22b%20c%2Fd");
        assert_eq!(secrets.hidden(&said), "{\"x\":\"********\"} and http://h/?q=********");
    }

    #[test]
    fn what_others_wrote_as_a_secret_is_hidden() {
        for (line, expected) in [
            ("conninfo 'host=a PASSWORD=x1 port=1'\n", "conninfo 'host=a PASSWORD=******** port=1'\n"),
            ("postgresql://app:s@c:ret@db:5/app", "postgresql://app:********@db:5/app"),
            ("see https://host/a:b@c and token=t&x=1", "see https://host/a:b@c and token=********&x=1"),
            ("https://user@host/", "https://user@host/"),
        ] {
            assert_eq!(without_assigned(line), expected);
        }
    }

    #[test]
    fn an_archive_holds_its_parts() {
        let bytes = packed(&[("a.txt", "one".into()), ("b.txt", "two".into())]).unwrap();
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(&bytes[..]));
        let names: Vec<_> =
            archive.entries().unwrap().map(|it| it.unwrap().path().unwrap().display().to_string()).collect();
        assert_eq!(names, ["tandem-doctor/a.txt", "tandem-doctor/b.txt"]);
    }
}
