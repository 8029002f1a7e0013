//! Every shell block of the README and of the pages of `docs/` is run, in order, or says why it is not.

use std::collections::BTreeMap;
use std::fs;

use crate::book_reader::{self as book, SERVING, Setting, blocks};
use crate::common::project::root;
use crate::readme::documents;

/// Why a block may stand in a document and not be run.
const REASONS: [&str; 14] = [
    // A test of its own builds and installs.
    "builds Tandem",
    "installs Tandem",
    "needs Docker",
    "needs a cluster",
    "needs systemd",
    "needs Go",
    "needs Django",
    "needs a release",
    "needs the installed wheel",
    "needs a failed test",
    "needs another machine",
    // Its own tests have one.
    "needs a terminal",
    // Such as that the machine's disk is nearly full; its own tests provoke what they look for.
    "ends by what it finds",
    // It listens where another test or a person may listen.
    "takes a fixed port",
];

/// The pages with blocks that are run, one test for each.
const PAGES: [&str; 9] =
    ["backups", "compose", "configuration", "migrations", "operations", "sqlite", "start", "tests", "workers"];

#[test]
fn every_shell_block_is_run_or_says_why_not() {
    let mut reasons: BTreeMap<String, u32> = BTreeMap::new();
    let mut run = 0;
    for document in documents() {
        for block in blocks(&fs::read_to_string(root().join(&document)).unwrap()) {
            let name = document.trim_start_matches("docs/").trim_end_matches(".md");
            match block.not_run {
                Some(reason) => {
                    assert!(REASONS.contains(&reason.as_str()), "{document}: `{reason}` is no reason of REASONS");
                    *reasons.entry(reason).or_default() += 1;
                }
                None => {
                    assert!(
                        PAGES.contains(&name),
                        "{document} has blocks, and no test here runs them:\n{}",
                        block.text
                    );
                    run += 1;
                }
            }
        }
    }
    println!("{run} blocks are run; not run: {reasons:?}");
    assert!(run > 10, "only {run} blocks are run");
}

#[test]
fn the_blocks_of_start_run() {
    book::read("docs/start.md", Setting { configured: false, serves: false, ..SERVING });
}

#[test]
fn the_blocks_of_compose_run() {
    let before = "cat >docker-compose.yml <<'END'
services:
  postgres:
    image: postgres:16
    environment: { POSTGRES_USER: shop, POSTGRES_PASSWORD: secret, POSTGRES_DB: shop }
  backend:
    image: python:3.13
    command: uvicorn main:app --host 0.0.0.0 --port 8000
    environment: { DATABASE_URL: postgresql://shop:secret@postgres:5432/shop }
END";
    book::read("docs/compose.md", Setting { configured: false, serves: false, before, ..SERVING });
}

#[test]
fn the_blocks_of_sqlite_run() {
    let before = "python3 -c \"import sqlite3; shop = sqlite3.connect('db.sqlite3')
shop.execute('CREATE TABLE customers (id INTEGER PRIMARY KEY, name VARCHAR(20))')
shop.execute('INSERT INTO customers (name) VALUES (\\'Ada\\')'); shop.commit()\"";
    book::read("docs/sqlite.md", Setting { serves: false, before, ..SERVING });
}

#[test]
fn the_blocks_of_configuration_run() {
    book::read("docs/configuration.md", Setting { serves: false, ..SERVING });
}

#[test]
fn the_blocks_of_workers_run() {
    let before = "git init -q -b main . && printf '.tandem/\\n*.log\\n__pycache__/\\n' >.gitignore && git add -A
        git -c user.name=Reader -c user.email=reader@example.org commit -q -m 'the application'
        git clone -q --bare . {dir}/.tandem/origin.git && git remote add origin {dir}/.tandem/origin.git
        git fetch -q && git branch -q --set-upstream-to origin/main";
    book::read("docs/workers.md", Setting { before, ..SERVING });
}

#[test]
fn the_blocks_of_migrations_run() {
    book::read("docs/migrations.md", SERVING);
}

#[test]
fn the_blocks_of_operations_run() {
    let words = &[("/etc/bash_completion.d", "{dir}")];
    book::read("docs/operations.md", Setting { words, ..SERVING });
}

#[test]
fn the_blocks_of_tests_run() {
    book::read("docs/tests.md", Setting { serves: false, ..SERVING });
}

#[test]
fn the_blocks_of_backups_run() {
    // The moment is one to which the archive leads: after a base backup, and before another commit.
    let before = "mkdir -p {dir}/copies && touch {dir}/copies/.tandem-copies
        until tandem backup base; do sleep 0.2; done
        date -u '+%F %T.%6N+00' >{dir}/moment && tandem psql -c 'CREATE TABLE later ()'
        tandem psql -c 'SELECT pg_switch_wal()' --superuser || true
        tandem backup && tandem backup list --json >{dir}/list.json && cp .tandem/backups/*.sql.gz {dir}/old-dump.sql.gz";
    let words = &[
        ("s3://bucket/prefix", "file://{dir}/copies"),
        ("'2026-01-02 15:04:05+00'", "\"$(cat {dir}/moment)\""),
        ("FILE", "{dir}/old-dump.sql.gz"),
    ];
    let configuration = "[backup]\ndestinations = [\"file://{dir}/copies\"]\n[backup.pitr]\nenabled = true\n";
    book::read("docs/backups.md", Setting { before, words, configuration, ..SERVING });
}
