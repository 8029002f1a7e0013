//! The template: a data directory with the migrated and seeded database in it, made once for each content and kept packed.
//!
//! ```text
//! <cache>/test/<key>.tar    appears by a rename when it is whole; one maker at a time, under <key>.lock
//! ```
//!
//! An installed cache may be closed to the user who runs this, as in an image: then `cache` in the state directory takes its
//! place, or a directory for temporary files.
//!
//! It is made from an empty cluster, which is packed and kept in the same way, so that a changed migration costs no initdb.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::TryRng;
use rand::rngs::SysRng;
use sea_orm::sqlx::{AssertSqlSafe, Connection, PgConnection, query_scalar, raw_sql};

use super::facts::TemplateFacts;
use super::janitor::Janitor;
use super::key::Key;
use super::place::{RunDir, candidates};
use super::postmaster::{Postmaster, Spec};
use super::seed::Seed;
use super::{catalog, image};
use crate::config::{MigrationRun, Settings, temp_dir};
use crate::exit::{Code, Failure, is_disk_full};
use crate::install;
use crate::plan::{CommandLine, DatabaseUrl, Identity, Secret, in_one_line};
use crate::postgres::binaries::{self, Installation};
use crate::postgres::cluster;
use crate::postgres::embedded::{self, PsqlBuilder};
use crate::postgres::home::{Home, make_dir};
use crate::postgres::provision::identifier;
use crate::postgres::scram;
use crate::postgres::settings::SUPERUSER;
use crate::process::{self, RunError, identity};
use crate::schema::{self, ANSWER_LIMIT, MAKE_LIMIT, answered};
use crate::telemetry;
use crate::workers::environment;
use crate::workers::surroundings::{Surroundings, scheme};

/// The database that all others are cloned from.
pub const DATABASE: &str = "tandem_template";
/// How many images are kept, the last used ones.
const IMAGES_MAX: usize = 12;
/// How long to wait for another process that makes the same template: its migrations and seeds may take minutes.
const LOCK_LIMIT: Duration = Duration::from_secs(900);
/// How long a seed may take.
const SEED_LIMIT: Duration = Duration::from_secs(600);
/// How long one statement over what the migrations and seeds made may take.
const STATEMENT_LIMIT: Duration = Duration::from_secs(600);
/// Calls the seed's function with the URL of the database.
const CALL: &str = "import importlib, sys; getattr(importlib.import_module(sys.argv[1]), sys.argv[2])(sys.argv[3])";

/// What a template consists of, and what it is made with.
pub struct Recipe {
    pub settings: Rc<Settings>,
    pub migrations: MigrationRun,
    pub seeds: Vec<Seed>,
    pub installation: Installation,
    /// The user the server runs as, when that is not our own.
    pub server: Option<Identity>,
    /// The Python environment's interpreter.
    pub python: PathBuf,
    /// The state directory, which takes what no other place takes.
    pub state: PathBuf,
}

/// A template that is there.
pub struct Template {
    pub key: String,
    pub image: PathBuf,
}

/// The template for `recipe`, made if it is not there yet, or if `rebuild` asks for it.
///
/// # Errors
/// What initdb, the migrations or the seeds said.
pub async fn ensure(recipe: &Recipe, rebuild: bool) -> anyhow::Result<Template> {
    let key = recipe.key()?;
    let dirs = shelves(&recipe.settings.cache_dir, &recipe.state);
    let found = dirs.iter().map(|dir| dir.join(format!("{key}.tar"))).find(|image| touch(image));
    if let Some(image) = found.filter(|_| !rebuild) {
        return Ok(Template { key, image });
    }
    let dir = open_shelf(&dirs)?;
    let image = dir.join(format!("{key}.tar"));
    let _lock = install::lock(&dir.join(format!("{key}.lock")), "make the tests' template", LOCK_LIMIT).await?;
    // The process that held the lock before may have made it.
    if rebuild || !touch(&image) {
        let _progress = telemetry::progress(format!("making {}", recipe.words()));
        let empty = recipe.empty(&dir, rebuild).await?;
        recipe.make(&empty, &image).await?;
        sweep(&dir);
    }
    Ok(Template { key, image })
}

/// Where images may lie, the best place first.
fn shelves(cache: &Path, state: &Path) -> [PathBuf; 3] {
    let temporary = temp_dir().join(format!("tandem-templates-{}", nix::unistd::Uid::effective()));
    [cache.join("test"), state.join("cache/test"), temporary]
}

