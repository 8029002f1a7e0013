//! How `tandem top` looks. Draws what `state` knows, and decides nothing.

use std::time::SystemTime;

use ratatui::Frame;
use ratatui::layout::{Constraint, Flex, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Cell, Clear, Paragraph, Row, Table, TableState, Wrap};

use super::facts::{self, Fact};
use super::state::{Errand, Link, Mode, Top};
use crate::commands::table::{age, size};
use crate::control::messages::{LogEntry, ServiceStatus, Status};
use crate::health::picture;
use crate::telemetry;

/// The smallest terminal that has room.
const WIDTH_MIN: u16 = 40;
const HEIGHT_MIN: u16 = 8;
/// How many services are shown at least where there is room for the log too.
const TABLE_PART: u16 = 2;

const KEYS: &str = "q quit  ? help  r reload  R restart  +/- scale  Enter log of one";
const HELP: [&str; 13] = [
    "up, down      select a service",
    "Enter         show only the selected service's log, or all",
    "PgUp, PgDn    look back in the log; End follows it again",
    "",
    "r             reload: replace every worker, new before old",
    "R             restart the selected service",
    "+ -           one worker more, one less",
    "              each of these asks first",
    "",
    "Esc           back to all of the log, and its end",
    "q, Ctrl-C     quit; what runs goes on",
    "",
    "any key closes this",
];

/// Colours, unless the user wants none.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    pub colour: bool,
}

impl Look {
    fn of(self, colour: Color) -> Style {
        if self.colour { Style::new().fg(colour) } else { Style::new() }
    }
}

pub fn draw(frame: &mut Frame<'_>, top: &Top, look: Look) {
    let area = frame.area();
    if area.width < WIDTH_MIN || area.height < HEIGHT_MIN {
        let text = format!("{}x{} is too small: {WIDTH_MIN}x{HEIGHT_MIN} at least", area.width, area.height);
        return frame.render_widget(Paragraph::new(text).wrap(Wrap { trim: true }), area);
    }
    let mut notes = notes(top, look);
    notes.truncate(usize::from(area.height / 3));
    let rows = u16::try_from(top.services().len()).unwrap_or(u16::MAX).saturating_add(1);
    let room = area.height.saturating_sub(3 + notes.len() as u16);
    let parts = [
        Constraint::Length(1),
        Constraint::Length(notes.len() as u16),
        Constraint::Length(rows.min((room / TABLE_PART).max(2))),
        Constraint::Length(1),
        Constraint::Min(0),
        Constraint::Length(1),
    ];
    let [title, about, table, heading, log, last] = Layout::vertical(parts).areas(area);
    frame.render_widget(Paragraph::new(headline(top, look)).style(Style::new().add_modifier(Modifier::BOLD)), title);
    frame.render_widget(Paragraph::new(notes), about);
    services(frame, top, look, table);
    frame.render_widget(
        Paragraph::new(log_heading(top)).style(Style::new().add_modifier(Modifier::UNDERLINED)),
        heading,
    );
    frame.render_widget(Paragraph::new(log_lines(top, look, log.height)), log);
    frame.render_widget(Paragraph::new(last_line(top, look)), last);
    if top.mode == Mode::Help {
        help(frame, area);
    }
}

fn headline(top: &Top, look: Look) -> Line<'static> {
    let Some(status) = &top.status else { return Line::from("tandem") };
    let phase = match &top.link {
        Link::Live if status.phase == "serving" => Span::styled(status.phase.clone(), look.of(Color::Green)),
        Link::Live => Span::styled(status.phase.clone(), look.of(Color::Yellow)),
        Link::Lost(_) => Span::styled("gone", look.of(Color::Red)),
    };
    let rest = format!(
        "  up {}  process {}  memory {}",
        age(Some(status.uptime_seconds)),
        status.pid,
        size(Some(status.memory_total_bytes))
    );
    Line::from(vec![Span::from(format!("tandem {}  ", status.version)), phase, Span::from(rest)])
}

/// What there is to say beside the table.
fn notes(top: &Top, look: Look) -> Vec<Line<'static>> {
    let mut notes = Vec::new();
    if let Link::Lost(why) = &top.link {
        // The end of the line may be cut off.
        let text = format!("waiting for a tandem, q quits: {}", one_line(why));
        notes.push(Line::styled(text, look.of(Color::Red)));
    }
    if let Some(overview) = &top.overview {
        notes.extend(facts::of(overview).into_iter().map(|fact| match fact {
            Fact::Well(text) => Line::from(one_line(&text)),
            Fact::Careful(text) => Line::styled(one_line(&text), look.of(Color::Yellow)),
            Fact::Bad(text) => Line::styled(one_line(&text), look.of(Color::Red)),
        }));
    }
    let Some(status) = &top.status else { return notes };
    let Status { roll, under_way, hook, backups, .. } = status;
    let work = roll
        .iter()
        .map(|roll| format!("roll: {roll}"))
        .chain(under_way.iter().map(|work| format!("under way: {work}")));
    notes.extend(work.map(|text| Line::styled(text, look.of(Color::Yellow))));
    notes.extend(hook.iter().map(|why| Line::styled(one_line(why), look.of(Color::Yellow))));
    notes.extend(top.selected_service().and_then(about));
    notes.extend(backups.iter().map(|words| Line::from(format!("backups: {}", one_line(words)))));
    notes
}

