use std::sync::Arc;

use super::super::only::Only;
use super::*;

/// What psql gets of `text`, whatever pieces it comes in.
fn screened(text: &str, has_extensions: bool) -> Result<String, Refused> {
    let in_pieces = |size: usize| {
        let existing = match has_extensions {
            true => Existing {
                extensions: vec!["\"uuid-ossp\"".to_owned()],
                schemas: vec!["\"its own\"".to_owned()],
                ..Existing::default()
            },
            false => Existing::default(),
        };
        let (mut screen, mut out) = (Screen::new(existing), Vec::new());
        text.as_bytes().chunks(size).try_for_each(|piece| screen.pass(piece, &mut out))?;
        screen.finish(&mut out);
        Ok(String::from_utf8(out).unwrap())
    };
    let whole = in_pieces(text.len().max(1));
    for size in [1, 2, 3, 7] {
        assert_eq!(in_pieces(size), whole, "in pieces of {size}");
    }
    whole
}

const DUMP: &str = r#"--
-- PostgreSQL database dump \! no command
--

SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
/* a /* nested \! */ comment */
CREATE SCHEMA "odd "" \! name";
CREATE TABLE public.t (a text DEFAULT 'it''s \', b text CHECK (b ~ E'^\\w\'\\$' OR b ~ '^\d+$'));
CREATE FUNCTION public.f(a$b$c int) RETURNS text
    LANGUAGE plpgsql
    AS $_$ BEGIN RETURN '\!' || $1 || $x$ ; \! $x$; END $_$;
CREATE FUNCTION public.g() RETURNS int
    LANGUAGE sql
    BEGIN ATOMIC
 SELECT CASE WHEN true THEN 1 ELSE 2 END AS "case";
 SELECT 1;
END;
CREATE RULE r AS ON DELETE TO public.t DO INSTEAD (DELETE FROM public.u; SELECT 1;);
COMMENT ON TABLE public.t IS 'two
\! lines';
COMMENT ON COLUMN public.t.a IS E'three'
  'more \' \! and';
COPY public."odd ""("" t" (a, "b "" c", "FROM") FROM stdin;
1	\N	\\! x
\\.	\! not a command
\.

COPY public.t (a, b_2) FROM stdin;
x	\N
\.

COPY public.none  FROM stdin;
\.


SELECT pg_catalog.setval('public.s', 1, false);
CREATE OPERATOR public.-| (FUNCTION = public.f);

--
-- PostgreSQL database dump complete
--

"#;

#[test]
fn a_dump_passes_as_it_is() {
    assert_eq!(screened(DUMP, false).unwrap(), DUMP);
    assert_eq!(screened("", false).unwrap(), "");
    assert_eq!(screened("SELECT 1", false).unwrap(), "SELECT 1");
    assert_eq!(screened(";;\n", false).unwrap(), ";;\n");
    let rows = "COPY t (a) FROM stdin;\n\\.x\n.\n\\\\.\n\\.\r\nSELECT 1;\n";
    assert_eq!(screened(rows, false).unwrap(), rows);
}

#[test]
fn the_dumps_own_restriction_is_left_out() {
    let text = "--\n-- dump\n--\n\n\\restrict abC12\n\nSET a = 1;\n\\unrestrict abC12\n\n";
    assert_eq!(screened(text, false).unwrap(), "--\n-- dump\n--\n\n\nSET a = 1;\n\n");
}

#[test]
fn extensions_are_left_out_where_they_are_there_already() {
    let text = "CREATE SCHEMA \"its own\";\nCREATE SCHEMA other;\nSET a = 1;\nCREATE EXTENSION IF NOT EXISTS \"uuid-ossp\" WITH SCHEMA public;\n\n--\n-- Name\n--\n\n\
                COMMENT ON EXTENSION \"uuid-ossp\" IS 'it''s; so';\n\nCREATE EXTENSION IF NOT EXISTS other;\nCOMMENT ON TABLE t IS 'x';\nCREATE TABLE t ();\n";
    let left = screened(text, true).unwrap();
    assert!(!left.contains("uuid") && !left.contains("it''s") && !left.contains("its own"), "{left}");
    assert!(
        left.contains("CREATE SCHEMA other;\n") && left.contains("CREATE EXTENSION IF NOT EXISTS other;\n"),
        "{left}"
    );
    assert!(
        left.contains("SET a = 1;\n") && left.contains("COMMENT ON TABLE t IS 'x';\nCREATE TABLE t ();\n"),
        "{left}"
    );
    assert_eq!(screened(text, false).unwrap(), text);
}

