//! What the operator wrote: layers, typed settings, all errors at once.

mod settings;

pub use settings::*;
