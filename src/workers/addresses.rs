//! Finds the address of a PostgreSQL database in a variable's value, and puts another one in its place. Pure.
//!
//! ```text
//! postgres://live/db, "jdbc:postgresql://live/db", {"url": "…"}    a URL, wherever it stands
//! Host=live;Port=5432;Database=db                                   .NET's, ODBC's
//! host=live user='a b' dbname=db                                    libpq's (PostgreSQL documentation, 34.1.1)
//! ```

use crate::plan::DatabaseUrl;

/// What libpq, SQLAlchemy, Django, dj-database-url and others call PostgreSQL in a URL.
const SCHEMES: [&str; 11] = [
    "postgres",
    "postgresql",
    "postgis",
    "pgsql",
    "psql",
    "timescale",
    "timescaledb",
    "timescalegis",
    "redshift",
    "cockroach",
    "cockroachdb",
];
/// What may stand before a scheme: Java's `jdbc:`, `r2dbc:pool:`.
const BEFORE: [&str; 3] = ["jdbc", "r2dbc", "pool"];
/// libpq's words that say where a database is. Each of them may be alone: the others have defaults.
const WHERE: [&str; 4] = ["host", "hostaddr", "service", "dbname"];
/// Those that say it beside `port`: `port=80` alone may be anything.
const WHO: [&str; 2] = ["user", "password"];
/// What .NET and ODBC call the same.
const PLACES: [&str; 4] = ["host", "server", "data source", "port"];
const PEOPLE: [&str; 9] =
    ["database", "dbname", "initial catalog", "user", "username", "user id", "uid", "password", "pwd"];

/// `value` with the address of `url` in place of every other; `None` where there is none in it.
pub fn replaced(value: &str, url: &DatabaseUrl) -> Option<String> {
    if value.contains("://") {
        return urls(value, url);
    }
    let bare = value.trim();
    let quoted = bare.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    if let Some(inner) = quoted {
        return replaced(inner, url).map(|inner| format!("\"{inner}\""));
    }
    if bare.contains(';') { pairs(bare, url) } else { says_where(&words(bare)?).then(|| conninfo(url)) }
}

fn password(url: &DatabaseUrl) -> &str {
    url.password.as_ref().map(|password| password.expose()).unwrap_or_default()
}

/// Replace the URLs of PostgreSQL.
fn urls(value: &str, url: &DatabaseUrl) -> Option<String> {
    let (mut result, mut rest, mut found) = (String::new(), value, false);
    while let Some(at) = rest.find("://") {
        let start = scheme_start(&rest[..at]);
        let scheme = &rest[start..at];
        let after = at + "://".len();
        if !is_postgres(scheme) {
            result.push_str(&rest[..after]);
            rest = &rest[after..];
            continue;
        }
        found = true;
        let before = &rest[..start];
        let end = after + length(&rest[after..], before.chars().next_back());
        result.push_str(before);
        result.push_str(&written(scheme, url));
        rest = &rest[end..];
    }
    found.then(|| result + rest)
}

/// Where in `text` the scheme at its end begins, with what may stand before it.
fn scheme_start(text: &str) -> usize {
    let segment = |text: &str| {
        let is_of_it = |c: char| c.is_ascii_alphanumeric() || "+-._".contains(c);
        text.trim_end_matches(is_of_it).len()
    };
    let mut start = segment(text);
    while let Some(before) = text[..start].strip_suffix(':') {
        let next = segment(before);
        if !BEFORE.contains(&before[next..].to_ascii_lowercase().as_str()) {
            break;
        }
        start = next;
    }
    start
}

fn is_postgres(scheme: &str) -> bool {
    let base = scheme.rsplit(':').next().unwrap_or_default();
    let base = base.split_once('+').map_or(base, |(base, _)| base);
    SCHEMES.contains(&base.to_ascii_lowercase().as_str())
}

