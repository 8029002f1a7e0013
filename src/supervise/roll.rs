//! A roll: new workers take the places of old ones, new before old, while the tree serves. Pure.
//!
//! A replacement is started beside the worker whose place it is to take; once it is ready, the old one retires, and the roll
//! is over when each of them has said that it accepts no more. How long it then takes for the requests it has is not waited
//! for, unless the budget of connections has no room for the next replacement. One that
//! fails, or does not get ready in time, ends the roll: the workers that are there stay. Where workers are forked from a
//! template, a new template comes first; it takes the old one's place with the first worker that gets ready from it.
//!
//! Rolls wait for one another. Those that ask for the same are one.

use std::collections::VecDeque;

use super::state::{ChildAction, ChildEvent, Moment, State};
use super::tree::{Member, Need, Origin, Role, ServiceId, Tree, TreeAction, TreePhase};

/// The number of an order for a roll.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RollId(pub u64);

/// What is to be replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Every worker, and the template.
    All,
    /// One worker; nothing, if it does not hold its place any more.
    One(ServiceId),
}

/// How a roll ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// So many were replaced.
    Done(usize),
    /// This replacement failed; so many were replaced before.
    Aborted(ServiceId, usize),
    /// The tree does not serve, or not any more. If it boots, what was to be replaced is started anew where it would try
    /// again anyway ([`Need::Never`]).
    Interrupted,
}

/// An old one and the new one that is to take its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Swap {
    old: Option<ServiceId>,
    new: ServiceId,
}

/// The roll under way.
#[derive(Clone, Debug)]
struct Roll {
    ids: Vec<RollId>,
    /// Workers whose turn has not come.
    waiting: VecDeque<ServiceId>,
    under_way: Vec<Swap>,
    /// The new template, until the first worker that it forked is ready.
    template: Option<Swap>,
    /// Whether no template is wanted any more.
    untemplate: bool,
    replaced: usize,
    /// Those that were replaced. The roll is not over while one of them may still accept connections: who asked for new
    /// code is not to meet the old.
    leaving: Vec<ServiceId>,
}

/// The roll under way, and those that wait for it.
#[derive(Clone, Debug, Default)]
pub(super) struct Rolls {
    current: Option<Roll>,
    queued: VecDeque<(RollId, Scope)>,
    /// How many workers there shall be, while there are fewer.
    wanted: Option<usize>,
}

impl Tree {
    /// How far the roll under way is: how many are replaced, and how many are still to be.
    pub fn rolling(&self) -> Option<(usize, usize)> {
        let roll = self.rolls.current.as_ref()?;
        Some((roll.replaced, roll.waiting.len() + roll.under_way.len()))
    }

    pub(super) fn ask_roll(&mut self, id: RollId, scope: Scope, now: Moment, actions: &mut Vec<TreeAction>) {
        if self.phase == TreePhase::Serving {
            self.rolls.queued.push_back((id, scope));
            return;
        }
        if let (TreePhase::Booting { .. }, Scope::All) = (self.phase, scope) {
            self.start_anew(now, actions);
        }
        actions.push(TreeAction::RollEnded(id, Outcome::Interrupted));
    }

    /// Nothing serves yet that new ones could take over from: those that are on their way begin anew, and those that rest
    /// try again now.
    fn start_anew(&mut self, now: Moment, actions: &mut Vec<TreeAction>) {
        // The template first: no worker is to be forked off what it has imported.
        let rolled = [self.plan.roll.template, self.plan.roll.workers];
        let ids: Vec<ServiceId> = rolled.into_iter().flatten().flat_map(|stage| self.of_stage(stage)).collect();
        for id in ids {
            self.service(id, ChildEvent::Restart, now, actions);
        }
    }

    /// Whether this service may be ended and started again. While it boots, only one that the boot waits for however
    /// often it fails: another's failure would be the boot's.
    pub(super) fn may_restart(&self, id: ServiceId) -> bool {
        match self.phase {
            TreePhase::Serving => true,
            TreePhase::Booting { .. } => self.members[&id].plan.need == Need::Never,
            TreePhase::Idle | TreePhase::Draining { .. } | TreePhase::Stopping { .. } | TreePhase::Stopped { .. } => {
                false
            }
        }
    }

