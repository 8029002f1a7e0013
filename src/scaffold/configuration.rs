//! The `tandem.toml` of what was found. Pure.

use super::draft::{Draft, string, strings};
use super::{Facts, Wish, names};
use crate::project::{Driver, Interface, Tool};

/// The text for `facts`.
pub fn text(facts: &Facts, wish: Wish) -> String {
    let mut draft = Draft::default();
    draft.schema = wish.editor.then(|| "./tandem.schema.json".to_owned());
    draft.head = vec![
        "Tandem's configuration, as `tandem init` found this project. Only what differs from the default is written; lines in".to_owned(),
        "comments show some defaults. `tandem check` prints every value and where it comes from.".to_owned(),
    ];
    postgres(&mut draft);
    migrations(&mut draft, facts);
    python(&mut draft, facts);
    workers(&mut draft, facts);
    environment(&mut draft, facts);
    draft.comment("backup", "schedule = \"0 2 * * *\"           # every night, into .tandem/backups; kept for 30 days");
    draft.text()
}

fn postgres(draft: &mut Draft) {
    draft.comment(
        "postgres",
        "Tandem runs PostgreSQL 16, in .tandem/postgres, with a password of its own. For a server that runs elsewhere,",
    );
    draft.comment("postgres", "set DATABASE_URL in .env.");
    draft.comment("postgres", "port = 5432                       # the next free one, where this is taken");
    draft.comment("postgres", "database = \"app\"");
}

fn migrations(draft: &mut Draft, facts: &Facts) {
    match facts.project.migrations.as_slice() {
        [] => {
            draft.comment(
                "migrations",
                "run = [\"alembic\", \"upgrade\", \"head\"]   # before each start; no migrations were found here",
            );
        }
        [one] if one.value.tool == Tool::BuiltIn => {
            draft.set("migrations", "run", string("seaorm"), format!("seen in {}", one.seen))
        }
        [one] if one.value.tool == Tool::NumberedSql => {
            draft.set("migrations", "run", string("sql"), format!("{}, seen in {}", one.value.tool.name(), one.seen));
            draft.set("migrations", "dir", string(&one.value.dir.display().to_string()), "");
        }
        [one] if one.value.command().is_empty() => {
            draft.comment(
                "migrations",
                format!(
                    "{} were seen ({}); write the command that applies them as `run`",
                    one.value.tool.name(),
                    one.seen
                ),
            );
        }
        [one] => {
            let comment = format!("{}, seen in {}", one.value.tool.name(), one.seen);
            draft.set("migrations", "run", strings(&one.value.command()), comment);
            if !one.value.dir.as_os_str().is_empty() {
                draft.set("migrations", "dir", string(&one.value.dir.display().to_string()), "");
            }
        }
        several => {
            draft.comment("migrations", "More than one was found: take the comment away from the one that is meant.");
            for one in several {
                let command = one.value.command();
                let run = if command.is_empty() { string("none") } else { strings(&command) };
                draft.comment("migrations", format!("run = {run}   # {}, seen in {}", one.value.tool.name(), one.seen));
            }
        }
    }
}

fn python(draft: &mut Draft, facts: &Facts) {
    let project = &facts.project;
    if let Some(wanted) = &project.python {
        draft.comment("python", format!("Python {} is asked for in {}", wanted.value.text, wanted.seen));
    }
    let environment = project.environment.as_ref().filter(|found| found.value.can_serve);
    match (project.requirements.first(), environment) {
        (Some(found), None) => {
            let file = string(&found.value.file.display().to_string());
            draft.set("python", "requirements", file, "installed into .tandem/venv");
        }
        (lists, Some(found)) => {
            let dir = string(&found.value.dir.display().to_string());
            draft.set("python", "venv", dir, format!("seen: {}", found.seen));
            draft.set("python", "managed", "false", "it is used as it is");
            if let Some(found) = lists {
                let file = string(&found.value.file.display().to_string());
                let text = format!("requirements = {file}   # instead of these two: installed into .tandem/venv");
                draft.comment("python", text);
            }
        }
        (None, None) => {
            draft
                .comment("python", "requirements = \"requirements.txt\"   # nothing was found that names the packages");
        }
    }
}

fn workers(draft: &mut Draft, facts: &Facts) {
    let chosen = facts.chosen.and_then(|at| facts.project.applications.get(at));
    match chosen {
        Some(found) => {
            let app = &found.value;
            let comment = format!("{}, seen in {}", app.framework.name(), found.seen);
            draft.set("workers", "app", string(&app.app), comment);
            if !app.app_dir.as_os_str().is_empty() {
                draft.set("workers", "app_dir", string(&app.app_dir.display().to_string()), "where imports start");
            }
            if app.interface == Interface::Wsgi {
                draft.set("workers", "interface", string("wsgi"), "it is no ASGI application");
            }
            if app.is_factory {
                draft.set("workers", "factory", "true", "a function that makes it");
            }
            for other in facts.project.applications.iter().filter(|other| other.value.app != app.app) {
                draft.comment("workers", format!("app = {}   # seen in {}", string(&other.value.app), other.seen));
            }
        }
        None => draft.comment(
            "workers",
            "app = \"main:app\"   # no application was found: write module:attribute, as for uvicorn",
        ),
    }
    draft.comment("workers", "count = 4");
    draft.comment("workers", "listen = \"127.0.0.1:8000\"");
    let drivers: Vec<&str> = facts.project.drivers.iter().map(|found| driver(found.value)).collect();
    if !drivers.is_empty() {
        let names = drivers.join(", ");
        draft.comment(
            "workers",
            format!("url_scheme = \"auto\"               # of DATABASE_URL: by the driver ({names} is asked for)"),
        );
    }
}

fn driver(driver: Driver) -> &'static str {
    driver.module()
}

fn environment(draft: &mut Draft, facts: &Facts) {
    let mapping = names::mapping(&facts.variables);
    if mapping.is_empty() {
        return;
    }
    draft.comment("workers.env", "What the code reads under other names than DATABASE_URL: each leads to this run's server, under `tandem test` to");
    draft.comment("workers.env", "the tests' own.");
    for (variable, reference) in mapping {
        draft.set("workers.env", &variable.name, string(reference), format!("read in {}", variable.place));
    }
}
