//! Secrets: what is Tandem's alone reaches no child, and nothing that Tandem says holds any of them.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use age::secrecy::ExposeSecret;

use crate::common::backups::running;
use crate::common::ports::free_port;
use crate::common::project::Project;
use crate::common::refusal::{self, said};
use crate::common::tandem::{self, Tandem, get, wait_for};
use crate::s3_server::{KEY_ID, SECRET, Server};

/// A part of the address that is called when a backup fails.
const TOKEN: &str = "T0KEN0of0the0webhook";

/// A cloud that quotes in its answers what it must not.
fn liar() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 4096]);
            let body = format!("<Error><Code>Odd</Code><Message>{SECRET} of {KEY_ID} is no key</Message></Error>");
            let head = "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-type: application/xml";
            let _ = write!(stream, "{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        }
    });
    address
}

/// Everything that `tandem` says of a deployment that runs, by what it is.
fn all_that_is_said(project: &Project, tandem: &Tandem, keys: impl Fn(&mut Command)) -> Vec<(String, String)> {
    let mut all = vec![("the log".to_owned(), tandem.log())];
    for path in ["/health", "/ready", "/live", "/metrics", "/"] {
        all.push((path.to_owned(), get(project.health, path).unwrap().1));
    }
    for args in ["status", "status --json", "check", "check --all", "check --json", "logs", "backup list", "health"] {
        let mut command = tandem::command(project);
        keys(command.args(args.split(' ')));
        all.push((args.to_owned(), said(command.output().unwrap()).said));
    }
    for process in tandem.descendants() {
        all.push((format!("the arguments of {}", process.name), process.args));
    }
    for dir in [project.state().join("run"), project.state().join("backups")] {
        for path in dir.read_dir().unwrap().map(|entry| entry.unwrap().path()) {
            // The one place where the password is kept, for its owner alone.
            if path.is_file() && !path.ends_with("password") {
                let text = String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned();
                all.push((path.display().to_string(), text));
            }
        }
    }
    all
}

#[test]
fn nothing_that_tandem_says_holds_a_secret() {
    let key = age::x25519::Identity::generate();
    let (port, endpoint) = (free_port(), format!("http://{}", liar()));
    let lines = format!(
        "workers.count = 1\nbackup.schedule = '* * * * * *'\nbackup.verify = 'never'\nbackup.retry_limit = '1s'\n\
         backup.destinations = ['s3://copies']\nbackup.encrypt_to = ['{}']\nbackup.identity_file = 'key'\n\
         backup.on_failure = 'http://127.0.0.1:{port}/hooks/{TOKEN}?v=1'\n\
         hooks.after_ready = ['sh', '-c', 'echo \"$PGPASSWORD\" >&2; exit 3']",
        key.to_public()
    );
    let project = Project::app_with("plain:app", &lines);
    let says = "printf '%s\\n' \"I am at $DATABASE_URL with $PGPASSWORD\"; exec sleep 1000";
    project.reconfigure(|text| format!("{text}\n[[process]]\nname = 'queue'\ncommand = ['sh', '-c', '''{says}''']\n"));
    project.write("key", key.to_string().expose_secret());
    fs::set_permissions(project.dir().join("key"), fs::Permissions::from_mode(0o600)).unwrap();
    let keys = |command: &mut Command| {
        command
            .env("TANDEM_BACKUP_AWS_ACCESS_KEY_ID", KEY_ID)
            .env("TANDEM_BACKUP_AWS_SECRET_ACCESS_KEY", SECRET)
            .env("TANDEM_BACKUP_AWS_ENDPOINT_URL", &endpoint);
    };
    for format in ["text", "json"] {
        let mut command = tandem::command(&project);
        keys(&mut command);
        let mut tandem = Tandem::start_with(&project, command, &["up", "--log-format", format]);
        tandem.wait_ready();
        wait_for("a backup that failed", || tandem.health()["backups"]["last"]["error"].is_string());
        tandem.wait_log("backup.on_failure: ");
        tandem.wait_log("hooks.after_ready");
        tandem.wait_log("I am at ");
        let password = fs::read_to_string(project.state().join("run/password")).unwrap();
        let secrets = [password.trim(), SECRET, KEY_ID, TOKEN, key.to_string().expose_secret()].map(str::to_owned);
        for (what, text) in all_that_is_said(&project, &tandem, keys) {
            for (number, secret) in secrets.iter().enumerate() {
                assert!(!text.contains(secret.as_str()), "secret {number} is in {what}:\n{text}");
            }
        }
        // They were there to be said.
        let log = tandem.log();
        assert!(log.contains("with ********") && log.contains("Odd: ******** of ********"), "{log}");
        for args in [&["url"][..], &["env"], &["env", "--json"]] {
            let mut command = tandem::command(&project);
            keys(command.args(args));
            let said = said(command.output().unwrap()).said;
            assert!(said.contains(&secrets[0]) && secrets[1..].iter().all(|secret| !said.contains(secret)), "{args:?}");
        }
        assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    }
}

