//! Whole files, as people have them.

use std::fs;
use std::path::PathBuf;

use super::{Converted, Wish, convert, is_secret};
use crate::exit::code_of;

/// The files of a project in a directory of their own.
struct Dir(tempfile::TempDir);

impl Dir {
    fn with(files: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        Self(dir)
    }

    fn wish(&self, files: &[&str]) -> Wish {
        let files: Vec<PathBuf> = files.iter().map(|name| self.0.path().join(name)).collect();
        Wish { files, ..Wish::default() }
    }

    fn converted(&self, files: &[&str]) -> Converted {
        convert(&self.wish(files)).unwrap()
    }

    fn refused(&self, wish: &Wish) -> String {
        let error = convert(wish).unwrap_err();
        format!("{}: {error:#}", code_of(&error) as u8)
    }
}

impl Converted {
    fn has(&self, line: &str) -> bool {
        self.toml.lines().any(|it| it.split(" # ").next().unwrap_or_default().trim_end() == line)
    }

    fn expect(&self, lines: &[&str], told: &[&str]) {
        for line in lines {
            assert!(self.has(line), "{line:?} is not in:\n{}", self.toml);
        }
        for words in told {
            assert!(self.told.iter().any(|it| it.contains(words)), "{words:?} is not in:\n{}", self.told.join("\n"));
        }
        self.toml.parse::<toml::Table>().unwrap();
    }
}

