//! What the other files say. Pure.

use std::fmt::Write as _;

use super::Facts;
use super::names::{self, Variable};
use super::systemd;

/// The package of Tandem's, as pip knows it.
const PACKAGE: &str = "tandem-up";

pub const GITIGNORE: &str = "# The database, its password, the Python environment and the backups.\n.tandem/\n# Secrets of this machine.\n.env\n";

pub const DOCKERIGNORE: &str = ".git\n.tandem\n.env\n.venv\n**/__pycache__\n";

pub const EDITOR: &str = r#"{
  "python.defaultInterpreterPath": "${workspaceFolder}/.tandem/venv/bin/python",
  "python.testing.pytestEnabled": true
}
"#;

/// The variables that a person sets.
pub fn env_example(variables: &[Variable]) -> String {
    let mut text = String::from(
        "# Copy this file to .env, and fill in what belongs to that machine. Tandem hands .env to the application.\n\
         # DATABASE_URL and POSTGRES_* are set by Tandem, to the PostgreSQL that it runs. Set DATABASE_URL only for one that runs\n\
         # elsewhere. Where each variable is read stands behind it.\n",
    );
    let mapped = names::mapping(variables);
    let is_mapped = |variable: &Variable| mapped.iter().any(|(it, _)| it.name == variable.name);
    for variable in variables.iter().filter(|variable| names::is_own(&variable.name) && !is_mapped(variable)) {
        let assignment = format!("# {}=", variable.name);
        let _ = writeln!(text, "{assignment:<39} # {}", variable.place);
    }
    text
}

/// The version of Python for images and for CI: the one that is asked for, if that is one version.
fn python(facts: &Facts) -> String {
    let wanted = facts.project.python.as_ref().map(|found| found.value.text.clone()).unwrap_or_default();
    let parts: Vec<&str> = wanted.split('.').collect();
    match parts.as_slice() {
        ["3", minor, ..] if minor.bytes().all(|byte| byte.is_ascii_digit()) && !minor.is_empty() => {
            format!("3.{minor}")
        }
        _ => "3.13".to_owned(),
    }
}

pub fn ci(facts: &Facts) -> String {
    format!(
        "# Runs the tests as `tandem test` does on your machine: around a throwaway PostgreSQL, each test with a fresh database.\n\
         name: tests\n\
         on: [push, pull_request]\n\
         jobs:\n\
         \u{20} tests:\n\
         \u{20}   runs-on: ubuntu-latest\n\
         \u{20}   steps:\n\
         \u{20}     - uses: actions/checkout@v4\n\
         \u{20}     - uses: actions/setup-python@v5\n\
         \u{20}       with:\n\
         \u{20}         python-version: \"{}\"\n\
         \u{20}     - run: pip install {PACKAGE}\n\
         \u{20}     - run: tandem check\n\
         \u{20}     - run: tandem test\n",
        python(facts)
    )
}

pub fn dockerfile(facts: &Facts) -> String {
    let requirements = facts.project.requirements.first().map(|found| found.value.file.display().to_string());
    let mut early = vec!["tandem.toml".to_owned()];
    if let Some(file) = &requirements {
        let dir = file.rsplit_once('/').map_or(String::new(), |(dir, _)| format!("{dir}/"));
        let needs_project = file.ends_with(".lock") && facts.directory.join(format!("{dir}pyproject.toml")).is_file();
        early.extend(needs_project.then(|| format!("{dir}pyproject.toml")));
        early.push(file.clone());
    }
    let copies: String =
        early.iter().map(|file| format!("COPY {}\n", serde_json::json!([file, format!("./{file}")]))).collect();
    format!(
        "# The application and its PostgreSQL in one container:\n\
         #\n\
         #   docker build -t app . && docker run -p 8000:8000 -v app-state:/var/lib/tandem app\n\
         FROM python:{}-slim\n\
         # What PostgreSQL's programs load.\n\
         RUN apt-get update \\\n\
         \u{20}   && apt-get install --yes --no-install-recommends \\\n\
         \u{20}       libgssapi-krb5-2 liblz4-1 libnss-wrapper libreadline8 libssl3 libxml2 libzstd1 tzdata zlib1g \\\n\
         \u{20}   && rm -rf /var/lib/apt/lists/*\n\
         RUN pip install --no-cache-dir {PACKAGE}\n\
         RUN groupadd --gid 10001 tandem \\\n\
         \u{20}   && useradd --uid 10001 --gid tandem --home-dir /var/lib/tandem --no-create-home tandem \\\n\
         \u{20}   && install -d -o tandem -g 0 -m 0775 /var/lib/tandem\n\
         # Docker grants 10 s to stop: 3 s for requests, 4 s for PostgreSQL.\n\
         ENV TANDEM_CACHE_DIR=/opt/tandem/cache \\\n\
         \u{20}   TANDEM_PYTHON__VENV=/opt/tandem/venv \\\n\
         \u{20}   TANDEM_STATE_DIR=/var/lib/tandem \\\n\
         \u{20}   TANDEM_STOP__GRACE=3s \\\n\
         \u{20}   TANDEM_STOP__POSTGRES_GRACE=4s \\\n\
         \u{20}   TANDEM_STOP__PLATFORM_GRACE=10s \\\n\
         \u{20}   TANDEM_WORKERS__LISTEN=0.0.0.0:8000 \\\n\
         \u{20}   TANDEM_HEALTH__LISTEN=0.0.0.0:8001\n\
         WORKDIR /srv/app\n\
         # Before the application, which changes more often.\n\
         {copies}\
         RUN tandem install\n\
         COPY . .\n\
         USER 10001:10001\n\
         VOLUME /var/lib/tandem\n\
         EXPOSE 8000 8001\n\
         HEALTHCHECK --interval=10s --timeout=6s --start-period=30m CMD [\"tandem\", \"health\"]\n\
         ENTRYPOINT [\"tandem\"]\n\
         CMD [\"up\"]\n",
        python(facts)
    )
}

pub fn service(facts: &Facts) -> String {
    let (dir, program) = (facts.directory.display().to_string(), facts.program.display().to_string());
    systemd::unit(&systemd::Service {
        description: &format!("The application in {dir} and its PostgreSQL"),
        user: &facts.user,
        dir: &dir,
        program: &program,
        place: systemd::Place::Beside,
        has_socket: false,
    })
}
