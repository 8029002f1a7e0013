//! What a proof of a backup compares, and in which world; and which backup is the latest.

use std::fs;

use crate::common::backups::{as_superuser, backup, dir, path, replace_sql, rewrite, running, running_with, sql};
use crate::common::project::Project;
use crate::common::refusal;
use crate::common::tandem::{self, Tandem, wait_for};
use serde_json::{Value, json};

/// Schemas that PostgreSQL writes down in another way after a reload, names that a reload chooses anew, checks and ranges that
/// hold in one locale alone, and one of each kind of object.
const ORDINARY: &str = r"
    CREATE TABLE enumlike (s varchar(10) CHECK (s IN ('a', 'b')), n int CHECK (n BETWEEN 1 AND 9 AND n <> ALL ('{3,4}'::int[])));
    INSERT INTO enumlike VALUES ('a', 1), ('b', 2);
    CREATE TABLE people (name text CHECK (name ~ '^\w+$'), big text CHECK (big = upper(big)));
    INSERT INTO people VALUES ('Größe', 'GRÖSSE'), ('naïve', 'É');
    CREATE DOMAIN word AS text CHECK (VALUE ~ '^\w+$' AND VALUE NOT IN ('x', 'y'));
    CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
    CREATE TYPE pair AS (a int, b text);
    CREATE TYPE textspan AS RANGE (subtype = text);
    CREATE TABLE typed (w word, m mood, p pair, t textspan, g int GENERATED ALWAYS AS (1 + 1) STORED, i int GENERATED ALWAYS AS IDENTITY);
    INSERT INTO typed (w, m, p, t) VALUES ('Ärger', 'ok', (1, 'b'), textspan('a', 'z'));
    CREATE TABLE by_text (name text) PARTITION BY RANGE (name);
    CREATE TABLE by_text_1 PARTITION OF by_text FOR VALUES FROM ('A') TO ('n');
    CREATE TABLE by_text_2 PARTITION OF by_text DEFAULT;
    INSERT INTO by_text VALUES ('Zebra'), ('apple'), ('Ähre'), ('zoo');
    CREATE TABLE other (id int PRIMARY KEY);
    INSERT INTO other SELECT generate_series(1, 20);
    CREATE TABLE by_mood (m mood, id int REFERENCES other) PARTITION BY HASH (m);
    CREATE TABLE by_mood_0 PARTITION OF by_mood FOR VALUES WITH (MODULUS 2, REMAINDER 0);
    CREATE TABLE by_mood_1 PARTITION OF by_mood FOR VALUES WITH (MODULUS 2, REMAINDER 1);
    INSERT INTO by_mood SELECT (ARRAY['sad', 'ok', 'happy']::mood[])[n % 3 + 1], n FROM generate_series(1, 20) AS n;
    CREATE INDEX ON by_mood (id);
    CREATE TABLE parent (a int, CONSTRAINT positive CHECK (a > 0));
    CREATE TABLE child (b int) INHERITS (parent);
    ALTER TABLE parent ADD COLUMN later text DEFAULT 'x';
    INSERT INTO child VALUES (1, 2, 'y');
    CREATE TABLE unsure (n int); CREATE TABLE surer () INHERITS (unsure); INSERT INTO unsure VALUES (1);
    ALTER TABLE unsure ADD CONSTRAINT doubtful CHECK (n > 0) NOT VALID;
    ALTER TABLE surer VALIDATE CONSTRAINT doubtful;
    CREATE TABLE late (id int, CONSTRAINT unproven CHECK (id < 10) NOT VALID,
                       CONSTRAINT deferred FOREIGN KEY (id) REFERENCES other DEFERRABLE INITIALLY DEFERRED, UNIQUE NULLS NOT DISTINCT (id));
    CREATE TABLE spans (during int4range, n int, EXCLUDE USING gist (during WITH &&) WHERE (n > 0 AND n IN (1, 2)));
    INSERT INTO spans VALUES ('[1,5)', 1), ('[5,9)', 1);
    CREATE INDEX by_length ON people (length(name)) WHERE name IN ('a', 'b');
    CREATE STATISTICS together ON s, n FROM enumlike;
    CREATE VIEW seen AS SELECT s FROM enumlike WHERE s IN ('a', 'b');
    CREATE MATERIALIZED VIEW counted AS SELECT count(*) FROM people;
    CREATE MATERIALIZED VIEW uncounted AS SELECT count(*) FROM people WITH NO DATA;
    CREATE MATERIALIZED VIEW lower_one AS SELECT 1 AS n;
    CREATE VIEW between_them AS SELECT n FROM lower_one;
    CREATE MATERIALIZED VIEW a_higher_one AS SELECT n FROM between_them;
    CREATE MATERIALIZED VIEW the_highest AS SELECT n FROM a_higher_one;
    REFRESH MATERIALIZED VIEW lower_one WITH NO DATA;
    CREATE FUNCTION double(int, VARIADIC rest text[] DEFAULT '{}') RETURNS int LANGUAGE sql AS 'SELECT $1 * 2';
    CREATE PROCEDURE nothing(INOUT x int) LANGUAGE plpgsql AS 'BEGIN x := 1; END';
    CREATE AGGREGATE longest(text) (SFUNC = pg_catalog.textcat, STYPE = text);
    CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
    CREATE TRIGGER touched BEFORE INSERT ON by_mood FOR EACH ROW EXECUTE FUNCTION touch();
    CREATE CONSTRAINT TRIGGER checked AFTER INSERT ON people DEFERRABLE FOR EACH ROW EXECUTE FUNCTION touch();
    ALTER TABLE people ENABLE ROW LEVEL SECURITY;
    CREATE POLICY own ON people USING (name IN ('a', 'b'));
    CREATE RULE quiet AS ON DELETE TO spans DO INSTEAD NOTHING;
    CREATE SEQUENCE counter START 5;
    SELECT nextval('counter');
    SELECT lo_create(0);
    CREATE COLLATION plain (provider = libc, locale = 'C');
    CREATE TABLE collated (t text COLLATE plain CHECK (t < 'b' COLLATE plain));
