//! A Python file as statements, read as text. Pure.
//!
//! It knows what a reader of lines must know not to be fooled: strings, comments, brackets and continued lines, and in which
//! block a statement stands. It knows no grammar beyond that.

/// Where a statement stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Importing the file runs it: at its top level, or there in an `if`, `try` or `with`.
    Module,
    /// Only running the file as a program does: below `if __name__ == "__main__"`.
    Main,
    /// In a function, in a class, or where only type checkers read.
    Inside,
}

/// One statement, or the head of a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// From 1.
    pub line: usize,
    pub scope: Scope,
    /// Without comments and without what stands in strings; one space for any gap.
    pub code: String,
    /// What stands in its strings.
    pub strings: Vec<String>,
}

/// The statements of `text`.
pub fn statements(text: &str) -> Vec<Statement> {
    let mut found = Vec::new();
    let mut blocks: Vec<(usize, Scope)> = Vec::new();
    for raw in split(text) {
        while blocks.last().is_some_and(|(indent, _)| *indent >= raw.indent) {
            blocks.pop();
        }
        let scope = blocks.last().map_or(Scope::Module, |(_, scope)| *scope);
        let opens = |word: &str| raw.code.strip_prefix(word).is_some_and(|rest| rest.starts_with([' ', '(']));
        if raw.code.ends_with(':') || opens("def") || opens("class") || opens("async def") {
            let inside = match scope {
                Scope::Module if opens("def") || opens("class") || opens("async def") => Scope::Inside,
                Scope::Module if raw.code.contains("TYPE_CHECKING") => Scope::Inside,
                Scope::Module if opens("if") && raw.code.contains("__name__") => Scope::Main,
                Scope::Main if opens("def") || opens("class") || opens("async def") => Scope::Inside,
                scope => scope,
            };
            blocks.push((raw.indent, inside));
        }
        found.push(Statement { line: raw.line, scope, code: raw.code, strings: raw.strings });
    }
    found
}

#[derive(Default)]
struct Raw {
    line: usize,
    indent: usize,
    code: String,
    strings: Vec<String>,
}

impl Raw {
    fn push(&mut self, letter: char) {
        if letter.is_whitespace() {
            if !self.code.is_empty() && !self.code.ends_with(' ') {
                self.code.push(' ');
            }
        } else {
            self.code.push(letter);
        }
    }
}

/// Cut `text` into logical lines, and these at each `;`.
fn split(text: &str) -> Vec<Raw> {
    let letters: Vec<char> = text.replace("\r\n", "\n").chars().collect();
    let (mut found, mut current) = (Vec::new(), Raw { line: 1, ..Raw::default() });
    let (mut line, mut depth, mut at) = (1, 0_usize, 0);
    let mut is_start = true;
    while let Some(&letter) = letters.get(at) {
        at += 1;
        match letter {
            ' ' | '\t' if is_start => current.indent += if letter == '\t' { 8 } else { 1 },
            '#' => at += letters[at..].iter().take_while(|letter| **letter != '\n').count(),
            '\\' if letters.get(at) == Some(&'\n') => {
                (at, line) = (at + 1, line + 1);
                current.push(' ');
            }
            '\n' => {
                line += 1;
                if depth > 0 {
                    current.push(' ');
                } else {
                    end(&mut found, &mut current, line, 0);
                    is_start = true;
                }
            }
            ';' if depth == 0 => {
                let indent = current.indent;
                end(&mut found, &mut current, line, indent);
            }
            '"' | '\'' => {
                is_start = false;
                let (content, past) = string(&letters, at - 1);
                line += letters[at - 1..past].iter().filter(|letter| **letter == '\n').count();
                at = past;
                current.code.push_str("\"\"");
                current.strings.push(content);
            }
            letter => {
                is_start = false;
                depth = match letter {
                    '(' | '[' | '{' => depth + 1,
                    ')' | ']' | '}' => depth.saturating_sub(1),
                    _ => depth,
                };
                current.push(letter);
            }
        }
    }
    end(&mut found, &mut current, line, 0);
    found
}

/// Close the statement under way; the next one begins in `line`.
fn end(found: &mut Vec<Raw>, current: &mut Raw, line: usize, indent: usize) {
    let mut done = std::mem::replace(current, Raw { line, indent, ..Raw::default() });
    done.code.truncate(done.code.trim_end().len());
    if !done.code.is_empty() {
        found.push(done);
    }
}

/// The content of the string whose quote stands at `start`, and where it is past.
fn string(letters: &[char], start: usize) -> (String, usize) {
    let quote = letters[start];
    let is_triple = letters.get(start + 1) == Some(&quote) && letters.get(start + 2) == Some(&quote);
    let (mut at, length) = if is_triple { (start + 3, 3) } else { (start + 1, 1) };
    let mut content = String::new();
    while let Some(&letter) = letters.get(at) {
        match letter {
            // A raw string keeps the backslash; its quote is not the end either.
            '\\' => {
                content.extend(letters.get(at + 1));
                at += 2;
            }
            // A string that is not closed ends with its line, as in code that is being written.
            '\n' if !is_triple => return (content, at),
            _ if letters[at..].iter().take(length).filter(|letter| **letter == quote).count() == length => {
                return (content, at + length);
            }
            _ => {
                content.push(letter);
                at += 1;
            }
        }
    }
    (content, letters.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<(usize, Scope, String)> {
        statements(text).into_iter().map(|it| (it.line, it.scope, it.code)).collect()
    }

    #[test]
    fn statements_are_told_from_what_only_looks_like_one() {
        let text = "\"\"\"app = FastAPI()\n'''\n\"\"\"\n# app = FastAPI()\nimport os; import sys\n\
                    app = FastAPI(  # the one\n    title='it\\'s # no comment',\n)\nname = \\\n    'x'\n\
                    if DEBUG:\n    app.debug = True\n";
        assert_eq!(
            read(text),
            [
                (1, Scope::Module, "\"\"".to_owned()),
                (5, Scope::Module, "import os".to_owned()),
                (5, Scope::Module, "import sys".to_owned()),
                (6, Scope::Module, "app = FastAPI( title=\"\", )".to_owned()),
                (9, Scope::Module, "name = \"\"".to_owned()),
                (11, Scope::Module, "if DEBUG:".to_owned()),
                (12, Scope::Module, "app.debug = True".to_owned()),
            ]
        );
        assert_eq!(statements(text)[3].strings, ["it's # no comment"]);
    }

    #[test]
    fn blocks_say_who_runs_a_statement() {
        let text = "def make(\n    a=1,\n):\n    app = FastAPI()\n\n    return app\ntry:\n    app = make()\nexcept E:\n\
                    \tapp = None\nif TYPE_CHECKING:\n  app = 1\nif __name__ == '__main__':\n    import uvicorn\n\
                    \x20   uvicorn.run('main:app')\nclass A: pass\nx = 1\n";
        let scopes: Vec<_> = read(text).into_iter().map(|(line, scope, _)| (line, scope)).collect();
        use Scope::{Inside, Main, Module};
        assert_eq!(
            scopes,
            [
                (1, Module),
                (4, Inside),
                (6, Inside),
                (7, Module),
                (8, Module),
                (9, Module),
                (10, Module),
                (11, Module),
                (12, Inside),
                (13, Module),
                (14, Main),
                (15, Main),
                (16, Module),
                (17, Module),
            ]
        );
        assert_eq!(read("x = 'not closed\ny = 1\n").len(), 2);
        assert_eq!(read("x = (1,\n").len(), 1, "a file that ends in the middle");
        assert_eq!(read(""), []);
    }
}
