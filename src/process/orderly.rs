//! The end of a server of PostgreSQL whose Tandem was killed: by the rungs of its stop, as Tandem would have ended it.
//!
//! The kernel tells the server to shut down when Tandem dies (`spawn`, the death signal), and a shutdown can wait for ever:
//! for an archive command, for a process that is stopped, for one that hangs. So the keeper goes on where Tandem left off:
//! the fast shutdown gets its grace, then comes the immediate one, and at last SIGKILL for all that is left, backends too.
//! The next start recovers from that without loss.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal as OsSignal;
use procfs::process::Stat;

use super::mark::{self, RunId};
use super::spawn::os_signal;
use super::stranger::{Identifier, Stranger};
use super::{mark::Mark, orphans};
use crate::plan::{Rung, Signal};

/// How long the kernel gets to end what was killed.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// Between two looks: at first, when most servers end, and later. A look goes through all processes of the machine.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
const LOOK_AGAIN_LATER: Duration = Duration::from_millis(100);
const LATER: Duration = Duration::from_secs(1);
/// After so many looks that find nothing, nothing is left.
const QUIET: usize = 2;

/// End the server of `run` with all that belongs to it, of which the processes `seen` are known: by `rungs`, whose graces
/// count from `began`. Returns when nothing is left, or the kernel does not end what is. Blocks.
pub(super) fn end(run: &RunId, seen: Vec<Identifier>, rungs: &[Rung], began: Instant) {
    let mut server = Server { members: seen.into_iter().collect(), leaders: BTreeMap::new() };
    let (mut quiet, mut reached, mut killed) = (0, None, None::<Instant>);
    while quiet < QUIET {
        let members = server.look(run);
        quiet = if members.is_empty() { quiet + 1 } else { 0 };
        match due(rungs, began.elapsed()).filter(|(_, rung)| rung.signal != Signal::Kill && server.is_led(&members)) {
            Some((number, rung)) if reached != Some(number) => {
                reached = Some(number);
                server.tell(os_signal(rung.signal));
            }
            Some(_) => {}
            // Without its postmaster a backend serves nobody, and blocks the next server.
            None if killed.is_some_and(|killed| killed.elapsed() > KILL_LIMIT) => return,
            None => {
                killed.get_or_insert_with(Instant::now);
                orphans::kill(members);
            }
        }
        let pause = if began.elapsed() < LATER { LOOK_AGAIN } else { LOOK_AGAIN_LATER };
        // A pause of this length; there is nothing to wait for but the time.
        let _ = nix::poll::poll(&mut [], u16::try_from(pause.as_millis()).unwrap_or(u16::MAX));
    }
}

/// What is known of the server, or of several.
struct Server {
    /// Every process of it that was seen. Backends cover their environment with their title, so that they show no mark.
    members: HashSet<Identifier>,
    /// The postmasters, by the numbers of their marks.
    leaders: BTreeMap<u64, Identifier>,
}

impl Server {
    /// Its processes that there are.
    fn look(&mut self, run: &RunId) -> Vec<Identifier> {
        let all = orphans::alive();
        let marked = |stat: &Stat| match mark::of(stat.pid) {
            Ok(Some(Mark { run: of, number, orderly: true })) if of == *run => Some((Identifier::of(stat), number)),
            _ => None,
        };
        self.find(&all, &all.iter().filter_map(marked).collect::<Vec<_>>())
    }

    /// Its processes among `all`, of which `marked` carry a mark of it.
    fn find(&mut self, all: &[Stat], marked: &[(Identifier, u64)]) -> Vec<Identifier> {
        let is_known = |id: &Identifier| self.members.contains(id) || marked.iter().any(|(of_mark, _)| of_mark == id);
        let known: Vec<i32> = all.iter().filter(|stat| is_known(&Identifier::of(stat))).map(|stat| stat.pid).collect();
        let members = orphans::below(all, &known);
        // What a postmaster has started came after it, and what left it, such as a child of an archive command, is found
        // later than it.
        let roots = all.iter().filter(|stat| !members.iter().any(|id| id.pid == stat.ppid)).map(Identifier::of);
        let mut roots: Vec<Identifier> = roots.collect();
        roots.sort_by_key(|id| id.start);
        for root in roots {
            if let Some((_, number)) = marked.iter().find(|(id, _)| *id == root) {
                self.leaders.entry(*number).or_insert(root);
            }
        }
        self.members.extend(&members);
        members
    }

