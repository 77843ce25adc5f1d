//! A small client of the Kubernetes API: JSON requests of a service account to
//! one API server, with bounded answers and timeouts. Its callers know the objects.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::Full;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::http_error::{HttpError, HttpMeaning};
use crate::text::shown;
use crate::transport::{Transport, TransportFailure, TransportTimeouts};

/// The API server is near, and requests to it are small.
const WAITS: TransportTimeouts = TransportTimeouts {
    connect: Duration::from_secs(5),
    response_head: Duration::from_secs(10),
    body_idle: Duration::from_secs(5),
};

/// The longest duration of a whole exchange, however slow its body.
const EXCHANGE: Duration = Duration::from_secs(30);

/// The longest answer that is read. etcd stores no object longer than 1.5 MiB.
const ANSWER: usize = 4 << 20;

/// The longest text of the API server that messages quote, in characters.
const MESSAGE: usize = 300;

/// Names in a path, as the API server expects them.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The media type of all bodies.
const JSON: &str = "application/json";

/// Objects of one page of a list: with their metadata they are far below [`ANSWER`].
const PAGE: usize = 250;

/// The most pages of a list; Kubernetes supports 5000 nodes.
const MAX_PAGES: usize = 200;

/// What a list has of each object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListForm {
    /// The whole object.
    Whole,
    /// Its metadata: names, labels, annotations.
    Metadata,
}

impl ListForm {
    /// The media type (Kubernetes documentation, "Metadata-only fetches").
    fn accept(self) -> &'static str {
        match self {
            Self::Whole => JSON,
            Self::Metadata => {
                "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"
            }
        }
    }
}

/// An API server, and the credentials for it.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// `https://host:port`.
    pub url: String,
    /// The bearer token, read again for each request: kubelet rotates it. `None` for a
    /// server that asks for none, such as `kubectl proxy`.
    pub token_file: Option<PathBuf>,
    /// Its CA, in addition to the system's.
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

    /// The API server at this URL. The directory has `token`, and `ca.crt` if the server needs one.
    pub fn at(url: String, service_account: &Path) -> Self {
        let ca_file = Some(service_account.join("ca.crt")).filter(|file| file.exists());
        Self { url, token_file: Some(service_account.join("token")), ca_file }
    }

    /// The API server at this URL, which asks for no credentials.
    pub fn open(url: String) -> Self {
        Self { url, token_file: None, ca_file: None }
    }
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ApiFailure {
    /// The API server refused it.
    Answered {
        /// The HTTP status, outside 200 to 299.
        status: StatusCode,
        /// `message` of its `Status`, shortened; empty when it sent none.
        message: String,
        /// Whether the only reason is that the object's namespace is being deleted.
        ending: bool,
    },
    /// There was no answer, or an unreadable one: why.
    Unanswered(String),
}

impl ApiFailure {
    /// The status that was answered.
    pub fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Answered { status, .. } => Some(*status),
            Self::Unanswered(_) => None,
        }
    }

    /// What the answer means; `None` where there was none.
    pub(crate) fn meaning(&self) -> Option<HttpMeaning> {
        self.status().map(HttpMeaning::of)
    }

    /// Whether asking again is useless until an administrator changes a role: 401 and 403,
    /// but not the 403 of a namespace that is being deleted.
    pub fn is_forbidden(&self) -> bool {
        let ending = matches!(self, Self::Answered { ending: true, .. });
        let refused = [Some(HttpMeaning::Forbidden), Some(HttpMeaning::Unauthenticated)];
        refused.contains(&self.meaning()) && !ending
    }

    /// Whether the object does not exist.
    pub fn is_not_found(&self) -> bool {
        self.meaning() == Some(HttpMeaning::NotFound)
    }
}

impl fmt::Display for ApiFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answered { status, message, .. } if message.is_empty() => {
                write!(f, "the API server answered {status}")
            }
            Self::Answered { status, message, .. } => {
                write!(f, "the API server answered {status}: {message}")
            }
            Self::Unanswered(why) => f.write_str(why),
        }
    }
}

/// How a change of an object is written.
#[derive(Debug, Clone)]
pub enum Patch {
    /// RFC 7386: named fields are replaced, `null` removes.
    Merge(Value),
    /// RFC 6902: a list of operations, which `test` can make conditional.
    Json(Value),
}

/// Builds a path from names, each encoded: `/api/v1/namespaces/NAME/events`.
pub fn path<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    use std::fmt::Write as _;
    let mut path = String::new();
    for name in names {
        let _ = write!(path, "/{}", utf8_percent_encode(name, SEGMENT));
    }
    path
}

/// A client of one API server with one service account; cheap to clone.
#[derive(Clone)]
pub struct ApiServer {
    transport: Transport,
    url: String,
    token_file: Option<PathBuf>,
}

impl ApiServer {
    /// Creates a client of this cluster.
    ///
    /// # Errors
    /// When its CA cannot be read.
    pub fn new(cluster: &Cluster) -> Result<Self> {
        let transport =
            Transport::direct(WAITS, cluster.ca_file.as_deref()).map_err(|unusable| {
                Error::invalid(format!(
                    "{} for the Kubernetes API: {}",
                    unusable.attempted, unusable.why
                ))
            })?;
        let url = cluster.url.trim_end_matches('/').to_owned();
        Ok(Self { transport, url, token_file: cluster.token_file.clone() })
    }

