//! The exchange of an instance's certificate for a token (`POST /v1/x509`).

use std::time::SystemTime;

use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, header};
use http_body_util::Full;
use serde::{Deserialize, Serialize};

use super::certificate::InstanceCertificate;
use crate::http_error::{HttpError, server_time};
use crate::oci::clock::{Clock, skew_remedy};
use crate::oci::endpoint::Endpoint;
use crate::oci::error::{StorageError, StorageErrorKind, identity_kind, refused, unanswered};
use crate::oci::key::KeyPair;
use crate::oci::sign;
use crate::source::RetryPolicy;
use crate::transport::Transport;

const NOT_ACCEPTED: &str = "the identity service does not accept this instance's certificate: check \
    the node's clock, and that the region is the instance's own";

const OUTAGE: &str = "the identity service is overloaded or down: it is asked again; see OCI's status \
    page of the region if it stays so";

/// A token is a few kilobytes.
const LONGEST_ANSWER: usize = 256 * 1024;

/// The instance's documents, as read from the metadata service at one time.
pub(crate) struct InstanceDocuments {
    pub(crate) leaf: InstanceCertificate,
    pub(crate) leaf_key: KeyPair,
    pub(crate) intermediate: InstanceCertificate,
    pub(crate) tenancy: String,
}

/// A token with the time of the service's clock when it was issued.
pub(crate) struct SecurityToken {
    pub(crate) jwt: String,
    pub(crate) server_time: Option<SystemTime>,
}

/// A client of one federation endpoint.
pub(crate) struct Federation {
    pub(crate) transport: Transport,
    pub(crate) retry: RetryPolicy,
    pub(crate) clock: Clock,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ExchangeRequest<'a> {
    certificate: &'a str,
    public_key: &'a str,
    intermediate_certificates: [&'a str; 1],
    fingerprint_algorithm: &'a str,
}

#[derive(Deserialize)]
struct ExchangeAnswer {
    token: String,
}

impl Federation {
    /// Requests a token for `session_key` as the instance.
    ///
    /// The form is the Go SDK's: SHA-256 fingerprint in the key id, `host` not signed.
    pub(crate) async fn exchange(
        &self,
        endpoint: &Endpoint,
        instance: &InstanceDocuments,
        session_key: &KeyPair,
    ) -> Result<SecurityToken, StorageError> {
        use base64::Engine as _;
        let attempted =
            format!("exchanging the instance's certificate for a token at {}", endpoint.host());
        let broken =
            |why: String| StorageError::new(StorageErrorKind::Protocol, attempted.clone(), why);
        let public_key = session_key.public_der().map_err(|error| broken(error.to_string()))?;
        let body = serde_json::to_vec(&ExchangeRequest {
            certificate: instance.leaf.base64(),
            public_key: &base64::engine::general_purpose::STANDARD.encode(public_key),
            intermediate_certificates: [instance.intermediate.base64()],
            fingerprint_algorithm: "SHA256",
        })
        .map_err(|error| broken(error.to_string()))?;
        let body = Bytes::from(body);
        let key_id =
            format!("{}/fed-x509-sha256/{}", instance.tenancy, instance.leaf.fingerprint());
        let mut attempts = self.retry.start();
        loop {
            let request = self
                .signed(endpoint, &body, &key_id, &instance.leaf_key)
                .map_err(|why| StorageError::config(attempted.clone(), why))?;
            match self.attempt(request, &attempted).await {
                Ok(token) => return Ok(token),
                Err(error) => attempts.again(error).await?,
            }
        }
    }

    fn signed(
        &self,
        endpoint: &Endpoint,
        body: &Bytes,
        key_id: &str,
        key: &KeyPair,
    ) -> Result<Request<Full<Bytes>>, String> {
        let target = endpoint.target("");
        let date = httpdate::fmt_http_date(self.clock.now());
        let signed = sign::sign(
            &sign::Request {
                method: "POST",
                target: &target,
                host: None,
                date: &date,
                date_header: sign::DateHeader::Date,
                body: Some(sign::Body { content_type: sign::JSON, bytes: body }),
            },
            key_id,
            key,
        )
        .map_err(|error| error.to_string())?;
        let uri = endpoint.uri(&target).map_err(|error| error.to_string())?;
        let mut authorization =
            HeaderValue::try_from(signed.authorization).map_err(|error| error.to_string())?;
        authorization.set_sensitive(true);
        Request::post(uri)
            .header(header::HOST, endpoint.host())
            .header(header::DATE, date)
            .header(header::CONTENT_TYPE, sign::JSON)
            .header(header::CONTENT_LENGTH, body.len())
            .header("x-content-sha256", signed.content_sha256.unwrap_or_default())
            .header(header::AUTHORIZATION, authorization)
            .body(Full::new(body.clone()))
            .map_err(|error| error.to_string())
    }

    async fn attempt(
        &self,
        request: Request<Full<Bytes>>,
        attempted: &str,
    ) -> Result<SecurityToken, StorageError> {
        let unreachable =
            |failure| unanswered(StorageErrorKind::Identity, attempted.to_owned(), failure);
        let response = self.transport.send(request).await.map_err(unreachable)?;
        let (parts, body) = response.into_parts();
        let body = self.transport.read(body, LONGEST_ANSWER).await.map_err(unreachable)?;
        if parts.status == StatusCode::OK {
            let answer: ExchangeAnswer = serde_json::from_slice(&body).map_err(|_| {
                // Not quoted: it may hold a token.
                StorageError::new(
                    StorageErrorKind::Protocol,
                    attempted.to_owned(),
                    "the answer has no token",
                )
            })?;
            let server_time = server_time(&parts.headers);
            return Ok(SecurityToken { jwt: answer.token, server_time });
        }
        let now = self.clock.now();
        let answer = HttpError::of_json(parts.status, &parts.headers, &body, now);
        // Whatever else it refuses is not the fault of the request for a model.
        let kind = match identity_kind(&answer) {
            StorageErrorKind::Invalid => StorageErrorKind::Forbidden,
            kind => kind,
        };
        let remedy = match kind {
            StorageErrorKind::Forbidden => Some(NOT_ACCEPTED.to_owned()),
            StorageErrorKind::Unauthenticated => {
                let skew = skew_remedy(now, &parts.headers, "the identity service");
                Some(skew.unwrap_or_else(|| NOT_ACCEPTED.to_owned()))
            }
            StorageErrorKind::Identity => Some(OUTAGE.to_owned()),
            _ => None,
        };
        Err(refused(kind, attempted, answer).with_known_remedy(remedy))
    }
}
