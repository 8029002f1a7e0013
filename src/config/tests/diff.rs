//! Two readings of a configuration, and what lies between them.

use expect_test::{Expect, expect};

use super::{APP, Project, project};
use crate::config::{Loaded, changes};

/// What changes when these files take the place of `before`'s.
fn changed(before: &Project, files: &[(&str, &str)], expected: Expect) {
    let old = before.loaded();
    for (name, text) in files {
        std::fs::write(before.path().join(name), text).unwrap();
    }
    expected.assert_eq(&shown(&old, &before.loaded()));
}

fn shown(old: &Loaded, new: &Loaded) -> String {
    let changes = changes(old, new);
    changes.iter().map(|change| format!("{} {:?}", change.key, change.effect)).collect::<Vec<_>>().join("\n")
}

#[test]
fn every_sort_of_change_is_named_with_what_it_asks_for() {
    let file = "[workers]\napp = 'main:app'\ncount = 2\nenv = { A = '1', B = '2' }\n[postgres]\npassword = 'one'\n\
                [postgres.settings]\nwork_mem = '4MB'\n[[process]]\nname = 'a'\ncommand = ['a']\n\
                [[process]]\nname = 'b'\ncommand = ['b']\nenv = { T = '1' }\n";
    let project = project(&[("tandem.toml", file), (".env", "KEY=1\n"), ("src/x", "")]);
    let after = "[workers]\napp = 'main:app'\ncount = 3\napp_dir = 'src'\nenv = { A = '1', B = '3' }\npreload = true\n\
                 [postgres]\npassword = 'two'\n[[process]]\nname = 'b'\ncommand = ['b']\nenv = { T = '2' }\n\
                 [[process]]\nname = 'c'\ncommand = ['c']\n[hooks]\nafter_ready = ['true']\n[stop]\ngrace = '5s'\n";
    changed(
        &project,
        &[("tandem.toml", after), (".env", "KEY=2\nNEW=1\n")],
        expect![[r#"
            postgres.password Roll
            postgres.settings.work_mem Restart
            workers.app_dir Roll
            workers.count Live
            workers.env.B Roll
            workers.env.KEY Roll
            workers.env.NEW Roll
            workers.preload Roll
            stop.grace Roll
            hooks.after_ready Live
            process.b Restart
            process.c Restart
            process.a Restart"#]],
    );
    changed(&project, &[], expect![""]);
}

#[test]
fn another_way_to_write_it_is_no_change() {
    let project = project(&[("tandem.toml", APP)]);
    let written = "[workers]\napp = 'main:app'\napp_dir = './'\ncount = 4\nready_limit = 60\nlisten = 8000\n\
                   [postgres]\nport = 5432\nmode = 'managed'\n";
    changed(&project, &[("tandem.toml", written)], expect![""]);
    let moved = project.environment(&[("TANDEM_WORKERS__COUNT", "4")]);
    changed(&moved, &[("tandem.toml", APP)], expect![""]);
}

#[test]
fn a_secret_that_changed_is_named_and_not_shown() {
    let before = "[postgres]\npassword_file = 'secret'\n[workers]\napp = 'main:app'\n";
    let project = project(&[("tandem.toml", before), ("secret", "s3cret-one")]);
    let old = project.loaded();
    assert!(!format!("{old:?}").contains("s3cret"), "{old:?}");
    changed(&project, &[("secret", "s3cret-two")], expect!["postgres.password Roll"]);
}
