//! Every cell of the automaton, and the table that the documentation shows.

use std::time::Duration;

use expect_test::expect_file;

use super::*;
use crate::plan::{Rung, Signal};

const PID: i32 = 7;
const NOW: Moment = Duration::from_secs(100);
const LATER: Moment = Duration::from_secs(200);

fn policy() -> Policy {
    let rung = |signal, seconds| Rung { signal, group: true, grace: Duration::from_secs(seconds) };
    Policy {
        ready_limit: Duration::from_secs(60),
        hang_limit: Some(Duration::from_secs(30)),
        ladder: vec![rung(Signal::Term, 10), rung(Signal::Kill, 2)],
        retire: vec![rung(Signal::Retire, 30)],
        hang: vec![rung(Signal::Abort, 1), rung(Signal::Kill, 2)],
        backoff_first: Duration::from_millis(100),
        backoff_step: Duration::from_secs(1),
        backoff_max: Duration::from_secs(10),
        intensity: 3,
        period: Duration::from_secs(60),
        rest: Duration::from_secs(60),
        starved_pause: Duration::from_secs(5),
    }
}

fn states() -> Vec<State> {
    vec![
        State::Down,
        State::Spawning { intent: Intent::Hold },
        State::Spawning { intent: Intent::Start },
        State::Spawning { intent: Intent::Stop },
        State::Held { pid: PID },
        State::Starting { pid: PID, limit_at: NOW },
        State::Ready { pid: PID, since: NOW },
        State::Hung { pid: PID, limit_at: Some(NOW) },
        State::Replacing { pid: PID, at: Place { ladder: Ladder::Hang, rung: 0 }, next_at: NOW },
        State::Restarting { pid: PID, at: Place { ladder: Ladder::Stop, rung: 0 }, next_at: NOW },
        State::Stopping { pid: PID, at: Place { ladder: Ladder::Retire, rung: 0 }, next_at: NOW },
        State::Stopping { pid: PID, at: Place { ladder: Ladder::Stop, rung: 0 }, next_at: NOW },
        State::Stopping { pid: PID, at: Place { ladder: Ladder::Stop, rung: 1 }, next_at: NOW },
        State::Backoff { until: NOW, intent: Intent::Start },
        State::GaveUp,
        State::Abandoned { pid: PID },
    ]
}

fn events() -> Vec<(&'static str, Event)> {
    vec![
        ("prepare", Event::Prepare),
        ("start", Event::Start),
        ("spawned", Event::Spawned(PID)),
        ("spawn failed", Event::SpawnFailed(Ending::Ended)),
        ("cannot spawn", Event::SpawnFailed(Ending::Unstartable)),
        ("spawn starved", Event::SpawnFailed(Ending::Starved)),
        ("ready", Event::Ready),
        ("hung", Event::Hung),
        ("exited", Event::Exited(Ending::Ended)),
        ("unstartable", Event::Exited(Ending::Unstartable)),
        ("starved", Event::Exited(Ending::Starved)),
        ("unfit", Event::Unfit),
        ("limit passed", Event::Tick),
        ("restart", Event::Restart),
        ("retire", Event::Retire),
        ("stop", Event::Stop),
        ("stop now", Event::StopNow),
        ("rest", Event::Rest),
    ]
}

fn child(state: State) -> Child {
    Child { state, ..Child::default() }
}

fn name(state: State) -> String {
    let label = child(state).label();
    match state {
        State::Spawning { intent } | State::Backoff { intent, .. } => format!("{label} ({intent:?})").to_lowercase(),
        State::Stopping { at, .. } | State::Replacing { at, .. } | State::Restarting { at, .. } => {
            format!("{label} ({:?} {})", at.ladder, at.rung + 1).to_lowercase()
        }
        _ => label.to_owned(),
    }
}

fn words(action: Action) -> String {
    match action {
        Action::Spawn(_) => "spawn".into(),
        Action::Release => "release".into(),
        Action::Signal(rung) => format!("{:?}", rung.signal).to_lowercase(),
        Action::Withdraw => "withdraw".into(),
        Action::Restart(_) => "restart later".into(),
        Action::GiveUp => "give up".into(),
    }
}

#[test]
fn the_table_in_the_documentation_is_what_step_does() {
    let mut table = String::from("| state |");
    for (label, _) in events() {
        table += &format!(" {label} |");
    }
    table += "\n|---|";
    table += &"---|".repeat(events().len());
    for state in states() {
        table += &format!("\n| **{}** |", name(state));
        for (_, event) in events() {
            let (next, actions) = step(child(state), event, LATER, &policy());
            let cell = if next.state == state && actions.is_empty() {
                "·".to_owned()
            } else {
                let done: Vec<String> = actions.into_iter().map(words).collect();
                let done = if done.is_empty() { String::new() } else { format!(" / {}", done.join(", ")) };
                format!("{}{done}", name(next.state))
            };
            table += &format!(" {cell} |");
        }
    }
    table += "\n";
    expect_file!["state_table.md"].assert_eq(&table);
}