";

fn state(project: &Project) -> Value {
    let list: Value = serde_json::from_slice(&tandem::run(project, &["backup", "list", "--json"]).stdout).unwrap();
    list[0]["state"].clone()
}

#[test]
fn whatever_a_reload_writes_in_another_way_a_sound_backup_is_verified_and_restored() {
    let (project, _tandem) = running_with("backup.verify = 'content'");
    sql(&project, ORDINARY);
    as_superuser(&project, "app", "CREATE EXTENSION pg_trgm; CREATE PUBLICATION all_of_it FOR ALL TABLES");
    let digest = "SELECT md5(string_agg(t::text, ',' ORDER BY t::text COLLATE \"C\")) FROM (SELECT s, n::text FROM enumlike \
                  UNION ALL SELECT name, big FROM people UNION ALL SELECT m::text, id::text FROM by_mood \
                  UNION ALL SELECT name, '' FROM by_text) AS t";
    let before = sql(&project, digest);
    for format in ["plain", "custom", "directory"] {
        backup(&project, &["--format", format]);
    }
    refusal::run(&project, &["backup", "verify", "--all"]).expect(0, &["verified"]);
    refusal::run(&project, &["restore", "latest", "--yes"]).expect(0, &["holds"]);
    assert_eq!(sql(&project, digest), before);
}

/// Every new database has the language, and pg_dump writes neither that it is there nor that it is not.
#[test]
fn a_database_without_plpgsql_is_verified_and_restored() {
    let (project, _tandem) = running();
    as_superuser(&project, "postgres", "CREATE DATABASE bare OWNER app");
    as_superuser(
        &project,
        "bare",
        "DROP EXTENSION plpgsql; CREATE TABLE t AS SELECT 1 AS n; ALTER TABLE t OWNER TO app",
    );
    let run = |args: &[&str]| refusal::run(&project, &[&["--set", "postgres.database=bare"], args].concat());
    run(&["backup"]).expect(0, &["1 rows in 1 tables"]);
    run(&["backup", "verify"]).expect(0, &["verified, 1 rows in 1 tables"]);
    run(&["restore", "latest", "--yes"]).expect(0, &["1 rows in 1 tables"]);
}

