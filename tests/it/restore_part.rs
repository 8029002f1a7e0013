//! `tandem restore --table`, `--schema` and `--database`: part of a backup beside what is live.

use crate::common::backups::{as_superuser, backup, running, sql};
use crate::common::project::Project;
use crate::common::refusal;
use crate::common::tandem;
use serde_json::{Value, json};

/// Orders with everything that a table may have, customers that they refer to, and lines that refer to them. No row is loaded with a
/// superuser's rights.
const SHOP: &str = "
    CREATE TABLE customers (id int PRIMARY KEY, name text);
    INSERT INTO customers SELECT n, 'customer ' || n FROM generate_series(1, 10) AS n;
    CREATE TABLE orders (
        id serial PRIMARY KEY, customer int REFERENCES customers, total numeric DEFAULT 7 CHECK (total >= 0),
        twice numeric GENERATED ALWAYS AS (total * 2) STORED, number int GENERATED ALWAYS AS IDENTITY, note text UNIQUE,
        CHECK (current_setting('is_superuser') = 'off'));
    CREATE INDEX by_customer ON orders (customer) WHERE total > 1;
    CREATE STATISTICS both_of ON customer, total FROM orders;
    COMMENT ON TABLE orders IS 'what was ordered';
    INSERT INTO orders (customer, total, note) SELECT 1 + n % 10, n, 'note ' || n FROM generate_series(1, 300) AS n;
    CREATE TABLE lines (\"order\" int REFERENCES orders, text text);
    INSERT INTO lines SELECT 1 + n % 300, E'a\\\\b\\tc ' || n FROM generate_series(1, 500) AS n";
const ORDERS: &str = "SELECT md5(string_agg(o::text, '|' ORDER BY id)) FROM orders AS o";

fn restore(project: &Project, args: &[&str]) -> Value {
    let output = tandem::run(project, &[&["restore", "latest", "--json"], args].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The names of all databases, and of the roles that loads make.
fn left_over(project: &Project) -> String {
    let names = "SELECT string_agg(name, ' ' ORDER BY name) FROM (
        SELECT datname::text AS name FROM pg_database WHERE NOT datistemplate AND datname NOT IN ('postgres', 'app')
        UNION ALL SELECT rolname FROM pg_roles WHERE rolname LIKE 'tandem\\_%') AS left_over";
    as_superuser(project, "postgres", names)
}

#[test]
fn a_table_comes_back_beside_the_live_one_with_all_that_is_its_own() {
    let (project, _tandem) = running();
    sql(&project, SHOP);
    let was = sql(&project, ORDERS);
    for (format, compress) in [("plain", "zstd"), ("custom", "gzip"), ("directory", "none")] {
        sql(&project, "DROP TABLE IF EXISTS orders_restored");
        backup(&project, &["--format", format, "--compress", compress]);
        sql(&project, "UPDATE orders SET total = 1 WHERE id = 5");
        let live = sql(&project, ORDERS);
        let restored = restore(&project, &["--table", "orders", "--into", "orders_restored"]);
        assert_eq!(
            restored["tables"],
            json!([{ "table": "public.orders", "into": "public.orders_restored", "rows": 300 }]),
            "{format}"
        );
        assert_eq!(
            (sql(&project, ORDERS), sql(&project, &ORDERS.replace("FROM orders", "FROM orders_restored"))),
            (live, was.clone())
        );
        sql(&project, "UPDATE orders SET total = 5 WHERE id = 5");
        assert_eq!(left_over(&project), "");
    }
    // What was left out is told, both ways.
    let restored = restore(&project, &["--table", "orders", "--into", "again"]);
    let keys: Vec<&str> = (restored["foreign_keys_left_out"].as_array().unwrap().iter())
        .map(|key| key["definition"].as_str().unwrap())
        .collect();
    assert_eq!(
        keys,
        [
            "FOREIGN KEY (\"order\") REFERENCES public.orders(id)",
            "FOREIGN KEY (customer) REFERENCES public.customers(id)"
        ]
    );
    // Sequences, indexes and the rest are the copy's own.
    sql(&project, "INSERT INTO orders_restored (note) VALUES ('new')");
    let new = sql(&project, "SELECT id, total, number FROM orders_restored WHERE note = 'new'");
    assert_eq!(new, "301|7|301");
    assert_eq!(sql(&project, "SELECT max(id) FROM orders"), "300");
    let names =
        "SELECT string_agg(relname, ' ' ORDER BY relname) FROM pg_class WHERE relname LIKE 'orders\\_restored%'";
    assert_eq!(
        sql(&project, names),
        "orders_restored orders_restored_by_customer orders_restored_id_seq orders_restored_note_key \
         orders_restored_number_seq orders_restored_pkey"
    );
    let more = "SELECT obj_description('orders_restored'::regclass), count(*) FROM pg_statistic_ext WHERE stxrelid = 'orders_restored'::regclass";
    assert_eq!(sql(&project, more), "what was ordered|0");
    let owner = "SELECT string_agg(DISTINCT relowner::regrole::text, ' ') FROM pg_class WHERE relname LIKE 'orders%'";
    assert_eq!(sql(&project, owner), "app");
    assert_eq!(left_over(&project), "");
}

#[test]
fn tables_that_were_dropped_come_back_under_their_names_and_keep_the_keys_between_them() {
    let (project, _tandem) = running();
    sql(&project, SHOP);
    let was = sql(&project, ORDERS);
    backup(&project, &[]);
    sql(&project, "DROP TABLE lines, orders");
    let said = refusal::run(&project, &["restore", "latest", "--table", "public.orders", "--table", "lines"]);
    said.expect(
        0,
        &[
            "public.orders: 300 rows",
            "public.lines: 500 rows",
            "800 rows in 2 tables",
            "left out, as the other table was not restored with it: of public.orders, orders_customer_fkey FOREIGN KEY",
        ],
    );
    assert_eq!(sql(&project, ORDERS), was);
    let keys = "SELECT string_agg(conname, ' ') FROM pg_constraint WHERE contype = 'f' AND conrelid IN ('orders'::regclass, 'lines'::regclass)";
    assert_eq!(sql(&project, keys), "lines_order_fkey");
    assert_eq!(sql(&project, "INSERT INTO orders (note) VALUES ('x') RETURNING id"), "301");
}

#[test]
fn partitions_come_with_their_table() {
    let (project, _tandem) = running();
    sql(
        &project,
        "CREATE TABLE p (id int, day date, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
         CREATE TABLE p_1 PARTITION OF p FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
         CREATE TABLE p_2 PARTITION OF p FOR VALUES FROM ('2026-02-01') TO ('2026-03-01') PARTITION BY LIST (id);
         CREATE TABLE p_2_odd PARTITION OF p_2 FOR VALUES IN (1, 3);
         CREATE TABLE p_2_rest PARTITION OF p_2 DEFAULT;
         INSERT INTO p SELECT n % 5, '2026-01-01'::date + n FROM generate_series(0, 50) AS n",
    );
    backup(&project, &[]);
    let restored = restore(&project, &["--table", "p", "--into", "q"]);
    assert_eq!(restored["rows"], 51);
    assert_eq!(sql(&project, "SELECT count(*), count(DISTINCT tableoid::regclass) FROM q"), "51|3");
    assert_eq!(sql(&project, "SELECT count(*) FROM q WHERE tableoid = 'q_2_odd'::regclass"), "8");
}

#[test]
fn a_partition_or_a_child_alone_is_no_part_of_the_live_table() {
    let (project, _tandem) = running();
    sql(
        &project,
        "CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id);
         CREATE TABLE p_1 PARTITION OF p FOR VALUES FROM (0) TO (100); INSERT INTO p VALUES (1), (2);
         CREATE TABLE parent (id int); CREATE TABLE child (more text) INHERITS (parent);
         INSERT INTO child VALUES (1, 'of the child'); INSERT INTO parent VALUES (2)",
    );
    backup(&project, &[]);
    let restored = restore(&project, &["--table", "p_1", "--into", "alone", "--table", "child", "--into", "orphan"]);
    assert_eq!(restored["rows"], 3);
    assert_eq!(sql(&project, "SELECT (SELECT count(*) FROM p), (SELECT count(*) FROM alone)"), "2|2");
    assert_eq!(sql(&project, "SELECT (SELECT count(*) FROM parent), (SELECT count(*) FROM orphan)"), "2|1");
}

#[test]
fn a_schema_comes_back_with_all_that_it_has() {
    let (project, _tandem) = running();
    sql(
        &project,
        "CREATE SCHEMA sales; CREATE TYPE sales.state AS ENUM ('open', 'done');
         CREATE FUNCTION sales.initial() RETURNS sales.state LANGUAGE sql AS $$ SELECT 'open'::sales.state $$;
         CREATE TABLE sales.a (id int PRIMARY KEY, state sales.state DEFAULT sales.initial());
         CREATE TABLE sales.b (id int REFERENCES sales.a, key text REFERENCES api_keys);
         CREATE VIEW sales.both AS SELECT a.id, state FROM sales.a JOIN sales.b USING (id);
         INSERT INTO sales.a SELECT n FROM generate_series(1, 20) AS n; INSERT INTO sales.b SELECT id, id::text FROM sales.a",
    );
    backup(&project, &[]);
    sql(&project, "DELETE FROM sales.b");
    let restored = restore(&project, &["--schema", "sales", "--into", "was"]);
    assert_eq!(
        (&restored["rows"], &restored["foreign_keys_left_out"][0]["references"]),
        (&json!(40), &json!("public.api_keys"))
    );
    assert_eq!(sql(&project, "SELECT count(*), min(pg_typeof(state)::text) FROM was.both"), "20|was.state");
    assert_eq!(sql(&project, "SELECT count(*) FROM sales.both"), "0");
    refusal::run(&project, &["restore", "latest", "--schema", "sales"])
        .expect(64, &["schema sales exists in database app and is not empty", "--into NAME", "Nothing was changed"]);
    sql(&project, "DROP SCHEMA sales CASCADE; CREATE SCHEMA sales");
    restore(&project, &["--schema", "Sales"]);
    assert_eq!(sql(&project, "SELECT count(*) FROM sales.both"), "20");
}

#[test]
fn a_whole_backup_becomes_a_database_beside_the_live_one() {
    let (project, _tandem) = running();
    let taken = backup(&project, &[]);
    as_superuser(&project, "postgres", "REVOKE ALL ON DATABASE app FROM PUBLIC");
    sql(&project, "DELETE FROM api_keys WHERE id::int > 3");
    let restored = restore(&project, &["--database", "it's \"yesterday\""]);
    assert_eq!((&restored["rows"], &restored["backup"]), (&json!(2010), &taken["file"]));
    assert_eq!(as_superuser(&project, "it's \"yesterday\"", "SELECT count(*) FROM api_keys"), "2000");
    let rights =
        "SELECT count(DISTINCT (datdba, datacl::text)) FROM pg_database WHERE datname = 'app' OR datname LIKE 'it%'";
    assert_eq!(as_superuser(&project, "postgres", rights), "1", "who may enter one may enter the other");
    assert_eq!(sql(&project, "SELECT count(*) FROM api_keys"), "3");
    let refused = refusal::run(&project, &["restore", "latest", "--database", "app"]);
    refused.expect(64, &["there is a database app", "Nothing was changed"]);
    refusal::run(&project, &["restore", "latest", "--database", ""]).expect(64, &["is no name"]);
    assert_eq!(left_over(&project), "it's \"yesterday\"");
}
