//! Packages that an environment has as editable installs: their sources lie elsewhere, and a person develops them.

use std::path::{Path, PathBuf};

/// The directories of the packages that the environment of the interpreter `python` has as editable installs. Blocks.
pub fn editable(python: &Path) -> Vec<PathBuf> {
    let lib = python.parent().and_then(Path::parent).map(|venv| venv.join("lib")).unwrap_or_default();
    let versions = entries(&lib).into_iter().filter(|path| name(path).starts_with("python"));
    let mut found: Vec<PathBuf> = versions.flat_map(|version| of_packages(&version.join("site-packages"))).collect();
    found.sort();
    found.dedup();
    found
}

fn of_packages(packages: &Path) -> Vec<PathBuf> {
    let mut projects = Vec::new();
    let mut paths = Vec::new();
    for entry in entries(packages) {
        match name(&entry).rsplit_once('.').map_or("", |(_, kind)| kind) {
            "dist-info" => projects.extend(read(&entry.join("direct_url.json")).and_then(|text| project(&text))),
            // What setuptools wrote before there was PEP 660.
            "egg-link" => projects.extend(read(&entry).and_then(|text| text.lines().next().map(PathBuf::from))),
            "pth" => paths.extend(read(&entry).map(|text| directories(&text)).unwrap_or_default()),
            _ => {}
        }
    }
    // Another environment's packages are installed, not developed.
    paths.retain(|path| path.is_dir() && !path.starts_with(packages) && name(path) != "site-packages");
    // A project's path says more closely where its modules are.
    projects.retain(|project| project.is_dir() && !paths.iter().any(|path| path.starts_with(project)));
    projects.into_iter().chain(paths).collect()
}

/// The project of an editable install, as pip and uv note it (PEP 610).
fn project(direct_url: &str) -> Option<PathBuf> {
    let noted: serde_json::Value = serde_json::from_str(direct_url).ok()?;
    let is_editable = noted["dir_info"]["editable"].as_bool() == Some(true);
    let url = url::Url::parse(noted["url"].as_str().filter(|_| is_editable)?).ok()?;
    url.to_file_path().ok()
}

/// The directories that a path configuration file adds (the documentation of Python's `site`).
fn directories(text: &str) -> Vec<PathBuf> {
    let lines = text.lines().map(str::trim_end).filter(|line| line.starts_with('/'));
    lines.map(PathBuf::from).collect()
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    dir.read_dir().into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

fn read(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_of_editable_installs_are_found() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path();
        for dir in ["one/src", "two", "three", "four", "venv/bin", "venv/lib/python3.12/site-packages/a.dist-info"] {
            std::fs::create_dir_all(root.join(dir)).unwrap();
        }
        let packages = root.join("venv/lib/python3.12/site-packages");
        let write = |name: &str, text: String| {
            let path = packages.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let url = |dir: &str, editable: bool| {
            format!(r#"{{"url": "file://{}/{dir}", "dir_info": {{"editable": {editable}}}}}"#, root.display())
        };
        write("one.dist-info/direct_url.json", url("one", true));
        write("__editable__.one-1.pth", format!("{}/one/src\n", root.display()));
        write("two.dist-info/direct_url.json", url("two", true));
        write("__editable__.two-1.pth", "import __editable___two_finder; __editable___two_finder.install()\n".into());
        write("three.dist-info/direct_url.json", url("three", false));
        write("four.egg-link", format!("{}/four\n.", root.display()));
        write("gone.dist-info/direct_url.json", url("gone", true));
        write("distutils-precedence.pth", "import os; var = 1\n".into());
        write("odd.dist-info/direct_url.json", "not json".into());
        assert_eq!(editable(&root.join("venv/bin/python")), ["four", "one/src", "two"].map(|dir| root.join(dir)));
        assert!(editable(Path::new("python3")).is_empty());
    }
}
