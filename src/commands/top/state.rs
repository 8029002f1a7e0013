//! What `tandem top` shows, and what a key changes in it. Pure.

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use crate::control::messages::{Answer, LogEntry, ServiceStatus, Status};
use crate::control::{Order, ScaleTo};
use crate::health::overview::Overview;
use crate::telemetry::OWN;

/// How many lines of the log are kept.
const LINES_MAX: usize = 2_000;

/// A key that means something here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    Up,
    Down,
    PageUp,
    PageDown,
    Home,
    End,
    Enter,
    Escape,
    Interrupt,
    Letter(char),
}

/// What a key asks for beyond another picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    Quit,
    Give(Order),
}

/// How the running Tandem is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Link {
    Live,
    /// It answers no more, and why.
    Lost(String),
}

/// What the keys are for at the moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    Watching,
    Help,
    /// A yes gives the order.
    Asking(Question),
}

/// An order before it is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    pub words: String,
    pub order: Order,
}

/// An order that was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Errand {
    None,
    /// This is being done.
    UnderWay(String),
    /// It was done or refused: what was answered.
    Answered(Result<String, String>),
}

/// Everything on the screen.
pub struct Top {
    pub status: Option<Status>,
    /// What there is to know beside the processes.
    pub overview: Option<Overview>,
    pub link: Link,
    pub mode: Mode,
    pub errand: Errand,
    /// The selected line of the table of services.
    pub selected: usize,
    pub log: VecDeque<LogEntry>,
    /// How many lines above its end the log is shown; 0 follows it.
    pub back: usize,
    /// Whether only the lines of the selected service are shown.
    pub only_selected: bool,
    /// The requests per second of each process, by its pid.
    pub rates: HashMap<i32, f64>,
    /// What the rates are counted from.
    counted: HashMap<i32, (u64, Instant)>,
}

impl Top {
    pub fn new(status: Status, now: Instant) -> Self {
        let mut top = Self {
            status: None,
            overview: None,
            link: Link::Live,
            mode: Mode::Watching,
            errand: Errand::None,
            selected: 0,
            log: VecDeque::new(),
            back: 0,
            only_selected: false,
            rates: HashMap::new(),
            counted: HashMap::new(),
        };
        top.show(status, now);
        top
    }

    /// Show a newer status.
    pub fn show(&mut self, status: Status, now: Instant) {
        let mut counted = HashMap::new();
        let mut rates = HashMap::new();
        for service in &status.services {
            let (Some(pid), Some(requests)) = (service.pid, service.requests) else { continue };
            if let Some((before, then)) = self.counted.get(&pid) {
                let seconds = now.saturating_duration_since(*then).as_secs_f64();
                if seconds > 0.0 {
                    rates.insert(pid, requests.saturating_sub(*before) as f64 / seconds);
                }
            }
            counted.insert(pid, (requests, now));
        }
        (self.counted, self.rates) = (counted, rates);
        self.selected = self.selected.min(status.services.len().saturating_sub(1));
        self.status = Some(status);
        self.link = Link::Live;
    }

    /// It does not answer any more. What was last seen stays on the screen, marked as old.
    pub fn lose(&mut self, why: String) {
        self.overview = None;
        self.link = Link::Lost(why);
    }

    /// Add a line of the log. What is looked at further up stays where it is.
    pub fn say(&mut self, entry: LogEntry) {
        if self.log.len() == LINES_MAX {
            self.log.pop_front();
        }
        if self.back > 0 && self.is_shown(&entry) {
            self.back += 1;
        }
        self.log.push_back(entry);
    }

    /// The log begins anew, as that of another Tandem.
    pub fn forget_log(&mut self) {
        self.log.clear();
        self.back = 0;
    }

    /// Whether a line belongs to what is shown of the log.
    pub fn is_shown(&self, entry: &LogEntry) -> bool {
        match (entry, self.selected_service().filter(|_| self.only_selected)) {
            (LogEntry::Line { service, text, .. }, Some(selected)) => {
                *service == selected.name || (service == OWN && text.contains(&selected.name))
            }
            (_, Some(_)) => false,
            (_, None) => true,
        }
    }

    pub fn services(&self) -> &[ServiceStatus] {
        self.status.as_ref().map_or(&[], |status| &status.services)
    }

    pub fn selected_service(&self) -> Option<&ServiceStatus> {
        self.services().get(self.selected)
    }

