//! Modules of PostgreSQL whose libraries the system lacks are named, at the install and where a statement fails.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::common::control;
use crate::common::project::Project;
use crate::common::refusal;
use crate::common::tandem::Tandem;

/// A module of the server that wants a library that is nowhere: a copy of one, its want renamed to one as long.
fn module_without_its_library(project: &Project, lib: &Path) -> PathBuf {
    let mut bytes = fs::read(lib.join("pgxml.so")).unwrap();
    let (wanted, missing) = (b"libxslt.so.1\0", b"libldap-9.so\0");
    let at = bytes.windows(wanted.len()).position(|window| window == wanted).unwrap();
    bytes[at..at + missing.len()].copy_from_slice(missing);
    let module = project.dir().join("odd.so");
    fs::write(&module, bytes).unwrap();
    fs::set_permissions(&module, fs::Permissions::from_mode(0o755)).unwrap();
    module
}

#[test]
fn a_module_that_lacks_a_library_is_named_at_the_install_and_at_the_failing_statement() {
    let project =
        Project::app_with("plain:app", "migrations.run = 'none'\nworkers.count = 1\npostgres.source = 'package'");
    let installed = refusal::run(&project, &["install", "--json"]);
    installed.expect(0, &["\"lacking\":["]);
    let said: serde_json::Value = serde_json::from_str(&installed.said).unwrap();
    let bin = PathBuf::from(said["postgres"]["bin"].as_str().unwrap());
    let lib = bin.parent().unwrap().join("lib");
    let lacks_uuid = said["postgres"]["lacking"].to_string().contains("uuid-ossp lacks libossp-uuid.so.16");

    let mut tandem = Tandem::up(&project);
    let module = module_without_its_library(&project, &lib);
    let load = format!("LOAD '{}'", module.display());
    control::run(&project, &["psql", "--superuser", "-c", &load]).expect(1, &["libldap-9.so"]);
    tandem.wait_log("PostgreSQL's module odd lacks libldap-9.so: ");
    if lacks_uuid {
        let create = "CREATE EXTENSION \"uuid-ossp\"";
        control::run(&project, &["psql", "--superuser", "-c", create]).expect(1, &["libossp-uuid.so.16"]);
        tandem.wait_log("PostgreSQL's module uuid-ossp lacks libossp-uuid.so.16: ");
    }
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());

    // A migration that fails for it ends with what to do.
    let psql = bin.join("psql");
    let (run, library) = if lacks_uuid {
        let create = "CREATE EXTENSION \\\"uuid-ossp\\\"";
        (format!("['{}', '-v', 'ON_ERROR_STOP=1', '-c', \"{create}\"]", psql.display()), "libossp-uuid.so.16")
    } else {
        let said =
            "could not load library \\\"/x/odd.so\\\": libldap-9.so: cannot open shared object file: No such file";
        (format!("['sh', '-c', \"echo '{said}' >&2; exit 1\"]"), "libldap-9.so")
    };
    project.reconfigure(|text| text.replace("migrations.run = 'none'", &format!("migrations.run = {run}")));
    refusal::up(&project).expect(1, &["help: PostgreSQL's module", library]);
}
