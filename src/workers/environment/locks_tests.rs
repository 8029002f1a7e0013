//! Locks as the tools write them, cut short.

use super::*;

const PYPROJECT: &str = "[project]\nname = 'shop'\ndependencies = ['fastapi>=0.100', 'uvicorn[standard]', 'tzdata; sys_platform == \"win32\"']\n";

fn manifest(text: &str) -> Manifest {
    Manifest::of(Path::new("pyproject.toml"), text).unwrap()
}

fn lines(sort: Sort, text: &str, pyproject: &str, groups: &[&str]) -> Result<String, String> {
    let groups: Vec<String> = groups.iter().map(|&name| name.to_owned()).collect();
    let file = Path::new("the.lock");
    let locked = read(sort, file, text, &manifest(pyproject)).map_err(|error| error.to_string())?;
    locked.lines(file, Options { groups: &groups, extras: &[] }).map_err(|error| error.to_string())
}

const UV: &str = r#"
version = 1
[[package]]
name = "shop"
version = "0.1.0"
source = { virtual = "." }
dependencies = [{ name = "fastapi" }, { name = "uvicorn", extra = ["standard"] }, { name = "tzdata", marker = "sys_platform == 'win32'" }]
[package.dev-dependencies]
dev = [{ name = "pytest" }]
[[package]]
name = "fastapi"
version = "0.128.0"
source = { registry = "https://pypi.org/simple" }
dependencies = [{ name = "anyio" }]
sdist = { url = "x", hash = "sha256:f1" }
wheels = [{ url = "x", hash = "sha256:f2" }]
[[package]]
name = "uvicorn"
version = "0.40.0"
source = { registry = "https://pypi.org/simple" }
wheels = [{ url = "x", hash = "sha256:u1" }]
[package.optional-dependencies]
standard = [{ name = "uvloop", marker = "sys_platform != 'win32'" }]
[[package]]
name = "uvloop"
version = "0.22.0"
wheels = [{ url = "x", hash = "sha256:l1" }]
[[package]]
name = "anyio"
version = "4.0.0"
wheels = [{ url = "x", hash = "sha256:a1" }]
[[package]]
name = "tzdata"
version = "2025.1"
wheels = [{ url = "x", hash = "sha256:t1" }]
[[package]]
name = "pytest"
version = "9.0"
wheels = [{ url = "x", hash = "sha256:p1" }]
"#;

#[test]
fn uvs_lock_becomes_lines_with_hashes() {
    let got = lines(Sort::UvLock, UV, PYPROJECT, &[]).unwrap();
    assert_eq!(
        got,
        "fastapi==0.128.0 \\\n    --hash=sha256:f2 \\\n    --hash=sha256:f1\n\
         uvicorn==0.40.0 \\\n    --hash=sha256:u1\n\
         uvloop==0.22.0 ; sys_platform != 'win32' \\\n    --hash=sha256:l1\n\
         anyio==4.0.0 \\\n    --hash=sha256:a1\n\
         tzdata==2025.1 ; sys_platform == 'win32' \\\n    --hash=sha256:t1\n"
    );
    assert!(lines(Sort::UvLock, UV, PYPROJECT, &["dev"]).unwrap().contains("pytest==9.0"));
    let forked = UV.replace("name = \"pytest\"", "name = \"anyio\"");
    assert!(lines(Sort::UvLock, &forked, PYPROJECT, &[]).unwrap_err().contains("more than one version of anyio"));
    let git = UV.replacen(
        "source = { registry = \"https://pypi.org/simple\" }",
        "source = { git = \"https://x/y?rev=1#2\" }",
        1,
    );
    assert!(lines(Sort::UvLock, &git, PYPROJECT, &[]).unwrap_err().contains("fastapi comes from git https://x/y"));
    assert!(lines(Sort::UvLock, "version = 1\n", PYPROJECT, &[]).unwrap_err().contains("no [[package]]"));
}

