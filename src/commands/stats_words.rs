//! A table of statistics as text for a person.

use comfy_table::Table as Text;

use crate::commands::table::{age, plain};
use crate::stats::{Cell, Column, Kind, Table, visible};

/// The longest text of a cell, in letters: of a statement where no terminal says how wide it is, and of a name.
const QUERY_MAX: usize = 160;
const NAME_MAX: usize = 80;
/// A statement is not shown shorter than this, however narrow the terminal.
const QUERY_MIN: usize = 24;

/// The title, the rows, and what there is to know of them; on a terminal of `width` columns, statements are cut to fit.
pub fn words(table: &Table, width: Option<usize>) -> String {
    let mut text = format!("{}\n", table.title);
    if !table.rows.is_empty() {
        let most = QUERY_MAX.min(width.map_or(QUERY_MAX, |width| room(table, width)));
        text.push_str(&format!("\n{}\n", laid_out(table, most)));
    } else if !table.columns.is_empty() {
        text.push_str("nothing\n");
    }
    if table.truncated {
        text.push_str(&format!("the first {}, there are more\n", table.rows.len()));
    }
    for note in &table.notes {
        text.push_str(&format!("note: {}\n", visible(note)));
    }
    text.trim_end().to_owned()
}

/// How long a statement may be so that a row fits into `width`.
fn room(table: &Table, width: usize) -> usize {
    let queries = table.columns.iter().filter(|column| column.kind == Kind::Query).count();
    let others = laid_out(table, 0).lines().map(|line| line.chars().count()).max().unwrap_or_default();
    (width.saturating_sub(others) / queries.max(1)).max(QUERY_MIN)
}

fn laid_out(table: &Table, query_max: usize) -> String {
    let mut text = Text::new();
    text.set_header(table.columns.iter().map(|column| column.name.to_uppercase().replace('_', " ")));
    for row in &table.rows {
        text.add_row(row.iter().zip(&table.columns).map(|(cell, column)| shown(cell, column, query_max)));
    }
    let right = table.columns.iter().enumerate().filter(|(_, column)| column.kind.is_number());
    plain(text, &right.map(|(place, _)| place).collect::<Vec<_>>())
}

fn shown(cell: &Cell, column: &Column, query_max: usize) -> String {
    match (cell, column.kind) {
        (Cell::Nothing, _) => "-".to_owned(),
        (Cell::Flag(flag), _) => if *flag { "yes" } else { "no" }.to_owned(),
        (Cell::Count(count), Kind::Bytes) => bytes(*count),
        (Cell::Count(count), _) => count.to_string(),
        (Cell::Number(number), Kind::Seconds) => seconds(*number),
        (Cell::Number(number), Kind::Milliseconds) => format!("{number:.1} ms"),
        (Cell::Number(number), Kind::Percent) => format!("{number:.1} %"),
        (Cell::Number(number), _) => number.to_string(),
        (Cell::Text(text), Kind::Query) => cut(&visible(text), query_max),
        (Cell::Text(text), _) => cut(&visible(text), NAME_MAX),
    }
}

/// The first `most` letters of `text`, with a mark where it goes on.
fn cut(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) if most > 0 => format!("{}…", text[..end].trim_end()),
        Some(_) => String::new(),
        None => text.to_owned(),
    }
}

/// Bytes with a unit; 1 MB is 1024 × 1024 bytes, as the configuration counts them.
fn bytes(bytes: i64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let (mut amount, mut unit) = (bytes as f64, 0);
    while amount.abs() >= 1024.0 && unit + 1 < UNITS.len() {
        (amount, unit) = (amount / 1024.0, unit + 1);
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{amount:.1} {}", UNITS[unit]) }
}

/// Parts of a second where they count.
fn seconds(seconds: f64) -> String {
    if seconds.abs() < 60.0 { format!("{seconds:.1}s") } else { age(Some(seconds)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    fn table(query: &str) -> Table {
        let columns = [("table", Kind::Text), ("bytes", Kind::Bytes), ("age", Kind::Seconds), ("query", Kind::Query)];
        Table {
            topic: "x".into(),
            title: "What there is".into(),
            columns: columns.map(|(name, kind)| Column { name: name.into(), kind }).to_vec(),
            rows: vec![
                vec![
                    Cell::Text("public.\"two\nlines\u{202e}\"".into()),
                    Cell::Count(3 << 19),
                    Cell::Number(0.25),
                    Cell::Text(query.into()),
                ],
                vec![Cell::Text("t".into()), Cell::Count(-5), Cell::Number(3_700.0), Cell::Nothing],
            ],
            truncated: true,
            notes: vec!["a\nb".into()],
        }
    }

    #[test]
    fn a_row_is_a_line_whatever_is_in_it() {
        expect![[r#"
            What there is

            TABLE                         BYTES    AGE  QUERY
            public."two\nlines\u{202e}"  1.5 MB   0.2s  SELECT 1
            t                              -5 B  1h 1m  -
            the first 2, there are more
            note: a\nb"#]]
        .assert_eq(&words(&table("SELECT 1"), Some(80)));
        let long = "SELECT ".repeat(70);
        for width in [80, 100, 120] {
            let text = words(&table(&long), Some(width));
            assert!(text.lines().all(|line| line.chars().count() <= width), "{width}:\n{text}");
            assert!(text.contains('…'), "{text}");
        }
        let empty = Table { rows: Vec::new(), truncated: false, notes: Vec::new(), ..table("") };
        assert_eq!(words(&empty, None), "What there is\nnothing");
    }

    #[test]
    fn sizes_have_the_unit_that_fits() {
        let table = [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 kB"), (5 << 30, "5.0 GB"), (-2048, "-2.0 kB")];
        for (number, expected) in table {
            assert_eq!(bytes(number), expected);
        }
        assert!(bytes(i64::MAX).ends_with("TB"));
    }
}
