//! The arguments of `tandem stats`.

use std::ffi::OsStr;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Arg, Args, Command, Error};

use crate::stats::{ROWS_MAX, Topic};

#[derive(Debug, Args)]
pub struct StatsArgs {
    /// What to show [default: databases, connections, the largest tables, the slowest statements]
    #[arg(value_parser = Topics)]
    pub topic: Option<Topic>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Print at most so many rows, 100 at the most [default: 100 of a topic, 10 of each where none is named]
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=ROWS_MAX as u64))]
    pub rows: Option<u64>,
}

/// Takes the topics by all of their names.
#[derive(Clone)]
struct Topics;

impl TypedValueParser for Topics {
    type Value = Topic;

    fn parse_ref(&self, command: &Command, argument: Option<&Arg>, value: &OsStr) -> Result<Topic, Error> {
        match value.to_str().and_then(Topic::find) {
            Some(topic) => Ok(topic),
            // It says what there is, and which of it is close.
            None => PossibleValuesParser::new(Topic::ALL.iter().map(|topic| topic.name()))
                .try_map(|name| Topic::find(&name).ok_or("no such topic"))
                .parse_ref(command, argument, value),
        }
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(Topic::ALL.iter().map(|topic| PossibleValue::new(topic.name()).help(topic.title()))))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        stats: StatsArgs,
    }

    #[test]
    fn topics_are_taken_by_any_of_their_names() {
        for (args, topic) in [
            (&["x"][..], None),
            (&["x", "table-size"], Some(Topic::TableSize)),
            (&["x", "total_table_size"], Some(Topic::TableSize)),
            (&["x", "db_settings", "--json"], Some(Topic::Settings)),
        ] {
            assert_eq!(Line::try_parse_from(args).unwrap().stats.topic, topic, "{args:?}");
        }
        for wrong in [&["x", "nonsense"][..], &["x", "-n", "0"], &["x", "-n", "101"]] {
            assert!(Line::try_parse_from(wrong).is_err(), "{wrong:?}");
        }
    }
}
