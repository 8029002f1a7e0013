//! What stands in the page.

use super::*;
use crate::health::overview::tests::{picture, shown};
use crate::health::overview::{EventOverview, LogLine};
use crate::health::statistics::{StatisticsCell, StatisticsColumn, StatisticsTable};

const HOSTILE: &str = "<script>alert('1')</script>\" onload=x & \u{5d0}";

fn hostile() -> Overview {
    let mut overview = shown(&picture());
    overview.name = HOSTILE.into();
    overview.reasons = vec![HOSTILE.into()];
    overview.history = vec![EventOverview { words: HOSTILE.into(), ..EventOverview::default() }];
    overview.services[0].name = HOSTILE.into();
    overview.services[0].last_reason = Some(HOSTILE.into());
    overview.database.error = Some(HOSTILE.into());
    overview.database.schema_version = Some(HOSTILE.into());
    overview.backups.last_error = Some(HOSTILE.into());
    let cell = StatisticsCell { text: HOSTILE.into(), number: None };
    let table = StatisticsTable {
        topic: HOSTILE.into(),
        title: HOSTILE.into(),
        columns: vec![StatisticsColumn { name: HOSTILE.into(), ..StatisticsColumn::default() }],
        rows: vec![vec![cell]],
        truncated: true,
        notes: vec![HOSTILE.into()],
    };
    overview.statistics = Some(StatisticsOverview { tables: vec![table], error: Some(HOSTILE.into()), taken: None });
    overview.log = vec![
        LogLine {
            sequence: 1,
            service: HOSTILE.into(),
            level: "ERROR".into(),
            text: HOSTILE.into(),
            ..LogLine::default()
        },
        LogLine {
            sequence: 2,
            service: "worker-0".into(),
            level: "INFO".into(),
            text: "two\nlines".into(),
            ..LogLine::default()
        },
    ];
    overview
}

#[test]
fn whatever_a_name_is_it_stays_a_name() {
    let overview = hostile();
    let asked = Asked { filter: HOSTILE.into(), ..Asked::default() };
    for page in [page(&overview, &asked), page(&overview, &Asked::default())] {
        assert_eq!(page.matches("<script>").count(), 1, "the page's own");
        assert!(
            !page.contains("alert('1')</script>")
                && page.contains("&lt;script&gt;alert('1')&lt;/script&gt;&quot; onload")
        );
    }
    let event = event(&overview, &mut StatisticsOverview::default());
    assert!(!event.contains("<script>") && event.contains("&lt;script&gt;"));
}

#[test]
fn an_event_is_lines_of_data_and_the_statistics_stay_until_there_are_others() {
    let (mut overview, mut known) = (hostile(), StatisticsOverview::default());
    let first = event(&overview, &mut known);
    assert!(
        first.contains("event: page\ndata: <div id=\"top\">") && first.contains("\n\nevent: log\ndata: "),
        "{first}"
    );
    assert!(first.contains("two\ndata: lines"), "a line feed in a text begins no field of the event: {first}");
    let fields = first.lines().filter(|line| !line.is_empty());
    fields.for_each(|line| assert!(line.starts_with("event: ") || line.starts_with("data: "), "{line}"));
    (overview.statistics, overview.log) = (None, Vec::new());
    let second = event(&overview, &mut known);
    assert!(second.contains("id=\"statistics-") && !second.contains("event: log"));
}

#[test]
fn the_log_is_filtered_without_a_script_too() {
    let overview = hostile();
    let rows = |asked: &str| page(&overview, &Asked::of_query(asked)).matches("data-n=").count();
    assert_eq!((rows(""), rows("filter=TWO"), rows("filter=worker"), rows("filter=none")), (2, 1, 1, 0));
    assert_eq!((rows("level=ERROR"), rows("level=WARN&filter=alert"), rows("level=x&other=1")), (1, 1, 2));
    assert_eq!(Asked::of_query("refresh=10").refresh, Some(10));
    assert_eq!(Asked::of_query("refresh=soon").refresh, None);
}

#[test]
fn a_page_of_two_thousand_rows_is_not_made() {
    // What is shown is bounded where it is collected; the page of a full house stays small.
    let mut overview = hostile();
    let line = overview.log[1].clone();
    overview.log = vec![line; crate::health::events::LOG_LINES];
    let service = overview.services[0].clone();
    overview.services = vec![service; 64];
    let text = page(&overview, &Asked::default());
    assert!(text.len() < 200_000, "{}", text.len());
}

#[test]
fn the_copies_of_the_chart_library_carry_its_licence() {
    assert!(SCRIPT.contains("Permission is hereby granted") && SCRIPT.contains("Leon Sorokin"));
    assert!(!SCRIPT.contains("</script") && !STYLE.contains("</style"));
}