    /// Begin what waits, start the replacements that there is room for, end what is done.
    pub(super) fn go_on_rolling(&mut self, now: Moment, actions: &mut Vec<TreeAction>) {
        while self.phase == TreePhase::Serving {
            if self.rolls.current.is_none() && !self.begin_roll(now, actions) {
                return;
            }
            self.start_replacements(now, actions);
            let is_done = |roll: &Roll| {
                let proven = roll.template.is_none_or(|swap| self.is_ready_now(swap.new));
                let closed = roll.leaving.iter().all(|id| !self.is_closing(*id));
                proven && closed && roll.waiting.is_empty() && roll.under_way.is_empty()
            };
            if !self.rolls.current.as_ref().is_some_and(is_done) {
                return;
            }
            self.commit_template(now, actions);
            self.end_roll(now, actions);
        }
    }

    fn begin_roll(&mut self, now: Moment, actions: &mut Vec<TreeAction>) -> bool {
        let Some((id, scope)) = self.rolls.queued.pop_front() else { return false };
        let mut ids = vec![id];
        self.rolls.queued.retain(|&(other, wanted)| {
            let same = wanted == scope;
            if same {
                ids.push(other);
            }
            !same
        });
        let workers = self.plan.roll.workers.map(|stage| self.standing(stage)).unwrap_or_default();
        let whole = scope == Scope::All;
        let waiting = workers.into_iter().filter(|&id| whole || scope == Scope::One(id)).collect();
        let template = if whole { self.new_template(now, actions) } else { None };
        let untemplate = whole && self.plan.roll.preload.is_none();
        let (under_way, leaving) = (Vec::new(), Vec::new());
        self.rolls.current = Some(Roll { ids, waiting, under_way, template, untemplate, replaced: 0, leaving });
        true
    }

    fn new_template(&mut self, now: Moment, actions: &mut Vec<TreeAction>) -> Option<Swap> {
        let (stage, plan) = (self.plan.roll.template?, self.plan.roll.preload.clone()?);
        let old = self.standing(stage).first().copied();
        let origin = old.map_or(Origin::Template, Origin::Replaces);
        let new = self.add(stage, 0, Role::Replacement, plan, origin, actions);
        self.child(new, ChildEvent::Start, now, actions);
        Some(Swap { old, new })
    }

    fn start_replacements(&mut self, now: Moment, actions: &mut Vec<TreeAction>) {
        loop {
            let Some(roll) = &self.rolls.current else { return };
            let forkable = roll.template.is_none_or(|swap| self.is_ready_now(swap.new));
            let may_come = roll.under_way.len() < self.plan.roll.surge.max(1) && !roll.waiting.is_empty();
            if !forkable || !may_come {
                return;
            }
            if !self.has_room(0) {
                self.make_room(now, actions);
                return;
            }
            let Some(old) = self.rolls.current.as_mut().and_then(|roll| roll.waiting.pop_front()) else { return };
            let Some(member) = self.members.get(&old).filter(|member| member.role == Role::Standing) else { continue };
            let (stage, place, plan) = (member.stage, member.place, member.plan.clone());
            let new = self.add(stage, place, Role::Replacement, plan, Origin::Replaces(old), actions);
            if let Some(roll) = &mut self.rolls.current {
                roll.under_way.push(Swap { old: Some(old), new });
            }
            self.child(new, ChildEvent::Start, now, actions);
        }
    }

    fn is_closing(&self, id: ServiceId) -> bool {
        self.members.get(&id).is_some_and(|member| member.child.is_closing())
    }

    fn is_ready_now(&self, id: ServiceId) -> bool {
        self.members.get(&id).is_some_and(|member| member.child.is_ready())
    }

    /// Whether there may be one worker more, beside those that stand and those on their way in or out; `wanted` are to
    /// stand.
    fn has_room(&self, wanted: usize) -> bool {
        let workers = || self.members.values().filter(|member| Some(member.stage) == self.plan.roll.workers);
        let standing = workers().filter(|member| member.role == Role::Standing).count();
        let there = workers().filter(|member| member.role == Role::Standing || !member.child.is_over()).count();
        there < self.plan.roll.most.max(standing.max(wanted) + 1)
    }

