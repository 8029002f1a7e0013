//! What people install: the wheel, the tarball, the Debian package, the man pages; the pins of the example; and how the
//! packages are made.
//!
//! `.ci/run` builds packages first (`.ci/dist --quick`) and names their directory in TESTED_PACKAGES.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Instant;

use ::tandem::cli::Cli;
use clap::CommandFactory;
use sha2::{Digest, Sha256};

use crate::common::project::{Project, root};
use crate::common::skip::skip;
use crate::common::tandem::{self, Tandem, left_in, run};
use crate::tidy::files;

/// The interpreters that a wheel and the example must work with: the oldest and the newest.
const PYTHONS: [&str; 2] = ["3.9", "3.14"];

/// What a wheel, the tarball and the Debian package have below `share`, each under a prefix of its own.
const SHARED: [&str; 4] = [
    "man/man1/tandem.1",
    "man/man1/tandem-backup-list.1",
    "bash-completion/completions/tandem",
    "fish/vendor_completions.d/tandem.fish",
];

/// Where the packages are, unless none were built.
fn packages() -> Option<PathBuf> {
    #[expect(clippy::disallowed_methods, reason = "a test program has no configuration")]
    let dir = std::env::var_os("TESTED_PACKAGES").map(PathBuf::from);
    if dir.is_none() {
        skip("no packages were built: `.ci/dist --quick DIR`, then TESTED_PACKAGES=DIR");
    }
    dir
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// The one file in `dir` whose name ends so.
fn only(dir: &Path, end: &str) -> PathBuf {
    let found: Vec<String> = names(dir).into_iter().filter(|name| name.ends_with(end)).collect();
    assert_eq!(found.len(), 1, "{end} in {dir:?}: {found:?}");
    dir.join(&found[0])
}

/// A program's output; panics when it fails.
fn said(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&stdout).into_owned(), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{command:?}: {status}\n{stdout}\n{stderr}");
    stdout
}

fn program(name: impl AsRef<std::ffi::OsStr>) -> Command {
    #[expect(clippy::disallowed_methods, reason = "a test looks at packages with the programs that install them")]
    Command::new(name)
}

fn digest(path: &Path) -> Vec<u8> {
    Sha256::digest(fs::read(path).unwrap()).to_vec()
}

/// The entry points of the installed distribution, one a line; fails where a module of one is not installed.
const ENTRY_POINTS: &str = "
import importlib.metadata, importlib.util
for entry in importlib.metadata.distribution('tandem-up').entry_points:
    assert importlib.util.find_spec(entry.value.split(':')[0]), entry
    print(entry.group, entry.name, entry.value)
";

#[test]
fn a_wheel_serves_a_project_where_no_rust_is() {
    let Some(packages) = packages() else { return };
    let project = Project::app("plain:app");
    // pip, the wheel, the environment and the project: all of them below such a path.
    let dir = project.dir().join("it's \"mine\", größer & more");
    fs::create_dir(&dir).unwrap();
    let wheel = only(&packages, ".whl");
    let copied = dir.join(wheel.file_name().unwrap());
    fs::copy(&wheel, &copied).unwrap();

    let began = Instant::now();
    said(program("python3").current_dir(&dir).args(["-m", "venv", "own"]));
    let bin = dir.join("own/bin");
    // No index, so nothing but the wheel; no toolchain in PATH.
    let path = format!("{}:/usr/bin:/bin", bin.display());
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"];
    said(program(bin.join("python")).env("PATH", &path).args(pip).arg(&copied));
    let installed = began.elapsed();
    let binary = bin.join("tandem").into_os_string().into_string().unwrap();
    let version = said(tandem::command_as(&binary, &dir).arg("--version"));
    assert!(version.starts_with(&format!("tandem {}", env!("CARGO_PKG_VERSION"))), "{version}");
    for shared in SHARED.into_iter().chain(["zsh/site-functions/_tandem"]) {
        assert!(dir.join("own/share").join(shared).is_file(), "the wheel has no {shared}");
    }
    let entries = said(program(bin.join("python")).args(["-c", ENTRY_POINTS]));
    assert!(entries.lines().any(|line| line.starts_with("pytest11 ")), "{entries}");

    fs::copy(root().join("tests/fixtures/apps/plain.py"), dir.join("plain.py")).unwrap();
    fs::write(
        dir.join("requirements.txt"),
        "uvicorn==0.54.0 ; python_version >= '3.10'\nuvicorn ; python_version < '3.10'\n",
    )
    .unwrap();
    let config = format!(
        "migrations.run = 'none'\npython.requirements = 'requirements.txt'\nworkers.app = 'plain:app'\n\
         workers.listen = '127.0.0.1:{}'\nhealth.listen = '127.0.0.1:{}'\npostgres.port = {}\n",
        project.app, project.health, project.postgres
    );
    fs::write(dir.join("tandem.toml"), config).unwrap();
    let mut command = tandem::command_as(&binary, &dir);
    command.env("PATH", &path).env_remove("CARGO").env_remove("VIRTUAL_ENV");
    let mut running = Tandem::start_with(&project, command, &["up", "--log-format", "text"]);
    running.wait_ready();
    eprintln!("wheel: installed after {installed:.1?}, serving after {:.1?}", began.elapsed());
    assert_eq!(running.get("/").map(|(code, _)| code), Some(200));
    assert_eq!(running.stop(), 0);
    assert!(left_in(&dir).is_empty(), "{:?}", left_in(&dir));
}