/// How long the URL is whose scheme stands before `rest`, and `before` in front of that.
fn length(rest: &str, before: Option<char>) -> usize {
    let quote = before.filter(|c| "\"'`".contains(*c));
    let end = match quote {
        Some(quote) => rest.find(quote),
        None => rest.find(char::is_whitespace),
    };
    // Quoted inside of a quoted text.
    let whole = rest[..end.unwrap_or(rest.len())].trim_end_matches('\\');
    // The next of a list.
    let next = whole.find("://").map(|at| scheme_start(&whole[..at]));
    let cut = next.filter(|&next| whole[..next].ends_with([',', ';', '|']));
    cut.map_or(whole.len(), |next| next - 1)
}

fn written(scheme: &str, url: &DatabaseUrl) -> String {
    // Java's drivers take user and password from the query alone.
    if scheme.to_ascii_lowercase().starts_with("jdbc:") {
        let bare = DatabaseUrl { user: String::new(), password: None, ..url.with_scheme(scheme) };
        let bare = bare.expose().expose().replacen("://@", "://", 1);
        return format!("{bare}?user={}&password={}", url.user, password(url));
    }
    url.with_scheme(scheme).expose().expose().to_owned()
}

/// Replace the address in .NET's or ODBC's pairs; the others stay.
fn pairs(value: &str, url: &DatabaseUrl) -> Option<String> {
    let pairs: Vec<(&str, &str)> = value
        .split(';')
        .filter(|pair| !pair.trim().is_empty())
        .map(|pair| pair.split_once('='))
        .collect::<Option<_>>()?;
    let key = |pair: &(&str, &str)| pair.0.trim().to_ascii_lowercase();
    let has = |name: &str| pairs.iter().any(|pair| key(pair) == name);
    let odbc = pairs.iter().any(|pair| key(pair) == "driver" && pair.1.to_ascii_lowercase().contains("postgres"));
    // SQL Server's have no port, MySQL's have Uid and Pwd.
    let ours = odbc || has("host") || ((has("server") || has("data source")) && has("port") && !has("uid"));
    if !ours {
        return None;
    }
    let kept = pairs.iter().filter(|pair| !PLACES.contains(&&*key(pair)) && !PEOPLE.contains(&&*key(pair)));
    let kept: String = kept.map(|(name, value)| format!("{name}={value};")).collect();
    let [host, user, secret] = if odbc { ["Server", "Uid", "Pwd"] } else { ["Host", "Username", "Password"] };
    let quoted = |text: &str| match text {
        _ if odbc => format!("{{{}}}", text.replace('}', "}}")),
        _ if text.contains([';', '"', '\'', ' ', '=']) => format!("\"{}\"", text.replace('"', "\"\"")),
        _ => text.to_owned(),
    };
    Some(format!(
        "{kept}{host}={};Port={};{user}={};{secret}={};Database={}",
        quoted(&url.host),
        url.port,
        quoted(&url.user),
        quoted(password(url)),
        quoted(&url.database)
    ))
}

/// The names of the words of a `conninfo` string, read as libpq does; `None` where it is none.
fn words(text: &str) -> Option<Vec<&str>> {
    let mut names = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (name, value) = rest.split_once('=')?;
        let name = name.trim_end();
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            return None;
        }
        names.push(name);
        let value = value.trim_start();
        let (quoted, value) = value.strip_prefix('\'').map_or((false, value), |value| (true, value));
        let mut escaped = false;
        let end = value.find(|c: char| {
            let ends = !escaped && if quoted { c == '\'' } else { c.is_whitespace() };
            escaped = !escaped && c == '\\';
            ends
        });
        rest = match end {
            Some(end) => value[end + usize::from(quoted)..].trim_start(),
            None if quoted => return None,
            None => "",
        };
    }
    Some(names)
}

fn says_where(names: &[&str]) -> bool {
    let any = |of: &[&str]| names.iter().any(|name| of.contains(name));
    any(&WHERE) || (any(&["port"]) && any(&WHO))
}

