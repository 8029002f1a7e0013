//! One database, one reader of its address: probe, migrations, workers, psql and backups go to the same server.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use crate::common::project::Project;
use crate::common::refusal::{self, Refusal};
use crate::common::server::{APP_ROLE, TestServer};
use crate::common::tandem::{self, Tandem};

const PASSWORD: &str = "same on both";

fn run_at(project: &Project, url: &str, args: &[&str]) -> Refusal {
    refusal::said(tandem::command(project).env("DATABASE_URL", url).args(args).output().unwrap())
}

fn up_at(project: &Project, url: &str) -> Tandem {
    let mut command = tandem::command(project);
    command.env("DATABASE_URL", url);
    let mut tandem = Tandem::start_as(project, command);
    tandem.wait_ready();
    tandem
}

/// Whether the application's own pool gets in; whoever answers `/ready` has asked the same server.
fn assert_serves(tandem: &Tandem) {
    let (_, body) = tandem.get("/health").unwrap();
    let health: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(health["database"]["available"], true, "{}", tandem.log());
}

/// Two servers with the same role, password and database; the URL names one, and its query the other.
#[tokio::test]
async fn the_query_of_the_url_names_the_server_for_everybody() {
    let (decoy, meant) = (TestServer::start().await, TestServer::start().await);
    let mut ports = Vec::new();
    for server in [&decoy, &meant] {
        ports.push(server.database("bobdb").await.port);
        server.sql("postgres", &format!("ALTER ROLE {APP_ROLE} PASSWORD '{PASSWORD}'")).await;
        server.sql("postgres", "ALTER SYSTEM SET log_connections = on").await;
        server.sql("postgres", "SELECT pg_reload_conf()").await;
    }
    let tables = "SELECT count(*) FROM pg_tables WHERE schemaname IN ('public', 'tandem')";
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'bobdb' AND pid <> pg_backend_pid()";
    let workers = "SELECT count(*) > 0 FROM pg_stat_activity WHERE application_name LIKE '%-worker-%'";
    let (wrong, right, password) = (ports[0], ports[1], PASSWORD.replace(' ', "%20"));
    let project = Project::backend_with("workers.count = 1");
    for url in [
        format!("postgresql://{APP_ROLE}:{password}@127.0.0.1:{wrong}/bobdb?host=localhost&port={right}"),
        format!(
            "postgresql://eve:wrong@127.0.0.1:{wrong}/x?port={right}&user={APP_ROLE}&password={password}&dbname=bobdb"
        ),
    ] {
        let mut tandem = up_at(&project, &url);
        assert_serves(&tandem);
        assert_eq!(meant.sql("bobdb", workers).await, "t");
        assert_eq!(meant.sql("bobdb", tables).await, "9");
        run_at(&project, &url, &["psql", "-Atc", "SHOW port"]).expect(0, &[&right.to_string()]);
        run_at(&project, &url, &["migrate", "status"]).expect(0, &["applied  004"]);
        run_at(&project, &url, &["backup"]).expect(0, &[]);
        let shown = run_at(&project, &url, &["url"]);
        shown.expect(0, &[&format!(":{right}/bobdb")]);
        assert!(!shown.said.contains(&wrong.to_string()), "{}", shown.said);
        assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    }
    assert_eq!(decoy.sql("bobdb", tables).await, "0", "the decoy was touched");
    assert_eq!(decoy.sql("bobdb", sessions).await, "0");
    // The server's word on who came: nobody but this test, which is the superuser.
    let came = [&decoy, &meant].map(|server| server.log().contains(&format!("authorized: user={APP_ROLE}")));
    assert_eq!(came, [false, true], "{}", decoy.log());
}

#[test]
fn sockets_and_ipv6_are_attached_to() {
    let owner = Project::app_with(
        "plain:app",
        "workers.count = 1\nmigrations.run = 'none'\npostgres.listen = '::1'\npostgres.password = 'pw'",
    );
    let mut server = Tandem::up(&owner);
    let (socket, port) = (owner.state().join("run/postgres"), owner.postgres);
    // Workers run as another user where the tests run as root.
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o755)).unwrap();
    let odd = owner.dir().join("a b+100%");
    symlink(&socket, &odd).unwrap();
    let (socket, odd) = (socket.display().to_string(), odd.display().to_string());

    let project = Project::backend_with("workers.count = 1");
    let query = format!("host={}&port={port}", odd.replace('%', "%25"));
    for url in
        [format!("postgresql://app:pw@[::1]:{port}/app"), format!("postgresql:///app?{query}&user=app&password=pw")]
    {
        let mut tandem = up_at(&project, &url);
        assert_serves(&tandem);
        run_at(&project, &url, &["backup"]).expect(0, &[]);
        assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    }
    let encoded = socket.replace('/', "%2F");
    for url in [
        format!("postgresql://app:pw@/app?host={socket}&port={port}"),
        format!("postgresql://app:pw@localhost/app?host={socket}&port={port}"),
        format!("postgresql://app:pw@{encoded}:{port}/app"),
        format!("postgresql://app:pw@/app?host=::1&port={port}"),
        format!("postgresql://app:pw@/app?hostaddr=::1&port={port}"),
    ] {
        let who = "SELECT 'in as ' || current_user || ' at ' || current_setting('port')";
        run_at(&project, &url, &["psql", "-Atc", who]).expect(0, &[&format!("in as app at {port}")]);
        run_at(&project, &url, &["migrate", "status"]).expect(0, &["applied  004"]);
    }
    assert_eq!(server.stop(), 0, "{}", server.log());
}

