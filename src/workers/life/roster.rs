//! The workers and templates that there are, and what is known of all of them together.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::super::notify::StartError;
use super::Life;
use crate::http::{Counts, Unfinished};

/// The processes that there are, by pid.
#[derive(Clone, Default)]
pub struct Roster(Rc<Members>);

/// A worker's process that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndedWorker {
    pub slot: usize,
    pub pid: i32,
}

#[derive(Default)]
struct Members {
    /// Hears of every worker that has ended.
    ended: RefCell<Option<UnboundedSender<EndedWorker>>>,
    lives: RefCell<HashMap<i32, Life>>,
    /// The start error that was logged last. However many processes run into it, it is logged once, and again only after
    /// one of them got ready.
    start_error: RefCell<String>,
    /// Whether the database is away for a reason that lies outside Tandem.
    database_is_away: Option<Box<dyn Fn() -> bool>>,
}

impl Roster {
    /// One whose processes need a database: while `is_away` says that it is not there, and not by Tandem's doing, no start
    /// that fails counts against them.
    pub fn with_database(is_away: impl Fn() -> bool + 'static) -> Self {
        Self(Rc::new(Members { database_is_away: Some(Box::new(is_away)), ..Members::default() }))
    }

    pub(super) fn lacks_database(&self) -> bool {
        self.0.database_is_away.as_ref().is_some_and(|is_away| is_away())
    }

    /// Every process that is there.
    pub fn lives(&self) -> Vec<Life> {
        self.0.lives.borrow().values().cloned().collect()
    }

    /// Every worker that ends from now on, until [`Roster::close`].
    pub fn ended(&self) -> UnboundedReceiver<EndedWorker> {
        let (sender, receiver) = unbounded_channel();
        *self.0.ended.borrow_mut() = Some(sender);
        receiver
    }

    /// No worker ends any more.
    pub fn close(&self) {
        self.0.ended.borrow_mut().take();
    }

    /// What the worker with this pid last told of itself.
    pub fn counts(&self, pid: i32) -> Option<Counts> {
        self.0.lives.borrow().get(&pid).and_then(Life::counts)
    }

    /// What the worker with this pid has still to finish, once it accepts no more.
    pub fn unfinished(&self, pid: i32) -> Option<Unfinished> {
        self.0.lives.borrow().get(&pid).and_then(Life::unfinished)
    }

    pub(super) fn insert(&self, pid: i32, life: Life) {
        self.0.lives.borrow_mut().insert(pid, life);
    }

    /// The process has ended; a worker's had `slot`.
    pub(super) fn remove(&self, pid: i32, slot: Option<usize>) {
        self.0.lives.borrow_mut().remove(&pid);
        if let (Some(slot), Some(ended)) = (slot, &*self.0.ended.borrow()) {
            let _ = ended.send(EndedWorker { slot, pid });
        }
    }

    /// Let the next start error be logged, though it is the last one again.
    pub fn forget_start_error(&self) {
        self.0.start_error.borrow_mut().clear();
    }

    pub(super) fn log_start_error(&self, error: &StartError) {
        let mut last = self.0.start_error.borrow_mut();
        if *last != error.text {
            tracing::error!("{}:\n{}", error.kind.words(), error.text.trim_end());
            error.text.clone_into(&mut last);
        }
    }
}
