//! What only this machine can tell of how the application is to be served: whether the installed Uvicorn has the options of
//! `[workers.uvicorn]`, and whether the certificate can be served. Looked at by `tandem check`, at the start and before a
//! reload.

use std::path::Path;
use std::time::{Duration, SystemTime};

use serde::Deserialize;
use serde_json::json;

use crate::certificate::{self, Files, Inspection, Keys};
use crate::config::{Loaded, Serving, Settings, Tls, TlsClient, uvicorn};
use crate::event_loop::within;
use crate::plan::{CommandLine, Identity};
use crate::process::{self, RunError};

/// How long the installed Uvicorn may take to be imported and asked.
const LIMIT: Duration = Duration::from_secs(30);
/// How long reading the certificate and its key may take.
const READ_LIMIT: Duration = Duration::from_secs(5);

/// The keys that name the files of the application's certificate.
const KEYS: Keys = Keys { cert: "workers.tls_cert", key: "workers.tls_key", ca: "workers.tls_ca" };

/// What was found to be as it should.
#[derive(Clone, Debug, Default)]
pub struct ServingCheck {
    pub notices: Vec<String>,
    /// Until when the certificate holds.
    pub not_after: Option<SystemTime>,
}

#[derive(Deserialize)]
struct Answer {
    problems: Vec<(String, String, Option<String>)>,
}

/// The command that asks the Uvicorn of the environment of `python`; none where there is nothing to ask. It is to run as the
/// workers' user.
pub fn question(settings: &Settings, python: &Path) -> Option<CommandLine> {
    let workers = &settings.workers;
    if workers.serving.uvicorn.is_empty() || workers.command.is_some() {
        return None;
    }
    let command = CommandLine::new(python).arg("-c").arg(include_str!("options.py")).dir("/");
    Some(command.env("TANDEM_UVICORN", for_launcher(&workers.serving)).env("PYTHONDONTWRITEBYTECODE", "1"))
}

/// Hold `loaded` against this machine: `question` is answered, and the certificate looked at as `user` would.
///
/// # Errors
/// A [`crate::exit::Failure`] with [`crate::exit::Code::Config`] that tells everything that is wrong, with its line; the disk
/// does not answer.
pub async fn verify(
    loaded: &Loaded,
    question: Option<CommandLine>,
    user: Option<Identity>,
) -> anyhow::Result<ServingCheck> {
    let mut wrong = Vec::new();
    if let Some(question) = question {
        let answer = ask(&question).await;
        wrong.extend(
            answer
                .problems
                .into_iter()
                .map(|(name, message, help)| (format!("{}.{name}", uvicorn::TABLE), message, help)),
        );
    }
    let mut verdict = ServingCheck::default();
    if let Some(tls) = loaded.settings.workers.serving.tls.clone() {
        let look = move || inspect(&tls, user.as_ref());
        let found = within(READ_LIMIT, "read the certificate of workers.tls_cert", look).await?;
        wrong.extend(found.wrong.into_iter().map(|(key, message, help)| (key.to_owned(), message, Some(help))));
        verdict = ServingCheck { notices: found.notices, not_after: found.not_after };
    }
    if wrong.is_empty() { Ok(verdict) } else { Err(loaded.refusal(wrong)) }
}

/// What the installed Uvicorn says. Where it cannot be asked, a worker's start will tell why.
async fn ask(question: &CommandLine) -> Answer {
    let none = |why: String| {
        tracing::debug!("ask the installed Uvicorn for its options: {why}");
        Answer { problems: Vec::new() }
    };
    match process::run(question, LIMIT).await {
        Ok(finished) => serde_json::from_str(finished.stdout.trim()).unwrap_or_else(|_| none(finished.last_lines())),
        Err(RunError::NotFound(name)) => none(format!("{name} is not there")),
        Err(error) => none(error.to_string()),
    }
}

/// As the launcher and options.py read it.
pub fn for_launcher(serving: &Serving) -> String {
    let options: serde_json::Map<_, _> =
        serving.uvicorn.iter().map(|(name, given)| (name.clone(), json!([given.value, given.is_word]))).collect();
    let tls = serving.tls.as_ref().map(|tls| {
        // The numbers of Python's ssl.VerifyMode.
        let client = match tls.client {
            TlsClient::Nothing => 0,
            TlsClient::Optional => 1,
            TlsClient::Require => 2,
        };
        json!({ "cert": tls.cert, "key": tls.key, "ca": tls.ca, "client": client })
    });
    json!({ "options": options, "tls": tls }).to_string()
}

/// Look at the application's certificate, which `user` reads.
pub fn inspect(tls: &Tls, user: Option<&Identity>) -> Inspection {
    let files = Files { keys: KEYS, cert: &tls.cert, key: &tls.key, ca: tls.ca.as_deref(), user, must_hold: false };
    certificate::inspect(&files, SystemTime::now())
}
