//! Databases for tests: a throwaway PostgreSQL 16 that starts in milliseconds, and a fresh, migrated database for each test.
//!
//! # For tests in Rust
//!
//! [`database`] hands out a database of the test's own, a clone of a template that was migrated once. When the
//! [`Database`] is dropped it goes; dropped in a panic, it is kept for as long as the server runs. Under `tandem test` the
//! databases come from its server; else one is started for this process, with the configuration (`tandem.toml`) of the
//! working directory, and ends with it. It works in parallel, under `cargo test` as under nextest.
//!
//! ```
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! use tandem::harness::{Options, Server};
//!
//! // Keys as in the configuration: this run lays nothing out for the next one.
//! let options = Options { set: vec![("test.spare".into(), "false".into())], ..Options::default() };
//! let server = Server::start(options).await?;
//! let (one, other) = (server.database().await?, server.database().await?);
//! assert_ne!(one.name(), other.name());
//! assert!(one.url().starts_with("postgresql://"));
//! drop(one); // and its database goes
//! # anyhow::Ok(())
//! # }).unwrap();
//! ```
//!
//! # How it works
//!
//! ```text
//! key ─> template ─────> image       what the template consists of; made once, packed into one file
//!            seed        facts       and what is known of the databases in it
//!            reads ────> inputs      what migrations and seeds read, which decides whether it is still right
//!                        shelf       where it lies
//! place ─> cluster ────> postmaster  a directory in memory, the image laid out in it, a server on it
//!            janitor     remains     and what cleans up, however it ends
//! pool ──> databases ──> endpoint    clones made ahead (pure); handed out; over a unix socket (client)
//!            cleaning               those that come back: used again or dropped
//!            superuser  footprint   what the superuser does with them, and whether a test wrote to one
//!            put_back               what tests change of the whole server, taken back
//!                 shared_objects    whose it is, and when (pure)
//!                        integresql  the same for clients of IntegreSQL's interface
//! throwaway                          the same server, empty, for a purpose other than tests
//! run                                `tandem test`: a command in all this, with plugin (pytest) and stack (workers)
//! serve                              the same for a test runner that runs already: a plain pytest, which has the plugin
//! of_test                            the databases of tests, found from outside (`tandem psql --test`)
//! guard ─> watched    leads          no test reaches another server than its own
//! ```

mod cleaning;
mod client;
mod cluster;
pub mod databases;
mod endpoint;
mod facts;
mod footprint;
mod guard;
mod guard_words;
mod image;
mod inputs;
mod integresql;
mod janitor;
mod key;
mod leads;
mod library;
mod of_test;
mod place;
mod plugin;
mod pool;
mod postmaster;
mod put_back;
mod reads;
mod remains;
pub mod run;
mod seed;
pub mod serve;
mod shared_objects;
mod shelf;
mod stack;
mod superuser;
mod template;
mod throwaway;
mod watched;

pub use client::{Client, VARIABLE};
pub use endpoint::NewDatabase;
pub use library::{Database, Options, Server, database};
pub use of_test::find as find_of_test;
pub use throwaway::Throwaway;
