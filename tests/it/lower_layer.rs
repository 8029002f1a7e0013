//! What came with a container's image lies in a lower layer of an overlay, whose directories get no other name.

use std::fs;

use crate::common::namespace::in_namespace;
use crate::common::project::Project;
use crate::common::refusal::{self, Refusal};
use crate::common::skip::skip;

/// Mount an overlay over the project's directory `$1`, whose own content becomes the lower layer, without a way to rename its
/// directories.
const OVERLAY: &str = "
    mkdir \"$0\"/layers; mount -t tmpfs tmpfs \"$0\"/layers; mkdir \"$0\"/layers/upper \"$0\"/layers/work
    mount -t overlay -o redirect_dir=off,lowerdir=\"$0\"/LOWER,upperdir=\"$0\"/layers/upper,workdir=\"$0\"/layers/work \
        overlay \"$0\"/LOWER || exit 99";

/// What `script` says on such a mount over `lower`; `None` where there can be none.
fn over(project: &Project, lower: &str, script: &str) -> Option<Refusal> {
    let _ = fs::remove_dir_all(project.dir().join("layers"));
    let mut command = in_namespace(project, &format!("{}\n{script}", OVERLAY.replace("LOWER", lower)))?;
    let output = command.output().unwrap();
    if output.status.code() == Some(99) {
        skip("this user can have no overlay here");
        return None;
    }
    Some(refusal::said(output))
}

/// A project whose environment is its own, and holds a Uvicorn of this version.
fn with_uvicorn(version: &str) -> Project {
    let project = Project::app("plain:app").without("python.venv").without("python.requirements");
    project.write("requirements.txt", &format!("uvicorn=={version}\n"));
    project.configure("python.requirements = 'requirements.txt'\npython.installer = 'pip'");
    project
}

#[test]
fn an_environment_of_the_image_below_is_made_anew_or_stays() {
    let project = with_uvicorn("0.30.0");
    refusal::run(&project, &["install"]).expect(0, &[]);
    let asked =
        "$0/.tandem/venv/bin/python -c 'import uvicorn; print(\"it is\", uvicorn.__version__)'; ls -A $0/.tandem";
    // What cannot be installed leaves the old one, which is copied meanwhile.
    let refused = "echo 'no-such-package-of-tandem==1' >>$0/requirements.txt; \"$@\" install && exit 1";
    let Some(kept) = over(&project, ".tandem", &format!("{refused}; {asked}")) else { return };
    kept.expect(0, &["no-such-package-of-tandem", "it is 0.30.0"]);
    assert!(!kept.said.contains(".venv.previous") && !kept.said.contains(".venv.removed"), "{}", kept.said);

    let wanted = "echo 'uvicorn==0.30.1' >$0/requirements.txt; \"$@\" install; \"$@\" install";
    let Some(made) = over(&project, ".tandem", &format!("{wanted}; {asked}")) else { return };
    made.expect(0, &["it is 0.30.1"]);
    assert!(!made.said.contains(".venv.previous") && !made.said.contains(".venv.removed"), "{}", made.said);
}

#[test]
fn a_server_of_the_image_below_is_replaced() {
    let project = with_uvicorn("0.30.0");
    project.configure("cache_dir = 'cache'\npostgres.source = 'package'");
    refusal::run(&project, &["install"]).expect(0, &["PostgreSQL 16"]);
    let script = "for dir in $0/cache/postgresql/16*; do printf other >$dir/.tandem-digest; touch $dir/old; done
        \"$@\" install; ls -A $0/cache/postgresql/16* $0/cache/postgresql";
    let Some(replaced) = over(&project, "cache", script) else { return };
    replaced.expect(0, &["PostgreSQL 16", ".tandem-checked"]);
    assert!(!replaced.said.lines().any(|line| line == "old" || line.starts_with(".staging-")), "{}", replaced.said);
}
