//! What other images of PostgreSQL and Uvicorn read: honoured, or told with the key to write instead.

use expect_test::expect;

use super::{APP, project, summary};

#[test]
fn files_of_user_and_database_and_the_count_of_workers_are_taken() {
    let files = [("tandem.toml", APP), ("user", "ffe_user\n"), ("db", "ffe")];
    let loaded = project(&files)
        .environment(&[("POSTGRES_USER_FILE", "user"), ("POSTGRES_DB_FILE", "db"), ("WEB_CONCURRENCY", "3")])
        .loaded();
    expect![[r#"
        postgres.user = ffe_user (environment POSTGRES_USER_FILE)
        postgres.database = ffe (environment POSTGRES_DB_FILE)
        workers.app = main:app (tandem.toml:2)
        workers.count = 3 (environment WEB_CONCURRENCY)"#]]
    .assert_eq(&summary(&loaded));
}

#[test]
fn a_file_that_is_not_there_and_a_value_given_twice_are_problems() {
    let twice = [("POSTGRES_USER", "a"), ("POSTGRES_USER_FILE", "user"), ("POSTGRES_DB_FILE", "nowhere")];
    let message = project(&[("tandem.toml", APP), ("user", "b")]).environment(&twice).load().unwrap_err().to_string();
    assert!(message.contains("POSTGRES_USER_FILE and POSTGRES_USER both give postgres.user"), "{message}");
    assert!(message.contains("POSTGRES_DB_FILE: cannot read") && message.contains("nowhere"), "{message}");
}

#[test]
fn what_has_no_effect_is_told_with_the_key_to_write() {
    let text = format!("{APP}count = 2\n");
    let foreign = [
        ("PGDATA", "/var/lib/postgresql/data"),
        ("POSTGRES_HOST_AUTH_METHOD", "trust"),
        ("POSTGRES_INITDB_WALDIR", "/wal"),
        ("MODULE_NAME", "app.main"),
        ("APP_MODULE", "main:app"),
        ("UVICORN_PORT", "80"),
        ("GUNICORN_CMD_ARGS", "--secret=x"),
        ("WEB_CONCURRENCY", "8"),
        ("PORT", "8080"),
        ("HOST", "0.0.0.0"),
        ("LOG_LEVEL", "debug"),
    ];
    let loaded = project(&[("tandem.toml", &text)]).environment(&foreign).loaded();
    expect![[r#"
        workers.app = main:app (tandem.toml:2)
        workers.count = 2 (tandem.toml:3)
        PGDATA = ignored (environment PGDATA)
        notice: PGDATA has no effect on Tandem: the cluster lies in the state directory, which TANDEM_STATE_DIR (state_dir) names; mount the volume there
        notice: POSTGRES_INITDB_WALDIR has no effect on Tandem: the WAL lies in the data directory
        notice: POSTGRES_HOST_AUTH_METHOD has no effect on Tandem: every connection over TCP needs a password (SCRAM)
        notice: MODULE_NAME has no effect on Tandem: set TANDEM_WORKERS__APP (workers.app)
        notice: GUNICORN_CMD_ARGS has no effect on Tandem: set TANDEM_WORKERS__COMMAND (workers.command)
        notice: UVICORN_PORT has no effect on Tandem: set TANDEM_WORKERS__LISTEN (workers.listen)
        notice: Tandem does not listen on HOST=0.0.0.0 and PORT=8080: set TANDEM_WORKERS__LISTEN (workers.listen), which is 127.0.0.1:8000
        notice: WEB_CONCURRENCY=8 has no effect: workers.count is set (tandem.toml:3)
        notice: LOG_LEVEL=debug is left to the application: TANDEM_LOG__FILTER (log.filter) is Tandem's own"#]]
    .assert_eq(&summary(&loaded));
    // What is as it would be, what names no address, and what another server reads, is not worth a word.
    let text = format!("{APP}command = [\"gunicorn\", \"main:app\"]\n");
    let same = [("PORT", "8000"), ("HOST", "myhost"), ("LOG_LEVEL", "INFO"), ("UVICORN_PORT", "80"), ("PGDATA", "")];
    let loaded = project(&[("tandem.toml", &text)]).environment(&same).loaded();
    assert_eq!(loaded.notices, [""; 0]);
}

#[test]
fn the_names_of_bitnamis_image_are_told_with_the_keys_to_write() {
    let text = format!("{APP}[postgres]\nuser = \"shop\"\n");
    let foreign = [
        ("POSTGRESQL_USERNAME", "shop"),
        ("POSTGRESQL_PASSWORD", "hush"),
        ("POSTGRESQL_DATABASE", "shop"),
        ("POSTGRESQL_EXTRA_FLAGS", "-c fsync=on"),
    ];
    let loaded = project(&[("tandem.toml", &text)]).environment(&foreign).loaded();
    let expected = [
        "POSTGRESQL_PASSWORD has no effect on Tandem: set TANDEM_POSTGRES__PASSWORD (postgres.password)",
        "POSTGRESQL_DATABASE has no effect on Tandem: set TANDEM_POSTGRES__DATABASE (postgres.database)",
        "POSTGRESQL_EXTRA_FLAGS has no effect on Tandem: set [postgres.settings] (postgres.settings)",
    ];
    assert_eq!(loaded.notices, expected, "the user holds already");
    // From `.env` too.
    let loaded = project(&[("tandem.toml", APP), (".env", "POSTGRESQL_PASSWORD=hush\n")]).loaded();
    assert_eq!(loaded.notices, expected[..1]);
}

#[test]
fn names_in_dotenv_are_told_too_and_an_attached_server_has_its_own_directory() {
    let loaded = project(&[("tandem.toml", APP), (".env", "PGDATA=/data\nUVICORN_WORKERS=4\n")]).loaded();
    assert_eq!(loaded.notices.len(), 2, "{:?}", loaded.notices);
    let loaded = project(&[("tandem.toml", APP)])
        .environment(&[("PGDATA", "/data"), ("DATABASE_URL", "postgresql://u:p@127.0.0.1:6432/d")])
        .loaded();
    assert!(!loaded.notices.iter().any(|notice| notice.contains("PGDATA")), "{:?}", loaded.notices);
}

#[test]
fn options_of_initdb_are_taken_as_a_shell_reads_them_and_what_tandem_decides_is_refused_by_name() {
    let with =
        |args: &'static str| project(&[("tandem.toml", APP)]).environment(&[("POSTGRES_INITDB_ARGS", args)]).load();
    let args = "--locale-provider=icu --icu-locale 'de-u-kn' -k -E UTF8 --lc-collate=C";
    let postgres = with(args).unwrap().settings.postgres;
    assert_eq!(
        postgres.initdb_args,
        ["--locale-provider=icu", "--icu-locale", "de-u-kn", "-k", "-E", "UTF8", "--lc-collate=C"]
    );
    for (args, words) in [
        ("--auth-host=trust", &["POSTGRES_INITDB_ARGS: --auth-host", "SCRAM"][..]),
        ("-A trust", &["-A", "SCRAM"]),
        ("-D /data", &["-D", "state_dir"]),
        ("--waldir=/wal", &["--waldir", "data directory"]),
        ("--username postgres", &["--username", "postgres.user"]),
        ("-c work_mem=1GB", &["-c", "[postgres.settings]"]),
        ("--set=work_mem=1GB", &["--set", "[postgres.settings]"]),
        ("--encoding=LATIN1", &["--encoding", "UTF8"]),
        ("-ELATIN1", &["-E", "UTF8"]),
        ("--wal-segsize=64", &["--wal-segsize", "16 MB"]),
        ("--allow-group-access", &["--allow-group-access"]),
        ("--locale", &["--locale", "value"]),
        ("--lokale=de", &["--lokale=de", "no such option"]),
        ("/data", &["/data", "no such option"]),
        ("'--locale=de", &["POSTGRES_INITDB_ARGS", "quote"]),
    ] {
        let problem = with(args).unwrap_err().to_string();
        words.iter().for_each(|word| assert!(problem.contains(word), "{args}: {word:?} is not in {problem}"));
    }
    // Of an attached server, nothing is refused and all is told.
    let attached = [("POSTGRES_INITDB_ARGS", "-A trust"), ("DATABASE_URL", "postgresql://u:p@127.0.0.1:6432/d")];
    let loaded = project(&[("tandem.toml", APP)]).environment(&attached).loaded();
    assert!(loaded.notices.iter().any(|notice| notice.contains("initdb_args")), "{:?}", loaded.notices);
    // And what stands in `.env` alone is told too.
    let loaded = project(&[("tandem.toml", APP), (".env", "POSTGRES_INITDB_ARGS=-k\n")]).loaded();
    let notice =
        "POSTGRES_INITDB_ARGS of .env has no effect on Tandem: set TANDEM_POSTGRES__INITDB_ARGS (postgres.initdb_args)";
    assert_eq!(loaded.notices, [notice]);
}

#[test]
fn a_directory_of_scripts_that_is_not_there_is_refused() {
    let with = |value: &str| {
        let text = format!("{APP}[postgres]\ninit_scripts = \"{value}\"\n");
        project(&[("tandem.toml", &text), ("init/1.sql", "")]).load()
    };
    let found = with("./init").unwrap().settings;
    assert_eq!(found.postgres.init_scripts, Some(found.directory.join("init")));
    assert_eq!(with("none").unwrap().settings.postgres.init_scripts, None);
    assert!(with("./nowhere").unwrap_err().to_string().contains("is not a directory"));
    assert!(with("init").unwrap_err().to_string().contains("a path with a / in it"));
}
