//! Pages of the book that are made from the code. `UPDATE_EXPECT=1` writes them anew.

use std::fs;

use ::tandem::book::{self, PAGES};
use ::tandem::cli::Cli;
use clap::{Command, CommandFactory};
use expect_test::expect_file;

use crate::common::project::root;

/// The width of the help, in columns.
const WIDTH: usize = 100;

const COMMANDS: &str = "# Commands

This page shows the help of every command, as `tandem COMMAND --help` prints it. It is made from the code.
[Operations](operations.md) tells what the commands are for.

## tandem

";

const STATES: &str = "# States

This page shows what an event changes in the state of a process, and what Tandem does then. It is made from the table by which the
code decides. What is not in a table changes nothing in that state.

A *hold* is a worker that waits at a gate before it imports the application. The rungs of a stop are *stop* (SIGTERM, then SIGKILL),
*hang* (SIGABRT, then SIGKILL) and *retire* (the process is told to finish what it has). [How it works](how-it-works.md) tells the
rest.
";

fn help(command: &Command) -> String {
    let help = command.clone().term_width(WIDTH).render_long_help().to_string();
    let lines: Vec<&str> = help.lines().map(str::trim_end).collect();
    format!("```text\n{}\n```\n", lines.join("\n").trim_end())
}

/// The help of `command`'s subcommands, one after another.
fn subcommands(page: &mut String, command: &Command, above: &str) {
    for command in command.get_subcommands().filter(|one| !one.is_hide_set() && one.get_name() != "help") {
        let name = format!("{above} {}", command.get_name());
        *page += &format!("\n## {name}\n\n{}", help(command));
        subcommands(page, command, &name);
    }
}

#[test]
fn the_page_of_commands_is_their_help() {
    let mut cli = Cli::command();
    cli.build();
    let mut page = format!("{COMMANDS}{}", help(&cli));
    // What every command takes is shown once.
    let global: Vec<_> =
        cli.get_arguments().filter(|one| one.is_global_set()).map(|one| one.get_id().clone()).collect();
    let mut cli = global.into_iter().fold(Cli::command(), |cli, id| cli.mut_arg(id, |argument| argument.hide(true)));
    cli.build();
    subcommands(&mut page, &cli, "tandem");
    expect_file!["../../docs/commands.md"].assert_eq(&page);
}

/// The cells of a line of a Markdown table.
fn cells(line: &str) -> Vec<&str> {
    line.trim().trim_matches('|').split('|').map(str::trim).collect()
}

/// `step` is tested against the wide table; this is the same table for reading.
#[test]
fn the_page_of_states_is_the_table_of_the_code() {
    let table = fs::read_to_string(root().join("src/supervise/state_table.md")).unwrap();
    let mut lines = table.lines();
    let events = cells(lines.next().unwrap());
    let mut page = STATES.to_owned();
    for line in lines.skip(1) {
        let cells = cells(line);
        page +=
            &format!("\n## {}\n\n| event | becomes | and Tandem does |\n|---|---|---|\n", cells[0].trim_matches('*'));
        for (event, cell) in events.iter().zip(&cells).skip(1).filter(|(_, cell)| **cell != "·") {
            let (next, done) = cell.split_once(" / ").unwrap_or((cell, ""));
            page += &format!("| {event} | {next} | {done} |\n");
        }
    }
    expect_file!["../../docs/states.md"].assert_eq(&page);
}

#[test]
fn the_binary_carries_every_page() {
    let names = fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().file_name());
    let names = names.map(|name| name.into_string().unwrap());
    let mut pages: Vec<String> = names.filter_map(|name| Some(name.strip_suffix(".md")?.to_owned())).collect();
    pages.retain(|name| name != "SUMMARY");
    let mut carried: Vec<&str> = PAGES.iter().map(|page| page.name).collect();
    pages.sort_unstable();
    carried.sort_unstable();
    assert_eq!(carried, pages, "src/book.rs names the pages");
    assert!(book::page("start").is_some_and(|page| page.text.starts_with("# Start")));
}
