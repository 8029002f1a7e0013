//! Whole projects, as people lay them out.

use std::path::Path;

use super::*;

struct Dir(tempfile::TempDir);

fn project(files: &[(&str, &str)]) -> Dir {
    let dir = Dir(tempfile::tempdir().unwrap());
    for (name, text) in files {
        dir.write(name, text);
    }
    dir
}

impl Dir {
    fn write(&self, name: &str, text: &str) {
        let path = self.0.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn look(&self) -> Project {
        look(self.0.path())
    }

    /// The applications as `app (framework, in app_dir, at file)`.
    fn applications(&self) -> Vec<String> {
        let shown = |found: &Found<Application>| {
            let Found { value, seen } = found;
            let dir = match value.app_dir.as_os_str().is_empty() {
                true => String::new(),
                false => format!(" in {}", value.app_dir.display()),
            };
            let factory = if value.is_factory { " factory" } else { "" };
            format!("{} {}{factory}{dir} ({seen})", value.app, value.framework.name())
        };
        self.look().applications.iter().map(shown).collect()
    }
}

const FASTAPI: &str = "from fastapi import FastAPI\n\napp = FastAPI()\n";

#[test]
fn one_application_in_a_usual_place() {
    for (files, expected) in [
        (&[("main.py", FASTAPI)][..], "main:app FastAPI (main.py:3)"),
        (&[("app/__init__.py", ""), ("app/main.py", FASTAPI)], "app.main:app FastAPI (app/main.py:3)"),
        (&[("shop/__init__.py", FASTAPI)], "shop:app FastAPI (shop/__init__.py:3)"),
        (
            &[("src/shop/__init__.py", ""), ("src/shop/main.py", FASTAPI)],
            "shop.main:app FastAPI in src (src/shop/main.py:3)",
        ),
        (
            &[("app/main.py", &format!("import db\n{FASTAPI}")), ("app/db.py", "")],
            "main:app FastAPI in app (app/main.py:4)",
        ),
        (
            &[("app/main.py", &format!("from app import db\n{FASTAPI}")), ("app/db.py", "")],
            "app.main:app FastAPI (app/main.py:4)",
        ),
        (
            &[("backend/pyproject.toml", ""), ("backend/app/main.py", FASTAPI), ("README.md", "")],
            "app.main:app FastAPI in backend (backend/app/main.py:3)",
        ),
        (&[("hello.py", FASTAPI), ("test_hello.py", FASTAPI)], "hello:app FastAPI (hello.py:3)"),
        (&[("api.py", "import litestar as l\napi: l.Litestar = l.Litestar([])\n")], "api:api Litestar (api.py:2)"),
        (&[("app.py", "from quart import Quart\nweb = Quart(__name__)\n")], "app:web Quart (app.py:2)"),
        (&[("app.py", "from flask import Flask\napp = Flask(__name__)\n")], "app:app Flask (app.py:2)"),
        (&[("server.py", "async def app(scope, receive, send): ...\n")], "server:app ASGI (server.py:1)"),
        (
            &[("main.py", "from starlette.applications import Starlette\nclass My(Starlette): ...\napp = My()\n")],
            "main:app Starlette (main.py:3)",
        ),
        (
            &[("main.py", "from fastapi import FastAPI\ndef create_app(x=1) -> FastAPI: ...\n")],
            "main:create_app FastAPI factory (main.py:2)",
        ),
        (
            &[
                ("main.py", "from fastapi import FastAPI\ndef create_app():\n    return FastAPI()\n"),
                ("asgi.py", "from main import create_app\napp = create_app()\n"),
            ],
            "asgi:app ASGI (asgi.py:2)",
        ),
        // What another one imports is a part of it.
        (
            &[
                ("app/__init__.py", ""),
                ("app/main.py", &format!("from . import api\n{FASTAPI}")),
                ("app/api.py", FASTAPI),
            ],
            "app.main:app FastAPI (app/main.py:4)",
        ),
        (
            &[("main.py", "from shop.web import app\n"), ("shop/web.py", FASTAPI)],
            "shop.web:app FastAPI (shop/web.py:3)",
        ),
        // A command-line program and a queue are none.
        (&[("main.py", "import typer\napp = typer.Typer()\n"), ("api.py", FASTAPI)], "api:app FastAPI (api.py:3)"),
        (
            &[("app.py", "from celery import Celery\napp = Celery()\n"), ("main.py", FASTAPI)],
            "main:app FastAPI (main.py:3)",
        ),
        // Written down.
        (
            &[
                ("pyproject.toml", "[tool.fastapi]\nentrypoint = 'other:web'\n"),
                ("other.py", "web = make()\n"),
                ("main.py", FASTAPI),
            ],
            "other:web FastAPI (pyproject.toml:2)",
        ),
        (
            &[
                ("Procfile", "release: x\nweb: uvicorn api:app --port $PORT\n"),
                ("api.py", FASTAPI),
                ("main.py", FASTAPI),
            ],
            "api:app FastAPI (Procfile:2)",
        ),
        (
            &[
                ("pyproject.toml", "[tool.poe.tasks]\ndev = 'uvicorn api:app'\nold = 'uvicorn gone:app'\n"),
                ("api.py", FASTAPI),
                ("main.py", FASTAPI),
            ],
            "api:app FastAPI (pyproject.toml:2)",
        ),
        (
            &[
                ("pyproject.toml", "[project.scripts]\nshop = 'shop.inside.start:run'\n"),
                ("shop/inside/start.py", FASTAPI),
                ("shop/x.py", ""),
            ],
            "shop.inside.start:app FastAPI (shop/inside/start.py:3)",
        ),
    ] {
        assert_eq!(project(files).applications(), [expected], "{files:?}");
    }
}

const MANAGE: &str =
    "import os\ndef main():\n    os.environ.setdefault('DJANGO_SETTINGS_MODULE', 'shop.settings.dev')\n";
const ASGI: &str = "from django.core.asgi import get_asgi_application\napplication = get_asgi_application()\n";

#[test]
fn django_is_found_by_its_manage_py() {
    let files = [("manage.py", MANAGE), ("shop/asgi.py", ASGI), ("other/asgi.py", ASGI), ("other/__init__.py", "")];
    let project = project(&files);
    assert_eq!(project.applications(), ["shop.asgi:application Django (shop/asgi.py:2)"]);
    let migrations = project.look().migrations;
    assert_eq!(migrations.len(), 1);
    assert_eq!(migrations[0].value.command(), ["python", "manage.py", "migrate", "--noinput"]);

    let below = self::project(&[("site1/manage.py", MANAGE), ("site1/shop/asgi.py", ASGI)]);
    assert_eq!(below.applications(), ["shop.asgi:application Django in site1 (site1/shop/asgi.py:2)"]);
    assert_eq!(below.look().migrations[0].value.dir, Path::new("site1"));

    let wsgi = ASGI.replace("asgi", "wsgi");
    let old = self::project(&[("manage.py", MANAGE), ("shop/wsgi.py", &wsgi)]);
    let found = old.look().applications;
    assert_eq!((found[0].value.app.as_str(), found[0].value.interface), ("shop.wsgi:application", Interface::Wsgi));
}

#[test]
fn two_applications_are_two() {
    let project = project(&[("main.py", FASTAPI), ("admin/__init__.py", ""), ("admin/app.py", FASTAPI)]);
    assert_eq!(project.applications(), ["main:app FastAPI (main.py:3)", "admin.app:app FastAPI (admin/app.py:3)"]);
    let text = "from fastapi import FastAPI\npublic = FastAPI()\nadmin = FastAPI()\n";
    let one_file = self::project(&[("main.py", text)]);
    assert_eq!(one_file.applications(), ["main:public FastAPI (main.py:2)", "main:admin FastAPI (main.py:3)"]);
    assert_eq!(self::project(&[("lib.rs", ""), ("README.md", "")]).applications(), [""; 0]);
}

#[test]
fn migrations_are_those_of_the_tool_that_is_set_up() {
    let tools = |files: &[(&str, &str)]| -> Vec<String> {
        let found = project(files).look().migrations;
        found.iter().map(|it| format!("{:?} {}", it.value.tool, it.seen)).collect()
    };
    assert_eq!(tools(&[("alembic.ini", "")]), ["Alembic alembic.ini"]);
    assert_eq!(tools(&[("pyproject.toml", "[tool.alembic]\nscript_location = 'm'\n")]), ["Alembic pyproject.toml:1"]);
    assert_eq!(tools(&[("yoyo.ini", "")]), ["Yoyo yoyo.ini"]);
    assert_eq!(tools(&[("manage.py", MANAGE), ("alembic.ini", "")]), ["Alembic alembic.ini", "Django manage.py"]);
    assert_eq!(tools(&[("manage.py", "print('not Django')\n")]), [""; 0]);
    assert_eq!(tools(&[("migrations/1.sql", "")]), ["Sql migrations"]);
    assert_eq!(tools(&[("migrations/1.sql", ""), ("Cargo.toml", "")]), [""; 0]);
    assert_eq!(tools(&[("migrations/1_a.sql", ""), ("migrations/2_b.sql", "")]), ["NumberedSql migrations"]);
    assert_eq!(tools(&[("migrations/1_a.sql", ""), ("migrations/seed.sql", "")]), ["Sql migrations"]);
    assert_eq!(tools(&[("migrations/1_a.sql", "-- migrate:up\n-- migrate:down\n")]), ["Sql migrations"]);
    assert_eq!(
        tools(&[("finance_feedback_engine/__init__.py", ""), ("alembic.ini", "")]),
        ["BuiltIn finance_feedback_engine"]
    );
    assert_eq!(tools(&[("backend/alembic.ini", ""), ("backend/main.py", FASTAPI)]), ["Alembic backend/alembic.ini"]);
    assert_eq!(tools(&[("main.py", FASTAPI)]), [""; 0]);
}

#[test]
fn packages_are_those_of_the_most_exact_file_and_an_environment_is_one_that_can_be_used() {
    let dir = project(&[
        (
            "pyproject.toml",
            "[project]\nname = 'x'\nrequires-python = '>=3.10'\ndependencies = ['fastapi', 'asyncpg>=0.29']\n",
        ),
        ("requirements.txt", "fastapi==1\npsycopg[binary]==3.2 # or psycopg2\n"),
    ]);
    let files =
        |project: &Project| -> Vec<String> { project.requirements.iter().map(|it| it.seen.to_string()).collect() };
    let looked = dir.look();
    assert_eq!(files(&looked), ["requirements.txt", "pyproject.toml"]);
    assert_eq!(looked.drivers, [Found::new(Driver::Psycopg, Seen::at("requirements.txt", 2))]);
    assert_eq!(looked.python.unwrap().seen.to_string(), "pyproject.toml:3");
    dir.write("uv.lock", "[[package]]\nname = \"psycopg2-binary\"\n");
    dir.write(".python-version", "# the team's\n3.12\n");
    let looked = dir.look();
    assert_eq!(files(&looked)[0], "uv.lock");
    assert_eq!(looked.drivers, [Found::new(Driver::Psycopg2, Seen::at("uv.lock", 2))]);
    let python = looked.python.unwrap();
    assert_eq!((python.seen.to_string().as_str(), python.value.text.as_str()), (".python-version:2", "3.12"));

    assert_eq!(looked.environment, None);
    dir.write(".venv/pyvenv.cfg", "");
    assert_eq!(dir.look().environment, None, "it has no interpreter");
    dir.write(".venv/bin/python", "");
    let found = || dir.look().environment.unwrap();
    assert_eq!((found().value.dir.as_path(), found().value.can_serve), (Path::new(".venv"), false));
    dir.write("venv/pyvenv.cfg", "");
    dir.write("venv/bin/python", "");
    dir.write("venv/lib/python3.13/site-packages/uvicorn/__init__.py", "");
    assert_eq!((found().value.dir.as_path(), found().value.can_serve), (Path::new("venv"), true));
}

#[test]
fn a_manifest_that_is_broken_is_told_and_the_rest_is_found() {
    let project = project(&[("pyproject.toml", "[project\nname = 'x'\n"), ("main.py", FASTAPI)]);
    let looked = project.look();
    assert_eq!(looked.troubles.len(), 1);
    assert_eq!(looked.troubles[0].seen.to_string(), "pyproject.toml:1");
    assert_eq!(project.applications(), ["main:app FastAPI (main.py:3)"]);
    // Files that cannot be read as text are no obstacle.
    std::fs::create_dir(project.0.path().join("app.py")).unwrap();
    std::fs::write(project.0.path().join("api.py"), b"app = \xff\xfe(\n").unwrap();
    assert_eq!(project.applications(), ["main:app FastAPI (main.py:3)"]);
}
