//! The instance metadata service, version 2.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::Full;

use crate::http_error::{HttpError, HttpMeaning};
use crate::oci::endpoint::Endpoint;
use crate::oci::error::{StorageError, StorageErrorKind, refused, unanswered};
use crate::oci::settings::Settings;
use crate::source::RetryPolicy;
use crate::transport::{Transport, TransportFailure, TransportTimeouts};

/// The address of the service on every instance; link-local, so never through a proxy.
const DEFAULT_BASE: &str = "http://169.254.169.254/opc/v2";

/// Certificates and keys are a few kilobytes.
const LONGEST_ANSWER: usize = 64 * 1024;

/// How long a service that has never answered may stay silent: it is on the node, or not at all.
const FIRST_CONTACT: Duration = Duration::from_secs(5);

/// How long an answer may take: the service is one hop away.
const SLOWEST_ANSWER: Duration = Duration::from_secs(10);

const ONLY_ON_INSTANCES: &str = "instance_principal works on OCI compute instances only: elsewhere \
    use --auth api_key; on an instance, check that pods may reach 169.254.169.254";

/// What to do about answers that are not the service's.
pub(super) const NOT_THE_SERVICE: &str = "something else than the metadata service answers there: \
    check OCI_METADATA_BASE_URL, and that neither a proxy nor the network of the pods answers for \
    169.254.169.254";

const NOT_READY: &str = "the metadata service is not ready, as after the start of an instance; if it \
    stays so, this is no OCI instance, where instance_principal cannot work: use --auth api_key";

const BUSY: &str = "the metadata service is not ready, or this node asks it too often: it is asked \
    again; if it stays so, look for another program on the node that polls it";

/// A client of the metadata service of this node.
pub(crate) struct Imds {
    transport: Transport,
    base: Endpoint,
    retry: RetryPolicy,
    /// How long the body of an answer may take.
    slowest: Duration,
    has_answered: AtomicBool,
}

impl Imds {
    pub(crate) fn new(settings: &Settings) -> Result<Self, StorageError> {
        let base = settings
            .or_variable(settings.metadata_base.as_ref(), "OCI_METADATA_BASE_URL")
            .unwrap_or_else(|| DEFAULT_BASE.to_owned());
        let connect = settings.timeouts.metadata_connect;
        let response_head = settings.timeouts.response_head.min(SLOWEST_ANSWER);
        let waits = TransportTimeouts::from(&settings.timeouts);
        let waits = TransportTimeouts { connect, response_head, ..waits };
        Ok(Self {
            transport: Transport::direct(waits, settings.ca_file().as_deref())?,
            base: Endpoint::parse(&base, "the metadata service's URL")?,
            retry: settings.retry.clone(),
            slowest: response_head,
            has_answered: AtomicBool::new(false),
        })
    }

    /// Gets the text at `path`, which begins with a slash.
    ///
    /// A 404 is repeated too: the service returns it while it starts. Where none has ever answered,
    /// that is reported after some seconds.
    pub(crate) async fn get(&self, path: &str) -> Result<String, StorageError> {
        let mut attempts = self.retry.start();
        let patience = self.retry.budget().min(FIRST_CONTACT);
        let mut first_contact = self.retry.clone().within(patience).start();
        loop {
            match self.attempt(path).await {
                Ok(text) => return Ok(text),
                Err(error) if self.has_answered.load(Ordering::Relaxed) => {
                    attempts.again(error).await?;
                }
                Err(error) => first_contact.again(error).await?,
            }
        }
    }

    async fn attempt(&self, path: &str) -> Result<String, StorageError> {
        let target = self.base.target(path);
        let attempted = format!("asking the metadata service at {} for {target}", self.base.host());
        let request = self
            .base
            .uri(&target)
            .and_then(|uri| {
                Request::get(uri)
                    .header(header::HOST, self.base.host())
                    .header(header::AUTHORIZATION, "Bearer Oracle")
                    .body(Full::new(Bytes::new()))
            })
            .map_err(|error| StorageError::config(attempted.clone(), error.to_string()))?;
        let unreachable = |failure: TransportFailure| {
            let kind = StorageErrorKind::Identity;
            unanswered(kind, attempted.clone(), failure).with_remedy(ONLY_ON_INSTANCES)
        };
        let response = self.transport.send(request).await.map_err(unreachable)?;
        self.has_answered.store(true, Ordering::Relaxed);
        let (parts, body) = response.into_parts();
        let reading = self.transport.read(body, LONGEST_ANSWER);
        let body = match tokio::time::timeout(self.slowest, reading).await {
            Ok(read) => read.map_err(unreachable)?,
            Err(_) => {
                let why = format!("the answer was not complete after {:?}", self.slowest);
                let error = StorageError::new(StorageErrorKind::Identity, attempted, why);
                return Err(error.with_remedy(NOT_THE_SERVICE));
            }
        };
        if parts.status == StatusCode::OK {
            return String::from_utf8(body.to_vec()).map_err(|_| {
                StorageError::new(StorageErrorKind::Protocol, attempted, "the answer is not text")
                    .with_remedy(NOT_THE_SERVICE)
            });
        }
        let answer = HttpError::of_text(parts.status, &parts.headers, &body, SystemTime::now());
        let kind = match answer.meaning() {
            HttpMeaning::NotFound | HttpMeaning::Throttled | HttpMeaning::Unavailable => {
                StorageErrorKind::Identity
            }
            _ if answer.status.is_server_error() => StorageErrorKind::Identity,
            _ => StorageErrorKind::Config,
        };
        // Something else may listen there.
        let remedy = match kind {
            StorageErrorKind::Config => ONLY_ON_INSTANCES,
            // Those of other clouds have no such path.
            _ if answer.status == StatusCode::NOT_FOUND => NOT_READY,
            _ => BUSY,
        };
        Err(refused(kind, attempted, answer).with_remedy(remedy))
    }
}
