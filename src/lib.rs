//! Tandem runs PostgreSQL 16 and a Python ASGI backend as one process tree.
//!
//! # The flow
//!
//! ```text
//! config ─> plan ─> postgres ─> schema ─> workers ─> health        and a stop runs it backwards
//! ```
//!
//! `boot` holds THE boot list. `supervise` walks it: a pure automaton decides, `sidecar`'s shell acts, and what comes of
//! it returns as an event. `postgres` and `workers` never meet: the database's URL travels through `plan`.
//!
//! # The rooms, from the top of the house down
//!
//! A room uses only rooms below it; those of one floor never meet. `tests/it/tidy.rs` reads the imports and holds it.
//!
//! ```text
//! build        which commit a release is built from, for `tandem --version`
//! main         parse, run, map the outcome to an exit code
//! commands/    one file a subcommand: flags into one call, its result into words
//! cli          what can be typed
//! doctor/      `tandem doctor`: looks at the project, the machine and the server; pure judges of what was seen; THE list of checks
//! sidecar/     the boot's jobs, the shell that carries out the tree's actions, the services behind their numbers,
//!              people's orders, what others see of it
//! otlp/        traces and metrics for an OpenTelemetry collector, behind the cargo feature `otlp`
//! backup/      backups that are proven to restore: dump, verify, restore, retention, schedule, copies off the machine
//! sqlite/      an SQLite file into the database: types mapped, values checked, rows copied in one transaction
//! harness/     `tandem test`: throwaway clusters and pools of ready databases; a library for tests in Rust
//! boot         THE boot list, the tree's plan that follows from it, and the sum of a stop (pure)
//! postgres/    a PostgreSQL 16 cluster: binaries · home · lock · cluster · settings · stale · server · service ·
//!              provision · initial · rotation · tls · authority · probe · session · measure (for /metrics) · checkpoint · log ·
//!              embedded
//! workers/     Uvicorn workers on shared listening sockets: environment · listener · socket_file · serving · launch ·
//!              notify · gate · life · slot · template · readiness · care · launcher.py · startup.py · listening.py ·
//!              options.py · notify.py · drain.py · template.py
//! control/     the control socket: messages, server, client, the status they show
//! page/        the status page on the health port, for browsers: who may see it, its HTML, its events
//! schema/      migrations under a lock: the built-in ones, in step with Alembic, and numbered SQL files
//! health/      the report (pure), the port that shows it, the client that asks for it
//! compose/     a Compose file made into a configuration, and what does not carry over (nothing is started for it)
//! install/     what fetching and installing have in common: locks, digests, what pip's complaints mean
//! certificate  a certificate with its key: whether they can be served, and a client that takes any
//! companions   processes beside the workers, which the boot does not wait for
//! signals      the signals Tandem gets, as words
//! systemd/     the supervisor above: what it is told, the sockets that it hands down
//! watch/       which of the application's files were saved: what counts, what is there, what changed
//! http/        HTTP/1 over any stream, with limits: the server and the client of all rooms above
//! scaffold/    files for a new project: a commented tandem.toml of what was found, and what goes with it
//! stats/       what a PostgreSQL server says about itself, as tables: sizes, sessions, statements, indexes, upkeep
//! service      what every kept process has in common: its events, its lines, its signals
//! process/     the only door to OS processes: spawn, adopt, run, identity, orphans, the mark by which descendants are known,
//!              the keeper that ends them when Tandem was killed, what /proc shows, ports, a child that has the terminal,
//!              descriptors to a child and from the process that started Tandem
//! telemetry/   the log as text or JSON, children's lines, progress, the banner
//! room         whether something fits on its disk, asked before it is written, and the watch while it is
//! config/      what the operator wrote: layers, typed settings, all problems at once
//! project/     what a project directory is, found by looking: application, packages, migrations, Python
//! event_loop/  what may block, on other threads and behind limits; what runs on the loop, timed
//! durable/     files that are complete or absent, and locks: the only room that calls rename(2) and flock(2)
//! plan/        the vocabulary of what will happen, pure: commands, URLs and secrets, policies, budget, ladder
//! phase        the one phase that users see
//! metrics/     measurements for Prometheus: families, the two texts they are written as, the registry of what has happened
//! supervise/   a crate of its own, pure: policies · state, step, climb and leave (one child) · tree (all and the boot
//!              list) · roll (new for old) · the simulation
//! exit         exit codes, and the error that carries one
//! book         the documentation in the binary: pages, sections, what explains a message
//! scrub        removes known secrets from logs, reports and errors
//! ```
//!
//! # What always holds
//!
//! - No worker imports the application before the migrations are in.
//! - Tandem is not ready while PostgreSQL does not answer, and says so before it stops anything.
//! - PostgreSQL is stopped after the last worker, and by its postmaster's pid alone.
//! - No file, pipe, disk or resolver that hangs holds up the event loop: health, signals and control go on answering.
//! - A stop ends within the time that `tandem check` tells, whatever the children do, and leaves no process behind that
//!   SIGKILL ends.
//! - A planned change takes readiness from no slot: the new worker is ready before the old one leaves. It is over when the
//!   old ones accept no more, and what they still do holds up nothing.
//!
//! `supervise/simulation/` drives the tree through a million random histories a run to hold these.

// They panic when nothing reads what they print: see `telemetry::print`.
#![cfg_attr(not(test), deny(clippy::print_stderr, clippy::print_stdout))]

pub mod backup;
pub mod book;
pub mod boot;
pub mod certificate;
pub mod cli;
pub mod commands;
pub mod companions;
pub mod compose;
pub mod config;
pub mod control;
pub mod doctor;
pub mod durable;
pub mod event_loop;
pub mod exit;
#[cfg(test)]
mod forks;
pub mod harness;
pub mod health;
pub mod http;
pub mod install;
pub mod metrics;
#[cfg(feature = "otlp")]
pub mod otlp;
pub mod page;
pub mod phase;
pub mod plan;
pub mod postgres;
pub mod process;
pub mod project;
pub mod room;
pub mod scaffold;
pub mod schema;
pub mod scrub;
pub mod service;
pub mod sidecar;
pub mod signals;
#[cfg(test)]
#[path = "../tests/it/common/skip.rs"]
mod skip;
pub mod sqlite;
pub mod stats;
pub use ::supervise;
pub mod systemd;
pub mod telemetry;
pub mod watch;
pub mod workers;
