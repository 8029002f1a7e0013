//! What a Python module defines, as far as an application can be told from it. Pure.

use super::source::{Scope, Statement, statements};

/// A name that an import binds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Import {
    /// What it stands for, such as `fastapi.FastAPI`; leading dots where it is relative.
    pub full: String,
    /// `*` for all names of a module.
    pub name: String,
}

/// A name that the module gives a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assigned {
    pub line: usize,
    pub name: String,
    /// The function or class that is called for the value, as it is written.
    pub callee: Option<String>,
}

/// A function at the module's top level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    pub line: usize,
    pub name: String,
    /// Its parameters, without their types and defaults.
    pub parameters: Vec<String>,
    /// Whether every parameter has a default.
    pub needs_nothing: bool,
    pub returns: Option<String>,
    pub is_async: bool,
}

/// A class at the module's top level, and its bases.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Class {
    pub name: String,
    pub bases: Vec<String>,
}

/// What a module consists of.
#[derive(Clone, Debug, Default)]
pub struct Module {
    pub imports: Vec<Import>,
    /// What is imported anywhere in it, functions included: modules, or what is in them.
    pub imported: Vec<String>,
    pub assigned: Vec<Assigned>,
    pub functions: Vec<Function>,
    pub classes: Vec<Class>,
    /// `module:attribute` that it gives to `uvicorn.run` when it is run as a program, with the line.
    pub run: Vec<(usize, String)>,
}

impl Module {
    pub fn read(text: &str) -> Self {
        let mut module = Self::default();
        for statement in statements(text) {
            module.take(&statement);
        }
        module
    }

    fn take(&mut self, statement: &Statement) {
        let code = statement.code.as_str();
        if is_call_of(code, "uvicorn.run")
            && let Some(app) = statement.strings.iter().find(|text| names_app(text))
        {
            // In whatever function: its name says what it does.
            self.run.push((statement.line, app.clone()));
        }
        let imports = imports(code);
        self.imported.extend(imports.iter().map(|(full, _)| full.clone()));
        if statement.scope != Scope::Module {
            return;
        }
        if !imports.is_empty() {
            self.imports.extend(imports.into_iter().map(|(full, name)| match name {
                Some(name) => Import { full, name },
                // `import a.b` binds `a`.
                None => {
                    let first = full.split('.').next().unwrap_or_default().to_owned();
                    Import { full: first.clone(), name: first }
                }
            }));
        } else if let Some(function) = function(statement) {
            self.functions.push(function);
        } else if let Some(rest) = code.strip_prefix("class ") {
            let (name, rest) = identifier(rest);
            let bases = rest.strip_prefix('(').and_then(|rest| rest.split_once(')')).map_or("", |(bases, _)| bases);
            let bases = bases.split(',').map(|base| base.trim().to_owned()).filter(|base| !base.is_empty()).collect();
            self.classes.push(Class { name: name.to_owned(), bases });
        } else {
            self.assigned.extend(assigned(statement));
        }
    }

    /// What `written` (`FastAPI`, `fastapi.FastAPI`) stands for, where an import says it.
    pub fn resolve(&self, written: &str) -> String {
        let (first, rest) = written.split_once('.').map_or((written, ""), |(first, rest)| (first, rest));
        let import = self.imports.iter().rev().find(|import| import.name == first);
        match (import, rest) {
            (None, _) => written.to_owned(),
            (Some(import), "") => import.full.clone(),
            (Some(import), rest) => format!("{}.{rest}", import.full),
        }
    }

    /// Modules of which all names are imported.
    pub fn stars(&self) -> impl Iterator<Item = &str> {
        self.imports.iter().filter(|import| import.name == "*").filter_map(|import| import.full.strip_suffix(".*"))
    }
}