const GUIDE: &str = "version: '3.8'
services:
  postgres:
    image: postgres:16-alpine
    container_name: ffe_postgres
    restart: unless-stopped
    env_file: .env
    environment:
      POSTGRES_USER: ${POSTGRES_USER:-ffe_user}
      POSTGRES_PASSWORD: ${POSTGRES_PASSWORD}
      POSTGRES_DB: ffe
    command: postgres -c shared_buffers=256MB -c max_connections=200 -c log_min_duration_statement=250
    ports:
      - \"5432:5432\"
    volumes:
      - postgres_data:/var/lib/postgresql/data
      - ./init:/docker-entrypoint-initdb.d
    healthcheck:
      test: [\"CMD-SHELL\", \"pg_isready -U ffe_user\"]
  backend:
    build: .
    depends_on:
      postgres:
        condition: service_healthy
    env_file: [.env]
    environment:
      - DATABASE_URL=postgresql+psycopg2://ffe_user:${POSTGRES_PASSWORD}@postgres:5432/ffe
      - ENVIRONMENT=production
      - SECRET_KEY=abc123
    command: sh -c \"alembic upgrade head && uvicorn finance_feedback_engine.api.app:app --host 0.0.0.0 --port 8000 --workers 2\"
    ports: [\"8000:8000\"]
    healthcheck:
      test: [\"CMD\", \"curl\", \"-f\", \"http://localhost:8000/health\"]
    deploy:
      resources: {limits: {memory: 2G}}
volumes:
  postgres_data:
";

#[test]
fn the_guides_file_becomes_a_configuration() {
    let dir = Dir::with(&[
        ("docker-compose.yml", GUIDE),
        (
            ".env",
            "POSTGRES_USER=ffe_user\nPOSTGRES_PASSWORD=very-secret-1\nPOSTGRES_DB=ffe\nDATABASE_URL=postgresql://ffe_user:${POSTGRES_PASSWORD}@postgres:5432/ffe\n",
        ),
        ("init/x.sql", ""),
    ]);
    let done = dir.converted(&["docker-compose.yml"]);
    done.expect(
        &[
            "mode = \"managed\"",
            "port = 5432",
            "shared_buffers = \"256MB\"",
            "max_connections = 200",
            "log_min_duration_statement = \"250\"",
            "run = [\"alembic\", \"upgrade\", \"head\"]",
            "app = \"finance_feedback_engine.api.app:app\"",
            "count = 2",
            "listen = \"0.0.0.0:8000\"",
            "url_scheme = \"postgresql+psycopg2\"",
            "check = \"/health\"",
            "ENVIRONMENT = \"production\"",
        ],
        &[
            "docker-compose.yml:16: postgres.volumes: its rows stay where they are",
            "pg_dump -U ffe_user -d ffe",
            "tandem backup import",
            "postgres.volumes: ./init is not run",
            "backend.environment.SECRET_KEY: a secret",
            "backend.deploy.resources: limits",
            "docker-compose.yml:21: backend.build: no image is built",
        ],
    );
    let all = format!("{}{}", done.toml, done.told.join("\n"));
    assert!(!all.contains("very-secret-1") && !all.contains("abc123"), "{all}");
    // What `.env` says, Tandem reads there; what it sets by itself is not written.
    assert!(!done.toml.contains("user =") && !done.toml.contains("DATABASE_URL ="), "{}", done.toml);
}

#[test]
fn many_services_with_anchors_profiles_and_unknown_keys() {
    let compose = "x-app: &app
  build: {context: ./backend, dockerfile: Dockerfile.prod}
  environment: &env
    DB_HOST: db
    DB_PORT: 5432
    DB_USER: shop
    DB_PASSWORD: ${DB_PASSWORD:-x}
    DB_NAME: shop
    REDIS_URL: redis://cache:6379/0
    LITERAL: $${PGHOST}
  frobnicate: yes
services:
  db:
    image: docker.io/pgvector/pgvector:pg15
    environment: [POSTGRES_USER=shop, POSTGRES_PASSWORD=geheim, POSTGRES_DB=shop]
    ports: [{target: 5432, published: 5544}]
  cache:
    image: redis:7
    ports: ['6380:6379']
  api:
    <<: *app
    command: [gunicorn, -k, uvicorn.workers.UvicornWorker, -w, '3', -b, '0.0.0.0:8000', 'shop.main:app']
    ports: ['127.0.0.1:9000:8000']
    networks: [front]
    labels: {traefik.enable: 'true'}
    volumes: ['media:/app/media', './backend:/app']
  worker:
    <<: *app
    command: celery -A shop worker
    environment:
      <<: *env
      QUEUE: high
    stop_grace_period: 45s
    deploy: {replicas: 2}
  migrate:
    <<: *app
    command: alembic upgrade head
  debug:
    image: adminer
  load:
    <<: *app
    profiles: [load]
    command: locust
networks: {front: {}}
wibble: 1
";
    let dir = Dir::with(&[("compose.yaml", compose), ("backend/requirements.txt", "fastapi\n")]);
    let done = dir.converted(&["compose.yaml"]);
    done.expect(
        &[
            "port = 5544",
            "user = \"shop\"",
            "database = \"shop\"",
            "app = \"shop.main:app\"",
            "app_dir = \"backend\"",
            "requirements = \"backend/requirements.txt\"",
            "count = 3",
            "listen = \"127.0.0.1:9000\"",
            "DB_HOST = \"${PGHOST}\"",
            "DB_PORT = \"${PGPORT}\"",
            "DB_PASSWORD = \"${PGPASSWORD}\"",
            "DB_NAME = \"${PGDATABASE}\"",
            "REDIS_URL = \"redis://127.0.0.1:6380/0\"",
            "LITERAL = \"$${PGHOST}\"",
            "name = \"worker\"",
            "command = [\"celery\", \"-A\", \"shop\", \"worker\"]",
            "dir = \"backend\"",
            "stop_grace = \"45s\"",
            "run = [\"alembic\", \"upgrade\", \"head\"]",
        ],
        &[
            "db.image: it is of version 15, Tandem runs 16",
            "db.image: the extensions of pgvector",
            "db.environment.POSTGRES_PASSWORD: Tandem makes a password of its own",
            "cache: Redis is not run by Tandem",
            "api.environment.REDIS_URL: cache is a name of Compose's network",
            "api.frobnicate: an unknown key",
            "networks: all of it runs on this machine",
            "api.labels",
            "api.volumes: /app/media of the container was the volume media",
            "worker.deploy: 2 of them",
            "migrate: it migrates the database",
            "debug: `tandem psql`",
            "load: it is of profile load: `--profile load` takes it",
            "wibble: an unknown key",
        ],
    );
    assert!(!format!("{}{:?}", done.toml, done.told).contains("geheim"));
    let with = Wish { profiles: vec!["load".to_owned()], ..dir.wish(&["compose.yaml"]) };
    assert!(convert(&with).unwrap().toml.contains("command = [\"locust\"]"));
}

#[test]
fn files_are_laid_over_each_other_and_services_extend_others() {
    let base = "services:\n  base:\n    build: .\n    environment: {A: one, B: two}\n    ports: ['8000:8000']\n";
    let main = "services:\n  app:\n    extends: {file: more/base.yml, service: base}\n    command: uvicorn a:app\n    environment:\n      B: three\n";
    let over = "services:\n  app:\n    command: uvicorn b:app --reload\n    ports: !override ['9000:8000']\n    environment: [C=four]\n";
    let dir = Dir::with(&[
        ("compose.yml", main),
        ("more/base.yml", base),
        ("compose.override.yml", over),
        ("Dockerfile", "FROM python\nCMD [\"uvicorn\", \"from.dockerfile:app\"]\n"),
        ("plain.yml", "services:\n  app: {build: ., command: null}\n"),
    ]);
    let done = dir.converted(&["compose.yml"]);
    done.expect(
        &["app = \"b:app\"", "listen = \"0.0.0.0:9000\"", "A = \"one\"", "B = \"three\"", "C = \"four\""],
        &["compose.override.yml:1: file: read too", "tandem up --reload rolls"],
    );
    dir.converted(&["plain.yml"]).expect(&["app = \"from.dockerfile:app\""], &["no service is a PostgreSQL"]);
}

#[test]
fn what_is_no_compose_file_or_leaves_the_choice_open_is_refused() {
    let two = "services:\n  shop: {command: uvicorn a:app, build: .}\n  admin: {command: uvicorn b:app, build: .}\n";
    let circle = "services:\n  a: {extends: b}\n  b: {extends: a}\n";
    let dir = Dir::with(&[
        ("two.yml", two),
        ("circle.yml", circle),
        ("bad.yml", "services:\n  a: [1\n"),
        ("twice.yml", "services:\n  a: {image: x}\n  a: {image: y}\n"),
        ("none.yml", "hello: world\n"),
        ("list.yml", "- a\n"),
        ("must.yml", "services:\n  a: {image: '${TAG:?set TAG}'}\n"),
    ]);
    for (file, words) in [
        ("two.yml", "64: several services look like the application: shop, admin; say which with --app NAME"),
        ("circle.yml", "in a circle"),
        ("bad.yml", "bad.yml:"),
        ("twice.yml", "twice.yml:3: the key a of line 3 stands here twice"),
        ("none.yml", "78: "),
        ("none.yml", "it has no services"),
        ("list.yml", "no map of keys"),
        ("must.yml", "must.yml:2: TAG has no value: set TAG"),
        ("missing.yml", "No such file"),
    ] {
        let told = dir.refused(&dir.wish(&[file]));
        assert!(told.contains(words), "{file}: {told}");
    }
    let chosen = Wish { app: Some("admin".to_owned()), ..dir.wish(&["two.yml"]) };
    convert(&chosen).unwrap().expect(&["app = \"b:app\"", "name = \"shop\""], &[]);
    let wrong = Wish { app: Some("nobody".to_owned()), ..dir.wish(&["two.yml"]) };
    assert!(dir.refused(&wrong).contains("there are shop, admin"));
}

#[test]
fn secrets_are_known_by_their_name_or_their_form() {
    for (name, value, is) in [
        ("SECRET_KEY", "x", true),
        ("API_TOKEN", "x", true),
        ("DB_PASS", "x", true),
        ("BROKER", "amqp://u:p@host/", true),
        ("REDIS_URL", "redis://cache:6379/0", false),
        ("ENVIRONMENT", "production", false),
        ("COMPASS", "north", false),
        ("SECRET_KEY", "", false),
    ] {
        assert_eq!(is_secret(name, value), is, "{name}={value}");
    }
}
