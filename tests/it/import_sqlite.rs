//! `tandem import sqlite`: all rows of a file arrive as they are, or nothing is written and the reason is told.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rusqlite::Connection;
use serde_json::Value;

use crate::common::backups::sql;
use crate::common::project::Project;
use crate::common::refusal::{self, Refusal};
use crate::common::tandem::{self, Tandem};

fn project() -> Project {
    Project::app_with("plain:app", "workers.count = 1\nmigrations.run = 'none'")
}

/// A file of the project, made by `statements`.
fn file(project: &Project, name: &str, statements: &str) -> (PathBuf, Connection) {
    let path = project.dir().join(name);
    let connection = Connection::open(&path).unwrap();
    // As most programs have it.
    connection.execute_batch("PRAGMA foreign_keys = OFF").unwrap();
    connection.execute_batch(statements).unwrap();
    (path, connection)
}

fn import(project: &Project, path: &Path, args: &[&str]) -> Refusal {
    let path = path.to_str().unwrap();
    refusal::run(project, &[&["import", "sqlite", path], args].concat())
}

/// Names that are words of SQL or have quotes in them, rows that refer to each other in a circle, and every kind of value.
const SHOP: &str = "
    PRAGMA journal_mode = WAL;
    CREATE TABLE \"user\" (id INTEGER PRIMARY KEY AUTOINCREMENT, name VARCHAR(20) NOT NULL UNIQUE, active BOOLEAN DEFAULT 1,
        best INTEGER REFERENCES \"order \"\"x\"\"\" (\"select\"), boss INTEGER REFERENCES \"user\" (id));
    CREATE TABLE \"order \"\"x\"\"\" (\"select\" INTEGER PRIMARY KEY, \"user\" INTEGER NOT NULL REFERENCES \"user\" ON DELETE CASCADE,
        price DECIMAL(10, 2), at DATETIME DEFAULT CURRENT_TIMESTAMP, seen TIMESTAMP, day DATE, body JSON, data BLOB, mark UUID,
        twice REAL GENERATED ALWAYS AS (price * 2) VIRTUAL, anything);
    CREATE INDEX by_day ON \"order \"\"x\"\"\" (day DESC);
    CREATE TABLE pair (a TEXT, b INT, PRIMARY KEY (a, b)) WITHOUT ROWID;
    CREATE TABLE empty (id INTEGER PRIMARY KEY, note TEXT);
    CREATE VIEW names AS SELECT name FROM \"user\";
    CREATE TRIGGER stamp AFTER INSERT ON empty BEGIN UPDATE empty SET note = 'x'; END;
    CREATE VIRTUAL TABLE texts USING fts5(body);
    INSERT INTO \"user\" VALUES (1, 'Ünal', 1, NULL, 7), (7, 'tab' || char(9) || 'back\\slash', 0, 11, 1), (9, '', NULL, NULL, NULL);
    INSERT INTO \"order \"\"x\"\"\" VALUES
        (10, 7, 19.99, '2024-05-06 07:08:09.123456', 1700000000, '2024-05-06', '{\"a\": [1]}', x'00ff', '6ba7b8109dad11d180b400c04fd430c8', 1),
        (11, 1, 0.1 + 0.2, '2024-05-06T07:08:09', 2460437.5, NULL, NULL, NULL, NULL, 'two');
    INSERT INTO pair VALUES ('a', 1), ('a', 2);
    DELETE FROM \"user\" WHERE id = 9;";

