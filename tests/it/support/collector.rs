//! An OpenTelemetry collector: it takes what the driver exports over gRPC, and the tests look at
//! the trees of its spans.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::Span;
use rcgen::{CertificateParams, KeyPair};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status};

use super::run::eventually;

/// Longer than the driver waits between two exports.
const SOON: Duration = Duration::from_secs(30);

/// Takes spans until the test's runtime ends.
#[derive(Debug, Clone)]
pub(crate) struct Collector {
    pub(crate) address: SocketAddr,
    /// The certificate to trust, of one that speaks TLS.
    certificate: Option<PathBuf>,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    spans: Vec<Span>,
    /// The attributes of the last resource.
    resource: BTreeMap<String, String>,
    /// The values of the header `x-tenant`.
    tenants: Vec<String>,
}

/// A trace: its spans by the path of their names from the root.
#[derive(Debug, Clone)]
pub(crate) struct Trace {
    pub(crate) id: String,
    pub(crate) spans: Vec<(String, Span)>,
}

impl Collector {
    pub(crate) async fn start() -> Self {
        Self::serve(Server::builder(), None).await
    }

    /// A collector that speaks TLS under this name, with a certificate of its own in `scratch`.
    pub(crate) async fn start_with_tls(scratch: &Path, name: &str) -> Self {
        let key = KeyPair::generate().expect("a key");
        let certificate = CertificateParams::new([name.to_owned()]).expect("a name");
        let certificate = certificate.self_signed(&key).expect("a certificate").pem();
        let file = scratch.join(format!("{name}.pem"));
        fs::write(&file, &certificate).expect("the certificate's file");
        let identity = Identity::from_pem(certificate, key.serialize_pem());
        let tls = ServerTlsConfig::new().identity(identity);
        Self::serve(Server::builder().tls_config(tls).expect("TLS"), Some(file)).await
    }

    async fn serve(mut server: Server, certificate: Option<PathBuf>) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let collector = Self { address, certificate, state: Arc::default() };
        let serving = server.add_service(TraceServiceServer::new(collector.clone()));
        tokio::spawn(serving.serve_with_incoming(TcpListenerStream::new(listener)));
        collector
    }

    /// The variables of a driver that exports to this collector at once.
    pub(crate) fn environment(&self) -> Vec<(&'static str, String)> {
        let port = self.address.port();
        let endpoint = match &self.certificate {
            Some(_) => format!("https://localhost:{port}"),
            None => format!("http://{}", self.address),
        };
        let mut variables = vec![
            ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint),
            ("OTEL_BSP_SCHEDULE_DELAY", "50".to_owned()),
        ];
        let file = self.certificate.iter().map(|file| file.display().to_string());
        variables.extend(file.map(|file| ("OTEL_EXPORTER_OTLP_CERTIFICATE", file)));
        variables
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn resource(&self) -> BTreeMap<String, String> {
        self.state().resource.clone()
    }

    pub(crate) fn tenants(&self) -> Vec<String> {
        self.state().tenants.clone()
    }

    /// All that has arrived, a span in each line.
    pub(crate) fn text(&self) -> String {
        let state = self.state();
        let lines: Vec<_> = state.spans.iter().map(|span| format!("{span:?}")).collect();
        lines.join("\n")
    }

    /// The traces whose root has this name, as far as they have arrived.
    pub(crate) fn traces(&self, root: &str) -> Vec<Trace> {
        let mut traces: BTreeMap<Vec<u8>, Vec<Span>> = BTreeMap::new();
        for span in &self.state().spans {
            traces.entry(span.trace_id.clone()).or_default().push(span.clone());
        }
        let traces = traces.into_iter().map(|(id, spans)| Trace::of(&id, &spans));
        traces.filter(|trace| trace.spans.iter().any(|(path, _)| path == root)).collect()
    }

    /// Waits for that many traces with this root.
    pub(crate) async fn until(&self, root: &str, count: usize) -> Vec<Trace> {
        eventually(root, SOON, async || {
            let traces = self.traces(root);
            (traces.len() >= count).then_some(traces)
        })
        .await
    }
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let tenant = request.metadata().get("x-tenant").and_then(|value| value.to_str().ok());
        let tenant = tenant.map(str::to_owned);
        let mut state = self.state();
        state.tenants.extend(tenant);
        for of_resource in request.into_inner().resource_spans {
            let resource = of_resource.resource.unwrap_or_default();
            state.resource = attributes(&resource.attributes);
            state.spans.extend(of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Trace {
    fn of(id: &[u8], spans: &[Span]) -> Self {
        let path = |span: &Span| {
            let mut path = vec![span.name.clone()];
            let mut parent = span.parent_span_id.clone();
            while let Some(above) = spans.iter().find(|one| one.span_id == parent) {
                path.push(above.name.clone());
                parent.clone_from(&above.parent_span_id);
            }
            // Its parent has not arrived.
            if !parent.is_empty() {
                path.push("?".to_owned());
            }
            path.reverse();
            path.join("/")
        };
        let mut spans: Vec<_> = spans.iter().map(|span| (path(span), span.clone())).collect();
        spans.sort_by_key(|(_, span)| span.start_time_unix_nano);
        let digits: Vec<String> = id.iter().map(|byte| format!("{byte:02x}")).collect();
        Self { id: digits.concat(), spans }
    }

    /// The paths, in the order in which the spans began.
    pub(crate) fn paths(&self) -> Vec<&str> {
        self.spans.iter().map(|(path, _)| path.as_str()).collect()
    }

    /// The last span with this path.
    #[track_caller]
    pub(crate) fn span(&self, path: &str) -> &Span {
        let found = self.spans.iter().rev().find(|(own, _)| own == path);
        &found.unwrap_or_else(|| panic!("no {path} in {:#?}", self.paths())).1
    }
}

/// Attributes as texts.
pub(crate) fn attributes(of: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |value: &Option<AnyValue>| match value.as_ref().and_then(|one| one.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::BoolValue(value)) => value.to_string(),
        other => format!("{other:?}"),
    };
    of.iter().map(|one| (one.key.clone(), text(&one.value))).collect()
}