/// pg_amcheck makes an extension to look with.
#[test]
fn an_event_trigger_that_refuses_every_change_keeps_no_backup_from_its_proof() {
    let (project, _tandem) = running();
    as_superuser(
        &project,
        "app",
        "CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN RAISE ''no change here''; END';
         CREATE EVENT TRIGGER \"the \"\"late\"\" one\" ON ddl_command_end WHEN TAG IN ('CREATE EXTENSION') EXECUTE FUNCTION refuse();
         ALTER EVENT TRIGGER \"the \"\"late\"\" one\" ENABLE ALWAYS;
         CREATE EVENT TRIGGER guard ON ddl_command_start EXECUTE FUNCTION refuse()",
    );
    for format in ["plain", "directory"] {
        backup(&project, &["--format", format]);
        refusal::run(&project, &["backup", "verify"]).expect(0, &["verified"]);
        refusal::run(&project, &["restore", "latest", "--yes"]).expect(0, &["holds"]);
        let enabled = "SELECT string_agg(evtenabled::text, '' ORDER BY evtname) FROM pg_event_trigger";
        assert_eq!(as_superuser(&project, "app", enabled), "OA", "{format}");
    }
}

#[test]
fn what_is_missing_beside_rows_and_constraints_is_named() {
    let (project, _tandem) = running();
    sql(
        &project,
        "CREATE INDEX by_body ON \"odd \"\" name\" (body); CREATE VIEW seen AS SELECT 1 AS one; ALTER TABLE api_keys ADD more int",
    );
    let manifest = backup(&project, &[]);
    replace_sql(&project, &manifest, |text| {
        let without = |text: String, statement: &str| {
            let at = text.find(statement).unwrap();
            let end = at + text[at..].find(";\n").unwrap() + 2;
            format!("{}{}", &text[..at], &text[end..])
        };
        let text = without(text, "CREATE INDEX by_body");
        let text = without(text, "ALTER VIEW public.seen");
        without(text, "CREATE VIEW public.seen")
    });
    let words =
        ["index public.by_body on public.\"odd \"\" name\" is missing", "view public.seen: one integer is missing"];
    refusal::run(&project, &["backup", "verify"]).expect(1, &words);
    refusal::run(&project, &["restore", "latest", "--yes", "--older"]).expect(1, &["no backup of database app"]);
}

