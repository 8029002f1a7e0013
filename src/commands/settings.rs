//! `tandem settings`

use std::time::Duration;

use sea_orm::sqlx::Connection;
use serde_json::json;

use crate::cli::{Common, SettingsCommand};
use crate::commands::open::{self, Database};
use crate::commands::running::say;
use crate::commands::stats_words::words;
use crate::commands::{audit, looking};
use crate::config::{PostgresMode, owned_setting};
use crate::control::{Order, client};
use crate::exit::{Code, Failure, in_words};
use crate::postgres::alter::{self, Setting, Written};
use crate::postgres::home::Home;
use crate::postgres::{server, service};
use crate::schema::ANSWER_LIMIT;
use crate::stats::{self, Topic, visible_json};

/// What our session is called in `pg_stat_activity`.
const APPLICATION_NAME: &str = "tandem-settings";
/// How long the list of settings may take.
const LIST_LIMIT: Duration = Duration::from_secs(30);

/// Show a setting, or change one.
///
/// # Errors
/// There is no such setting, it is Tandem's own, the server would not start with the value, or it refuses it.
pub async fn run(common: &Common, command: SettingsCommand) -> anyhow::Result<Code> {
    match command {
        SettingsCommand::Get { name, json } => get(common, name.as_deref(), json).await,
        SettingsCommand::Set { name, value, apply } => change(common, name, Some(value), apply).await,
        SettingsCommand::Reset { name, apply } => change(common, name, None, apply).await,
    }
}

async fn get(common: &Common, name: Option<&str>, json: bool) -> anyhow::Result<Code> {
    let settings = open::load(common, Vec::new())?.settings;
    let home = Home::resolve(&settings)?;
    let mut session = looking::session(&settings, &home, APPLICATION_NAME).await?;
    let text = match name {
        None => {
            let table = stats::ask(Topic::Settings, &mut session, LIST_LIMIT).await?;
            if json { serde_json::to_string_pretty(&table.to_json())? } else { words(&table, None) }
        }
        Some(name) => {
            let setting = Setting::find(&mut session, name).await?;
            let archives = settings.backup.pitr.enabled && settings.postgres.mode == PostgresMode::Managed;
            let owned = owned_setting(&setting.name, archives);
            if json {
                let mut told = json!(setting);
                told["needs_restart"] = setting.needs_restart().into();
                told["instead"] = json!(owned);
                serde_json::to_string_pretty(&told)?
            } else {
                shown(&setting, owned)
            }
        }
    };
    let _closed = tokio::time::timeout(ANSWER_LIMIT, session.close()).await;
    say(&visible_json(&text))?;
    Ok(Code::Stopped)
}

/// `setting` in a few lines.
fn shown(setting: &Setting, owned: Option<&str>) -> String {
    let unit = setting.unit.as_deref().map(|unit| format!(" (in {unit})")).unwrap_or_default();
    let from = setting.file.as_deref().unwrap_or(&setting.source);
    let holds = match setting.context.as_str() {
        "internal" => "never: it is built in, or follows from others",
        "postmaster" => "after a restart of PostgreSQL",
        "sighup" => "after a reload of PostgreSQL",
        "backend" | "superuser-backend" => "in new sessions, after a reload of PostgreSQL",
        _ => "after a reload of PostgreSQL; a session may set it for itself",
    };
    let mut lines = vec![
        format!("{} = {}", setting.name, stats::visible(&setting.value)),
        format!("  {}", setting.about),
        format!("  set by: {from}"),
        format!("  default: {}{unit}", setting.default.as_deref().unwrap_or("none")),
    ];
    lines.extend(setting.range.as_deref().map(|range| format!("  range: {range}{unit}")));
    lines.push(format!("  a change holds: {holds}"));
    if setting.pending_restart {
        lines.push("  a change waits for a restart of PostgreSQL".to_owned());
    }
    lines.extend(owned.map(|instead| format!("  Tandem sets it: {instead}")));
    lines.join("\n")
}

/// Change the setting called `name`, and let that hold where it is to be applied.
async fn change(common: &Common, name: String, value: Option<String>, apply: bool) -> anyhow::Result<Code> {
    let configuration = open::configuration(common, Vec::new())?;
    let settings = &configuration.loaded.settings;
    if settings.postgres.mode == PostgresMode::Attach {
        let text = "the server is run by somebody else: its superuser sets its settings (ALTER SYSTEM)";
        return Err(Failure::new(Code::Usage, text).into());
    }
    if let Some(instead) = owned_setting(&name, settings.backup.pitr.enabled).filter(|_| value.is_some()) {
        return Err(Failure::new(Code::Usage, format!("{name}: {instead}")).into());
    }
    open::with_database_of(configuration, "tandem settings", async move |at: Database| {
        for line in changed(&at, &name, value.as_deref(), apply).await? {
            say(&line)?;
        }
        Ok(())
    })
    .await
}

