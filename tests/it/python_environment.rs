//! The Python environment as projects bring it: a `uv.lock` or a `pyproject.toml` with dependency groups, extras, members of
//! a workspace and packages beside the project; one that lacks Uvicorn.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use crate::common::project::Project;
use crate::common::refusal::{self, Refusal};
use crate::common::tandem::{self, Tandem};

/// A build backend that lies in each package, so that building one needs no index: the package's only file, as it is.
const BACKEND: &str = "import os, zipfile

def build_wheel(directory, *_):
    name = os.path.basename(os.getcwd())
    wheel = name + '-1-py3-none-any.whl'
    with zipfile.ZipFile(os.path.join(directory, wheel), 'w') as file:
        file.write(name + '.py')
        file.writestr(name + '-1.dist-info/METADATA', 'Metadata-Version: 2.1\\nName: ' + name + '\\nVersion: 1\\n')
        file.writestr(name + '-1.dist-info/WHEEL', 'Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')
        file.writestr(name + '-1.dist-info/RECORD', '')
    return wheel

build_editable = build_wheel
";

/// A project whose backend lies in a directory of its own, locked there.
fn project() -> (Project, OsString) {
    let project = Project::app("plain:app").without("python.requirements").without("python.venv");
    project.configure("python.requirements = 'backend/uv.lock'\npython.installer = 'uv'\nmigrations.run = 'none'");
    for (at, name) in [("backend/member", "member"), ("beside", "beside"), ("for_tests", "for_tests"), ("docs", "docs")]
    {
        let metadata = format!(
            "[project]\nname = '{name}'\nversion = '1'\nrequires-python = '>=3.9'\n\
             [build-system]\nrequires = []\nbuild-backend = 'backend'\nbackend-path = ['.']\n"
        );
        project.write(&format!("{at}/pyproject.toml"), &metadata);
        project.write(&format!("{at}/backend.py"), BACKEND);
        project.write(&format!("{at}/{name}.py"), "");
    }
    project.write(
        "backend/pyproject.toml",
        "[project]\nname = 'shop'\nversion = '1'\nrequires-python = '>=3.9'\n\
         dependencies = ['uvicorn==0.30.0', 'member', 'beside']\n\
         [project.optional-dependencies]\ndev = ['for_tests']\n\
         [dependency-groups]\npages = ['docs']\n\
         [tool.uv.workspace]\nmembers = ['member']\n\
         [tool.uv.sources]\nmember = { workspace = true }\nbeside = { path = '../beside' }\n\
         for_tests = { path = '../for_tests', editable = true }\ndocs = { path = '../docs' }\n",
    );
    sh(project.dir(), "python3 -m venv tools && tools/bin/pip install --quiet --disable-pip-version-check uv==0.13.9");
    sh(project.dir(), "cd backend && ../tools/bin/uv lock --quiet --no-python-downloads --python python3");
    // Of the tools' directory uv alone: its python3 is another one than the configuration means.
    sh(project.dir(), "mkdir only && ln -s ../tools/bin/uv only/uv");
    let mut path = project.dir().join("only").into_os_string();
    path.push(":");
    #[expect(clippy::disallowed_methods, reason = "a child gets more than this process has")]
    path.push(std::env::var_os("PATH").unwrap());
    (project, path)
}

fn sh(dir: &Path, script: &str) {
    #[expect(clippy::disallowed_methods, reason = "a test prepares what it tests")]
    let output = Command::new("sh").args(["-euc", script]).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

fn install(project: &Project, path: &OsString) -> Refusal {
    refusal::said(tandem::command(project).env("PATH", path).arg("install").output().unwrap())
}

/// Which of `names` the environment can import.
fn importable(project: &Project, names: &[&str]) -> Vec<String> {
    let script = "import importlib.util, sys; print(' '.join(n for n in sys.argv[1:] if importlib.util.find_spec(n)))";
    #[expect(clippy::disallowed_methods, reason = "a test looks at what it tests")]
    let mut command = Command::new(project.state().join("venv/bin/python"));
    let output = command.args(["-c", script]).args(names).current_dir("/").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().split_whitespace().map(str::to_owned).collect()
}

#[test]
fn a_lock_is_installed_with_what_lies_beside_it_and_with_groups_and_extras_that_are_asked_for() {
    let (project, path) = project();
    let all = ["member", "beside", "for_tests", "docs"];
    let installed = install(&project, &path);
    assert_eq!(installed.code, 0, "{}", installed.said);
    assert_eq!(importable(&project, &all), ["member", "beside"]);

    project.configure("python.extras = ['dev']");
    assert_eq!(install(&project, &path).code, 0);
    assert_eq!(importable(&project, &all), ["member", "beside", "for_tests"]);
    project.configure("python.groups = ['pages']");
    assert_eq!(install(&project, &path).code, 0);
    assert_eq!(importable(&project, &all), all);

    let mut command = tandem::command(&project);
    command.env("PATH", &path);
    let mut tandem = Tandem::start_as(&project, command);
    tandem.wait_ready();
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());

    project.reconfigure(|text| text.replace("['pages']", "['dev']"));
    install(&project, &path).expect(78, &["dev", "backend/uv.lock"]);
    assert_eq!(importable(&project, &all), all, "the earlier environment is gone");
}

#[test]
fn a_project_is_installed_with_its_extras_and_a_list_of_requirements_has_none() {
    let project = Project::app("plain:app").without("python.requirements").without("python.venv");
    project.configure("python.requirements = 'pyproject.toml'\npython.extras = ['all']");
    project.write(
        "pyproject.toml",
        "[project]\nname = 'My.Shop'\ndependencies = ['uvicorn==0.30.0']\n\
         [project.optional-dependencies]\nall = ['my-shop[dev]']\ndev = ['iniconfig==2.0.0']\n",
    );
    let installed = refusal::run(&project, &["install"]);
    assert_eq!(installed.code, 0, "{}", installed.said);
    assert_eq!(importable(&project, &["iniconfig"]), ["iniconfig"]);

    project.reconfigure(|text| text.replace("['all']", "['test']"));
    refusal::run(&project, &["install"])
        .expect(78, &["no test under [project.optional-dependencies]", "python.extras"]);
    project.write("requirements.txt", "uvicorn\n");
    project.reconfigure(|text| text.replace("pyproject.toml", "requirements.txt"));
    refusal::run(&project, &["install"]).expect(78, &["python.extras", "list of requirements"]);
}

#[test]
fn an_environment_without_uvicorn_is_told_with_the_way() {
    let project = Project::app("plain:app").without("python.requirements").without("python.venv");
    sh(project.dir(), "python3 -m venv --without-pip theirs");
    project.configure("python.venv = 'theirs'\npython.managed = false\nmigrations.run = 'none'\nworkers.count = 1");
    let python = project.dir().join("theirs/bin/python");
    refusal::up(&project)
        .expect(78, &["No module named 'uvicorn'", &format!("{} -m pip install uvicorn", python.display())]);
}
