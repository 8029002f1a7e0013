//! What the migrations of `tandem deploy` are given: settings that the URL of an attached server asks for, and the application's modules.

use crate::common::control;
use crate::common::project::{Project, python};
use crate::common::refusal;
use crate::common::server::TestServer;
use crate::common::tandem::Tandem;

/// Needs a module of the application once a file is there.
const IMPORTS: &str = "import os; os.path.exists('go') and __import__('models')";

/// Says the settings of a session that goes by libpq's variables, and of one that goes by DATABASE_URL.
const MIGRATE: &str = "import os, psycopg2, sqlalchemy
url = os.environ['DATABASE_URL']
def shown(session):
    cursor = session.cursor()
    cursor.execute(\"SELECT current_setting('search_path') || ' ' || current_setting('lock_timeout')\")
    return cursor.fetchone()[0]
driver = '+' in url.split(':')[0]
by_url = sqlalchemy.create_engine(url).raw_connection() if driver else psycopg2.connect(url)
print('PG*:', shown(psycopg2.connect('')), 'URL:', shown(by_url), flush=True)
";

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_beside_the_application_keeps_the_settings_that_its_url_asks_for() {
    python().await;
    let server = TestServer::start().await;
    let url = server.database("live").await;
    for (scheme, options, path) in [
        ("postgresql", "?options=-csearch_path%3Dtenant1", "tenant1"),
        ("postgresql+psycopg2", "?options=-c%20search_path%3Dtenant1%20-c%20geqo%3Doff", "tenant1"),
        ("postgresql", "", "\"$user\", public"),
    ] {
        let url = url.expose();
        let project = Project::app_with(
            "plain:app",
            &format!(
                "workers.count = 1\npool.size = 1\npool.overflow = 1\npostgres.mode = 'attach'\n\
                 postgres.url = '{}{options}'\nworkers.url_scheme = '{scheme}'\nmigrations.run = ['python', 'migrate.py']",
                url.expose()
            ),
        )
        .without("postgres.port");
        project.write("migrate.py", MIGRATE);
        let mut tandem = Tandem::up(&project);
        tandem.wait_log(&format!("PG*: {path} 0 URL: {path} 0"));
        control::run(&project, &["deploy"]).expect(0, &["replaced 1 workers"]);
        // Without options in the URL, libpq reads PGOPTIONS for it.
        tandem.wait_log(&format!("PG*: {path} 3s URL: {path} 3s"));
        assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    }
}

#[test]
fn what_cannot_import_the_application_for_a_file_of_its_own_is_told_which() {
    let project = Project::app_with(
        "main:app",
        &format!(
            "workers.count = 1\npool.size = 1\npool.overflow = 1\nmigrations.run = ['python', '-c', \"{IMPORTS}\"]\n\
             hooks.after_ready = ['python', '-c', \"{IMPORTS}\"]"
        ),
    )
    .without("workers.app_dir");
    project.configure("workers.app_dir = 'src'");
    project.write("src/models.py", "");
    project.write("src/email.py", "");
    let app = "async def app(scope, receive, send):
    await send({'type': 'http.response.start', 'status': 200, 'headers': []})
    await send({'type': 'http.response.body', 'body': b'ok'})
";
    project.write("src/main.py", app);
    let mut tandem = Tandem::up(&project);
    project.write("go", "");
    let words = ["No module named 'models'", "src/email.py would be taken for a module of Python's own"];
    control::run(&project, &["deploy"]).expect(1, &words);
    control::run(&project, &["reload"]).expect(0, &["replaced 1 workers"]);
    tandem.wait_log("hooks.after_ready (`python");
    for word in words {
        assert!(tandem.log().matches(word).count() >= 2, "{}", tandem.log());
    }
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    // A start that migrates tells it too.
    refusal::up(&project).expect(1, &words);
}