/// The first of them that can be written, made if it is not there.
fn open_shelf(shelves: &[PathBuf; 3]) -> anyhow::Result<PathBuf> {
    for dir in &shelves[..2] {
        if let Some(state) = shelves[1].ancestors().nth(2).filter(|_| *dir == shelves[1]) {
            let _told_below = install::make_shared_dir(state);
            install::keep_out_of_git(state);
        }
        match install::make_shared_dir(dir) {
            Ok(()) if identity::may_write(dir, None) => return Ok(dir.clone()),
            made => tracing::debug!("templates are not kept in {}, which cannot be written: {made:?}", dir.display()),
        }
    }
    let dir = &shelves[2];
    let why = || {
        let [cache, state, temporary] = shelves.each_ref().map(|dir| dir.display());
        let text = format!("cannot keep the tests' template in {cache}, in {state} or in {temporary}");
        Failure::new(Code::CannotCreate, format!("{text}: name another place with `cache_dir`, or open one of these"))
    };
    make_dir(dir, 0o700, None).with_context(why)?;
    // In a directory that all users share, another user may have been first.
    let meta = dir.symlink_metadata().with_context(why)?;
    let ours = meta.is_dir() && meta.uid() == nix::unistd::Uid::effective().as_raw() && meta.mode() & 0o022 == 0;
    if ours { Ok(dir.clone()) } else { Err(why().into()) }
}

/// Whether the image is there; if so, it counts as used now.
fn touch(image: &Path) -> bool {
    File::open(image).is_ok_and(|file| {
        let _ = file.set_modified(SystemTime::now());
        true
    })
}

/// Remove the images that were not used for longest.
fn sweep(dir: &Path) {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let images = entries.filter(|path| path.extension().is_some_and(|extension| extension == "tar"));
    let mut images: Vec<_> = images.filter_map(|path| Some((path.metadata().ok()?.modified().ok()?, path))).collect();
    images.sort();
    for (_, image) in &images[..images.len().saturating_sub(IMAGES_MAX)] {
        let _ = fs::remove_file(image);
    }
}

impl Recipe {
    /// Find or fetch what `settings` name.
    ///
    /// # Errors
    /// No PostgreSQL, no Python environment; a seed that is none.
    pub async fn gather(
        mut settings: Settings,
        migrations: MigrationRun,
        more_seeds: &[String],
    ) -> anyhow::Result<Self> {
        let home = Home::resolve(&settings)?;
        let interpreter = &settings.python.interpreter;
        let (installation, environment) = tokio::try_join!(
            binaries::ensure(
                &settings.postgres.source,
                &settings.cache_dir,
                interpreter,
                settings.search_path.as_ref()
            ),
            environment::ensure(&settings.python, &home.state, &settings.directory),
        )?;
        let seeds = settings.test.seed.iter().chain(more_seeds).map(|text| Seed::parse(text, &settings.directory));
        let seeds = seeds.collect::<Result<_, _>>()?;
        let (server, python, state) = (home.server, environment.python, home.state);
        // What tests and migrations get as DATABASE_URL.
        if settings.test.url_scheme != "auto" {
            settings.workers.url_scheme = settings.test.url_scheme.clone();
        }
        settings.test.url_scheme = scheme(&settings, &python);
        Ok(Self { settings: Rc::new(settings), migrations, seeds, installation, server, python, state })
    }

    fn key(&self) -> anyhow::Result<String> {
        Ok(self.empty_key().with_content(&self.settings, &self.migrations, &self.seeds)?.finish())
    }

    fn empty_key(&self) -> Key {
        let uid = self.server.as_ref().map_or_else(|| nix::unistd::Uid::effective().as_raw(), |server| server.uid);
        Key::empty(&self.installation.version, uid)
    }

    fn words(&self) -> String {
        let migrations = match &self.migrations {
            // As a backup is restored into when it is verified.
            MigrationRun::None if self.seeds.is_empty() => return "a throwaway server's empty database".to_owned(),
            MigrationRun::None => "no migrations".to_owned(),
            MigrationRun::SeaOrm => "the built-in migrations".to_owned(),
            MigrationRun::Command(words) => in_one_line(words),
        };
        let seeds: String = self.seeds.iter().map(|seed| format!(", {seed}")).collect();
        format!("the tests' template database ({migrations}{seeds})")
    }

    /// The image of an empty cluster.
    async fn empty(&self, dir: &Path, rebuild: bool) -> anyhow::Result<PathBuf> {
        let key = self.empty_key().finish();
        let image = dir.join(format!("{key}.tar"));
        if !rebuild && touch(&image) {
            return Ok(image);
        }
        let _lock = install::lock(&dir.join(format!("{key}.lock")), "make an empty cluster", LOCK_LIMIT).await?;
        if rebuild || !touch(&image) {
            self.in_a_place(async |_, home| {
                make_dir(&home.data, 0o700, home.server.as_ref())?;
                // Small segments: a cluster is copied for each run.
                cluster::initdb(home, &self.installation, &home.data, |initdb| initdb.wal_segsize("1")).await?;
                TemplateFacts::default().note(home)?;
                image::pack(&home.data, &image)
            })
            .await?;
        }
        Ok(image)
    }