    /// An order was answered.
    pub fn answered(&mut self, answer: anyhow::Result<Answer>) {
        let words = |words: Vec<String>| words.join("; ").lines().collect::<Vec<_>>().join(" ");
        self.errand = Errand::Answered(match answer {
            Ok(answer) if answer.is_done() => Ok(words(answer.words)),
            Ok(answer) => Err(words(answer.words)),
            Err(error) => Err(format!("{error:#}")),
        });
    }

    /// What a key does.
    pub fn press(&mut self, key: Key) -> Option<Act> {
        if key == Key::Interrupt {
            return Some(Act::Quit);
        }
        match (&self.mode, key) {
            (Mode::Asking(question), Key::Letter('y' | 'Y')) => {
                let Question { order, words } = question.clone();
                self.mode = Mode::Watching;
                self.errand = Errand::UnderWay(words);
                Some(Act::Give(order))
            }
            (Mode::Asking(_) | Mode::Help, _) => {
                self.mode = Mode::Watching;
                None
            }
            (Mode::Watching, key) => self.press_watching(key),
        }
    }

    fn press_watching(&mut self, key: Key) -> Option<Act> {
        const PAGE: usize = 10;
        match key {
            Key::Letter('q' | 'Q') => return Some(Act::Quit),
            Key::Escape => (self.only_selected, self.back, self.errand) = (false, 0, self.errand_kept()),
            Key::Up | Key::Letter('k') => self.selected = self.selected.saturating_sub(1),
            Key::Down | Key::Letter('j') => {
                self.selected = (self.selected + 1).min(self.services().len().saturating_sub(1));
            }
            Key::PageUp => self.back = (self.back + PAGE).min(self.log.len()),
            Key::PageDown => self.back = self.back.saturating_sub(PAGE),
            Key::Home => self.back = self.log.len(),
            Key::End => self.back = 0,
            Key::Enter => (self.only_selected, self.back) = (!self.only_selected, 0),
            Key::Letter('?' | 'h') => self.mode = Mode::Help,
            Key::Letter('r') => {
                self.ask("Reload: read the configuration again and replace every worker", Order::Reload)
            }
            Key::Letter('R') => {
                if let Some(name) = self.selected_service().map(|service| service.name.clone()) {
                    self.ask(&format!("Restart {name}: replace its process"), Order::Restart { service: name });
                }
            }
            Key::Letter('+') => self.ask("Scale: one worker more", Order::Scale(ScaleTo::By(1))),
            Key::Letter('-') => self.ask("Scale: one worker less", Order::Scale(ScaleTo::By(-1))),
            Key::Letter(_) | Key::Interrupt => {}
        }
        None
    }

    /// Put a question before an order, unless another order is under way or nothing would take it.
    fn ask(&mut self, words: &str, order: Order) {
        if matches!(self.link, Link::Live) && !matches!(self.errand, Errand::UnderWay(_)) {
            self.mode = Mode::Asking(Question { words: words.to_owned(), order });
        }
    }

