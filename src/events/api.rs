//! The API server, as far as events need it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::Full;
use serde_json::json;

use super::Event;
use crate::error::{Error, Result};
use crate::transport::{Transport, Waits};

/// Nobody waits for an event.
const WAITS: Waits = Waits {
    connect: Duration::from_secs(5),
    response_head: Duration::from_secs(10),
    body_idle: Duration::from_secs(5),
};

/// The longest answer that is read; what it says is of no interest.
const ANSWER: usize = 1 << 20;

/// Events of one pod and reason that are counted up instead of made anew.
const REMEMBERED: usize = 4096;

/// An API server, and who asks it.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// `https://host:port`.
    pub url: String,
    /// The bearer token, read anew for each request: kubelet rotates it.
    pub token_file: PathBuf,
    /// Its CA, besides the system's.
    pub ca_file: Option<PathBuf>,
}

impl Cluster {
    /// The URL of the cluster that this process runs in, if it runs in one
    /// (Kubernetes documentation, "Accessing the Kubernetes API from a Pod").
    pub fn own_url() -> Option<String> {
        let host = std::env::var("KUBERNETES_SERVICE_HOST").ok()?;
        let port = std::env::var("KUBERNETES_SERVICE_PORT").ok()?;
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        Some(format!("https://{host}:{port}"))
    }

    /// The API server at this URL; the directory has `token` and perhaps `ca.crt`.
    pub fn at(url: String, service_account: &Path) -> Self {
        let ca_file = Some(service_account.join("ca.crt")).filter(|file| file.exists());
        Self { url, token_file: service_account.join("token"), ca_file }
    }
}

/// What became of an event.
#[derive(Debug)]
pub(super) enum Posted {
    Done,
    Forbidden,
    Failed(String),
}

pub(super) struct Api {
    transport: Transport,
    url: String,
    token_file: PathBuf,
    driver: String,
    node: String,
    /// Name and count of the event that stands for a pod and reason.
    standing: HashMap<(String, &'static str), (String, u32)>,
    next: u64,
}

impl Api {
    pub(super) fn new(cluster: &Cluster, driver: &str, node: &str) -> Result<Self> {
        let transport = Transport::new(WAITS, cluster.ca_file.as_deref()).map_err(|unusable| {
            Error::invalid(format!("{} for events: {}", unusable.attempted, unusable.why))
        })?;
        Ok(Self {
            transport,
            url: cluster.url.trim_end_matches('/').to_owned(),
            token_file: cluster.token_file.clone(),
            driver: driver.to_owned(),
            node: node.to_owned(),
            standing: HashMap::new(),
            next: 0,
        })
    }

    /// Posts an event, or counts up the one that stands.
    pub(super) async fn post(&mut self, event: &Event) -> Posted {
        let key = (event.subject.uid.clone(), event.reason.name());
        if let Some((name, count)) = self.standing.get(&key).cloned() {
            let count = count.saturating_add(1);
            let body = json!({
                "count": count, "message": event.note, "lastTimestamp": now(),
            });
            let path = format!("{}/{name}", self.path(event));
            let kind = "application/merge-patch+json";
            match self.send(Method::PATCH, &path, kind, &body).await {
                Ok(StatusCode::NOT_FOUND) => {
                    // It lived for an hour, as events do.
                    self.standing.remove(&key);
                }
                Ok(status) if status.is_success() => {
                    self.standing.insert(key, (name, count));
                    return Posted::Done;
                }
                other => return failed(other),
            }
        }
        self.create(event, key).await
    }

    async fn create(&mut self, event: &Event, key: (String, &'static str)) -> Posted {
        self.next += 1;
        let started = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        // As client-go names them: unique, and sorted by when.
        let unique = format!("{:x}", started.as_nanos().wrapping_add(u128::from(self.next)));
        let most = 253 - unique.len() - 1;
        let pod: String = event.subject.name.chars().take(most).collect();
        let name = format!("{pod}.{unique}");
        let kind = if event.reason.is_warning() { "Warning" } else { "Normal" };
        let body = json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": event.subject.namespace},
            "involvedObject": {
                "apiVersion": "v1",
                "kind": "Pod",
                "namespace": event.subject.namespace,
                "name": event.subject.name,
                "uid": event.subject.uid,
            },
            "reason": event.reason.name(),
            "message": event.note,
            "type": kind,
            "count": 1,
            "firstTimestamp": now(),
            "lastTimestamp": now(),
            "source": {"component": self.driver, "host": self.node},
            "reportingComponent": self.driver,
            "reportingInstance": self.node,
        });
        match self.send(Method::POST, &self.path(event), "application/json", &body).await {
            Ok(status) if status.is_success() => {
                if self.standing.len() >= REMEMBERED {
                    self.standing.clear();
                }
                self.standing.insert(key, (name, 1));
                Posted::Done
            }
            other => failed(other),
        }
    }

    fn path(&self, event: &Event) -> String {
        format!("{}/api/v1/namespaces/{}/events", self.url, event.subject.namespace)
    }

    async fn send(
        &self,
        method: Method,
        url: &str,
        kind: &str,
        body: &serde_json::Value,
    ) -> Result<StatusCode, String> {
        let token = tokio::fs::read_to_string(&self.token_file)
            .await
            .map_err(|e| format!("reading {}: {e}", self.token_file.display()))?;
        let mut bearer = header::HeaderValue::try_from(format!("Bearer {}", token.trim()))
            .map_err(|_| "the service account's token cannot be sent".to_owned())?;
        bearer.set_sensitive(true);
        let request = Request::builder()
            .method(method)
            .uri(url)
            .header(header::AUTHORIZATION, bearer)
            .header(header::CONTENT_TYPE, kind)
            .header(header::ACCEPT, "application/json")
            .header(header::USER_AGENT, concat!("oci-model-csi/", env!("CARGO_PKG_VERSION")))
            .body(Full::new(Bytes::from(body.to_string())))
            .map_err(|e| e.to_string())?;
        let response = self.transport.send(request).await.map_err(|failure| failure.what)?;
        let status = response.status();
        // Read to its end, the connection serves the next event.
        let _ = self.transport.read(response.into_body(), ANSWER).await;
        Ok(status)
    }
}

fn failed(outcome: Result<StatusCode, String>) -> Posted {
    match outcome {
        Ok(StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED) => Posted::Forbidden,
        Ok(status) => Posted::Failed(format!("the API server answered {status}")),
        Err(error) => Posted::Failed(error),
    }
}

/// RFC 3339 in whole seconds, as `metav1.Time` has it.
fn now() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}
