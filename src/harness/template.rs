//! The template: a data directory with the migrated and seeded database in it, made once for each content and kept packed.
//!
//! It is made from an empty cluster, which is packed and kept in the same way, so that a changed migration costs no initdb.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, bail};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::TryRng;
use rand::rngs::SysRng;
use sea_orm::sqlx::{AssertSqlSafe, Connection, PgConnection, query_scalar, raw_sql};

use super::cluster::lacks_room;
use super::facts::TemplateFacts;
use super::inputs::Inputs;
use super::janitor::Janitor;
use super::key::Key;
use super::place::{ROOM, RunDir, candidates};
use super::postmaster::{Postmaster, Spec};
use super::reads::Recorder;
use super::seed::Seed;
use super::{image, remains, shelf, superuser};
use crate::config::{MigrationRun, Settings};
use crate::exit::{Code, Failure};
use crate::install;
use crate::plan::{CommandLine, DatabaseUrl, Identity, Secret, in_one_line};
use crate::postgres::binaries::{self, Installation};
use crate::postgres::embedded::{self, PsqlBuilder};
use crate::postgres::home::{Home, make_dir};
use crate::postgres::provision::identifier;
use crate::postgres::settings::SUPERUSER;
use crate::postgres::{cluster, scram};
use crate::process::{self, RunError};
use crate::room::Guard;
use crate::schema::{self, ANSWER_LIMIT, MAKE_LIMIT, answered, sql_files};
use crate::telemetry;
use crate::workers::environment;
use crate::workers::surroundings::{Surroundings, scheme};

