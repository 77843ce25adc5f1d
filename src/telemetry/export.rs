//! The way of ended spans to the collector: a bounded queue, a thread of its own, and a count of
//! what became of them.

use std::fs;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use opentelemetry::trace::Status;
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::tonic_types::transport::{Certificate, ClientTlsConfig};
use opentelemetry_otlp::{WithExportConfig as _, WithTonicConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Span, SpanData, SpanExporter, SpanProcessor,
};
use tokio::runtime::Handle;

use super::settings::TraceSettings;
use crate::error::{Error, Result};
use crate::log_throttle::LogThrottle;
use crate::metrics::Metrics;
use crate::redact::without_pars;
use crate::sync::lock;

/// How long one export may take, connecting included, which the library's own limit is not for.
const PATIENCE: Duration = Duration::from_secs(15);

/// How long the same failure is not logged again.
const REPEAT_AFTER: Duration = Duration::from_secs(5 * 60);

/// Takes ended spans, as many as the queue of the settings has room for.
///
/// # Errors
/// Those of an endpoint or of certificates that cannot be used.
pub(super) fn processor(
    settings: &TraceSettings,
    metrics: &Arc<Metrics>,
) -> Result<BoundedProcessor> {
    let mut exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_endpoint(settings.endpoint.clone());
    if settings.endpoint.starts_with("https://") {
        exporter = exporter.with_tls_config(trusted(settings)?);
    }
    let inner = exporter
        .build()
        .map_err(|_| Error::invalid("the collector of OTEL_EXPORTER_OTLP_ENDPOINT is unusable"))?;
    let spans = Arc::new(SpanCounts {
        metrics: Arc::clone(metrics),
        pending: AtomicUsize::new(0),
        most: settings.queue,
        log: Mutex::default(),
    });
    let exporter = CountedExporter { inner, spans: Arc::clone(&spans), runtime: Handle::current() };
    let config = BatchConfigBuilder::default().with_max_queue_size(settings.queue).build();
    let inner = BatchSpanProcessor::builder(exporter).with_batch_config(config).build();
    Ok(BoundedProcessor { inner, spans })
}

/// The certificates of the variables, or the system's.
fn trusted(settings: &TraceSettings) -> Result<ClientTlsConfig> {
    let tls = ClientTlsConfig::new();
    let Some(file) = &settings.certificate_file else { return Ok(tls.with_enabled_roots()) };
    let pem = fs::read_to_string(file)
        .map_err(|error| Error::io("reading the file of OTEL_EXPORTER_OTLP_CERTIFICATE", &error))?;
    // The library takes such a file for an empty list, with which each export fails.
    if !pem.contains("-----BEGIN CERTIFICATE-----") {
        let text = "the file of OTEL_EXPORTER_OTLP_CERTIFICATE has no certificate in PEM";
        return Err(Error::invalid(text));
    }
    Ok(tls.ca_certificate(Certificate::from_pem(pem)))
}

/// Counts spans on their way.
#[derive(Debug)]
struct SpanCounts {
    metrics: Arc<Metrics>,
    /// Spans that have ended and whose export has not.
    pending: AtomicUsize,
    most: usize,
    log: Mutex<LogThrottle<&'static str, ()>>,
}

impl SpanCounts {
    /// Lets a span into the queue, if there is room.
    fn admits(&self) -> bool {
        if self.pending.fetch_add(1, Ordering::Relaxed) < self.most {
            return true;
        }
        self.pending.fetch_sub(1, Ordering::Relaxed);
        self.metrics.trace_spans("dropped", 1);
        if lock(&self.log).admits("dropped", (), REPEAT_AFTER) {
            tracing::warn!(queue = self.most, "spans of traces are dropped: the queue is full");
        }
        false
    }

    fn left(&self, spans: usize, result: &OTelSdkResult) {
        self.pending.fetch_sub(spans, Ordering::Relaxed);
        let count = u64::try_from(spans).unwrap_or(u64::MAX);
        match result {
            Ok(()) => self.metrics.trace_spans("exported", count),
            Err(error) => {
                self.metrics.trace_spans("failed", count);
                if lock(&self.log).admits("failed", (), REPEAT_AFTER) {
                    tracing::warn!(%error, spans, "exporting spans of traces failed");
                }
            }
        }
    }
}

/// The library's processor behind a count: its own queue never overflows, which it would not
/// report.
#[derive(Debug)]
pub(super) struct BoundedProcessor {
    inner: BatchSpanProcessor,
    spans: Arc<SpanCounts>,
}

impl SpanProcessor for BoundedProcessor {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.inner.on_start(span, context);
    }

    fn on_end(&self, mut span: SpanData) {
        if self.spans.admits() {
            redact(&mut span);
            self.inner.on_end(span);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

/// Removes the credentials of pre-authenticated requests, as the log does: spans have what
/// libraries and servers say too.
fn redact(span: &mut SpanData) {
    let redact_all = |attributes: &mut Vec<KeyValue>| {
        for attribute in attributes {
            if let Some(text) = without_pars(&attribute.value.as_str()) {
                attribute.value = text.into();
            }
        }
    };
    redact_all(&mut span.attributes);
    for event in &mut span.events.events {
        if let Some(text) = without_pars(&event.name) {
            event.name = text.into();
        }
        redact_all(&mut event.attributes);
    }
    if let Status::Error { description } = &mut span.status
        && let Some(text) = without_pars(description)
    {
        *description = text.into();
    }
}

/// The library's exporter with a limit in time.
#[derive(Debug)]
struct CountedExporter {
    inner: opentelemetry_otlp::SpanExporter,
    spans: Arc<SpanCounts>,
    /// The exporter runs on a thread without a runtime.
    runtime: Handle,
}

impl SpanExporter for CountedExporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let over = {
            let _context = self.runtime.enter();
            tokio::time::sleep(PATIENCE)
        };
        let over = pin!(over);
        let result = tokio::select! {
            result = self.inner.export(batch) => result,
            () = over => Err(OTelSdkError::Timeout(PATIENCE)),
        };
        self.spans.left(spans, &result);
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use opentelemetry::trace::{Event, SpanContext, SpanId, SpanKind};
    use opentelemetry_sdk::trace::{SpanEvents, SpanLinks};

    use super::*;

    #[test]
    fn no_part_of_a_span_has_the_credential_of_a_url() {
        let url = "GET https://x/p/s3cret/n/ns/b/bk/o/m";
        let attributes = || vec![KeyValue::new("exception.message", url)];
        let mut events = SpanEvents::default();
        events.events.push(Event::new(url, SystemTime::UNIX_EPOCH, attributes(), 0));
        let mut span = SpanData {
            span_context: SpanContext::empty_context(),
            parent_span_id: SpanId::INVALID,
            parent_span_is_remote: false,
            span_kind: SpanKind::Internal,
            name: "publish".into(),
            start_time: SystemTime::UNIX_EPOCH,
            end_time: SystemTime::UNIX_EPOCH,
            attributes: attributes(),
            dropped_attributes_count: 0,
            events,
            links: SpanLinks::default(),
            status: Status::error(url),
            instrumentation_scope: opentelemetry::InstrumentationScope::default(),
        };
        redact(&mut span);
        let shown = format!("{span:?}");
        assert!(!shown.contains("s3cret"), "{shown}");
        assert_eq!(shown.matches("/p/…/n/ns").count(), 4, "{shown}");
    }
}
