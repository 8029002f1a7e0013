use nix::sys::signal::Signal;
use nix::sys::time::TimeValLike;
use sea_orm::sqlx::{ConnectOptions, raw_sql};

use super::*;
use crate::plan::Secret;
use crate::postgres::cluster::{Making, ensure};
use crate::postgres::test_support::{installation, place, provisioned, start};
use crate::process::signal;

const DEADLINE: Duration = Duration::from_secs(5);

fn cpu() -> Duration {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_THREAD).unwrap();
    let microseconds = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Duration::from_micros(microseconds.cast_unsigned())
}

#[tokio::test]
async fn a_sample_tells_what_the_server_is_and_when_it_hangs_or_dies() {
    let place = place();
    let home = &place.home;
    ensure(home, &installation().await, Making::default()).await.unwrap();
    let server = start(home).await;
    let password = provisioned(home, server.port, true).await;
    let mut probe = Probe::managed(home, server.port, "ffe");
    let first = probe.sample(DEADLINE).await;
    assert_eq!((first.available, first.hung, &first.error), (true, false, &None));
    assert_eq!((first.connections, first.max_connections, first.schema_version), (1, Some(20), None));

    let mut connection = superuser_options(home, server.port, "ffe").connect().await.unwrap();
    let ddl = "SET search_path = public; CREATE TABLE alembic_version AS SELECT '004_add_indexes' AS version_num; \
               CREATE TABLE api_keys ()";
    raw_sql(ddl).execute(&mut connection).await.unwrap();
    assert_eq!(probe.sample(DEADLINE).await.tables, [""; 0], "slow facts are kept");
    probe.refresh();
    let second = probe.sample(DEADLINE).await;
    assert_eq!(second.tables, ["alembic_version", "api_keys"]);
    assert_eq!((second.schema_version.as_deref(), second.connections), (Some("004_add_indexes"), 2));

    // A lock on the table is not a hanging server.
    raw_sql("BEGIN; LOCK alembic_version").execute(&mut connection).await.unwrap();
    probe.refresh();
    let locked = probe.sample(DEADLINE).await;
    assert_eq!((locked.available, locked.schema_version.as_deref()), (true, Some("004_add_indexes")));
    raw_sql("ROLLBACK").execute(&mut connection).await.unwrap();

    // Existing backends still answer while their postmaster is stopped.
    let pid = server.child.pid();
    signal(pid, Signal::SIGSTOP);
    let hung = probe.sample(Duration::from_millis(50)).await;
    assert!(!hung.available && hung.hung && hung.error.unwrap().contains("hangs"));
    signal(pid, Signal::SIGCONT);
    assert!(probe.sample(DEADLINE).await.available, "and again, over a new connection");

    attached(server.port, &password.secret).await;
    measure(&mut probe).await;
    drop(connection);
    let log = server.stop(Signal::SIGINT).await;
    for noise in ["startup packet", "EOF", "unexpected", "permission denied"] {
        assert!(!log.contains(noise), "{log}");
    }
    assert!(log.matches("SSL").count() <= 1, "only the one that hung may leave a line: {log}");
    let dead = probe.sample(DEADLINE).await;
    assert!(!dead.available && !dead.hung && dead.error.is_some());
}

async fn attached(port: u16, password: &Secret) {
    let mut url = DatabaseUrl::parse(&format!("postgresql+psycopg2://ffe@127.0.0.1:{port}/ffe")).unwrap();
    url.password = Some(password.clone());
    let sample = Probe::attached(&url).sample(DEADLINE).await;
    assert!(sample.available, "{sample:?}");
    url.password = Some(Secret::new("not/the%one"));
    let refused = Probe::attached(&url).sample(DEADLINE).await;
    assert!(!refused.available && !format!("{refused:?}").contains("not/the"), "{refused:?}");
}

async fn measure(probe: &mut Probe) {
    const SAMPLES: u32 = 200;
    probe.sample(DEADLINE).await;
    let (begun, before) = (Instant::now(), cpu());
    for _ in 0..SAMPLES {
        assert!(probe.sample(DEADLINE).await.available);
    }
    println!("one sample: {:?}, of it our CPU {:?}", begun.elapsed() / SAMPLES, (cpu() - before) / SAMPLES);
}
