//! What `/metrics` answers, read as strictly as a scraper reads it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// As Prometheus asks.
pub const PROMETHEUS: &str = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                              text/plain;version=0.0.4;q=0.5,*/*;q=0.1";

/// One answer.
#[derive(Debug)]
pub struct Scraped {
    pub content_type: String,
    pub text: String,
    /// By family.
    pub types: BTreeMap<String, String>,
    pub samples: Vec<Sample>,
}

/// One line of it.
#[derive(Clone, Debug)]
pub struct Sample {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

/// Ask the port, with this `Accept` header where there is one.
pub fn scrape(port: u16, accept: Option<&str>) -> Scraped {
    let agent: ureq::Agent =
        ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(30))).accept("").build().into();
    let request = agent.get(format!("http://127.0.0.1:{port}/metrics"));
    let request = accept.into_iter().fold(request, |request, accept| request.header("accept", accept));
    let mut answer = request.call().unwrap();
    let content_type = answer.headers()["content-type"].to_str().unwrap().to_owned();
    let text = answer.body_mut().with_config().limit(64 << 20).read_to_string().unwrap();
    Scraped::read(content_type, text)
}

impl Scraped {
    /// Panics where a scraper would refuse `text`.
    pub fn read(content_type: String, text: String) -> Self {
        let is_open = content_type.starts_with("application/openmetrics-text");
        assert_eq!(text.ends_with("\n# EOF\n"), is_open, "{content_type}");
        let (mut types, mut samples) = (BTreeMap::new(), Vec::new());
        let (mut family, mut seen, mut described) = (String::new(), BTreeSet::new(), BTreeSet::new());
        for line in text.lines().filter(|line| *line != "# EOF") {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                assert!(described.insert(rest.split(' ').next().unwrap().to_owned()), "described twice: {line}");
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                assert!(described.contains(name), "no help: {line}");
                assert!(types.insert(name.to_owned(), kind.to_owned()).is_none(), "twice: {line}");
                name.clone_into(&mut family);
            } else {
                let sample = sample(line);
                let is_counter = types[&family] == "counter";
                let expected = if is_open && is_counter { format!("{family}_total") } else { family.clone() };
                assert_eq!(sample.name, expected, "a sample outside its family: {line}");
                assert!(seen.insert((sample.name.clone(), sample.labels.clone())), "twice: {line}");
                samples.push(sample);
            }
        }
        Self { content_type, text, types, samples }
    }

    /// The samples of `name` with these labels among theirs.
    pub fn all(&self, name: &str, labels: &[(&str, &str)]) -> Vec<&Sample> {
        let has = |sample: &Sample| {
            labels.iter().all(|(label, value)| sample.labels.get(*label).is_some_and(|it| it == value))
        };
        self.samples.iter().filter(|sample| sample.name == name && has(sample)).collect()
    }

    /// The value of the only one.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        match self.all(name, labels)[..] {
            [] => None,
            [sample] => Some(sample.value),
            ref more => panic!("several: {more:?}"),
        }
    }

    /// Every name of a sample.
    pub fn names(&self) -> BTreeSet<&str> {
        self.samples.iter().map(|sample| sample.name.as_str()).collect()
    }
}

fn sample(line: &str) -> Sample {
    let (head, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no sample: {line}"));
    let (name, rest) = head.split_once('{').map_or((head, ""), |(name, rest)| (name, rest));
    assert!(name.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_'), "no name: {line}");
    let value = match value {
        "+Inf" => f64::INFINITY,
        "-Inf" => f64::NEG_INFINITY,
        number => number.parse().unwrap_or_else(|_| panic!("no number: {line}")),
    };
    Sample { name: name.to_owned(), labels: labels(rest, line), value }
}

/// The labels in `text`, which begins after the brace.
fn labels(text: &str, line: &str) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    let mut letters = text.chars().peekable();
    while letters.peek().is_some_and(|letter| *letter != '}') {
        let name: String = letters.by_ref().take_while(|letter| *letter != '=').collect();
        assert_eq!(letters.next(), Some('"'), "{line}");
        let mut value = String::new();
        loop {
            match letters.next().unwrap_or_else(|| panic!("a label without an end: {line}")) {
                '"' => break,
                '\\' => value.push(match letters.next() {
                    Some('n') => '\n',
                    Some(letter @ ('"' | '\\')) => letter,
                    other => panic!("{other:?} is no escape: {line}"),
                }),
                letter => value.push(letter),
            }
        }
        assert!(labels.insert(name, value).is_none(), "{line}");
        letters.next_if_eq(&',');
    }
    labels
}
