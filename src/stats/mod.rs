//! What a PostgreSQL server says about itself, as tables: sizes, sessions, statements, indexes, upkeep.
//!
//! ```text
//! Topic ─> topics: its SQL, as this server's version knows it ─> ask: one read-only transaction ─> Table
//! ```
//!
//! The topics have the names that Heroku's pg-extras gives them, where it has them. The room reads and changes nothing. It
//! works on any PostgreSQL from 13 on and with any role: what a role may not see, the table's notes say, with the GRANT that
//! shows it. Cells hold what the server answered; [`visible`] makes their text harmless where people read it.

mod ask;
mod masked;
mod table;
mod topics;

pub use ask::ask;
pub use table::{Cell, Column, Kind, ROWS_MAX, Table, visible, visible_json};
pub use topics::Topic;
