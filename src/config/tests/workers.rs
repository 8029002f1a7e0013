//! What the workers are, what runs beside them and at their turns.

use std::time::Duration;

use expect_test::expect;

use super::{APP, project, summary};
use crate::config::{AfterReady, Factory, MemoryKind, OnFailure, Preload, Readiness, WorkerSocket};

#[test]
fn the_keys_of_replacement_preload_and_hooks_find_their_fields() {
    let file = "[workers]\napp = 'main:app'\ncount = 2\npreload = true\nsurge = 2\ndrain = '1m'\nmax_requests = 10000\n\
                max_memory = '512MB'\nmemory_kind = 'rss'\nmax_age = '24h'\nreload_include = ['*.py', '*.html']\n\
                [hooks]\nafter_ready = ['python', '-c', 'pass']\nafter_ready_on = 'replaced'\non_failure = 'stop'\n\
                [log]\nring = '2MB'\n";
    let settings = project(&[("tandem.toml", file)]).loaded().settings;
    let workers = &settings.workers;
    assert_eq!((workers.preload, workers.surge, settings.budget().rolling), (Preload::On, 2, 2));
    assert_eq!((workers.drain, workers.max_age), (Duration::from_secs(60), Some(Duration::from_secs(86400))));
    assert_eq!((workers.max_requests, workers.max_requests_jitter), (10000, 0));
    assert_eq!((workers.max_memory, workers.memory_kind), (Some(512 << 20), MemoryKind::Rss));
    assert_eq!(workers.reload_include, ["*.py", "*.html"]);
    assert_eq!(
        (&workers.ready, workers.socket, &workers.command),
        (&Readiness::Notify, WorkerSocket::Inherited, &None)
    );
    let hooks = &settings.hooks;
    assert_eq!(hooks.after_ready.as_deref().unwrap(), ["python", "-c", "pass"]);
    assert_eq!((hooks.after_ready_on, hooks.on_failure), (AfterReady::Replaced, OnFailure::Stop));
    assert_eq!((hooks.limit, &hooks.before_stop, settings.log.ring), (Duration::from_secs(30), &None, 2 << 20));

    let settings = project(&[("tandem.toml", APP)])
        .environment(&[
            ("TANDEM_WORKERS__PRELOAD", "strict"),
            ("TANDEM_HOOKS__BEFORE_STOP", r#"["sh", "-c", "true, really"]"#),
        ])
        .loaded()
        .settings;
    assert_eq!(settings.workers.preload, Preload::Strict);
    assert_eq!(settings.hooks.before_stop.unwrap(), ["sh", "-c", "true, really"]);
    for (word, preload) in [("yes", Preload::On), ("false", Preload::Off)] {
        let project = project(&[("tandem.toml", APP)]).environment(&[("TANDEM_WORKERS__PRELOAD", word)]);
        assert_eq!(project.loaded().settings.workers.preload, preload, "{word}");
    }
}

#[test]
fn another_server_needs_no_app_and_cannot_be_preloaded() {
    let file =
        "[workers]\ncommand = ['granian', 'main:app']\nready = '/health'\nsocket = 'own'\nevent_loop = 'uvloop'\n";
    let loaded = project(&[("tandem.toml", file)]).loaded();
    expect![[r#"
        workers.event_loop = uvloop (tandem.toml:5)
        workers.command = ["granian", "main:app"] (tandem.toml:2)
        workers.ready = /health (tandem.toml:3)
        workers.socket = own (tandem.toml:4)
        notice: workers.event_loop has no effect: workers.command starts the workers"#]]
    .assert_eq(&summary(&loaded));
    assert_eq!(loaded.settings.workers.ready, Readiness::Http("/health".into()));
    assert_eq!(loaded.settings.workers.socket, WorkerSocket::Own);

    let file = "[workers]\ncommand = ['granian']\npreload = 'strict'\nready = 'http://localhost/health'\nsurge = 9\n\
                max_memory = '8MB'\n[postgres]\nmax_connections = 100\n[hooks]\nlimit = 0\nafter_ready = []\n";
    project(&[("tandem.toml", file)]).refused(expect![[r#"
        the configuration has 6 problems:
          tandem.toml:3: workers.preload: workers.command starts each worker anew
            help: leave one of them out: only Tandem's launcher can fork workers
          tandem.toml:4: workers.ready: "http://localhost/health" is not a path
            help: write the path alone, such as "/health"; it is asked for at the worker's own address
          tandem.toml:5: the workers' pools may open more connections than PostgreSQL accepts: 4 workers × (20 + 10) + 9 more during a roll × 30 + 10 reserved + 3 for superusers = 403, max_connections is 100
            help: raise postgres.max_connections to 403, or let pool.size + pool.overflow be at most 6
          tandem.toml:6: workers.max_memory: less than a worker takes to begin with: each would be replaced for ever
            help: a worker takes 16MB at the very least, most take 100MB
          tandem.toml:10: hooks.limit: must be longer than nothing
          tandem.toml:11: hooks.after_ready = []: expected a program and its arguments as a list, such as ["npm", "run", "dev"]"#]]);
    project(&[("tandem.toml", "[workers]\napp = 'main:app'\nsocket = 'own'\npreload = 'lax'\ncommand = 'granian'\n")])
        .refused(expect![[r#"
            the configuration has 2 problems:
              tandem.toml:4: workers.preload = "lax": expected true, false or "strict"
              tandem.toml:5: workers.command = "granian": expected a program and its arguments as a list, such as ["npm", "run", "dev"]"#]]);
}

#[test]
fn processes_are_read_in_order_and_their_variables_hidden() {
    let file = "[[process]]\nname = 'frontend'\ncommand = ['npm', 'run', 'dev']\ndir = 'web'\nenv = { PORT = 3000 }\n\
                stop_grace = 5\n[[process]]\nname = 'queue'\ncommand = ['python', '-m', 'queue']\n\
                [process.env]\nTOKEN = 's3cret'\n";
    let loaded = project(&[("tandem.toml", &format!("{file}{APP}")), ("web/package.json", "")]).loaded();
    expect![[r#"
        workers.app = main:app (tandem.toml:13)
        process.frontend.command = ["npm", "run", "dev"] (tandem.toml:3)
        process.frontend.dir = web (tandem.toml:4)
        process.frontend.stop_grace = 5s (tandem.toml:6)
        process.frontend.env.PORT = ******** (tandem.toml:5)
        process.queue.command = ["python", "-m", "queue"] (tandem.toml:9)
        process.queue.env.TOKEN = ******** (tandem.toml:11)"#]]
    .assert_eq(&summary(&loaded));
    assert!(!format!("{:?}", loaded.settings.processes).contains("s3cret"));
    let [frontend, queue] = loaded.settings.processes.as_slice() else { panic!("{:?}", loaded.settings.processes) };
    assert_eq!((frontend.name.as_str(), frontend.command.len()), ("frontend", 3));
    assert_eq!(frontend.dir, loaded.settings.directory.join("web"));
    assert_eq!((frontend.env["PORT"].as_str(), frontend.stop_grace), ("3000", Duration::from_secs(5)));
    assert_eq!((queue.env["TOKEN"].as_str(), queue.stop_grace), ("s3cret", Duration::from_secs(10)));
    assert_eq!(queue.dir, loaded.settings.directory);
}

#[test]
fn everything_wrong_with_processes_is_told_at_once() {
    let file = "process = 3\n[workers]\napp = 'main:app'\n";
    project(&[("tandem.toml", file)]).refused(expect![[r#"
        the configuration has 1 problem:
          tandem.toml:1: `process` is a list of tables
            help: write [[process]] above the keys of each process"#]]);
    let file = "[workers]\napp = 'main:app'\n[[process]]\nname = 'worker-3'\ncommand = 'npm run dev'\ndirectory = 'web'\n\
                [[process]]\nname = 'a'\ncomand = ['a']\nenv = 'A=1'\n[[process]]\nname = 'a'\ncommand = ['a']\n\
                dir = 'nowhere'\nstop_grace = 'soon'\n[[process]]\n[[process]]\nname = 'a b'\ncommand = ['a']\n\
                env = { 'A=B' = 'c', D = [1] }\nname.first = 'x'\n[[proces]]\nname = 'x'\n[[stripes]]\nname = 'x'\n";
    let file = file.replace("name.first = 'x'\n", "");
    project(&[("tandem.toml", &file)]).environment(&[("TANDEM_PROCESS__NAME", "x")]).refused(expect![[r#"
        the configuration has 17 problems:
          tandem.toml:4: process.name: `worker-3` is Tandem's own
            help: the names of Tandem's own services are postgres, template, workers, worker-0 and so on
          tandem.toml:5: process.command = "npm run dev": expected a program and its arguments as a list, such as ["npm", "run", "dev"]
          tandem.toml:6: unknown key `directory` of a [[process]]
          tandem.toml:7: this [[process]] has no `command`
            help: write command = ["npm", "run", "dev"]
          tandem.toml:9: unknown key `comand` of a [[process]]
            help: did you mean `command`?
          tandem.toml:10: `env` is a table
            help: write env = { NAME = "value" }
          tandem.toml:12: process.name: there is a `a` already
            help: each process has a name of its own, for the log and for `tandem restart NAME`
          tandem.toml:14: process.dir: <project>/nowhere is not a directory
          tandem.toml:15: process.stop_grace = "soon": expected a duration such as "30s", "500ms" or "10m" (a plain number is seconds), and no more than a year
          tandem.toml:16: this [[process]] has no `name`
            help: write name = "frontend", for its lines in the log
          tandem.toml:16: this [[process]] has no `command`
            help: write command = ["npm", "run", "dev"]
          tandem.toml:18: process.name: "a b" may hold letters, digits, `-`, `_` and `.`
          tandem.toml:20: "A=B" is not a variable's name
          tandem.toml:20: process.env.D: expected text, a number, or true or false
          tandem.toml:21: unknown section [proces]
            help: did you mean [[process]]?
          tandem.toml:23: unknown section [stripes]
            help: the sections are postgres, migrations, python, workers, pool, health, metrics, stop, hooks, backup, backup.pitr, restore, disk, test, log, and any number of [[process]]
          environment: TANDEM_PROCESS__NAME cannot be said here
            help: a [[process]] is written in the configuration file"#]]);
}

#[test]
fn the_limits_of_a_drain_and_what_the_application_is_find_their_fields() {
    let of = |lines: &str| {
        let file = format!("[workers]\napp = 'main:app'\n{lines}\n");
        project(&[("tandem.toml", &file)]).loaded().settings.workers
    };
    let seconds = |seconds| Some(Duration::from_secs(seconds));
    let plain = of("drain = '7s'");
    assert_eq!((plain.drain_busy, plain.drain_streams), (None, seconds(7)), "streams as idle connections");
    let said = of("drain_busy = '1h'\ndrain_streams = 'never'");
    assert_eq!((said.drain_busy, said.drain_streams), (seconds(3600), None));
    assert_eq!((plain.factory, plain.lifespan.as_str(), plain.interface.as_str()), (Factory::Auto, "auto", "auto"));
    let said = of("factory = true\nlifespan = 'on'\ninterface = 'wsgi'\ncheck = '/health?deep=1'");
    assert_eq!((said.factory, said.lifespan.as_str(), said.interface.as_str()), (Factory::Yes, "on", "wsgi"));
    assert_eq!(said.check.as_deref(), Some("/health?deep=1"));
    assert_eq!(of("factory = false").factory, Factory::No);
}
