//! `tandem top`: the processes and the log of a running Tandem, live in a terminal.
//!
//! `feed` brings the news, `state` keeps them and decides what a key does, `facts` finds words, `screen` draws, `terminal` is
//! taken and given back.

mod facts;
mod feed;
mod screen;
mod state;
mod terminal;

use std::io::{self, IsTerminal};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use futures_util::StreamExt;
use ratatui::crossterm::event::{Event, EventStream, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::task::JoinHandle;
use tokio::time::sleep_until;

use self::feed::News;
use self::screen::Look;
use self::state::{Act, Errand, Key, Top};
use self::terminal::Taken;
use crate::cli::Common;
use crate::commands::running;
use crate::config;
use crate::control::client;
use crate::control::messages::Answer;
use crate::exit::{Code, Failure};
use crate::telemetry;

/// How long news may wait for more of it before it is drawn: a flood of lines draws ten pictures a second, not a thousand.
const REDRAW: Duration = Duration::from_millis(100);
/// How many news are taken at a time, before keys get their turn.
const NEWS_MAX: usize = 1_000;

/// Show the running Tandem until a key ends it.
///
/// # Errors
/// Standard input or output is no terminal, or no Tandem runs.
pub async fn run(common: &Common) -> anyhow::Result<Code> {
    if !(io::stdin().is_terminal() && io::stdout().is_terminal()) {
        let text = "tandem top needs a terminal for its keys and its picture: elsewhere `tandem status` prints the same \
                    once, `tandem status --watch` every second";
        return Err(Failure::new(Code::Usage, text).into());
    }
    let socket = running::socket(common)?;
    let status = client::status(&socket).await?;
    let mut top = Top::new(status, Instant::now());
    let (sender, news) = mpsc::unbounded_channel();
    let feeds = [
        tokio::task::spawn_local(feed::statuses(socket.clone(), sender.clone())),
        tokio::task::spawn_local(feed::overviews(socket.clone(), sender.clone())),
        tokio::task::spawn_local(feed::lines(socket.clone(), sender)),
    ];
    // Before the terminal is taken: a signal that ends the process would leave it so.
    let ends = Ends::open()?;
    let taken = Taken::take().context("take the terminal")?;
    let ended = watch(taken, ends, &mut top, news, &socket).await;
    feeds.iter().for_each(JoinHandle::abort);
    if let Errand::UnderWay(words) = &top.errand {
        telemetry::say_aside(&format!("tandem: {words}: it goes on, and `tandem status` shows it"));
    }
    ended.map(|()| Code::Stopped)
}

/// What ends the watching from outside.
struct Ends {
    terminate: Signal,
    hangup: Signal,
    interrupt: Signal,
}

impl Ends {
    fn open() -> anyhow::Result<Self> {
        let open = |kind| signal(kind).context("install signal handlers");
        Ok(Self {
            terminate: open(SignalKind::terminate())?,
            hangup: open(SignalKind::hangup())?,
            interrupt: open(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// An order that is being carried out.
type Order = JoinHandle<anyhow::Result<Answer>>;

/// What happened.
enum Happened {
    Event(Option<io::Result<Event>>),
    News(Option<News>),
    Answered(anyhow::Result<Answer>),
    Drawn,
    Ended,
}

async fn watch(
    mut taken: Taken,
    mut ends: Ends,
    top: &mut Top,
    mut news: UnboundedReceiver<News>,
    socket: &Path,
) -> anyhow::Result<()> {
    let look = Look { colour: !config::no_color() };
    let mut events = EventStream::new();
    let mut order: Option<Order> = None;
    // When the next picture is due; `None`: nothing has changed.
    let mut due = Some(tokio::time::Instant::now());
    loop {
        let happened = tokio::select! {
            biased;
            () = ends.next() => Happened::Ended,
            event = events.next() => Happened::Event(event),
            answer = answered(&mut order) => Happened::Answered(answer),
            () = sleep_until(due.unwrap_or_else(tokio::time::Instant::now)), if due.is_some() => Happened::Drawn,
            one = news.recv() => Happened::News(one),
        };
        let soon = tokio::time::Instant::now();
        match happened {
            Happened::Ended | Happened::Event(None | Some(Err(_))) => return Ok(()),
            Happened::Drawn => {
                taken.terminal.draw(|frame| screen::draw(frame, top, look)).context("draw")?;
                due = None;
            }
            Happened::Event(Some(Ok(event))) => {
                due = Some(soon);
                match key(&event).and_then(|key| top.press(key)) {
                    Some(Act::Quit) => return Ok(()),
                    Some(Act::Give(given)) => {
                        let socket = socket.to_owned();
                        order = Some(tokio::task::spawn_local(async move { client::order(&socket, &given).await }));
                    }
                    None => {}
                }
            }
            Happened::Answered(answer) => {
                order = None;
                top.answered(answer);
                due = Some(soon);
            }
            Happened::News(one) => {
                let more = std::iter::from_fn(|| news.try_recv().ok()).take(NEWS_MAX);
                one.into_iter().chain(more).for_each(|one| take(top, one));
                due = due.or(Some(soon + REDRAW));
            }
        }
    }
}

/// The answer to `order`; never where there is none.
async fn answered(order: &mut Option<Order>) -> anyhow::Result<Answer> {
    match order {
        Some(order) => order.await.context("the order was broken off")?,
        None => std::future::pending().await,
    }
}

fn take(top: &mut Top, news: News) {
    match news {
        News::Status(status, now) => top.show(*status, now),
        News::Overview(overview) => top.overview = Some(*overview),
        News::Lost(why) => top.lose(why),
        News::LogBegins => top.forget_log(),
        News::Line(entry) => top.say(entry),
    }
}

/// The key that `event` is, if it is one that means something.
fn key(event: &Event) -> Option<Key> {
    let Event::Key(KeyEvent { code, modifiers, kind, .. }) = event else { return None };
    if *kind == KeyEventKind::Release {
        return None;
    }
    Some(match code {
        KeyCode::Char('c') if modifiers.contains(KeyModifiers::CONTROL) => Key::Interrupt,
        KeyCode::Char(_) if modifiers.intersects(KeyModifiers::CONTROL | KeyModifiers::ALT) => return None,
        KeyCode::Char(letter) => Key::Letter(*letter),
        KeyCode::Up => Key::Up,
        KeyCode::Down => Key::Down,
        KeyCode::PageUp => Key::PageUp,
        KeyCode::PageDown => Key::PageDown,
        KeyCode::Home => Key::Home,
        KeyCode::End => Key::End,
        KeyCode::Enter => Key::Enter,
        KeyCode::Esc => Key::Escape,
        _ => return None,
    })
}