fn conninfo(url: &DatabaseUrl) -> String {
    let quoted = |text: &str| format!("'{}'", text.replace('\\', r"\\").replace('\'', r"\'"));
    let [host, user, secret, database] = [url.host.as_str(), &url.user, password(url), &url.database].map(quoted);
    format!("host={host} port={} user={user} password={secret} dbname={database}", url.port)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Secret;

    fn of(value: &str) -> Option<String> {
        let url = DatabaseUrl {
            scheme: "postgresql".into(),
            user: "u".into(),
            password: Some(Secret::new("pw")),
            host: "h".into(),
            port: 1,
            database: "d".into(),
            parameters: Vec::new(),
        };
        replaced(value, &url)
    }

    #[test]
    fn an_address_is_found_wherever_and_however_it_is_written() {
        let conninfo = "host='h' port=1 user='u' password='pw' dbname='d'";
        let in_quotes = format!("\"{conninfo}\"");
        for (value, expected) in [
            ("postgres://a:b@live/x", "postgres://u:pw@h:1/d"),
            ("postgresql+asyncpg://live", "postgresql+asyncpg://u:pw@h:1/d"),
            ("POSTGRES://one,two/x?a=b", "POSTGRES://u:pw@h:1/d"),
            ("timescale://a@live/x", "timescale://u:pw@h:1/d"),
            ("redshift://a@live/x", "redshift://u:pw@h:1/d"),
            ("r2dbc:postgresql://live/x", "r2dbc:postgresql://u:pw@h:1/d"),
            ("r2dbc:pool:postgresql://live/x", "r2dbc:pool:postgresql://u:pw@h:1/d"),
            ("jdbc:postgresql://live/x?user=a&password=b", "jdbc:postgresql://h:1/d?user=u&password=pw"),
            ("\"postgres://live/x\"", "\"postgres://u:pw@h:1/d\""),
            ("'postgres://live/x'", "'postgres://u:pw@h:1/d'"),
            (r#"{"url": "postgres://a:b'@live/x", "n": 1}"#, r#"{"url": "postgres://u:pw@h:1/d", "n": 1}"#),
            (r#"{\"url\": \"postgres://live/x\"}"#, r#"{\"url\": \"postgres://u:pw@h:1/d\"}"#),
            ("url:postgres://live/x retries:3", "url:postgres://u:pw@h:1/d retries:3"),
            ("postgres://a/x,postgres://b/y", "postgres://u:pw@h:1/d,postgres://u:pw@h:1/d"),
            ("redis://r/0,postgres://b/y", "redis://r/0,postgres://u:pw@h:1/d"),
            ("--dsn=postgres://a:b}c@live/x", "--dsn=postgres://u:pw@h:1/d"),
            ("hostaddr=10.1.2.3 user=app", conninfo),
            ("host=live password='a b' dbname=x", conninfo),
            (r"host = live password = 'it\'s' options='-c a=b'", conninfo),
            ("user=app password=x port=28812", conninfo),
            ("  dbname=x connect_timeout=3", conninfo),
            ("service=prod", conninfo),
            ("\"host=live dbname=x\"", in_quotes.as_str()),
            ("Host=live;Database=x;Pooling=true", "Pooling=true;Host=h;Port=1;Username=u;Password=pw;Database=d"),
            ("Server=live;Port=5432;User Id=a;Password=b;", "Host=h;Port=1;Username=u;Password=pw;Database=d"),
            (
                "Driver={PostgreSQL};Server=live;Uid=a",
                "Driver={PostgreSQL};Server={h};Port=1;Uid={u};Pwd={pw};Database={d}",
            ),
        ] {
            assert_eq!(of(value).as_deref(), Some(expected), "{value}");
        }
        for value in [
            "",
            "plain",
            "5432",
            "redis://live:6379/0",
            "https://postgres.example/x",
            "my-postgres://live",
            "host=x y",
            "port=80",
            "port=80 debug=1",
            "a=b c=d",
            "host='x",
            "Server=live;Database=x;User Id=a;Password=b",
            "Server=live;Port=3306;Uid=a;Pwd=b",
            "a;b",
            "--host=x",
        ] {
            assert_eq!(of(value), None, "{value}");
        }
    }
}