    async fn make(&self, empty: &Path, image: &Path) -> anyhow::Result<()> {
        self.in_a_place(async |place, home| {
            image::lay_out(empty, &home.data, home.server.as_ref())?;
            let _janitor = Janitor::hire(place, None).context("start a shell that cleans up")?;
            let (settings, installation) = (self.settings.clone(), self.installation.clone());
            let spec = Spec { home: home.clone(), installation, settings, lasting: false };
            let postmaster = Postmaster::start(spec).await?;
            let stocked = self.stock(home, postmaster.port).await;
            let facts = stocked.with_context(|| match postmaster.last_lines(5).join("\n  ") {
                lines if lines.is_empty() => "make the tests' template".to_owned(),
                lines => format!("make the tests' template (the server's last lines:\n  {lines})"),
            })?;
            facts.note(home)?;
            postmaster.shut_down().await?;
            image::pack(&home.data, image)
        })
        .await
    }

    /// Do `work` in the first place that has room for it.
    async fn in_a_place(&self, work: impl AsyncFn(&RunDir, &Home) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let (roots, _) = candidates(self.settings.test.dir.as_deref(), &self.state);
        let mut outcome = Ok(());
        for root in roots {
            let place = RunDir::take(&root).await?;
            let home = Home::at(&place.dir, self.server.clone());
            let worked = async {
                home.prepare()?;
                cluster::check_reach(&home, &self.installation)?;
                work(&place, &home).await
            };
            outcome = worked.await;
            place.remove().await;
            if !outcome.as_ref().is_err_and(is_disk_full) {
                break;
            }
        }
        outcome
    }

    /// Make role and databases in the empty cluster behind `port`.
    async fn stock(&self, home: &Home, port: u16) -> anyhow::Result<TemplateFacts> {
        let postgres = &self.settings.postgres;
        let (user, database) = (identifier(&postgres.user), identifier(&postgres.database));
        let mut facts = TemplateFacts { password: password()?, ..TemplateFacts::default() };
        let verifier = scram::verifier(&facts.password, scram::ITERATIONS_GENERATED)?;
        let verb = if postgres.user == SUPERUSER { "ALTER" } else { "CREATE" };

        // Not the database `postgres`, which may have to be made anew.
        let mut root = catalog::enter(home, port, "template1").await?;
        run(&mut root, format!("{verb} ROLE {user} LOGIN CREATEDB PASSWORD '{verifier}'")).await?;
        if postgres.database == SUPERUSER {
            run(&mut root, format!("DROP DATABASE {database}")).await?;
        }
        // Under its own name, which migrations may use.
        run(&mut root, format!("CREATE DATABASE {database} TEMPLATE template0 OWNER {user}")).await?;
        let url = DatabaseUrl {
            scheme: "postgresql".into(),
            user: postgres.user.clone(),
            password: Some(Secret::new(&*facts.password)),
            host: "127.0.0.1".into(),
            port,
            database: postgres.database.clone(),
            parameters: Vec::new(),
        };
        self.migrate(&url).await?;
        let mut made = catalog::enter(home, port, &postgres.database).await?;
        self.check_made(&mut made).await?;
        answered(ANSWER_LIMIT, "close the connection", made.close()).await?;
        for seed in &self.seeds {
            self.seed(seed, &url).await?;
        }

        let mut inside = catalog::enter(home, port, &postgres.database).await?;
        // Clones then have the planner's statistics, and no row whose visibility must be noted at its first reading.
        run(&mut inside, "VACUUM (ANALYZE)".into()).await?;
        let asked = query_scalar(catalog::SEQUENCES).fetch_one(&mut inside);
        facts.sequences = answered(MAKE_LIMIT, "read the sequences", asked).await?;
        answered(ANSWER_LIMIT, "close the connection", inside.close()).await?;
        // What a migration or a seed left connected would keep the database from being renamed and cloned.
        let others = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = $1";
        let asked = sea_orm::sqlx::query(others).bind(&postgres.database).execute(&mut root);
        answered(MAKE_LIMIT, "end connections", asked).await?;
        run(&mut root, format!("ALTER DATABASE {database} RENAME TO {DATABASE}")).await?;
        run(&mut root, format!("ALTER DATABASE {DATABASE} OWNER TO {SUPERUSER}")).await?;
        // So that it is not changed by mistake. Tandem itself connects once before it clones: see `Databases::fill`.
        run(&mut root, format!("ALTER DATABASE {DATABASE} IS_TEMPLATE true")).await?;
        run(&mut root, format!("REVOKE ALL ON DATABASE {DATABASE} FROM PUBLIC")).await?;
        if postgres.user == SUPERUSER {
            run(&mut root, format!("ALTER DATABASE {DATABASE} ALLOW_CONNECTIONS false")).await?;
        }
        run(&mut root, catalog::clone_statement(&postgres.database, DATABASE, &postgres.user)).await?;
        root.close().await?;
        Ok(facts)
    }

