//! Every cell of the automaton, and the table that the documentation shows.

use std::time::Duration;

use expect_test::expect_file;

use super::*;
use crate::policy::{KILL_GRACE, Rung, Signal};
use crate::state::Passed;

const PID: i32 = 7;
const NOW: Moment = Duration::from_secs(100);
const LATER: Moment = Duration::from_secs(200);
const FAR: Moment = Duration::from_secs(1000);

fn policy() -> Policy {
    let rung = |signal, seconds| Rung { signal, group: true, grace: Duration::from_secs(seconds) };
    Policy {
        spawn_limit: Duration::from_secs(15),
        ready_limit: Duration::from_secs(60),
        hang_limit: Some(Duration::from_secs(30)),
        ladder: vec![rung(Signal::Term, 10), rung(Signal::Kill, 2)],
        retire: vec![rung(Signal::Retire, 30)],
        close_limit: Duration::from_secs(5),
        drain_limit: Duration::from_secs(90),
        drain_firm: Duration::from_secs(20),
        hang: vec![rung(Signal::Abort, 1), rung(Signal::Kill, 2)],
        backoff_first: Duration::from_millis(100),
        backoff_step: Duration::from_secs(1),
        backoff_max: Duration::from_secs(10),
        intensity: 3,
        period: Duration::from_secs(60),
        start_intensity: 3,
        start_pause: Duration::ZERO,
        rest: Duration::from_secs(60),
        abandon_limit: Duration::from_secs(30),
        starved_pause: Duration::from_secs(5),
    }
}

/// The process that [`child`] has.
const GENERATION: Generation = Generation(3);

fn of(about: ProcessEvent) -> ChildEvent {
    ChildEvent::Process(GENERATION, about)
}

/// Every state, with each rung of each ladder that it may stand on.
fn states() -> Vec<State> {
    let rungs = |ladder| {
        let policy = policy();
        (0..).take_while(move |&rung| policy.rung(ladder, rung).is_some()).map(move |rung| Climb { ladder, rung })
    };
    let (stop, hang) = (|| rungs(Ladder::Stop), || rungs(Ladder::Hang));
    let climbs = || stop().chain(hang());
    let replacing = climbs().map(|at| State::Replacing { pid: PID, at, next_at: NOW });
    let restarting = climbs().map(|at| State::Restarting { pid: PID, at, next_at: NOW });
    let stopping = climbs().chain(rungs(Ladder::Retire)).map(|at| State::Stopping { pid: PID, at, next_at: NOW });
    let later = Some(LATER + policy().abandon_limit);
    let abandoned = [
        (Purpose::Replace, later),
        (Purpose::Replace, Some(NOW)),
        (Purpose::Restart, later),
        (Purpose::Restart, Some(NOW)),
        (Purpose::Stop, None),
    ];
    let abandoned = abandoned.map(|(purpose, limit_at)| State::Abandoned { pid: PID, purpose, kill_at: NOW, limit_at });
    let simple = [
        State::Down,
        State::Spawning { intent: Intent::Hold, limit_at: NOW },
        State::Spawning { intent: Intent::Start, limit_at: NOW },
        State::Cancelling { wanted: Some(Intent::Hold), limit_at: NOW },
        State::Cancelling { wanted: Some(Intent::Start), limit_at: NOW },
        State::Cancelling { wanted: None, limit_at: NOW },
        State::Held { pid: PID },
        State::Starting { pid: PID, limit_at: NOW },
        State::Ready { pid: PID, since: NOW },
        State::Hung { pid: PID, limit_at: Some(NOW) },
        State::Closing { pid: PID, limit_at: NOW },
        State::Draining { pid: PID, firm_until: Some(NOW), limit_at: FAR },
        State::Draining { pid: PID, firm_until: None, limit_at: NOW },
        State::Backoff { until: NOW, intent: Intent::Hold },
        State::Backoff { until: NOW, intent: Intent::Start },
        State::GaveUp,
    ];
    simple.into_iter().chain(replacing).chain(restarting).chain(stopping).chain(abandoned).collect()
}

