//! That each line is read as python-dotenv or Docker Compose reads it.

use super::*;

fn values(text: &str) -> Vec<(usize, String, String)> {
    let outer = |name: &str| (name == "HOME").then(|| "/home/ann".to_owned());
    let (variables, bad) = parse(text, &outer);
    assert_eq!(bad, []);
    variables.into_iter().map(|variable| (variable.line, variable.name, variable.value)).collect()
}

fn value_of(text: &str) -> String {
    values(&format!("A={text}")).remove(0).2
}

#[test]
fn lines_are_read_as_python_dotenv_and_compose_read_them() {
    let read = values("\u{feff}# a comment\n\nexport A = one two \r\nB=\"x\ny\" # both\nC=${A}${NO:-!}${NO}$A\n");
    let expected = [(3, "A", "one two"), (4, "B", "x\ny"), (6, "C", "one two!$A")];
    assert_eq!(read, expected.map(|(line, name, value)| (line, name.to_owned(), value.to_owned())));
}

#[test]
fn passwords_survive() {
    assert_eq!(value_of("pa$s#w'o\"r\\d%@"), "pa$s#w'o\"r\\d%@");
    assert_eq!(value_of("'a${HOME}#\"\\n'"), "a${HOME}#\"\\n");
    assert_eq!(value_of(r#""a\"b\\\$\x${HOME}" # comment"#), r#"a"b\$\x/home/ann"#);
    assert_eq!(value_of("a b # comment"), "a b");
    assert_eq!(value_of(" # nothing"), "");
    assert_eq!(value_of("a${open"), "a${open");
    assert_eq!(value_of("${not a name}"), "${not a name}");
}

#[test]
fn bad_lines_are_named_without_their_text() {
    let text =
        "no equals\n=x\nOK=1\nB='secret' x\nNUL=sec\0ret\nA B=secret\n{\"secret\": 1}\nC=${NO:?secret}\nD=\"open\n";
    let (variables, bad) = parse(text, &|_| None);
    assert_eq!(variables.len(), 1);
    assert_eq!(bad.iter().map(|bad| bad.line).collect::<Vec<_>>(), [1, 2, 4, 5, 6, 7, 8, 9]);
    assert!(bad.iter().all(|bad| !bad.message.contains("secret")));
}

/// Whose reading it is where python-dotenv 1.2 reads it otherwise; what that makes of it stands beside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ours {
    Same,
    Compose(&'static str),
    Refused,
}

/// A file, and the variables in it as `NAME=value`, with `|` between them.
const FILES: &[(&str, &str, Ours)] = {
    use Ours::{Compose, Refused, Same};
    &[
        ("A=1", "A=1", Same),
        ("A", "", Same),
        ("export A", "", Same),
        ("A # comment", "", Same),
        ("export\tA=1", "A=1", Same),
        ("export   A = 1", "A=1", Same),
        ("exportA=1", "exportA=1", Same),
        ("'A'=1", "A=1", Same),
        ("export 'A' = '1'", "A=1", Same),
        ("2FA=1", "2FA=1", Same),
        ("A.B-C=1", "A.B-C=1", Same),
        ("GRÖSSE=1", "GRÖSSE=1", Same),
        ("A=1\rB=2", "A=1|B=2", Same),
        ("A=1\r\nB=2\r\n", "A=1|B=2", Same),
        ("A='1\r\n2'", "A=1\n2", Same),
        ("A=\"1  \n  2\"", "A=1  \n  2", Same),
        ("A='it\\'s'", "A=it's", Same),
        ("A='C:\\\\x'", "A=C:\\x", Same),
        ("A='a\\nb'", "A=a\\nb", Same),
        ("A=\"a\\\"b\"", "A=a\"b", Same),
        ("A=\"a\\'b\"", "A=a'b", Same),
        ("A=\"a\\bc\\v\\a\\f\"", "A=a\u{8}c\u{b}\u{7}\u{c}", Same),
        ("A=\"a\\\\\"", "A=a\\", Same),
        ("A=\"a\\qb\"", "A=a\\qb", Same),
        ("A=a\\nb", "A=a\\nb", Same),
        ("A=#x", "A=#x", Same),
        ("A= #x", "A=", Same),
        ("A=x#y #z", "A=x#y", Same),
        ("A='x' # it's", "A=x", Same),
        ("A='x'# it's", "A=x", Same),
        ("A=it's", "A=it's", Same),
        ("A=a=b:c", "A=a=b:c", Same),
        ("A=", "A=", Same),
        ("A=\"\"", "A=", Same),
        ("A=1\nA=2", "A=1|A=2", Same),
        ("A=1\nB=${A}2", "A=1|B=12", Same),
        ("B=${C:-3}${C}", "B=3", Same),
        ("A=$B$$", "A=$B$$", Same),
        ("A={\"a\": 1}", "A={\"a\": 1}", Same),
        ("\u{feff}A=1", "A=1", Same),
        ("A=\u{a0}x\u{a0}", "A=x", Same),
        ("A: 1", "A=1", Compose("skipped")),
        ("A:1", "A=1", Compose("A:1 without a value")),
        ("A: 'x: y'", "A=x: y", Compose("skipped")),
        ("A='${HOME}'", "A=${HOME}", Compose("A=/home/ann")),
        ("A=\"\\${HOME}\"", "A=${HOME}", Compose("A=\\/home/ann")),
        ("A=\nB=${A:-x}", "A=|B=x", Compose("B=")),
        ("B=${C-x}", "B=x", Compose("B=")),
        ("B=${C:-${HOME}}", "B=/home/ann", Compose("B=${HOME}")),
        ("A=1\nB=${A:+x}${C:+y}", "A=1|B=x", Compose("as it stands")),
        ("A='x' y", "", Refused),
        ("A='x", "", Refused),
        ("A B=1", "", Refused),
        ("A=\0", "", Refused),
    ]
};

#[test]
fn files_are_read_as_either_dialect_reads_them() {
    for (text, expected, ours) in FILES {
        let outer = |name: &str| (name == "HOME").then(|| "/home/ann".to_owned());
        let (variables, bad) = parse(text, &outer);
        let read: Vec<_> = variables.iter().map(|it| format!("{}={}", it.name, it.value)).collect();
        assert_eq!((read.join("|").as_str(), bad.len()), (*expected, usize::from(*ours == Ours::Refused)), "{text:?}");
    }
}
