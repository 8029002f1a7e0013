//! `tandem check`

use std::time::SystemTime;

use serde_json::{Value, json};

use crate::boot;
use crate::cli::{Check, Common};
use crate::commands::open;
use crate::commands::running::say;
use crate::config::{Loaded, PostgresMode, PostgresTls, Settings, json_schema};
use crate::exit::{self, Code, Reason, code_of, in_words};
use crate::postgres::home::Home;
use crate::postgres::{binaries, lookup, tls, tried};
use crate::telemetry;
use crate::workers::{environment, launch, serving};

/// Let PostgreSQL check `[postgres.settings]`, if it is installed already; a notice where it cannot.
async fn try_settings(settings: &Settings) -> anyhow::Result<Option<String>> {
    let postgres = &settings.postgres;
    if postgres.mode == PostgresMode::Attach || postgres.settings.is_empty() {
        return Ok(None);
    }
    match binaries::present(&postgres.source, &settings.cache_dir, settings.search_path.as_ref()).await {
        Some(installation) => {
            let home = Home::resolve(settings).ok();
            let state = home.as_ref().map(|home| home.state.as_path());
            tried::try_settings(&installation, postgres, state).await
        }
        None => Ok(None),
    }
}

/// Hold how the application is served against this machine, as far as its Python environment is there already.
async fn check_serving(loaded: &Loaded) -> anyhow::Result<Vec<String>> {
    let settings = &loaded.settings;
    let serving = &settings.workers.serving;
    let mut notices = Vec::new();
    if let Ok(home) = Home::resolve(settings)
        && let PostgresTls::Files(_) = settings.postgres.tls
    {
        let found = tls::look(&settings.postgres, loaded, &home, SystemTime::now())?;
        notices.extend(found.into_iter().flat_map(|certificate| certificate.notices));
    }
    if serving.uvicorn.is_empty() && serving.tls.is_none() {
        return Ok(notices);
    }
    // Where the state directory cannot be used, `tandem up` says why.
    let Ok(home) = Home::resolve(settings) else { return Ok(notices) };
    let python = environment::existing(&settings.python, &home.state, &settings.directory);
    let user = launch::identity_for(settings, &home.run, &python)?;
    let question = serving::question(settings, &python).map(|command| command.identity(user.clone()));
    notices.extend(serving::verify(loaded, question, user).await?.notices);
    Ok(notices)
}

/// A sound configuration, and what is to be said about it.
async fn sound(common: &Common) -> anyhow::Result<(Loaded, Vec<String>)> {
    let mut loaded = open::load(common, Vec::new())?;
    loaded.check_credentials()?;
    let untried = try_settings(&loaded.settings).await?;
    loaded.notices.extend(untried);
    // Now and on this machine: it may resolve where the deployment runs.
    loaded.notices.extend(lookup::unresolved(&loaded.settings.postgres).await);
    loaded.notices.extend(check_serving(&loaded).await?);
    let stop = boot::stop_ladder(&loaded.settings);
    let notices = loaded.notices.iter().chain(&loaded.remarks).cloned().chain(stop.notice()).collect();
    Ok((loaded, notices))
}

/// Print the plan, each value with its origin, secrets hidden; many variables of the workers in one line unless `all`, and no
/// default where only what was `changed` is asked for.
///
/// # Errors
/// Every error of the configuration at once; with `json` they are printed, and the exit code is the same.
pub async fn run(common: &Common, args: Check) -> anyhow::Result<Code> {
    if args.schema {
        telemetry::print(&json_schema::text())?;
        return Ok(Code::Stopped);
    }
    let (mut loaded, notices) = match sound(common).await {
        Ok(sound) => sound,
        Err(error) if args.json => {
            say(&serde_json::to_string_pretty(&unsound(&error))?)?;
            return Ok(code_of(&error));
        }
        Err(error) => return Err(error),
    };
    let set = loaded.changed();
    if args.changed {
        loaded.only_changed();
    }
    let stop = boot::stop_ladder(&loaded.settings);
    if args.json {
        let mut told = loaded.to_json();
        told["ok"] = true.into();
        told["problems"] = json!([]);
        told["see"] = Value::Null;
        told["stop"] = json!({
            "seconds": stop.total().as_secs_f64(),
            "orderly_seconds": stop.orderly().as_secs_f64(),
            "platform_seconds": stop.platform_grace.as_secs_f64(),
        });
        told["notices"] = notices.into();
        say(&serde_json::to_string_pretty(&told)?)?;
        return Ok(Code::Stopped);
    }
    let platform = humantime::format_duration(stop.platform_grace);
    let (table, connections) = (loaded.table(args.all), loaded.connections());
    say(&format!("{table}\n{connections}stop: {stop}, the platform grants {platform}\n"))?;
    for notice in &notices {
        say(&format!("notice: {notice}"))?;
    }
    say(&verdict(set, notices.len()))?;
    Ok(Code::Stopped)
}

/// A configuration that cannot be used, with the members that a sound one has.
fn unsound(error: &anyhow::Error) -> Value {
    let text = in_words(error);
    let problems = match exit::reasons_of(error) {
        [] => vec![Reason::of_message(text.clone())],
        reasons => reasons.to_vec(),
    };
    json!({
        "ok": false,
        "problems": problems,
        "see": exit::see(error, &text),
        "notices": [],
        "file": null,
        "directory": null,
        "keys": [],
        "connections": null,
        "stop": null,
    })
}

/// The last line: that nothing is wrong, and what to look at.
fn verdict(set: usize, notices: usize) -> String {
    let plural = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    let notices = match notices {
        0 => String::new(),
        count => format!(", {}", plural(count, "notice")),
    };
    format!("the configuration is good: {} set, the rest are defaults{notices}", plural(set, "value"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verdict_counts() {
        assert_eq!(verdict(1, 0), "the configuration is good: 1 value set, the rest are defaults");
        assert_eq!(verdict(3, 2), "the configuration is good: 3 values set, the rest are defaults, 2 notices");
    }
}