fn events() -> Vec<(&'static str, ChildEvent)> {
    vec![
        ("prepare", ChildEvent::Prepare),
        ("start", ChildEvent::Start),
        ("spawned", of(ProcessEvent::Spawned(PID))),
        ("spawn failed", of(ProcessEvent::SpawnFailed(Ending::Ended))),
        ("cannot spawn", of(ProcessEvent::SpawnFailed(Ending::Unstartable))),
        ("spawn starved", of(ProcessEvent::SpawnFailed(Ending::Starved))),
        ("ready", of(ProcessEvent::Ready)),
        ("hung", of(ProcessEvent::Hung)),
        ("closed", of(ProcessEvent::Closed)),
        ("drained", of(ProcessEvent::Drained)),
        ("exited", of(ProcessEvent::Exited(Ending::Ended))),
        ("unstartable", of(ProcessEvent::Exited(Ending::Unstartable))),
        ("starved", of(ProcessEvent::Exited(Ending::Starved))),
        ("unfit", of(ProcessEvent::Unfit)),
        ("limit passed", ChildEvent::Tick),
        ("restart", ChildEvent::Restart),
        ("retire", ChildEvent::Retire),
        ("stop", ChildEvent::Stop),
        ("stop now", ChildEvent::StopNow),
        ("rest", ChildEvent::Rest),
    ]
}

fn child(state: State) -> Child {
    Child { state, generation: GENERATION, ..Child::default() }
}

fn name(state: State) -> String {
    let label = child(state).label();
    match state {
        State::Abandoned { purpose, limit_at, .. } => {
            let too_long = if limit_at == Some(NOW) { ", too long" } else { "" };
            format!("{label} ({purpose:?}{too_long})").to_lowercase()
        }
        State::Cancelling { wanted, .. } => match wanted {
            Some(intent) => format!("{label} ({intent:?})").to_lowercase(),
            None => format!("{label} (stop)"),
        },
        State::Spawning { intent, .. } | State::Backoff { intent, .. } => {
            format!("{label} ({intent:?})").to_lowercase()
        }
        State::Stopping { at, .. } | State::Replacing { at, .. } | State::Restarting { at, .. } => {
            format!("{label} ({:?} {})", at.ladder, at.rung + 1).to_lowercase()
        }
        State::Draining { firm_until: Some(_), .. } => format!("{label} (firm)"),
        _ => label.to_owned(),
    }
}

fn words(action: ChildAction) -> String {
    match action {
        ChildAction::Spawn(..) => "spawn".into(),
        ChildAction::CancelSpawn(_) => "cancel spawn".into(),
        ChildAction::Release => "release".into(),
        ChildAction::Signal { rung, .. } => format!("{:?}", rung.signal).to_lowercase(),
        ChildAction::Unheard { .. } => "unheard".into(),
        ChildAction::Abandon { .. } => "abandon".into(),
        ChildAction::Disown(_) => "disown".into(),
        ChildAction::Withdraw => "withdraw".into(),
        ChildAction::Restart(_) => "restart later".into(),
        ChildAction::GiveUp => "give up".into(),
    }
}

fn signal(rung: Rung, ladder: Ladder, passed: Option<Rung>) -> ChildAction {
    let passed = passed.map(|rung| Passed { signal: rung.signal, grace: rung.grace });
    ChildAction::Signal { pid: PID, rung, ladder, passed }
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
        let (next, actions) = step(subject, of(ProcessEvent::Exited(Ending::Ended)), NOW, &policy);
        let [ChildAction::Restart(delay)] = actions[..] else { panic!("{actions:?}") };
        delays.push(delay.as_millis());
        subject = Child { state: State::Starting { pid: PID, limit_at: LATER }, ..next };
    }
    assert_eq!(delays, [100, 1000, 2000]);
    let much_later = NOW + policy.period + Duration::from_secs(1);
    let slow = Child { attempts: 1, ..subject.clone() };
    let (next, actions) = step(slow, of(ProcessEvent::Exited(Ending::Ended)), much_later, &policy);
    assert_eq!(actions, [ChildAction::Restart(policy.backoff(2))]);
    assert_eq!(next.failures.len(), 1, "it was ready in between, and its failures are forgotten");
    let (next, actions) = step(subject.clone(), of(ProcessEvent::Exited(Ending::Ended)), much_later, &policy);
    assert_eq!((next.state, actions), (State::GaveUp, vec![ChildAction::GiveUp]), "however slowly it fails");
    let (next, actions) = step(subject, of(ProcessEvent::Exited(Ending::Ended)), NOW, &policy);
    assert_eq!((next.state, actions), (State::GaveUp, vec![ChildAction::GiveUp]));
}