    /// An answer that was read goes; what is under way stays.
    fn errand_kept(&mut self) -> Errand {
        match std::mem::replace(&mut self.errand, Errand::None) {
            Errand::UnderWay(words) => Errand::UnderWay(words),
            Errand::None | Errand::Answered(_) => Errand::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn service(name: &str, pid: i32, requests: u64) -> ServiceStatus {
        serde_json::from_value(serde_json::json!({
            "name": name, "kind": "worker", "pid": pid, "state": "ready", "state_seconds": 1.0, "role": "standing",
            "uptime_seconds": 1.0, "restarts": 0, "last_reason": null, "requests": requests, "connections": 0,
            "in_flight": 0, "memory_bytes": 1
        }))
        .unwrap()
    }

    fn status(services: Vec<ServiceStatus>) -> Status {
        let mut status: Status = serde_json::from_value(serde_json::json!({
            "version": "1", "pid": 1, "memory_bytes": null, "phase": "serving", "uptime_seconds": 1.0, "roll": null,
            "services": [], "memory_total_bytes": 0
        }))
        .unwrap();
        status.services = services;
        status
    }

    fn top() -> Top {
        Top::new(status(vec![service("postgres", 1, 0), service("worker-0", 2, 10)]), Instant::now())
    }

    fn line(service: &str, text: &str) -> LogEntry {
        let (time, level) = ("2026-11-30T00:00:00.000Z".to_owned(), "INFO".to_owned());
        LogEntry::Line { sequence: None, time, service: service.into(), level, text: text.into() }
    }

    #[test]
    fn no_order_is_given_without_a_yes() {
        for (key, order) in [
            ('r', Order::Reload),
            ('R', Order::Restart { service: "worker-0".into() }),
            ('+', Order::Scale(ScaleTo::By(1))),
            ('-', Order::Scale(ScaleTo::By(-1))),
        ] {
            let mut top = top();
            assert_eq!(top.press(Key::Down), None);
            assert_eq!(top.press(Key::Letter(key)), None);
            for no in [Key::Letter('n'), Key::Escape, Key::Enter, Key::Letter('q'), Key::Letter(key)] {
                assert!(matches!(top.mode, Mode::Asking(_)), "{key}");
                assert_eq!((top.press(no), &top.mode), (None, &Mode::Watching), "{key} {no:?}");
                top.press(Key::Letter(key));
            }
            assert_eq!(top.press(Key::Letter('y')), Some(Act::Give(order)));
            // One at a time.
            top.press(Key::Letter('r'));
            assert_eq!(top.mode, Mode::Watching);
            top.answered(Ok(Answer::done(vec!["done".into()])));
            assert_eq!(top.errand, Errand::Answered(Ok("done".into())));
            top.press(Key::Letter('r'));
            assert!(matches!(top.mode, Mode::Asking(_)));
        }
    }

    #[test]
    fn it_ends_by_q_and_ctrl_c_and_a_lost_tandem_gets_no_order() {
        let mut top = top();
        assert_eq!(top.press(Key::Letter('?')), None);
        assert_eq!((top.press(Key::Letter('q')), &top.mode), (None, &Mode::Watching), "it closes the help");
        assert_eq!(top.press(Key::Letter('q')), Some(Act::Quit));
        top.lose("gone".into());
        assert_eq!((top.press(Key::Letter('r')), &top.mode), (None, &Mode::Watching));
        top.press(Key::Letter('?'));
        assert_eq!(top.press(Key::Interrupt), Some(Act::Quit));
    }

    #[test]
    fn the_selection_stays_inside_what_there_is() {
        let mut top = top();
        for (key, expected) in
            [(Key::Up, 0), (Key::Down, 1), (Key::Down, 1), (Key::Letter('k'), 0), (Key::Letter('j'), 1)]
        {
            top.press(key);
            assert_eq!(top.selected, expected, "{key:?}");
        }
        top.show(status(vec![service("postgres", 1, 0)]), Instant::now());
        assert_eq!(top.selected, 0);
        top.show(status(Vec::new()), Instant::now());
        assert_eq!((top.selected, top.selected_service()), (0, None));
        top.press(Key::Letter('R'));
        assert_eq!(top.mode, Mode::Watching, "there is nothing to restart");
    }

    #[test]
    fn rates_are_of_one_process_between_two_looks() {
        let now = Instant::now();
        let mut top = Top::new(status(vec![service("worker-0", 2, 10)]), now);
        assert!(top.rates.is_empty());
        top.show(status(vec![service("worker-0", 2, 30)]), now + Duration::from_secs(2));
        assert_eq!(top.rates[&2], 10.0);
        top.show(status(vec![service("worker-0", 3, 5)]), now + Duration::from_secs(3));
        assert!(top.rates.is_empty(), "another process");
    }

    #[test]
    fn the_log_is_bounded_and_stays_where_it_is_looked_at() {
        let mut top = top();
        (0..3).for_each(|_| top.say(line("worker-0", "x")));
        top.press(Key::PageUp);
        assert_eq!(top.back, 3);
        top.say(line("worker-0", "y"));
        assert_eq!(top.back, 4);
        top.press(Key::End);
        top.press(Key::Down);
        top.press(Key::Enter);
        assert!(top.is_shown(&line("worker-0", "x")) && top.is_shown(&line("tandem", "worker-0 ended")));
        assert!(!top.is_shown(&line("postgres", "x")) && !top.is_shown(&LogEntry::Skipped { skipped: 1 }));
        (0..LINES_MAX + 5).for_each(|_| top.say(line("worker-0", "x")));
        assert_eq!(top.log.len(), LINES_MAX);
    }
}
