//! That the Python which comes with Tandem runs on every Python that it promises.

use std::path::PathBuf;

use crate::common::project::root;
use crate::tidy::{files, source};

/// The oldest that is promised.
const OLDEST: &str = "(3, 9)";

/// Reads each file as the oldest Python would, and finds types that only newer ones can evaluate: `int | None` outside of
/// annotations that are never evaluated.
const CHECK: &str = "
import ast, sys
oldest, bad = ast.literal_eval(sys.argv[1]), []
for path in sys.argv[2:]:
    text = open(path, encoding='utf-8').read()
    try:
        tree = ast.parse(text, path, feature_version=oldest)
    except SyntaxError as error:
        bad.append(f'{path}:{error.lineno}: {error.msg}')
        continue
    later = any(isinstance(n, ast.ImportFrom) and n.module == '__future__' and any(a.name == 'annotations' for a in n.names)
                for n in tree.body)
    notes = [] if later else [n.annotation for n in ast.walk(tree) if isinstance(n, (ast.arg, ast.AnnAssign)) and n.annotation]
    notes += [] if later else [n.returns for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef)) and n.returns]
    for note in notes:
        for part in ast.walk(note):
            if isinstance(part, ast.BinOp) and isinstance(part.op, ast.BitOr):
                bad.append(f'{path}:{part.lineno}: a type with | is evaluated')
sys.exit('\\n'.join(bad) or 0)
";

#[test]
fn no_python_of_tandems_needs_a_newer_one_than_it_promises() {
    let all: Vec<PathBuf> = files(&source(), ".py");
    assert!(all.len() > 8, "only {} files were seen", all.len());
    #[expect(clippy::disallowed_methods, reason = "a test reads what it tests with Python itself")]
    let output = std::process::Command::new("python3").args(["-c", CHECK, OLDEST]).args(&all).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).replace(root().to_str().unwrap(), "");
    assert!(output.status.success(), "{said}");
}
