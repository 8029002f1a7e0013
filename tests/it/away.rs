//! Base backups and WAL off the machine: sent to every destination, restored from one alone, and by one machine only.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::SystemTime;

use ::tandem::backup::pitr::bases::stamp;
use age::secrecy::ExposeSecret;
use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::runtime::Runtime;

use crate::common::pitr::{self, archive, fail, pitr, rows, sql, succeed, superuser};
use crate::common::project::Project;
use crate::common::tandem::{Tandem, get, wait_for};
use crate::s3_server::{Fault, KEY_ID, SECRET, Server};

/// The destination in the server's bucket.
const PLACE: &str = "s3://copies/prod";

/// A server, and the runtime that it runs in.
fn server() -> (Runtime, Server) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let server = runtime.block_on(Server::start());
    (runtime, server)
}

/// A project that archives its WAL to `destinations`, with more lines of configuration.
fn project(server: &Server, destinations: &[&str], lines: &str) -> Project {
    let quoted: Vec<String> = destinations.iter().map(|place| format!("'{place}'")).collect();
    let project = pitr::project(&format!(
        "backup.destinations = [{}]\nbackup.credentials_file = 'copies.keys'\nbackup.retry_limit = '1s'\n{lines}",
        quoted.join(", ")
    ));
    let endpoint = format!("http://{}", server.address);
    let text = format!("AWS_ACCESS_KEY_ID={KEY_ID}\nAWS_SECRET_ACCESS_KEY={SECRET}\nAWS_ENDPOINT_URL={endpoint}\n");
    project.write("copies.keys", &text);
    fs::set_permissions(project.dir().join("copies.keys"), fs::Permissions::from_mode(0o600)).unwrap();
    project
}

/// What health says of the destination `address`.
fn destination(tandem: &Tandem, address: &str) -> Value {
    let destinations = pitr::pitr(tandem)["destinations"].clone();
    let found = destinations.as_array().and_then(|all| all.iter().find(|one| one["address"] == address).cloned());
    found.unwrap_or(Value::Null)
}

