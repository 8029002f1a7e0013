//! Families and spans as the messages of the protocol (opentelemetry-proto). Pure.

use std::time::{SystemTime, UNIX_EPOCH};

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Gauge, Metric, NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum, metric,
    number_data_point,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span as Message, Status, span, status};

use super::spans::Span;
use crate::config::otlp::Target;
use crate::metrics::{Family, Kind, pairs};
use crate::scrub::scrubbed;

/// Who sends: the target's attributes, `service.name`, `service.version`, `host.name` and `process.pid` (OpenTelemetry semantic
/// conventions, "Resource"). `name` is that of the deployment.
pub fn resource(target: &Target, name: &str) -> Resource {
    let mut attributes = vec![
        attribute("service.name", target.service.as_deref().unwrap_or(name)),
        attribute("service.version", env!("CARGO_PKG_VERSION")),
        attribute("process.pid", &std::process::id().to_string()),
    ];
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    attributes.extend(host.map(|host| attribute("host.name", &host)));
    for (name, value) in &target.attributes {
        attributes.retain(|known| known.key != *name || name == "service.name");
        if name != "service.name" {
            attributes.push(attribute(name, value));
        }
    }
    Resource { attributes, ..Resource::default() }
}

/// `families` at `now`; counters count since `began`.
pub fn metrics(
    resource: &Resource,
    families: &[Family],
    began: SystemTime,
    now: SystemTime,
) -> ExportMetricsServiceRequest {
    let metrics = families.iter().filter(|family| !family.samples.is_empty()).map(|family| metric(family, began, now));
    let scoped = ScopeMetrics { scope: Some(scope()), metrics: metrics.collect(), ..ScopeMetrics::default() };
    let of_resource =
        ResourceMetrics { resource: Some(resource.clone()), scope_metrics: vec![scoped], ..ResourceMetrics::default() };
    ExportMetricsServiceRequest { resource_metrics: vec![of_resource] }
}

fn metric(family: &Family, began: SystemTime, now: SystemTime) -> Metric {
    let is_sum = family.kind == Kind::Counter;
    let point = |(labels, value): &(crate::metrics::family::Labels, f64)| NumberDataPoint {
        attributes: pairs(labels).iter().map(|(name, value)| attribute(name, value)).collect(),
        start_time_unix_nano: if is_sum { nanoseconds(began) } else { 0 },
        time_unix_nano: nanoseconds(now),
        value: Some(number_data_point::Value::AsDouble(*value)),
        ..NumberDataPoint::default()
    };
    let data_points = family.samples.iter().map(point).collect();
    let data = match is_sum {
        // PostgreSQL's own counters began with the server, at a time that is not known here: they are gauges, as the
        // protocol asks for a start of every sum.
        true => metric::Data::Sum(Sum {
            data_points,
            aggregation_temporality: AggregationTemporality::Cumulative.into(),
            is_monotonic: true,
        }),
        false => metric::Data::Gauge(Gauge { data_points }),
    };
    Metric {
        name: family.name.clone().into_owned(),
        description: family.help.clone().into_owned(),
        data: Some(data),
        ..Metric::default()
    }
}

/// `spans` as they are sent, without secrets.
pub fn traces(resource: &Resource, spans: &[Span]) -> ExportTraceServiceRequest {
    let spans = spans.iter().map(message).collect();
    let scoped = ScopeSpans { scope: Some(scope()), spans, ..ScopeSpans::default() };
    let of_resource =
        ResourceSpans { resource: Some(resource.clone()), scope_spans: vec![scoped], ..ResourceSpans::default() };
    ExportTraceServiceRequest { resource_spans: vec![of_resource] }
}

fn message(span: &Span) -> Message {
    let status = span
        .error
        .as_ref()
        .map(|error| Status { message: scrubbed(error).into_owned(), code: status::StatusCode::Error.into() });
    let event = |(time, name): &(SystemTime, String)| span::Event {
        time_unix_nano: nanoseconds(*time),
        name: scrubbed(name).into_owned(),
        ..span::Event::default()
    };
    Message {
        trace_id: span.trace.to_vec(),
        span_id: span.id.to_vec(),
        parent_span_id: span.parent.map(Vec::from).unwrap_or_default(),
        name: span.name.clone(),
        kind: span::SpanKind::Internal.into(),
        start_time_unix_nano: nanoseconds(span.began),
        end_time_unix_nano: nanoseconds(span.ended),
        attributes: span.attributes.iter().map(|(name, value)| attribute(name, value)).collect(),
        events: span.events.iter().map(event).collect(),
        status,
        ..Message::default()
    }
}

fn scope() -> InstrumentationScope {
    InstrumentationScope {
        name: "tandem".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    }
}

fn attribute(name: &str, value: &str) -> KeyValue {
    let value = AnyValue { value: Some(Value::StringValue(scrubbed(value).into_owned())) };
    KeyValue { key: name.to_owned(), value: Some(value), ..KeyValue::default() }
}

fn nanoseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::metrics::labels;

    fn text(attributes: &[KeyValue], name: &str) -> Option<String> {
        let found = attributes.iter().find(|attribute| attribute.key == name)?;
        match found.value.clone()?.value? {
            Value::StringValue(text) => Some(text),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn labels_become_attributes_and_counters_sums_since_the_start() {
        let families = [
            Family::new("tandem_rolls", "Rolls", Kind::Counter).with(&[("outcome", "a\"b\\c\nd")], 3.0),
            Family::gauge("tandem_up", "Up", 1.0),
            Family::new("empty", "", Kind::Gauge),
        ];
        let (began, now) = (UNIX_EPOCH + Duration::from_secs(5), UNIX_EPOCH + Duration::from_secs(9));
        let message = metrics(&Resource::default(), &families, began, now);
        let sent = &message.resource_metrics[0].scope_metrics[0].metrics;
        assert_eq!(sent.iter().map(|metric| metric.name.as_str()).collect::<Vec<_>>(), ["tandem_rolls", "tandem_up"]);
        let Some(metric::Data::Sum(sum)) = &sent[0].data else { panic!("{:?}", sent[0].data) };
        let point = &sum.data_points[0];
        assert!(sum.is_monotonic);
        assert_eq!((point.start_time_unix_nano, point.time_unix_nano), (5_000_000_000, 9_000_000_000));
        assert_eq!(text(&point.attributes, "outcome").as_deref(), Some("a\"b\\c\nd"));
        let Some(metric::Data::Gauge(gauge)) = &sent[1].data else { panic!("{:?}", sent[1].data) };
        assert_eq!(gauge.data_points[0].value, Some(number_data_point::Value::AsDouble(1.0)));
        assert_eq!(labels(&[]).len(), 0);
    }

    #[test]
    fn the_resource_has_the_name_and_attributes_that_were_asked_for() {
        let attributes = vec![("deployment.environment".to_owned(), "test".to_owned())];
        let target = Target { service: Some("shop".into()), attributes, ..Target::default() };
        let resource = resource(&target, "project");
        assert_eq!(text(&resource.attributes, "service.name").as_deref(), Some("shop"));
        assert_eq!(text(&resource.attributes, "deployment.environment").as_deref(), Some("test"));
        assert_eq!(
            text(&super::resource(&Target::default(), "project").attributes, "service.name").as_deref(),
            Some("project")
        );
    }
}
