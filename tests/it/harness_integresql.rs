//! IntegreSQL's interface, spoken to by its client for Python from the package index, and by hand.

use crate::common::harness::Suite;

/// Fills a template through the client, takes databases, and prints what it saw.
const CLIENT: &str = r#"
import pathlib, sys, psycopg2
from integresql_client_python import IntegreSQL, errors

def sql(info, text):
    with psycopg2.connect(str(info)) as connection:
        cursor = connection.cursor()
        cursor.execute(text)
        return cursor.fetchone()[0] if cursor.description else None

pathlib.Path("schema").mkdir(exist_ok=True)
pathlib.Path("schema/1.sql").write_text("CREATE TABLE items (x int)")
integre = IntegreSQL("schema")
try:
    integre.get_template().get_database().open()
except errors.TemplateNotFound:
    print("unknown before")
template = integre.get_template().initialize()
with template as info:
    sql(info, pathlib.Path("schema/1.sql").read_text() + "; INSERT INTO items VALUES (1)")
again = IntegreSQL("schema").get_template().initialize()
print("filled once" if again.dbinfo is None else "filled twice")
with template.get_database() as one, template.get_database() as two:
    assert one.name != two.name
    sql(one, "INSERT INTO items VALUES (2)")
    print(sql(one, "SELECT count(*) FROM items"), sql(two, "SELECT count(*) FROM items"))
    template.get_database().mark_unmodified(two)
integre.discard_template(integre.tpl_hash)
try:
    template.get_database().open()
except errors.DatabaseDiscarded:
    print("discarded")
integre.reset_all_tracking()
integre.get_template().initialize()
print("begun anew")
"#;

#[test]
fn integresqls_python_client_works_unchanged() {
    let suite = Suite::with("migrations.run = 'none'");
    suite.write("client.py", CLIENT);
    let expected = ["unknown before\n", "filled once\n", "2 1\n", "discarded\n", "begun anew\n"];
    suite.run(&["--integresql"], "python client.py").expect(0, &expected);
}

#[test]
fn who_comes_second_waits_until_the_template_is_filled() {
    let suite = Suite::with("migrations.run = 'none'");
    suite.write(
        "second.py",
        "import os, json, threading, urllib.request as request\n\
         base = os.environ['INTEGRESQL_CLIENT_BASE_URL'] + '/' + os.environ['INTEGRESQL_CLIENT_API_VERSION']\n\
         def ask(method, path, body=None):\n    \
             data = None if body is None else json.dumps(body).encode()\n    \
             made = request.Request(base + path, data, {'Content-Type': 'application/json'}, method=method)\n    \
             with request.urlopen(made) as answer:\n        text = answer.read()\n    \
             return json.loads(text) if text else None\n\
         ask('POST', '/templates', {'hash': 'abc'})\n\
         seen = []\n\
         waiting = threading.Thread(target=lambda: seen.append(ask('GET', '/templates/abc/tests')))\n\
         waiting.start()\n\
         waiting.join(0.2)\n\
         assert not seen\n\
         ask('PUT', '/templates/abc')\n\
         waiting.join(30)\n\
         test = seen[0]\n\
         assert test['database']['templateHash'] == 'abc' and test['database']['config']['port']\n\
         ask('POST', f\"/templates/abc/tests/{test['id']}/recreate\")\n\
         for method, path, status in [('GET', '/templates/none/tests', 404), ('PUT', '/templates/none', 404), ('POST', '/nothing', 404)]:\n    \
             try:\n        ask(method, path, {} if method == 'POST' else None)\n    \
             except request.HTTPError as error:\n        assert error.code == status, (path, error.code)\n    \
             else:\n        raise SystemExit(path)\n\
         print('as it should be')\n",
    );
    suite.run(&["--integresql"], "python second.py").expect(0, &["as it should be"]);
}

#[test]
fn without_the_flag_nothing_listens_for_it() {
    Suite::bare().run(&[], "echo \"[${INTEGRESQL_CLIENT_BASE_URL-}]\"").expect(0, &["[]\n"]);
}
