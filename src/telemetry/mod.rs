//! Traces of publishes, for an OpenTelemetry collector (OTLP over gRPC).
//!
//! The spans are those of [`tracing`], as the log has them, and steps that only traces have
//! (`trace.rs`). Nothing is exported unless the standard variables name a collector, and
//! whatever becomes of it, no call waits for it.

mod export;
mod settings;

use std::sync::Arc;
use std::time::Duration;

use opentelemetry::trace::{Status, TraceContextExt as _, TracerProvider as _};
use opentelemetry::{KeyValue, Value};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::resource::{EnvResourceDetector, TelemetryResourceDetector};
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::{Level, Metadata, Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::Layer;
use tracing_subscriber::registry::LookupSpan;

use self::settings::TraceSettings;
use crate::error::Result;
use crate::metrics::Metrics;
use crate::random;

/// How long the end of the process waits for the last spans.
const FLUSH: Duration = Duration::from_secs(2);

/// The name of the service, unless `OTEL_SERVICE_NAME` has another.
const SERVICE: &str = "oci-model-csi";

/// The export of traces, if it is on.
#[derive(Debug, Default)]
pub struct Telemetry(Option<SdkTracerProvider>);

impl Telemetry {
    /// Starts the export, if the environment names a collector. `node` is the Kubernetes node of
    /// a node plugin. Call it in the context of the runtime, which the connection needs.
    ///
    /// # Errors
    /// Variables that cannot be used; the driver runs without traces then.
    pub fn from_environment(node: Option<String>, metrics: &Arc<Metrics>) -> Result<Self> {
        let variables = |name: &str| std::env::var(name).ok();
        let Some(settings) = TraceSettings::of(variables)? else { return Ok(Self::default()) };
        let processor = export::processor(&settings, metrics)?;
        let provider = SdkTracerProvider::builder()
            .with_resource(resource(node))
            .with_span_processor(processor)
            .build();
        Ok(Self(Some(provider)))
    }

    /// Whether traces are exported.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// The layer that makes spans of traces from those of `tracing`.
    pub fn layer<S>(&self) -> Option<Box<dyn Layer<S> + Send + Sync>>
    where
        S: Subscriber + for<'span> LookupSpan<'span> + Send + Sync,
    {
        let tracer = self.0.as_ref()?.tracer(SERVICE);
        let layer = tracing_opentelemetry::layer()
            .with_tracer(tracer)
            .with_context_activation(false)
            .with_tracked_inactivity(false)
            .with_location(false)
            .with_threads(false)
            .with_target(false);
        Some(layer.with_filter(filter_fn(is_exported)).boxed())
    }

    /// Exports what is left, for two seconds at most. Spans that end later are lost.
    pub fn stop(&self) {
        if let Some(provider) = &self.0
            && let Err(error) = provider.shutdown_with_timeout(FLUSH)
        {
            tracing::info!(%error, "the last spans of traces were not exported");
        }
    }
}

/// The driver's own spans, and lines of its log from level info on; nothing of the libraries, among
/// them the one that exports.
fn is_exported(metadata: &Metadata<'_>) -> bool {
    let is_own = metadata.target().starts_with("oci_model_csi");
    is_own && (metadata.is_span() || *metadata.level() <= Level::INFO)
}

/// What the spans come from, by the semantic conventions. `OTEL_RESOURCE_ATTRIBUTES` and
/// `OTEL_SERVICE_NAME` add to it and win.
fn resource(node: Option<String>) -> Resource {
    let instance = u128::from_be_bytes(random::bytes());
    let own = [
        ("service.name", SERVICE.to_owned()),
        ("service.version", env!("CARGO_PKG_VERSION").to_owned()),
        ("service.instance.id", format!("{instance:032x}")),
    ];
    let node = node.map(|node| ("k8s.node.name", node));
    let attributes = own.into_iter().chain(node);
    let resource = Resource::builder_empty()
        .with_attributes(attributes.map(|(key, value)| KeyValue::new(key, value)))
        .with_detectors(&[
            Box::new(TelemetryResourceDetector),
            Box::new(EnvResourceDetector::new()),
        ]);
    match std::env::var("OTEL_SERVICE_NAME") {
        Ok(name) if !name.is_empty() => resource.with_service_name(name).build(),
        _ => resource.build(),
    }
}

/// The id of the trace of a span, in hexadecimal digits; `None` where no traces are exported.
pub fn trace_id(span: &Span) -> Option<String> {
    let context = span.context();
    let span = context.span();
    let context = span.span_context();
    context.is_valid().then(|| context.trace_id().to_string())
}

/// Sets an attribute of a span in the trace only.
pub fn set(span: &Span, key: &'static str, value: impl Into<Value>) {
    span.set_attribute(key, value);
}

/// Records how a call ended: its gRPC code, and the message of a failure.
pub fn answered(span: &Span, code: &'static str, failure: Option<&str>) {
    set(span, "code", code);
    if let Some(message) = failure {
        span.set_status(Status::error(message.to_owned()));
    }
}