#[test]
fn the_pause_begins_anew_once_it_was_ready_but_the_failures_still_count() {
    let policy = policy();
    let mut subject = child(State::Down);
    for failure in 1..=policy.intensity + 1 {
        subject.state = State::Starting { pid: PID, limit_at: LATER };
        (subject, _) = step(subject, of(ProcessEvent::Ready), NOW, &policy);
        let (next, actions) = step(subject, of(ProcessEvent::Exited(Ending::Ended)), NOW, &policy);
        let last =
            if failure > policy.intensity { ChildAction::GiveUp } else { ChildAction::Restart(policy.backoff_first) };
        assert_eq!(actions, [ChildAction::Withdraw, last]);
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
        let (next, actions) = step(subject, of(ProcessEvent::Exited(Ending::Starved)), NOW, &policy);
        assert_eq!(actions, [ChildAction::Restart(policy.starved_pause)]);
        subject = next;
    }
    assert!(subject.failures.is_empty());
    assert_eq!(subject.deadline(), Some(NOW + policy.starved_pause));
}

#[test]
fn who_will_never_get_ready_is_ended_politely_and_given_up() {
    let policy = policy();
    let (ending, actions) =
        step(child(State::Starting { pid: PID, limit_at: LATER }), of(ProcessEvent::Unfit), NOW, &policy);
    assert_eq!(actions, [signal(policy.ladder[0], Ladder::Stop, None)]);
    let (over, actions) = step(ending, of(ProcessEvent::Exited(Ending::Unstartable)), NOW, &policy);
    assert_eq!((over.state, actions), (State::GaveUp, vec![ChildAction::GiveUp]));
}

#[test]
fn a_stop_climbs_the_ladder_and_does_not_wait_for_what_cannot_be_killed() {
    let policy = policy();
    let ready = child(State::Ready { pid: PID, since: NOW });
    let (stopping, actions) = step(ready, ChildEvent::Stop, NOW, &policy);
    assert_eq!(actions, [ChildAction::Withdraw, signal(policy.ladder[0], Ladder::Stop, None)]);
    assert_eq!(stopping.deadline(), Some(NOW + Duration::from_secs(10)));
    let (early, actions) = step(stopping.clone(), ChildEvent::Tick, NOW + Duration::from_secs(9), &policy);
    assert_eq!((&early, actions), (&stopping, vec![]));
    let (killed, actions) = step(stopping, ChildEvent::Tick, NOW + Duration::from_secs(10), &policy);
    assert_eq!(actions, [signal(policy.ladder[1], Ladder::Stop, Some(policy.ladder[0]))]);
    let (lost, actions) = step(killed, ChildEvent::Tick, NOW + policy.stop_limit(), &policy);
    assert_eq!(actions, [ChildAction::Abandon { pid: PID, limit: KILL_GRACE }]);
    assert!(lost.is_abandoned() && lost.is_over());
}

#[test]
fn what_outlives_sigkill_is_killed_again_and_leads_to_what_was_wanted() {
    let policy = policy();
    let at = Climb { ladder: Ladder::Hang, rung: 1 };
    let killed = child(State::Replacing { pid: PID, at, next_at: NOW });
    let (mut lost, actions) = step(killed, ChildEvent::Tick, NOW, &policy);
    assert_eq!(actions, [ChildAction::Abandon { pid: PID, limit: KILL_GRACE }]);
    assert!(!lost.is_over() && lost.pid() == Some(PID));
    let mut now = NOW;
    for _ in 0..3 {
        now += KILL_AGAIN;
        let (again, actions) = step(lost, ChildEvent::Tick, now, &policy);
        assert_eq!(actions, [signal(policy.ladder[1], Ladder::Stop, None)]);
        lost = again;
    }
    let (gone, actions) = step(lost.clone(), of(ProcessEvent::Exited(Ending::Ended)), now, &policy);
    assert_eq!((gone.failures.len(), actions), (1, vec![ChildAction::Restart(policy.backoff_first)]));
    let (asked, _) = step(lost.clone(), ChildEvent::Restart, now, &policy);
    let (gone, _) = step(asked, of(ProcessEvent::Exited(Ending::Ended)), now, &policy);
    assert_eq!((gone.state, gone.failures.len()), (State::Backoff { until: now, intent: Intent::Start }, 0));
    let (stopped, _) = step(lost.clone(), ChildEvent::Stop, now, &policy);
    let (gone, _) = step(stopped, of(ProcessEvent::Exited(Ending::Ended)), now, &policy);
    assert_eq!(gone.state, State::Down);
    let (mut left, actions) = step(lost, ChildEvent::Tick, NOW + policy.abandon_limit, &policy);
    assert_eq!(actions, [ChildAction::GiveUp]);
    assert_eq!(left.deadline(), Some(now + KILL_AGAIN), "it is killed on");
    (left, _) = step(left, ChildEvent::Rest, NOW + policy.abandon_limit, &policy);
    let (_, actions) = step(left, ChildEvent::Tick, NOW + 2 * policy.abandon_limit, &policy);
    assert_eq!(actions, [ChildAction::GiveUp], "whether Tandem can do without it is asked again");
}