/// What an import statement imports, and the name that it gets, unless that is its first part.
fn imports(code: &str) -> Vec<(String, Option<String>)> {
    if let Some(rest) = code.strip_prefix("import ") {
        let each = rest.split(',').map(|part| bound(part.trim()));
        return each.map(|(full, name)| (full.to_owned(), (name != full).then(|| name.to_owned()))).collect();
    }
    let from = code.strip_prefix("from ");
    let from = from.and_then(|rest| rest.split_once(" import ").or_else(|| rest.split_once(" import(")));
    let Some((module, names)) = from else { return Vec::new() };
    let (module, names) = (module.trim(), names.trim_matches(['(', ')', ' ']));
    let dot = if module.ends_with('.') { "" } else { "." };
    let each = names.split(',').map(str::trim).filter(|part| !part.is_empty()).map(bound);
    each.map(|(name, bound)| (format!("{module}{dot}{name}"), Some(bound.to_owned()))).collect()
}

/// Whether `text` is `module:attribute`, as Uvicorn takes it.
pub fn names_app(text: &str) -> bool {
    let is_path = |part: &str| {
        let is_letter = |letter: char| letter.is_alphanumeric() || letter == '_';
        part.split('.')
            .all(|name| !name.is_empty() && name.chars().all(is_letter) && !name.starts_with(char::is_numeric))
    };
    text.split_once(':').is_some_and(|(module, attribute)| is_path(module) && is_path(attribute))
}

fn is_call_of(code: &str, function: &str) -> bool {
    let call = code.split('=').next_back().unwrap_or(code);
    [code, call].iter().any(|code| code.trim_start().strip_prefix(function).is_some_and(|rest| rest.starts_with('(')))
}

/// `a as b`: what it is and what it is called; without `as` both are the same.
fn bound(part: &str) -> (&str, &str) {
    part.split_once(" as ").map_or((part, part), |(full, name)| (full.trim(), name.trim()))
}

/// The name at the start of `code`, and the rest.
fn identifier(code: &str) -> (&str, &str) {
    let is_letter = |letter: char| letter.is_alphanumeric() || letter == '_';
    code.split_at(code.find(|letter| !is_letter(letter)).unwrap_or(code.len()))
}

fn function(statement: &Statement) -> Option<Function> {
    let (rest, is_async) = match statement.code.strip_prefix("async def ") {
        Some(rest) => (rest, true),
        None => (statement.code.strip_prefix("def ")?, false),
    };
    let (name, rest) = identifier(rest);
    let end = closing(rest)?;
    let (inside, after) = (rest.get(1..end)?, rest.get(end + 1..)?);
    let written: Vec<&str> = parts(inside).into_iter().filter(|part| !matches!(*part, "/" | "*")).collect();
    let needs_nothing = written.iter().all(|part| part.starts_with('*') || part.contains('='));
    let parameters = written.iter().map(|part| identifier(part.trim_start_matches('*')).0.to_owned()).collect();
    let returns = after.trim().strip_prefix("->").map(|rest| rest.trim().trim_end_matches(':').trim().to_owned());
    Some(Function { line: statement.line, name: name.to_owned(), parameters, needs_nothing, returns, is_async })
}

