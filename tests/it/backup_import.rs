//! `tandem backup import`: the old scripts' files are made whole, or refused with the reason.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::common::backups::{as_superuser, finals, read_gzip};
use crate::common::project::{Project, root};
use crate::common::refusal;
use crate::common::tandem::{self, Tandem};
use serde_json::Value;

fn project() -> Project {
    Project::app_with("plain:app", "workers.count = 1\npostgres.database = 'ffe'\npostgres.user = 'ffe_user'")
}

fn fixture(name: &str) -> PathBuf {
    root().join("tests/fixtures/ffe").join(name)
}

fn import(project: &Project, file: &Path) -> refusal::Refusal {
    refusal::run(project, &["backup", "import", file.to_str().unwrap()])
}

/// Rows and digest of each table, as the sample's list has them.
fn counted(project: &Project) -> String {
    let list = fs::read_to_string(fixture("sample_counts.txt")).unwrap();
    let row = |line: &str| {
        let table = line.split(' ').next().unwrap();
        let digest = "md5(string_agg(x::text, '|' ORDER BY x::text))";
        format!("{table} {}\n", as_superuser(project, "ffe", &format!("SELECT count(*), {digest} FROM {table} AS x")))
    };
    list.lines().map(row).collect()
}

#[test]
fn the_old_scripts_dump_is_repaired_and_restores_to_its_last_byte() {
    let expected = fs::read_to_string(fixture("sample_counts.txt")).unwrap();
    for (file, words) in [
        ("ffe_backup_script.sql.gz", "removed 106 messages of pg_dump's"),
        ("ffe_backup_clean.sql.gz", "nothing had to be repaired"),
    ] {
        let project = project();
        let before = fs::read(fixture(file)).unwrap();
        let imported = import(&project, &fixture(file));
        imported.expect(0, &["ffe_backup_20", "17 rows in 8 tables, schema 004_add_indexes", words, "it is verified"]);
        assert_eq!(fs::read(fixture(file)).unwrap(), before, "the original stays");
        refusal::run(&project, &["backup", "list"]).expect(0, &[" verified"]);
        refusal::run(&project, &["migrate", "up"]).expect(0, &["applied"]);
        refusal::run(&project, &["restore", "latest", "--yes"]).expect(0, &["17 rows in 8 tables"]);
        let _tandem = Tandem::up(&project);
        assert_eq!(counted(&project), expected, "{file}");
    }
}

fn compressed(project: &Project, name: &str, text: &str) -> PathBuf {
    let path = project.dir().join(name);
    let mut gzip = flate2::write::GzEncoder::new(fs::File::create(&path).unwrap(), flate2::Compression::fast());
    gzip.write_all(text.as_bytes()).unwrap();
    gzip.finish().unwrap();
    path
}

#[test]
fn what_is_cut_damaged_ambiguous_or_failed_is_refused_and_nothing_is_kept() {
    let project = project();
    let script = fixture("ffe_backup_script.sql.gz");
    let (bytes, text) = (fs::read(&script).unwrap(), read_gzip(&script));
    let cut = project.dir().join("cut.sql.gz");
    fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();
    import(&project, &cut).expect(1, &["is refused", "damaged or cut short"]);

    let rows = text.find("COPY public.api_keys").unwrap();
    let inside = compressed(&project, "inside.sql.gz", &text[..rows + 200]);
    import(&project, &inside).expect(1, &["is refused", "cut short: pg_dump's last line is missing"]);
    let twice = text.replacen("pg_dump: reading schemas\n", "pg_dump: reading schemas\npg_dump: reading schemas\n", 1);
    import(&project, &compressed(&project, "twice.sql.gz", &twice)).expect(1, &["`reading schemas` comes twice"]);
    let failed = text.replacen("pg_dump: reading schemas\n", "pg_dump: error: connection lost\n", 1);
    import(&project, &compressed(&project, "failed.sql.gz", &failed))
        .expect(1, &["the dump failed", "connection lost"]);
    let broken = text.replacen("CREATE TABLE", "CREATE TABEL", 1);
    import(&project, &compressed(&project, "broken.sql.gz", &broken)).expect(1, &["does not restore", "syntax error"]);
    let other = project.dir().join("other.sql");
    fs::write(&other, "SELECT 1;\n").unwrap();
    import(&project, &other).expect(1, &["it is no plain dump"]);
    import(&project, Path::new("/no/such/file")).expect(1, &["/no/such/file is refused", "No such file"]);
    assert_eq!(finals(&project), Vec::<String>::new());
    assert!(tandem::left_in(project.dir()).is_empty());
}

#[test]
fn a_restore_of_a_foreign_file_names_the_import() {
    let project = project();
    refusal::run(&project, &["migrate", "up"]).expect(0, &["applied"]);
    let file = fixture("ffe_backup_clean.sql.gz");
    refusal::run(&project, &["restore", file.to_str().unwrap(), "--yes"])
        .expect(64, &["is not one of Tandem's backups", "tandem backup import"]);
}

#[test]
fn an_imported_file_keeps_the_time_and_the_database_of_its_name() {
    let project = project();
    let file = project.dir().join("shop_backup_20240229_235959.sql.gz");
    fs::copy(fixture("ffe_backup_script.sql.gz"), &file).unwrap();
    let output = tandem::run(&project, &["backup", "import", "--json", file.to_str().unwrap()]);
    assert!(output.status.success(), "{output:?}");
    let imported: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(imported["manifest"]["file"], "shop_backup_20240229_235959.sql.gz");
    assert_eq!(imported["manifest"]["database"], "shop");
    assert_eq!(imported["manifest"]["taken"], "2024-02-29T23:59:59Z");
    assert_eq!(imported["manifest"]["server_version"], "16.11");
}
