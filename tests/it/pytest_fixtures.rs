//! What tests get from pytest's plugin whichever driver, framework and other plugin they use.

use crate::common::harness::Suite;
use crate::common::python::{environment_without, pytest};
use crate::common::refusal::{Refusal, said};
use crate::common::tandem::command_in;

const DRIVERS: [&str; 3] = ["psycopg2", "psycopg", "asyncpg"];

/// A project whose environment has all packages but `without`.
fn project(without: &[&str]) -> Suite {
    let suite = Suite::bare();
    let venv = suite.path("env");
    let keys = format!("migrations.run = 'none'\npython.venv = '{}'\npython.managed = false\n", venv.display());
    suite.write("tandem.toml", &format!("{keys}test.seed = ['rows.sql']\n"));
    suite.write("rows.sql", "CREATE TABLE rows AS SELECT generate_series(1, 3) AS id;");
    environment_without(&venv, without);
    suite
}

/// A project whose environment has `driver`, and none of the others.
fn with_driver(driver: &str) -> Suite {
    let others: Vec<_> = DRIVERS.into_iter().filter(|other| *other != driver).collect();
    project(&others)
}

fn plain(suite: &Suite, args: &[&str]) -> Refusal {
    said(pytest(&suite.path("env"), suite.dir(), args).output().unwrap())
}

#[test]
fn tests_and_production_have_the_scheme_of_the_driver_that_is_installed() {
    let sync = "
import os, sqlalchemy
def rows(url):
    engine = sqlalchemy.create_engine(url)
    with engine.connect() as connection:
        return connection.execute(sqlalchemy.text('SELECT count(*) FROM rows')).scalar()
def test_it(database_url):
    assert rows(os.environ['DATABASE_URL']) == 3 and rows(database_url) == 3
    assert database_url.startswith(os.environ['SCHEME'] + '://')
def test_engine(sqlalchemy_engine):
    with sqlalchemy_engine.connect() as connection:
        assert connection.execute(sqlalchemy.text('SELECT count(*) FROM rows')).scalar() == 3
";
    let asynchronous = "
import os, sqlalchemy, pytest
from sqlalchemy.ext.asyncio import create_async_engine
@pytest.mark.asyncio
async def test_it(database_url):
    engine = create_async_engine(os.environ['DATABASE_URL'])
    async with engine.connect() as connection:
        assert (await connection.execute(sqlalchemy.text('SELECT count(*) FROM rows'))).scalar() == 3
    await engine.dispose()
    assert database_url.startswith(os.environ['SCHEME'] + '://')
";
    for driver in DRIVERS {
        let suite = with_driver(driver);
        let scheme = format!("postgresql+{driver}");
        suite.write("test_it.py", if driver == "asyncpg" { asynchronous } else { sync });
        let mut command = pytest(&suite.path("env"), suite.dir(), &[]);
        said(command.env("SCHEME", &scheme).output().unwrap()).expect(0, &[" passed"]);
        // Under `tandem test` likewise.
        let python = suite.path("env/bin/python").display().to_string();
        let mut command = command_in(suite.dir());
        command.args(["test", "--", &python, "-m", "pytest", "-q", "-p", "no:cacheprovider"]).env("SCHEME", &scheme);
        said(command.output().unwrap()).expect(0, &[" passed"]);
    }
}

#[test]
fn asynchronous_tests_have_an_engine_and_a_connection_under_either_plugin() {
    let suite = project(&["psycopg2"]);
    let body = "
import pytest, sqlalchemy
pytestmark = pytest.mark.PLUGIN

async def test_engine(sqlalchemy_async_engine):
    async with sqlalchemy_async_engine.begin() as connection:
        await connection.execute(sqlalchemy.text('DELETE FROM rows'))
    async with sqlalchemy_async_engine.connect() as connection:
        assert (await connection.execute(sqlalchemy.text('SELECT count(*) FROM rows'))).scalar() == 0

async def test_connection(asyncpg_connection):
    assert await asyncpg_connection.fetchval('SELECT count(*) FROM rows') == 3
    await asyncpg_connection.execute('DELETE FROM rows')

@pytest.mark.parametrize('again', range(2))
async def test_fresh(asyncpg_connection, again):
    assert await asyncpg_connection.fetchval('SELECT count(*) FROM rows') == 3
";
    suite.write("test_asyncio.py", &body.replace("PLUGIN", "asyncio"));
    let backend = "\n@pytest.fixture\ndef anyio_backend():\n    return 'asyncio'\n";
    suite.write("test_anyio.py", &(body.replace("PLUGIN", "anyio") + backend));
    plain(&suite, &[]).expect(0, &["8 passed"]);
    plain(&suite, &["-p", "no:asyncio", "test_anyio.py"]).expect(0, &["4 passed"]);
    plain(&suite, &["-p", "no:anyio", "-n", "2", "test_asyncio.py"]).expect(0, &["4 passed"]);
}

