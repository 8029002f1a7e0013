use std::io::Read;

use super::*;

const CLEAN: &str = r#"--
-- PostgreSQL database dump
--

-- Dumped from database version 16.11
-- Dumped by pg_dump version 16.11

CREATE TABLE public."odd "" name" (
    id integer,
    body text
);

ALTER TABLE public."odd "" name" OWNER TO "some one";
GRANT SELECT ON TABLE public.t TO reader WITH GRANT OPTION;

COPY public."odd "" name" (id, "the, body") FROM stdin;
1	one
2	pg_dump: nothing that it says
\.

COPY public.single (only) FROM stdin;
alone
\.

--
-- PostgreSQL database dump complete
--

"#;

fn repaired(text: &str) -> Result<(String, Found), NotRepaired> {
    let mut out = Vec::new();
    let found = repair(text.as_bytes(), &mut out)?;
    Ok((String::from_utf8(out).unwrap(), found))
}

/// `CLEAN` as a script writes it, with each message at the place that is told.
fn mixed(messages: &[(&str, usize)]) -> String {
    let mut text = CLEAN.to_owned();
    let mut sorted = messages.to_vec();
    sorted.sort_by_key(|(_, at)| std::cmp::Reverse(*at));
    for (message, at) in sorted {
        text.insert_str(at, &format!("pg_dump: {message}\n"));
    }
    format!("pg_dump: last built-in OID is 16383\n{text}")
}

#[test]
fn a_clean_dump_stays_as_it_is_and_is_counted() {
    let (text, found) = repaired(CLEAN).unwrap();
    assert_eq!(text, CLEAN);
    let rows: Vec<_> = found.rows.iter().map(|(table, rows)| (table.as_str(), *rows)).collect();
    assert_eq!(rows, [("public.odd \" name", 2), ("public.single", 1)]);
    assert_eq!(found.roles.iter().collect::<Vec<_>>(), ["reader", "some one"]);
    assert_eq!(found.server_version.as_deref(), Some("16.11"));
    assert_eq!(found.removed, 0);
}

#[test]
fn messages_at_every_place_are_taken_out() {
    for at in 0..=CLEAN.len() {
        let messages = [("creating TABLE \"public.odd \" name\"", at), ("reading extensions", CLEAN.len() - at)];
        let (text, found) = repaired(&mixed(&messages)).unwrap_or_else(|error| panic!("at {at}: {error}"));
        assert_eq!(text, CLEAN, "at {at}");
        assert_eq!(found.removed, 3);
    }
}

#[test]
fn rows_that_mimic_a_message_are_found_out() {
    let refused = |text: &str| repaired(text).unwrap_err().to_string();
    let row = mixed(&[]).replace("1\tone", "1\tpg_dump: reading schemas");
    assert!(refused(&row).contains("row 1 of public.odd \" name has 3 columns and not 2"), "{}", refused(&row));
    let whole = mixed(&[("reading schemas", 0)]).replace("alone", "pg_dump: reading schemas");
    assert!(refused(&whole).contains("`reading schemas` comes twice"), "{}", refused(&whole));
    // In a clean dump no message is looked for.
    let clean = CLEAN.replace("1\tone", "1\tpg_dump: reading schemas");
    assert_eq!(repaired(&clean).unwrap().0, clean);
    // A message in the middle of a row's text is that row's own.
    let inside = mixed(&[]).replace("1\tone", "pg_dump: reading schemas\tone");
    assert!(repaired(&inside).unwrap().0.contains("pg_dump: reading schemas\tone"));
}

#[test]
fn what_is_cut_failed_or_no_dump_is_refused() {
    let trailer = CLEAN.find("-- PostgreSQL database dump complete").unwrap();
    assert!(matches!(repaired(&CLEAN[..trailer]), Err(NotRepaired::CutShort)));
    let failed = mixed(&[("error: query failed: lost", 30)]);
    assert!(matches!(repaired(&failed), Err(NotRepaired::Failed(why)) if why == "error: query failed: lost"));
    assert!(matches!(repaired("PGDMP\x01"), Err(NotRepaired::Archive)));
    assert!(matches!(repaired("<html>"), Err(NotRepaired::NotPlain)));
    assert!(matches!(repaired(""), Err(NotRepaired::NotPlain)));
    let warned = mixed(&[("warning: there are circular foreign-key constraints", 5)]);
    assert_eq!(repaired(&warned).unwrap().1.warnings, ["warning: there are circular foreign-key constraints"]);
    let broken = std::io::BufReader::new(CLEAN.as_bytes().chain(Broken));
    assert!(matches!(repair(broken, std::io::sink()), Err(NotRepaired::Read(_))));
}

struct Broken;

impl Read for Broken {
    fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
        Err(std::io::ErrorKind::UnexpectedEof.into())
    }
}