#[test]
fn a_process_that_does_not_come_is_not_waited_for() {
    let policy = policy();
    let (asked, _) = step(child(State::Down), ChildEvent::Start, NOW, &policy);
    let generation = asked.generation;
    let late = NOW + policy.spawn_limit;
    for (event, now) in [(ChildEvent::Tick, late), (ChildEvent::Stop, NOW), (ChildEvent::StopNow, NOW)] {
        let (cancelled, actions) = step(asked.clone(), event, now, &policy);
        assert_eq!(actions, [ChildAction::CancelSpawn(generation)], "{event:?}");
        let spawned = ChildEvent::Process(generation, ProcessEvent::Spawned(PID));
        let (there, actions) = step(cancelled.clone(), spawned, now, &policy);
        let told = if event == ChildEvent::Tick { vec![] } else { vec![signal(policy.ladder[0], Ladder::Stop, None)] };
        assert_eq!((there.pid(), actions), (Some(PID), told), "it came at the last moment");
        let (silent, _) = step(cancelled, ChildEvent::Tick, now + CANCEL_LIMIT, &policy);
        assert_eq!(silent.is_over(), event != ChildEvent::Tick);
        let (_, actions) = step(silent, spawned, now + CANCEL_LIMIT, &policy);
        assert_eq!(actions, [ChildAction::Disown(PID)], "too late, and not forgotten");
    }
}

#[test]
fn an_event_of_a_former_process_counts_for_nothing() {
    let former = Generation(GENERATION.0 - 1);
    for state in states() {
        for (_, event) in events() {
            let ChildEvent::Process(_, about) = event else { continue };
            let (next, actions) = step(child(state), ChildEvent::Process(former, about), LATER, &policy());
            let disowned = match about {
                ProcessEvent::Spawned(pid) => vec![ChildAction::Disown(pid)],
                _ => vec![],
            };
            assert_eq!((next.state, actions), (state, disowned), "{about:?}");
        }
    }
}

#[test]
fn a_limit_without_end_is_none() {
    let for_ever = Policy {
        spawn_limit: Duration::MAX,
        ready_limit: Duration::MAX,
        hang_limit: Some(Duration::MAX),
        ladder: vec![Rung { signal: Signal::Kill, group: true, grace: Duration::MAX }],
        backoff_step: Duration::MAX,
        backoff_max: Duration::MAX,
        period: Duration::MAX,
        rest: Duration::MAX,
        abandon_limit: Duration::MAX,
        starved_pause: Duration::MAX,
        close_limit: Duration::MAX,
        drain_limit: Duration::MAX,
        drain_firm: Duration::MAX,
        ..policy()
    };
    for state in states() {
        for (_, event) in events() {
            let (next, _) = step(child(state), event, LATER, &for_ever);
            assert!(next.deadline().is_none_or(|at| at >= NOW), "{state:?} {event:?}");
        }
    }
    assert_eq!(for_ever.stop_limit(), Duration::MAX);
}

#[test]
fn a_limit_does_nothing_before_it_has_passed() {
    let before = NOW - Duration::from_millis(1);
    for state in states() {
        let (next, actions) = step(child(state), ChildEvent::Tick, before, &policy());
        assert_eq!((next.state, actions), (state, vec![]), "{state:?}");
    }
}

