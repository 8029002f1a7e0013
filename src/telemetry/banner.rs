//! The ready banner: one piece on a terminal, one object in JSON.

use std::fmt::Write;
use std::time::SystemTime;

use tracing::Level;

use super::clean::{Colours, clean};
use super::{Look, json, look, ring, terminal};

/// Print `title` and, under it, each name with its value. The log filter does not apply.
pub fn banner(title: &str, rows: &[(&str, String)]) {
    let now = SystemTime::now();
    let text = match look() {
        Look::Text { colour } => text(title, rows, colour),
        Look::Json => json(title, rows, now) + "\n",
    };
    terminal::write(text.as_bytes());
    terminal::write_to_file(|| json(title, rows, now));
    let rows = rows.iter().map(|(name, value)| format!("\n{name}: {}", clean(value, Colours::Drop)));
    ring().tell(now, Level::INFO, &format!("{}{}", clean(title, Colours::Drop), rows.collect::<String>()));
}

fn text(title: &str, rows: &[(&str, String)], colour: bool) -> String {
    let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let (bold, end) = if colour { ("\x1b[1;32m", "\x1b[0m") } else { ("", "") };
    let mut text = format!("\n  {bold}{}{end}\n", clean(title, Colours::Drop));
    for (name, value) in rows {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "    {name:width$}  {}", clean(value, Colours::Drop));
    }
    text.push('\n');
    text
}

fn json(title: &str, rows: &[(&str, String)], now: SystemTime) -> String {
    let values: serde_json::Map<_, _> =
        rows.iter().map(|(name, value)| ((*name).to_owned(), clean(value, Colours::Drop).into())).collect();
    json::own_line(now, Level::INFO, &clean(title, Colours::Drop), &[("banner", values.into())])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> [(&'static str, String); 2] {
        [("application", "http://127.0.0.1:8000".into()), ("psql", "tandem psql".into())]
    }

    #[test]
    fn rows_stand_under_each_other() {
        let expected = "\n  Tandem is ready\n    application  http://127.0.0.1:8000\n    psql         tandem psql\n\n";
        assert_eq!(text("Tandem is ready", &rows(), false), expected);
        assert!(text("Tandem is ready", &rows(), true).starts_with("\n  \x1b[1;32mTandem is ready\x1b[0m\n"));
    }

    #[test]
    fn json_is_one_object_on_one_line() {
        let line = json("Tandem is ready", &rows(), SystemTime::UNIX_EPOCH);
        assert!(!line.contains('\n'));
        let object: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(object["message"], "Tandem is ready");
        assert_eq!(object["banner"]["psql"], "tandem psql");
    }
}
