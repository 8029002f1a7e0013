//! What the README and the pages of `docs/` say is so: their commands, promises, links and contents.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use ::tandem::book::anchor;
use ::tandem::cli::Cli;
use clap::{Command, CommandFactory};

use crate::tidy::{files, source};

/// A README that is longer is not read to its end.
const README_LINES_MAX: usize = 150;

/// The languages of code blocks that hold what a reader types.
const SHELLS: [&str; 3] = ["sh", "console", "text"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap()
}

/// The files of the book, by their names in `docs/`.
fn pages() -> Vec<String> {
    let entries = fs::read_dir(root().join("docs")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    let names: Vec<String> = names.filter(|name| name.ends_with(".md")).collect();
    assert!(names.len() > 10, "only {names:?} are in docs/");
    names
}

/// The README and the files of the book, by their paths from the root.
pub fn documents() -> Vec<String> {
    let mut documents: Vec<String> = pages().iter().map(|name| format!("docs/{name}")).collect();
    documents.push("README.md".to_owned());
    documents
}

/// Each line of `text` with the language of the code block that it stands in; `None`: in no block.
fn lines(text: &str) -> Vec<(Option<&str>, &str)> {
    let mut block = None;
    let mut lines = Vec::new();
    for line in text.lines() {
        match line.trim_start().strip_prefix("```") {
            Some(info) => block = if block.is_none() { info.split(' ').next() } else { None },
            None => lines.push((block, line)),
        }
    }
    assert_eq!(block, None, "a code block has no end");
    lines
}

/// The lines of `text` outside of code blocks.
fn prose(text: &str) -> Vec<&str> {
    lines(text).into_iter().filter(|(block, _)| block.is_none()).map(|(_, line)| line).collect()
}

/// What the links in `text` lead to.
fn links(text: &str) -> Vec<&str> {
    let lines = prose(text).into_iter();
    lines.flat_map(|line| line.split("](").skip(1).filter_map(|rest| rest.split(')').next())).collect()
}

/// The anchors of the headings in `text`. mdBook and sites that show repositories number a second heading of the same name,
/// so there must be none.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut anchors = BTreeSet::new();
    for line in prose(text).into_iter().filter(|line| line.starts_with('#')) {
        assert!(anchors.insert(anchor(line.trim_start_matches('#'))), "two headings are `{line}`");
    }
    anchors
}

/// What may hold a command: the lines of shells and pictures in `text`, and its inline code that begins with `tandem`.
fn code(text: &str) -> Vec<String> {
    let in_shells = lines(text).into_iter().filter(|(block, _)| block.is_some_and(|block| SHELLS.contains(&block)));
    let mut code: Vec<String> = in_shells.map(|(_, line)| line.to_owned()).collect();
    let prose = prose(text).join(" ");
    let inline = prose.split('`').skip(1).step_by(2);
    code.extend(inline.filter(|inline| inline.starts_with("tandem ")).map(str::to_owned));
    code
}

/// The commands in a line of code: the words after each `tandem`.
fn commands(code: &str) -> Vec<Vec<&str>> {
    let words: Vec<&str> = code.split_whitespace().collect();
    let is_tandem = |word: &str| {
        let word = word.trim_start_matches(['"', '\'', '(', '$', '`']);
        word == "tandem" || word.ends_with("/bin/tandem")
    };
    let places = words.iter().enumerate().filter(|(_, word)| is_tandem(word)).map(|(place, _)| place);
    places.map(|place| words[place + 1..].to_vec()).collect()
}

/// The first of `words` that names no subcommand and no option, if there is one. Other words are arguments, which are not
/// looked at.
fn unknown<'a>(cli: &Command, words: &[&'a str]) -> Option<&'a str> {
    let mut command = cli;
    let mut is_value = false;
    for &word in words {
        let name = word.trim_matches(['`', '"', '\'', ',', ';', ':', '.', ')', '[', ']']);
        if ["--", "|", "||", "&", "&&", ">", "#"].contains(&name) {
            break;
        }
        let is_foreign = command.get_positionals().any(|argument| argument.is_trailing_var_arg_set());
        if is_foreign && !is_value && !name.starts_with('-') {
            // Another program's words.
            break;
        }
        // An option's value, an option of one letter, or an argument.
        let is_other = std::mem::take(&mut is_value) || name.starts_with('-') || !command.has_subcommands();
        if let Some(option) = name.strip_prefix("--") {
            let long = option.split('=').next();
            let Some(known) = command.get_arguments().find(|known| known.get_long() == long) else { return Some(word) };
            is_value = !option.contains('=') && known.get_action().takes_values();
        } else if !is_other && !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c == '-') {
            let Some(known) = command.find_subcommand(name) else { return Some(word) };
            command = known;
        }
        if word.contains([')', '`', ';']) {
            break;
        }
    }
    None
}