#[test]
fn a_wheel_needs_no_newer_glibc_than_its_name_promises() {
    let Some(packages) = packages() else { return };
    let wheel = only(&packages, ".whl").file_name().unwrap().to_string_lossy().into_owned();
    assert!(wheel.starts_with(&format!("tandem_up-{}-py3-none-manylinux_", env!("CARGO_PKG_VERSION"))), "{wheel}");
    let numbers = wheel.split("manylinux_").nth(1).unwrap().split('_').map_while(|part| part.parse().ok());
    let promised: Vec<u32> = numbers.collect();
    let dir = tempfile::tempdir().unwrap();
    said(program("tar").arg("-xzf").arg(only(&packages, "-linux.tar.gz")).arg("-C").arg(dir.path()));
    let binary = dir.path().join(&names(dir.path())[0]).join("bin/tandem");
    let symbols = said(program("objdump").arg("-T").arg(binary));
    let versions = symbols.split("GLIBC_").skip(1);
    let versions = versions.filter_map(|rest| rest.split(|c: char| !c.is_ascii_digit() && c != '.').next());
    let needed: BTreeSet<Vec<u32>> =
        versions.map(|version| version.split('.').filter_map(|part| part.parse().ok()).collect()).collect();
    let newest = needed.last().expect("it needs a glibc");
    assert!(newest <= &promised, "{wheel} needs {newest:?}");
}

#[test]
fn the_tarball_and_the_debian_package_hold_what_the_wheel_holds() {
    let Some(packages) = packages() else { return };
    let check = ["--check", "--strict", "SHA256SUMS"];
    let checked = said(program("sha256sum").args(check).current_dir(&packages));
    assert_eq!(checked.lines().count(), names(&packages).len() - 1, "some have no digest:\n{checked}");

    let dir = tempfile::tempdir().unwrap();
    said(program("tar").arg("-xzf").arg(only(&packages, "-linux.tar.gz")).arg("-C").arg(dir.path()));
    let tree = dir.path().join(&names(dir.path())[0]);
    let wheel = dir.path().join("wheel");
    said(program("python3").args(["-m", "zipfile", "-e"]).arg(only(&packages, ".whl")).arg(&wheel));
    let data = only(&wheel, ".data");
    let binary = digest(&data.join("scripts/tandem"));
    assert_eq!(digest(&tree.join("bin/tandem")), binary);
    for shared in SHARED {
        assert_eq!(digest(&tree.join("share").join(shared)), digest(&data.join("data/share").join(shared)), "{shared}");
    }
    assert!(tree.join("LICENSE").is_file());

    let deb = names(&packages).into_iter().find(|name| name.ends_with(".deb"));
    let Some(deb) = deb else { return skip("there is no dpkg-deb here") };
    let into = dir.path().join("deb");
    said(program("dpkg-deb").arg("--extract").arg(packages.join(&deb)).arg(&into));
    assert_eq!(digest(&into.join("usr/bin/tandem")), binary);
    let version = said(program(into.join("usr/bin/tandem")).arg("--version"));
    assert!(version.contains(env!("CARGO_PKG_VERSION")), "{version}");
    for shared in SHARED {
        // Debian wants its man pages compressed.
        let suffix = if shared.starts_with("man/") { ".gz" } else { "" };
        assert!(into.join(format!("usr/share/{shared}{suffix}")).is_file(), "the Debian package has no {shared}");
    }
    let fields = said(program("dpkg-deb").arg("--info").arg(packages.join(&deb)));
    assert!(fields.contains("Package: tandem-up") && fields.contains("Depends: libc6 (>= "), "{fields}");
}

