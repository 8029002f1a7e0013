//! That the table of `docs/doctor.md` lists the checks as they are: it is made from them. `UPDATE_EXPECT=1` writes it anew.

use std::fs;
use std::path::Path;

use super::checks::{CHECKS, Group};

const BEGIN: &str = "<!-- The table of the checks is made from the code: UPDATE_EXPECT=1 writes it anew. -->\n";
const END: &str = "<!-- The end of the table. -->\n";

fn table() -> String {
    let mut table = String::new();
    for group in Group::ALL {
        table.push_str(&format!("\n### {}\n\n| check | what it looks at | more |\n|---|---|---|\n", group.word()));
        for check in CHECKS.iter().filter(|check| check.group == group) {
            let (page, section) = check.more;
            let link = if page == "doctor" { format!("#{section}") } else { format!("{page}.md#{section}") };
            table.push_str(&format!("| `{}` | {} | [{page}]({link}) |\n", check.name, check.looks_at));
        }
    }
    table.push('\n');
    table
}

#[test]
fn the_page_lists_every_check_as_it_is() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/doctor.md");
    let text = fs::read_to_string(&path).unwrap();
    let begin = text.find(BEGIN).unwrap() + BEGIN.len();
    let end = text.find(END).unwrap();
    let expected = format!("{}{}{}", &text[..begin], table(), &text[end..]);
    expect_test::expect_file!["../../docs/doctor.md"].assert_eq(&expected);
}
