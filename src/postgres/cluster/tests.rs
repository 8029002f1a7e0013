use std::os::unix::fs::MetadataExt;
use std::time::Instant;

use nix::sys::signal::Signal;

use super::*;
use crate::exit::code_of;
use crate::postgres::test_support::{self, installation, place, provisioned, start};

fn entries(dir: &Path) -> Vec<String> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[tokio::test]
async fn a_cluster_is_made_once_and_served() {
    let place = place();
    let home = &place.home;
    let parent = home.data.parent().unwrap();
    fs::create_dir_all(parent.join(".staging-1/base")).unwrap();
    let begun = Instant::now();
    assert!(ensure(home, &installation().await, Making::default()).await.unwrap().fresh);
    println!("initdb + sync + rename: {:?}", begun.elapsed());
    assert_eq!(entries(parent), ["16"], "nothing staged is left");
    let meta = home.data.metadata().unwrap();
    assert_eq!((meta.uid(), meta.mode() & 0o777), (home.server_uid(), 0o700));

    let begun = Instant::now();
    assert!(!ensure(home, &installation().await, Making::default()).await.unwrap().fresh);
    let again = begun.elapsed();
    println!("ensure again: {again:?}");
    assert!(again.as_millis() < 20, "{again:?}");

    let begun = Instant::now();
    let server = start(home).await;
    println!("choose, configure, clear, spawn, ready: {:?}", begun.elapsed());
    assert_eq!(crate::postgres::server::running_port(&home.data), Some(server.port));
    provisioned(home, server.port, true).await;
    let log = server.stop(Signal::SIGINT).await;
    assert!(!log.contains("WARNING") && !log.contains("ERROR"), "{log}");

    let written = |name: &str| home.data.join(name).metadata().unwrap().mtime_nsec();
    let before = written("pg_hba.conf");
    start(home).await.stop(Signal::SIGINT).await;
    assert_eq!(written("pg_hba.conf"), before, "a file that says the right thing already is left alone");
}

#[tokio::test]
async fn an_interrupted_initdb_leaves_nothing() {
    let place = place();
    let home = &place.home;
    for milliseconds in [5, 60, 150] {
        let stopped = tokio::time::timeout(
            Duration::from_millis(milliseconds),
            ensure(home, &installation().await, Making::default()),
        )
        .await;
        assert!(stopped.is_err(), "initdb takes longer than that");
        assert_eq!(entries(home.data.parent().unwrap()), [""; 0], "after {milliseconds} ms");
    }
}

#[tokio::test]
async fn a_foreign_directory_is_left_alone() {
    let place = place();
    let home = &place.home;
    make_dir(&home.data, 0o700, home.server.as_ref()).unwrap();
    fs::write(home.data.join("PG_VERSION"), "15\n").unwrap();
    let error = ensure(home, &installation().await, Making::default()).await.unwrap_err();
    assert_eq!(code_of(&error), Code::CannotCreate);
    assert_eq!(entries(&home.data), ["PG_VERSION"]);
}

#[tokio::test]
async fn what_initdb_says_is_passed_on_and_nothing_is_left() {
    let place = place();
    let home = &place.home;
    let tools = tempfile::tempdir_in(place.dir.path()).unwrap();
    fs::set_permissions(tools.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let fake = Installation { bin: tools.path().to_path_buf(), ..installation().await };
    for (script, expected) in [
        ("touch half; echo 'could not write: No space left on device' >&2; exit 1", "about 60 MB"),
        ("touch half; echo 'Bus error' >&2; exit 1", "the disk quota is used up"),
        ("touch half; echo 'no such locale' >&2; exit 1", "initdb failed (exit status 1): no such locale"),
    ] {
        let program = tools.path().join("initdb");
        crate::forks::script(&program, &format!("#!/bin/sh\n{script}"));
        let error = ensure(home, &fake, Making::default()).await.unwrap_err();
        assert_eq!(code_of(&error), Code::CannotCreate);
        assert!(error.to_string().contains(expected), "{error}");
        assert_eq!(entries(home.data.parent().unwrap()), [""; 0]);
    }
}

#[tokio::test]
async fn every_kind_of_setting_reaches_the_server() {
    let place = place();
    let home = &place.home;
    ensure(home, &installation().await, Making::default()).await.unwrap();
    let mut postgres = test_support::settings();
    postgres.listen = "0.0.0.0".parse().unwrap();
    let odd = "it's \"50%\" \\n of C:\\x";
    postgres.settings = [("cluster_name".to_owned(), odd.to_owned())].into();
    let server = test_support::start_with(home, &postgres).await;
    use sea_orm::sqlx::{ConnectOptions, query_as};
    let options = crate::postgres::provision::superuser_options(home, server.port, "postgres");
    let mut connection = options.connect().await.unwrap();
    let row: (String, String, String, String, String) = query_as(
        "SELECT current_setting('cluster_name'), current_setting('recovery_init_sync_method'),
                current_setting('data_checksums'), current_setting('lc_messages'), version()",
    )
    .fetch_one(&mut connection)
    .await
    .unwrap();
    assert_eq!((row.0.as_str(), row.1.as_str(), row.2.as_str(), row.3.as_str()), (odd, "syncfs", "on", "C.UTF-8"));
    let broken: Vec<(String,)> =
        query_as("SELECT error FROM pg_hba_file_rules WHERE error IS NOT NULL UNION ALL SELECT error FROM pg_ident_file_mappings WHERE error IS NOT NULL UNION ALL SELECT error FROM pg_file_settings WHERE error IS NOT NULL")
            .fetch_all(&mut connection)
            .await
            .unwrap();
    assert_eq!(broken, []);
    server.stop(Signal::SIGINT).await;
}
