use super::*;

fn said(code: &[u8; 5], text: &str) -> Answer {
    Answer { from: AnswerSource::Server(*code), text: text.into() }
}

fn own(answer: &Answer) -> Meaning {
    answer.meaning(AskedServer::Own { postgres: Path::new("/pg/bin/postgres"), data: Path::new("/srv/data") })
}

#[test]
fn what_passes_is_waited_for_and_what_lasts_is_not() {
    let passing = [
        "57P03", "57P01", "57P02", "53300", "53200", "08006", "08001", "08P01", "40001", "55000", "55006", "57014",
        "XX000", "58030",
    ];
    for code in passing {
        let answer = said(code.as_bytes().try_into().unwrap(), "whatever it says");
        assert_eq!(own(&answer), Meaning::Passing, "{code}");
    }
    assert_eq!(own(&Answer { from: AnswerSource::Network, text: "Connection refused".into() }), Meaning::Passing);
    let full = said(b"53100", "could not extend file: No space left on device");
    assert_eq!((own(&full), full.fault()), (Meaning::Full, Fault::Full(None)));
    let quota = said(b"XX000", "could not write block 7 in file \"base/5/1\": Disk quota exceeded");
    assert_eq!((own(&quota), quota.fault()), (Meaning::Full, Fault::QuotaUsed));

    let lasting: [(&[u8; 5], &str, Code, &str); 12] = [
        (
            b"28000",
            "role \"postgres\" does not exist",
            Code::Config,
            "CREATE ROLE postgres SUPERUSER LOGIN' | /pg/bin/postgres --single -D /srv/data",
        ),
        (b"28000", "role \"postgres\" is not permitted to log in", Code::Config, "ALTER ROLE postgres LOGIN"),
        (b"28P01", "password authentication failed", Code::Config, "postgresql.auto.conf"),
        (b"3D000", "database \"postgres\" does not exist", Code::Config, "CREATE DATABASE postgres"),
        (b"42704", "unrecognized configuration parameter \"x\"", Code::Config, "[postgres.settings]"),
        (b"22023", "invalid value for parameter", Code::Config, "[postgres.settings]"),
        (b"58P01", "could not access file \"nosuch\": No such file or directory", Code::Config, "preload libraries"),
        (b"58P01", "could not open file \"base/5/1259\": No such file or directory", Code::GaveUp, "restore a backup"),
        (b"42501", "could not open file \"base/5/1259\": Permission denied", Code::GaveUp, "chown -R"),
        (b"42501", "permission denied for database app", Code::Config, "[postgres.settings]"),
        (b"XX001", "invalid page in block 0", Code::GaveUp, "restore a backup"),
        (b"XX000", "database locale is incompatible with operating system", Code::Config, "locale-gen"),
    ];
    for (code, text, exit, way) in lasting {
        let Meaning::Lasting(lasting) = own(&said(code, text)) else { panic!("{text} passes") };
        assert_eq!(lasting.code, exit, "{text}");
        assert!(lasting.why.starts_with(text) && lasting.why.contains(way), "{}", lasting.why);
    }
}

#[test]
fn a_server_elsewhere_has_ways_out_of_its_own_and_no_password_is_shown() {
    let url = DatabaseUrl::parse("postgresql://app:hunter2@db.example/shop").unwrap();
    let bare = DatabaseUrl::parse("postgresql://app@db.example/shop").unwrap();
    let cases = [
        (said(b"28P01", "password authentication failed for user \"app\""), &url, "the password in the URL (app)"),
        (said(b"28P01", "password authentication failed for user \"app\""), &bare, "the URL has no password"),
        (said(b"3D000", "database \"shop\" does not exist"), &url, "CREATE DATABASE \"shop\" OWNER \"app\""),
        (said(b"28000", "no pg_hba.conf entry for host"), &url, "pg_hba.conf"),
        (said(b"42501", "permission denied for database \"shop\""), &url, "GRANT CONNECT"),
        (said(b"08P01", "unsupported startup parameter: extra_float_digits"), &url, "pooler"),
        (Answer { from: AnswerSource::Tls, text: "server does not support TLS".into() }, &url, "sslmode"),
    ];
    for (answer, url, way) in cases {
        let Meaning::Lasting(lasting) = answer.meaning(AskedServer::Other(url)) else { panic!("{answer:?} passes") };
        assert_eq!(lasting.code, Code::Config);
        assert!(lasting.why.contains(way) && !lasting.why.contains("hunter2"), "{}", lasting.why);
    }
}

#[test]
fn the_health_port_is_told_in_fixed_words() {
    let shown = |answer: Answer| answer.fault().to_string();
    assert_eq!(shown(said(b"57P03", "the database system is starting up")), "the server is starting or recovering");
    assert_eq!(shown(said(b"28P01", "for user \"secret\"")), "the password is refused (SQLSTATE 28P01)");
    assert_eq!(shown(said(b"53300", "too many clients")), "the server answered with SQLSTATE 53300");
    assert_eq!(shown(Answer { from: AnswerSource::Tls, text: "x".into() }), "the two sides do not agree on TLS");
}
