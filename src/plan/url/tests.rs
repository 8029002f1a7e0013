use super::*;

fn parse(text: &str) -> DatabaseUrl {
    DatabaseUrl::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

#[test]
fn every_special_character_survives_and_none_is_shown() {
    let password = "p@ss:w/o?r#d%[]&=+ \"'\\é`{}|^<>~-_.!$*(),;";
    let url = DatabaseUrl {
        scheme: "postgresql".into(),
        user: "ffe user".into(),
        password: Some(Secret::new(password)),
        host: "127.0.0.1".into(),
        port: 5433,
        database: "ffe".into(),
        parameters: Vec::new(),
    };
    let back = DatabaseUrl::parse(url.expose().expose()).unwrap();
    assert_eq!(back, url);
    assert_eq!(url.to_string(), "postgresql://ffe%20user:********@127.0.0.1:5433/ffe");
    assert!(!format!("{url:?} {:?}", url.password).contains("p@ss"));
}

#[test]
fn sockets_and_defaults_are_read() {
    let url = parse("postgresql+psycopg2://u:p@/db?host=/run/pg");
    assert_eq!((url.host.as_str(), url.port, url.parameters.len()), ("/run/pg", 5432, 0));
    let text = "postgresql://u:p@/db?host=/run/pg&port=6000&sslmode=disable";
    let url = parse(text);
    assert_eq!((url.port, url.parameter("sslmode"), url.expose().expose()), (6000, Some("disable"), text));
    assert_eq!(parse("postgresql:///db?host=/run/pg").host, "/run/pg");
    assert!(DatabaseUrl::parse("mysql://h/db").is_err());
}

/// Host, port, user, password and database of one server, in every way that clients agree on.
#[test]
fn the_query_wins_and_is_settled() {
    for (text, settled) in [
        ("postgresql://bob:pw@127.0.0.1:1/db?host=127.0.0.2&port=2", "postgresql://bob:pw@127.0.0.2:2/db"),
        ("postgresql://bob:pw@127.0.0.1/db?port=2", "postgresql://bob:pw@127.0.0.1:2/db"),
        ("postgresql://bob:pw@h/db?user=eve&password=a%2Bb+c&dbname=x", "postgresql://eve:a%2Bb%2Bc@h:5432/x"),
        ("postgresql://bob:pw@h/db?database=x", "postgresql://bob:pw@h:5432/x"),
        ("postgres://localhost/db?host=/cloudsql/a:b:c", "postgres://@/db?host=/cloudsql/a:b:c&port=5432"),
        ("postgresql:///app?host=/run/pg&user=u&password=p", "postgresql://u:p@/app?host=/run/pg&port=5432"),
        ("postgresql://u:p@%2Frun%2Fpg/app", "postgresql://u:p@/app?host=/run/pg&port=5432"),
        ("postgresql://u@%2Frun%2Fpg:6000/app", "postgresql://u@/app?host=/run/pg&port=6000"),
        ("postgresql://u@/a?host=/a b/100%25/c+d", "postgresql://u@/a?host=/a%20b/100%25/c%2Bd&port=5432"),
        ("postgresql://u@[::1]:7/a", "postgresql://u@[::1]:7/a"),
        ("postgresql://u@[fe80::1%25lo]:7/a", "postgresql://u@[fe80::1%25lo]:7/a"),
        ("postgresql+psycopg2://u@[fe80::1%25lo]:7/a", "postgresql+psycopg2://u@[fe80::1%lo]:7/a"),
        ("postgresql://u@[::ffff:127.0.0.1]/a", "postgresql://u@[::ffff:127.0.0.1]:5432/a"),
        ("postgresql://u@/a?host=::1", "postgresql://u@[::1]:5432/a"),
        ("postgresql://u@/a?hostaddr=10.0.0.1", "postgresql://u@10.0.0.1:5432/a"),
        ("postgresql://u@10.0.0.1/a?hostaddr=10.0.0.1", "postgresql://u@10.0.0.1:5432/a"),
        ("postgresql://u@h/a?host=&port=", "postgresql://u@h:5432/a"),
        ("postgresql://u@h/a?user=a@b", "postgresql://a%40b@h:5432/a"),
        ("postgresql://h/%2Fa%3Fb", "postgresql://@h:5432/%2Fa%3Fb"),
    ] {
        let url = parse(text);
        assert_eq!(url.expose().expose(), settled);
        assert_eq!(parse(settled), url, "{text} is read as it is written");
    }
    let shown = parse("postgresql://u@h/db?password=secret&a=b&sslpassword=also").to_string();
    assert_eq!(shown, "postgresql://u:********@h:5432/db?a=b");
}

#[test]
fn what_cannot_be_one_server_is_refused_with_its_reason() {
    for (text, reason) in [
        ("postgresql://u:p@h1:1,h2:2/d", "several servers"),
        ("postgresql://u:p@h1,h2/d", "several servers"),
        ("postgresql://u:p@/d?host=h1,h2", "several servers"),
        ("postgresql://u:p@/d?host=h1&host=h2", "several servers"),
        ("postgresql://u:p@/d?host=/x/com,ma", "several servers"),
        ("postgresql://u:p@%2Fx%2Fcom%2Cma/d", "several servers"),
        ("postgresql://u:p@h/d?port=1,2", "several servers"),
        ("postgresql://u:p@h/d?hostaddr=10.0.0.1", "host h and hostaddr 10.0.0.1"),
        ("postgresql://u:p@/d?hostaddr=name", "not an IP address"),
        ("postgresql://u:p@h/d?service=prod", "`service`"),
        ("postgresql://u:p@h/d?passfile=/x", "`passfile`"),
        ("postgresql://u:p@h/d?requiressl=1", "`requiressl`"),
        ("postgresql://u:p@h/d?sslmode=requird", "sslmode=requird is none of disable, allow"),
        ("postgresql://u:p@h/d?ssl=true", "ssl=true is none of disable, allow"),
        ("postgresql://u:p@h/d?ssl=require&sslmode=disable", "require and disable"),
        ("postgresql://u:p@h/d?sslmode=require&sslmode=disable", "`sslmode` twice"),
        ("postgresql://u:p@h:0/d", "port"),
        ("postgresql://u:p@h:99999/d", "port"),
        ("postgresql://u:p@::1/d", "more than one `:`"),
        ("postgresql://u:p@[::1/d", "never closed"),
        ("postgresql://u:p@%40abstract/d", "abstract"),
        ("postgresql://u:p@h/d?what", "name=value"),
        ("postgresql://u:p%00@h/d", "UTF-8"),
        ("postgresql://u:p@/d", "no host"),
        ("postgresqlx://h/d", "scheme"),
        ("h/d", "no scheme"),
    ] {
        let error = DatabaseUrl::parse(text).unwrap_err();
        assert!(error.to_string().contains(reason), "{text}: {error}");
        let encode = error.help().contains("percent-encoded");
        assert!(!(encode && error.to_string().contains("several")), "{text}: {}", error.help());
    }
}

#[test]
fn tls_is_asked_for_in_the_words_of_each_driver() {
    let url = parse("postgresql+asyncpg://u:p@h/d?ssl=require&prepared_statement_cache_size=0");
    assert_eq!(url.parameter("sslmode"), Some("require"));
    assert_eq!(url.expose().expose(), "postgresql+asyncpg://u:p@h:5432/d?ssl=require&prepared_statement_cache_size=0");
    assert_eq!(
        url.with_scheme("postgresql+psycopg2").expose().expose(),
        "postgresql+psycopg2://u:p@h:5432/d?sslmode=require"
    );
    let url = parse("postgresql://u:p@h/d?sslmode=verify-full&sslrootcert=/a/ca.pem&channel_binding=require&x=1");
    assert_eq!(
        url.with_scheme("postgresql+asyncpg").expose().expose(),
        "postgresql+asyncpg://u:p@h:5432/d?ssl=verify-full&x=1"
    );
    assert_eq!(
        url.variables(),
        [("PGCHANNELBINDING", "require"), ("PGSSLMODE", "verify-full"), ("PGSSLROOTCERT", "/a/ca.pem")]
    );
}

#[test]
fn settings_of_the_session_are_read_as_the_server_would() {
    let of = |text| session_settings(text);
    assert_eq!(of("-csearch_path=a"), [("search_path".into(), "a".into())]);
    assert_eq!(
        of(r"-c role=app\ owner --statement-timeout=5s  -d 3"),
        [("role".into(), "app owner".into()), ("statement_timeout".into(), "5s".into())]
    );
    assert!(of("").is_empty());
    let url = parse("postgresql://h/d?options=-c%20geqo%3Doff");
    assert_eq!(url.session_settings(), [("geqo".into(), "off".into())]);
    // libpq takes no second `=` in a parameter; SQLAlchemy does, and Alembic's configuration takes no `%`.
    assert_eq!(url.expose().expose(), "postgresql://@h:5432/d?options=-c%20geqo%3Doff");
    let named = parse("postgresql+psycopg://h/d?options=-cgeqo%3Doff");
    assert_eq!(named.expose().expose(), "postgresql+psycopg://@h:5432/d?options=-cgeqo=off");
}

#[test]
fn one_more_setting_of_the_session_leaves_those_that_the_url_asks_for() {
    let url = parse("postgresql://h/d?options=-csearch_path%3Dtenant1&connect_timeout=5");
    let more = url.with_session_setting("lock_timeout", "3000");
    let settings = [("search_path".into(), "tenant1".into()), ("lock_timeout".into(), "3000".into())];
    assert_eq!(more.session_settings(), settings);
    assert_eq!(more.parameter("connect_timeout"), Some("5"));
    assert_eq!(parse("postgresql://h/d").with_session_setting("geqo", "off").parameter("options"), Some("-c geqo=off"));
}
