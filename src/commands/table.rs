//! Tables, ages and sizes as text for a terminal.

use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets};

/// `table` without lines, its columns two blanks apart, those numbered `right` aligned to the right.
pub fn plain(mut table: Table, right: &[usize]) -> String {
    table.load_preset(presets::NOTHING);
    let last = table.column_count() - 1;
    for (number, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, if number == last { 0 } else { 2 }));
        if right.contains(&number) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt()
}

/// The two largest units of an age, such as `2h 5m`.
pub fn age(seconds: Option<f64>) -> String {
    let Some(seconds) = seconds else { return "-".to_owned() };
    let whole = Duration::try_from_secs_f64(seconds).unwrap_or_default().as_secs();
    let text = humantime::format_duration(Duration::from_secs(whole)).to_string();
    text.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

/// Bytes as MB of 1024 × 1024, as the configuration counts them.
pub fn size(bytes: Option<u64>) -> String {
    bytes.map_or_else(String::new, |bytes| {
        let tenths = (bytes * 10).div_ceil(1024 * 1024);
        format!("{}.{} MB", tenths / 10, tenths % 10)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_two_units_and_sizes_one_decimal() {
        let ages = [(None, "-"), (Some(0.9), "0s"), (Some(59.0), "59s"), (Some(3_600.0), "1h"), (Some(-1.0), "0s")];
        for (seconds, expected) in ages {
            assert_eq!(age(seconds), expected, "{seconds:?}");
        }
        assert_eq!([size(None), size(Some(0)), size(Some(1)), size(Some(1 << 20))], ["", "0.0 MB", "0.1 MB", "1.0 MB"]);
    }
}
