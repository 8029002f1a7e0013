//! The status page on the health port, for browsers.
//!
//! ```text
//! access    who gets it: what the browser prefers, the name it asks by, the password (pure)
//! server    the health port: the page and its events, and all else as `health` answers it
//! render    the whole page as HTML, from an Overview (pure)
//! sections  its parts (pure)
//! words     numbers, sizes and times as people read them (pure)
//! assets/   style, script, icon; uPlot draws the charts
//! ```
//!
//! The HTML is made here, and nowhere else: a browser without JavaScript sees all of it. With JavaScript the page is kept
//! up by `GET /events?page`, whose events carry the same HTML again; the script puts what differs in its place. So
//! there is one escape of foreign names, and no template in the browser.
//!
//! Must not change anything: the page is for reading.

mod access;
mod render;
mod sections;
mod server;
pub mod words;

pub use server::{Audience, serve};
