//! What is to be examined: the configuration and the directories, as far as they can be read.
//!
//! A configuration with mistakes is no reason to stop: what can be told without it is told.

use std::path::Path;
use std::time::Duration;

use super::facts::{Configuration, Look, Unseen};
use crate::config::{self, Loaded, PostgresMode, Settings, Source};
use crate::event_loop::within;
use crate::exit::{Reason, in_words, reasons_of};
use crate::plan::DatabaseUrl;
use crate::postgres::home::Home;
use crate::postgres::settings::client_address;
use crate::postgres::{secret, server};
use crate::process::identity;

/// How long the configuration and the directories that it names may take to be read. A name in them may have to be resolved.
const READ_LIMIT: Duration = Duration::from_secs(8);

/// One project, or what is left of it.
#[derive(Clone, Debug)]
pub struct Subject {
    pub source: Source,
    /// Whether to do what takes long: checksums, tables and indexes.
    pub deep: bool,
    pub configuration: Configuration,
    /// The configuration; with mistakes, what can be used of it.
    pub loaded: Option<Loaded>,
    pub settings: Look<Settings>,
    pub home: Look<Home>,
    /// How the application gets into its database.
    pub url: Look<DatabaseUrl>,
}

impl Subject {
    /// Read what `source` names. Nothing is written, and nothing that hangs is waited for for long.
    pub async fn read(source: &Source, deep: bool) -> Self {
        let (own, limit) = (source.clone(), READ_LIMIT);
        match within(limit, "read the configuration", move || Self::read_now(own, deep)).await {
            Ok(subject) => subject,
            Err(hangs) => {
                let unseen = Unseen::unknown(format!("{hangs}; is its disk or its resolver hanging?"));
                let problem = Reason::of_message(hangs.to_string());
                let configuration = Configuration {
                    problems: vec![problem],
                    directory: source.cwd.clone(),
                    is_project: true,
                    ..Configuration::default()
                };
                let (settings, home, url) = (Err(unseen.clone()), Err(unseen.clone()), Err(unseen));
                Self { source: source.clone(), deep, configuration, loaded: None, settings, home, url }
            }
        }
    }

    fn read_now(source: Source, deep: bool) -> Self {
        let directory = config::directory(&source).unwrap_or_else(|_| source.cwd.clone());
        let mut configuration = Configuration { directory, is_project: true, ..Configuration::default() };
        let loaded = match config::load(&source) {
            Ok(loaded) => {
                configuration.notices = loaded.notices.clone();
                Some(loaded)
            }
            Err(error) => {
                configuration.problems = match reasons_of(&error) {
                    [] => vec![Reason::of_message(in_words(&error))],
                    reasons => reasons.to_vec(),
                };
                // The rest of it may be sound.
                config::load_despite(&source)
            }
        };
        if let Some(loaded) = &loaded {
            loaded.settings.hide_secrets();
            configuration.file.clone_from(&loaded.settings.file);
            // It is among the notices already, where it keeps nothing from starting.
            if configuration.problems.is_empty()
                && let Err(error) = loaded.check_credentials()
            {
                configuration.problems.extend(reasons_of(&error).iter().cloned());
            }
        }
        let settings = loaded.as_ref().map(|loaded| loaded.settings.clone());
        let home = match &settings {
            Some(settings) => Home::resolve(settings).map_err(|error| Unseen::unknown(in_words(&error))),
            None => usual_home(&configuration.directory),
        };
        configuration.is_project = is_project(&configuration, home.as_ref().ok());
        if !configuration.is_project {
            let nothing = Unseen::nothing("there is no project here");
            let (settings, home, url) = (Err(nothing.clone()), Err(nothing.clone()), Err(nothing));
            return Self { source, deep, configuration, loaded: None, settings, home, url };
        }
        let settings = settings.ok_or_else(|| Unseen::nothing("the configuration cannot be used"));
        let url = url(settings.as_ref(), home.as_ref());
        Self { source, deep, configuration, loaded, settings, home, url }
    }

    /// The name of the application's database.
    pub fn database(&self) -> Option<String> {
        let postgres = &self.settings.as_ref().ok()?.postgres;
        Some(postgres.url.as_ref().map_or(&postgres.database, |url| &url.database).clone())
    }

    /// Whether the server is Tandem's own.
    pub fn is_managed(&self) -> bool {
        self.settings.as_ref().map_or(true, |settings| settings.postgres.mode == PostgresMode::Managed)
    }
}

/// Where the state would be without a configuration; its files say whose server it is.
fn usual_home(directory: &Path) -> Look<Home> {
    let state = directory.join(".tandem");
    if !state.exists() {
        return Err(Unseen::nothing(format!("there is no state directory in {}", directory.display())));
    }
    let home = Home::at(&state, None);
    let server = identity::is_root().then(|| identity::owner_of(&home.data)).flatten();
    Ok(Home::at(&state, server.filter(|server| server.uid != 0)))
}

/// Whether there is a project: a file of Tandem's, an application, or a cluster.
fn is_project(configuration: &Configuration, home: Option<&Home>) -> bool {
    let has_state = home.is_some_and(|home| home.state.exists());
    let is_absent = |reason: &Reason| reason.key.as_deref() == Some("workers.app") && reason.place().is_none();
    has_state || configuration.file.is_some() || !configuration.problems.iter().any(is_absent)
}

fn url(settings: Result<&Settings, &Unseen>, home: Result<&Home, &Unseen>) -> Look<DatabaseUrl> {
    let settings = settings.map_err(Clone::clone)?;
    let postgres = &settings.postgres;
    if let Some(url) = &postgres.url {
        return Ok(url.clone());
    }
    let home = home.map_err(Clone::clone)?;
    let password = secret::existing(home, postgres.password.as_ref());
    let password = password.map_err(|error| Unseen::unknown(in_words(&error)))?;
    let password = password.ok_or_else(|| Unseen::nothing("there is no database yet"))?;
    Ok(DatabaseUrl {
        scheme: "postgresql".to_owned(),
        user: postgres.user.clone(),
        password: Some(password.secret),
        host: client_address(postgres.listen).to_string(),
        port: server::own_running_port(home).unwrap_or(postgres.port.number),
        database: postgres.database.clone(),
        parameters: Vec::new(),
    })
}