/// What the table has no column for: what a replaced worker still does, or why a service was started again.
fn about(service: &ServiceStatus) -> Option<Line<'static>> {
    let text = match (&service.unfinished, &service.last_reason) {
        (Some(unfinished), _) => format!("{} finishes {}", service.name, picture::in_words(unfinished)),
        (None, Some(reason)) if service.restarts > 0 => {
            format!("{} was started again, at last after: {}", service.name, one_line(reason))
        }
        (None, _) => return None,
    };
    Some(Line::from(text))
}

fn one_line(text: &str) -> String {
    text.lines().collect::<Vec<_>>().join(" ")
}

/// The columns: name, width, and the width of the terminal from which on it is shown.
const COLUMNS: [(&str, Constraint, u16); 8] = [
    ("SERVICE", Constraint::Min(10), 0),
    ("PID", Constraint::Length(8), 60),
    ("STATE", Constraint::Min(12), 0),
    ("UPTIME", Constraint::Length(9), 50),
    ("RESTARTS", Constraint::Length(8), 70),
    ("REQ/S", Constraint::Length(7), 60),
    ("IN FLIGHT", Constraint::Length(9), 76),
    ("MEMORY", Constraint::Length(10), 0),
];

fn services(frame: &mut Frame<'_>, top: &Top, look: Look, area: Rect) {
    let shown: Vec<usize> = (0..COLUMNS.len()).filter(|&column| area.width >= COLUMNS[column].2).collect();
    let rows = top.services().iter().map(|service| {
        let cells = cells(top, service);
        let state = match service.state.as_str() {
            "ready" => look.of(Color::Green),
            "gave-up" | "abandoned" => look.of(Color::Red),
            _ => look.of(Color::Yellow),
        };
        let cell = |&column: &usize| {
            let style = if column == 2 { state } else { Style::new() };
            Cell::from(cells[column].clone()).style(style)
        };
        Row::new(shown.iter().map(cell).collect::<Vec<_>>())
    });
    let header = Row::new(shown.iter().map(|&column| COLUMNS[column].0).collect::<Vec<_>>());
    let table = Table::new(rows, shown.iter().map(|&column| COLUMNS[column].1))
        .header(header.style(Style::new().add_modifier(Modifier::BOLD)))
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    let mut state = TableState::default().with_selected(Some(top.selected));
    frame.render_stateful_widget(table, area, &mut state);
}

fn cells(top: &Top, service: &ServiceStatus) -> [String; 8] {
    let state = match service.role.as_str() {
        "standing" => service.state.clone(),
        role => format!("{} ({role})", service.state),
    };
    let rate = service.pid.and_then(|pid| top.rates.get(&pid));
    [
        service.name.clone(),
        service.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
        state,
        age(service.uptime_seconds),
        service.restarts.to_string(),
        rate.map_or_else(String::new, |rate| format!("{rate:.1}")),
        service.in_flight.map_or_else(String::new, |count| count.to_string()),
        size(service.memory_bytes),
    ]
}

fn log_heading(top: &Top) -> String {
    let whose = top.selected_service().filter(|_| top.only_selected).map_or("all services", |service| &service.name);
    let where_ = if top.back > 0 { format!(", {} lines back (End follows it)", top.back) } else { String::new() };
    format!("LOG of {whose}{where_}")
}

/// The last lines of the log that fit, the newest at the bottom.
fn log_lines(top: &Top, look: Look, height: u16) -> Vec<Line<'static>> {
    let shown = top.log.iter().rev().filter(|entry| top.is_shown(entry)).skip(top.back);
    let mut lines: Vec<Line<'static>> = Vec::new();
    for entry in shown {
        if lines.len() >= usize::from(height) {
            break;
        }
        let (text, style) = match entry {
            LogEntry::Line { time, service, level, text, .. } => {
                let time = humantime::parse_rfc3339(time).unwrap_or(SystemTime::UNIX_EPOCH);
                let style = match level.as_str() {
                    "ERROR" => look.of(Color::Red),
                    "WARN" => look.of(Color::Yellow),
                    _ => Style::new(),
                };
                (telemetry::text_line(false, time, service, level, text), style)
            }
            LogEntry::Skipped { skipped } => (format!("({skipped} lines are missing here)"), look.of(Color::Yellow)),
        };
        lines.extend(text.lines().rev().map(|line| Line::styled(line.to_owned(), style)));
    }
    lines.truncate(usize::from(height));
    lines.reverse();
    lines
}

fn last_line(top: &Top, look: Look) -> Line<'static> {
    match (&top.mode, &top.errand) {
        (Mode::Asking(question), _) => {
            Line::styled(format!("{}? [y/N]", question.words), look.of(Color::Yellow).add_modifier(Modifier::BOLD))
        }
        (_, Errand::UnderWay(words)) => Line::styled(format!("{words} …"), look.of(Color::Yellow)),
        (_, Errand::Answered(Ok(words))) => Line::styled(format!("done: {words}"), look.of(Color::Green)),
        (_, Errand::Answered(Err(why))) => Line::styled(format!("not done: {why}"), look.of(Color::Red)),
        (_, Errand::None) => Line::from(KEYS),
    }
}

fn help(frame: &mut Frame<'_>, area: Rect) {
    let width = HELP.iter().map(|line| line.len()).max().unwrap_or_default() as u16 + 4;
    let [area] = Layout::horizontal([Constraint::Max(width)]).flex(Flex::Center).areas(area);
    let [area] = Layout::vertical([Constraint::Max(HELP.len() as u16 + 2)]).flex(Flex::Center).areas(area);
    frame.render_widget(Clear, area);
    frame.render_widget(Paragraph::new(HELP.join("\n")).block(Block::bordered().title(" keys ")), area);
}
