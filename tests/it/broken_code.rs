//! Code that cannot serve is never called ready: not by a guess of Uvicorn's, and not in a roll.

use crate::common::control;
use crate::common::deployed::{self, BARE, plain};
use crate::common::refusal;
use crate::common::tandem::{self, Tandem, wait_for};
use crate::common::worker::{Flavour, Stage};

/// An application made by a function, as most large ones are.
fn made(by: &str) -> String {
    format!("{}\n{by}\n", plain("", "made").replace("async def app(", "async def application("))
}

const GOOD: &str = "def app():\n    return application";

/// What a deployment may break, and what the answer to `tandem reload` must then say.
const BROKEN: [(&str, &[&str]); 6] = [
    ("def app():\n    return application(title='x' + 1)", &["TypeError: can only concatenate str", "in app"]),
    ("def app():\n    return None", &["main:app() returned None"]),
    ("async def app():\n    return application", &["asynchronous function"]),
    (
        "async def app(scope, receive, send):\n    if scope['type'] == 'lifespan':\n        pool = mkae_pool()\n    \
         await application(scope, receive, send)",
        &["lifespan", "NameError: name 'mkae_pool' is not defined", "workers.lifespan = \"off\""],
    ),
    (
        "async def app(scope, receive, send):\n    if scope['type'] == 'lifespan':\n        await receive()\n        \
         raise TypeError('no exchange')\n    await application(scope, receive, send)",
        &["lifespan", "TypeError: no exchange"],
    ),
    (
        "def app(environ, start_response):\n    return [b'']",
        &["main:app is a WSGI application", "asgi.py", "workers.interface"],
    ),
];

#[test]
fn a_roll_onto_code_that_cannot_serve_fails_and_shows_why() {
    for lines in ["workers.count = 2", "workers.count = 2\nworkers.preload = true"] {
        let project = deployed::project(&format!("{BARE}\n{lines}"), &made(GOOD));
        let mut tandem = Tandem::up(&project);
        wait_for("every worker", || tandem.workers().len() == 2);
        let before = tandem.workers();
        for (by, words) in BROKEN {
            deployed::deploy(&project, &made(by));
            let said = control::run(&project, &["reload"]);
            said.expect(1, words);
            said.expect(1, &["serve on"]);
            assert_eq!(tandem.get("/").unwrap(), (200, "made".to_owned()), "{by}: {}", tandem.log());
        }
        assert_eq!(tandem.workers(), before, "{}", tandem.log());
        assert!(!tandem.log().contains("appears unsupported"), "{}", tandem.log());
        deployed::deploy(&project, &made(GOOD));
        control::run(&project, &["reload"]).expect(0, &["replaced 2 workers"]);
        assert_eq!(tandem.stop(), 0, "{}", tandem.log());
        assert!(tandem::left_in(project.dir()).is_empty());
    }
}

#[test]
fn a_first_start_with_it_ends_and_says_why() {
    for (at, tracebacks) in [(0, 1), (3, 1), (5, 0)] {
        let (by, words) = BROKEN[at];
        let lines = format!("{BARE}\nworkers.count = 1\nworkers.restart_intensity = 1\nworkers.backoff_first = '10ms'");
        let said = refusal::up(&deployed::project(&lines, &made(by)));
        said.expect(69, &["worker-0 gave up"]);
        said.expect(69, words);
        let count = said.said.matches("Traceback (most recent call last)").count();
        assert_eq!(count, tracebacks, "{by}: {}", said.said);
    }
}

