//! Whose PostgreSQL it is, and that no password is ever shown.

use expect_test::expect;

use super::{APP, project, summary};
use crate::config::PostgresMode;

const FFE_DOTENV: &str = r#"# Database
POSTGRES_USER=ffe_user
POSTGRES_PASSWORD=changeme
POSTGRES_DB=ffe
DATABASE_URL="postgresql+psycopg2://ffe_user:changeme@postgres:5432/ffe"
ENVIRONMENT=production
BACKUP_PATH=./backups
"#;

#[test]
fn a_name_that_may_not_resolve_is_no_problem_and_comes_with_what_to_do() {
    let help = |project: super::Project| project.loaded().settings.postgres.unresolved_help;
    expect![[r#"a name without a dot is usually a Docker Compose service, which only resolves inside Compose's network. delete the line DATABASE_URL (.env:5): Tandem runs PostgreSQL itself and gives the workers their DATABASE_URL; or set postgres.mode = "managed" (TANDEM_POSTGRES__MODE=managed) to take user, password and database from it and ignore its server; or name a server that this machine can reach"#]]
    .assert_eq(&help(project(&[("tandem.toml", APP), (".env", FFE_DOTENV)])).unwrap());
    let attached = |url| help(project(&[("tandem.toml", APP)]).environment(&[("DATABASE_URL", url)]));
    expect!["correct the host in DATABASE_URL (environment), or see to it that its name resolves"]
        .assert_eq(&attached("postgresql://u:p@db.example.com/d").unwrap());
    for address in ["postgresql://u:p@127.0.0.1/d", "postgresql://u:p@localhost/d", "postgresql:///d?host=/run/pg"] {
        assert_eq!(attached(address), None, "{address}");
    }
}

#[test]
fn a_managed_database_takes_user_password_and_database_from_the_url() {
    let loaded = project(&[("tandem.toml", APP), (".env", FFE_DOTENV)])
        .environment(&[("TANDEM_POSTGRES__MODE", "managed")])
        .loaded();
    expect![[r#"
        postgres.mode = managed (environment TANDEM_POSTGRES__MODE)
        postgres.url = postgresql+psycopg2://ffe_user:********@postgres:5432/ffe (.env:5)
        postgres.user = ffe_user (.env:5)
        postgres.password = ******** (.env:5)
        postgres.database = ffe (.env:5)
        workers.app = main:app (tandem.toml:2)
        workers.env.ENVIRONMENT = ******** (.env:6)
        backup.dir = ./backups (.env:7)
        notice: postgres.mode is "managed": user, password and database are those of DATABASE_URL (.env:5), its server postgres:5432 is ignored
        notice: DATABASE_URL (.env:5): the password is one that is tried first: leave it out, and Tandem makes one; or give a long random one: openssl rand -base64 32"#]]
    .assert_eq(&summary(&loaded));
    let postgres = &loaded.settings.postgres;
    assert_eq!((postgres.mode, &postgres.url), (PostgresMode::Managed, &None));
    assert_eq!(postgres.password.as_ref().unwrap().expose(), "changeme");
    let workers: Vec<_> = loaded.settings.workers.env.keys().map(String::as_str).collect();
    assert_eq!(workers, ["ENVIRONMENT"]);
}

#[test]
fn a_reachable_database_is_attached_to() {
    let loaded = project(&[("tandem.toml", APP)])
        .environment(&[(
            "DATABASE_URL",
            "postgresql+psycopg2://u%40x:pp@db.example.org:6432/d?sslmode=require&password=p%25%2F",
        )])
        .loaded();
    expect![[r#"
        postgres.url = postgresql+psycopg2://u%40x:********@db.example.org:6432/d?sslmode=require (environment DATABASE_URL)
        postgres.port = 6432 (environment DATABASE_URL)
        postgres.user = u@x (environment DATABASE_URL)
        postgres.password = ******** (environment DATABASE_URL)
        postgres.database = d (environment DATABASE_URL)
        workers.app = main:app (tandem.toml:2)
        notice: DATABASE_URL (environment) names the server db.example.org:6432: Tandem attaches to it and starts no PostgreSQL of its own (postgres.mode = "managed" starts one)"#]]
    .assert_eq(&summary(&loaded));
    let postgres = &loaded.settings.postgres;
    assert_eq!(postgres.mode, PostgresMode::Attach);
    assert_eq!((postgres.user.as_str(), postgres.database.as_str(), postgres.port.number), ("u@x", "d", 6432));
    assert_eq!(postgres.url.as_ref().unwrap().password.as_ref().unwrap().expose(), "p%/");
}

#[test]
fn what_a_url_leaves_out_is_filled_in() {
    let loaded =
        project(&[("tandem.toml", APP), (".env", "DATABASE_URL=postgresql:///?host=/run/pg\nPOSTGRES_USER=u\n")])
            .environment(&[("POSTGRES_PASSWORD", "p w"), ("TANDEM_POSTGRES__MODE", "attach")])
            .loaded();
    let url = loaded.settings.postgres.url.unwrap();
    assert_eq!(url.expose().expose(), "postgresql://u:p%20w@/u?host=/run/pg&port=5432");
    assert_eq!(loaded.settings.postgres.database, "u");
}

#[test]
fn a_password_with_special_characters_in_a_url_is_explained_and_never_shown() {
    for password in ["pa/ss", "p#ss", "12/34", "a?b"] {
        let url = format!("DATABASE_URL=postgresql://ffe:{password}@127.0.0.1:5432/ffe");
        let error = project(&[("tandem.toml", APP), (".env", &url)]).load().unwrap_err().to_string();
        assert!(error.contains("percent-encoded") && !error.contains(password), "{error}");
    }
}

#[test]
fn passwords_are_nowhere_to_be_seen() {
    let password = r#"p@s:w/o?r#d%41[]&=+ "\é`{}|^$HOME"#;
    let dotenv = format!("POSTGRES_PASSWORD='{password}'\nAPI_KEY='{password}'\n");
    let loaded = project(&[("tandem.toml", APP), (".env", &dotenv)]).loaded();
    assert_eq!(loaded.settings.postgres.password.as_ref().unwrap().expose(), password);
    assert_eq!(loaded.settings.workers.env["API_KEY"], password);
    let shown = format!("{}{}{:?}", loaded.table(true), loaded.to_json(), loaded);
    assert!(!shown.contains("p@s") && !shown.contains("p%40s"), "{shown}");
}

#[test]
fn a_password_file_is_read_without_its_newline() {
    let loaded =
        project(&[("tandem.toml", APP), ("secret", "a b\n"), (".env", "POSTGRES_PASSWORD_FILE=secret\n")]).loaded();
    assert_eq!(loaded.settings.postgres.password.as_ref().unwrap().expose(), "a b");
    project(&[("tandem.toml", APP), (".env", "POSTGRES_PASSWORD_FILE=gone\n")]).refused(expect![[r#"
        the configuration has 1 problem:
          .env:1: POSTGRES_PASSWORD_FILE: cannot read <project>/gone: No such file or directory (os error 2)"#]]);
}