#[test]
fn backoff_grows_to_its_limit_and_failures_are_forgotten_after_the_period() {
    let policy = policy();
    let mut subject = child(State::Starting { pid: PID, limit_at: LATER });
    let mut delays = Vec::new();
    for _ in 0..3 {
        let (next, actions) = step(subject, Event::Exited(Ending::Ended), NOW, &policy);
        let [Action::Restart(delay)] = actions[..] else { panic!("{actions:?}") };
        delays.push(delay.as_millis());
        subject = Child { state: State::Starting { pid: PID, limit_at: LATER }, ..next };
    }
    assert_eq!(delays, [100, 1000, 2000]);
    let much_later = NOW + policy.period + Duration::from_secs(1);
    let (next, actions) = step(subject.clone(), Event::Exited(Ending::Ended), much_later, &policy);
    assert_eq!(actions, [Action::Restart(policy.backoff(4))]);
    assert_eq!(next.failures.len(), 1);
    let (next, actions) = step(subject, Event::Exited(Ending::Ended), NOW, &policy);
    assert_eq!((next.state, actions), (State::GaveUp, vec![Action::GiveUp]));
}

#[test]
fn the_pause_begins_anew_once_it_was_ready_but_the_failures_still_count() {
    let policy = policy();
    let mut subject = child(State::Down);
    for failure in 1..=policy.intensity + 1 {
        subject.state = State::Starting { pid: PID, limit_at: LATER };
        (subject, _) = step(subject, Event::Ready, NOW, &policy);
        let (next, actions) = step(subject, Event::Exited(Ending::Ended), NOW, &policy);
        let last = if failure > policy.intensity { Action::GiveUp } else { Action::Restart(policy.backoff_first) };
        assert_eq!(actions, [Action::Withdraw, last]);
        subject = next;
    }
    assert_eq!(subject.state, State::GaveUp);
}

#[test]
fn who_lacks_something_is_tried_again_for_ever_and_no_failure_is_counted() {
    let policy = policy();
    let mut subject = child(State::Down);
    for _ in 0..10 * policy.intensity {
        subject.state = State::Starting { pid: PID, limit_at: LATER };
        let (next, actions) = step(subject, Event::Exited(Ending::Starved), NOW, &policy);
        assert_eq!(actions, [Action::Restart(policy.starved_pause)]);
        subject = next;
    }
    assert!(subject.failures.is_empty());
    assert_eq!(subject.deadline(), Some(NOW + policy.starved_pause));
}

#[test]
fn who_will_never_get_ready_is_ended_politely_and_given_up() {
    let policy = policy();
    let (ending, actions) = step(child(State::Starting { pid: PID, limit_at: LATER }), Event::Unfit, NOW, &policy);
    assert_eq!(actions, [Action::Signal(policy.ladder[0])]);
    let (over, actions) = step(ending, Event::Exited(Ending::Unstartable), NOW, &policy);
    assert_eq!((over.state, actions), (State::GaveUp, vec![Action::GiveUp]));
}

#[test]
fn a_stop_climbs_the_ladder_and_lets_go_of_what_cannot_be_killed() {
    let policy = policy();
    let ready = child(State::Ready { pid: PID, since: NOW });
    let (stopping, actions) = step(ready, Event::Stop, NOW, &policy);
    assert_eq!(actions, [Action::Withdraw, Action::Signal(policy.ladder[0])]);
    assert_eq!(stopping.deadline(), Some(NOW + Duration::from_secs(10)));
    let (early, actions) = step(stopping.clone(), Event::Tick, NOW + Duration::from_secs(9), &policy);
    assert_eq!((&early, actions), (&stopping, vec![]));
    let (killed, actions) = step(stopping, Event::Tick, NOW + Duration::from_secs(10), &policy);
    assert_eq!(actions, [Action::Signal(policy.ladder[1])]);
    let (lost, actions) = step(killed, Event::Tick, NOW + policy.stop_limit(), &policy);
    assert_eq!((lost.state, actions), (State::Abandoned { pid: PID }, vec![]));
}

#[test]
fn a_limit_does_nothing_before_it_has_passed() {
    let before = NOW - Duration::from_millis(1);
    for state in states() {
        let (next, actions) = step(child(state), Event::Tick, before, &policy());
        assert_eq!((next.state, actions), (state, vec![]), "{state:?}");
    }
}