    /// Gets the object at a path, as [`path`] builds it.
    pub async fn get(&self, path: &str) -> Result<Value, ApiFailure> {
        self.exchange(Method::GET, path, JSON, None).await
    }

    /// Creates an object of the kind at a path, and returns what was created.
    pub async fn post(&self, path: &str, object: &Value) -> Result<Value, ApiFailure> {
        self.exchange(Method::POST, path, JSON, Some((JSON, object))).await
    }

    /// Patches the object at a path, and returns the result.
    pub async fn patch(&self, path: &str, patch: &Patch) -> Result<Value, ApiFailure> {
        let body = match patch {
            Patch::Merge(body) => ("application/merge-patch+json", body),
            Patch::Json(body) => ("application/json-patch+json", body),
        };
        self.exchange(Method::PATCH, path, JSON, Some(body)).await
    }

    /// Lists the objects at a path, page by page, as far as [`ListForm`] asks for them.
    ///
    /// # Errors
    /// An unanswered or refused page, or more pages than any cluster has.
    pub async fn list(&self, path: &str, form: ListForm) -> Result<Vec<Value>, ApiFailure> {
        let mut items = Vec::new();
        let mut token = String::new();
        for _ in 0..MAX_PAGES {
            let page = format!("{path}?limit={PAGE}&continue={token}");
            let mut answer = self.exchange(Method::GET, &page, form.accept(), None).await?;
            match answer["items"].take() {
                Value::Array(found) => items.extend(found),
                Value::Null => {}
                _ => return Err(ApiFailure::Unanswered("the answer is not a list".to_owned())),
            }
            token = match answer["metadata"]["continue"].as_str() {
                Some(next) if !next.is_empty() => utf8_percent_encode(next, SEGMENT).to_string(),
                _ => return Ok(items),
            };
        }
        Err(ApiFailure::Unanswered(format!("the list does not end after {MAX_PAGES} pages")))
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        accept: &str,
        body: Option<(&str, &Value)>,
    ) -> Result<Value, ApiFailure> {
        let request =
            self.request(method, path, accept, body).await.map_err(ApiFailure::Unanswered)?;
        let answer = async {
            let response = self.transport.send(request).await?;
            let (parts, body) = response.into_parts();
            // A connection whose body was read to its end serves the next request.
            Ok::<_, TransportFailure>((parts, self.transport.read(body, ANSWER).await))
        };
        let (parts, body) = match tokio::time::timeout(EXCHANGE, answer).await {
            Ok(Ok(answered)) => answered,
            Ok(Err(failure)) => return Err(ApiFailure::Unanswered(failure.what)),
            Err(_) => {
                let seconds = EXCHANGE.as_secs();
                return Err(ApiFailure::Unanswered(format!("no whole answer within {seconds} s")));
            }
        };
        if !parts.status.is_success() {
            let body = body.unwrap_or_default();
            let answer = HttpError::of_json(parts.status, &parts.headers, &body, SystemTime::now());
            let message = shown(&answer.message.unwrap_or_default(), MESSAGE);
            let ending = is_of_an_ending_namespace(&body);
            return Err(ApiFailure::Answered { status: parts.status, message, ending });
        }
        let body = body.map_err(|failure| ApiFailure::Unanswered(failure.what))?;
        serde_json::from_slice(&body)
            .map_err(|error| ApiFailure::Unanswered(format!("the answer is not JSON: {error}")))
    }

    async fn request(
        &self,
        method: Method,
        path: &str,
        accept: &str,
        body: Option<(&str, &Value)>,
    ) -> Result<Request<Full<Bytes>>, String> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url))
            .header(header::ACCEPT, accept)
            .header(header::USER_AGENT, concat!("oci-model-csi/", env!("CARGO_PKG_VERSION")));
        if let Some(file) = &self.token_file {
            request = request.header(header::AUTHORIZATION, bearer(file).await?);
        }
        let mut bytes = Bytes::new();
        if let Some((kind, body)) = body {
            request = request.header(header::CONTENT_TYPE, kind);
            bytes = Bytes::from(body.to_string());
        }
        request.body(Full::new(bytes)).map_err(|e| e.to_string())
    }
}

impl fmt::Debug for ApiServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Api").field("url", &self.url).finish_non_exhaustive()
    }
}

/// The credential in a file, as a header.
async fn bearer(file: &Path) -> Result<header::HeaderValue, String> {
    let token = tokio::fs::read_to_string(file)
        .await
        .map_err(|e| format!("reading {}: {e}", file.display()))?;
    let mut bearer = header::HeaderValue::try_from(format!("Bearer {}", token.trim()))
        .map_err(|_| "the service account's token cannot be sent".to_owned())?;
    bearer.set_sensitive(true);
    Ok(bearer)
}

/// Whether a `metav1.Status` has the cause that the API server gives when an
/// object is created in a namespace that is being deleted.
fn is_of_an_ending_namespace(body: &[u8]) -> bool {
    let status: Value = serde_json::from_slice(body).unwrap_or_default();
    let causes = status["details"]["causes"].as_array();
    causes.is_some_and(|causes| causes.iter().any(|one| one["reason"] == "NamespaceTerminating"))
}

#[cfg(test)]
mod tests;
