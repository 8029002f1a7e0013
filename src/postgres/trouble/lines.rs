//! Find lasting errors in the last log lines of a server that ended before it answered. Pure.

use std::collections::BTreeMap;
use std::path::Path;

use super::Lasting;
use crate::exit::{Code, NoRoom};
use crate::postgres::log::{Line, Severity};

/// Where settings come from.
#[derive(Clone, Copy, Debug)]
pub struct SettingSources<'a> {
    /// `[postgres.settings]`.
    pub given: &'a BTreeMap<String, String>,
    /// postgresql.auto.conf, which wins.
    pub altered: &'a BTreeMap<String, String>,
    pub data: &'a Path,
}

/// Why the server could write no more, if it ended for that.
pub fn no_room(lines: &[String]) -> Option<NoRoom> {
    lines.iter().find_map(|line| {
        let last = Line::of(line).is_fatal();
        // Shared memory is on no disk, unless it is files in the data directory (dynamic_shared_memory_type = mmap).
        let on_disk = !line.contains("shared memory") || line.contains("pg_dynshmem/");
        NoRoom::said(line).filter(|_| last && on_disk)
    })
}

/// The lasting error that `lines` report.
pub fn lasting(lines: &[String], settings: SettingSources<'_>) -> Option<Lasting> {
    // Not a session's: what a client is refused says nothing about the server.
    let lines = lines.iter().map(|line| Line::of(line));
    let lines: Vec<Line<'_>> = lines.filter(|line| line.severity.is_some() && !line.is_of_session).collect();
    let wrong = lines.iter().find_map(|line| Some((line.text, setting(line, settings)?)));
    if let Some((said, name)) = wrong {
        let why = format!("{said}: {}", place(&name, settings));
        return Some(Lasting { code: Code::Config, why });
    }
    let find = |words: &[&str]| {
        lines.iter().find(|line| words.iter().any(|words| line.text.contains(words))).map(|line| line.text)
    };
    let data = settings.data.display();
    if let Some(said) = find(&["SSL is not supported by this build"]) {
        let way =
            "this PostgreSQL was built without OpenSSL: set postgres.source = \"package\", or postgres.tls = \"off\"";
        return Some(Lasting { code: Code::Config, why: format!("{said}: {way}") });
    }
    if let Some(said) = find(&["contains errors"]) {
        let syntax = find(&["syntax error in file"]).unwrap_or(said);
        return Some(Lasting { code: Code::Config, why: format!("{syntax}: {}", by_hand(settings.data)) });
    }
    if let Some(said) = find(&["has wrong ownership", "has invalid permissions"]) {
        return Some(Lasting { code: Code::CannotCreate, why: said.to_owned() });
    }
    if let Some(said) = lines.iter().find(|line| line.is_fatal() && line.text.ends_with("Permission denied")) {
        let way = format!("every file in {data} must belong to the user that PostgreSQL runs as: chown -R it");
        return Some(Lasting { code: Code::GaveUp, why: format!("{}: {way}", said.text) });
    }
    let damage = ["could not locate a valid checkpoint record", "database files are incompatible with server"];
    find(&damage).map(|said| {
        let way = "restore a backup (`tandem restore`); never run pg_resetwal on the only copy";
        Lasting { code: Code::GaveUp, why: format!("{said}: {way}") }
    })
}

/// The setting that `line` complains of.
fn setting(line: &Line<'_>, settings: SettingSources<'_>) -> Option<String> {
    let text = line.text;
    let quoted = |before: &str| Some(text.split_once(before)?.1.split('"').next()?.to_owned());
    if !line.is_fatal() && line.severity != Some(Severity::Log) {
        return None;
    }
    let library = quoted("could not access file \"").or_else(|| quoted("could not load library \""));
    if let Some(library) = library {
        let preloads = ["shared_preload_libraries", "session_preload_libraries", "local_preload_libraries"];
        let holds = |values: &BTreeMap<String, String>, name: &str| {
            values.get(name).is_some_and(|value| value.contains(&library))
        };
        let found = preloads.iter().find(|name| holds(settings.altered, name) || holds(settings.given, name));
        return Some((*found.unwrap_or(&preloads[0])).to_owned());
    }
    let complaint =
        ["unrecognized configuration parameter", "invalid value for", "valid range for", "requires a", "cannot be set"];
    if complaint.iter().any(|words| text.contains(words))
        && let Some(name) = quoted("parameter \"")
    {
        return Some(name);
    }
    if !line.is_fatal() {
        return None;
    }
    let known = [
        ("wal_level", "wal_level"),
        ("could not map anonymous shared memory", "shared_buffers"),
        ("server certificate file", "ssl"),
        ("private key file", "ssl"),
        ("superuser_reserved_connections", "superuser_reserved_connections"),
    ];
    known.iter().find(|(words, _)| text.contains(words)).map(|(_, name)| (*name).to_owned())
}

/// Where the setting `name` is set, and how to set it otherwise.
fn place(name: &str, settings: SettingSources<'_>) -> String {
    let has = |values: &BTreeMap<String, String>| values.keys().any(|key| key.eq_ignore_ascii_case(name));
    let data = settings.data.display();
    if has(settings.altered) {
        return format!(
            "`{name}` is set in {data}/postgresql.auto.conf, by ALTER SYSTEM: take its line out there (ALTER SYSTEM RESET \
             needs a server that runs)"
        );
    }
    let more = match (name, settings.given.get("max_wal_senders")) {
        ("wal_level", None) => {
            "; wal_level = \"minimal\" needs max_wal_senders = \"0\" beside it, and no archiving of WAL"
        }
        _ => "",
    };
    if has(settings.given) {
        return format!("mend `{name}` in [postgres.settings] of tandem.toml{more}");
    }
    format!("look for `{name}` in tandem.toml, [postgres] and [postgres.settings]{more}")
}

