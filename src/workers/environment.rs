//! The Python environment.
