//! Measurements for Prometheus: what a family of samples is, the two texts it is written as, and the registry in which
//! Tandem counts what happens for as long as it runs.
//!
//! ```text
//! family     a family of samples; its labels are escaped when they are made
//! text       families as OpenMetrics or as the older text, and which of the two an `Accept` header asks for
//! names      every counter and gauge of the registry, with the series that exist from the start
//! registry   the counts themselves, and the last sample of the database
//! ```
//!
//! A scrape reads and asks nobody: whoever measures writes here. The crate `prometheus-client` is not used, because it
//! escapes no label value and writes no other text than OpenMetrics: a table whose name holds a line break would break the
//! answer.

pub mod family;
pub mod names;
pub mod registry;
pub mod text;

#[cfg(feature = "otlp")]
pub use family::pairs;
pub use family::{Family, Kind, labels};
pub use registry::{DatabaseText, Registry, registry};
pub use text::Format;
