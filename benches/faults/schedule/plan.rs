//! Which fault comes when. Pure: the same seed gives the same schedule.

use std::time::Duration;

use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

/// What a fault hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Victim {
    Postmaster,
    /// A session of a client: a worker's, or Tandem's own.
    Backend,
    /// One of PostgreSQL's own processes, by the words in its title.
    Auxiliary(&'static str),
    Worker,
    Template,
    Companion,
    /// `hooks.after_ready`, while it runs.
    Hook,
    /// The pg_dump of a backup.
    Dump,
    /// `tandem backup base`.
    BaseBackup,
    /// The session that a base backup is read from.
    WalSender,
    /// `tandem restore`, while it fills the copy beside the database.
    Restore,
    /// The psql that fills this copy.
    RestoreChild,
    /// `tandem backup verify`, with a server of its own.
    Verify,
    /// The command of an order, while the order is carried out.
    Order(&'static str),
    /// A worker, while an order is carried out.
    WorkerDuring(&'static str),
    Supervisor,
    /// The server's log, which floods.
    ServerLog,
    /// What reads Tandem's log.
    LogReader,
    /// The pipe between Tandem and what reads its log.
    LogPipe,
}

/// What happens to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Blow {
    /// SIGKILL.
    Kill,
    /// SIGSTOP, and SIGCONT after a moment.
    Pause,
    /// SIGSEGV, as a bug in its code would.
    Segv,
    /// SIGSTOP for good: Tandem has to notice.
    Freeze,
    /// SIGTERM, and a new start.
    Term,
    /// More than anybody reads.
    Flood,
    /// Nothing more fits.
    Full,
    /// Nothing more fits, and then SIGTERM to Tandem, and a new start.
    FullTerm,
}

/// One kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kind {
    pub victim: Victim,
    pub blow: Blow,
}

/// A fault of the schedule.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    pub kind: Kind,
    /// How long a pause takes.
    pub pause: Duration,
    /// How long an order has been under way when the blow comes.
    pub delay: Duration,
    /// Chooses among several victims.
    pub choice: usize,
    /// The next fault comes without waiting for what this one has done to heal.
    pub pressed: bool,
}

/// PostgreSQL's own processes, as their titles call them (PostgreSQL documentation, "Standard Unix Tools").
pub const AUXILIARIES: [&str; 6] = [
    "checkpointer",
    "walwriter",
    "autovacuum launcher",
    "background writer",
    "archiver",
    "logical replication launcher",
];
/// What a running Tandem can be ordered.
pub const ORDERS: [&str; 3] = ["reload", "scale", "restart"];
/// Of all faults, in tenths: the first ones may end the supervisor. The others all meet the same one, so that what it
/// loses over them can be seen.
const FIRST_ACT: usize = 3;
/// How many of a hundred faults press.
const PRESSED: u32 = 20;

impl Kind {
    /// Whether the supervisor is another one afterwards.
    pub fn ends_the_supervisor(self) -> bool {
        match self.victim {
            Victim::Supervisor => self.blow != Blow::Pause,
            _ => self.blow == Blow::FullTerm,
        }
    }

    /// Whether the postmaster ends by it, which counts as a failure of the service.
    pub fn ends_the_postmaster(self) -> bool {
        self.victim == Victim::Postmaster && self.blow != Blow::Pause
    }

    /// As the table calls it.
    pub fn name(self) -> String {
        let victim = match self.victim {
            Victim::Postmaster => "postmaster".to_owned(),
            Victim::Backend => "backend".to_owned(),
            Victim::Auxiliary(name) => name.to_owned(),
            Victim::Worker => "worker".to_owned(),
            Victim::Template => "preload template".to_owned(),
            Victim::Companion => "companion".to_owned(),
            Victim::Hook => "hook".to_owned(),
            Victim::Dump => "pg_dump of a backup".to_owned(),
            Victim::BaseBackup => "base backup".to_owned(),
            Victim::WalSender => "session of a base backup".to_owned(),
            Victim::Restore => "restore to a copy".to_owned(),
            Victim::RestoreChild => "psql of a restore".to_owned(),
            Victim::Verify => "verification of a backup".to_owned(),
            Victim::Order(order) => format!("`tandem {order}`"),
            Victim::WorkerDuring(order) => format!("worker during `tandem {order}`"),
            Victim::Supervisor => "supervisor".to_owned(),
            Victim::ServerLog => "server's log".to_owned(),
            Victim::LogReader => "reader of the log".to_owned(),
            Victim::LogPipe => "pipe of the log".to_owned(),
        };
        let blow = match self.blow {
            Blow::Kill => "SIGKILL",
            Blow::Pause => "SIGSTOP, SIGCONT",
            Blow::Segv => "SIGSEGV",
            Blow::Freeze => "SIGSTOP for good",
            Blow::Term => "SIGTERM",
            Blow::Flood => "flood",
            Blow::Full => "full",
            Blow::FullTerm => "full, and SIGTERM to Tandem",
        };
        format!("{victim}: {blow}")
    }

