//! A project whose application is a file of its own, so that a test can put another in its place.

use super::project::{Project, root};

/// Nothing but workers that open few connections.
pub const BARE: &str = "migrations.run = 'none'\npool.size = 1\npool.overflow = 1";

/// A project that runs `app` of `app/main.py`, which is `source`.
pub fn project(lines: &str, source: &str) -> Project {
    let project = Project::app_with("main:app", lines);
    let (shared, own) = (root().join("tests/fixtures/apps"), project.dir().join("app"));
    project.reconfigure(|text| text.replace(&shared.display().to_string(), &own.display().to_string()));
    deploy(&project, source);
    project
}

/// Put `source` in the application's place.
pub fn deploy(project: &Project, source: &str) {
    // Byte code of a source that was saved within the same second would be taken for it.
    let _ = std::fs::remove_dir_all(project.dir().join("app/__pycache__"));
    project.write("app/main.py", source);
}

/// `plain`, whose answer to `/` is `said`, with `more` after it.
pub fn plain(more: &str, said: &str) -> String {
    let text = std::fs::read_to_string(root().join("tests/fixtures/apps/plain.py")).unwrap();
    format!("{}\n{more}\n", text.replace("status, body = 200, \"ok\"", &format!("status, body = 200, \"{said}\"")))
}