#[test]
fn a_startup_that_never_ends_is_named_and_a_stop_does_not_wait_for_it() {
    const STUCK: &str = "
from contextlib import asynccontextmanager
@asynccontextmanager
async def resources():
    try:
        await asyncio.Event().wait()
        yield
    finally:
        print('let go of', flush=True)
async def app(scope, receive, send):
    if scope['type'] == 'lifespan':
        async with resources():
            pass
    await application(scope, receive, send)";
    let lines = format!("{BARE}\nworkers.count = 1\nstop.grace = '60s'\nworkers.ready_limit = '9s'");
    let project = deployed::project(&lines, &made(GOOD));
    let mut tandem = Tandem::up(&project);
    deployed::deploy(&project, &made(STUCK));
    control::run(&project, &["reload"]).expect(1, &["did not get ready in time", "serve on"]);
    let log = tandem.log();
    assert!(
        log.contains("startup (its lifespan) has taken 5 s and goes on, at") && log.contains("in resources"),
        "{log}"
    );
    let roll = control::start(&project, &["reload"]);
    wait_for("the next one", || tandem.log().matches("Waiting for application startup").count() == 3);
    let began = std::time::Instant::now();
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    assert!(began.elapsed() < std::time::Duration::from_secs(30), "{:?}: {}", began.elapsed(), tandem.log());
    assert!(tandem.log().contains("let go of"), "{}", tandem.log());
    control::said(roll).expect(75, &["a stop came first"]);
    assert!(tandem::left_in(project.dir()).is_empty());
}

#[test]
fn a_check_keeps_a_worker_that_answers_badly_from_the_socket() {
    let checked = |status: u16| {
        format!(
            "{}\nasync def app(scope, receive, send):\n    if scope['type'] == 'http' and scope['path'] == '/check':\n        \
             assert scope['client'][0] == '127.0.0.1' and scope['query_string'] == b'deep=1'\n        \
             await send({{'type': 'http.response.start', 'status': {status}, 'headers': []}})\n        \
             return await send({{'type': 'http.response.body', 'body': b''}})\n    await application(scope, receive, send)\n",
            made("")
        )
    };
    for preload in [false, true] {
        let lines = format!("{BARE}\nworkers.count = 1\nworkers.check = '/check?deep=1'\nworkers.preload = {preload}");
        let project = deployed::project(&lines, &checked(404));
        let mut tandem = Tandem::up(&project);
        let before = tandem.workers();
        deployed::deploy(&project, &checked(503));
        let said = control::run(&project, &["reload"]);
        said.expect(1, &["did not pass workers.check", "GET /check?deep=1", "status 503", "serve on"]);
        assert_eq!(tandem.workers(), before, "{}", tandem.log());
        deployed::deploy(&project, &checked(204));
        control::run(&project, &["reload"]).expect(0, &["replaced 1 workers"]);
        assert_eq!(tandem.stop(), 0, "{}", tandem.log());
        assert!(tandem::left_in(project.dir()).is_empty());
    }
}

#[test]
fn a_check_that_is_no_path_or_has_nothing_to_ask_is_refused() {
    let project = deployed::project(&format!("{BARE}\nworkers.check = 'health'"), &made(GOOD));
    refusal::up(&project).expect(78, &["workers.check", "\"health\" is not a path"]);
    let lines = format!("{BARE}\nworkers.check = '/health'\nworkers.command = ['uvicorn', 'main:app']");
    refusal::up(&deployed::project(&lines, &made(GOOD))).expect(78, &["workers.check", "workers.ready"]);
}

/// Whatever is an application to Uvicorn is one here.
#[tokio::test]
async fn every_kind_of_application_is_called_as_it_wants() {
    for flavour in [Flavour::OLDEST, Flavour::NEWEST] {
        let stage = Stage::set(flavour).await;
        for (app, interface) in [
            ("function", "auto"),
            ("plain_function", "auto"),
            ("decorated", "auto"),
            ("instance", "auto"),
            ("TwoCalls", "auto"),
            ("make", "auto"),
            ("make_with_options", "auto"),
            ("Maker", "auto"),
            ("without_lifespan", "auto"),
            ("with_another_protocol", "auto"),
            ("ignorant", "auto"),
            ("returns_early", "auto"),
            ("of_wsgi", "wsgi"),
        ] {
            let name = format!("kinds:{app}");
            let mut worker = stage.ready(&name, &[("TANDEM_INTERFACE", interface)]).await;
            let answer = crate::common::strict::Connection::open(stage.address()).unwrap().get("/").unwrap();
            assert_eq!((answer.status, answer.body.as_str()), (200, "ok"), "{flavour:?} {app}: {}", worker.output());
            worker.signal(nix::sys::signal::Signal::SIGTERM);
            assert_eq!(worker.end().await, ::tandem::process::Exit::Code(0), "{flavour:?} {app}: {}", worker.output());
            assert!(!worker.output().contains("Traceback"), "{flavour:?} {app}: {}", worker.output());
        }
    }
}
