//! Families of samples. Pure data.

use std::borrow::Cow;
use std::sync::Arc;

/// How the samples of a family behave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Gauge,
    /// It only grows. Its samples end in `_total`, which OpenMetrics asks for; the family's name does not.
    Counter,
    /// A counter of PostgreSQL's under the name that postgres_exporter gives it, which often lacks `_total`. OpenMetrics knows
    /// no such counter: there it is of the type `unknown`, which PromQL treats alike.
    ForeignCounter,
    /// Of the type that postgres_exporter calls `untyped`.
    Unknown,
}

/// One family: samples of one name.
#[derive(Clone, Debug, PartialEq)]
pub struct Family {
    pub name: Cow<'static, str>,
    pub help: Cow<'static, str>,
    pub kind: Kind,
    pub samples: Vec<(Labels, f64)>,
}

/// Labels as they stand between the braces.
pub type Labels = Arc<str>;

impl Family {
    pub fn new(name: impl Into<Cow<'static, str>>, help: impl Into<Cow<'static, str>>, kind: Kind) -> Self {
        Self { name: name.into(), help: help.into(), kind, samples: Vec::new() }
    }

    /// A gauge with one sample and no labels.
    pub fn gauge(name: &'static str, help: &'static str, value: f64) -> Self {
        Self { samples: vec![(labels(&[]), value)], ..Self::new(name, help, Kind::Gauge) }
    }

    /// The same with one more sample.
    #[must_use]
    pub fn with(mut self, pairs: &[(&str, &str)], value: f64) -> Self {
        self.samples.push((labels(pairs), value));
        self
    }
}

/// The `pairs` as they stand between the braces of a sample, their values escaped: names in a database may hold anything.
pub fn labels(pairs: &[(&str, &str)]) -> Labels {
    let mut text = String::new();
    for (name, value) in pairs {
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(name);
        text.push_str("=\"");
        escape(value, &mut text);
        text.push('"');
    }
    text.into()
}

/// The names and values of `labels`, as they were before they were escaped.
#[cfg(feature = "otlp")]
pub fn pairs(labels: &Labels) -> Vec<(String, String)> {
    let (mut pairs, mut rest) = (Vec::new(), labels.chars());
    loop {
        let name: String = rest.by_ref().take_while(|letter| *letter != '=').filter(|letter| *letter != ',').collect();
        if name.is_empty() {
            return pairs;
        }
        rest.next();
        let mut value = String::new();
        while let Some(letter) = rest.next().filter(|letter| *letter != '"') {
            value.push(match letter {
                '\\' => match rest.next() {
                    Some('n') => '\n',
                    other => other.unwrap_or_default(),
                },
                other => other,
            });
        }
        pairs.push((name, value));
    }
}

/// `value` as it stands between quotes in both texts.
pub fn escape(value: &str, text: &mut String) {
    for letter in value.chars() {
        match letter {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            _ => text.push(letter),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_stay_inside_their_quotes() {
        let hostile = labels(&[("relname", "a\"} 1\n# EOF\\"), ("datname", "<script>\u{202e}\r")]);
        assert_eq!(&*hostile, "relname=\"a\\\"} 1\\n# EOF\\\\\",datname=\"<script>\u{202e}\r\"");
        assert!(!hostile.contains('\n'));
        assert_eq!(&*labels(&[]), "");
    }

    #[cfg(feature = "otlp")]
    #[test]
    fn pairs_are_what_labels_were_made_of() {
        for given in
            [&[][..], &[("a", "b")], &[("relname", "a\"} 1\n# =,\\"), ("empty", ""), ("datname", "\\n\u{202e}")]]
        {
            let found = pairs(&labels(given));
            assert_eq!(found.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect::<Vec<_>>(), given);
        }
    }
}
