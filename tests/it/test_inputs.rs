//! The template of `tandem test` follows whatever its migrations and seeds read, and nothing else.

use std::fs;

use crate::common::harness::Suite;
use crate::common::refusal::{Refusal, said};

/// A migration in Python that is spread over several files, none of which looks like one.
fn suite() -> Suite {
    let suite = Suite::with("migrations.run = ['python', 'make.py']");
    let unique = rand::random::<u64>();
    suite.write(
        "make.py",
        "import os, psycopg2\nfrom shop import models\nopen('runs', 'a').write('x')\n\
         with psycopg2.connect(os.environ['DATABASE_URL'].replace('+psycopg2', '')) as connection:\n    \
             connection.cursor().execute(models.statement())\n",
    );
    suite.write("shop/__init__.py", &format!("# {unique}\n"));
    suite.write(
        "shop/models.py",
        "import os\nfrom shop import names\n\ndef statement():\n    \
         column = open('shop/column.txt').read().strip()\n    \
         return f\"CREATE TABLE {os.environ.get('SHOP_PREFIX', '')}{names.TABLE} ({column} int)\"\n",
    );
    suite.write("shop/names.py", "TABLE = 'one'\n");
    suite.write("shop/column.txt", "x\n");
    suite.write("shop/unused.py", "UNUSED = 1\n");
    suite
}

const LOOK: &str = "psql -XAtc \"SELECT table_name || '.' || column_name FROM information_schema.columns WHERE table_schema = 'public'\"";

fn look(suite: &Suite, variables: &[(&str, &str)]) -> Refusal {
    let mut command = suite.command(&["--", "sh", "-c", LOOK]);
    // Python then reads compiled modules instead of their sources.
    command.env_remove("PYTHONDONTWRITEBYTECODE");
    said(command.envs(variables.iter().copied()).output().unwrap())
}

#[test]
fn a_template_follows_the_modules_files_and_variables_that_its_migrations_read() {
    let suite = suite();
    let expect = |variables: &[(&str, &str)], made: &str, runs: usize| {
        look(&suite, variables).expect(0, &[made]);
        assert_eq!(suite.read("runs").len(), runs, "{made}");
    };
    expect(&[], "one.x\n", 1);
    expect(&[], "one.x\n", 1);
    // An imported module, whose compiled form is there by now.
    assert!(suite.path("shop/__pycache__").is_dir());
    suite.write("shop/names.py", "TABLE = 'two'\n");
    expect(&[], "two.x\n", 2);
    suite.write("shop/models.py", &suite.read("shop/models.py").replace(" int)", " bigint)"));
    expect(&[], "two.x\n", 3);
    suite.write("shop/names.py", "TABLE = 'three'\n");
    expect(&[], "three.x\n", 4);
    // A file that is no module.
    suite.write("shop/column.txt", "y\n");
    expect(&[], "three.y\n", 5);
    // A variable that a module speaks of, and one that none does.
    expect(&[("SHOP_PREFIX", "of_")], "of_three.y\n", 6);
    expect(&[("SHOP_PREFIX", "of_"), ("UNHEARD_OF", "1")], "of_three.y\n", 6);
    // What was not read.
    suite.write("shop/unused.py", "UNUSED = 2\n");
    expect(&[], "three.y\n", 6);
    // Back again: that template is still there.
    suite.write("shop/column.txt", "x\n");
    expect(&[], "three.x\n", 6);
}

#[test]
fn it_follows_what_other_programs_read_and_the_modules_of_seeds() {
    let suite = Suite::with("migrations.run = ['sh', 'make.sh']\ntest.seed = ['fill:fill']");
    suite.write(
        "make.sh",
        &format!("# {}\n. ./lib/schema.sh\npsql -Xqc \"CREATE TABLE $TABLE (x int)\"\n", rand::random::<u64>()),
    );
    suite.write("lib/schema.sh", "TABLE=one\n");
    suite.write("fill.py", "import helper, psycopg2\n\ndef fill(url):\n    with psycopg2.connect(url) as connection:\n        connection.cursor().execute(helper.STATEMENT)\n");
    suite.write("helper.py", "STATEMENT = 'CREATE TABLE seeded (a int)'\n");
    look(&suite, &[]).expect(0, &["one.x\n", "seeded.a\n"]);
    suite.write("lib/schema.sh", "TABLE=two\n");
    look(&suite, &[]).expect(0, &["two.x\n"]);
    suite.write("helper.py", "STATEMENT = 'CREATE TABLE seeded (b int)'\n");
    look(&suite, &[]).expect(0, &["two.x\n", "seeded.b\n"]);
}

#[test]
fn sources_that_change_while_they_are_read_are_read_again() {
    let suite = suite();
    let make = suite.read("make.py");
    suite.write("make.py", &format!("{make}\nopen('shop/names.py', 'w').write(\"TABLE = 'late'\\n\")\n"));
    look(&suite, &[]).expect(0, &["one.x\n"]);
    suite.write("make.py", &make);
    look(&suite, &[]).expect(0, &["late.x\n"]);
    // The same content as at first, but what was read then was not known to be it.
    suite.write("make.py", &format!("{make}\nopen('shop/names.py', 'w').write(\"TABLE = 'late'\\n\")\n"));
    look(&suite, &[]).expect(0, &["late.x\n"]);
}

#[test]
fn no_process_of_a_seed_shows_the_password() {
    let suite = Suite::with("migrations.run = 'none'\ntest.seed = ['fill:fill']");
    suite.write(
        "fill.py",
        &format!("# {}\nimport os\n\ndef fill(url):\n    words = open('/proc/self/cmdline').read()\n    assert os.environ['PGPASSWORD'] in url and os.environ['PGPASSWORD'] not in words, words\n    open('filled', 'w').write('yes')\n", rand::random::<u64>()),
    );
    suite.run(&[], "true").expect(0, &[]);
    assert_eq!(fs::read_to_string(suite.path("filled")).unwrap(), "yes");
}