#[test]
fn the_bill_of_materials_names_the_crates_with_their_versions() {
    let Some(packages) = packages() else { return };
    let bill: serde_json::Value = serde_json::from_slice(&fs::read(only(&packages, ".cdx.json")).unwrap()).unwrap();
    assert_eq!(bill["bomFormat"], "CycloneDX");
    let components = bill["components"].as_array().unwrap();
    let listed: BTreeSet<(&str, &str)> =
        components.iter().map(|one| (one["name"].as_str().unwrap(), one["version"].as_str().unwrap())).collect();
    let lock = fs::read_to_string(root().join("Cargo.lock")).unwrap();
    let locked: BTreeSet<(&str, &str)> = lock
        .split("[[package]]")
        .filter_map(|entry| {
            let value = |key: &str| {
                entry.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = \"")?.strip_suffix('"'))
            };
            Some((value("name")?, value("version")?))
        })
        .collect();
    let unknown: Vec<_> = listed.difference(&locked).collect();
    assert!(unknown.is_empty(), "they are not in Cargo.lock: {unknown:?}");
    for name in ["rustls", "sqlx-postgres", "tokio", "zstd-sys"] {
        assert!(listed.iter().any(|(listed, _)| *listed == name), "{name} is not listed");
    }
}

#[test]
fn a_source_distribution_has_all_that_cargo_asks_for() {
    let Some(packages) = packages() else { return };
    let dir = tempfile::tempdir().unwrap();
    let sdist =
        names(&packages).into_iter().find(|name| name == &format!("tandem_up-{}.tar.gz", env!("CARGO_PKG_VERSION")));
    said(program("tar").arg("-xzf").arg(packages.join(sdist.unwrap())).arg("-C").arg(dir.path()));
    let tree = dir.path().join(&names(dir.path())[0]);
    assert!(tree.join("pyproject.toml").is_file() && tree.join("src/main.rs").is_file());
    let metadata = ["metadata", "--locked", "--format-version", "1"];
    said(program(env!("CARGO")).current_dir(&tree).args(metadata));
}

/// A page for each command that people type, which names each of its options; and no reference to a page that is not there.
#[test]
fn every_command_has_a_man_page() {
    fn pages(command: &clap::Command, name: &str, dir: &Path) -> usize {
        let page = fs::read_to_string(dir.join(format!("{name}.1"))).unwrap();
        for option in command.get_arguments().filter(|option| !option.is_hide_set()) {
            let Some(long) = option.get_long() else { continue };
            let written = format!("\\-\\-{}", long.replace('-', "\\-"));
            assert!(page.contains(&written), "{name}(1) does not name --{long}:\n{page}");
        }
        let below = command.get_subcommands().filter(|below| !below.is_hide_set() && below.get_name() != "help");
        1 + below.map(|below| pages(below, &format!("{name}-{}", below.get_name()), dir)).sum::<usize>()
    }
    let project = Project::app("plain:app");
    let dir = project.dir().join("share/man/man1");
    let written = run(&project, &["man", "share/man/man1"]);
    assert!(written.status.success(), "{written:?}");
    let mut cli = Cli::command();
    cli.build();
    let count = pages(&cli, "tandem", &dir);
    assert!(count > 25, "only {count} pages were read");
    assert_eq!(names(&dir).len(), count, "there are pages of other commands: {:?}", names(&dir));
    for name in names(&dir) {
        let page = fs::read_to_string(dir.join(&name)).unwrap().replace('\\', "");
        let words = page.split_whitespace();
        for reference in words.filter_map(|word| word.strip_suffix("(1)")) {
            assert!(dir.join(format!("{reference}.1")).is_file(), "{name} refers to {reference}(1)");
        }
    }

    // A file is where the directory should be.
    let refused = run(&project, &["man", "tandem.toml"]);
    assert_eq!(refused.status.code(), Some(1));
    let error = String::from_utf8_lossy(&refused.stderr);
    assert!(error.contains("write the man pages into tandem.toml"), "{error}");
}

/// Reads requirements with hashes, and writes those that its argument's Python takes without their markers: pip reads
/// markers by the Python that it runs with.
const TAKEN: &str = "
import sys
from pip._vendor.packaging.markers import Marker
python = {'python_version': sys.argv[1], 'python_full_version': sys.argv[1] + '.0'}
text = open(sys.argv[2]).read().replace('\\\\\\n', ' ')
for line in text.splitlines():
    line = line.partition(' #')[0].strip()
    if not line or line.startswith('#'):
        continue
    requirement, _, hashes = line.partition(' --hash')
    requirement, _, marker = requirement.partition(' ; ')
    if not marker or Marker(marker.strip()).evaluate(python):
        print(requirement.strip(), '--hash' + hashes)