#[test]
fn who_is_told_to_leave_says_when_it_accepts_no_more_and_then_has_its_time() {
    let policy = policy();
    let ready = child(State::Ready { pid: PID, since: NOW });
    let (closing, actions) = step(ready, ChildEvent::Retire, NOW, &policy);
    assert_eq!(actions, [ChildAction::Withdraw, signal(policy.retire[0], Ladder::Retire, None)]);
    assert!(closing.is_closing() && closing.deadline() == Some(NOW + policy.close_limit));
    let (draining, actions) = step(closing.clone(), of(ProcessEvent::Closed), NOW, &policy);
    assert_eq!((draining.is_closing(), actions), (false, vec![]));
    let firm = NOW + policy.drain_firm;
    assert_eq!(draining.deadline(), Some(firm));
    let (draining, actions) = step(draining, ChildEvent::Tick, firm, &policy);
    assert_eq!((draining.deadline(), actions), (Some(NOW + policy.drain_limit), vec![]), "it goes on");
    let (ending, actions) = step(draining.clone(), ChildEvent::Tick, NOW + policy.drain_limit, &policy);
    let passed = Some(Passed { signal: Signal::Retire, grace: policy.drain_limit });
    let term = policy.ladder[0];
    assert_eq!(actions, [ChildAction::Signal { pid: PID, rung: term, ladder: Ladder::Retire, passed }]);
    assert_eq!(ending.deadline(), Some(NOW + policy.drain_limit + term.grace));
    let (ending, actions) = step(draining.clone(), of(ProcessEvent::Drained), firm, &policy);
    assert_eq!((ending.deadline(), actions), (Some(firm + policy.retire[0].grace), vec![]), "its own shutdown is left");
    let (hung, actions) = step(draining, of(ProcessEvent::Hung), firm, &policy);
    assert_eq!(actions, [signal(policy.hang[0], Ladder::Hang, None)]);
    assert_eq!(step(hung, of(ProcessEvent::Exited(Ending::Ended)), firm, &policy).0.state, State::Down);
    // The word comes late, or never.
    let late = NOW + policy.close_limit;
    let (unheard, actions) = step(closing, ChildEvent::Tick, late, &policy);
    assert_eq!(actions, [ChildAction::Unheard { pid: PID, limit: policy.close_limit }]);
    assert!(!unheard.is_closing() && unheard.deadline() == Some(late + policy.retire[0].grace));
    let (heard, _) = step(unheard.clone(), of(ProcessEvent::Closed), late, &policy);
    assert_eq!(heard.deadline(), Some(late + policy.drain_firm));
    let (_, actions) = step(unheard, ChildEvent::Tick, late + policy.retire[0].grace, &policy);
    assert_eq!(actions, [signal(term, Ladder::Retire, Some(policy.retire[0]))]);
}

#[test]
fn who_leaves_of_its_own_accord_gets_no_signal_before_its_grace_has_passed() {
    let policy = policy();
    let (leaving, actions) = step(child(State::Ready { pid: PID, since: NOW }), of(ProcessEvent::Closed), NOW, &policy);
    assert_eq!((leaving.deadline(), actions), (Some(NOW + policy.ladder[0].grace), vec![ChildAction::Withdraw]));
    let (gone, actions) = step(leaving, of(ProcessEvent::Exited(Ending::Ended)), NOW, &policy);
    assert_eq!((gone.failures.len(), actions), (1, vec![ChildAction::Restart(policy.backoff_first)]));
}

#[test]
fn who_was_never_ready_is_tried_less_often_and_with_other_pauses() {
    let second = Duration::from_secs(1);
    let policy = Policy { start_intensity: 2, start_pause: second, ..policy() };
    let fail = |subject: Child| {
        let starting = Child { state: State::Starting { pid: PID, limit_at: LATER }, ..subject };
        step(starting, of(ProcessEvent::Exited(Ending::Ended)), NOW, &policy)
    };
    let (subject, first) = fail(child(State::Down));
    let (subject, again) = fail(subject);
    let (subject, last) = fail(subject);
    assert_eq!(
        [first, again, last].concat(),
        [ChildAction::Restart(second), ChildAction::Restart(2 * second), ChildAction::GiveUp]
    );
    // A person asks, and it gets ready: from then on it is kept as any other.
    let (mut subject, _) = step(subject, ChildEvent::Restart, NOW, &policy);
    subject.state = State::Starting { pid: PID, limit_at: LATER };
    let ready = ChildEvent::Process(subject.generation, ProcessEvent::Ready);
    let (subject, _) = step(subject, ready, NOW, &policy);
    let gone = ChildEvent::Process(subject.generation, ProcessEvent::Exited(Ending::Ended));
    let (_, actions) = step(subject, gone, NOW, &policy);
    assert_eq!(actions, [ChildAction::Withdraw, ChildAction::Restart(policy.backoff_first)]);
}
