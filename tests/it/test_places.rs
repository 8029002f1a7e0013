//! Where the server of `tandem test` lives, and what happens when there is no room.

use std::process::Command;

use crate::common::harness::{Suite, place, wait_gone};
use crate::common::namespace::mount_namespace;
use crate::common::refusal::said;
use crate::common::tandem::{self, Tandem};

/// `tandem test ARGS` in a mount namespace of its own, with a tmpfs of `size` at `small` in the project's directory; `None`
/// where the kernel does not let an ordinary user have one.
fn beside_small_memory(suite: &Suite, size: &str, args: &str) -> Option<Command> {
    let namespace = mount_namespace()?;
    std::fs::create_dir(suite.path("small")).unwrap();
    let script = format!("mount -t tmpfs -o size={size},mode=0755 tmpfs small; exec \"$0\" test {args}");
    let mut command = tandem::command_as("unshare", suite.dir());
    command.args(namespace).args(["sh", "-euc", &script, env!("CARGO_BIN_EXE_tandem")]);
    Some(command)
}

#[test]
fn memory_that_is_too_small_is_left_for_the_disk_with_a_notice() {
    let suite = Suite::bare();
    let args = "--set test.dir=./small -- sh -c 'psql -XAtc \"SELECT 42\"; echo $TANDEM_TEST_SOCKET'";
    let Some(mut command) = beside_small_memory(&suite, "64m", args) else { return };
    let run = said(command.output().unwrap());
    run.expect(0, &["small has only", "it goes to", "42\n"]);
    let temporary = std::env::temp_dir();
    let socket = run.said.lines().nth(1).unwrap().to_owned();
    assert!(socket.starts_with(&temporary.display().to_string()), "{socket}");
    wait_gone(&place(&socket));
}

#[test]
fn memory_that_fills_up_meanwhile_is_left_for_the_disk_too() {
    let suite = Suite::bare();
    // Enough at the first look, and then somebody else takes it.
    let args =
        "--set test.dir=./small --set test.spare=false -- sh -c 'psql -XAtc \"SELECT 42\"; echo $TANDEM_TEST_SOCKET'";
    let Some(mut command) = beside_small_memory(&suite, "400m,nr_inodes=300", args) else { return };
    let run = said(command.output().unwrap());
    run.expect(0, &["is full", "42\n"]);
    wait_gone(&place(run.said.lines().nth(1).unwrap()));
}

#[test]
fn a_pool_that_finds_no_room_says_so_and_goes_on_when_there_is_some() {
    let suite = Suite::bare();
    let script = "set -e
        here=$(dirname $(dirname $TANDEM_TEST_SOCKET))
        dd if=/dev/zero of=$here/filler bs=1M 2>/dev/null || true
        (while [ ! -e go ]; do sleep 0.02; done; rm $here/filler) &
        \"$TANDEM\" database new >url
        psql -XAtq $(cat url) -c \"SELECT 42\"";
    suite.write("script", script);
    let args = "--set test.dir=./small --set test.spare=false -- sh script";
    let Some(mut command) = beside_small_memory(&suite, "450m", args) else { return };
    command.env("TANDEM", env!("CARGO_BIN_EXE_tandem"));
    let mut run = Tandem::start_in(suite.dir(), command, &[]);
    run.wait_log("no database can be made at the moment");
    suite.write("go", "");
    assert_eq!(run.wait_code(), 0, "{}", run.log());
    assert!(run.log().contains("is full") && run.log().contains("42\n"), "{}", run.log());
}

/// Kernel shared memory that processes have left, by id: nobody is attached, and its maker is gone.
fn left_segments() -> Vec<String> {
    let table = std::fs::read_to_string("/proc/sysvipc/shm").unwrap_or_default();
    let rows = table.lines().skip(1).map(|row| row.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
    // proc(5): key, shmid, perms, size, cpid, lpid, nattch, …
    let left = rows.filter(|row| row[6] == "0" && !tandem::lives(row[4].parse().unwrap()));
    left.map(|row| row[1].clone()).collect()
}

#[test]
fn a_run_that_is_killed_at_any_moment_leaves_nothing() {
    let suite = Suite::bare();
    std::fs::create_dir(suite.path("memory")).unwrap();
    std::fs::set_permissions(suite.path("memory"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let before = left_segments();
    let args = ["test", "--set", "test.dir=./memory", "--", "sleep", "1000"];
    for moment in 0..12 {
        let mut run = Tandem::start_in(suite.dir(), tandem::command_in(suite.dir()), &args);
        let began = std::time::Instant::now();
        // From before its first file to well into the command.
        while began.elapsed() < std::time::Duration::from_millis(moment * 12) {
            std::hint::spin_loop();
        }
        run.signal(nix::sys::signal::Signal::SIGKILL);
        run.wait_exit();
    }
    let left = || {
        let bases = std::fs::read_dir(suite.path("memory")).unwrap().map(|base| base.unwrap().path());
        bases.flat_map(|base| crate::common::refusal::names(&base)).filter(|name| name.starts_with("run-")).count()
    };
    // A run that was killed before it had a janitor is swept by the next one.
    suite.run(&["--set", "test.dir=./memory"], "true").expect(0, &[]);
    tandem::wait_for("the end of all runs", || left() == 0 && tandem::left_in(&suite.path("memory")).is_empty());
    // That of other tests is about to go too.
    tandem::wait_for("the end of their shared memory", || left_segments().iter().all(|id| before.contains(id)));
}

#[test]
fn the_shared_memory_of_a_killed_postmaster_goes_too() {
    for starts_again in [false, true] {
        let suite = Suite::bare();
        let mut run = suite.start(&[], "exec sleep 1000");
        let place = suite.wait_place(&mut run);
        let file = place.join("postgres/16/postmaster.pid");
        let pid = std::fs::read_to_string(&file).unwrap();
        let segment = pid.lines().nth(6).unwrap().split_whitespace().nth(1).unwrap().to_owned();
        let exists = || {
            let table = std::fs::read_to_string("/proc/sysvipc/shm").unwrap();
            table.lines().any(|row| row.split_whitespace().nth(1) == Some(&segment))
        };
        assert!(exists());
        // Tandem first, so that nobody starts it again; then the server, before it can clean up.
        let postmaster = crate::common::harness::postmaster(&place);
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(postmaster), nix::sys::signal::Signal::SIGSTOP).unwrap();
        if starts_again {
            // As the file is of a server that has no shared memory yet, where its forerunner left some.
            let begun: String = pid.lines().take(5).map(|line| format!("{line}\n")).collect();
            std::fs::write(&file, begun).unwrap();
        }
        run.signal(nix::sys::signal::Signal::SIGKILL);
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(postmaster), nix::sys::signal::Signal::SIGKILL).unwrap();
        run.wait_exit();
        wait_gone(&place);
        tandem::wait_for("the end of its shared memory", || !exists());
    }
}
