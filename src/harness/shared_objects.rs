//! What belongs to the whole server and to no database of it: roles and their settings, rights on parameters, tablespaces,
//! databases that tests made. Pure: which test changed what, and when that is to be put back.
//!
//! PostgreSQL does not say who made a role. So a change counts as made by all the tests that had a database while it came
//! about, and is put back when the last of these databases was given back: no test loses what it still needs. A database
//! that is held for longer than one test, by a fixture of a session or a module, is taken for the author only where no
//! test's was out; and what comes about while none is out belongs to the run, and stays.

use std::collections::{BTreeMap, BTreeSet};

/// A thing of the whole server: its kind, and what tells it from others of that kind.
pub type Key = (Kind, String);

/// All there is, each with its value as text.
pub type Snapshot = BTreeMap<Key, String>;

/// A kind of thing, in the order in which they are made: an access list names roles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Role,
    Tablespace,
    Member,
    Setting,
    Parameter,
    Comment,
    Label,
    Dependency,
    Database,
    Slot,
    Origin,
    /// A setting of ALTER SYSTEM.
    System,
}

/// A change that is to be put back; `None`: it was not there, or is not there now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Undo {
    pub key: Key,
    pub was: Option<String>,
    pub is: Option<String>,
}

/// For how long a database is held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hold {
    /// For one test.
    #[default]
    Test,
    /// For several, by a fixture.
    Lasting,
}

/// Who has a database, and what was changed meanwhile.
#[derive(Debug, Default)]
pub struct Ledger {
    seen: Option<Snapshot>,
    changes: BTreeMap<Key, Change>,
    out: BTreeMap<String, Hold>,
    /// Given back since the last look.
    left: BTreeMap<String, Hold>,
}

#[derive(Debug)]
struct Change {
    was: Option<String>,
    by: BTreeSet<String>,
}

impl Ledger {
    /// The database `name` is handed out.
    pub fn given(&mut self, name: &str, hold: Hold) {
        self.out.insert(name.to_owned(), hold);
    }

    /// The database `name` is given back.
    pub fn returned(&mut self, name: &str) {
        if let Some(hold) = self.out.remove(name) {
            self.left.insert(name.to_owned(), hold);
        }
    }

    /// Take note of how things are `now`; what is to be put back.
    pub fn look(&mut self, now: Snapshot) -> Vec<Undo> {
        let authors = self.authors();
        self.left.clear();
        let Some(seen) = self.seen.replace(now) else { return Vec::new() };
        let now = self.seen.as_ref().unwrap_or(&seen);
        let differs = |key: &&Key| seen.get(key) != now.get(key);
        let keys: BTreeSet<&Key> = seen.keys().chain(now.keys()).filter(differs).collect();
        for key in keys {
            if !authors.is_empty() {
                let change = self.changes.entry(key.clone());
                let change = change.or_insert_with(|| Change { was: seen.get(key).cloned(), by: BTreeSet::new() });
                change.by.extend(authors.iter().cloned());
            }
        }
        // Tests that tidy up leave nothing to do.
        self.changes.retain(|key, change| now.get(key) != change.was.as_ref());
        let due = self.changes.iter().filter(|(_, change)| !change.by.iter().any(|name| self.out.contains_key(name)));
        due.map(|(key, change)| Undo { key: key.clone(), was: change.was.clone(), is: now.get(key).cloned() }).collect()
    }

    /// How things are after the undoing. What is new and still there, such as a database that is in use, is due again at the
    /// next look.
    pub fn undone(&mut self, now: Snapshot) {
        self.changes.retain(|key, change| {
            let open = change.by.iter().any(|name| self.out.contains_key(name));
            now.get(key) != change.was.as_ref() && (open || change.was.is_none())
        });
        self.seen = Some(now);
    }

    /// These changes stay: they cannot be put back.
    pub fn give_up(&mut self, undoing: &[Undo]) {
        for undo in undoing {
            self.changes.remove(&undo.key);
        }
    }

