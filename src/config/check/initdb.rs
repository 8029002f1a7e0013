//! With which options of initdb's a new cluster may be made. Pure.

use super::{Checker, PostgresMode};

/// Options with a value (PostgreSQL 16 documentation, "initdb").
const WITH_VALUE: [&str; 13] = [
    "--encoding",
    "--icu-locale",
    "--icu-rules",
    "--lc-collate",
    "--lc-ctype",
    "--lc-messages",
    "--lc-monetary",
    "--lc-numeric",
    "--lc-time",
    "--locale",
    "--locale-provider",
    "--text-search-config",
    "-T",
];
const WITHOUT_VALUE: [&str; 3] = ["--data-checksums", "--no-locale", "-k"];
const ENCODING: [&str; 2] = ["--encoding", "-E"];
/// UTF-8, as initdb takes it.
const UTF_8: [&str; 4] = ["UTF8", "UTF-8", "UNICODE", "UTF_8"];

/// What Tandem decides itself, and how or where to write it instead.
const OWN: [(&[&str], &str); 9] = [
    (
        &["--auth", "--auth-host", "--auth-local", "-A"],
        "Tandem writes pg_hba.conf: SCRAM over TCP, peer for the superuser",
    ),
    (&["--pgdata", "-D"], "the cluster lies in the state directory: set state_dir"),
    (&["--username", "-U"], "the superuser is `postgres`; the application's role is postgres.user"),
    (&["--pwfile", "--pwprompt", "-W"], "the superuser has no password; the application's is postgres.password"),
    (&["--waldir", "-X"], "the WAL lies in the data directory"),
    (&["--set", "-c"], "write the setting under [postgres.settings]"),
    (&["--wal-segsize"], "Tandem makes clusters with WAL segments of 16 MB"),
    (&["--allow-group-access", "-g"], "the data directory is for its owner alone"),
    (
        &["--no-sync", "--sync-only", "-N", "-S", "--no-clean", "-n", "--no-instructions", "--debug", "-d"],
        "leave it out",
    ),
];

impl Checker<'_> {
    /// What a cluster is made with that is not there yet.
    pub(super) fn new_cluster(&mut self) {
        let postgres = &self.settings.postgres;
        if postgres.mode == PostgresMode::Attach {
            return;
        }
        if let Some(dir) = postgres.init_scripts.as_ref().filter(|dir| !dir.is_dir()) {
            let help = "name the directory whose *.sql, *.sql.gz, *.sql.zst and *.sh run in a new cluster, or \"none\"";
            self.wrong("postgres.init_scripts", &format!("{} is not a directory", dir.display()), Some(help));
        }
        if let Err((message, help)) = options(&postgres.initdb_args) {
            self.wrong("postgres.initdb_args", &message, Some(&help));
        }
    }
}

/// Whether all of `args` may be handed to initdb; else what is wrong, and what to do.
fn options(args: &[String]) -> Result<(), (String, String)> {
    let mut args = args.iter().map(String::as_str);
    while let Some(word) = args.next() {
        let (name, joined) = split(word);
        let own = OWN.iter().find(|(names, _)| names.contains(&name));
        if let Some((_, instead)) = own {
            return Err((format!("{name} cannot be set here"), (*instead).to_owned()));
        }
        if WITHOUT_VALUE.contains(&name) && joined.is_none() {
            continue;
        }
        let is_encoding = ENCODING.contains(&name);
        if !is_encoding && !WITH_VALUE.contains(&name) {
            let known = WITH_VALUE.iter().chain(&WITHOUT_VALUE).copied().collect::<Vec<_>>().join(", ");
            return Err((
                format!("initdb has no such option, or not for this: {word}"),
                format!("these may be set: {known}"),
            ));
        }
        let Some(value) = joined.or_else(|| args.next()).filter(|value| !value.is_empty()) else {
            return Err((format!("{name} lacks its value"), format!("{name}=VALUE")));
        };
        if is_encoding && !UTF_8.iter().any(|name| name.eq_ignore_ascii_case(value)) {
            return Err((format!("{name}: {value} cannot be used"), "Tandem's clusters hold UTF8".to_owned()));
        }
    }
    Ok(())
}

/// The option that `word` begins with, and the value in the same word: `--name=value`, `-Evalue`.
fn split(word: &str) -> (&str, Option<&str>) {
    if word.starts_with("--") {
        return word.split_once('=').map_or((word, None), |(name, value)| (name, Some(value)));
    }
    match word.split_at_checked(2) {
        Some((name, rest)) if name.starts_with('-') && !rest.is_empty() => (name, Some(rest)),
        _ => (word, None),
    }
}