    /// How long after the blow everything must be as before.
    pub fn limit(self) -> Duration {
        let seconds = match (self.victim, self.blow) {
            // The watchdog, the stack traces, the start.
            (Victim::Worker, Blow::Freeze) => 20,
            (Victim::Supervisor, _) | (_, Blow::FullTerm) => 30,
            // A paused process is killed by the postmaster after five seconds, when it resets.
            (Victim::Postmaster | Victim::Backend | Victim::Auxiliary(_) | Victim::WalSender, _) => 15,
            (Victim::Dump | Victim::BaseBackup | Victim::Restore | Victim::RestoreChild | Victim::Verify, _) => 10,
            // A roll of three workers, of which one dies.
            (Victim::Order(_) | Victim::WorkerDuring(_), _) => 30,
            _ => 15,
        };
        Duration::from_secs(seconds)
    }
}

/// Every kind there is.
pub fn kinds() -> Vec<Kind> {
    use Blow::{Flood, Freeze, Full, FullTerm, Kill, Pause, Segv, Term};
    let mut kinds = Vec::new();
    let mut add = |victim, blows: &[Blow]| kinds.extend(blows.iter().map(|&blow| Kind { victim, blow }));
    for victim in [Victim::Postmaster, Victim::Backend].into_iter().chain(AUXILIARIES.map(Victim::Auxiliary)) {
        add(victim, &[Kill, Pause, Segv]);
    }
    add(Victim::Worker, &[Kill, Pause, Segv, Freeze]);
    for victim in [Victim::Template, Victim::Companion, Victim::Hook, Victim::Dump, Victim::BaseBackup] {
        add(victim, &[Kill, Pause, Segv]);
    }
    add(Victim::WalSender, &[Kill, Pause]);
    // A restore that goes on would put older rows in the place of those that are written.
    add(Victim::Restore, &[Kill, Segv]);
    add(Victim::RestoreChild, &[Kill, Segv]);
    add(Victim::Verify, &[Kill, Segv]);
    for order in ORDERS {
        add(Victim::Order(order), &[Kill, Pause, Segv]);
        add(Victim::WorkerDuring(order), &[Kill]);
    }
    add(Victim::Supervisor, &[Kill, Pause, Segv, Term]);
    add(Victim::ServerLog, &[Flood]);
    add(Victim::LogReader, &[Pause]);
    add(Victim::LogPipe, &[Full, FullTerm]);
    kinds
}

/// Faults without an end, as `seed` orders them: every kind once, then every kind again.
pub struct Schedule {
    random: SmallRng,
    deck: Vec<Kind>,
}

impl Schedule {
    pub fn new(seed: u64) -> Self {
        Self { random: SmallRng::seed_from_u64(seed), deck: Vec::new() }
    }

    /// The next fault, of `done` out of `all`.
    pub fn next(&mut self, done: usize, all: usize) -> Fault {
        let any = done < all * FIRST_ACT / 10;
        let kind = loop {
            let Some(kind) = self.deck.pop() else {
                self.deck = kinds();
                self.deck.shuffle(&mut self.random);
                continue;
            };
            if any || !kind.ends_the_supervisor() {
                break kind;
            }
        };
        let random = &mut self.random;
        Fault {
            kind,
            pause: Duration::from_millis(random.random_range(50..1_000)),
            delay: Duration::from_millis(random.random_range(0..300)),
            choice: random.random_range(0..1_000),
            pressed: random.random_range(0..100) < PRESSED,
        }
    }
}
