//! Where OTLP goes: the variables of OpenTelemetry's own SDKs ("OpenTelemetry Protocol Exporter" and "Environment Variable
//! Specification"), so that a deployment that sets them for its application has set them for Tandem.

use std::time::Duration;

use percent_encoding::percent_decode_str;
use url::Url;

use crate::plan::Secret;

/// Where to send, and as whom.
#[derive(Debug, Default)]
pub struct Target {
    /// The whole addresses; `None`: that signal is not sent.
    pub traces: Option<Url>,
    pub metrics: Option<Url>,
    pub headers: Vec<(String, Secret)>,
    /// `service.name`; `None`: the deployment's name.
    pub service: Option<String>,
    /// What is said of the resource beside that.
    pub attributes: Vec<(String, String)>,
    /// Between two messages with metrics.
    pub interval: Duration,
    /// For one request.
    pub limit: Duration,
}

/// The target that this process's environment names, if it names one.
///
/// # Errors
/// A variable that is none of what OpenTelemetry allows; the error names it.
#[expect(clippy::disallowed_methods, reason = "one of the files that may")]
pub fn of_process() -> Result<Option<Target>, String> {
    target(&|name| std::env::var(name).ok())
}

/// The same of the variables that `read` knows. An empty one is as good as none.
fn target(read: &dyn Fn(&str) -> Option<String>) -> Result<Option<Target>, String> {
    let read = |name: &str| read(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
    if read("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        return Ok(None);
    }
    let base =
        read("OTEL_EXPORTER_OTLP_ENDPOINT").map(|text| address("OTEL_EXPORTER_OTLP_ENDPOINT", &text)).transpose()?;
    let of = |signal: &str, path: &str| {
        let exporter = format!("OTEL_{signal}_EXPORTER");
        if read(&exporter).is_some_and(|value| value == "none") {
            return Ok(None);
        }
        let name = format!("OTEL_EXPORTER_OTLP_{signal}_ENDPOINT");
        match read(&name) {
            Some(text) => address(&name, &text).map(Some),
            None => Ok(base.as_ref().map(|base| below(base, path))),
        }
    };
    let (traces, metrics) = (of("TRACES", "v1/traces")?, of("METRICS", "v1/metrics")?);
    if traces.is_none() && metrics.is_none() {
        return Ok(None);
    }
    if let Some(protocol) = read("OTEL_EXPORTER_OTLP_PROTOCOL").filter(|protocol| protocol != "http/protobuf") {
        return Err(format!(
            "OTEL_EXPORTER_OTLP_PROTOCOL is {protocol:?}; Tandem speaks http/protobuf, at port 4318 of most"
        ));
    }
    let milliseconds = |name: &str, default: u64| match read(name) {
        None => Ok(Duration::from_millis(default)),
        Some(text) => match text.parse() {
            Ok(number @ 1..) => Ok(Duration::from_millis(number)),
            _ => Err(format!("{name} is {text:?}, and not a number of milliseconds")),
        },
    };
    let attributes = list("OTEL_RESOURCE_ATTRIBUTES", read("OTEL_RESOURCE_ATTRIBUTES"))?;
    let named = attributes.iter().find(|(name, _)| name == "service.name").map(|(_, value)| value.clone());
    let headers = list("OTEL_EXPORTER_OTLP_HEADERS", read("OTEL_EXPORTER_OTLP_HEADERS"))?;
    Ok(Some(Target {
        traces,
        metrics,
        headers: headers.into_iter().map(|(name, value)| (name, Secret::new(value))).collect(),
        service: read("OTEL_SERVICE_NAME").or(named),
        attributes,
        interval: milliseconds("OTEL_METRIC_EXPORT_INTERVAL", 60_000)?,
        limit: milliseconds("OTEL_EXPORTER_OTLP_TIMEOUT", 10_000)?,
    }))
}

fn address(name: &str, text: &str) -> Result<Url, String> {
    // What it holds may be a secret.
    let url = Url::parse(text).map_err(|error| format!("{name} is no URL: {error}"))?;
    match url.scheme() {
        "http" | "https" => Ok(url),
        other => Err(format!("{name} begins with {other}:, and not with http: or https:")),
    }
}

/// `path` below `base`, whether or not that ends with a slash.
fn below(base: &Url, path: &str) -> Url {
    let mut url = base.clone();
    url.set_path(&format!("{}/{path}", base.path().trim_end_matches('/')));
    url
}

/// `a=1,b=2`, percent-encoded (W3C Baggage).
fn list(name: &str, text: Option<String>) -> Result<Vec<(String, String)>, String> {
    let decoded = |text: &str| percent_decode_str(text.trim()).decode_utf8().ok().map(String::from);
    let one = |(number, pair): (usize, &str)| {
        let pair = pair.split_once('=').and_then(|(name, value)| Some((decoded(name)?, decoded(value)?)));
        pair.filter(|(name, _)| !name.is_empty())
            .ok_or_else(|| format!("{name}: its part {} is no name=value", number + 1))
    };
    text.as_deref().unwrap_or_default().split(',').filter(|pair| !pair.trim().is_empty()).enumerate().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Result<Option<Target>, String> {
        target(&|name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()))
    }

    fn text(url: Option<&Url>) -> Option<&str> {
        url.map(Url::as_str)
    }

    #[test]
    fn the_variables_of_opentelemetry_are_read_as_its_sdks_read_them() {
        assert!(of(&[]).unwrap().is_none());
        let base = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318/");
        let target = of(&[base]).unwrap().unwrap();
        assert_eq!(text(target.traces.as_ref()), Some("http://collector:4318/v1/traces"));
        assert_eq!(text(target.metrics.as_ref()), Some("http://collector:4318/v1/metrics"));
        assert_eq!((target.interval, target.limit), (Duration::from_secs(60), Duration::from_secs(10)));
        let target = of(&[
            base,
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://other/in?key=1"),
            ("OTEL_METRICS_EXPORTER", "none"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20t0k, x-tenant=a"),
            ("OTEL_RESOURCE_ATTRIBUTES", "service.name=shop,deployment.environment=prod"),
            ("OTEL_METRIC_EXPORT_INTERVAL", "1500"),
        ]);
        let target = target.unwrap().unwrap();
        assert_eq!(
            (text(target.traces.as_ref()), text(target.metrics.as_ref())),
            (Some("https://other/in?key=1"), None)
        );
        let headers: Vec<_> = target.headers.iter().map(|(name, value)| (name.as_str(), value.expose())).collect();
        assert_eq!(headers, [("authorization", "Bearer t0k"), ("x-tenant", "a")]);
        assert!(!format!("{target:?}").contains("t0k"));
        assert_eq!(target.service.as_deref(), Some("shop"));
        assert_eq!(target.interval, Duration::from_millis(1500));
        assert!(of(&[base, ("OTEL_SDK_DISABLED", "true")]).unwrap().is_none());
    }

    #[test]
    fn a_variable_that_is_wrong_is_named_and_not_shown() {
        let base = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318");
        for (name, value) in [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector"),
            ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "grpc://collector"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "secret"),
            ("OTEL_METRIC_EXPORT_INTERVAL", "1s"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "0"),
        ] {
            let error = of(&[(name, value), base]).unwrap_err();
            assert!(error.contains(name) && !error.contains("secret"), "{error}");
        }
    }
}