    async fn migrate(&self, url: &DatabaseUrl) -> anyhow::Result<()> {
        let migrations = &self.settings.migrations;
        match &self.migrations {
            MigrationRun::None => Ok(()),
            MigrationRun::SeaOrm => schema::up(url, migrations.lock_limit, migrations.limit).await.map(drop),
            MigrationRun::Command(words) => {
                let dir = self.settings.migrations_dir();
                let command = self.around(url).command(words, &self.application(), dir);
                let command = command.context("the migration command is empty")?;
                let what = format!("migrations: `{}`", in_one_line(words));
                self.succeed(command, (migrations.limit, "migrations.limit"), &what).await
            }
        }
    }

    /// A migration command that has made nothing at all has most likely read another address.
    async fn check_made(&self, inside: &mut PgConnection) -> anyhow::Result<()> {
        let MigrationRun::Command(words) = &self.migrations else { return Ok(()) };
        if catalog::holds_anything(inside).await? {
            return Ok(());
        }
        let what = in_one_line(words);
        bail!(Failure::new(
            Code::Config,
            format!(
                "migrations: `{what}` changed nothing in the tests' database: did it work on another one? It gets DATABASE_URL, \
                 PGHOST, PGPORT, PGUSER, PGPASSWORD, PGDATABASE and POSTGRES_*; give it other names in [workers.env], such as \
                 DB_PORT = \"${{PGPORT}}\". If it has nothing to make, write migrations.run = \"none\""
            )
        ))
    }

    async fn seed(&self, seed: &Seed, url: &DatabaseUrl) -> anyhow::Result<()> {
        let around = self.around(url);
        let command = match seed {
            Seed::Sql { path, .. } => {
                let psql = PsqlBuilder::new().no_psqlrc().quiet().single_transaction();
                embedded::command(&self.installation, &psql.variable(("ON_ERROR_STOP", "1")).file(path))
            }
            Seed::Python { module, function, .. } => {
                let url = url.with_scheme(&around.scheme()).expose();
                CommandLine::new(self.python.clone()).args(["-c", CALL, module, function, url.expose()])
            }
        };
        let mut command = around.with_all(command, &self.application(), &self.settings.directory);
        if let Seed::Python { .. } = seed {
            // What a program's own directory is to its imports, the project is to a seed's.
            let (dir, app_dir) = (&self.settings.directory, &self.settings.workers.app_dir);
            let places = if dir == app_dir {
                dir.display().to_string()
            } else {
                format!("{}:{}", dir.display(), app_dir.display())
            };
            command = command.env("PYTHONPATH", places);
        }
        self.succeed(command, (SEED_LIMIT, "the limit for seeds"), &format!("test.seed: {seed}")).await
    }

    /// What migrations and seeds get: as the user who runs the tests.
    pub fn around<'a>(&'a self, url: &'a DatabaseUrl) -> Surroundings<'a> {
        Surroundings { settings: &self.settings, url, python: &self.python, identity: None, of_tests: true }
    }

    fn application(&self) -> String {
        format!("{}-template", self.settings.name)
    }

    async fn succeed(&self, command: CommandLine, limit: (Duration, &str), what: &str) -> anyhow::Result<()> {
        let finished = match process::run(&command, limit.0).await {
            Err(RunError::Limit(..)) => {
                let text = format!("{what} did not end within {:?} ({}) and was killed", limit.0, limit.1);
                bail!(Failure::new(Code::Failed, text))
            }
            ended => ended.with_context(|| what.to_owned())?,
        };
        if !finished.exit.success() {
            let text = format!("{what} ended with {}\n{}", finished.exit, finished.last_lines());
            bail!(Failure::new(Code::Failed, text));
        }
        Ok(())
    }
}

/// Letters, digits, `-` and `_`: nothing that a URL must encode.
fn password() -> anyhow::Result<String> {
    let mut bits = [0; 32];
    SysRng.try_fill_bytes(&mut bits).context("ask the system for randomness")?;
    Ok(URL_SAFE_NO_PAD.encode(bits))
}

async fn run(connection: &mut PgConnection, statement: String) -> anyhow::Result<()> {
    let what = statement.split_whitespace().take(3).collect::<Vec<_>>().join(" ");
    let asked = raw_sql(AssertSqlSafe(statement)).execute(connection);
    answered(STATEMENT_LIMIT, &format!("run {what}"), asked).await.map(drop)
}