    fn authors(&self) -> BTreeSet<String> {
        let held = |hold: Hold| {
            let all = self.out.iter().chain(&self.left).filter(move |(_, of)| **of == hold);
            all.map(|(name, _)| name.clone()).collect::<BTreeSet<_>>()
        };
        let tests = held(Hold::Test);
        if tests.is_empty() { held(Hold::Lasting) } else { tests }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(things: &[(&str, &str)]) -> Snapshot {
        things.iter().map(|(key, value)| ((Kind::Role, (*key).to_owned()), (*value).to_owned())).collect()
    }

    fn undo(key: &str, was: Option<&str>, is: Option<&str>) -> Undo {
        Undo { key: (Kind::Role, key.into()), was: was.map(str::to_owned), is: is.map(str::to_owned) }
    }

    fn ledger(things: &[(&str, &str)]) -> Ledger {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.look(snapshot(things)), []);
        ledger
    }

    #[test]
    fn what_one_test_changed_is_put_back_when_its_database_comes_back() {
        let mut ledger = ledger(&[("app", "1"), ("old", "1")]);
        ledger.given("a", Hold::Test);
        let changed = snapshot(&[("app", "2"), ("new", "1")]);
        assert_eq!(ledger.look(changed.clone()), [], "its test still runs");
        ledger.returned("a");
        let due = ledger.look(changed);
        let expected = [undo("app", Some("1"), Some("2")), undo("new", None, Some("1")), undo("old", Some("1"), None)];
        assert_eq!(due, expected);
        ledger.undone(snapshot(&[("app", "1"), ("old", "1")]));
        assert_eq!(ledger.look(snapshot(&[("app", "1"), ("old", "1")])), []);
    }

    #[test]
    fn with_several_tests_at_once_the_last_of_them_is_waited_for() {
        let mut ledger = ledger(&[]);
        ledger.given("a", Hold::Test);
        ledger.given("b", Hold::Test);
        ledger.returned("a");
        let now = snapshot(&[("new", "1")]);
        assert_eq!(ledger.look(now.clone()), [], "it may be the one of b");
        // One that comes later has nothing to do with it.
        ledger.given("c", Hold::Test);
        ledger.returned("b");
        assert_eq!(ledger.look(now), [undo("new", None, Some("1"))]);
    }

    #[test]
    fn what_comes_about_while_no_database_is_out_stays() {
        let mut ledger = ledger(&[]);
        let now = snapshot(&[("of the run", "1")]);
        assert_eq!(ledger.look(now.clone()), []);
        ledger.given("a", Hold::Test);
        ledger.returned("a");
        assert_eq!(ledger.look(now), []);
    }

    #[test]
    fn what_a_fixture_makes_lives_as_long_as_its_database() {
        let mut ledger = ledger(&[]);
        ledger.given("session", Hold::Lasting);
        let fixture = snapshot(&[("of the session", "1")]);
        assert_eq!(ledger.look(fixture.clone()), []);
        ledger.given("a", Hold::Test);
        let both = snapshot(&[("of a", "1"), ("of the session", "1")]);
        ledger.returned("a");
        assert_eq!(ledger.look(both), [undo("of a", None, Some("1"))]);
        ledger.undone(fixture.clone());
        ledger.returned("session");
        assert_eq!(ledger.look(fixture), [undo("of the session", None, Some("1"))]);
    }

    #[test]
    fn a_test_that_tidies_up_leaves_nothing_to_do_and_what_is_in_use_is_due_again() {
        let mut ledger = ledger(&[("app", "1")]);
        ledger.given("a", Hold::Test);
        assert_eq!(ledger.look(snapshot(&[("app", "2")])), []);
        ledger.returned("a");
        assert_eq!(ledger.look(snapshot(&[("app", "1")])), []);

        ledger.given("b", Hold::Test);
        ledger.returned("b");
        let now = snapshot(&[("app", "1"), ("used", "1")]);
        let due = [undo("used", None, Some("1"))];
        assert_eq!(ledger.look(now.clone()), due);
        ledger.undone(now.clone());
        assert_eq!(ledger.look(now.clone()), due, "it was in use, and is tried again");
        ledger.give_up(&due);
        assert_eq!(ledger.look(now), []);
    }
}