/// Where the bracket that opens at the start of `code` closes.
fn closing(code: &str) -> Option<usize> {
    let mut depth = 0_usize;
    for (at, letter) in code.char_indices() {
        match letter {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth == 0 {
            return Some(at).filter(|_| at > 0);
        }
    }
    None
}

/// The parts of `code` between commas that stand in no bracket.
fn parts(code: &str) -> Vec<&str> {
    cut(code, ',').into_iter().map(str::trim).filter(|part| !part.is_empty()).collect()
}

/// `code` cut at each `sign` that stands in no bracket and is a sign of its own: not one of `==`.
fn cut(code: &str, sign: char) -> Vec<&str> {
    let (mut found, mut depth, mut start) = (Vec::new(), 0_usize, 0);
    let bytes = code.as_bytes();
    for (at, letter) in code.char_indices() {
        match letter {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            letter if letter == sign && depth == 0 => {
                let before = at.checked_sub(1).and_then(|at| bytes.get(at)).copied().unwrap_or_default();
                let is_part = bytes.get(at + 1) == Some(&b'=') || b"=!<>:+-*/%&|^@".contains(&before);
                if sign != '=' || !is_part {
                    found.push(&code[start..at]);
                    start = at + 1;
                }
            }
            _ => {}
        }
    }
    found.push(&code[start..]);
    found
}

/// The names that an assignment binds.
fn assigned(statement: &Statement) -> Vec<Assigned> {
    let cut = cut(&statement.code, '=');
    let Some((value, targets)) = cut.split_last().filter(|(_, targets)| !targets.is_empty()) else { return Vec::new() };
    let value = value.trim();
    let path = value.find(|letter: char| !(letter.is_alphanumeric() || "_.".contains(letter))).unwrap_or(value.len());
    let callee = value[path..].trim_start().starts_with('(').then(|| value[..path].to_owned());
    let mut found = Vec::new();
    for target in targets {
        // Of `app, rt = fast_app()` the first, and of `app: FastAPI = …` what stands before the type.
        let first = target.split([',', ':']).next().unwrap_or_default().trim().trim_start_matches('(');
        if !first.is_empty() && identifier(first).1.is_empty() {
            let callee = callee.clone().filter(|callee| !callee.is_empty());
            found.push(Assigned { line: statement.line, name: first.to_owned(), callee });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_traced_to_what_they_stand_for() {
        let module = Module::read(
            "import fastapi, os.path as p\nfrom fastapi import FastAPI as F, APIRouter\nfrom . import x\n\
             from .core import (\n    make,  # why\n    other as o,\n)\nfrom shop.web import *\n\
             app: F = F(title='a=b')\napi = other = fastapi.FastAPI(\n)\nx == F()\ncount += make(1)\nname = 'app'\n\
             app, rt = fast_app()\napp.state.x = 1\n",
        );
        let bound: Vec<_> = module.imports.iter().map(|it| (it.full.as_str(), it.name.as_str())).collect();
        assert_eq!(
            bound,
            [
                ("fastapi", "fastapi"),
                ("os.path", "p"),
                ("fastapi.FastAPI", "F"),
                ("fastapi.APIRouter", "APIRouter"),
                (".x", "x"),
                (".core.make", "make"),
                (".core.other", "o"),
                ("shop.web.*", "*"),
            ]
        );
        let of = |name: &str| -> Vec<Option<&str>> {
            module.assigned.iter().filter(|it| it.name == name).map(|it| it.callee.as_deref()).collect()
        };
        assert_eq!(of("app"), [Some("F"), Some("fast_app")]);
        assert_eq!((of("api"), of("other")), (vec![Some("fastapi.FastAPI")], vec![Some("fastapi.FastAPI")]));
        assert_eq!((of("name"), of("x"), of("count")), (vec![None], vec![], vec![]));
        assert_eq!(module.resolve("F"), "fastapi.FastAPI");
        assert_eq!(module.resolve("fastapi.FastAPI"), "fastapi.FastAPI");
        assert_eq!(module.resolve("unknown.X"), "unknown.X");
        assert_eq!(module.stars().collect::<Vec<_>>(), ["shop.web"]);
    }

    #[test]
    fn functions_and_classes_say_what_they_take() {
        let module = Module::read(
            "def create_app(settings: Settings = Settings(a=1), *, debug: dict[str, int] = {}) -> FastAPI:\n    pass\n\
             async def app(scope, receive, send):\n    pass\ndef need(it, *args, **more): pass\n\
             class Api(FastAPI, Mixin):\n    def create_app(self): pass\n\
             if __name__ == '__main__':\n    uvicorn.run('shop.main:app', port=1)\n",
        );
        let names: Vec<_> = module.functions.iter().map(|it| (it.name.as_str(), it.needs_nothing, it.line)).collect();
        assert_eq!(names, [("create_app", true, 1), ("app", false, 3), ("need", false, 5)]);
        assert_eq!(module.functions[0].parameters, ["settings", "debug"]);
        assert_eq!(module.functions[0].returns.as_deref(), Some("FastAPI"));
        assert_eq!(module.functions[1].parameters, ["scope", "receive", "send"]);
        assert_eq!(module.classes, [Class { name: "Api".into(), bases: vec!["FastAPI".into(), "Mixin".into()] }]);
        assert_eq!(module.run, [(9, "shop.main:app".to_owned())]);
        assert!(names_app("a.b:c") && !names_app("a:") && !names_app("1:30") && !names_app("0.0.0.0:8000"));
    }
}
