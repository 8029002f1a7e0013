//! Copies in a bucket, against a real S3 server, and in a directory.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use crate::common::namespace::mount_namespace;
use crate::s3_server::{KEY_ID, Line, SECRET, Server, environment, names};
use age::secrecy::ExposeSecret;
use tandem::backup::store::{Destination, Kind, Patience, Recipients, Store, StoreError};
use tandem::install::sha256_file;
use tempfile::TempDir;

/// Larger than three parts, and no multiple of one.
const LARGE: usize = 21 * 1024 * 1024 + 12_345;

const ODD: &str = "2026-01-01 \"nightly\" it's 100%25 é#?&+[~].dump";

const UNHEARD: &(dyn Fn(u64, u64) + Send + Sync) = &|_, _| {};

fn patience() -> Patience {
    Patience {
        connect_max: Duration::from_secs(5),
        request_max: Duration::from_secs(60),
        retry_max: Duration::from_millis(500),
        backoff_first: Duration::from_millis(5),
        backoff_max: Duration::from_millis(20),
    }
}

fn store(text: &str, environment: &BTreeMap<String, String>) -> Store {
    Store::open(&Destination::parse(text, environment).unwrap(), patience()).unwrap()
}

fn in_directory(dir: &Path) -> Store {
    store(&format!("file://{}", dir.display()), &BTreeMap::new())
}

/// A local file of `size` random bytes in a directory of its own.
fn local(size: usize) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("local");
    let mut content = vec![0_u8; size];
    rand::fill(&mut content[..]);
    fs::write(&path, content).unwrap();
    (dir, path)
}

/// The error that this is, of this kind, which holds these words and no secret.
fn refused<T>(result: Result<T, StoreError>, kind: Kind, words: &[&str]) {
    let error = result.err().expect("it was not refused");
    let shown = format!("{error} {error:?}");
    assert_eq!(error.kind, kind, "{shown}");
    assert!(words.iter().all(|word| shown.contains(word)), "{shown}");
    assert!(!shown.contains(SECRET) && !shown.contains(KEY_ID) && !shown.contains("Signature="), "{shown}");
}

async fn listed(store: &Store) -> Vec<(String, u64)> {
    store.list().await.unwrap().into_iter().map(|entry| (entry.name, entry.size)).collect()
}

/// Put, look, get and delete files of every size under odd names.
async fn round_trip(store: &Store) {
    let mut kept = Vec::new();
    for (size, name) in [(0, "empty"), (1, "a/b/one"), (5 << 20, "a/just one part"), (LARGE, ODD)] {
        let (dir, local) = local(size);
        let heard = Mutex::new(Vec::new());
        let hear = |done: u64, total: u64| heard.lock().unwrap().push((done, total));
        let sent = store.put(&local, name, &hear).await.unwrap();
        let (size, sha256) = (size as u64, sha256_file(&local).unwrap());
        assert_eq!((sent.name.as_str(), sent.size, &sent.sha256), (name, size, &sha256));
        let heard = heard.into_inner().unwrap();
        assert!(heard.is_sorted() && heard.last() == Some(&(size, size)), "{heard:?}");
        assert!(size < 20 << 20 || heard.len() > 3, "{heard:?}");

        let back = dir.path().join("back");
        fs::write(&back, "something older").unwrap();
        store.get(name, &back, UNHEARD).await.unwrap();
        assert_eq!(sha256_file(&back).unwrap(), sha256);
        assert_eq!(names(dir.path()), ["back", "local"]);
        let entry = store.head(name).await.unwrap().unwrap();
        assert!(entry.size == size && entry.modified.elapsed().unwrap() < Duration::from_secs(300), "{entry:?}");
        kept.push((name.to_owned(), size));
        kept.sort();
        assert_eq!(listed(store).await, kept);
    }
    for (name, _) in kept {
        store.delete(&name).await.unwrap();
        assert_eq!(store.head(&name).await.unwrap(), None);
        // What is gone is gone as asked.
        store.delete(&name).await.unwrap();
    }
    assert_eq!(listed(store).await, []);
}

#[tokio::test]
async fn files_of_every_size_come_back_from_a_bucket_as_they_were() {
    let server = Server::start().await;
    round_trip(&store("s3://copies/prod \"one\"/nightly", &server.environment())).await;
    round_trip(&store("s3://copies", &server.environment())).await;
    assert_eq!(server.unfinished(), [""; 0]);
}

#[tokio::test]
async fn files_of_every_size_come_back_from_a_directory_as_they_were() {
    let dir = tempfile::tempdir().unwrap();
    round_trip(&in_directory(dir.path())).await;
}