#[test]
fn poetrys_locks_of_both_kinds_become_lines() {
    let new = r#"
[[package]]
name = "FastAPI"
version = "0.128.0"
groups = ["main"]
files = [{ file = "f.whl", hash = "sha256:f1" }]
[[package]]
name = "pytest"
version = "9.0"
groups = ["dev"]
files = [{ file = "p.whl", hash = "sha256:p1" }]
[[package]]
name = "colorama"
version = "0.4"
groups = ["main", "dev"]
markers = "sys_platform == \"win32\""
files = [{ file = "c.whl", hash = "sha256:c1" }]
[metadata]
lock-version = "2.1"
"#;
    let got = lines(Sort::PoetryLock, new, PYPROJECT, &[]).unwrap();
    assert_eq!(
        got,
        "fastapi==0.128.0 \\\n    --hash=sha256:f1\n\
         colorama==0.4 ; sys_platform == \"win32\" \\\n    --hash=sha256:c1\n"
    );
    assert!(lines(Sort::PoetryLock, new, PYPROJECT, &["dev"]).unwrap().contains("pytest==9.0"));

    let old = r#"
[[package]]
name = "fastapi"
version = "0.100.0"
optional = false
files = [{ file = "f.whl", hash = "sha256:f1" }]
[package.dependencies]
anyio = ">=3"
colorama = { version = "*", markers = "sys_platform == \"win32\"" }
orjson = { version = "*", optional = true }
[[package]]
name = "anyio"
version = "3.0"
[[package]]
name = "colorama"
version = "0.4"
files = [{ file = "c.whl", hash = "sha256:c1" }]
[[package]]
name = "orjson"
version = "3"
files = [{ file = "o.whl", hash = "sha256:o1" }]
[[package]]
name = "pytest"
version = "7"
files = [{ file = "p.whl", hash = "sha256:p1" }]
[metadata]
lock-version = "2.0"
[metadata.files]
anyio = [{ file = "a.whl", hash = "sha256:a1" }]
"#;
    let poetry = "[tool.poetry.dependencies]\npython = '^3.11'\nfastapi = '^0.100'\n";
    assert_eq!(
        lines(Sort::PoetryLock, old, poetry, &[]).unwrap(),
        "fastapi==0.100.0 \\\n    --hash=sha256:f1\nanyio==3.0 \\\n    --hash=sha256:a1\n\
         colorama==0.4 ; sys_platform == \"win32\" \\\n    --hash=sha256:c1\n"
    );
}

#[test]
fn pdms_and_pipenvs_locks_become_lines() {
    let pdm = r#"
[[package]]
name = "uvicorn"
version = "0.40.0"
groups = ["default"]
files = [{ file = "u.whl", hash = "sha256:u1" }]
[[package]]
name = "uvicorn"
version = "0.40.0"
extras = ["standard"]
groups = ["default"]
files = [{ file = "u.whl", hash = "sha256:u1" }]
[[package]]
name = "exceptiongroup"
version = "1"
groups = ["default"]
marker = "python_version < \"3.11\""
files = [{ file = "e.whl", hash = "sha256:e1" }]
[[package]]
name = "ruff"
version = "1"
groups = ["lint"]
files = [{ file = "r.whl", hash = "sha256:r1" }]
"#;
    assert_eq!(
        lines(Sort::PdmLock, pdm, PYPROJECT, &[]).unwrap(),
        "uvicorn==0.40.0 \\\n    --hash=sha256:u1\n\
         exceptiongroup==1 ; python_version < \"3.11\" \\\n    --hash=sha256:e1\n"
    );
    let pipfile = r#"{"_meta": {"sources": [{"url": "https://pypi.org/simple"}, {"url": "https://own/simple"}]},
        "default": {"uvicorn": {"hashes": ["sha256:u1"], "version": "==0.40.0", "markers": "python_version >= '3.9'"}},
        "develop": {"pytest": {"hashes": ["sha256:p1"], "version": "==9.0"}}}"#;
    assert_eq!(
        lines(Sort::PipfileLock, pipfile, "", &[]).unwrap(),
        "--extra-index-url https://own/simple\nuvicorn==0.40.0 ; python_version >= '3.9' \\\n    --hash=sha256:u1\n"
    );
    assert!(lines(Sort::PipfileLock, pipfile, "", &["dev"]).unwrap().contains("pytest==9.0"));
    assert!(lines(Sort::PipfileLock, "{", "", &[]).unwrap_err().contains("cannot be read"));
}

#[test]
fn what_a_project_asks_for_is_read_with_its_versions() {
    let asked = |text: &str| asked_for(&manifest(text));
    assert_eq!(asked(PYPROJECT), [("fastapi".to_owned(), Some(">=0.100".to_owned())), ("uvicorn".to_owned(), None)]);
    assert_eq!(
        asked(
            "[tool.poetry.dependencies]\npython = '^3.11'\nFast_API = '^0.100'\nx = { version = '~1.2', optional = true }\n"
        ),
        [("fast-api".to_owned(), Some(">=0.100,<0.101".to_owned()))]
    );
    let (edge, versions) = requirement_edge("a.b[x, y] (>=1.0) ; python_version < '3'");
    let marker = Some("python_version < '3'".to_owned());
    assert_eq!(edge, Edge { name: "a-b".into(), marker, extras: vec!["x".into(), "y".into()] });
    assert_eq!(versions.as_deref(), Some(">=1.0"));
    assert_eq!(requirement_edge("a @ https://x/y.whl").1, None);
}