";

#[test]
fn every_pin_of_the_example_admits_the_oldest_python_and_the_newest() {
    let dir = tempfile::tempdir().unwrap();
    said(program("python3").args(["-m", "venv"]).arg(dir.path().join("own")));
    let python = dir.path().join("own/bin/python");
    let requirements = root().join("examples/backend/requirements.txt");
    for version in PYTHONS {
        let taken = said(program(&python).args(["-c", TAKEN, version]).arg(&requirements));
        assert!(taken.contains("fastapi==") && taken.contains("uvicorn=="), "{taken}");
        let file = dir.path().join(format!("{version}.txt"));
        fs::write(&file, taken).unwrap();
        let pip = ["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"];
        let only = ["--only-binary", ":all:", "--require-hashes", "--python-version", version, "--requirement"];
        said(program(&python).args(pip).args(only).arg(&file).arg("--dest").arg(dir.path().join(version)));
    }
}

/// Fails for a file that Python 3.9 cannot read, or whose annotations it cannot evaluate: `X | None` came with 3.10.
const READS: &str = "
import ast, sys
for path in sys.argv[1:]:
    tree = ast.parse(open(path, encoding='utf-8').read(), path, feature_version=(3, 9))
    later = any(isinstance(node, ast.ImportFrom) and node.module == '__future__' for node in tree.body)
    for node in ast.walk(tree):
        annotation = getattr(node, 'annotation', None) or getattr(node, 'returns', None)
        for part in ast.walk(annotation) if annotation and not later else ():
            assert not isinstance(getattr(part, 'op', None), ast.BitOr), f'{path}:{part.lineno} needs Python 3.10'
    print(path)
";

#[test]
fn what_runs_beside_an_application_is_written_for_the_oldest_python() {
    let of = |dir: &str| files(&root().join(dir), ".py");
    let paths = [of("examples/backend"), of("src")].concat();
    let read = said(program("python3").args(["-c", READS]).args(&paths));
    assert_eq!(read.lines().count(), paths.len());
    assert!(paths.len() > 6, "only {} files were read", paths.len());
}

#[test]
fn the_wheel_admits_the_pythons_that_the_readme_promises() {
    let text = fs::read_to_string(root().join("pyproject.toml")).unwrap();
    let pyproject: toml::Table = text.parse().unwrap();
    assert_eq!(pyproject["project"]["requires-python"].as_str(), Some(&*format!(">={}", PYTHONS[0])));
    let classifiers = pyproject["project"]["classifiers"].as_array().unwrap();
    for version in PYTHONS {
        let classifier = format!("Programming Language :: Python :: {version}");
        assert!(classifiers.iter().any(|one| one.as_str() == Some(&classifier)), "{classifier}");
    }
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    assert!(readme.contains(&format!("Python ({} or newer)", PYTHONS[0])));
    // A command that a person would type by its name, and get a stranger's program.
    for command in ["pip install tandem", "cargo install tandem"] {
        let followed = readme.split(command).skip(1).map(|rest| rest.chars().next().unwrap_or(' '));
        assert_eq!(followed.filter(|next| *next == '`').count(), 1, "README.md warns of `{command}` once");
    }
}

#[test]
fn every_action_of_a_workflow_is_pinned_to_a_commit() {
    let dir = root().join(".github/workflows");
    let mut count = 0;
    for name in names(&dir) {
        let text = fs::read_to_string(dir.join(&name)).unwrap();
        for action in text.lines().filter_map(|line| line.trim_start().trim_start_matches("- ").strip_prefix("uses: "))
        {
            let commit = action.split('@').nth(1).unwrap_or_default().split(' ').next().unwrap_or_default();
            let pinned = commit.len() == 40 && commit.chars().all(|c| c.is_ascii_hexdigit());
            assert!(pinned && action.contains(" # v"), "{name}: {action}");
            count += 1;
        }
        // `secrets.` would be a token to keep; what there is, is the run's own and ends with it.
        assert!(!text.contains("secrets.") && text.contains("\npermissions:\n  contents: read\n"), "{name}");
    }
    assert!(count >= 3, "only {count} actions were read");
}