/// The numbers of rows are right in all of it.
#[test]
fn other_rows_and_sequences_elsewhere_are_named_where_that_is_asked_for() {
    let (project, mut tandem) = running_with("backup.verify = 'content'");
    let more = "CREATE TABLE kept (id bigserial, price numeric, seen timestamptz DEFAULT now(), raw bytea, f float8, spent money);
         INSERT INTO kept (price, raw, f, spent) SELECT n, sha256(n::text::bytea), 1.0 / n, n FROM generate_series(1, 50) AS n;
         CREATE TABLE split (day date, n int) PARTITION BY RANGE (day);
         CREATE TABLE split_1 PARTITION OF split FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
         CREATE TABLE split_2 PARTITION OF split DEFAULT;
         INSERT INTO split SELECT '2026-01-20'::date + n, n FROM generate_series(1, 30) AS n;
         CREATE SEQUENCE down INCREMENT -2; SELECT nextval('down'); SELECT nextval('down')";
    sql(&project, more);
    as_superuser(&project, "app", "SELECT lo_from_bytea(0, 'large')");
    let manifest = backup(&project, &[]);
    refusal::run(&project, &["backup", "verify"]).expect(0, &["verified"]);
    // Text that is right in every other way: a price, a day, a byte of a large object, two sequences.
    let swapped = |text: String, this: &str, that: &str| {
        assert!(text.contains(this), "{this}: {text}");
        text.replacen(this, that, 1)
    };
    replace_sql(&project, &manifest, |text| {
        let text = swapped(text, "\n17\t17\t", "\n17\t71\t");
        let text = swapped(text, "2026-01-25\t5", "2026-01-25\t6");
        let text = swapped(text, "\\x6c61726765", "\\x6c61726766");
        let text = swapped(text, "setval('public.down', -3, true)", "setval('public.down', -5, true)");
        swapped(text, "setval('public.kept_id_seq', 50, true)", "setval('public.kept_id_seq', 1, false)")
    });
    let bad = [
        "table public.kept holds other rows, though as many",
        "table public.split holds other rows, though as many",
        "the large objects hold other bytes",
        "sequence public.down is -5, not -3",
        "sequence public.kept_id_seq is unused, not 50",
    ];
    refusal::run(&project, &["backup", "verify"]).expect(1, &bad);
    // By name it is not put in place either.
    let file = manifest["file"].as_str().unwrap();
    refusal::run(&project, &["restore", file, "--yes"]).expect(1, &["sequence public.down"]);
    // Without digests a proof is as cheap as it was: sequences are compared, rows are counted.
    project.reconfigure(|text| text.replace("'content'", "'weekly'"));
    let manifest = backup(&project, &[]);
    assert_eq!(manifest["census"]["contents"], Value::Null);
    replace_sql(&project, &manifest, |text| swapped(text, "\n17\t17\t", "\n17\t71\t"));
    refusal::run(&project, &["backup", "verify"]).expect(0, &["verified"]);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn a_backup_that_this_machine_cannot_try_is_not_bad() {
    let (project, _tandem) = running();
    let manifest = backup(&project, &[]);
    // An extension that is not installed here. What a locale makes of it that no machine has is told in `machine_lacks`.
    replace_sql(&project, &manifest, |text| text.replacen("CREATE TABLE", "CREATE EXTENSION nosuch;\nCREATE TABLE", 1));
    let words = ["could not be tried here, which says nothing against it", "nosuch"];
    refusal::run(&project, &["backup", "verify", "--all"]).expect(75, &words);
    assert_eq!(state(&project), "unverified");
}

#[test]
fn a_backup_whose_locale_this_machine_lacks_is_restored_with_another_that_is_named() {
    let (project, _tandem) = running();
    let manifest = backup(&project, &[]);
    rewrite(&project, &manifest, |it| it["census"]["properties"]["collate"] = json!("xx_XX.utf8"));
    let words = ["database app is as it was", "does not have the locale", "xx_XX.utf8", "locale-gen", "--locale"];
    refusal::run(&project, &["restore", "latest", "--yes"]).expect(1, &words);
    let locale = "SELECT datcollate || ' ' || datctype FROM pg_database WHERE datname = 'app'";
    for args in [&["restore", "--locale", "C"][..], &["--set", "restore.locale=C.UTF-8", "restore"]] {
        refusal::run(&project, &[args, &["latest", "--yes"]].concat()).expect(0, &["holds"]);
        let name = args[args.len() - 1].replace("restore", "C.UTF-8");
        assert_eq!(as_superuser(&project, "postgres", locale), format!("{name} {name}"));
    }
}

/// A server that bears few locks: 1,220, and some more as long as shared memory is left (PostgreSQL, `max_locks_per_transaction`).
const FEW_LOCKS: &str = "workers.count = 1\nmigrations.run = 'none'\npostgres.settings.max_locks_per_transaction = '10'\n\
     pool.size = 1\npool.overflow = 0";

#[test]
fn more_tables_than_one_transaction_can_lock_are_verified_and_restored() {
    let project = Project::app_with("plain:app", FEW_LOCKS);
    let _tandem = Tandem::up(&project);
    // `pg_dump` locks 1,000 objects, and one transaction that made them all would lock 2,500.
    for hundred in 0..5 {
        let create = "EXECUTE format('CREATE TABLE t%s (id serial PRIMARY KEY, s text)', n)";
        let all =
            format!("DO $$BEGIN FOR n IN {}..{} LOOP {create}; END LOOP; END$$", hundred * 100, hundred * 100 + 99);
        sql(&project, &all);
    }
    backup(&project, &[]);
    refusal::run(&project, &["backup", "verify"]).expect(0, &["verified, 0 rows in 500 tables"]);
    refusal::run(&project, &["restore", "latest", "--yes"]).expect(0, &["0 rows in 500 tables"]);
}

#[test]
fn more_large_objects_or_views_than_one_transaction_can_lock_are_verified_and_restored() {
    let project = Project::app_with("plain:app", FEW_LOCKS);
    let _tandem = Tandem::up(&project);
    let views = "DO $$BEGIN FOR n IN 1..50 LOOP EXECUTE format('CREATE VIEW v%s_%s AS SELECT 1', hundredth, n); END LOOP; END$$";
    for (database, statement, times) in
        [("large", "SELECT count(lo_create(0)) FROM generate_series(1, 3000)", 1), ("seen", views, 40)]
    {
        as_superuser(&project, "postgres", &format!("CREATE DATABASE {database} OWNER app"));
        for time in 0..times {
            let statement = statement.replace("hundredth", &time.to_string());
            as_superuser(&project, database, &format!("SET ROLE app; {statement}"));
        }
        let name = format!("postgres.database={database}");
        let run = |args: &[&str]| refusal::run(&project, &[&["--set", &name], args].concat());
        run(&["backup"]).expect(0, &["0 rows in 0 tables"]);
        run(&["backup", "verify"]).expect(0, &["verified, 0 rows in 0 tables"]);
        run(&["restore", "latest", "--yes"]).expect(0, &["0 rows in 0 tables"]);
    }
}

#[test]
fn latest_is_the_latest_and_an_older_one_is_restored_only_when_that_is_said() {
    let (project, mut tandem) = running();
    let good = backup(&project, &[]);
    let bad = backup(&project, &[]);
    fs::write(path(&project, &bad), "").unwrap();
    refusal::run(&project, &["backup", "verify"]).expect(1, &["is empty"]);
    let (good, bad) = (good["file"].as_str().unwrap(), bad["file"].as_str().unwrap());
    let refused = refusal::run(&project, &["restore", "latest", "--yes"]);
    refused.expect(
        1,
        &["the latest backup cannot be restored", bad, "is bad", good, "earlier", "--older", "Nothing was changed"],
    );
    refusal::run(&project, &["restore", "latest", "--yes", "--older"]).expect(0, &[good]);
    // A new machine neither begins with an older one nor with none.
    assert_eq!(tandem.stop(), 0);
    let elsewhere = Project::app_with(
        "plain:app",
        &format!("restore.if_empty = 'latest'\nbackup.dir = '{}'", dir(&project).display()),
    );
    refusal::up(&elsewhere).expect(1, &["restore.if_empty", "the latest backup cannot be restored", good]);
}

#[test]
fn what_a_destination_lacks_is_sent_later_and_not_removed_before() {
    let temp = tempfile::tempdir().unwrap();
    let place = temp.path().join("place");
    let project = Project::app_with(
        "plain:app",
        &format!(
            "workers.count = 1\nmigrations.run = 'none'\nbackup.destinations = ['file://{}']\nbackup.retention_count = 1\n\
             backup.verify = 'never'\nbackup.schedule = 'never'\nbackup.retry_limit = '1s'",
            place.display()
        ),
    );
    let _tandem = Tandem::up(&project);
    let dumps = |dir: &std::path::Path| {
        let mut names = refusal::names(dir);
        names.retain(|name| name.ends_with(".sql.gz"));
        names.sort();
        names
    };
    for taken in 1..=3 {
        assert_ne!(refusal::run(&project, &["backup", "scheduled"]).code, 0, "the destination is not there");
        assert_eq!(dumps(&dir(&project)).len(), taken, "none may go that was not copied");
    }
    let kept = dumps(&dir(&project));
    // Names tell the age, and two of one second cannot have the same.
    let until_newer = || {
        let newest = dumps(&dir(&project)).pop().unwrap();
        wait_for("a newer name", || {
            chrono::Utc::now().format("app_backup_%Y%m%d_%H%M%S").to_string().as_str()
                > newest.trim_end_matches(".sql.gz")
        });
    };
    until_newer();
    refusal::run(&project, &["backup", "prune", "--dry-run"]).expect(0, &["it is not in every destination yet"]);
    fs::create_dir(&place).unwrap();
    refusal::run(&project, &["backup", "scheduled"]).expect(0, &[]);
    // All were sent, and then retention let the old ones go, there too.
    assert_eq!(dumps(&dir(&project)), dumps(&place));
    assert_eq!(dumps(&place).len(), 1, "{:?}", dumps(&place));
    assert!(!kept.contains(&dumps(&place)[0]));

    // Out of reach, it keeps no copied backup from going; the copy goes when it can.
    let away = temp.path().join("away");
    let before = dumps(&place);
    until_newer();
    fs::rename(&place, &away).unwrap();
    assert_ne!(refusal::run(&project, &["backup", "scheduled"]).code, 0);
    assert!(!dumps(&dir(&project)).contains(&before[0]), "it was copied, and may go here");
    assert_eq!(dumps(&away), before, "its copy waits");
    fs::rename(&away, &place).unwrap();
    until_newer();
    refusal::run(&project, &["backup", "scheduled"]).expect(0, &[]);
    assert_eq!(dumps(&dir(&project)), dumps(&place));
    assert!(!dumps(&place).contains(&before[0]), "{:?}", dumps(&place));
}
