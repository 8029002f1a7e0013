use expect_test::expect;

use super::*;
use crate::postgres::test_support;

fn rendered(postgres: &Postgres, memory: u64) -> Result<Rendered, Failure> {
    let trusted_users = ["root".to_owned(), "postgres".to_owned()];
    let socket_dir = Path::new("/srv/ffe/.tandem/run/postgres");
    render(&Inputs {
        postgres,
        socket_dir,
        port: 5432,
        memory,
        shared: None,
        trusted_users: &trusted_users,
        archiving: None,
        statements: true,
        tls: None,
        purpose: Purpose::Durable,
    })
}

#[test]
fn the_three_files() {
    let mut postgres = test_support::settings();
    postgres.settings.insert("archive_command".into(), "cp '%p' \"C:\\x\"\nport = 1".into());
    postgres.settings.insert("shared_preload_libraries".into(), "auto_explain, pg_stat_statements".into());
    let files = rendered(&postgres, 8192 * MB).unwrap();
    expect![[r##"
        # Made by Tandem at every start: changes in this file are lost.
        # Change [postgres] or [postgres.settings] in Tandem's configuration instead.

        listen_addresses = '127.0.0.1'
        port = '5432'
        unix_socket_directories = '"/srv/ffe/.tandem/run/postgres"'
        max_connections = '20'
        password_encryption = 'scram-sha-256'
        shared_preload_libraries = 'pg_stat_statements,auto_explain'
        recovery_init_sync_method = 'syncfs'
        log_destination = 'stderr'
        logging_collector = 'off'
        log_line_prefix = '[%p] %e %q(%u@%d) '
        log_checkpoints = 'off'
        log_timezone = 'UTC'
        timezone = 'UTC'
        datestyle = 'iso, mdy'
        lc_messages = 'C.UTF-8'
        lc_monetary = 'C.UTF-8'
        lc_numeric = 'C.UTF-8'
        lc_time = 'C.UTF-8'
        default_text_search_config = 'pg_catalog.english'
        shared_buffers = '1024MB'
        effective_cache_size = '4096MB'
        work_mem = '52428kB'
        maintenance_work_mem = '512MB'
        max_wal_size = '1GB'
        min_wal_size = '80MB'

        # [postgres.settings]
        archive_command = 'cp ''%p'' "C:\\x"\nport = 1'
    "##]]
    .assert_eq(&files.conf);
    expect![[r#"
        # Made by Tandem at every start: changes in this file are lost.
        # The first line that fits decides.
        local all         postgres                  peer map=tandem
        local replication postgres                  peer map=tandem
        local all         all                       scram-sha-256
        host  all         all        127.0.0.1/32   scram-sha-256
        host  all         all        ::1/128        scram-sha-256
    "#]]
    .assert_eq(&files.hba);
    expect![[r##"
        # Made by Tandem at every start: changes in this file are lost.
        # Operating-system users that may be the database superuser over the unix socket.
        tandem "root" postgres
        tandem "postgres" postgres
    "##]]
    .assert_eq(&files.ident);
}

#[test]
fn memory_is_shared_within_bounds() {
    let mut postgres = test_support::settings();
    let mut sizes = |memory: u64, shared_buffers: Option<u64>| {
        postgres.shared_buffers = shared_buffers;
        let conf = rendered(&postgres, memory).unwrap().conf;
        let value = |name: &str| conf.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().to_owned();
        [
            value("shared_buffers = "),
            value("effective_cache_size = "),
            value("work_mem = "),
            value("maintenance_work_mem = "),
        ]
        .join(" ")
    };
    let table = [
        sizes(32 * MB, None),
        sizes(512 * MB, None),
        sizes(16_384 * MB, None),
        sizes(1024 * 1024 * MB, None),
        sizes(16_384 * MB, Some(MB + 1024)),
    ];
    expect![[r#"
        '16MB' '32MB' '4MB' '16MB'
        '128MB' '256MB' '4MB' '32MB'
        '1024MB' '8192MB' '64MB' '1024MB'
        '1024MB' '524288MB' '64MB' '1024MB'
        '1025kB' '8192MB' '64MB' '1024MB'"#]]
    .assert_eq(&table.join("\n"));
}

#[test]
fn another_address_opens_the_door_and_keeps_loopback() {
    let mut postgres = test_support::settings();
    let mut seen = String::new();
    for listen in ["0.0.0.0", "10.1.2.3", "::", "::1"] {
        postgres.listen = listen.parse().unwrap();
        let files = rendered(&postgres, 1024 * MB).unwrap();
        let last = files.hba.lines().last().unwrap_or_default();
        let first = files.conf.lines().find(|line| line.starts_with("listen")).unwrap_or_default();
        let _ = writeln!(seen, "{first} | {last} | {}", client_address(postgres.listen));
    }
    expect![[r#"
        listen_addresses = '0.0.0.0' | host  all         all        0.0.0.0/0      scram-sha-256 | 127.0.0.1
        listen_addresses = '127.0.0.1,10.1.2.3' | host  all         all        0.0.0.0/0      scram-sha-256 | 127.0.0.1
        listen_addresses = '::' | host  all         all        ::/0           scram-sha-256 | ::1
        listen_addresses = '::1' | host  all         all        ::1/128        scram-sha-256 | ::1
    "#]]
    .assert_eq(&seen);
}

#[test]
fn a_setting_cannot_smuggle_another_one_in() {
    let mut postgres = test_support::settings();
    for name in ["a b", "x\nport", "", "port", "Data_Directory", "1st", "a..b"] {
        postgres.settings = [(name.to_owned(), "1".to_owned())].into();
        assert_eq!(rendered(&postgres, MB).unwrap_err().code, Code::Config, "{name:?}");
    }
    postgres.settings = [("auto_explain.log_min_duration".to_owned(), "1s".to_owned())].into();
    assert!(rendered(&postgres, MB).unwrap().conf.ends_with("auto_explain.log_min_duration = '1s'\n"));
}

#[test]
fn wal_is_archived_where_that_is_asked_for() {
    let archiving =
        Archiving { command: "tandem wal push --archive '/a b' \"%p\"".into(), timeout: Duration::from_secs(60) };
    let files = render(&Inputs {
        postgres: &test_support::settings(),
        socket_dir: Path::new("/run"),
        port: 5432,
        memory: 8192 * MB,
        shared: None,
        trusted_users: &[],
        archiving: Some(&archiving),
        statements: true,
        tls: None,
        purpose: Purpose::Durable,
    })
    .unwrap();
    let lines: Vec<&str> =
        files.conf.lines().filter(|line| line.contains("archive") || line.contains("wal_")).collect();
    expect![[r#"
        max_wal_size = '1GB'
        min_wal_size = '80MB'
        wal_level = 'replica'
        max_wal_senders = '10'
        archive_mode = 'on'
        archive_command = 'tandem wal push --archive ''/a b'' "%p"'
        archive_timeout = '60'"#]]
    .assert_eq(&lines.join("\n"));
}

#[test]
fn parallel_queries_share_files_where_shared_memory_is_too_small_for_them() {
    let kind = |settings: &[(&str, &str)], shared: Option<u64>| {
        let mut postgres = test_support::settings();
        postgres.settings = settings.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        let files = render(&Inputs {
            postgres: &postgres,
            socket_dir: Path::new("/run"),
            port: 5432,
            memory: 1024 * MB,
            shared,
            trusted_users: &[],
            archiving: None,
            statements: true,
            tls: None,
            purpose: Purpose::Durable,
        });
        let files = files.unwrap();
        let mut kinds = files.conf.lines().filter_map(|line| line.strip_prefix("dynamic_shared_memory_type = "));
        (kinds.next_back().map(str::to_owned), files.notice.is_some())
    };
    let mmap = || (Some("'mmap'".to_owned()), true);
    // 20 connections: work_mem is 6.4 MB, of which 32 times may be shared.
    assert_eq!(kind(&[], Some(64 * MB)), mmap());
    assert_eq!(kind(&[], Some(0)), mmap());
    assert_eq!(kind(&[], Some(205 * MB)), (None, false));
    assert_eq!(kind(&[], None), (None, false));
    assert_eq!(kind(&[("work_mem", "2MB")], Some(64 * MB)), (None, false));
    assert_eq!(kind(&[("work_mem", "1GB")], Some(1024 * MB)), mmap());
    assert_eq!(kind(&[("work_mem", "4096")], Some(64 * MB)), mmap());
    assert_eq!(kind(&[("work_mem", "a lot")], Some(64 * MB)), mmap());
    let chosen = [("Dynamic_Shared_Memory_Type", "posix")];
    assert_eq!(kind(&chosen, Some(0)), (None, false), "written as it was given");
}

#[test]
fn what_alter_system_set_is_told_and_does_not_move_the_server() {
    let mut postgres = test_support::settings();
    postgres.settings = [("work_mem".to_owned(), "8MB".to_owned()), ("jit".to_owned(), "off".to_owned())].into();
    let conf = rendered(&postgres, 8192 * MB).unwrap().conf;
    let owned: BTreeMap<_, _> = owned(&conf, Path::new("/d")).into_iter().collect();
    let get = |name: &str| owned.get(name).map(String::as_str);
    assert_eq!((get("port"), get("max_connections")), (Some("5432"), Some("20")));
    assert_eq!(get("unix_socket_directories"), Some("\"/srv/ffe/.tandem/run/postgres\""));
    assert_eq!((get("hba_file"), get("work_mem")), (Some("/d/pg_hba.conf"), None));

    let altered = conf::parse(
        "port = '6543'\nwork_mem = '4MB'\njit = 'off'\nlogging_collector = 'on'\ncheckpoint_timeout = '1h'",
    );
    let told = overrides(&altered, &postgres);
    assert_eq!(told.len(), 3, "{told:?}");
    assert!(
        told[0].contains("logging_collector") && told[1].contains("port = '6543', which does not hold"),
        "{told:?}"
    );
    assert!(told[2].contains("overrides \"8MB\" in [postgres.settings]; `tandem settings reset work_mem`"), "{told:?}");
}
