//! The revisions that a project's Alembic knows, read from their files: Alembic itself would import the application.

use std::fs;
use std::path::{Path, PathBuf};

/// What is known without running anything: every revision, and those that no other one follows. `None` where Alembic is
/// configured in a way that only it understands.
pub fn revisions(dir: &Path) -> Option<(Vec<String>, Vec<String>)> {
    let texts = versions(dir)?.into_iter().filter_map(|path| fs::read_to_string(path).ok());
    let known: Vec<(String, Vec<String>)> = texts.filter_map(|text| revision(&text)).collect();
    let is_followed = |name: &String| known.iter().any(|(_, follows)| follows.contains(name));
    let all: Vec<String> = known.iter().map(|(name, _)| name.clone()).collect();
    let heads = all.iter().filter(|name| !is_followed(name)).cloned().collect();
    (!all.is_empty()).then_some((all, heads))
}

/// The files of revisions, as alembic.ini in `dir` says where they are.
fn versions(dir: &Path) -> Option<Vec<PathBuf>> {
    let text = fs::read_to_string(dir.join("alembic.ini")).ok()?;
    let said = |key: &str| {
        let line = text.lines().find_map(|line| line.trim_start().strip_prefix(key))?;
        line.trim_start().strip_prefix(['=', ':']).map(|value| value.trim().to_owned())
    };
    if said("version_locations").is_some_and(|value| !value.is_empty()) {
        return None;
    }
    let place = said("script_location")?.replace("%(here)s", &dir.display().to_string());
    // A package, as `package:directory` names it, is found by Python alone.
    if place.contains(':') || place.contains('%') {
        return None;
    }
    let entries = fs::read_dir(dir.join(place).join("versions")).ok()?.flatten();
    Some(entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|it| it == "py")).collect())
}

/// The revision that a file makes, and those that it follows.
fn revision(text: &str) -> Option<(String, Vec<String>)> {
    let assigned = |name: &str| {
        let begins =
            |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.trim_start().starts_with([':', '=']));
        let at = text.lines().position(|line| begins(&line))?;
        let rest: Vec<&str> = text.lines().skip(at).collect();
        let value = rest[0].split_once('=')?.1.to_owned();
        // A merge names several, one a line as formatters write them.
        let open = value.trim_start().starts_with('(') || value.trim_start().starts_with('[');
        let more = rest.iter().skip(1).take_while(|_| open && !value.contains([')', ']']));
        let mut whole = value.clone();
        for line in more {
            whole.push_str(line);
            if line.contains([')', ']']) {
                break;
            }
        }
        Some(quoted(&whole))
    };
    let name = assigned("revision")?.into_iter().next()?;
    Some((name, assigned("down_revision").unwrap_or_default()))
}

/// The quoted words of `text`, up to a comment.
fn quoted(text: &str) -> Vec<String> {
    let (mut words, mut rest) = (Vec::new(), text);
    while let Some(begin) = rest.find(['"', '\'', '#']) {
        let mark = rest[begin..].chars().next().unwrap_or('#');
        if mark == '#' {
            break;
        }
        rest = &rest[begin + 1..];
        let Some(end) = rest.find(mark) else { break };
        words.push(rest[..end].to_owned());
        rest = &rest[end + 1..];
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revisions_and_heads_are_read_from_their_files() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path();
        assert_eq!(revisions(dir), None);
        fs::write(dir.join("alembic.ini"), "[alembic]\nscript_location = %(here)s/alembic\n").unwrap();
        fs::create_dir_all(dir.join("alembic/versions")).unwrap();
        let write = |name: &str, text: &str| fs::write(dir.join("alembic/versions").join(name), text).unwrap();
        write("a.py", "\"\"\"first\"\"\"\nrevision = 'a1'\ndown_revision = None  # 'x'\n");
        write("b.py", "revision: str = \"b2\"\ndown_revision: Union[str, None] = \"a1\"\n");
        let (mut all, heads) = revisions(dir).unwrap();
        all.sort();
        assert_eq!((all, heads), (vec!["a1".to_owned(), "b2".into()], vec!["b2".to_owned()]));
        write("c.py", "revision = 'c3'\ndown_revision = 'a1'\n");
        assert_eq!(revisions(dir).unwrap().1.len(), 2);
        write("d.py", "revision = 'd4'\ndown_revision = (\n    'b2',\n    'c3',\n)\n");
        assert_eq!(revisions(dir).unwrap().1, ["d4"]);
        fs::write(dir.join("alembic.ini"), "script_location = package:migrations\n").unwrap();
        assert_eq!(revisions(dir), None);
    }
}
