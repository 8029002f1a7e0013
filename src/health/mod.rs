//! The health port: what it answers, and the server behind it.
//!
//! Answers come from the last [`Picture`]; nothing here asks PostgreSQL or a worker anything, and nothing here changes
//! anything. What a [`Picture`] quotes of others, such as the last error of a backup, passes `scrub` on its way out: no
//! secret that this process knows is in an answer.

pub mod backups;
pub mod calendar;
pub mod client;
pub mod events;
pub mod forecast;
pub mod history;
pub mod metrics;
pub mod overview;
pub mod picture;
pub mod rates;
pub mod report;
pub mod server;
pub mod statistics;
pub mod viewers;

pub use client::probe;
pub use picture::Picture;
pub use server::serve;
