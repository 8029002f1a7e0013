//! What an earlier run measured and a new one did not: it stays in the README, with its own day.

/// `new` with the tables and the rows of `old` that it lacks. Both begin with the day of their run, and a table is known by its
/// first heading, a row by its first cell, whatever numbers are in them.
pub fn with_kept(old: &str, new: &str) -> String {
    let day = old.get(..10).filter(|day| day.bytes().all(|it| it.is_ascii_digit() || it == b'-')).unwrap_or("before");
    let mut blocks: Vec<String> = new.trim_end().split("\n\n").map(str::to_owned).collect();
    let first_note = blocks.iter().position(|block| block.starts_with("- ")).unwrap_or(blocks.len());
    let notes = blocks.split_off(first_note);
    for table in old.split("\n\n").map(str::trim_end).filter(|block| block.starts_with("| ")) {
        let is_same = |block: &&mut String| block.starts_with("| ") && heading(block) == heading(table);
        match blocks.iter_mut().find(is_same) {
            Some(block) => *block = with_rows(block, table, day),
            None => blocks.push(dated(table, day)),
        }
    }
    blocks.extend(notes);
    blocks.join("\n\n") + "\n"
}

/// The whole table of an earlier day.
fn dated(table: &str, day: &str) -> String {
    let head: Vec<&str> = table.lines().take(2).collect();
    with_rows(&head.join("\n"), table, day)
}

fn with_rows(new: &str, old: &str, day: &str) -> String {
    let mut rows: Vec<String> = new.lines().map(str::to_owned).collect();
    // What was not measured stays behind what it stood behind.
    let mut at = 2.min(rows.len());
    for row in old.lines().skip(2) {
        let (first, rest) = cells(row);
        let first = if first.contains(" (measured ") { first.to_owned() } else { format!("{first} (measured {day})") };
        let kept = format!("{first} | {rest}");
        match rows.iter().skip(2).position(|it| key(it) == key(row)) {
            Some(same) => {
                at = same + 3;
                if cells(&rows[same + 2]).1.starts_with("not measured") {
                    rows[same + 2] = kept;
                }
            }
            None => {
                rows.insert(at, kept);
                at += 1;
            }
        }
    }
    rows.join("\n")
}

fn heading(table: &str) -> String {
    key(table.lines().next().unwrap_or_default())
}

/// The first cell of `row`, with the bar before it, and all others. A bar within a cell stands behind a backslash.
fn cells(row: &str) -> (&str, &str) {
    row.split_once(" | ").unwrap_or((row, ""))
}

fn key(row: &str) -> String {
    let (first, _) = cells(row);
    let first = first.split(" (measured ").next().unwrap_or(first);
    first.chars().filter(|letter| !letter.is_ascii_digit() && *letter != '.').collect()
}