/// An IPv4 address in IPv6's clothes, which resolvers take for a name when it keeps its brackets.
#[tokio::test]
async fn a_mapped_address_is_attached_to() {
    let server = TestServer::start().await;
    let url = server.database("mapped").await;
    let project = Project::app_with("plain:app", "workers.count = 1\nmigrations.run = 'none'");
    let url = url.expose().expose().replace("127.0.0.1", "[::ffff:127.0.0.1]");
    let mut tandem = up_at(&project, &url);
    run_at(&project, &url, &["psql", "-Atc", "SELECT 'there'"]).expect(0, &["there"]);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn what_an_address_cannot_be_is_refused_with_its_reason() {
    let project = Project::app_with("plain:app", "workers.count = 1");
    let encode = "percent-encoded";
    for (url, words, not) in [
        ("postgresql://u:hush@a:1,b:2/d", "several servers", encode),
        ("postgresql://u:hush@/d?host=/x/com,ma", "symbolic link", encode),
        ("postgresql://u:hush@a/d?service=prod", "`service`", encode),
        ("postgresql://u:hush@a/d?hostaddr=10.0.0.1", "host a and hostaddr 10.0.0.1", encode),
        (
            "postgresql://u:hush@localhost/d?sslmode=requird",
            "sslmode=requird is none of disable, allow, prefer",
            encode,
        ),
        ("postgresql+asyncpg://u:hush@localhost/d?ssl=true", "ssl=true is none of disable", encode),
        ("postgresql://u:hush@localhost/template1", "copies new databases from", encode),
        ("postgresql://u:hu/sh@localhost/d", encode, "hu/sh"),
    ] {
        for command in ["check", "up"] {
            let refused = run_at(&project, url, &[command]);
            refused.expect(78, &["DATABASE_URL", words]);
            assert!(!refused.said.contains(not) && !refused.said.contains("hush"), "{}", refused.said);
        }
    }
    for (key, value, words) in [
        ("postgres.user", "none", "no role the name none"),
        ("postgres.user", "public", "no role the name public"),
        ("postgres.user", "pg_monitor", "begin with pg_"),
        ("postgres.database", "template1", "copies new databases from"),
        ("postgres.database", "template0", "copies new databases from"),
    ] {
        refusal::run(&project, &["check", "--set", &format!("{key}={value}")]).expect(78, &[key, words]);
    }
}

/// The driver that the URL names gets the word for TLS that it knows; so do PostgreSQL's own programs.
#[tokio::test]
async fn tls_is_asked_for_by_whoever_connects() {
    let server = TestServer::start().await;
    let url = server.database("secured").await.with_scheme("postgresql+asyncpg").expose().expose().to_owned();
    let project = Project::app_with("plain:app", "workers.count = 1\nmigrations.run = 'none'");
    let plain = format!("{url}?ssl=disable&prepared_statement_cache_size=0");
    // The driver that was given stays, with all that it knows.
    let (asyncpg, ours) =
        ("DATABASE_URL='postgresql+asyncpg://", "/secured?ssl=disable&prepared_statement_cache_size=0'");
    run_at(&project, &plain, &["env"]).expect(0, &[asyncpg, ours, "export PGSSLMODE='disable'"]);
    let chosen = ["env", "--set", "workers.url_scheme=postgresql+psycopg2"];
    run_at(&project, &plain, &chosen).expect(0, &["DATABASE_URL='postgresql+psycopg2://", "/secured?sslmode=disable'"]);
    run_at(&project, &plain, &["url"]).expect(0, &["/secured?sslmode=disable\n"]);
    run_at(&project, &plain, &["backup"]).expect(0, &[]);
    // The server has no TLS: what insists on it must not get in.
    for args in [&["psql", "-c", "SELECT 1"][..], &["backup"], &["migrate", "status", "--set", "migrations.run=seaorm"]]
    {
        let refused = run_at(&project, &format!("{url}?ssl=require"), args);
        assert!(refused.code != 0 && refused.said.contains("SSL") || refused.said.contains("TLS"), "{refused:?}");
    }
}

/// psql is the one that the machine has, or the one that Tandem brings; pg_dump is Tandem's in any case.
#[tokio::test]
async fn psql_is_found_for_a_server_elsewhere() {
    let server = TestServer::start().await;
    let url = server.database("found").await.expose().expose().to_owned();
    let project = Project::app_with("plain:app", "workers.count = 1");
    let psql = project.dir().join("bin/psql");
    let path = format!("{}:/bin/nowhere", psql.parent().unwrap().display());
    let run = |args: &[&str]| {
        let mut command = tandem::command(&project);
        refusal::said(command.env("DATABASE_URL", &url).env("PATH", &path).args(args).output().unwrap())
    };
    run(&["psql", "-Atc", "SELECT 'brought along'"]).expect(0, &["brought along"]);
    project.write_script("bin/psql", "#!/bin/sh\necho \"the machine's, for $PGDATABASE, $*\"");
    run(&["psql", "-l"]).expect(0, &["the machine's, for found, -l"]);
    run(&["backup"]).expect(0, &[]);
}
