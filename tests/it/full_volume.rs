//! A disk that fills under the server: it is said as what it is, waited for, and over once there is room.

use std::fs;
use std::process::Command;

use crate::common::namespace::mount_namespace;
use crate::common::project::Project;
use crate::common::tandem::{self, Tandem, wait_for};

/// `tandem` with the project's data on a disk of 160 MB. What the test does to it goes by files: `fill` fills it, `free` makes
/// room again.
fn on_a_small_disk(project: &Project) -> Option<Command> {
    let namespace = mount_namespace()?;
    let script = "small=\"$0\"/small; mkdir \"$small\"; mount -t tmpfs -o size=160m,mode=0755 tmpfs \"$small\"
        cp -a \"$0\"/.tandem/. \"$small\"; mount --bind \"$small\" \"$0\"/.tandem
        ( while [ -d \"$0\" ]; do
            [ ! -e \"$0\"/fill ] || { rm \"$0\"/fill; dd if=/dev/zero of=\"$small\"/filler bs=64k 2>/dev/null || true; touch \"$0\"/filled; }
            [ ! -e \"$0\"/free ] || { rm -f \"$0\"/free \"$small\"/filler; touch \"$0\"/freed; }
            kill -0 $$ || exit 0
            sleep 0.05
          done ) &
        exec \"$@\"";
    let binary = tandem::command(project);
    #[expect(clippy::disallowed_methods, reason = "a test starts what it tests")]
    let mut command = Command::new("unshare");
    command.args(namespace).args(["sh", "-euc", script]).arg(project.dir()).arg(binary.get_program());
    command.current_dir(project.dir()).env("PYTHONDONTWRITEBYTECODE", "1").env_remove("DATABASE_URL");
    Some(command)
}

fn do_it(project: &Project, what: &str, done: &str) {
    fs::write(project.dir().join(what), "").unwrap();
    wait_for(done, || project.dir().join(done).exists());
}

#[test]
fn a_full_disk_is_told_and_waited_for_and_the_server_comes_back_by_itself() {
    let lines = "workers.count = 1\nmigrations.run = 'none'\npostgres.shared_buffers = '16MB'\n\
                 postgres.settings.max_wal_size = '48MB'\npostgres.settings.min_wal_size = '32MB'";
    let project = Project::app_with("plain:app", lines);
    let mut first = Tandem::up(&project);
    assert_eq!(first.stop(), 0, "{}", first.log());
    let Some(command) = on_a_small_disk(&project) else { return };
    let mut tandem = Tandem::start_as(&project, command);
    tandem.wait_ready();
    let psql = |sql: &str| tandem::run(&project, &["psql", "-XAtqc", sql]);
    assert!(psql("CREATE TABLE kept AS SELECT 42 AS n").status.success());
    do_it(&project, "fill", "filled");
    // WAL that has no room to go to ends the server.
    let write = "SELECT count(pg_logical_emit_message(false, 'x', repeat(md5(n::text), 30000))) FROM generate_series(1, 100) AS n";
    let began = std::time::Instant::now();
    while !tandem.log().contains("the disk is full") {
        let said = psql(write);
        assert!(began.elapsed().as_secs() < 60, "{said:?}\n{}", tandem.log());
    }
    let log = tandem.log();
    assert!(log.contains("MB free of 160.0 MB") && log.contains("pg_wal"), "{log}");
    wait_for("the reason", || tandem.health()["database"]["error"].to_string().contains("its disk is full"));
    let health = tandem.health();
    assert!(health["reasons"].to_string().contains("waits for room"), "{health}");
    let tries = |log: &str| log.matches("No space left on device").count();
    let before = tries(&tandem.log());

    // No start is tried in vain, and none fails for good.
    assert!(!tandem.log().contains("gives up"));
    do_it(&project, "free", "freed");
    tandem.wait_ready();
    let log = tandem.log();
    assert!(log.contains("there is room on the disk again") && tries(&log) <= before + 1, "{log}");
    let kept = psql("SELECT n FROM kept");
    assert_eq!(String::from_utf8_lossy(&kept.stdout).trim(), "42", "{kept:?}");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}