#[test]
fn every_row_arrives_as_it_is_and_the_numbers_go_on() {
    let project = project();
    // Open all the while, in WAL mode, with a change that is not committed.
    let (path, connection) = file(&project, "shop ü.sqlite3", SHOP);
    connection.execute_batch("BEGIN; INSERT INTO empty VALUES (1, 'not committed')").unwrap();
    let before = fs::read(&path).unwrap();
    let dry = import(&project, &path, &["--dry-run"]);
    dry.expect(
        0,
        &[
            "make user, 2 rows: id bigint, name varchar(20), active boolean",
            "price numeric(10,2), at timestamp, seen timestamp, day date, body jsonb, data bytea, mark uuid",
            "twice is computed in the file",
            "anything has no type; by its values it becomes text",
            "not carried over: view names",
            "not carried over: trigger stamp of empty",
            "not carried over: virtual table texts",
            "1 whole numbers are read as seconds (or milliseconds) since 1970, 1 others as Julian days",
            "nothing was written (--dry-run)",
        ],
    );
    let _tandem = Tandem::up(&project);
    import(&project, &path, &[])
        .expect(64, &["6 rows will be written into 4 tables", "say --yes", "Nothing was changed"]);
    import(&project, &path, &["--yes"]).expect(
        0,
        &[
            "6 rows are in 4 tables of database app now; the counts agree",
            "next numbers: user.id 10, order \"x\".select 12, empty.id 1",
        ],
    );
    assert_eq!(fs::read(&path).unwrap(), before, "the file is only read");
    let rows = sql(&project, "SELECT id, name, active, best, boss FROM \"user\" ORDER BY id");
    assert_eq!(rows, "1|Ünal|t||7\n7|tab\tback\\slash|f|11|1");
    let rows = sql(
        &project,
        "SELECT price, at, seen, day, body, data, mark, twice, anything FROM \"order \"\"x\"\"\" ORDER BY 1 DESC",
    );
    let (first, second) = rows.split_once('\n').unwrap();
    assert_eq!(
        first,
        "19.99|2024-05-06 07:08:09.123456|2023-11-14 22:13:20|2024-05-06|{\"a\": [1]}|\\x00ff|6ba7b810-9dad-11d1-80b4-00c04fd430c8|39.98|1"
    );
    assert!(
        second.starts_with("0.30|2024-05-06 07:08:09|2024-05-07 00:00:00|||||0.6") && second.ends_with("|two"),
        "{second}"
    );
    assert_eq!(sql(&project, "SELECT count(*) FROM empty"), "0", "what was not committed stays out");
    // Defaults, numbering, keys and indexes are there.
    assert_eq!(sql(&project, "INSERT INTO \"user\" (name) VALUES ('new') RETURNING id, active"), "10|t");
    let keys = "SELECT count(*) FILTER (WHERE contype = 'f'), count(*) FILTER (WHERE contype = 'u') FROM pg_constraint
                WHERE conrelid::regclass::text IN ('\"user\"', '\"order \"\"x\"\"\"')";
    assert_eq!(sql(&project, keys), "3|1");
    assert_eq!(sql(&project, "SELECT count(*) FROM pg_indexes WHERE indexname = 'by_day'"), "1");
    assert_eq!(sql(&project, "SELECT tableowner FROM pg_tables WHERE tablename = 'pair'"), "app");
    // A second time, beside the running server: the tables hold rows now.
    import(&project, &path, &["--yes"])
        .expect(1, &["table user holds 3 rows already", "`--replace` deletes them first"]);
    assert_eq!(sql(&project, "SELECT count(*) FROM \"user\""), "3");
    drop(connection);
}

#[test]
fn what_does_not_fit_is_named_and_nothing_is_written_unless_it_may_be_left_out() {
    let project = project();
    let _tandem = Tandem::up(&project);
    let (path, _connection) = file(
        &project,
        "bad.db",
        "CREATE TABLE author (id INTEGER PRIMARY KEY, name TEXT NOT NULL);
         CREATE TABLE book (id INTEGER PRIMARY KEY, pages INTEGER, price DECIMAL(4, 2), out DATE, text TEXT, ok BOOLEAN,
             author INTEGER REFERENCES author (id));
         INSERT INTO author VALUES (1, 'a'), (2, cast(x'ff' AS TEXT));
         INSERT INTO book VALUES (1, 'many', 1, '2024-01-01', 'a', 1, 1), (2, 9223372036854775808, 1, '2024-01-01', 'a', 1, 1),
             (3, 1, 100, '2024-02-30', 'a', 1, 1), (4, 1, 1, '2024-01-01', 'a' || char(0) || 'b', 2, 1),
             (5, 1, 1, '2024-01-01', 'fine', 1, 1), (6, 1, 1, '2024-01-01', 'orphan', 1, 77),
             (7, 1, 1, '2024-01-01', 'of one who is left out', 0, 2), (8, 1, 1, NULL, x'00', NULL, NULL);",
    );
    let told = import(&project, &path, &["--yes"]);
    told.expect(
        1,
        &[
            "book.pages, rowid 1: \"many\" is no bigint",
            "book.pages, rowid 2: 9.223372036854776e18 is beyond",
            "book.price, rowid 3: 100 is too large for numeric(4,2)",
            "book.out, rowid 3: \"2024-02-30\" is no date",
            "book.text, rowid 4: \"a\\0b\" has a NUL character",
            "book.ok, rowid 4: 2 is no boolean",
            "book.author, rowid 6: 77 refers to a row that is not in author",
            "book.text, rowid 8: x'00' (1 bytes) is a blob, not text",
            "author.name, rowid 2",
            "is not UTF-8",
            "9 values of",
            "Nothing was written",
        ],
    );
    let dry = tandem::run(&project, &["import", "sqlite", path.to_str().unwrap(), "--dry-run", "--json"]);
    let json: Value = serde_json::from_slice(&dry.stdout).unwrap();
    assert_eq!(json["misfits"]["total"], 9, "{json}");
    assert_eq!(json["tables"][1]["columns"][1]["type"], "bigint");
    import(&project, &path, &["--yes", "--skip-bad"]).expect(
        0,
        &[
            "2 rows are in 2 tables of database app now",
            "book: 5 rows left out, with values that do not fit",
            "author: 1 rows left out",
            "2 rows left out that refer to a row that is not there",
        ],
    );
    assert_eq!(sql(&project, "SELECT string_agg(id::text, ',') FROM book"), "5");
    assert_eq!(sql(&project, "SELECT string_agg(id::text, ',') FROM author"), "1");
}

