//! Where the server of `tandem test` lives, and what happens when there is no room.

#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

mod common;

use std::process::Command;

use ::tandem::process::identity;
use common::harness::{Suite, place, wait_gone};
use common::refusal::said;
use common::tandem;

/// `tandem test ARGS` in a mount namespace of its own, with a tmpfs of `size` at `small` in the project's directory; `None`
/// where the kernel does not let an ordinary user have one.
fn beside_small_memory(suite: &Suite, size: &str, args: &str) -> Option<Command> {
    let namespace: &[&str] =
        if identity::is_root() { &["--mount"] } else { &["--user", "--map-current-user", "--keep-caps", "--mount"] };
    #[expect(clippy::disallowed_methods, reason = "a test starts what it tests")]
    let allowed = Command::new("unshare").args(namespace).args(["mount", "-t", "tmpfs", "tmpfs", "/mnt"]).output();
    if !allowed.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: no mount namespace for this user");
        return None;
    }
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
        (sleep 1; rm $here/filler) &
        \"$TANDEM\" database new >url
        psql -XAtq $(cat url) -c \"SELECT 42\"";
    suite.write("script", script);
    let args = "--set test.dir=./small --set test.spare=false -- sh script";
    let Some(mut command) = beside_small_memory(&suite, "450m", args) else { return };
    let run = said(command.env("TANDEM", env!("CARGO_BIN_EXE_tandem")).output().unwrap());
    run.expect(0, &["no database can be made at the moment", "is full", "42\n"]);
}
