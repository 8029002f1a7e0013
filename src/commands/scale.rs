//! `tandem scale`

use crate::cli::Common;
use crate::commands::running;
use crate::control::{Order, ScaleTo};
use crate::exit::{Code, Failure};

/// Ask the running Tandem for this number of workers.
///
/// # Errors
/// It is not a number, no Tandem runs, or the pools of so many workers exceed `max_connections`.
pub async fn run(common: &Common, workers: &str) -> anyhow::Result<Code> {
    let to = parse(workers).ok_or_else(|| {
        let text = format!("{workers:?} is no number of workers: write 4 for four, +1 for one more, -1 for one less");
        Failure::new(Code::Usage, text)
    })?;
    running::order(common, Order::Scale(to), "scaling").await
}

/// `4` is a number of workers, `+1` and `-1` a change of it.
fn parse(workers: &str) -> Option<ScaleTo> {
    let is_change = workers.starts_with(['+', '-']);
    if is_change { workers.parse().ok().map(ScaleTo::By) } else { workers.parse().ok().map(ScaleTo::To) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sign_makes_it_a_change() {
        let table = [
            ("4", Some(ScaleTo::To(4))),
            ("0", Some(ScaleTo::To(0))),
            ("+1", Some(ScaleTo::By(1))),
            ("-2", Some(ScaleTo::By(-2))),
            ("four", None),
            ("", None),
            ("+", None),
            ("4294967296", None),
        ];
        for (text, expected) in table {
            assert_eq!(parse(text), expected, "{text}");
        }
    }
}