#[tokio::test]
async fn a_prefix_shows_its_own_copies_alone() {
    let server = Server::start().await;
    let (_dir, local) = local(10);
    let one = store("s3://copies/one", &server.environment());
    let other = store("s3://copies/one-more", &server.environment());
    one.put(&local, "a", UNHEARD).await.unwrap();
    other.put(&local, "b", UNHEARD).await.unwrap();
    assert_eq!(listed(&one).await, [("a".to_owned(), 10)]);
    assert_eq!(listed(&other).await, [("b".to_owned(), 10)]);
}

#[tokio::test]
async fn wrong_keys_are_named_and_not_shown() {
    let server = Server::start().await;
    for (name, value) in [("AWS_SECRET_ACCESS_KEY", "wrong/secret"), ("AWS_ACCESS_KEY_ID", "AKIDWRONG")] {
        let mut environment = server.environment();
        environment.insert(name.to_owned(), value.to_owned());
        environment.insert("AWS_SESSION_TOKEN".to_owned(), format!("token-{SECRET}"));
        let destination = Destination::parse("s3://copies", &environment).unwrap();
        let store = Store::open(&destination, patience()).unwrap();
        for size in [10, LARGE] {
            let (_dir, local) = local(size);
            refused(store.put(&local, "a", UNHEARD).await, Kind::Credentials, &["AWS_ACCESS_KEY_ID", "s3://copies"]);
        }
        refused(store.list().await, Kind::Credentials, &["AWS_SECRET_ACCESS_KEY"]);
        // An answer to HEAD says no more than that it is forbidden.
        refused(store.head("a").await, Kind::Denied, &["AWS_SECRET_ACCESS_KEY"]);
        assert!(!format!("{store:?} {destination:?} {destination}").contains(value));
    }
}

#[tokio::test]
async fn a_missing_bucket_is_not_a_missing_copy() {
    let server = Server::start().await;
    let store = store("s3://no-copies/a", &server.environment());
    for size in [10, LARGE] {
        let (_dir, local) = local(size);
        refused(store.put(&local, "a", UNHEARD).await, Kind::NoBucket, &["bucket `no-copies`", "create it"]);
    }
    let dir = tempfile::tempdir().unwrap();
    refused(store.get("a", &dir.path().join("a"), UNHEARD).await, Kind::NoBucket, &["no-copies"]);
    refused(store.head("a").await, Kind::NoBucket, &["no-copies"]);
    refused(store.list().await, Kind::NoBucket, &["no-copies"]);
    refused(store.delete("a").await, Kind::NoBucket, &["no-copies"]);
}

#[tokio::test]
async fn a_bucket_with_object_lock_gets_its_checksums_and_says_how() {
    let server = Server::start_locked().await;
    let (dir, large) = local(LARGE);
    let (_small, small) = local(10);
    let without = store("s3://copies", &server.environment());
    for file in [&small, &large] {
        let refusal = without.put(file, "a", UNHEARD).await;
        refused(refusal, Kind::Address, &["Object Lock", "set AWS_CHECKSUM_ALGORITHM=sha256"]);
    }
    let mut environment = server.environment();
    environment.insert("AWS_CHECKSUM_ALGORITHM".to_owned(), "sha256".to_owned());
    let with = store("s3://copies", &environment);
    for (file, name) in [(&small, "small"), (&large, "large")] {
        with.put(file, name, UNHEARD).await.unwrap();
        let back = dir.path().join(name);
        with.get(name, &back, UNHEARD).await.unwrap();
        assert_eq!(sha256_file(&back).unwrap(), sha256_file(file).unwrap());
    }
    environment.insert("AWS_CHECKSUM_ALGORITHM".to_owned(), "md4".to_owned());
    let unknown = Destination::parse("s3://copies", &environment).and_then(|it| Store::open(&it, patience()));
    refused(unknown, Kind::Address, &["md4"]);
}

#[tokio::test]
async fn a_missing_copy_is_not_a_missing_bucket_and_leaves_the_local_file() {
    let server = Server::start().await;
    let dir = tempfile::tempdir().unwrap();
    let kept = tempfile::tempdir().unwrap();
    let local = dir.path().join("local");
    fs::write(&local, "older").unwrap();
    for store in [store("s3://copies", &server.environment()), in_directory(kept.path())] {
        refused(store.get("a", &local, UNHEARD).await, Kind::Missing, &["`a`", "list"]);
        refused(store.get("../a", &local, UNHEARD).await, Kind::Name, &["`..`"]);
        refused(store.put(&dir.path().join("none"), "a", UNHEARD).await, Kind::Local, &["none"]);
        refused(store.put(dir.path(), "a", UNHEARD).await, Kind::Local, &["no file"]);
    }
    assert_eq!(fs::read_to_string(&local).unwrap(), "older");
}

