//! `tandem import compose`: what is made of a Compose file passes `tandem check`, and nothing that is there is overwritten.

use std::fs;
use std::path::Path;

use crate::common::project::root;
use crate::common::refusal::{Refusal, said};
use crate::common::tandem;

const COMPOSE: &str = "x-env: &env
  DB_HOST: db
  DB_PORT: 5432
services:
  db:
    image: postgres:16
    environment: {POSTGRES_USER: shop, POSTGRES_PASSWORD: pass-of-the-test, POSTGRES_DB: shop}
    volumes: ['data:/var/lib/postgresql/data']
  api:
    build: .
    command: sh -c 'alembic upgrade head && uvicorn plain:app --host 0.0.0.0 --port 8000 --timeout-keep-alive 75'
    environment:
      <<: *env
      NAME: \"say \\\"ü\\\" $$5\"
      SECRET_KEY: another-of-the-test
    ports: ['127.0.0.1:8123:8000']
    odd_key: 1
  beat:
    build: .
    command: celery -A shop beat
    profiles: [jobs]
volumes: {data: {}}
";

fn import(dir: &Path, args: &[&str]) -> Refusal {
    said(tandem::command_in(dir).args(["import", "compose"]).args(args).output().unwrap())
}

#[test]
fn what_is_written_passes_check_and_nothing_is_overwritten() {
    let temp = tempfile::Builder::new().prefix("tandem test 'ü' ").tempdir().unwrap();
    let dir = temp.path();
    fs::write(dir.join("compose.yml"), COMPOSE).unwrap();
    fs::copy(root().join("tests/fixtures/apps/plain.py"), dir.join("plain.py")).unwrap();
    let output = tandem::command_in(dir).args(["import", "compose", "compose.yml"]).output().unwrap();
    let (toml, told) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{told}");
    assert!(toml.contains("DB_HOST = \"${PGHOST}\"") && toml.contains("listen = \"127.0.0.1:8123\""), "{toml}");
    for words in [
        "compose.yml:15: api.environment.SECRET_KEY: a secret",
        "api.odd_key: an unknown key",
        "pg_dump -U shop -d shop",
    ] {
        assert!(told.contains(words), "{words}: {told}");
    }
    assert!(!format!("{toml}{told}").contains("of-the-test"), "a secret is printed: {toml}{told}");
    assert!(!dir.join("tandem.toml").exists());
    import(dir, &["compose.yml", "--write", "--profile", "jobs"]).expect(0, &["tandem.toml is written"]);
    let check = said(tandem::command_in(dir).arg("check").output().unwrap());
    check.expect(0, &["plain:app", "process.beat"]);
    let written = fs::read(dir.join("tandem.toml")).unwrap();
    import(dir, &["compose.yml", "--write"]).expect(73, &["is there already and stays as it is"]);
    assert_eq!(fs::read(dir.join("tandem.toml")).unwrap(), written);
    fs::write(dir.join("broken.yml"), "services:\n  a: [1\n").unwrap();
    import(dir, &["broken.yml"]).expect(78, &["broken.yml:"]);
}