    /// A worker waits for the connections of those that leave. If all of them still finish requests, the oldest of them whose
    /// time is not firm any more is ended: a request without an end holds up neither a roll nor a scaling.
    fn make_room(&mut self, now: Moment, actions: &mut Vec<TreeAction>) {
        let workers = self.plan.roll.workers;
        let leaves = |member: &&Member| Some(member.stage) == workers && member.role == Role::Retiring;
        let drains = |member: &Member| matches!(member.child.state, State::Closing { .. } | State::Draining { .. });
        let mut leaving = self.members.values().filter(leaves).filter(|member| !member.child.is_over());
        if !leaving.all(drains) {
            return;
        }
        let may_end = |member: &Member| matches!(member.child.state, State::Draining { firm_until: None, .. });
        let oldest = self.members.iter().find(|(_, member)| leaves(member) && may_end(member)).map(|(&id, _)| id);
        if let Some(id) = oldest {
            actions.push(TreeAction::Cut(id));
            self.child(id, ChildEvent::Stop, now, actions);
        }
    }

    /// Something happened to a replacement: it is ready, on its way, or has failed.
    pub(super) fn replacement(&mut self, id: ServiceId, event: ChildEvent, now: Moment, actions: &mut Vec<TreeAction>) {
        let before = actions.len();
        self.child(id, event, now, actions);
        match self.members[&id].child.state {
            State::Spawning { .. } | State::Held { .. } | State::Starting { .. } => {}
            State::Ready { .. } => self.swap(id, now, actions),
            State::Down
            | State::Cancelling { .. }
            | State::Hung { .. }
            | State::Replacing { .. }
            | State::Restarting { .. }
            | State::Stopping { .. }
            | State::Closing { .. }
            | State::Draining { .. }
            | State::Backoff { .. }
            | State::GaveUp
            | State::Abandoned { .. } => {
                // It is not tried again: the answer to the order says why, and a person decides.
                let again = |action: &TreeAction| {
                    matches!(action, TreeAction::Service(_, ChildAction::Restart(_) | ChildAction::GiveUp))
                };
                let kept: Vec<TreeAction> = actions.drain(before..).filter(|action| !again(action)).collect();
                actions.extend(kept);
                self.abort(id, now, actions);
            }
        }
    }

    /// A replacement is ready: it holds the place now, and the old one leaves.
    fn swap(&mut self, new: ServiceId, now: Moment, actions: &mut Vec<TreeAction>) {
        let Some(roll) = &mut self.rolls.current else { return };
        let Some(at) = roll.under_way.iter().position(|swap| swap.new == new) else { return };
        let swap = roll.under_way.remove(at);
        roll.replaced += 1;
        roll.leaving.extend(swap.old);
        self.commit_template(now, actions);
        self.take_place(swap, ChildEvent::Retire, now, actions);
    }

    fn take_place(&mut self, swap: Swap, leave: ChildEvent, now: Moment, actions: &mut Vec<TreeAction>) {
        let restarts = swap.old.and_then(|old| self.members.get(&old)).map_or(0, |old| old.child.restarts);
        if let Some(new) = self.members.get_mut(&swap.new) {
            new.role = Role::Standing;
            new.child.restarts = restarts;
        }
        if let Some(old) = swap.old.filter(|old| self.members.contains_key(old)) {
            actions.push(TreeAction::Swapped(swap.new, old));
            self.leave(old, leave, now, actions);
        }
    }

    /// The new template has shown that workers get ready from it.
    fn commit_template(&mut self, now: Moment, actions: &mut Vec<TreeAction>) {
        if let Some(swap) = self.rolls.current.as_mut().and_then(|roll| roll.template.take()) {
            self.take_place(swap, ChildEvent::Stop, now, actions);
        }
    }

    pub(super) fn leave(&mut self, id: ServiceId, how: ChildEvent, now: Moment, actions: &mut Vec<TreeAction>) {
        if let Some(member) = self.members.get_mut(&id) {
            member.role = Role::Retiring;
        }
        self.child(id, how, now, actions);
    }

