//! YAML as a tree with the line of each node: aliases and merge keys resolved, within limits. Pure.

use std::collections::BTreeMap;

use granit_parser::{Event, Parser, ScalarStyle};

/// Where a node stands: its file, by number, and its line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    pub file: usize,
    pub line: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub place: Place,
    pub value: Value,
    /// `!reset` or `!override`, which Compose knows.
    pub tag: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Null,
    Scalar {
        text: String,
        /// As it was written, before variables were replaced.
        raw: String,
        /// The variables in it.
        uses: Vec<String>,
    },
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
}

/// What is wrong, and in which line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadYaml {
    pub line: usize,
    pub message: String,
}

/// Aliases may make a small file large: so many nodes are taken at most.
const NODES_MAX: usize = 50_000;
const DEPTH_MAX: usize = 64;

impl Node {
    pub fn get(&self, key: &str) -> Option<&Self> {
        self.entries().iter().find(|(name, _)| name == key).map(|(_, node)| node)
    }

    pub fn entries(&self) -> &[(String, Self)] {
        if let Value::Map(entries) = &self.value { entries } else { &[] }
    }

    pub fn items(&self) -> &[Self] {
        if let Value::List(items) = &self.value { items } else { &[] }
    }

    /// The text of a scalar.
    pub fn text(&self) -> Option<&str> {
        if let Value::Scalar { text, .. } = &self.value { Some(text) } else { None }
    }

    fn size(&self) -> usize {
        let inside: usize = match &self.value {
            Value::List(items) => items.iter().map(Self::size).sum(),
            Value::Map(entries) => entries.iter().map(|(_, node)| node.size()).sum(),
            Value::Null | Value::Scalar { .. } => 0,
        };
        inside + 1
    }
}

/// A list or a map that has begun and not ended.
struct Open {
    node: Node,
    anchor: usize,
    /// The key that waits for its value.
    key: Option<(String, usize)>,
}

#[derive(Default)]
struct Builder {
    file: usize,
    open: Vec<Open>,
    anchors: BTreeMap<usize, Node>,
    nodes: usize,
    root: Option<Node>,
}

/// Read `text`, the file of number `file`.
///
/// # Errors
/// It is no YAML, has more than one document, or is too large.
pub fn parse(text: &str, file: usize) -> Result<Node, BadYaml> {
    let mut builder = Builder { file, ..Builder::default() };
    let mut documents = 0;
    for next in Parser::new_from_str(text) {
        let (event, span) =
            next.map_err(|error| BadYaml { line: error.marker().line(), message: error.info().to_owned() })?;
        let line = span.start.line();
        if let Event::DocumentStart(..) = event {
            documents += 1;
        }
        if documents > 1 {
            return Err(BadYaml { line, message: "a second document begins: one file holds one".to_owned() });
        }
        builder.event(event, line).map_err(|message| BadYaml { line, message })?;
    }
    Ok(builder.root.unwrap_or(Node { place: Place { file, line: 1 }, value: Value::Null, tag: None }))
}

