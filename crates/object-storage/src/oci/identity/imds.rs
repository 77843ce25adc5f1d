//! The instance metadata service, version 2.

use std::time::SystemTime;

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

const ONLY_ON_INSTANCES: &str = "instance_principal works on OCI compute instances only: elsewhere \
    use --auth api_key; on an instance, check that pods may reach 169.254.169.254";

/// A client of the metadata service of this node.
pub(crate) struct Imds {
    transport: Transport,
    base: Endpoint,
    retry: RetryPolicy,
}

impl Imds {
    pub(crate) fn new(settings: &Settings) -> Result<Self, StorageError> {
        let base = settings
            .or_variable(settings.metadata_base.as_ref(), "OCI_METADATA_BASE_URL")
            .unwrap_or_else(|| DEFAULT_BASE.to_owned());
        let connect = settings.timeouts.metadata_connect;
        let waits = TransportTimeouts { connect, ..TransportTimeouts::from(&settings.timeouts) };
        Ok(Self {
            transport: Transport::direct(waits, settings.ca_file().as_deref())?,
            base: Endpoint::parse(&base, "the metadata service's URL")?,
            retry: settings.retry.clone(),
        })
    }

    /// Gets the text at `path`, which begins with a slash.
    ///
    /// A 404 is repeated too: the service returns it while it starts.
    pub(crate) async fn get(&self, path: &str) -> Result<String, StorageError> {
        let mut attempts = self.retry.start();
        loop {
            match self.attempt(path).await {
                Ok(text) => return Ok(text),
                Err(error) => attempts.again(error).await?,
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
        let (parts, body) = response.into_parts();
        let body = self.transport.read(body, LONGEST_ANSWER).await.map_err(unreachable)?;
        if parts.status == StatusCode::OK {
            return String::from_utf8(body.to_vec()).map_err(|_| {
                StorageError::new(StorageErrorKind::Protocol, attempted, "the answer is not text")
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
        // Something else listens there.
        let elsewhere = (kind == StorageErrorKind::Config).then_some(ONLY_ON_INSTANCES);
        Err(refused(kind, attempted, answer).with_known_remedy(elsewhere))
    }
}