    /// Give up the roll under way: `failed` is why.
    fn abort(&mut self, failed: ServiceId, now: Moment, actions: &mut Vec<TreeAction>) {
        let Some(roll) = self.rolls.current.take() else {
            self.leave(failed, ChildEvent::Stop, now, actions);
            return;
        };
        self.give_back(&roll, now, actions);
        let outcome = Outcome::Aborted(failed, roll.replaced);
        actions.extend(roll.ids.into_iter().map(|id| TreeAction::RollEnded(id, outcome)));
    }

    /// End every replacement that holds no place yet.
    fn give_back(&mut self, roll: &Roll, now: Moment, actions: &mut Vec<TreeAction>) {
        for swap in roll.under_way.iter().chain(&roll.template) {
            self.leave(swap.new, ChildEvent::Stop, now, actions);
        }
    }

    fn end_roll(&mut self, now: Moment, actions: &mut Vec<TreeAction>) {
        let Some(roll) = self.rolls.current.take() else { return };
        if let (true, Some(stage)) = (roll.untemplate, self.plan.roll.template) {
            for id in self.standing(stage) {
                self.leave(id, ChildEvent::Stop, now, actions);
            }
        }
        let outcome = Outcome::Done(roll.replaced);
        actions.extend(roll.ids.into_iter().map(|id| TreeAction::RollEnded(id, outcome)));
    }

    /// A stop comes: there are no rolls any more.
    pub(super) fn interrupt_rolls(&mut self, now: Moment, actions: &mut Vec<TreeAction>) {
        if let Some(roll) = self.rolls.current.take() {
            self.give_back(&roll, now, actions);
            actions.extend(roll.ids.into_iter().map(|id| TreeAction::RollEnded(id, Outcome::Interrupted)));
        }
        let queued = std::mem::take(&mut self.rolls.queued);
        actions.extend(queued.into_iter().map(|(id, _)| TreeAction::RollEnded(id, Outcome::Interrupted)));
    }

    /// Let there be `count` workers: the highest slots leave, or new ones get the next slots as soon as there is room.
    pub(super) fn scale(&mut self, count: usize, now: Moment, actions: &mut Vec<TreeAction>) {
        let (TreePhase::Serving, Some(stage), 1..) = (self.phase, self.plan.roll.workers, count) else { return };
        let beyond = self.of_stage(stage).into_iter().filter(|id| self.members[id].place >= count);
        for id in beyond.collect::<Vec<_>>() {
            match self.members[&id].role {
                Role::Standing => self.leave(id, ChildEvent::Retire, now, actions),
                Role::Replacement => self.drop_replacement(id, now, actions),
                Role::Retiring => {}
            }
        }
        self.rolls.wanted = Some(count);
    }

    /// Start the workers that are still to come. Those that leave keep their connections until they are gone, so a new one
    /// waits where the budget has no room for both.
    pub(super) fn go_on_scaling(&mut self, now: Moment, actions: &mut Vec<TreeAction>) {
        while let (TreePhase::Serving, Some(stage), Some(wanted)) =
            (self.phase, self.plan.roll.workers, self.rolls.wanted)
        {
            let standing = self.standing(stage);
            let plan = standing.first().map(|id| self.members[id].plan.clone());
            let (Some(plan), true) = (plan, standing.len() < wanted) else {
                self.rolls.wanted = None;
                return;
            };
            if !self.has_room(wanted) {
                self.make_room(now, actions);
                return;
            }
            let slot = standing.len();
            let id = self.add(stage, slot, Role::Standing, plan, Origin::Slot(slot), actions);
            self.child(id, ChildEvent::Start, now, actions);
        }
    }

    /// The place that a replacement was for is no more.
    fn drop_replacement(&mut self, id: ServiceId, now: Moment, actions: &mut Vec<TreeAction>) {
        if let Some(roll) = &mut self.rolls.current {
            roll.under_way.retain(|swap| swap.new != id);
        }
        self.leave(id, ChildEvent::Stop, now, actions);
    }
}

#[cfg(test)]
#[path = "roll_tests.rs"]
mod tests;