#[test]
fn pytest_postgresqls_names_are_there_where_it_is_not() {
    let tests = "
def test_rows(postgresql, postgresql_proc):
    with postgresql.cursor() as cursor:
        cursor.execute('SELECT count(*) FROM rows')
        assert cursor.fetchone()[0] == 3
        cursor.execute('DELETE FROM rows')
    postgresql.commit()
    assert postgresql_proc.port == postgresql.info.port and postgresql_proc.host == '127.0.0.1'
def test_fresh(postgresql):
    test_rows(postgresql, type('Proc', (), {'port': postgresql.info.port, 'host': '127.0.0.1'}))
def test_server(postgresql_proc, postgresql_noproc):
    import DRIVER
    same = dict(host=postgresql_noproc.host, port=postgresql_proc.port, user=postgresql_proc.user,
                password=postgresql_proc.password, dbname=postgresql_proc.dbname)
    DRIVER.connect(**same).close()
";
    for driver in ["psycopg", "psycopg2"] {
        let suite = with_driver(driver);
        suite.write("test_it.py", &tests.replace("DRIVER", driver));
        plain(&suite, &[]).expect(0, &["3 passed"]);
    }
    // Where it is there, its own are taken.
    let suite = project(&[]);
    suite.write("pytest_postgresql.py", "import pytest\n@pytest.fixture\ndef postgresql():\n    return 'its own'\n");
    suite.write("test_it.py", "def test_it(postgresql):\n    assert postgresql == 'its own'\n");
    plain(&suite, &["-p", "pytest_postgresql"]).expect(0, &["1 passed"]);
}

#[test]
fn djangos_runner_and_pytest_django_make_their_databases_on_the_tests_server() {
    let suite = project(&["psycopg2"]);
    suite.write(
        "site_settings.py",
        "
import os
SECRET_KEY = 'x'
INSTALLED_APPS = ['shop']
DEFAULT_AUTO_FIELD = 'django.db.models.AutoField'
DATABASES = {'default': {
    'ENGINE': 'django.db.backends.postgresql', 'NAME': os.environ['PGDATABASE'], 'USER': os.environ['PGUSER'],
    'PASSWORD': os.environ['PGPASSWORD'], 'HOST': os.environ['PGHOST'], 'PORT': os.environ['PGPORT']}}
",
    );
    suite.write("manage.py", "import os, sys\nos.environ['DJANGO_SETTINGS_MODULE'] = 'site_settings'\nfrom django.core.management import execute_from_command_line\nexecute_from_command_line(sys.argv)\n");
    suite.write("shop/__init__.py", "");
    suite.write("shop/migrations/__init__.py", "");
    suite.write(
        "shop/migrations/0001_initial.py",
        "from django.db import migrations, models\nclass Migration(migrations.Migration):\n    initial = True\n    operations = [migrations.CreateModel('Order', [('id', models.AutoField(primary_key=True)), ('what', models.TextField())])]\n",
    );
    suite.write(
        "shop/models.py",
        "from django.db import models\nclass Order(models.Model):\n    what = models.TextField()\n",
    );
    let case = "
from django.test import TestCase, TransactionTestCase
from shop.models import Order
class FirstTest(TestCase):
    def test_one(self):
        Order.objects.create(what='a')
        self.assertEqual(Order.objects.count(), 1)
class SecondTest(TransactionTestCase):
    def test_two(self):
        Order.objects.create(what='b')
        self.assertEqual(Order.objects.count(), 1)
";
    suite.write("shop/tests.py", case);
    let python = suite.path("env/bin/python").display().to_string();
    for more in [&[][..], &["--parallel", "2"], &["--keepdb"]] {
        let args = [&["--", &python, "manage.py", "test", "--noinput"], more].concat();
        said(suite.command(&args).output().unwrap()).expect(0, &["Ran 2 tests", "OK"]);
    }
    // The server is there before pytest-django reads the settings.
    suite.write("pytest.ini", "[pytest]\nDJANGO_SETTINGS_MODULE = site_settings\npython_files = tests.py test_*.py\n");
    suite.write("test_more.py", "import pytest\nfrom shop.models import Order\n@pytest.mark.django_db\ndef test_three():\n    assert not Order.objects.exists()\n");
    plain(&suite, &[]).expect(0, &["3 passed"]);
    plain(&suite, &["-n", "2"]).expect(0, &["3 passed"]);
}