impl Builder {
    fn event(&mut self, event: Event<'_>, line: usize) -> Result<(), String> {
        let place = Place { file: self.file, line };
        let node = |value, tag: Option<String>| Node { place, value, tag };
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let is_null = style == ScalarStyle::Plain && ["", "~", "null", "Null", "NULL"].contains(&&*text);
                let value = if is_null {
                    Value::Null
                } else {
                    Value::Scalar { raw: text.to_string(), text: text.into_owned(), uses: Vec::new() }
                };
                self.done(node(value, tag.map(|tag| tag.suffix().to_owned())), anchor)
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.begin(node(Value::List(Vec::new()), tag.map(|tag| tag.suffix().to_owned())), anchor)
            }
            Event::MappingStart(_, anchor, tag) => {
                self.begin(node(Value::Map(Vec::new()), tag.map(|tag| tag.suffix().to_owned())), anchor)
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(open) = self.open.pop() else { return Ok(()) };
                self.done(open.node, open.anchor)
            }
            Event::Alias(anchor) => {
                let Some(node) = self.anchors.get(&anchor).cloned() else {
                    return Err("an alias stands inside what it names".to_owned());
                };
                self.nodes += node.size();
                self.done(node, 0)
            }
            _ => Ok(()),
        }
    }

    fn begin(&mut self, node: Node, anchor: usize) -> Result<(), String> {
        if self.open.len() >= DEPTH_MAX {
            return Err(format!("it is nested deeper than {DEPTH_MAX} levels"));
        }
        self.open.push(Open { node, anchor, key: None });
        Ok(())
    }

    fn done(&mut self, node: Node, anchor: usize) -> Result<(), String> {
        self.nodes += 1;
        if self.nodes > NODES_MAX {
            return Err(format!("it has more than {NODES_MAX} nodes, aliases counted as often as they are used"));
        }
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        let Some(open) = self.open.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        match (&mut open.node.value, open.key.take()) {
            (Value::List(items), _) => items.push(node),
            (Value::Map(entries), Some((key, _))) if key == "<<" => merge(entries, node)?,
            (Value::Map(entries), Some((key, line))) => {
                // What a merge key brought gives way.
                let merged = entries.iter().position(|(name, _)| *name == key);
                let is_twice = merged.is_some_and(|at| entries[at].1.place.line >= open.node.place.line);
                match merged {
                    Some(at) if !is_twice => entries[at].1 = node,
                    Some(_) => return Err(format!("the key {key} of line {line} stands here twice")),
                    None => entries.push((key, node)),
                }
            }
            (Value::Map(_), None) => match node.value {
                Value::Scalar { text, .. } => open.key = Some((text, node.place.line)),
                Value::Null => open.key = Some((String::new(), node.place.line)),
                Value::List(_) | Value::Map(_) => return Err("a key is a list or a map".to_owned()),
            },
            (Value::Null | Value::Scalar { .. }, _) => {}
        }
        Ok(())
    }
}

/// Take over the entries of `from`, a map or a list of maps, that are not there yet.
fn merge(entries: &mut Vec<(String, Node)>, from: Node) -> Result<(), String> {
    match from.value {
        Value::Map(more) => {
            for (key, node) in more {
                if !entries.iter().any(|(name, _)| *name == key) {
                    entries.push((key, node));
                }
            }
            Ok(())
        }
        Value::List(items) => items.into_iter().try_for_each(|item| merge(entries, item)),
        Value::Null => Ok(()),
        Value::Scalar { .. } => Err("`<<` merges maps, and this is none".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anchors_and_merge_keys_are_resolved_and_keep_their_lines() {
        let text =
            "x-base: &base\n  restart: always\n  env: {A: 1}\nb:\n  <<: *base\n  restart: \"no\"\n  more: [*base, ~]\n";
        let root = parse(text, 3).unwrap();
        let b = root.get("b").unwrap();
        assert_eq!(b.get("restart").unwrap().text(), Some("no"));
        assert_eq!(b.get("restart").unwrap().place, Place { file: 3, line: 6 });
        assert_eq!(b.get("env").unwrap().get("A").unwrap().text(), Some("1"));
        let more = b.get("more").unwrap().items();
        assert_eq!((more.len(), &more[1].value), (2, &Value::Null));
    }

    #[test]
    fn what_cannot_be_read_is_named_with_its_line() {
        let bomb: String =
            (1..20).map(|n| format!("a{n}: &a{n} [{0}, {0}, {0}, {0}]\n", format!("*a{}", n - 1))).collect();
        let deep = format!("{}1{}", "[".repeat(200), "]".repeat(200));
        for (text, line, why) in [
            ("a:\n  b: 1\n  b: 2\n".to_owned(), 3, "twice"),
            ("a: 1\n---\nb: 2\n".to_owned(), 2, "second document"),
            ("a: [1\nb: 2\n".to_owned(), 2, ""),
            (format!("a0: &a0 x\n{bomb}"), 9, "more than"),
            ("a: *nothing\n".to_owned(), 1, ""),
            (deep, 1, "nested"),
        ] {
            let bad = parse(&text, 0).unwrap_err();
            assert!(bad.message.contains(why) && bad.line >= line.min(1), "{text:.40}: {bad:?}");
        }
    }
}
