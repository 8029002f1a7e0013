//! The tests of the built binary and of the library, in one program: one link, and one pool of threads in which slow
//! waiters run beside each other (`.cargo/config.toml` says how many).
//!
//! A module is a subject, its head says which; `common` is what they share. A test may not change what the whole process
//! is (its environment, its directory, its umask, the parent of its orphans): see `common::alone`.

#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

mod common;
#[path = "../../benches/figures/mod.rs"]
#[allow(dead_code, reason = "the benchmarks use all of it")]
mod figures;
#[path = "../../benches/workers/load/mod.rs"]
#[allow(dead_code, reason = "the benchmarks use all of it")]
mod load;
#[path = "../../benches/faults/schedule/mod.rs"]
#[allow(dead_code, reason = "the benchmarks use all of it")]
mod schedule;

mod abandoned;
mod address;
mod as_worker;
mod backup;
mod backup_copies;
mod backup_import;
mod backup_new_machine;
mod backup_pace;
mod backup_proof;
mod backup_replication;
mod backup_retention;
mod backup_rights;
mod backup_schedule;
mod backup_store;
mod backup_trust;
mod backup_verify;
mod bad_archive;
mod bad_database;
mod bad_disk;
mod bad_input;
mod book_reader;
mod broken_code;
mod busy_live_database;
mod check_json;
mod commands;
mod companions;
mod container;
mod control;
mod corpus;
mod database_away;
mod debugging;
mod deploy;
mod deploy_attached;
mod dockerfile;
mod doctor;
mod dotenv;
mod drain_busy;
mod early_health;
mod false_pid;
mod faults;
mod fewer_rights;
mod follows_database;
mod found;
mod full_volume;
mod generated_pages;
mod harness_integresql;
mod harness_library;
mod harness_pytest;
mod identity;
mod import_compose;
mod import_sqlite;
mod init;
mod integresql_room;
mod interrupted;
mod json_schema;
mod launcher;
mod leaves_nothing;
mod left_behind;
mod libraries;
mod listen;
mod live_database;
mod load_client;
mod locks;
mod lower_layer;
mod migrator;
mod nothing_blocks;
mod nothing_blocks_log;
mod orderly_end;
mod other_servers;
mod out_of_memory;
mod out_of_room;
mod output;
mod own_database;
mod owners_functions;
mod pid_one;
mod pitr;
mod pools;
mod power_cut;
mod power_cut_clusters;
mod preload_template;
mod project_commands;
mod pyproject;
mod python_environment;
mod python_versions;
mod quota;
mod reach;
mod readme;
mod ready_to_write;
mod recovering;
mod reload;
mod reload_dirs;
mod restore;
mod roll;
mod roll_truth;
mod room;
mod s3_server;
mod scale;
mod schema;
mod second_postmaster;
mod secrets;
mod server_log;
mod server_refuses;
mod shell_blocks;
mod signals;
mod slow_failure;
mod stays_up;
mod stays_up_database;
mod stops;
mod stops_early;
mod surroundings;
mod sys_path;
mod systemd;
mod tablespaces;
mod tended;
mod test_command;
mod test_databases;
mod test_inputs;
mod test_places;
mod test_scopes;
mod test_server_state;
mod test_terminal;
mod test_untouched;
mod tidy;
mod tidy_blocking;
mod timelines;
mod tls;
mod told_stop;
mod up;
mod uvicorn_options;
mod wal_archive;
mod watchdog;
mod worker_exit;
mod worker_notices;
