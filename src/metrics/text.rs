//! Families as text: OpenMetrics 1.0, and Prometheus' text format 0.0.4. Pure.

use std::fmt::Write as _;

use super::family::{Family, Kind};

/// The two texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    OpenMetrics,
    /// Text 0.0.4, which every scraper reads.
    Text,
}

impl Format {
    /// The one that an `Accept` header asks for. OpenMetrics has to be named: `*/*`, and no header at all, mean the older text,
    /// as with every exporter.
    pub fn wanted(accept: Option<&str>) -> Self {
        let (mut open, mut text) = (0.0_f32, 0.0_f32);
        for range in accept.unwrap_or_default().split(',') {
            let mut parts = range.split(';').map(str::trim);
            let name = parts.next().unwrap_or_default().to_ascii_lowercase();
            let mut quality = 1.0;
            let mut is_known = true;
            for (key, value) in parts.filter_map(|part| part.split_once('=')) {
                match key.trim() {
                    "q" => quality = value.trim().parse().unwrap_or(0.0),
                    "version" if name == "application/openmetrics-text" => {
                        is_known = matches!(value.trim().trim_matches('"'), "1.0.0" | "0.0.1");
                    }
                    _ => {}
                }
            }
            match name.as_str() {
                "application/openmetrics-text" if is_known => open = open.max(quality),
                "text/plain" | "text/*" => text = text.max(quality),
                _ => {}
            }
        }
        if open > 0.0 && open >= text { Self::OpenMetrics } else { Self::Text }
    }

    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// What ends the whole text.
    pub fn end(self) -> &'static str {
        match self {
            Self::OpenMetrics => "# EOF\n",
            Self::Text => "",
        }
    }

    fn type_of(self, kind: Kind) -> &'static str {
        match (kind, self) {
            (Kind::Gauge, _) => "gauge",
            (Kind::Counter, _) | (Kind::ForeignCounter, Self::Text) => "counter",
            (Kind::ForeignCounter | Kind::Unknown, Self::OpenMetrics) => "unknown",
            (Kind::Unknown, Self::Text) => "untyped",
        }
    }
}

/// `families` as text, without what ends it. A family without samples is left out.
pub fn write(families: &[Family], format: Format) -> String {
    let mut text = String::new();
    for Family { name, help, kind, samples } in families.iter().filter(|family| !family.samples.is_empty()) {
        let suffix = if *kind == Kind::Counter { "_total" } else { "" };
        // The older text knows a counter by the name of its samples.
        let described = if format == Format::Text { suffix } else { "" };
        let _ = write!(text, "# HELP {name}{described} ");
        help_text(help, format, &mut text);
        let _ = writeln!(text, "\n# TYPE {name}{described} {}", format.type_of(*kind));
        for (labels, value) in samples {
            text.push_str(name);
            text.push_str(suffix);
            if !labels.is_empty() {
                let _ = write!(text, "{{{labels}}}");
            }
            text.push(' ');
            number(*value, &mut text);
            text.push('\n');
        }
    }
    text
}

/// Quotes are escaped in OpenMetrics alone.
fn help_text(help: &str, format: Format, text: &mut String) {
    for letter in help.chars() {
        match letter {
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '"' if format == Format::OpenMetrics => text.push_str("\\\""),
            _ => text.push(letter),
        }
    }
}

fn number(value: f64, text: &mut String) {
    let _ = if value.is_nan() {
        text.write_str("NaN")
    } else if value.is_infinite() {
        text.write_str(if value > 0.0 { "+Inf" } else { "-Inf" })
    } else {
        write!(text, "{value}")
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_older_text_is_what_a_client_gets_that_does_not_ask_for_openmetrics() {
        let prometheus = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                          text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        let newer = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
                     text/plain;version=0.0.4;escaping=allow-utf-8;q=0.4,*/*;q=0.2";
        for asks in [prometheus, newer, "application/openmetrics-text", "Application/OpenMetrics-Text; q=0.2"] {
            assert_eq!(Format::wanted(Some(asks)), Format::OpenMetrics, "{asks}");
        }
        let older = [
            "",
            "*/*",
            "text/html,*/*;q=0.8",
            "text/plain",
            "application/openmetrics-text;q=0,text/plain",
            "application/openmetrics-text;version=9.0.0",
            "application/openmetrics-text;q=0.3,text/plain;q=0.9",
            "application/openmetrics-text;q=x",
        ];
        for asks in older {
            assert_eq!(Format::wanted(Some(asks)), Format::Text, "{asks}");
        }
        assert_eq!(Format::wanted(None), Format::Text);
    }

    #[test]
    fn each_kind_is_written_as_its_text_knows_it() {
        let families = [
            Family::gauge("tandem_a", "says \"a\\b\"\nand more", 1.5),
            Family::new("tandem_b", "counts", Kind::Counter).with(&[("service", "x\"y")], 3.0),
            Family::new("pg_c", "as the exporter has it", Kind::ForeignCounter).with(&[], f64::NAN),
            Family::new("pg_d", "untyped", Kind::Unknown).with(&[], f64::INFINITY).with(&[("a", "b")], -7e15),
            Family::new("tandem_empty", "not there", Kind::Gauge),
        ];
        expect_test::expect![[r#"
            # HELP tandem_a says "a\\b"\nand more
            # TYPE tandem_a gauge
            tandem_a 1.5
            # HELP tandem_b_total counts
            # TYPE tandem_b_total counter
            tandem_b_total{service="x\"y"} 3
            # HELP pg_c as the exporter has it
            # TYPE pg_c counter
            pg_c NaN
            # HELP pg_d untyped
            # TYPE pg_d untyped
            pg_d +Inf
            pg_d{a="b"} -7000000000000000
        "#]]
        .assert_eq(&write(&families, Format::Text));
        expect_test::expect![[r#"
            # HELP tandem_a says \"a\\b\"\nand more
            # TYPE tandem_a gauge
            tandem_a 1.5
            # HELP tandem_b counts
            # TYPE tandem_b counter
            tandem_b_total{service="x\"y"} 3
            # HELP pg_c as the exporter has it
            # TYPE pg_c unknown
            pg_c NaN
            # HELP pg_d untyped
            # TYPE pg_d unknown
            pg_d +Inf
            pg_d{a="b"} -7000000000000000
        "#]]
        .assert_eq(&write(&families, Format::OpenMetrics));
    }
}