fn by_hand(data: &Path) -> String {
    let data = data.display();
    format!(
        "if it is {data}/postgresql.auto.conf, where ALTER SYSTEM writes, mend the line there; Tandem writes the others"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    fn why(text: &str, given: &[(&str, &str)], altered: &[(&str, &str)]) -> Option<(Code, String)> {
        let map =
            |pairs: &[(&str, &str)]| pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        let (given, altered) = (map(given), map(altered));
        let settings = SettingSources { given: &given, altered: &altered, data: Path::new("/d") };
        lasting(&lines(text), settings).map(|lasting| (lasting.code, lasting.why))
    }

    #[test]
    fn a_wrong_setting_is_named_where_it_stands() {
        let unknown = "[7] LOG:  unrecognized configuration parameter \"work_memm\" in file \"/d/postgresql.conf\" line 31\n\
                       [7] FATAL:  configuration file \"/d/postgresql.conf\" contains errors";
        let (code, text) = why(unknown, &[("work_memm", "8MB")], &[]).unwrap();
        assert_eq!(code, Code::Config);
        assert!(text.contains("\"work_memm\"") && text.contains("[postgres.settings] of tandem.toml"), "{text}");

        let value = "LOG:  invalid value for parameter \"work_mem\": \"8 bananas\"\nFATAL:  configuration file \"x\" contains errors";
        let (_, text) = why(value, &[("work_mem", "8MB")], &[("work_mem", "8 bananas")]).unwrap();
        assert!(text.contains("postgresql.auto.conf") && text.contains("RESET"), "what ALTER SYSTEM set wins: {text}");

        let library = "[9] FATAL:  could not access file \"nosuch\": No such file or directory";
        let (_, text) = why(library, &[("session_preload_libraries", "nosuch")], &[]).unwrap();
        assert!(text.contains("`session_preload_libraries` in [postgres.settings]"), "{text}");

        let wal = "FATAL:  WAL streaming (max_wal_senders > 0) requires wal_level \"replica\" or \"logical\"";
        assert!(why(wal, &[("wal_level", "minimal")], &[]).unwrap().1.contains("max_wal_senders = \"0\""));
        let ssl = "FATAL:  could not load server certificate file \"server.crt\": No such file or directory";
        assert!(why(ssl, &[], &[("ssl", "on")]).unwrap().1.contains("`ssl` is set in /d/postgresql.auto.conf"));
        let garbage = "LOG:  syntax error in file \"/d/postgresql.auto.conf\" line 3, near token \"x\"\n\
                       FATAL:  configuration file \"/d/postgresql.auto.conf\" contains errors";
        let (_, text) = why(garbage, &[], &[]).unwrap();
        assert!(text.starts_with("syntax error") && text.contains("mend the line there"), "{text}");
        let no_tls = "LOG:  SSL is not supported by this build\nFATAL:  configuration file \"/d/postgresql.conf\" contains errors";
        assert!(why(no_tls, &[], &[]).unwrap().1.contains("postgres.source = \"package\""));
    }

    #[test]
    fn other_ends_last_too_and_most_do_not() {
        assert_eq!(why("FATAL:  data directory \"/d\" has wrong ownership", &[], &[]).unwrap().0, Code::CannotCreate);
        let owner = "FATAL:  could not open file \"global/pg_filenode.map\": Permission denied";
        assert!(why(owner, &[], &[]).unwrap().1.contains("chown -R"));
        assert!(
            why("PANIC:  could not locate a valid checkpoint record", &[], &[]).unwrap().1.contains("restore a backup")
        );
        let passing = [
            "LOG:  could not bind IPv4 address \"127.0.0.1\": Address already in use",
            "FATAL:  could not create any TCP/IP sockets",
            "FATAL:  the database system is starting up",
            "FATAL:  pre-existing shared memory block (key 1, ID 2) is still in use",
            "[7] app@app FATAL:  unrecognized configuration parameter \"nosuch\"",
            "ERROR:  invalid value for parameter \"work_mem\": \"x\"",
            "",
        ];
        for text in passing {
            assert_eq!(why(text, &[], &[]), None, "{text}");
        }
    }

    #[test]
    fn a_full_disk_is_told_from_full_shared_memory_and_from_a_query() {
        let full = |text: &str| no_room(&lines(text)).is_some();
        assert!(full("[1] PANIC:  could not write to file \"pg_wal/xlogtemp.29\": No space left on device"));
        assert!(full("FATAL:  could not write lock file \"postmaster.pid\": No space left on device"));
        assert!(full("FATAL:  could not write: Disk quota exceeded"));
        assert!(full(
            "FATAL:  could not resize shared memory segment \"pg_dynshmem/mmap.17\" to 1048576 bytes: No space left on device"
        ));
        assert!(!full("ERROR:  could not extend file \"base/5/1\": No space left on device"));
        assert!(!full("FATAL:  could not resize shared memory segment \"/x\": No space left on device"));
    }
}
