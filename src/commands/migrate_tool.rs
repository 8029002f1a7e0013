//! `tandem migrate` if `migrations.run` is a command such as Alembic's: runs that tool's commands under the migration lock.

use crate::cli::Migrate;
use crate::commands::migrate;
use crate::commands::running::say;
use crate::config::Settings;
use crate::exit::{Code, Failure};
use crate::plan::DatabaseUrl;
use crate::postgres::home::Home;
use crate::process::{self, Finished};
use crate::schema;
use crate::schema::tool::{KnownTool, Tool, listed, unknown};
use crate::sidecar;
use crate::workers::surroundings::Surroundings;
use crate::workers::{environment, launch};

/// What the tool runs with.
pub struct Place<'a> {
    pub settings: &'a Settings,
    pub home: &'a Home,
    pub url: &'a DatabaseUrl,
    /// The words of `migrations.run`.
    pub run: &'a [String],
}

/// Run `command` with the tool.
///
/// # Errors
/// What the tool said; [`Code::Usage`] where Tandem does not know the tool's word for it.
pub async fn act(place: &Place<'_>, command: Migrate) -> anyhow::Result<()> {
    let known = KnownTool::of(place.run);
    match command {
        Migrate::Up => told(&place.alone(place.run).await?.trimmed()),
        Migrate::Down { steps } => {
            let down = known.ok_or_else(|| unknown(place.run, "down"))?.down(steps)?;
            told(&place.alone(&down).await?.trimmed())
        }
        Migrate::Status { json } => status(place, &known.ok_or_else(|| unknown(place.run, "status"))?, json).await,
        Migrate::Adopt { .. } => {
            Err(migrate::only_files("ask your tool, such as `tandem run alembic stamp head`").into())
        }
        Migrate::New { .. } => Ok(()),
    }
}

async fn status(place: &Place<'_>, known: &KnownTool, json: bool) -> anyhow::Result<()> {
    let mut printed = Vec::new();
    for command in known.status() {
        printed.push(place.run(&command).await?.stdout);
    }
    let text = match known.tool {
        Tool::Alembic => {
            let [current, heads] = [0, 1].map(|at| printed.get(at).map(String::as_str).unwrap_or_default());
            let names = |text: &str| -> Vec<String> { text.lines().filter_map(revision).map(str::to_owned).collect() };
            let (current, heads) = (names(current), names(heads));
            if json {
                return told(&serde_json::json!({ "tool": "alembic", "current": current, "heads": heads }).to_string());
            }
            let shown = |names: &[String]| if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            format!("current  {}\nhead     {}", shown(&current), shown(&heads))
        }
        Tool::Django if json => {
            let rows: Vec<_> = listed(&printed.concat())
                .into_iter()
                .map(|row| serde_json::json!({ "name": format!("{}.{}", row.application, row.name), "applied": row.applied }))
                .collect();
            serde_json::json!({ "tool": "django", "migrations": rows }).to_string()
        }
        Tool::Django => printed.concat().trim_end().to_owned(),
    };
    told(&text)
}

fn told(text: &str) -> anyhow::Result<()> {
    say(text)?;
    Ok(())
}

/// The revision that a line of `alembic current` or `alembic heads` begins with; what an application prints while it is
/// imported has no such form as a rule.
fn revision(line: &str) -> Option<&str> {
    let name = line.split(' ').next()?;
    let plain = |letter: char| letter.is_alphanumeric() || "_-.".contains(letter);
    let rest = line[name.len()..].trim();
    (!name.is_empty() && name.chars().all(plain) && (rest.is_empty() || rest.starts_with('('))).then_some(name)
}

impl Place<'_> {
    /// Run `words` under the migration lock.
    async fn alone(&self, words: &[String]) -> anyhow::Result<Finished> {
        schema::locked(self.url, self.settings.migrations.lock_limit, self.run(words)).await
    }

    async fn run(&self, words: &[String]) -> anyhow::Result<Finished> {
        let (settings, url) = (self.settings, self.url);
        let python = environment::existing(&settings.python, &self.home.state, &settings.directory);
        let identity = launch::identity_for(settings, &self.home.run, &python)?;
        let around =
            Surroundings { settings, url, python: &python, identity: identity.as_ref(), of_tests: settings.in_test() };
        let command = sidecar::migration_command(&around, words)?;
        let finished = process::run(&command, self.settings.migrations.limit).await?;
        if !finished.exit.success() {
            let (shown, said) = (words.join(" "), finished.trimmed());
            let message = format!("migrations: `{shown}` ended with {}\n{said}", finished.exit);
            return Err(Failure::new(Code::Failed, message).into());
        }
        Ok(finished)
    }
}

trait Trimmed {
    /// The output without blank lines around it.
    fn trimmed(&self) -> String;
}

impl Trimmed for Finished {
    fn trimmed(&self) -> String {
        format!("{}{}", self.stdout, self.stderr).trim_end().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revisions_are_told_from_what_an_application_prints() {
        assert_eq!(revision("004_add_indexes (head)"), Some("004_add_indexes"));
        assert_eq!(revision("ae1027a6acf"), Some("ae1027a6acf"));
        assert_eq!(revision("Loading the models ..."), None);
        assert_eq!(revision(""), None);
    }
}
