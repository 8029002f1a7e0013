//! The pool of ready databases, pure: what to make, to hand out, to look at, to drop.
//!
//! Clones are made ahead, and dropping waits until nothing is asked for: a suite's databases all go with the server in
//! the end, and a drop costs as much of the server's time as a quarter of a clone. A database that its test did not
//! change is as good as new.

use std::collections::{BTreeSet, VecDeque};

/// Clones that may be under way at once: more only share the same two cores.
const MAKING_MAX: usize = 2;
/// Attempts to make a clone that may fail in a row before the waiting callers are told.
const FAILURES_MAX: u32 = 50;

/// A caller that waits for a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A caller wants a database.
    Asked(Ticket),
    /// A caller wants one no longer.
    Left(Ticket),
    /// A database comes back.
    Returned {
        name: String,
        failed: bool,
    },
    /// A returned database has no connection any more; `untouched` says that nothing was changed in it.
    Cleaned {
        name: String,
        untouched: bool,
    },
    Made(String),
    /// A clone could not be made.
    MakeFailed,
    /// A drop is over, whether it succeeded or not.
    Dropped,
    /// Clones can be made: the template is ready, or the pause after a failure is over.
    Resumed,
    /// So many will be asked for in all.
    Expected(usize),
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Make(String),
    Give(Ticket, String),
    /// Making clones fails for good: tell them.
    Refuse(Ticket),
    /// End its connections, and see whether it was changed.
    Clean(String),
    /// It stays as it is, for a person to look at.
    Keep(String),
    Drop(String),
    /// Say [`Event::Resumed`] in a moment.
    Pause,
}

/// The bounds of a pool.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Databases that are kept ready while it is not known how many will be asked for.
    pub ready: usize,
    /// Most that are kept ready when it is known.
    pub ready_max: usize,
    /// Databases that wait to be dropped before a drop may hold up a clone.
    pub used_max: usize,
    /// Databases of failed tests that are kept.
    pub kept_max: usize,
}

/// The pool of one template.
#[derive(Debug)]
pub struct Pool {
    prefix: String,
    bounds: Bounds,
    expected: Option<usize>,
    given: usize,
    serial: u64,
    ready: VecDeque<String>,
    waiting: VecDeque<Ticket>,
    out: BTreeSet<String>,
    used: VecDeque<String>,
    kept: Vec<String>,
    making: usize,
    dropping: bool,
    paused: bool,
    failures: u32,
}

impl Pool {
    /// A pool of databases called `prefix` and a number. It makes none before [`Event::Resumed`].
    pub fn new(prefix: impl Into<String>, bounds: Bounds) -> Self {
        Self {
            prefix: prefix.into(),
            bounds,
            expected: None,
            given: 0,
            serial: 0,
            ready: VecDeque::new(),
            waiting: VecDeque::new(),
            out: BTreeSet::new(),
            used: VecDeque::new(),
            kept: Vec::new(),
            making: 0,
            dropping: false,
            paused: true,
            failures: 0,
        }
    }

    /// Databases that can be handed out at once.
    pub fn ready(&self) -> usize {
        self.ready.len()
    }

    /// Databases that are handed out.
    pub fn out(&self) -> usize {
        self.out.len()
    }

    /// Databases of failed tests, in the order of their failures.
    pub fn kept(&self) -> &[String] {
        &self.kept
    }

    /// Whether `name` is handed out.
    pub fn is_out(&self, name: &str) -> bool {
        self.out.contains(name)
    }

