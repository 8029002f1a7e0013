//! A throwaway server for a purpose other than tests: an empty cluster on a disk that has room for what comes into it.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::cluster::{Cluster, Wish};
use super::place::RunDir;
use super::template::Recipe;
use crate::config::{MigrationRun, Settings};
use crate::postgres::binaries::Installation;
use crate::postgres::home::Home;

/// The role that its template is made with; it owns nothing that comes later.
const OWNER: &str = "tandem_throwaway";

/// How many connections it takes: each has its part of the table of locks.
const CONNECTIONS: u32 = 20;

/// A running server that holds nothing. Dropped, it ends, and its directory goes.
pub struct Throwaway {
    cluster: Cluster,
}

impl Throwaway {
    /// Start one in `dir` as the user that `home`'s server runs as, with PostgreSQL's settings `more` beside those of throwaway servers.
    ///
    /// # Errors
    /// What kept it from starting.
    pub async fn start(
        settings: &Settings,
        installation: &Installation,
        home: &Home,
        dir: &Path,
        more: &[(&str, &str)],
    ) -> anyhow::Result<Self> {
        let mut settings = settings.clone();
        settings.postgres.user = OWNER.to_owned();
        settings.postgres.settings.clear();
        settings.test.settings = more.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        settings.test.dir = Some(dir.to_owned());
        settings.test.spare = false;
        settings.test.superuser = false;
        settings.test.max_connections = CONNECTIONS;
        let recipe = Recipe {
            settings: Rc::new(settings),
            migrations: MigrationRun::None,
            seeds: Vec::new(),
            installation: installation.clone(),
            server: home.server.clone(),
            python: "python3".into(),
            state: home.state.clone(),
        };
        Ok(Self { cluster: Cluster::start(&recipe, Wish { is_watched: true, ..Wish::default() }).await? })
    }

    /// The directories of such servers below `dir` that nobody removed: their machine lost its power, or their janitor was
    /// killed too.
    pub fn left_below(dir: &Path) -> Vec<PathBuf> {
        RunDir::left_below(dir)
    }

    /// Remove these.
    ///
    /// # Errors
    /// The place cannot be written to.
    pub async fn sweep(dir: &Path) -> anyhow::Result<()> {
        // Whoever takes a place there removes those of dead runs first.
        RunDir::take(dir).await?.remove().await;
        Ok(())
    }

    pub fn home(&self) -> &Home {
        &self.cluster.home
    }

    pub fn port(&self) -> u16 {
        self.cluster.postmaster.port
    }
}
