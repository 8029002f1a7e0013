use std::time::Instant;

use nix::sys::signal::Signal;
use sea_orm::sqlx::query_scalar;

use super::*;
use crate::exit::code_of;
use crate::plan::{CommandLine, Secret};
use crate::postgres::cluster::{Making, ensure};
use crate::postgres::test_support::{self, installation, place, provisioned, start, start_with};
use crate::process;

const EVERY_SPECIAL_CHARACTER: &str = "p@ss:w/o?r#d%[]&=+ \"'\\é\u{2168}`{}|^<>~-_.!$*(),;";

/// Log in with libpq, as the application's driver does.
async fn psql(port: u16, user: &str, password: &str, database: &str) -> Result<String, String> {
    let command = CommandLine::new(installation().await.tool("psql"))
        .args(["-XAtc", "SELECT current_user, current_database()", "-h", "127.0.0.1", "-p", &port.to_string()])
        .args(["-U", user, "-d", database])
        .env("PGPASSWORD", password);
    let finished = process::run(&command, std::time::Duration::from_secs(10)).await.unwrap();
    if finished.exit.success() { Ok(finished.stdout.trim().to_owned()) } else { Err(finished.stderr) }
}

fn given(text: &str) -> Password {
    Password { secret: Secret::new(text), generated: false }
}

#[tokio::test]
async fn a_role_a_database_and_an_extension_and_nothing_twice() {
    let place = place();
    let home = &place.home;
    ensure(home, &installation().await, Making::default()).await.unwrap();
    let server = start(home).await;
    let begun = Instant::now();
    let password = provisioned(home, server.port, true).await;
    println!("provision: {:?}", begun.elapsed());
    let begun = Instant::now();
    provisioned(home, server.port, false).await;
    println!("provision again: {:?}", begun.elapsed());
    assert_eq!(psql(server.port, "ffe", password.secret.expose(), "ffe").await.unwrap(), "ffe|ffe");
    assert!(psql(server.port, "ffe", "wrong", "ffe").await.unwrap_err().contains("password authentication failed"));
    assert!(psql(server.port, "postgres", "", "ffe").await.is_err(), "the superuser has no password");

    let mut connection = superuser_options(home, server.port, "ffe").connect().await.unwrap();
    let mut ask = async |sql: &'static str| query_scalar::<_, String>(sql).fetch_one(&mut connection).await.unwrap();
    assert_eq!(ask("SELECT rolsuper::text || rolcreaterole FROM pg_roles WHERE rolname = 'ffe'").await, "falsefalse");
    assert_eq!(
        ask("SELECT datcollate || pg_encoding_to_char(encoding) FROM pg_database WHERE datname = 'ffe'").await,
        "C.UTF-8UTF8"
    );
    let before = ask("SELECT rolpassword FROM pg_authid WHERE rolname = 'ffe'").await;
    assert!(before.starts_with("SCRAM-SHA-256$1:"));
    let seen = ask("SELECT string_agg(query, ' ') FROM public.pg_stat_statements").await;
    assert!(!seen.contains(password.secret.expose()));
    let log = server.stop(Signal::SIGINT).await;
    assert!(!log.contains(password.secret.expose()));
}

#[tokio::test]
async fn a_password_is_followed_whatever_it_holds() {
    let place = place();
    let home = &place.home;
    ensure(home, &installation().await, Making::default()).await.unwrap();
    let mut postgres = test_support::settings();
    postgres.settings = [("log_statement".to_owned(), "all".to_owned())].into();
    let server = start_with(home, &postgres).await;
    let (user, database) = ("we\"ird user", "my \"db\"; DROP");
    let mut verifiers = Vec::new();
    for (index, text) in ["first", EVERY_SPECIAL_CHARACTER, EVERY_SPECIAL_CHARACTER].into_iter().enumerate() {
        let password = given(text);
        provision(
            home,
            server.port,
            &Wanted { user, password: &password, database, reads_all_stats: true },
            index == 0,
        )
        .await
        .unwrap();
        assert_eq!(psql(server.port, user, text, database).await.unwrap(), format!("{user}|{database}"));
        let mut connection = superuser_options(home, server.port, database).connect().await.unwrap();
        let verifier = "SELECT rolpassword FROM pg_authid WHERE rolname = $1";
        verifiers.push(query_scalar::<_, String>(verifier).bind(user).fetch_one(&mut connection).await.unwrap());
    }
    assert!(verifiers[1].starts_with("SCRAM-SHA-256$4096:") && verifiers[0] != verifiers[1]);
    assert_eq!(verifiers[1], verifiers[2], "the same password is not set again");
    // The application may be the superuser, as in many a Compose file.
    let password = given("of the superuser");
    provision(
        home,
        server.port,
        &Wanted { user: SUPERUSER, password: &password, database, reads_all_stats: true },
        false,
    )
    .await
    .unwrap();
    assert!(psql(server.port, SUPERUSER, "of the superuser", database).await.is_ok());
    let log = server.stop(Signal::SIGINT).await;
    assert!(log.contains("ALTER ROLE") && !log.contains("p@ss:w") && !log.contains("of the superuser"), "{log}");
}

#[tokio::test]
async fn a_cluster_without_fsync_is_refused() {
    let place = place();
    let home = &place.home;
    ensure(home, &installation().await, Making::default()).await.unwrap();
    for name in ["fsync", "full_page_writes"] {
        let mut postgres = test_support::settings();
        postgres.settings = [(name.to_owned(), "off".to_owned())].into();
        let server = start_with(home, &postgres).await;
        let password = given("x");
        let wanted = Wanted { user: "ffe", password: &password, database: "ffe", reads_all_stats: true };
        let error = provision(home, server.port, &wanted, true).await.unwrap_err();
        assert_eq!(code_of(&error), Code::Config);
        server.stop(Signal::SIGINT).await;
    }
}

/// A server that takes connections and says `first` to each, and nothing more.
async fn mute(listener: tokio::net::UnixListener, first: &'static [u8]) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut open = Vec::new();
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut startup = [0; 1024];
        assert!(stream.read(&mut startup).await.unwrap() > 0);
        stream.write_all(first).await.unwrap();
        open.push(stream);
    }
}

#[tokio::test]
async fn a_server_that_hangs_holds_up_neither_the_boot_nor_the_checkpoint() {
    let place = place();
    let (home, port) = (&place.home, 5999);
    let password = given("x");
    let wanted = Wanted { user: "ffe", password: &password, database: "ffe", reads_all_stats: true };
    // A stopped postmaster, and one that was stopped after it had let the session in (AuthenticationOk, ReadyForQuery).
    for first in [&b""[..], b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I"] {
        let socket = home.socket(port);
        let serving = mute(tokio::net::UnixListener::bind(&socket).unwrap(), first);
        let asking = async {
            tokio::time::pause();
            for fresh in [true, false] {
                let error = provision(home, port, &wanted, fresh).await.unwrap_err();
                assert!(format!("{error:#}").contains("no answer within"), "{error:#}");
                assert_eq!(code_of(&error), Code::Temporary);
            }
            crate::postgres::checkpoint::checkpoint(home.clone(), port).await;
            tokio::time::resume();
        };
        // The clock is paused: it goes on to the next limit, whose that may be.
        let asking = tokio::time::timeout(std::time::Duration::from_secs(3600), asking);
        tokio::select! {
            asked = asking => asked.expect("each question has a limit of its own"),
            () = serving => unreachable!("it has no end"),
        }
        std::fs::remove_file(socket).unwrap();
    }
}