/// End this segment, and wait until the archive of this machine has it; its name.
fn switch(project: &Project) -> String {
    // At the very beginning of a segment, PostgreSQL names the one before it. What was emitted is not written yet.
    superuser(project, "SELECT pg_logical_emit_message(false, 'test', 'x')");
    let name = superuser(project, "SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
    superuser(project, "SELECT pg_switch_wal()");
    let path = pitr::archive(project).join("wal").join(&name[..16]).join(format!("{name}.zst"));
    wait_for("a segment in the archive", || path.exists());
    name
}

/// Where the segment `name` is in the destination, by its key.
fn key(name: &str) -> String {
    format!("prod/pitr/wal/{}/{name}.zst", &name[..16])
}

/// Let `other` accept what `project` has signed.
fn share_key(project: &Project, other: &Project) {
    let path = project.dir().join("key");
    fs::write(&path, succeed(project, &["backup", "key"])).unwrap();
    succeed(other, &["backup", "key", "--import", path.to_str().unwrap()]);
}

/// The base backups in a directory that is a destination.
fn bases_in(dir: &Path) -> Vec<String> {
    crate::common::refusal::names(&dir.join("pitr/base"))
}

#[test]
fn a_new_machine_is_restored_to_a_moment_from_a_destination_alone() {
    let (_runtime, server) = server();
    let disk = tempfile::tempdir().unwrap();
    let directory = format!("file://{}", disk.path().display());
    let project_lost = project(&server, &[PLACE, &directory], "");
    let mut tandem = Tandem::up(&project_lost);
    sql(&project_lost, "CREATE TABLE t (n integer); INSERT INTO t VALUES (1)");
    succeed(&project_lost, &["backup", "base"]);
    sql(&project_lost, "INSERT INTO t VALUES (2)");
    let two = sql(&project_lost, "SELECT clock_timestamp()");
    sql(&project_lost, "INSERT INTO t VALUES (3)");
    let last = switch(&project_lost);
    sql(&project_lost, "INSERT INTO t VALUES (4)");
    wait_for("all of it in both destinations", || {
        let has_base =
            server.keys().iter().any(|key| key.starts_with("prod/pitr/base/") && key.ends_with("/base.json"));
        let in_directory = disk.path().join(key(&last).trim_start_matches("prod/"));
        has_base && server.file(&key(&last)).exists() && in_directory.exists() && bases_in(disk.path()).len() == 1
    });
    wait_for("health to say so", || {
        [PLACE, directory.as_str()].iter().all(|place| {
            let known = destination(&tandem, place);
            known["behind_segments"] == 0 && known["behind_bases"] == 0 && known["error"].is_null()
        })
    });
    // What is checkpointed meanwhile is a segment more, for a moment.
    let (of_all, of_list) =
        (format!("all base backups and WAL are in {PLACE}"), format!("{directory} has all base backups and WAL"));
    let behind = format!("tandem_wal_behind_segments{{destination=\"{PLACE}\"}} 0");
    wait_for("everybody to say so", || {
        tandem.health()["status"] == "healthy"
            && succeed(&project_lost, &["status"]).contains(&of_all)
            && get(project_lost.health, "/metrics").unwrap().1.contains(&behind)
            && succeed(&project_lost, &["backup", "list"]).contains(&of_list)
    });
    let verified = succeed(&project_lost, &["backup", "verify", "--from", PLACE]);
    assert!(verified.contains("1 base backups and") && verified.contains("verified"), "{verified}");
    // The machine is lost, with what was not archived yet.
    tandem.signal(Signal::SIGKILL);
    tandem.wait_exit();

    for (place, wanted, expected) in
        [(PLACE, vec!["--at", two.as_str()], "1,2"), (directory.as_str(), vec!["--to-end"], "1,2,3")]
    {
        let new = project(&server, &[], "");
        let args = [&["restore", "--from", place, "--yes"][..], &wanted[..]].concat();
        let refused = fail(&new, &args);
        assert!(refused.contains("not signed") && refused.contains("tandem backup key"), "{refused}");
        share_key(&project_lost, &new);
        let said = succeed(&new, &args);
        assert!(said.contains("what was committed later on the machine that sent it is not in it"), "{said}");
        assert!(!new.state().join("restoring-from-away").exists());
        let mut tandem = Tandem::up(&new);
        assert_eq!(rows(&new), expected, "{place}");
        assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    }
}

#[test]
fn a_destination_that_is_away_is_told_kept_for_and_caught_up_with_and_no_acknowledgement_waits_for_it() {
    let (_runtime, server) = server();
    let own = project(&server, &[PLACE], "backup.pitr.behind_max = '1s'\nbackup.pitr.base_backups = 1");
    let mut tandem = Tandem::up(&own);
    sql(&own, "CREATE TABLE t (n integer)");
    succeed(&own, &["backup", "base"]);
    let first = switch(&own);
    wait_for("the first segment there", || server.file(&key(&first)).exists());
    wait_for("the base backup there", || {
        let is_there = server.keys().iter().any(|key| key.ends_with("/base.json"));
        is_there && tandem.health()["status"] == "healthy"
    });

    for fault in [Fault::SlowDown, Fault::Denied, Fault::Hangs] {
        server.fail(1, fault);
        let names: Vec<String> = (0..3).map(|_| switch(&own)).collect();
        wait_for("it to be told", || {
            let health = tandem.health();
            let behind = destination(&tandem, PLACE)["behind_segments"].as_u64().unwrap_or_default();
            behind >= 2 && health["status"] == "degraded" && health["reasons"].to_string().contains(PLACE)
        });
        assert_eq!(pitr(&tandem)["failing"], false, "this machine has all of it");
        wait_for("nothing to wait for the archive", || pitr(&tandem)["ready_segments"] == 0);
        // What was put there is whole.
        server.fail(0, Fault::None);
        if fault == Fault::Hangs {
            // Nobody waits for the answers that never come.
            assert_eq!(tandem.stop(), 0, "{}", tandem.log());
            tandem = Tandem::up(&own);
        }
        wait_for("it to be caught up with", || names.iter().all(|name| server.file(&key(name)).exists()));
        wait_for("health to be well", || tandem.health()["status"] == "healthy");
    }
    // What it lacks stays here, whatever retention says.
    server.fail(0, Fault::Denied);
    let kept = switch(&own);
    succeed(&own, &["backup", "base"]);
    let path = archive(&own).join("wal").join(&kept[..16]).join(format!("{kept}.zst"));
    assert!(path.exists() && fs::read_dir(archive(&own).join("base")).unwrap().count() == 1);
    server.fail(0, Fault::None);
    wait_for("the new base backup alone there", || {
        let keys = server.keys();
        let bases = keys.iter().filter(|key| key.ends_with("/base.json")).count();
        bases == 1 && !server.file(&key(&first)).exists() && destination(&tandem, PLACE)["behind_bases"] == 0
    });
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    assert!(succeed(&own, &["backup", "send"]).contains("has all base backups and WAL"));
    assert_eq!(server.unfinished(), [""; 0]);
}

#[test]
fn one_machine_archives_to_a_destination_and_the_second_is_refused_with_the_next_step() {
    let (_runtime, server) = server();
    let first = project(&server, &[PLACE], "");
    let mut tandem = Tandem::up(&first);
    sql(&first, "CREATE TABLE t (n integer); INSERT INTO t VALUES (1)");
    succeed(&first, &["backup", "base"]);
    let last = switch(&first);
    wait_for("all of it there", || {
        server.file(&key(&last)).exists() && destination(&tandem, PLACE)["behind_bases"] == 0
    });

    // Another cluster.
    let other = project(&server, &[PLACE], "");
    let mut others = Tandem::up(&other);
    let reason = |tandem: &Tandem| tandem.health()["reasons"].to_string();
    wait_for("the other cluster to be refused", || reason(&others).contains("holds the WAL of another cluster"));
    assert!(fail(&other, &["backup", "claim", PLACE]).contains("another prefix"));
    let keys = server.keys();
    switch(&other);
    assert_eq!(others.stop(), 0, "{}", others.log());
    assert_eq!(server.keys(), keys, "it has put nothing there");
    assert!(fail(&other, &["restore", "--from", PLACE, "--to-end", "--yes"]).contains("is another than the one in"));

    // The same cluster on another machine.
    let second = project(&server, &[PLACE], "");
    share_key(&first, &second);
    succeed(&second, &["restore", "--from", PLACE, "--to-end", "--yes"]);
    let mut seconds = Tandem::up(&second);
    wait_for("the second to be refused", || reason(&seconds).contains("another machine archives to"));
    assert!(reason(&seconds).contains("tandem backup claim s3://copies/prod"), "{}", reason(&seconds));
    assert_eq!(tandem.health()["status"], "healthy", "the first goes on");
    assert!(succeed(&second, &["backup", "claim", PLACE]).contains("in the place of"));
    sql(&second, "INSERT INTO t VALUES (2)");
    succeed(&second, &["backup", "base"]);
    wait_for("the second to be let in", || seconds.health()["status"] == "healthy");
    switch(&first);
    wait_for("the first to be refused", || reason(&tandem).contains("another machine archives to"));
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    // Its timeline is in the destination, with that which it came from.
    switch(&second);
    wait_for("all of it there", || destination(&seconds, PLACE)["behind_segments"] == 0);
    wait_for("the base backup there", || destination(&seconds, PLACE)["behind_bases"] == 0);
    assert_eq!(seconds.stop(), 0, "{}", seconds.log());
    let third = project(&server, &[], "");
    share_key(&second, &third);
    succeed(&third, &["restore", "--from", PLACE, "--to-end", "--yes"]);
    let mut tandem = Tandem::up(&third);
    assert_eq!(rows(&third), "1,2");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn what_a_destination_lost_or_altered_is_named_never_restored_and_sent_again() {
    let (_runtime, server) = server();
    let disk = tempfile::tempdir().unwrap();
    let place = format!("file://{}", disk.path().display());
    let own = project(&server, &[&place], "");
    let mut tandem = Tandem::up(&own);
    sql(&own, "CREATE TABLE t (n integer)");
    succeed(&own, &["backup", "base"]);
    let names: Vec<String> = (1..=4)
        .map(|number| {
            sql(&own, &format!("INSERT INTO t VALUES ({number})"));
            switch(&own)
        })
        .collect();
    let file = |name: &str| disk.path().join(key(name).trim_start_matches("prod/"));
    wait_for("all of it there", || file(&names[3]).exists() && destination(&tandem, &place)["behind_bases"] == 0);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    let restore = ["restore", "--from", place.as_str(), "--to-end", "--yes"];
    let new = project(&server, &[], "");
    share_key(&own, &new);
    let refuse = |words: &[&str]| {
        let refused = fail(&new, &restore);
        assert!(words.iter().all(|word| refused.contains(word)), "{refused}");
        assert!(!new.data().exists(), "nothing was made");
    };
    let verified = || {
        let output = crate::common::tandem::run(&own, &["backup", "verify", "--from", &place]);
        (output.status.success(), String::from_utf8(output.stdout).unwrap())
    };

    // A hole.
    let hole = file(&names[1]);
    let whole = fs::read(&hole).unwrap();
    fs::remove_file(&hole).unwrap();
    refuse(&["has a hole", &names[1], &names[2], "--to-lsn"]);
    let (good, said) = verified();
    assert!(!good && said.contains("has a hole from") && said.contains(&names[1]), "{said}");
    // Another segment in its place, under its name.
    fs::copy(file(&names[2]), &hole).unwrap();
    refuse(&[&names[1], "another file was put in its place"]);
    // A byte of it, and a cut one.
    let mut altered = whole.clone();
    let middle = altered.len() / 2;
    altered[middle] ^= 1;
    fs::write(&hole, &altered).unwrap();
    refuse(&[&names[1]]);
    fs::write(&hole, &whole[..whole.len() - 10]).unwrap();
    refuse(&[&names[1]]);
    let (good, said) = verified();
    assert!(!good && said.contains("BAD") && said.contains(&names[1]), "{said}");
    // This machine has it still.
    fs::remove_file(&hole).unwrap();
    succeed(&own, &["backup", "send"]);
    let (good, said) = verified();
    assert!(good, "{said}");

    // The base backup's data, and its description.
    let base = disk.path().join("pitr/base").join(&bases_in(disk.path())[0]);
    let (data, description) = (base.join("base.tar.zst"), base.join("base.json"));
    let whole = fs::read(&data).unwrap();
    let mut altered = whole.clone();
    altered[whole.len() / 2] ^= 1;
    fs::write(&data, &altered).unwrap();
    fs::remove_dir_all(new.state().join("restoring-from-away")).unwrap();
    refuse(&["base.tar.zst", "is not what was sent there"]);
    fs::write(&data, &whole).unwrap();
    let text = fs::read_to_string(&description).unwrap();
    fs::write(&description, text.replacen("\"files\": ", "\"files\": 1", 1)).unwrap();
    refuse(&["base.json"]);
    fs::write(&description, &text).unwrap();
    assert!(succeed(&new, &restore).contains("restored from"));
}

#[test]
fn a_sealed_destination_is_opened_with_its_key_alone_and_kept_without_it() {
    let (_runtime, server) = server();
    let (identity, wrong) = (age::x25519::Identity::generate(), age::x25519::Identity::generate());
    let lines = format!("backup.encrypt_to = ['{}']\nbackup.pitr.base_backups = 1", identity.to_public());
    let own = project(&server, &[PLACE], &lines);
    let mut tandem = Tandem::up(&own);
    sql(&own, "CREATE TABLE t (n integer); INSERT INTO t VALUES (1)");
    succeed(&own, &["backup", "base"]);
    let first = switch(&own);
    let sealed = |name: &str| server.file(&format!("{}.age", key(name)));
    let bases = || server.keys().into_iter().filter(|key| key.ends_with("/base.json.age")).collect::<Vec<_>>();
    wait_for("the first there", || sealed(&first).exists() && bases().len() == 1);
    let before = bases();
    // Names are of seconds.
    wait_for("another second", || !before[0].contains(&stamp(SystemTime::now())));
    succeed(&own, &["backup", "base"]);
    // Retention there opens nothing.
    wait_for("the older one to go", || bases().len() == 1 && bases() != before && !sealed(&first).exists());
    let last = switch(&own);
    wait_for("the last there", || sealed(&last).exists());
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    let plain: Vec<String> = server.keys().into_iter().filter(|key| !key.ends_with(".age")).collect();
    assert_eq!(plain, ["prod/pitr/owner.json"]);
    assert!(fs::read(sealed(&last)).unwrap().starts_with(b"age-encryption.org/v1\n"));

    let new = project(&server, &[], "");
    share_key(&own, &new);
    let restore = ["restore", "--from", PLACE, "--to-end", "--yes"];
    assert!(fail(&new, &restore).contains("identity"), "no key");
    new.configure("backup.identity_file = 'age.key'");
    new.write("age.key", wrong.to_string().expose_secret());
    assert!(fail(&new, &restore).contains("sealed for somebody else"), "a wrong one");
    assert!(!new.data().exists());
    new.write("age.key", identity.to_string().expose_secret());
    succeed(&new, &restore);
    let mut tandem = Tandem::up(&new);
    assert_eq!(rows(&new), "1");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn with_remote_acknowledgement_nothing_is_acknowledged_that_no_destination_has() {
    let (_runtime, server) = server();
    let own = project(&server, &[PLACE], "backup.pitr.ack = 'remote'");
    let mut tandem = Tandem::up(&own);
    sql(&own, "CREATE TABLE t (n integer)");
    let first = switch(&own);
    let done = |name: &str| own.data().join("pg_wal/archive_status").join(format!("{name}.done")).exists();
    wait_for("the first to be acknowledged", || done(&first));
    assert!(server.file(&key(&first)).exists());
    server.fail(0, Fault::Denied);
    let second = switch(&own);
    wait_for("it to be told", || pitr(&tandem)["failing"] == true);
    let health = tandem.health();
    assert!(health["reasons"].to_string().contains("no destination has"), "{health:#}");
    let (is_done, is_there) = (done(&second), server.file(&key(&second)).exists());
    assert!(!is_done && !is_there, "done {is_done}, there {is_there}\n{}", tandem.log());
    server.fail(0, Fault::None);
    wait_for("the second to be acknowledged", || done(&second));
    assert!(server.file(&key(&second)).exists());
    wait_for("health to be well", || tandem.health()["status"] == "healthy");
    // The last of a server that stops is acknowledged too.
    sql(&own, "INSERT INTO t VALUES (1)");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    let waiting = fs::read_dir(own.data().join("pg_wal/archive_status")).unwrap();
    let waiting: Vec<_> = waiting.map(|entry| entry.unwrap().file_name()).collect();
    assert!(waiting.iter().all(|name| name.to_str().unwrap().ends_with(".done")), "{waiting:?}");

    let alone = crate::common::pitr::project("backup.pitr.ack = 'remote'");
    assert!(fail(&alone, &["check"]).contains("no destination gets WAL"));
}

#[test]
fn a_destination_is_read_again_by_itself_and_what_is_found_degrades() {
    let (_runtime, server) = server();
    let own = project(&server, &[PLACE], "");
    own.reconfigure(|text| text.replace("backup.schedule = 'never'", "backup.schedule = '0 2 1 1 *'"));
    let mut tandem = Tandem::up(&own);
    let well = |tandem: &Tandem| destination(tandem, PLACE)["verified"].is_string();
    wait_for("the first to be read again", || well(&tandem));
    assert_eq!(tandem.health()["status"], "healthy", "{:#}", tandem.health());
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    let data = server.keys().into_iter().find(|key| key.ends_with("/base.tar.zst")).unwrap();
    fs::write(server.file(&data), "rot").unwrap();
    fail(&own, &["backup", "verify", "--from", PLACE]);
    let mut tandem = Tandem::up(&own);
    wait_for("it to be told", || tandem.health()["reasons"].to_string().contains("is not as it was sent"));
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn a_destination_without_room_gets_nothing_until_there_is_some() {
    let (_runtime, server) = server();
    let disk = tempfile::tempdir().unwrap();
    let place = format!("file://{}", disk.path().display());
    let own = project(&server, &[&place], "disk.stop_free = '99%'");
    let mut tandem = Tandem::up(&own);
    let name = switch(&own);
    let error = |tandem: &Tandem| destination(tandem, &place)["error"].as_str().unwrap_or_default().to_owned();
    wait_for("it to be told", || error(&tandem).contains("disk.stop_free"));
    assert!(error(&tandem).contains(&format!("Make room in {place}")), "{}", error(&tandem));
    let there = disk.path().join(key(&name).trim_start_matches("prod/"));
    assert!(!there.exists() && pitr(&tandem)["failing"] == false);
    own.reconfigure(|text| text.replace("'99%'", "'1%'"));
    succeed(&own, &["reload"]);
    wait_for("it to be there", || there.exists());
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn dumps_alone_go_away_where_that_is_wanted() {
    let (_runtime, server) = server();
    let own = project(&server, &[PLACE], "backup.pitr.copy = false");
    let mut tandem = Tandem::up(&own);
    let state: Value = pitr(&tandem);
    succeed(&own, &["backup"]);
    switch(&own);
    assert_eq!(state["destinations"].as_array().map(Vec::len), Some(0), "{state:#}");
    let keys = server.keys();
    assert!(!keys.is_empty() && keys.iter().all(|key| !key.contains("/pitr/")), "{keys:?}");
    assert!(fail(&own, &["backup", "send"]).contains("backup.pitr.copy"));
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}
