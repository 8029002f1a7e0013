//! `tandem init`: a configuration of what is found, which passes `tandem check`; and nothing that is there changes.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use crate::common::namespace::mount_namespace;
use crate::common::refusal::{Refusal, names, said};
use crate::common::tandem;

/// A directory with `files` in it, in a path that people have.
fn project(files: &[(&str, &str)]) -> TempDir {
    let temp = tempfile::Builder::new().prefix("tandem test \"q\" ä ").tempdir().unwrap();
    for (name, text) in files {
        let path = temp.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    temp
}

fn tandem_in(dir: &Path, args: &[&str]) -> Refusal {
    said(tandem::command_in(dir).args(args).output().unwrap())
}

const MAIN: &str = "import os\nfrom fastapi import FastAPI\n\nfrom settings import Settings\n\nKEY = os.environ['PAYMENT_KEY']\napp = FastAPI()\n";
const SETTINGS: &str = "from pydantic_settings import BaseSettings\n\n\nclass Settings(BaseSettings):\n    db_host: str\n    db_port: int = 5432\n    postgres_server: str\n";

#[test]
fn what_is_found_is_written_and_passes_check() {
    let temp = project(&[
        ("main.py", MAIN),
        ("settings.py", SETTINGS),
        ("requirements.txt", "fastapi\nuvicorn\npsycopg[binary]\n"),
        ("alembic.ini", "[alembic]\nscript_location = alembic\n"),
        ("alembic/env.py", ""),
    ]);
    let dir = temp.path();
    tandem_in(dir, &["init", "--print"]).expect(0, &["# ---- tandem.toml", "app = \"main:app\"", "# ---- .gitignore"]);
    assert!(!dir.join("tandem.toml").exists(), "--print writes nothing");
    tandem_in(dir, &["init", "--ci", "--dockerfile", "--systemd", "--editor"]).expect(
        0,
        &[
            "made tandem.toml",
            "made .gitignore",
            "made .env.example",
            "made .github/workflows/tandem.yml",
            "made Dockerfile",
        ],
    );
    let text = fs::read_to_string(dir.join("tandem.toml")).unwrap();
    for line in [
        "app = \"main:app\"",
        "requirements = \"requirements.txt\"",
        "run = [\"alembic\", \"upgrade\", \"head\"]",
        "DB_HOST = \"${PGHOST}\"",
        "DB_PORT = \"${PGPORT}\"",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    assert!(!text.contains("POSTGRES_SERVER"), "Tandem sets it: {text}");
    let example = fs::read_to_string(dir.join(".env.example")).unwrap();
    assert!(example.contains("# PAYMENT_KEY=") && !example.contains("DB_HOST"), "{example}");
    let check = tandem::command_in(dir).arg("check").output().unwrap();
    let told = String::from_utf8_lossy(&check.stderr).into_owned();
    assert!(check.status.success() && !told.contains("WARN") && !told.contains("warning"), "{told}");
    let unit = fs::read_to_string(dir.join("tandem.service")).unwrap();
    assert!(unit.contains(&format!("WorkingDirectory={}", dir.canonicalize().unwrap().display())), "{unit}");
    serde_json::from_str::<serde_json::Value>(&fs::read_to_string(dir.join(".vscode/settings.json")).unwrap()).unwrap();
    // A second time nothing changes.
    let before: Vec<_> = names(dir).into_iter().map(|name| fs::read(dir.join(name)).ok()).collect();
    tandem_in(dir, &["init"]).expect(0, &["tandem.toml is there already"]);
    let after: Vec<_> = names(dir).into_iter().map(|name| fs::read(dir.join(name)).ok()).collect();
    assert_eq!(before, after);
}

#[test]
fn what_a_person_wrote_stays_and_a_choice_is_theirs() {
    let app = "from fastapi import FastAPI\napp = FastAPI()\n";
    let temp = project(&[("main.py", app), ("asgi.py", app), (".gitignore", "*.pyc"), (".env.example", "MINE=1\n")]);
    let dir = temp.path();
    tandem_in(dir, &["init"]).expect(64, &["several applications were found", "--app", "main:app", "asgi:app"]);
    assert!(!dir.join("tandem.toml").exists());
    tandem_in(dir, &["init", "--app", "nothing:app"]).expect(64, &["no such application was found"]);
    tandem_in(dir, &["init", "--app", "main:app"])
        .expect(0, &["added .tandem/ to .gitignore", ".env.example is there already"]);
    assert_eq!(fs::read_to_string(dir.join(".gitignore")).unwrap(), "*.pyc\n.tandem/\n");
    assert_eq!(fs::read_to_string(dir.join(".env.example")).unwrap(), "MINE=1\n");
    // A configuration in another place would no longer count beside a tandem.toml.
    let other = project(&[
        ("config/tandem.toml", "workers.app = 'main:app'\n"),
        ("main.py", app),
        ("compose.yml", "services: {a: {build: .}}\n"),
    ]);
    tandem_in(other.path(), &["init"])
        .expect(0, &["config/tandem.toml is there already and stays as it is", "made .gitignore"]);
    tandem_in(other.path(), &["import", "compose", "compose.yml", "--write"])
        .expect(73, &["config/tandem.toml is there already"]);
    assert!(!other.path().join("tandem.toml").exists());
    let inside = dir.join("part");
    fs::create_dir(&inside).unwrap();
    tandem_in(&inside, &["init"]).expect(0, &["tandem.toml is there too", "no application was found"]);
}

#[test]
fn a_project_that_cannot_be_written_is_told() {
    let temp = project(&[("main.py", "from fastapi import FastAPI\napp = FastAPI()\n")]);
    let dir = temp.path();
    // Root writes anywhere but into a file system that is mounted read-only.
    let Some(namespace) = mount_namespace() else { return };
    let script = "mount --bind \"$1\" \"$1\" && mount -o remount,bind,ro \"$1\" && cd \"$1\" && exec \"$2\" init";
    let mut command = tandem::command_as("unshare", dir);
    command.args(namespace).args(["sh", "-euc", script, "sh"]).arg(dir).arg(env!("CARGO_BIN_EXE_tandem"));
    let told = said(command.output().unwrap());
    told.expect(73, &["write", "tandem.toml", "Read-only file system", "--print"]);
    assert_eq!(names(dir), ["main.py"]);
}