    /// Take note of `event`; what follows from it.
    pub fn step(&mut self, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Asked(ticket) => self.waiting.push_back(ticket),
            Event::Left(ticket) => self.waiting.retain(|&waiting| waiting != ticket),
            Event::Returned { name, failed } => {
                // Given back twice, or never ours: nothing follows.
                if self.out.remove(&name) {
                    if failed && self.kept.len() < self.bounds.kept_max {
                        self.kept.push(name.clone());
                        actions.push(Action::Keep(name));
                    } else {
                        actions.push(Action::Clean(name));
                    }
                }
            }
            Event::Cleaned { name, untouched: true } => self.ready.push_back(name),
            Event::Cleaned { name, untouched: false } => self.used.push_back(name),
            Event::Made(name) => {
                self.making = self.making.saturating_sub(1);
                self.failures = 0;
                self.ready.push_back(name);
            }
            Event::MakeFailed => {
                self.making = self.making.saturating_sub(1);
                self.failures += 1;
                if !self.paused {
                    self.paused = true;
                    actions.push(Action::Pause);
                }
                if self.failures >= FAILURES_MAX {
                    actions.extend(self.waiting.drain(..).map(Action::Refuse));
                }
            }
            Event::Dropped => self.dropping = false,
            Event::Resumed => self.paused = false,
            // Several processes of one suite may each say it.
            Event::Expected(count) => self.expected = self.expected.max(Some(count)),
        }
        self.decide(&mut actions);
        actions
    }

    fn decide(&mut self, actions: &mut Vec<Action>) {
        while let Some(name) = self.ready.pop_front() {
            let Some(ticket) = self.waiting.pop_front() else {
                self.ready.push_front(name);
                break;
            };
            self.given += 1;
            self.out.insert(name.clone());
            actions.push(Action::Give(ticket, name));
        }
        let ahead = match self.expected {
            None => self.bounds.ready,
            Some(expected) => expected.saturating_sub(self.given + self.waiting.len()).min(self.bounds.ready_max),
        };
        let wanted = ahead + self.waiting.len();
        while !self.paused && self.making < MAKING_MAX && self.ready.len() + self.making < wanted {
            self.serial += 1;
            self.making += 1;
            actions.push(Action::Make(format!("{}{}", self.prefix, self.serial)));
        }
        let idle = self.waiting.is_empty() && self.making == 0;
        // After a failure too: the disk may be full of databases that are no longer needed.
        if !self.dropping
            && (idle || self.paused || self.used.len() > self.bounds.used_max)
            && let Some(name) = self.used.pop_front()
        {
            self.dropping = true;
            actions.push(Action::Drop(name));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rand::rngs::SmallRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    fn make(number: u64) -> Action {
        Action::Make(format!("t{number}"))
    }

    fn returned(name: &str, failed: bool) -> Event {
        Event::Returned { name: name.into(), failed }
    }

    fn pool(ready: usize, kept_max: usize) -> Pool {
        Pool::new("t", Bounds { ready, ready_max: 4, used_max: 3, kept_max })
    }

    /// A pool of two that is full: t1, t2.
    fn full() -> Pool {
        let mut pool = pool(2, 1);
        assert_eq!(pool.step(Event::Resumed), [make(1), make(2)]);
        assert_eq!(pool.step(Event::Made("t1".into())), []);
        assert_eq!(pool.step(Event::Made("t2".into())), []);
        pool
    }

    #[test]
    fn what_is_ready_is_given_at_once_and_made_up_for() {
        let mut pool = full();
        assert_eq!(pool.step(Event::Asked(Ticket(1))), [Action::Give(Ticket(1), "t1".into()), make(3)]);
        assert_eq!(pool.step(Event::Asked(Ticket(2))), [Action::Give(Ticket(2), "t2".into()), make(4)]);
        assert_eq!(pool.step(Event::Asked(Ticket(3))), [], "two are under way");
        let given = Action::Give(Ticket(3), "t4".into());
        assert_eq!(pool.step(Event::Made("t4".into())), [given, make(5)]);
    }

    #[test]
    fn who_leaves_gets_nothing() {
        let mut pool = pool(1, 0);
        pool.step(Event::Resumed);
        pool.step(Event::Asked(Ticket(1)));
        pool.step(Event::Asked(Ticket(2)));
        pool.step(Event::Left(Ticket(1)));
        assert_eq!(pool.step(Event::Made("t1".into())), [Action::Give(Ticket(2), "t1".into())]);
    }

    #[test]
    fn an_untouched_database_is_handed_out_again_and_a_changed_one_dropped_when_idle() {
        let mut pool = full();
        pool.step(Event::Asked(Ticket(1)));
        assert_eq!(pool.step(returned("t1", false)), [Action::Clean("t1".into())]);
        assert_eq!(pool.step(Event::Cleaned { name: "t1".into(), untouched: false }), [], "a clone is under way");
        assert_eq!(pool.step(Event::Made("t3".into())), [Action::Drop("t1".into())]);
        assert_eq!(pool.step(Event::Dropped), []);
        pool.step(Event::Asked(Ticket(2)));
        pool.step(returned("t2", false));
        pool.step(Event::Cleaned { name: "t2".into(), untouched: true });
        assert_eq!(pool.ready(), 2);
    }

    #[test]
    fn failed_ones_are_kept_up_to_the_limit_and_giving_back_twice_changes_nothing() {
        let mut pool = full();
        pool.step(Event::Asked(Ticket(1)));
        pool.step(Event::Asked(Ticket(2)));
        assert_eq!(pool.step(returned("t1", true)), [Action::Keep("t1".into())]);
        assert_eq!(pool.step(returned("t2", true)), [Action::Clean("t2".into())], "one is kept, and no more");
        assert_eq!(pool.step(returned("t2", true)), []);
        assert_eq!(pool.step(returned("template1", false)), []);
        assert_eq!((pool.kept(), pool.out()), (&["t1".to_owned()][..], 0));
    }

    #[test]
    fn a_clone_that_fails_is_tried_again_after_a_pause_and_not_for_ever() {
        let mut pool = pool(1, 0);
        pool.step(Event::Resumed);
        pool.step(Event::Asked(Ticket(1)));
        let mut told = false;
        for _ in 0..FAILURES_MAX {
            let actions = pool.step(Event::MakeFailed);
            assert!(actions.contains(&Action::Pause) || pool.paused, "{actions:?}");
            told = actions.contains(&Action::Refuse(Ticket(1)));
            pool.step(Event::Resumed);
        }
        assert!(told);
    }

    #[test]
    fn no_more_are_made_than_are_expected_and_enough_of_them_ahead() {
        let mut pool = pool(1, 0);
        assert_eq!(pool.step(Event::Expected(6)), [], "nothing is made before it begins");
        assert_eq!(pool.step(Event::Resumed), [make(1), make(2)]);
        assert_eq!(pool.step(Event::Expected(5)), [], "less than was said before");
        let mut made = 2;
        for number in 1..=6 {
            let actions = pool.step(Event::Made(format!("t{number}")));
            made += actions.len();
        }
        assert_eq!((made, pool.ready()), (4, 6), "four are kept ready at most; two more came unasked");
        for ticket in 1..=6 {
            assert_eq!(pool.step(Event::Asked(Ticket(ticket))).len(), 1, "given, and none is made for later");
        }
        assert_eq!(pool.step(Event::Asked(Ticket(7))), [make(5)], "who comes unexpected gets one all the same");
    }

    /// Whatever comes in whatever order: a database has one holder at a time, and every caller that waits gets one.
    #[test]
    fn random_histories_never_hand_a_database_to_two() {
        for seed in 0..2_000 {
            let mut random = SmallRng::seed_from_u64(seed);
            let mut pool = pool(random.random_range(1..5), 1);
            let (mut making, mut cleaning, mut drops) = (Vec::new(), Vec::new(), 0);
            let (mut held, mut waiting) = (BTreeMap::new(), BTreeSet::new());
            let mut actions = pool.step(Event::Resumed);
            for number in 0..200 {
                for action in std::mem::take(&mut actions) {
                    match action {
                        Action::Make(name) => making.push(name),
                        Action::Clean(name) => cleaning.push(name),
                        Action::Drop(_) => drops += 1,
                        Action::Give(ticket, name) => {
                            assert!(waiting.remove(&ticket), "{ticket:?} did not wait");
                            assert_eq!(held.insert(name, ticket), None, "handed to two");
                        }
                        Action::Refuse(_) | Action::Keep(_) | Action::Pause => {}
                    }
                }
                assert!(making.len() <= MAKING_MAX && drops <= 1);
                let event = match random.random_range(0..6) {
                    0 => {
                        waiting.insert(Ticket(number));
                        Event::Asked(Ticket(number))
                    }
                    1 if !held.is_empty() => {
                        let name = held.keys().next().cloned().unwrap();
                        held.remove(&name);
                        Event::Returned { name, failed: random.random_bool(0.1) }
                    }
                    2 if !cleaning.is_empty() => {
                        Event::Cleaned { name: cleaning.remove(0), untouched: random.random_bool(0.5) }
                    }
                    3 if drops > 0 => {
                        drops -= 1;
                        Event::Dropped
                    }
                    4 => Event::Expected(random.random_range(0..100)),
                    _ if !making.is_empty() => Event::Made(making.remove(0)),
                    _ => continue,
                };
                actions = pool.step(event);
            }
            while !making.is_empty() || actions.iter().any(|action| matches!(action, Action::Make(_))) {
                for action in std::mem::take(&mut actions) {
                    match action {
                        Action::Make(name) => making.push(name),
                        Action::Give(ticket, _) => drop(waiting.remove(&ticket)),
                        _ => {}
                    }
                }
                actions = pool.step(Event::Made(making.remove(0)));
            }
            waiting.retain(|ticket| {
                !actions.iter().any(|action| matches!(action, Action::Give(given, _) if given == ticket))
            });
            assert!(waiting.is_empty(), "seed {seed}: {waiting:?} wait for ever");
        }
    }
}
