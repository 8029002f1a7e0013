//! Backups as a calendar, the reach of point-in-time recovery as a line, and the disks.

use maud::{Markup, html};

use super::{scrolling, time};
use crate::health::calendar::DayState;
use crate::health::overview::{BackupsOverview, DayOverview, DiskOverview, Overview, RecoveryOverview};
use crate::page::words::{bytes, duration, moment};

const WEEKDAYS: [(&str, &str); 7] = [
    ("Mo", "Monday"),
    ("Tu", "Tuesday"),
    ("We", "Wednesday"),
    ("Th", "Thursday"),
    ("Fr", "Friday"),
    ("Sa", "Saturday"),
    ("Su", "Sunday"),
];

pub fn backups(overview: &Overview) -> Markup {
    let backups = &overview.backups;
    html! {
        section #backups aria-labelledby="backups-title" {
            h2 #backups-title { "Backups" }
            (summary(backups))
            @if !backups.days.is_empty() { (calendar(&backups.days)) }
            @if backups.kept_databases > 0 {
                p {
                    (backups.kept_databases) " databases that restores replaced are kept, "
                    (bytes(backups.kept_databases_bytes)) " (" code { "tandem restore --drop-kept" } ")."
                }
            }
            @match &overview.recovery {
                Some(recovery) => (reach(recovery, &overview.time)),
                None => p.muted { "Point-in-time recovery is not enabled (backup.pitr.enabled)." },
            }
        }
    }
}

fn summary(backups: &BackupsOverview) -> Markup {
    let known = |moment: &Option<String>| {
        html! {
            @match moment { Some(moment) => (time(moment)), None => span.muted { "none" } }
        }
    };
    html! {
        @if let Some(error) = &backups.last_error {
            p { strong.badge.bad { span aria-hidden="true" { "✗ " } "the last one failed" } " " bdi { (error) } }
        }
        @if backups.running { p { strong.badge.warn { "one runs now" } } }
        @if backups.schedule.is_none() {
            p.muted { "None are scheduled (backup.schedule)." }
        }
        dl {
            div { dt { "kept" } dd { (backups.count) } }
            div { dt { "newest" } dd { (known(&backups.newest)) } }
            div { dt { "newest verified" } dd { (known(&backups.newest_verified)) } }
            div { dt { "next" } dd { (known(&backups.next)) } }
            @if let Some(schedule) = &backups.schedule { div { dt { "schedule" } dd { code { (schedule) } } } }
        }
    }
}

fn calendar(days: &[DayOverview]) -> Markup {
    let before = days.first().map_or(0, |day| usize::from(day.weekday.min(6)));
    let cells: Vec<Option<&DayOverview>> = std::iter::repeat_n(None, before).chain(days.iter().map(Some)).collect();
    html! {
        (scrolling("calendar-scroll", "Calendar of backups", html! {
            table.calendar {
                caption { "The last five weeks: ✓ verified, ● taken, ✗ bad, ○ missing" }
                thead { tr { @for (short, long) in WEEKDAYS { th scope="col" abbr=(long) { (short) } } } }
                tbody {
                    @for week in cells.chunks(7) {
                        tr { @for cell in week { @match cell { Some(day) => (day_cell(day)), None => td {} } } }
                    }
                }
            }
        }))
    }
}

fn day_cell(day: &DayOverview) -> Markup {
    let (look, mark, words) = match day.state {
        DayState::Verified => ("ok", "✓", "verified"),
        DayState::Taken => ("taken", "●", "taken"),
        DayState::Bad => ("bad", "✗", "bad"),
        DayState::Missing => ("missing", "○", "missing"),
        DayState::None => ("none", "", "no backup"),
    };
    let more = match day.backups {
        0 => String::new(),
        1 => format!(", 1 backup, {}", bytes(day.bytes)),
        count => format!(", {count} backups, {}", bytes(day.bytes)),
    };
    let words = format!("{}: {words}{more}", day.date);
    html! {
        td.(look) title=(words) {
            span aria-hidden="true" { (day.date.get(8..).unwrap_or_default()) " " b { (mark) } }
            span.hidden { (words) }
        }
    }
}