#[test]
fn the_readme_is_short() {
    let count = read("README.md").lines().count();
    assert!(count <= README_LINES_MAX, "README.md has {count} lines: what is no first step belongs into docs/");
}

#[test]
fn every_promise_has_a_test_of_its_name() {
    let tests: Vec<String> = fs::read_dir(root().join("tests/it"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .map(|path| fs::read_to_string(path).unwrap())
        .collect();
    let text = read("docs/promises.md");
    let rows = text.lines().filter(|line| line.starts_with("| ") && line.contains('`'));
    let mut count = 0;
    for row in rows {
        let names = row.trim_end_matches([' ', '|']).rsplit('|').next().unwrap();
        for name in names.split('`').skip(1).step_by(2) {
            let here = tests.iter().any(|text| text.contains(&format!("fn {name}()")));
            assert!(here, "docs/promises.md names `{name}`, which is no test");
            count += 1;
        }
    }
    assert!(count > 150, "only {count} promises were read");
}

#[test]
fn continuous_integration_runs_the_readmes_test_command() {
    let text = read("README.md");
    let command = text.lines().find(|line| line.starts_with("cargo test")).unwrap();
    let command = command.split('#').next().unwrap().trim();
    let ci = read(".ci/run");
    let runs = |line: &str| line.strip_prefix("if ! ").is_some_and(|it| it.starts_with(&format!("{command} 2>&1 |")));
    assert!(ci.lines().any(runs), ".ci/run does not run `{command}`");
}

#[test]
fn every_link_leads_to_a_file_and_a_heading() {
    let mut count = 0;
    for document in documents() {
        let text = read(&document);
        for link in links(&text).into_iter().filter(|link| !link.contains("://")) {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let path = root().join(&document);
            let path = if file.is_empty() { path } else { path.parent().unwrap().join(file) };
            assert!(path.exists(), "{document} links to {link}, which is not there");
            if !anchor.is_empty() {
                let anchors = anchors(&fs::read_to_string(&path).unwrap());
                assert!(anchors.contains(anchor), "{document} links to {link}, which is no heading there: {anchors:?}");
            }
            count += 1;
        }
    }
    assert!(count > 50, "only {count} links were read");
}

#[test]
fn the_contents_name_every_page() {
    let contents = read("docs/SUMMARY.md");
    let named = links(&contents);
    for page in pages().iter().filter(|page| *page != "SUMMARY.md") {
        assert!(named.contains(&page.as_str()), "docs/SUMMARY.md does not name {page}");
    }
}

#[test]
fn every_command_in_the_documents_exists() {
    let mut cli = Cli::command();
    // Passes the flags of every command on to the subcommands, as the parser does.
    cli.build();
    let mut count = 0;
    for document in documents() {
        for code in code(&read(&document)) {
            for words in commands(&code) {
                if let Some(word) = unknown(&cli, &words) {
                    panic!("{document}: tandem knows no `{word}` here: {code}");
                }
                count += 1;
            }
        }
    }
    assert!(count > 100, "only {count} commands were read");
}

/// The page quotes each message in a line of its own, where `…` stands for what differs from case to case.
#[test]
fn every_message_that_is_explained_is_said_by_the_code() {
    let sources = files(&source(), ".rs");
    let texts = sources.iter().map(|path| fs::read_to_string(path).unwrap());
    // A string goes on after a backslash at the end of its line.
    let texts: Vec<String> = texts.map(|text| text.split("\\\n").map(str::trim_start).collect()).collect();
    let page = read("docs/troubleshooting.md");
    let mut count = 0;
    for quote in page.lines().filter_map(|line| line.strip_prefix("> ")) {
        let parts = quote.split('…').map(|part| part.trim_matches(|c: char| !c.is_alphanumeric()));
        for part in parts.filter(|part| !part.is_empty()) {
            assert!(texts.iter().any(|text| text.contains(part)), "no file of src/ says `{part}`: {quote}");
            count += 1;
        }
    }
    assert!(count > 40, "only {count} parts of messages were read");
}