/// The database that all others are cloned from.
pub const DATABASE: &str = "tandem_template";
/// How long to wait for another process that makes the same template: its migrations and seeds may take minutes.
const LOCK_LIMIT: Duration = Duration::from_secs(900);
/// How long a seed may take.
const SEED_LIMIT: Duration = Duration::from_secs(600);
/// How long one statement over what the migrations and seeds made may take.
const STATEMENT_LIMIT: Duration = Duration::from_secs(600);
/// Where Python keeps compiled modules instead of beside their sources, of which it then opens none.
const PYCACHE: &str = "PYTHONPYCACHEPREFIX";
/// Calls the seed's function with the URL of the database.
///
/// Not from an argument, which all users of the machine can read; and before the module, which may change the environment.
const CALL: &str = "import importlib, os, sys; url = os.environ['DATABASE_URL']; \
                    getattr(importlib.import_module(sys.argv[1]), sys.argv[2])(url)";

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
    let (base, settings) = (recipe.key()?, &recipe.settings);
    let found = |dir: &PathBuf| {
        let key = shelf::find(dir, &base, recipe.reads_files(), settings).filter(|_| !rebuild)?;
        Some(Template { image: shelf::image(dir, &key), key })
    };
    let dirs = shelf::shelves(&settings.cache_dir, &recipe.state);
    if let Some(template) = dirs.iter().find_map(found) {
        return Ok(template);
    }
    let dir = shelf::open_shelf(&dirs)?;
    let _lock = install::lock(&dir.join(format!("{base}.lock")), "make the tests' template", LOCK_LIMIT).await?;
    // The process that held the lock before may have made it.
    if let Some(template) = found(&dir) {
        return Ok(template);
    }
    let _progress = telemetry::progress(format!("making {}", recipe.words()));
    let empty = recipe.empty(&dir, rebuild).await?;
    let template = recipe.make(&empty, &dir, &base).await?;
    shelf::sweep(&dir);
    Ok(template)
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
        let mut key = self.empty_key().with_content(&self.settings, &self.migrations, &self.seeds)?;
        if self.reads_files() {
            key.add_tools(&self.settings, &self.python);
        }
        Ok(key.finish())
    }

    /// Whether commands fill the database, which read what they want.
    fn reads_files(&self) -> bool {
        matches!(self.migrations, MigrationRun::Command(_)) || !self.seeds.is_empty()
    }

    fn empty_key(&self) -> Key {
        let uid = self.server.as_ref().map_or_else(|| nix::unistd::Uid::effective().as_raw(), |server| server.uid);
        Key::empty(&self.installation.version, uid)
    }

    fn words(&self) -> String {
        let migrations = match &self.migrations {
            // As a backup is restored into when it is verified.
            MigrationRun::None if self.seeds.is_empty() => return "a throwaway server's empty database".to_owned(),
            run => run.in_words(),
        };
        let seeds: String = self.seeds.iter().map(|seed| format!(", {seed}")).collect();
        format!("the tests' template database ({migrations}{seeds})")
    }

    /// Asks for the room that its servers need, and keeps what the server of this deployment needs beside them.
    pub fn guard(&self) -> Guard {
        let (stop_free, server) = (self.settings.disk.stop_free, remains::data(&self.state));
        let guard = Guard::new("throwaway server", stop_free, Some(&server)).for_the_server();
        guard.advice("Make room (`tandem doctor` shows what of Tandem's can go), or set test.dir to another disk")
    }

    /// Pack the data directory `data` into the file `image`, if there is room for it.
    fn pack(&self, data: &Path, image: &Path) -> anyhow::Result<()> {
        self.guard().claim(image, image::size(data).context("look at the data directory")?).check()?;
        image::pack(data, image)
    }

    /// The image of an empty cluster.
    async fn empty(&self, dir: &Path, rebuild: bool) -> anyhow::Result<PathBuf> {
        let key = self.empty_key().finish();
        let image = shelf::image(dir, &key);
        if !rebuild && shelf::touch(&image) {
            return Ok(image);
        }
        let _lock = install::lock(&dir.join(format!("{key}.lock")), "make an empty cluster", LOCK_LIMIT).await?;
        if rebuild || !shelf::touch(&image) {
            self.in_a_place(async |_, home| {
                make_dir(&home.data, 0o700, home.server.as_ref())?;
                // Small segments: a cluster is copied for each run.
                cluster::initdb(home, &self.installation, &home.data, |initdb| initdb.wal_segsize("1"), &[]).await?;
                TemplateFacts::default().note(home)?;
                self.pack(&home.data, &image)
            })
            .await?;
        }
        Ok(image)
    }

    async fn make(&self, empty: &Path, dir: &Path, base: &str) -> anyhow::Result<Template> {
        self.in_a_place(async |place, home| {
            image::lay_out(empty, &home.data, home.server.as_ref())?;
            let _janitor = Janitor::hire(place, None).context("start a shell that cleans up")?;
            let (settings, installation) = (self.settings.clone(), self.installation.clone());
            let spec = Spec { home: home.clone(), installation, settings, lasting: false };
            let postmaster = Postmaster::start(spec).await?;
            let recorder = self.reads_files().then(|| self.record());
            let stocked = self.stock(home, postmaster.port).await;
            let facts = stocked.with_context(|| match postmaster.last_lines(5).join("\n  ") {
                lines if lines.is_empty() => "make the tests' template".to_owned(),
                lines => format!("make the tests' template (the server's last lines:\n  {lines})"),
            })?;
            facts.note(home)?;
            postmaster.shut_down().await?;
            let inputs = match recorder {
                Some(recorder) => self.inputs(recorder).await?,
                None => None,
            };
            let key = match (&inputs, self.reads_files()) {
                (Some(inputs), _) => inputs.key(base, &self.settings),
                (None, false) => base.to_owned(),
                // Nobody finds it again.
                (None, true) => format!("{base}-{}", std::process::id()),
            };
            let image = shelf::image(dir, &key);
            self.pack(&home.data, &image)?;
            if let Some(inputs) = inputs {
                shelf::note(dir, base, &key, &inputs)?;
            }
            Ok(Template { key, image })
        })
        .await
    }

    /// Watch what the migrations and seeds read; `None`: that cannot be watched here.
    fn record(&self) -> Option<Recorder> {
        let settings = &self.settings;
        let roots = [&*settings.directory, settings.work_dir(), &*settings.workers.app_dir, settings.migrations_dir()];
        match Recorder::start(&roots.map(Path::to_owned).into()) {
            Ok(recorder) => Some(recorder),
            Err(error) => {
                tracing::warn!(
                    "which files the migrations read cannot be seen ({error}): the template is made anew when any source or \
                     configuration file of the project changes"
                );
                None
            }
        }
    }

    /// What was read; `None`: that is not known.
    async fn inputs(&self, recorder: Option<Recorder>) -> anyhow::Result<Option<Inputs>> {
        let Some(recorder) = recorder else { return Ok(Some(Inputs::all(&self.settings))) };
        let reads = recorder.finish().await;
        if reads.missed {
            return Ok(Some(Inputs::all(&self.settings)));
        }
        match Inputs::of(&reads, &self.settings.directory) {
            Ok(inputs) => Ok(Some(inputs)),
            Err(written) => {
                let written: Vec<_> = written.iter().map(|path| path.display().to_string()).collect();
                let written = written.join(", ");
                tracing::info!("{written} changed while the tests' template was made: the next run makes it anew");
                Ok(None)
            }
        }
    }

    /// Do `work` in the first place that has room for it.
    async fn in_a_place<T>(&self, work: impl AsyncFn(&RunDir, &Home) -> anyhow::Result<T>) -> anyhow::Result<T> {
        let (roots, _) = candidates(&self.guard(), self.settings.test.dir.as_deref(), &self.state);
        let mut outcome = Err(anyhow::anyhow!("there is no place for a test server"));
        for root in roots {
            let room = self.guard().claim(&root, ROOM);
            room.check()?;
            let place = RunDir::take(&root).await?;
            let home = Home::at(&place.dir, self.server.clone());
            let worked = async {
                home.prepare()?;
                cluster::check_reach(&home, &self.installation)?;
                work(&place, &home).await
            };
            outcome = room.hold(worked).await;
            place.remove().await;
            if !outcome.as_ref().is_err_and(lacks_room) {
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
        let mut root = superuser::enter(home, port, "template1").await?;
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
        let mut made = superuser::enter(home, port, &postgres.database).await?;
        self.check_made(&mut made).await?;
        answered(ANSWER_LIMIT, "close the connection", made.close()).await?;
        if self.settings.test.superuser {
            // Not for the migrations, which are to fail here where they would fail on the server that Tandem keeps.
            run(&mut root, format!("ALTER ROLE {user} SUPERUSER")).await?;
        }
        for seed in &self.seeds {
            self.seed(seed, &url).await?;
        }

        let mut inside = superuser::enter(home, port, &postgres.database).await?;
        // Clones then have the planner's statistics, and no row whose visibility is noted at its first reading: whoever only
        // reads writes to no file. The second time is for the statistics themselves.
        run(&mut inside, "VACUUM (FREEZE, ANALYZE)".into()).await?;
        run(&mut inside, "VACUUM (FREEZE)".into()).await?;
        let asked = query_scalar(superuser::UNLOGGED).fetch_one(&mut inside);
        facts.unlogged = answered(MAKE_LIMIT, "look for unlogged tables", asked).await?;
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
        run(&mut root, format!("ALTER DATABASE {DATABASE} ALLOW_CONNECTIONS false")).await?;
        run(&mut root, superuser::clone_statement(&postgres.database, DATABASE, &postgres.user)).await?;
        root.close().await?;
        Ok(facts)
    }

    async fn migrate(&self, url: &DatabaseUrl) -> anyhow::Result<()> {
        let migrations = &self.settings.migrations;
        match &self.migrations {
            MigrationRun::None => Ok(()),
            MigrationRun::SeaOrm => schema::up(url, migrations.lock_limit, migrations.limit).await.map(drop),
            MigrationRun::Sql => {
                let (dir, limits) = (self.settings.sql_dir(), (migrations.lock_limit, migrations.limit));
                sql_files::up(url, &dir, limits, None).await.map(drop)
            }
            MigrationRun::Command(words) => {
                let command = self.around(url).command(words, &self.application(), self.settings.migrations_dir());
                let command = command.context("the migration command is empty")?.env_remove(PYCACHE);
                let (limit, what) =
                    ((migrations.limit, "migrations.limit"), format!("migrations: `{}`", in_one_line(words)));
                self.succeed(command, limit, &what).await
            }
        }
    }

    /// A migration command that has made nothing at all has most likely read another address.
    async fn check_made(&self, inside: &mut PgConnection) -> anyhow::Result<()> {
        let MigrationRun::Command(words) = &self.migrations else { return Ok(()) };
        let what = in_one_line(words);
        if superuser::holds_anything(inside).await? {
            return Ok(());
        }
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
                CommandLine::new(self.python.clone()).args(["-c", CALL, module, function])
            }
        };
        let mut command = around.with_all(command, &self.application(), around.work_dir());
        command = command.env_remove(PYCACHE);
        if let Seed::Python { .. } = seed {
            // What a program's own directory is to its imports, the project is to a seed's.
            let (dir, app_dir) = (self.settings.work_dir(), self.settings.workers.app_dir.as_path());
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
