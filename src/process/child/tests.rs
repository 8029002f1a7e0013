use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::time::timeout;

use super::super::spawn::group_of;
use super::super::{Identifier, Stranger, lines, orphans, signal, spawn};
use super::*;
use crate::plan::CommandLine;

const LIMIT: Duration = Duration::from_secs(10);

fn pipe() -> (OwnedFd, OwnedFd) {
    let (reader, writer) = std::io::pipe().unwrap();
    (reader.into(), writer.into())
}

fn own_pid() -> i32 {
    std::process::id().cast_signed()
}

/// The id of a process that runs `script`, leads its process group, and whose parent, a shell, has ended.
async fn orphan(script: &str) -> i32 {
    orphans::adopt();
    let both = format!("PARENT=$$ setsid sh -c '{script}' >/dev/null 2>&1 & echo $!");
    let (mut parent, output) = spawn(&CommandLine::new("sh").args(["-c", &both]), &[], Signal::SIGKILL).unwrap();
    let mut pid = 0;
    lines(output.stdout.unwrap(), |line| pid = line.parse().unwrap()).await;
    assert_eq!(parent.wait().await, Exit::Code(0));
    while group_of(pid).is_some_and(|group| group != pid) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    pid
}

async fn wait(child: &mut Child) -> Exit {
    timeout(LIMIT, child.wait()).await.unwrap()
}

#[tokio::test]
async fn an_adopted_process_is_a_child_like_any_other() {
    let (stdout, mut writer) = std::io::pipe().map(|(reader, writer)| (reader.into(), writer)).unwrap();
    let (stderr, other) = pipe();
    let pid = orphan("exec sleep 1000").await;
    let (mut child, output) = adopt(pid, own_pid(), stdout, stderr, None).unwrap();
    assert_eq!(child.pid(), pid);
    std::io::Write::write_all(&mut writer, b"a line\n").unwrap();
    drop((writer, other));
    let ((stdout, _one), (stderr, _two)) = (pipe(), pipe());
    let again = adopt(pid, own_pid(), stdout, stderr, None).unwrap_err();
    assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
    let mut text = String::new();
    output.stdout.unwrap().read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "a line\n");
    assert!(!orphans::strays().contains(&pid), "it is no stray");
    assert!(timeout(Duration::from_millis(20), child.wait()).await.is_err(), "a wait may be given up");
    signal(pid, Signal::SIGKILL);
    orphans::reap();
    assert_eq!(wait(&mut child).await, Exit::Signal(9), "the reaper left it alone");
    assert_eq!(wait(&mut child).await, Exit::Signal(9), "and it can be asked again");
}

#[tokio::test]
async fn the_end_of_a_process_that_died_before_its_adoption_is_known() {
    let ((stdout, _one), (stderr, _two)) = (pipe(), pipe());
    let hold = orphans::hold();
    // Not before its parent has ended, which would take the status.
    let pid = orphan("while kill -0 $PARENT; do sleep 0.01; done; exit 7").await;
    let is_dead = || procfs::process::Process::new(pid).unwrap().stat().unwrap().state == 'Z';
    timeout(LIMIT, async {
        while !is_dead() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    orphans::reap();
    let (mut child, _output) = adopt(pid, own_pid(), stdout, stderr, None).unwrap();
    drop(hold);
    assert_eq!(wait(&mut child).await, Exit::Code(7));
}

#[tokio::test]
async fn what_is_no_child_of_ours_is_neither_adopted_nor_signalled() {
    // One that is gone, the first of the machine, a child of a child, no numbers at all; and a child of another user.
    let gone = orphan("exit 0").await;
    let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(gone), None);
    let (mut parent, output) = spawn(
        &CommandLine::new("sh").args(["-c", "setsid sleep 1000 >/dev/null 2>&1 & echo $!; exec sleep 1000"]),
        &[],
        Signal::SIGKILL,
    )
    .unwrap();
    let mut reader = tokio::io::BufReader::new(output.stdout.unwrap());
    let mut text = String::new();
    tokio::io::AsyncBufReadExt::read_line(&mut reader, &mut text).await.unwrap();
    let grandchild: i32 = text.trim().parse().unwrap();
    let member = orphan("exec sleep 1000").await;
    for pid in [gone, 1, grandchild, i32::MAX, 0, -1] {
        let ((stdout, _one), (stderr, _two)) = (pipe(), pipe());
        let refused = adopt(pid, own_pid(), stdout, stderr, None);
        assert!(refused.is_err(), "{pid}: {refused:?}");
        signal_group(pid, Signal::SIGKILL);
        signal(pid, Signal::SIGKILL);
    }
    assert!(group_of(grandchild).is_some(), "it lives");
    if nix::unistd::Uid::effective().is_root() {
        let ((stdout, _one), (stderr, _two)) = (pipe(), pipe());
        let mut other = CommandLine::new("sleep").arg("1000");
        other.identity = super::super::identity::lookup("nobody");
        let (mut child, _output) = spawn(&other, &[], Signal::SIGKILL).unwrap();
        let refused = adopt(member, child.pid(), stdout, stderr, None).unwrap_err();
        assert!(refused.to_string().contains("does not run as the user"), "{refused}");
        signal(child.pid(), Signal::SIGKILL);
        wait(&mut child).await;
    }
    signal_group(parent.pid(), Signal::SIGKILL);
    wait(&mut parent).await;
    for pid in [grandchild, member] {
        Stranger::hold(pid).unwrap().signal(Signal::SIGKILL);
    }
}

#[tokio::test]
async fn a_group_is_killed_before_its_leader_is_reaped_and_never_afterwards() {
    let leaves = || {
        let script = "sleep 1000 >/dev/null 2>&1 & echo $!; exit 3";
        spawn(&CommandLine::new("sh").args(["-c", script]), &[], Signal::SIGKILL).unwrap()
    };
    let mut left = 0;
    let (mut child, output) = leaves();
    let reading = lines(output.stdout.unwrap(), |line| left = line.parse().unwrap());
    assert_eq!(child.wait_reading(reading, LIMIT).await, (Exit::Code(3), true));
    // Its number is free now: a group of it is another's.
    signal_group(child.pid(), Signal::SIGKILL);
    signal(child.pid(), Signal::SIGKILL);
    assert_eq!(group_of(left), Some(child.pid()), "nothing was sent");
    Stranger::hold(left).unwrap().signal(Signal::SIGKILL);

    let (mut child, output) = leaves();
    let reading = lines(output.stdout.unwrap(), |line| left = line.parse().unwrap());
    assert_eq!(child.wait_with_group(reading, LIMIT).await, (Exit::Code(3), true));
    let gone = async {
        while Identifier::look_up(left).is_some() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(LIMIT, gone).await.unwrap();
}

#[tokio::test]
async fn an_end_by_a_real_time_signal_is_told_by_its_number() {
    let (mut child, _output) = spawn(&CommandLine::new("sleep").arg("1000"), &[], Signal::SIGKILL).unwrap();
    let shell = CommandLine::new("sh").args(["-c", &format!("kill -40 {}", child.pid())]);
    super::super::run(&shell, LIMIT).await.unwrap();
    assert_eq!(wait(&mut child).await, Exit::Signal(40));
}