/// Write it, and let it hold; what there is to say of that.
async fn changed(at: &Database, name: &str, value: Option<&str>, apply: bool) -> anyhow::Result<Vec<String>> {
    let home = &at.home;
    let mut session = superuser(at).await?;
    let setting = Setting::find(&mut session, name).await?;
    setting.statement(value)?;
    if let Some(value) = value {
        alter::try_start(home, at.reach.installation(), &setting.name, value).await?;
    }
    let before = Written::of(&home.data)?;
    setting.write(&mut session, value).await?;
    let word = if value.is_some() { "set" } else { "reset" };
    let runs = client::supervisor(&home.control).await.is_ok();
    if runs {
        audit::tell(&home.control, &format!("{word}s PostgreSQL's {} (tandem settings)", setting.name)).await;
    }
    let name = &setting.name;
    let mut said = vec![match value {
        Some(value) => format!("{name} = {value} is written"),
        None => format!("what was written for {name} is taken back"),
    }];
    let given = at.settings.postgres.settings.iter().find(|(given, _)| given.eq_ignore_ascii_case(name));
    if let (Some(_), Some((given, old))) = (value, given) {
        said.push(format!(
            "it wins over {given} = {old:?} in [postgres.settings] until `tandem settings reset {name}`"
        ));
    }
    if !runs {
        said.push("it holds from the next start on".to_owned());
    } else if !apply {
        said.push(format!("it does not hold yet: {}", how(&setting, word, value)));
    } else if setting.needs_restart() {
        drop(session);
        restart(at, &setting, &before).await?;
        session = superuser(at).await?;
    } else {
        alter::reload(&mut session, &setting).await?;
    }
    if runs && apply {
        let now = Setting::find(&mut superuser(at).await?, name).await?;
        said.push(format!("{name} is {} now", now.value));
    }
    let waiting: Vec<String> = alter::pending(&mut session).await?.into_iter().filter(|other| other != name).collect();
    if runs && !waiting.is_empty() {
        said.push(format!("these wait for a restart of PostgreSQL: {} (tandem restart postgres)", waiting.join(", ")));
    }
    let _closed = tokio::time::timeout(ANSWER_LIMIT, session.close()).await;
    Ok(said)
}

async fn superuser(at: &Database) -> anyhow::Result<sea_orm::sqlx::PgConnection> {
    let port = server::own_running_port(&at.home).unwrap_or(at.settings.postgres.port.number);
    looking::superuser(&at.settings, &at.home, port, APPLICATION_NAME).await
}

/// How a change of `setting` comes to hold.
fn how(setting: &Setting, word: &str, value: Option<&str>) -> String {
    let value = value.map(|value| format!(" {value:?}")).unwrap_or_default();
    let command = format!("tandem settings {word} {}{value} --apply", setting.name);
    match setting.needs_restart() {
        true => format!("`{command}` restarts PostgreSQL; the workers stay, and connect again"),
        false => format!("`{command}` lets PostgreSQL read it, and breaks nothing off"),
    }
}

/// Restart the server of the running Tandem, whose workers stay. If it does not come back, the old settings are put back first,
/// so that its next try is with those.
async fn restart(at: &Database, setting: &Setting, before: &Written) -> anyhow::Result<()> {
    let order = Order::Restart { service: service::NAME.to_owned() };
    let failed = match client::order(&at.home.control, &order).await {
        Ok(answer) => match answer.into_result() {
            Ok(_) => return Ok(()),
            Err(failure) => anyhow::Error::new(failure),
        },
        Err(error) => error,
    };
    before.put_back(&at.home)?;
    let again = client::order(&at.home.control, &order).await.and_then(|answer| Ok(answer.into_result()?));
    let now = match again {
        Ok(_) => "the server runs with the settings from before".to_owned(),
        Err(error) => format!("{}; start it with `tandem up`", in_words(&error)),
    };
    let text =
        format!("{} was taken back, as PostgreSQL did not start with it: {}\n{now}", setting.name, in_words(&failed));
    Err(Failure::new(Code::Failed, text).into())
}
