//! IntegreSQL's interface for clients that never give a database back, and for those that wait until it is ready.

use crate::common::harness::Suite;

const TOOLS: &str = r#"
import json, os, psycopg2, urllib.request as request
address = os.environ["INTEGRESQL_CLIENT_BASE_URL"]
base = address + "/" + os.environ["INTEGRESQL_CLIENT_API_VERSION"]

def ask(method, url, body=None):
    data = None if body is None else json.dumps(body).encode()
    made = request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    with request.urlopen(made, timeout=60) as answer:
        text = answer.read()
    return json.loads(text) if text else None

def connect(info):
    config = info["database"]["config"]
    return psycopg2.connect(host=config["host"], port=config["port"], user=config["username"], password=config["password"], dbname=config["database"])

"#;

const CLIENT: &str = r#"
print(ask("GET", address.removesuffix("/api") + "/-/ready"))
connect(ask("POST", base + "/templates", {"hash": "abc"})).close()
ask("PUT", base + "/templates/abc")
test = lambda: ask("GET", base + "/templates/abc/tests")
first = test()
running = connect(first)
taken = [test() for _ in range(199)]
# The oldest has a connection: it is another one's turn, and the running test keeps its own.
late = [test()["id"] for _ in range(3)]
assert first["id"] not in late
running.cursor().execute("CREATE TABLE mine (x int)")
print("kept", first["id"])
"#;

#[test]
fn beyond_two_hundred_clones_those_in_use_stay_with_their_tests() {
    let suite = Suite::with("migrations.run = 'none'");
    suite.write("client.py", &format!("{TOOLS}{CLIENT}"));
    let options = ["--integresql", "--set", "test.max_connections=40"];
    suite.run(&options, "python client.py").expect(0, &["Ready.\n", "kept "]);
}

/// What cannot be done now is told as that, and not as an error of the client's or of this program's.
const REFUSED: &str = r#"
import signal
from urllib.error import HTTPError

def refused(method, url, body=None):
    try:
        return 200, ask(method, url, body)
    except HTTPError as error:
        return error.code, json.loads(error.read())

connect(ask("POST", base + "/templates", {"hash": "abc"})).close()
ask("PUT", base + "/templates/abc")
running = [connect(ask("GET", base + "/templates/abc/tests")) for _ in range(200)]
print("in use", *refused("GET", base + "/templates/abc/tests"))
state = os.path.dirname(os.path.dirname(os.environ["TANDEM_TEST_SOCKET"]))
# It is started again until it stays down: in between it may answer.
for number in range(100):
    try:
        with open(state + "/postgres/16/postmaster.pid") as file:
            os.kill(int(file.readline()), signal.SIGKILL)
    except (OSError, ValueError):
        pass
    code, answer = refused("POST", base + "/templates", {"hash": f"other {number}"})
    if code != 200:
        break
print("no server", code, answer)
"#;

#[test]
fn what_cannot_be_done_now_is_refused_as_unavailable() {
    let suite = Suite::with("migrations.run = 'none'");
    suite.write("client.py", &format!("{TOOLS}{REFUSED}"));
    let options = ["--integresql", "--set", "test.max_connections=240"];
    let run = suite.run(&options, "python client.py");
    for words in ["in use 503 ", "all are in use", "no server 503 "] {
        assert!(run.said.contains(words), "{}", run.said);
    }
}