#[test]
fn a_file_that_is_locked_damaged_or_none_is_refused_with_what_to_do() {
    let project = project();
    let rows =
        "CREATE TABLE t (a TEXT); WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000)
                INSERT INTO t SELECT hex(randomblob(50)) FROM n;";
    let (path, connection) = file(&project, "locked.db", rows);
    connection.execute_batch("BEGIN EXCLUSIVE").unwrap();
    import(&project, &path, &[]).expect(75, &["is locked: another program writes into it", "fuser"]);
    connection.execute_batch("COMMIT").unwrap();
    drop(connection);
    let server = Tandem::up(&project);
    let damaged = project.dir().join("damaged.db");
    fs::copy(&path, &damaged).unwrap();
    fs::File::options().write(true).open(&damaged).unwrap().write_all_at(&[0xee; 9000], 3 * 4096).unwrap();
    import(&project, &damaged, &["--yes"]).expect(1, &["is damaged", ".recover"]);
    let cut = project.dir().join("cut.db");
    fs::write(&cut, &fs::read(&path).unwrap()[..40_000]).unwrap();
    import(&project, &cut, &["--yes"]).expect(1, &["is damaged"]);
    let other = |name: &str, bytes: &[u8]| {
        let path = project.dir().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let sql = other("dump.sql", b"PRAGMA foreign_keys=OFF;\nBEGIN TRANSACTION;\n");
    import(&project, &sql, &[]).expect(1, &["is no SQLite database", "sqlite3 new.sqlite3 <"]);
    import(&project, &other("x.gz", &[0x1f, 0x8b, 8, 0]), &[]).expect(1, &["compressed with gzip"]);
    import(&project, &other("secret.db", &[7; 4096]), &[]).expect(1, &["an encrypted one must be decrypted first"]);
    import(&project, &other("nothing.db", b""), &["--yes"]).expect(1, &["it has no tables"]);
    import(&project, &project.dir().join("missing.db"), &[]).expect(1, &["missing.db is refused", "No such file"]);
    import(&project, project.dir(), &[]).expect(1, &["it is not a file"]);
    drop(server);
    assert!(tandem::left_in(project.dir()).is_empty());
}

#[test]
fn rows_go_into_the_tables_that_migrations_made() {
    let project = project();
    let made = "CREATE TYPE mood AS ENUM ('glad', 'sad');
        CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY);
        INSERT INTO alembic_version VALUES ('b2');
        CREATE TABLE team (id serial PRIMARY KEY, lead int, name varchar(5) NOT NULL, hours interval);
        CREATE TABLE member (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, team int NOT NULL REFERENCES team, feels mood,
            since timestamptz NOT NULL DEFAULT now(), active boolean NOT NULL, upper_name text GENERATED ALWAYS AS ('M') STORED);
        ALTER TABLE team ADD FOREIGN KEY (lead) REFERENCES member;
        CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
        CREATE TRIGGER no BEFORE INSERT ON team FOR EACH ROW EXECUTE FUNCTION no();";
    let rows = "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL);
        INSERT INTO alembic_version VALUES ('a1');
        CREATE TABLE team (id INTEGER PRIMARY KEY, lead INTEGER REFERENCES member (id), name VARCHAR(5) NOT NULL, hours BIGINT);
        CREATE TABLE member (id INTEGER PRIMARY KEY, team INTEGER NOT NULL REFERENCES team (id), feels VARCHAR(4),
            since DATETIME, active BOOLEAN, gone TEXT);
        INSERT INTO team VALUES (3, 5, 'core', 5400000000);
        INSERT INTO member VALUES (5, 3, 'glad', '2024-05-06 07:08:09', 1, NULL), (6, 3, NULL, '2024-05-06 07:08:09+02:00', 0, NULL);";
    let (path, connection) = file(&project, "old.db", rows);
    let _tandem = Tandem::up(&project);
    // Before the migrations: the file's tables would be in their way.
    import(&project, &path, &["--yes"]).expect(1, &["Alembic made its tables", "`tandem migrate up` first"]);
    sql(&project, made);
    import(&project, &path, &["--yes", "--into", "new"]).expect(1, &["table team is there already"]);
    import(&project, &path, &["--yes"]).expect(
        0,
        &[
            "fill team, 1 rows",
            "leave out alembic_version: the database's own stays",
            "the file alone has these migrations (alembic_version): a1",
            "member.gone is not in the database, and empty in the file: left out",
            "next numbers: team.id 4, member.id 7",
        ],
    );
    assert_eq!(sql(&project, "SELECT * FROM team"), "3|5|core|01:30:00");
    let members =
        sql(&project, "SELECT id, team, feels, since AT TIME ZONE 'utc', active, upper_name FROM member ORDER BY id");
    assert_eq!(members, "5|3|glad|2024-05-06 07:08:09|t|M\n6|3||2024-05-06 05:08:09|f|M");
    assert_eq!(sql(&project, "SELECT version_num FROM alembic_version"), "b2");
    let state = "SELECT count(*) FILTER (WHERE condeferrable), (SELECT tgenabled FROM pg_trigger WHERE tgname = 'no') FROM pg_constraint";
    assert_eq!(sql(&project, state), "0|O", "keys and triggers are as they were");
    // Other values of a type, a name that is too long, a column without a place: told before anything is deleted.
    connection
        .execute_batch("INSERT INTO team VALUES (4, NULL, 'longer', 1); UPDATE member SET feels = 'odd' WHERE id = 6")
        .unwrap();
    import(&project, &path, &["--yes", "--replace"]).expect(
        1,
        &[
            "in place of the 1 that are there",
            "team.name, rowid 4: \"longer\" has 6 characters, and varchar(5) holds 5",
            "member.feels, rowid 6: \"odd\" is none of the values of mood: glad, sad",
        ],
    );
    connection
        .execute_batch("DELETE FROM team WHERE id = 4; UPDATE member SET feels = 'sad', gone = 'x' WHERE id = 6")
        .unwrap();
    import(&project, &path, &["--yes", "--replace"]).expect(1, &["member.gone has values", "no such column"]);
    connection.execute_batch("UPDATE member SET gone = NULL").unwrap();
    sql(&project, "CREATE TABLE note (member int REFERENCES member ON DELETE CASCADE); INSERT INTO note VALUES (5)");
    import(&project, &path, &["--yes", "--replace"])
        .expect(1, &["would change or delete rows of note", "Nothing was written"]);
    assert_eq!(sql(&project, "SELECT count(*) FROM note"), "1");
    sql(&project, "DROP TABLE note");
    import(&project, &path, &["--yes", "--replace"]).expect(0, &["the counts agree"]);
    assert_eq!(sql(&project, "SELECT feels FROM member WHERE id = 6"), "sad");
    // What PostgreSQL alone knows ends the whole of it.
    sql(&project, "ALTER TABLE team ADD CHECK (name <> 'core') NOT VALID");
    import(&project, &path, &["--yes", "--replace"])
        .expect(1, &["violates check constraint", "COPY team, line 1", "Nothing was written"]);
    assert_eq!(sql(&project, "SELECT count(*) FROM team"), "1");
}