/// From where to where a restore can go, as a line that ends now.
fn reach(recovery: &RecoveryOverview, now: &str) -> Markup {
    let ends = (recovery.from.as_deref().and_then(moment), recovery.until.as_deref().and_then(moment), moment(now));
    html! {
        h3 { "Point-in-time recovery" }
        @if recovery.failing || recovery.given_up {
            p {
                strong.badge.bad { span aria-hidden="true" { "✗ " } "archiving fails" }
                @if let Some(trouble) = &recovery.trouble { " " bdi { (trouble) } }
            }
        }
        @match (&recovery.from, &recovery.until) {
            (Some(from), Some(until)) => p { "A restore can go to any moment from " (time(from)) " to " (time(until)) "." },
            _ => p { "There is no base backup yet: a restore to a moment is not possible (" code { "tandem backup base" } ")." },
        }
        @if let (Some(from), Some(until), Some(now)) = ends {
            @let all = (now - from).max(1.0);
            @let at = |moment: f64| ((moment - from) / all * 98.0 + 1.0).clamp(0.0, 100.0);
            svg.line viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true" {
                rect.rest x="1" y="4" width="98" height="2" {}
                rect x="1" y="4" width=(format!("{:.2}", (at(until) - 1.0).max(0.4))) height="2" {}
                @for base in recovery.bases.iter().filter_map(|base| moment(base)) {
                    rect x=(format!("{:.2}", at(base) - 0.3)) y="1" width="0.6" height="8" {}
                }
            }
        }
        dl {
            div { dt { "base backups" } dd { (recovery.bases.len()) } }
            div { dt { "WAL that waits" } dd { (bytes(recovery.backlog_bytes)) ", " (recovery.ready_segments) " segments" } }
        }
        @for destination in &recovery.destinations { p { bdi { (destination) } } }
        @for gap in &recovery.gaps { p { strong.badge.warn { "gap" } " " bdi { (gap) } } }
    }
}

pub fn disks(overview: &Overview) -> Markup {
    html! {
        section #disks aria-labelledby="disks-title" {
            h2 #disks-title { "Disks" }
            (scrolling("disks-scroll", "Table of disks", html! {
                table {
                    caption.hidden { "The file systems of the data and of the backups" }
                    thead {
                        tr {
                            th scope="col" { "disk of" }
                            th.n scope="col" { "free" }
                            th.n scope="col" { "of" }
                            th scope="col" { "used" }
                            th scope="col" { "forecast" }
                        }
                    }
                    tbody { @for disk in &overview.disks { (disk_row(disk)) } }
                }
            }))
        }
    }
}

fn disk_row(disk: &DiskOverview) -> Markup {
    let used = disk.total_bytes.zip(disk.free_bytes).filter(|(total, _)| *total > 0);
    let used = used.map(|(total, free)| (total.saturating_sub(free)) as f64 / total as f64 * 100.0);
    let is_low = disk.free_bytes.zip(disk.wanted_bytes).is_some_and(|(free, wanted)| free < wanted);
    html! {
        tr data-key=(disk.name) {
            th scope="row" { (disk.name) }
            td.n { @if let Some(free) = disk.free_bytes { (bytes(free)) } }
            td.n { @if let Some(total) = disk.total_bytes { (bytes(total)) } }
            td.wide {
                @if let Some(used) = used {
                    svg.bar .low[is_low] viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true" {
                        rect.rest x="0" y="1" width="100" height="8" {}
                        rect x="0" y="1" width=(format!("{used:.2}")) height="8" {}
                    }
                    " " (format!("{used:.0} %"))
                }
            }
            td {
                @if let Some(age) = disk.unanswered_seconds {
                    strong.badge.bad { "does not answer" } " for " (duration(age))
                } @else if is_low {
                    strong.badge.bad { span aria-hidden="true" { "✗ " } "too little is free" }
                }
                " "
                @match disk.full_in_seconds {
                    Some(seconds) => { "full in " (duration(seconds)) ", if it goes on as in the last hours" },
                    None => span.muted { "no trend" },
                }
            }
        }
    }
}
