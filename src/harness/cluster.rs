//! One throwaway cluster, from nothing to a server that answers: template, place, data directory, janitor, postmaster.

use std::path::{Path, PathBuf};

use anyhow::Context;
use tokio::task::AbortHandle;

use super::databases::Databases;
use super::facts::TemplateFacts;
use super::janitor::Janitor;
use super::place::{ROOM, RunDir, candidates};
use super::postmaster::{Postmaster, Spec};
use super::template::{self, Recipe, Template};
use super::{image, of_test};
use crate::exit::{Code, code_of, in_words, is_disk_full};
use crate::plan::{DatabaseUrl, Secret};
use crate::postgres::home::Home;
use crate::room::Guard;

/// A running throwaway server. Dropping it ends the server at once, in the background.
pub struct Cluster {
    pub postmaster: Postmaster,
    pub databases: Databases,
    pub home: Home,
    pub janitor: Janitor,
    pub place: RunDir,
    _watch: Option<Watch>,
}

/// Ends the server, with all that tests do on it, when it leaves too little room to the one that Tandem keeps.
struct Watch(AbortHandle);

impl Watch {
    fn begin(room: Guard, postmaster: &Postmaster) -> Self {
        let off = postmaster.off_switch();
        let watch = tokio::task::spawn_local(async move {
            let why = room.watch().await;
            tracing::error!("{why}");
            off.notify_one();
        });
        Self(watch.abort_handle())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// How a cluster is to be.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wish {
    /// Make the template anew.
    pub rebuild: bool,
    /// The server may outlive this process.
    pub lasting: bool,
    /// Its caller watches the room that it leaves.
    pub is_watched: bool,
}

impl Cluster {
    /// Start a server for `recipe`.
    ///
    /// # Errors
    /// What kept it from starting.
    pub async fn start(recipe: &Recipe, wish: Wish) -> anyhow::Result<Self> {
        let template = template::ensure(recipe, wish.rebuild).await?;
        match Self::on(recipe, &template, wish).await {
            Ok(cluster) => Ok(cluster),
            Err(error) if wish.rebuild || lacks_room(&error) => Err(error),
            // Whatever is wrong with the image or a spare of it, a new one mends.
            Err(error) => {
                tracing::warn!("{}; the template is made anew", in_words(&error));
                let template = template::ensure(recipe, true).await?;
                Self::on(recipe, &template, Wish { rebuild: true, ..wish }).await
            }
        }
    }

    async fn on(recipe: &Recipe, template: &Template, wish: Wish) -> anyhow::Result<Self> {
        let (roots, notice) = candidates(&recipe.guard(), recipe.settings.test.dir.as_deref(), &recipe.state);
        if let Some(notice) = notice {
            tracing::warn!("{notice}");
        }
        let mut roots = roots.into_iter().peekable();
        loop {
            let root = roots.next().context("there is no place for a test server")?;
            let error = match Self::at(&root, recipe, template, wish).await {
                Ok(cluster) => return Ok(cluster),
                Err(error) => error,
            };
            match roots.peek() {
                Some(next) if lacks_room(&error) => {
                    let why = in_words(&error);
                    tracing::warn!("{} is full: the tests' server goes to {}: {why}", root.display(), next.display());
                }
                _ => return Err(error),
            }
        }
    }

    async fn at(root: &Path, recipe: &Recipe, template: &Template, wish: Wish) -> anyhow::Result<Self> {
        let settings = &recipe.settings;
        let room = recipe.guard().claim(root, ROOM);
        room.check()?;
        let place = RunDir::take(root).await?;
        of_test::note_project(&place.dir, settings)?;
        let spare: Option<PathBuf> = settings.test.spare.then(|| place.wanted_spare(&template.key)).flatten();
        let spare = spare.as_deref().map(|spare| (template.image.as_path(), spare));
        // Before there is anything to clean up.
        let janitor = Janitor::hire(&place, spare).context("start a shell that cleans up")?;
        let home = Home::at(&place.dir, recipe.server.clone());
        home.prepare()?;
        let takes_spare = settings.test.spare && !wish.rebuild;
        if !(takes_spare && place.take_spare(&template.key, &home.data)) {
            image::lay_out(&template.image, &home.data, home.server.as_ref())?;
        }
        let facts = TemplateFacts::of(&home.data)?;
        let spec = Spec {
            home: home.clone(),
            installation: recipe.installation.clone(),
            settings: settings.clone(),
            lasting: wish.lasting,
        };
        let postmaster = match Postmaster::start(spec).await {
            Ok(postmaster) => postmaster,
            Err(error) => return Err(room.explain(error).await),
        };
        let url = DatabaseUrl {
            scheme: settings.test.url_scheme.clone(),
            user: settings.postgres.user.clone(),
            password: Some(Secret::new(facts.password)),
            host: "127.0.0.1".into(),
            port: postmaster.port,
            database: settings.postgres.database.clone(),
            parameters: Vec::new(),
        };
        let databases = Databases::open(&home, url, facts.unlogged, settings);
        let watch = (!wish.is_watched).then(|| Watch::begin(room, &postmaster));
        Ok(Self { postmaster, databases, home, janitor, place, _watch: watch })
    }

    /// Leave the server running when this process ends.
    ///
    /// # Errors
    /// The note of it cannot be written.
    pub fn let_live(&mut self) -> anyhow::Result<()> {
        self.place.keep().context("note that the server stays")?;
        self.janitor.let_live().context("tell the janitor that the server stays")
    }
}

/// Whether another place may do where this failed.
pub fn lacks_room(error: &anyhow::Error) -> bool {
    is_disk_full(error) || code_of(error) == Code::CannotCreate
}