async fn finished(mut command: Command) -> Output {
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

fn write_private(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

/// The application has keys of its own for the same cloud, which let nobody in where the copies are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_are_made_with_keys_that_no_child_has() {
    let server = Server::start().await;
    let (project, mut tandem) = tokio::task::spawn_blocking(running).await.unwrap();
    assert_eq!(tandem.stop(), 0);
    let hook = "hooks.after_ready = ['sh', '-c', 'env >env.new; mv env.new env']";
    project.configure(&format!("backup.destinations = ['s3://copies']\nbackup.retry_limit = '1s'\n{hook}"));
    fs::set_permissions(project.dir(), fs::Permissions::from_mode(0o777)).unwrap();
    let keys = format!(
        "AWS_ACCESS_KEY_ID={KEY_ID}\nAWS_SECRET_ACCESS_KEY='{SECRET}'\nAWS_ENDPOINT_URL=http://{}\n",
        server.address
    );
    let application = |mut command: Command| {
        command.envs([("AWS_ACCESS_KEY_ID", "AKIDAPPLICATION"), ("AWS_SECRET_ACCESS_KEY", "of-the-application")]);
        command.env("AWS_ENDPOINT_URL", "http://127.0.0.1:9");
        command
    };
    let by_variables = |mut command: Command| {
        for line in keys.lines() {
            let (name, value) = line.split_once('=').unwrap();
            command.env(format!("TANDEM_BACKUP_{name}"), value.trim_matches('\''));
        }
        command
    };
    let file = project.dir().join("copies.keys");
    let by_file = |mut command: Command| {
        command.env("TANDEM_BACKUP__CREDENTIALS_FILE", &file);
        command
    };
    let credentials = project.dir().join("credentials");
    fs::create_dir(&credentials).unwrap();
    let by_systemd = |mut command: Command| {
        command.env("CREDENTIALS_DIRECTORY", &credentials);
        command
    };
    write_private(&file, &format!("# keys\n{keys}"));
    write_private(&credentials.join("tandem.backup"), &keys);
    let command = |args: &[&str]| {
        let mut command = application(tandem::command(&project));
        command.args(args);
        command
    };
    said(finished(command(&["backup"])).await).expect(75, &["s3://copies"]);
    let ways: [(&str, &dyn Fn(Command) -> Command); 3] =
        [("variables", &by_variables), ("a file", &by_file), ("systemd", &by_systemd)];
    for (way, with) in ways {
        let made = said(finished(with(command(&["backup"]))).await);
        assert_eq!(made.code, 0, "{way}: {}", made.said);
        let checked = said(finished(with(command(&["check"]))).await);
        checked.expect(0, &["TANDEM_BACKUP_AWS_SECRET_ACCESS_KEY", "********"]);
        assert!(!checked.said.contains("an attacker"), "{way}: {}", checked.said);
    }
    // The application gets its own.
    let mut tandem = Tandem::start_as(&project, by_variables(application(tandem::command(&project))));
    let tandem = tokio::task::spawn_blocking(move || {
        tandem.wait_ready();
        tandem
    });
    let (mut tandem, project) = (tandem.await.unwrap(), project);
    let told = tokio::task::spawn_blocking(move || {
        let env = project.dir().join("env");
        wait_for("the hook", || env.exists());
        let text = fs::read_to_string(env).unwrap();
        let of_worker = tandem.get("/env?name=AWS_SECRET_ACCESS_KEY").unwrap().1;
        assert_eq!(tandem.stop(), 0, "{}", tandem.log());
        (text, of_worker)
    });
    let (of_hook, of_worker) = told.await.unwrap();
    assert!(of_hook.contains("AWS_SECRET_ACCESS_KEY=of-the-application\n") && !of_hook.contains(SECRET), "{of_hook}");
    assert_eq!(of_worker, "of-the-application");
}

#[test]
fn a_file_with_keys_is_closed_to_others_and_holds_nothing_else() {
    let project = Project::app_with("plain:app", "backup.credentials_file = 'copies.keys'");
    let file = project.dir().join("copies.keys");
    let check = || refusal::run(&project, &["check"]);
    check().expect(78, &["backup.credentials_file: ", "copies.keys cannot be read"]);
    write_private(&file, &format!("AWS_ACCESS_KEY_ID={KEY_ID}\nDATABASE_URL={SECRET}\nAWS_SECRET {SECRET}\n"));
    let refused = check();
    refused
        .expect(78, &["copies.keys:2: DATABASE_URL is no variable of a cloud", "copies.keys:3: expected NAME=value"]);
    assert!(!refused.said.contains(SECRET), "{}", refused.said);
    write_private(&file, &format!("AWS_ACCESS_KEY_ID={KEY_ID}\n"));
    check().expect(0, &["TANDEM_BACKUP_AWS_ACCESS_KEY_ID", "copies.keys:1"]);
    for mode in [0o644, 0o640, 0o602] {
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        check().expect(78, &[&format!("is open to other users (mode {mode:04o})"), "chmod 600"]);
    }
}

#[test]
fn keys_to_the_copies_that_the_application_would_inherit_are_told() {
    let lines = "backup.destinations = ['s3://bucket/a', 'az://container']";
    let project = Project::app_with("plain:app", lines);
    project.write(".env", "AZURE_STORAGE_ACCOUNT_NAME=a\nAZURE_STORAGE_ACCOUNT_KEY=hush-hush\n");
    let check = |more: &[(&str, &str)], args: &[&str]| {
        let mut command = tandem::command(&project);
        command.arg("check").args(args).envs([("AWS_ACCESS_KEY_ID", KEY_ID), ("AWS_SECRET_ACCESS_KEY", SECRET)]);
        said(command.envs(more.iter().copied()).output().unwrap())
    };
    let told = check(&[], &[]);
    told.expect(
        0,
        &["the workers inherit AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AZURE_STORAGE_ACCOUNT_KEY: an attacker"],
    );
    told.expect(0, &["TANDEM_BACKUP_AWS_ACCESS_KEY_ID", "workers.drop_env = [\"AWS_*\", \"AZURE_*\"]"]);
    let part = check(&[("TANDEM_BACKUP_AZURE_STORAGE_ACCOUNT_KEY", "own-own-own")], &[]);
    part.expect(0, &["the workers inherit AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY: an attacker"]);
    let none = check(&[], &["--set", "workers.drop_env=AWS_*,AZURE_*"]);
    assert!(none.code == 0 && !none.said.contains("the workers inherit"), "{}", none.said);
    check(&[], &["--set", "workers.drop_env=AWS_["]).expect(78, &["workers.drop_env: \"AWS_[\" is not a pattern"]);
}