#[tokio::test]
async fn an_upload_over_a_cut_line_leaves_the_name_as_it_was() {
    let server = Server::start().await;
    let (_small, small) = local(10);
    let (_large, large) = local(LARGE);
    let whole = store("s3://copies", &server.environment());
    whole.put(&small, "older", UNHEARD).await.unwrap();
    // In the middle of the third part, and nobody mends it.
    let line = Line::cut_after(12 << 20, usize::MAX, server.address).await;
    let cut = store("s3://copies", &environment(line.address));
    for name in ["new", "older"] {
        refused(cut.put(&large, name, UNHEARD).await, Kind::Unreachable, &["try again later", name]);
    }
    assert_eq!(listed(&whole).await, [("older".to_owned(), 10)]);
    assert_eq!(fs::read(server.file("older")).unwrap(), fs::read(&small).unwrap());
}

#[tokio::test]
async fn an_upload_goes_on_when_the_server_comes_back_in_time() {
    let server = Server::start().await;
    let (dir, large) = local(LARGE);
    let line = Line::cut_after(12 << 20, 6, server.address).await;
    let destination = Destination::parse("s3://copies", &environment(line.address)).unwrap();
    let patient = Patience { retry_max: Duration::from_secs(60), ..patience() };
    let store = Store::open(&destination, patient).unwrap();
    store.put(&large, "a", UNHEARD).await.unwrap();
    assert!(line.was_mended());
    let back = dir.path().join("back");
    store.get("a", &back, UNHEARD).await.unwrap();
    assert_eq!(sha256_file(&back).unwrap(), sha256_file(&large).unwrap());
    assert_eq!(server.unfinished(), [""; 0]);
}

#[tokio::test]
async fn a_file_that_changes_meanwhile_is_aborted() {
    let server = Server::start().await;
    let store = store("s3://copies", &server.environment());
    // Two parts have arrived at most when the first is heard of, and three are read ahead: seven are never all read.
    let (_dir, large) = local(33 << 20);
    let once = Mutex::new(Some(fs::OpenOptions::new().write(true).open(&large).unwrap()));
    let shrink = |_, _| once.lock().unwrap().take().into_iter().for_each(|file| file.set_len(17 << 20).unwrap());
    refused(store.put(&large, "a", &shrink).await, Kind::Altered, &["changed while it was copied"]);
    assert_eq!(listed(&store).await, []);
    assert_eq!(server.unfinished(), [""; 0]);
}

#[tokio::test]
async fn nobody_there_and_no_answer_are_told_apart() {
    let (_dir, small) = local(10);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // The kernel takes the connection, and nobody ever answers it.
    let destination = Destination::parse("s3://copies", &environment(address)).unwrap();
    let hasty = Patience { request_max: Duration::from_millis(200), retry_max: Duration::ZERO, ..patience() };
    let silent = Store::open(&destination, hasty).unwrap();
    refused(silent.put(&small, "a", UNHEARD).await, Kind::TimedOut, &["no answer in time"]);
    drop(listener);
    let gone = store("s3://copies", &environment(address));
    refused(gone.put(&small, "a", UNHEARD).await, Kind::Unreachable, &["nobody listens there"]);
}

#[tokio::test]
async fn a_copy_that_was_altered_does_not_become_a_local_file() {
    let server = Server::start().await;
    let store = store("s3://copies", &server.environment());
    let (dir, small) = local(1000);
    store.put(&small, "a", UNHEARD).await.unwrap();
    for content in [vec![7; 1000], vec![7; 999]] {
        fs::write(server.file("a"), content).unwrap();
        let back = dir.path().join("back");
        refused(store.get("a", &back, UNHEARD).await, Kind::Altered, &["SHA-256", "another copy"]);
        assert_eq!(names(dir.path()), ["local"]);
    }
}

/// An identity file beside its public key.
fn identity(dir: &Path, name: &str) -> (PathBuf, String) {
    let key = age::x25519::Identity::generate();
    let path = dir.join(name);
    fs::write(&path, format!("# {name}\n{}\n", key.to_string().expose_secret())).unwrap();
    (path, key.to_public().to_string())
}