#[test]
fn a_command_of_psqls_is_found_wherever_it_stands() {
    let commands = [
        "\\! id",
        "\\o |id",
        "\\copy t from program 'id'",
        "\\i /etc/passwd",
        "\\setenv PAGER id",
        "\\connect app",
        "\\g |id",
    ];
    let places = [
        "X\n",
        "SELECT 1;\nX\n",
        "SELECT 1 X\n",
        "SELECT 1; X\n",
        "-- comment\nX\n",
        "/* a */ X\n",
        "COPY t (a) FROM stdin;\n1\n\\.\nX\n",
        "COPY t (a) FROM stdin; X\n1\n\\.\n",
        "SELECT 'a\\' X\n",
        "SELECT E'a\\\\' X\n",
        "SELECT $a$ $b$ $a$ X\n",
        "SELECT a$b$ X\n",
        "SELECT 1$b$ $b$ X\n",
        "SELECT \"a\\\" X\n",
        "SELECT * FROM t -- x\n X\n",
        // What only looks like rows.
        "CREATE FUNCTION f() RETURNS void BEGIN ATOMIC; COPY t (a) FROM stdin;\nX\n\\.\n",
        "SELECT (1; COPY t (a) FROM stdin;\nX\n\\.\n",
        "SELECT 'COPY t (a) FROM stdin;\n' X\n\\.\n",
        "\\restrict a b\nX\n",
        "\\restrict\nX\n",
    ];
    for place in places {
        for command in commands {
            let text = place.replace('X', command);
            assert!(screened(&text, false).is_err(), "{text}");
        }
    }
    let refused = screened("SELECT 1;\n\n\\! id\n", false).unwrap_err();
    assert_eq!((refused.line, refused.what.as_str()), (3, "the command \\! of psql's"));
}

#[test]
fn only_rows_that_follow_are_copied() {
    for copy in [
        "COPY t FROM '/etc/passwd';",
        "COPY t TO '/nowhere/x';",
        "copy t from program 'id';",
        "COPY (SELECT 1) TO PROGRAM 'id';",
        "COPY t (a) FROM stdin WHERE f(a);",
        "COPY t FROM stdin WITH (FORMAT csv);",
        "COPY t /* FROM stdin */ FROM '/x';",
        "COPY t TO stdout;",
        "COPY/**/t FROM program $$id$$;",
    ] {
        let refused = screened(&format!("SELECT 1;\n{copy}\n1\n\\.\n"), false).unwrap_err();
        assert!(refused.what.contains("COPY"), "{copy}: {refused}");
    }
}

#[test]
fn a_tablespace_that_the_server_lacks_is_the_default_one() {
    let there = ["pg_default", "fast", "its own"].map(str::to_owned).to_vec();
    let existing = Existing { tablespaces: Some(there), ..Existing::default() };
    let text = "SET client_encoding = 'UTF8';\nSET default_tablespace = fast;\nCREATE TABLE a ();\n\
                SET default_tablespace = slow;\n\nCREATE TABLE b (c text DEFAULT 'SET default_tablespace = slow;');\n\
                SET default_tablespace = \"its own\";\nSET default_tablespace = \"odd \"\" one\";\nSET default_tablespace = '';\n\
                SET default_table_access_method = heap;\nSET set = 1;\n";
    for size in [1, 2, 3, 7, text.len()] {
        let (mut screen, mut out) = (Screen::new(existing.clone()), Vec::new());
        text.as_bytes().chunks(size).try_for_each(|piece| screen.pass(piece, &mut out)).unwrap();
        screen.finish(&mut out);
        let expected = text.replacen("= slow;\n\n", "= '';\n\n", 1).replace("\"odd \"\" one\"", "''");
        assert_eq!(String::from_utf8(out).unwrap(), expected, "in pieces of {size}");
        assert_eq!(screen.lacking().iter().collect::<Vec<_>>(), ["odd \" one", "slow"]);
    }
}

#[test]
fn of_the_rows_those_that_are_wanted_are_left_and_nothing_else_of_them() {
    let text = "CREATE TABLE public.a (t text);\nCREATE TABLE public.b (t text);\n\
                COPY public.a (t) FROM stdin;\nof a\n\\.\n\n\
                COPY public.b (t) FROM stdin;\nof b; \\! no command\n\\\\.\n\\.\n\n\
                COPY public.\"none\" (t) FROM stdin;\n\\.\n\
                ALTER TABLE ONLY public.a\n    ADD CONSTRAINT a_pkey PRIMARY KEY (t);\n\
                ALTER TABLE ONLY public.a\n    ADD CONSTRAINT a_b FOREIGN KEY (t) REFERENCES public.b(t);\n\
                REFRESH MATERIALIZED VIEW public.v;\nSELECT 1;\n";
    let expected = "CREATE TABLE public.a (t text);\nCREATE TABLE public.b (t text);\n\
                    COPY public.a (t) FROM stdin;\nof a\n\\.\n\n\n\
                    ALTER TABLE ONLY public.a\n    ADD CONSTRAINT a_pkey PRIMARY KEY (t);\n\n\nSELECT 1;\n";
    let only = Only { tables: [("public".to_owned(), "a".to_owned())].into(), schema: None };
    for size in [1, 2, 3, 7, text.len()] {
        let existing = Existing { only: Some(Arc::new(only.clone())), ..Existing::default() };
        let (mut screen, mut out) = (Screen::new(existing), Vec::new());
        text.as_bytes().chunks(size).try_for_each(|piece| screen.pass(piece, &mut out)).unwrap();
        screen.finish(&mut out);
        assert_eq!(String::from_utf8(out).unwrap(), expected, "in pieces of {size}");
    }
    let mut screen = Screen::new(Existing { only: Some(Arc::new(only)), ..Existing::default() });
    let refused = screen.pass(b"COPY public.b (t) FROM stdin;\nrow\n\\.\n\\! id\n", &mut Vec::new());
    assert!(refused.is_err(), "what follows on rows that are left out is read as all is");
}
