use super::*;
use crate::config::{Debugger, Factory, Preload, Readiness, WorkerSocket};

fn workers() -> Workers {
    Workers {
        app: "app:app".into(),
        app_dir: ".".into(),
        dir: None,
        reload_dirs: Vec::new(),
        debugger: Debugger::None,
        count: 1,
        listen: vec![crate::plan::Place::Every(0)],
        serving: crate::config::Serving {
            socket_files: crate::config::SocketFiles { mode: 0o666, owner: None },
            tls: None,
            uvicorn: std::collections::BTreeMap::new(),
        },
        backlog: 1,
        url_scheme: "postgresql".into(),
        env: std::collections::BTreeMap::new(),
        drop_env: crate::config::DropEnv::default(),
        no_new_privs: true,
        preimport: vec![],
        access_log: false,
        event_loop: "auto".into(),
        run_as: None,
        ready_limit: Duration::from_secs(60),
        watchdog: Some(Duration::from_secs(15)),
        restart_intensity: 5,
        restart_period: Duration::from_secs(60),
        backoff_first: Duration::ZERO,
        backoff_max: Duration::ZERO,
        surge: 1,
        drain: Duration::from_secs(30),
        drain_busy: None,
        drain_streams: Some(Duration::from_secs(30)),
        factory: Factory::Auto,
        lifespan: "auto".into(),
        interface: "auto".into(),
        check: None,
        max_requests: 0,
        max_requests_jitter: 0,
        max_memory: None,
        memory_kind: MemoryKind::Pss,
        max_age: None,
        preload: Preload::Off,
        command: None,
        ready: Readiness::Notify,
        socket: WorkerSocket::Inherited,
        reload_include: vec![],
    }
}

fn due(workers: &Workers, facts: Facts) -> Option<String> {
    match judge(workers, &facts) {
        Diagnosis::Due(_, reason) => Some(reason),
        Diagnosis::Fine => None,
        Diagnosis::Hangs => panic!("{facts:?} hangs"),
    }
}

#[test]
fn silence_counts_from_the_limit_on_that_the_worker_was_told() {
    let told = Facts { watchdog: Some(Duration::from_secs(15)), ..Facts::default() };
    let silent = |seconds| Facts { silent: Some(Duration::from_secs(seconds)), ..told };
    // Whatever the configuration has come to say since.
    let now = Workers { watchdog: Some(Duration::from_secs(5)), ..workers() };
    assert_eq!(judge(&now, &silent(14)), Diagnosis::Fine);
    assert_eq!(judge(&now, &silent(15)), Diagnosis::Hangs);
    assert_eq!(judge(&now, &Facts { age: Duration::MAX, ..told }), Diagnosis::Fine, "not watched yet");
    let never = Facts { watchdog: None, ..silent(1_000_000) };
    assert_eq!(judge(&now, &never), Diagnosis::Fine);
}

#[test]
fn each_worker_has_a_request_limit_of_its_own_within_the_jitter() {
    let limited = Workers { max_requests: 1000, ..workers() };
    let after = |requests, jitter| due(&limited, Facts { requests, jitter, ..Facts::default() });
    assert_eq!((after(999, 0.0), after(1099, 1.0)), (None, None));
    assert_eq!(after(1000, 0.0).unwrap(), "1000 requests (its limit was 1000)");
    assert_eq!(after(1100, 1.0).unwrap(), "1100 requests (its limit was 1100)", "a tenth, unless it is said");
    let spread = Workers { max_requests_jitter: 500, ..limited };
    assert_eq!(request_limit(&spread, 0.5), Some(1250));
    assert_eq!(request_limit(&workers(), 0.5), None);
}

#[test]
fn memory_and_age_are_limits_too() {
    let limited = Workers { max_memory: Some(100 << 20), max_age: Some(Duration::from_secs(3600)), ..workers() };
    let facts = Facts::default();
    assert_eq!(due(&limited, Facts { memory: Some(99 << 20), ..facts }), None);
    assert_eq!(
        due(&limited, Facts { memory: Some(150 << 20), ..facts }).unwrap(),
        "PSS of 150 MB (its limit is 100 MB)"
    );
    let old = Facts { age: Duration::from_millis(3_600_500), ..facts };
    assert_eq!(due(&limited, old).unwrap(), "age of 1h (its limit is 1h)");
    assert_eq!(due(&workers(), Facts { memory: Some(u64::MAX), ..old }), None, "nothing is limited by default");
}

#[test]
fn a_replaced_worker_may_grow_by_half_the_limit_and_no_more() {
    let limited = Workers { max_memory: Some(100 << 20), memory_kind: MemoryKind::Rss, ..workers() };
    // It was replaced for this.
    assert_eq!(outgrown(&limited, Some(120 << 20)), None);
    assert_eq!(outgrown(&limited, Some(150 << 20)).unwrap(), "RSS of 150 MB (its limit is 150 MB)");
    assert_eq!((outgrown(&limited, None), outgrown(&workers(), Some(u64::MAX))), (None, None));
}

#[tokio::test]
async fn a_worker_that_cannot_be_measured_holds_up_no_other() {
    static ANSWERED: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);
    // As the kernel, while the process's memory is locked.
    fn stuck(_: i32) -> Option<u64> {
        while !ANSWERED.load(std::sync::atomic::Ordering::Relaxed) {
            std::thread::park_timeout(Duration::from_millis(5));
        }
        Some(1)
    }
    let measured = async {
        // Numbers that no process has.
        let (one, other) = (i32::MAX - 3, i32::MAX - 4);
        let records = Records::default();
        records.borrow_mut().extend([(one, Record::new()), (other, Record::new())]);
        let until = async |pid: i32, expected: Measurement| {
            while records.borrow()[&pid].memory != expected {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        measure(&records, one, "worker-0".into(), stuck);
        measure(&records, other, "worker-1".into(), |_| Some(7));
        until(other, Measurement::Measured(7)).await;
        assert_eq!(records.borrow()[&one].memory, Measurement::Unknown);
        until(one, Measurement::Late).await;
        measure(&records, other, "worker-1".into(), |_| None);
        until(other, Measurement::Unknown).await;
        ANSWERED.store(true, std::sync::atomic::Ordering::Relaxed);
        // Once the kernel has answered, it is measured again.
        while records.borrow()[&one].memory != Measurement::Measured(1) {
            measure(&records, one, "worker-0".into(), stuck);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let in_time = tokio::time::timeout(Duration::from_secs(60), measured);
    tokio::task::LocalSet::new().run_until(in_time).await.unwrap();
}