#[tokio::test]
async fn a_sealed_copy_is_opened_by_each_of_its_recipients_and_by_nobody_else() {
    let server = Server::start().await;
    let kept = tempfile::tempdir().unwrap();
    let (keys, (dir, large)) = (tempfile::tempdir().unwrap(), local(LARGE));
    let [one, two, other] = ["one", "two", "other"].map(|name| identity(keys.path(), name));
    let recipients = Recipients::parse(&[&one.1, &two.1]).unwrap();
    let back = dir.path().join("back");
    for open in [|environment: &_, _: &Path| store("s3://copies", environment), |_: &_, dir: &Path| in_directory(dir)] {
        let open = || open(&server.environment(), kept.path());
        let sent = open().sealed_for(recipients.clone()).put(&large, ODD, UNHEARD).await.unwrap();
        let name = format!("{ODD}.age");
        assert_eq!((&sent.name, listed(&open()).await), (&name, vec![(name.clone(), sent.size)]));
        assert!(sent.size > LARGE as u64);
        for (path, _) in [&one, &two] {
            open().opened_with(path).get(&name, &back, UNHEARD).await.unwrap();
            assert_eq!(fs::read(&back).unwrap(), fs::read(&large).unwrap());
            fs::remove_file(&back).unwrap();
        }
        let wrong = open().opened_with(&other.0).get(&name, &back, UNHEARD).await;
        refused(wrong, Kind::Key, &["other", "sealed for somebody else"]);
        let missing = open().opened_with(keys.path().join("none")).get(&name, &back, UNHEARD).await;
        refused(missing, Kind::Key, &["identity file", "none"]);
        refused(open().get(&name, &back, UNHEARD).await, Kind::Key, &["is sealed", "identity file"]);
        assert_eq!(names(dir.path()), ["local"]);
    }
    let sealed = fs::read(kept.path().join(format!("{ODD}.age"))).unwrap();
    let plain = fs::read(&large).unwrap();
    assert!(sealed.starts_with(b"age-encryption.org/v1\n") && !sealed.windows(64).any(|part| part == &plain[..64]));

    // Cut at the end of one of its chunks, or with a bit turned over, it opens for nobody.
    let mut turned = sealed.clone();
    turned[LARGE / 2] ^= 1;
    for damaged in [&sealed[..sealed.len() - 100], &sealed[..sealed.len() - 12_345 - 16], &turned[..], &sealed[..50]] {
        fs::write(kept.path().join("damaged.age"), damaged).unwrap();
        let opened = in_directory(kept.path()).opened_with(&one.0).get("damaged.age", &back, UNHEARD).await;
        refused(opened, Kind::Altered, &["damaged", "another copy"]);
        assert_eq!(names(dir.path()), ["local"]);
    }
}

#[tokio::test]
async fn a_directory_that_is_missing_is_not_made() {
    let dir = tempfile::tempdir().unwrap();
    let (_small, small) = local(10);
    let store = in_directory(&dir.path().join("unmounted"));
    refused(store.put(&small, "a", UNHEARD).await, Kind::NoBucket, &["unmounted", "mount the disk"]);
    refused(store.list().await, Kind::NoBucket, &["unmounted"]);
    refused(store.head("a").await, Kind::NoBucket, &["unmounted"]);
    assert_eq!(names(dir.path()), [""; 0]);
}

/// The test runs itself again in a mount namespace, where the working directory holds a small file system called `full`.
#[tokio::test]
async fn a_full_disk_leaves_nothing_under_the_name() {
    let full = std::env::current_dir().unwrap().join("full");
    if full.is_dir() {
        return on_a_full_disk(&full).await;
    }
    let Some(namespace) = mount_namespace() else { return };
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("full")).unwrap();
    let script = "cd \"$0\"; mount -t tmpfs -o size=8m,mode=0755 tmpfs full; exec \"$@\"";
    #[expect(clippy::disallowed_methods, reason = "a test starts what it tests")]
    let mut command = Command::new("unshare");
    command.args(namespace).args(["sh", "-euc", script]).arg(dir.path()).arg(std::env::current_exe().unwrap());
    let output = command
        .args(["--exact", "backup_store::a_full_disk_leaves_nothing_under_the_name", "--nocapture"])
        .output()
        .unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

async fn on_a_full_disk(full: &Path) {
    let store = in_directory(full);
    let (_large, large) = local(LARGE);
    let (_small, small) = local(10);
    store.put(&small, "older", UNHEARD).await.unwrap();
    for name in ["new", "older"] {
        refused(store.put(&large, name, UNHEARD).await, Kind::DiskFull, &["full", "make room"]);
    }
    assert_eq!(names(full), ["older"]);
    assert_eq!(fs::read(full.join("older")).unwrap(), fs::read(&small).unwrap());
    // And a copy that does not fit is not begun under the name of a local file either.
    let kept = tempfile::tempdir().unwrap();
    let elsewhere = in_directory(kept.path());
    elsewhere.put(&large, "a", UNHEARD).await.unwrap();
    refused(elsewhere.get("a", &full.join("back"), UNHEARD).await, Kind::DiskFull, &["make room"]);
    assert_eq!(names(full), ["older"]);
}