    /// Whether a postmaster is among `members`.
    fn is_led(&self, members: &[Identifier]) -> bool {
        self.leaders.values().any(|leader| members.contains(leader))
    }

    /// Send `signal` to the postmasters alone: their backends give the same signals other meanings.
    fn tell(&self, signal: OsSignal) {
        for postmaster in self.leaders.values().filter_map(|&id| Stranger::hold_this(id)) {
            postmaster.signal(signal);
            // A stopped process acts on no signal but this one and SIGKILL (signal(7)).
            postmaster.signal(OsSignal::SIGCONT);
        }
    }
}

/// The rung, and its number, that a server stands on so long after the death of its Tandem; `None` past the last one.
fn due(rungs: &[Rung], since: Duration) -> Option<(usize, Rung)> {
    let mut until = Duration::ZERO;
    rungs.iter().copied().enumerate().find(|(_, rung)| {
        until = until.saturating_add(rung.grace);
        since < until
    })
}

/// The signals that a ladder can have.
const SIGNALS: [Signal; 6] =
    [Signal::Retire, Signal::Term, Signal::Interrupt, Signal::Quit, Signal::Abort, Signal::Kill];

/// `rungs` as one word, such as `SIGINT:10000,SIGQUIT:6000,SIGKILL:2000`.
pub(super) fn to_words(rungs: &[Rung]) -> String {
    let word = |rung: &Rung| format!("{}:{}", rung.signal.name(), rung.grace.as_millis());
    rungs.iter().map(word).collect::<Vec<_>>().join(",")
}

/// The rungs that `text` says, as [`to_words`] writes them; `None` where it says none.
pub(super) fn of_words(text: &str) -> Option<Vec<Rung>> {
    let rung = |word: &str| {
        let (name, grace) = word.split_once(':')?;
        let signal = SIGNALS.into_iter().find(|signal| signal.name() == name)?;
        Some(Rung { signal, group: false, grace: Duration::from_millis(grace.parse().ok()?) })
    };
    text.split(',').map(rung).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rungs() -> Vec<Rung> {
        let rung = |signal, seconds| Rung { signal, group: false, grace: Duration::from_secs(seconds) };
        vec![rung(Signal::Interrupt, 10), rung(Signal::Quit, 6), rung(Signal::Kill, 2)]
    }

    #[test]
    fn rungs_are_read_as_they_were_written() {
        assert_eq!(to_words(&rungs()), "SIGINT:10000,SIGQUIT:6000,SIGKILL:2000");
        assert_eq!(of_words(&to_words(&rungs())), Some(rungs()));
        for text in ["", "done", "SIGINT", "SIGINT:", "SIGFOO:1", "SIGINT:1,", "SIGINT:-1"] {
            assert_eq!(of_words(text), None, "{text:?}");
        }
    }

    #[test]
    fn each_rung_has_its_time_and_the_last_one_for_ever() {
        let signal = |seconds| due(&rungs(), Duration::from_secs(seconds)).map(|(_, rung)| rung.signal);
        let expected = [(0, Signal::Interrupt), (9, Signal::Interrupt), (10, Signal::Quit), (16, Signal::Kill)];
        for (seconds, wanted) in expected {
            assert_eq!(signal(seconds), Some(wanted), "{seconds}");
        }
        assert_eq!(signal(18), None);
        let endless = [Rung { grace: Duration::MAX, ..rungs()[0] }, rungs()[1]];
        assert_eq!(due(&endless, Duration::from_secs(1 << 40)).map(|(number, _)| number), Some(0));
    }
}
