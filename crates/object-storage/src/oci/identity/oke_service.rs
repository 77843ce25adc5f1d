//! OKE's identity service: the token of a service account for a session token, whose key is
//! generated here (`POST /resourcePrincipalSessionTokens`).

use std::path::Path;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http::{HeaderValue, Request, header};
use http_body_util::Full;
use serde::Deserialize;

use super::Credential;
use super::token::Lifetime;
use crate::http_error::{HttpError, HttpMeaning, server_time};
use crate::oci::clock::Clock;
use crate::oci::endpoint::Endpoint;
use crate::oci::error::{StorageError, StorageErrorKind, identity_kind, refused, unanswered};
use crate::oci::key::KeyPair;
use crate::oci::settings::Settings;
use crate::source::RetryPolicy;
use crate::transport::{Transport, TransportFailure};

/// The port of OKE's identity service in every cluster.
const PORT: u16 = 12250;

/// The cluster's CA, in every pod.
const CA_FILE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt";

const OUTAGE: &str = "the cluster's identity service is overloaded or down: it is asked again; see \
    whether the cluster is being upgraded if it stays so";

/// A token is a few kilobytes.
const LONGEST_ANSWER: usize = 256 * 1024;

/// Whose token is exchanged: how messages name it, and what they advise.
pub(super) struct TokenOwner<'a> {
    pub(super) who: &'a str,
    /// What to do about a token that has expired.
    pub(super) expired: &'static str,
    /// What to do about a token that the service refuses.
    pub(super) refused: &'static str,
}

/// OKE's identity service.
pub(super) struct Exchange {
    pub(super) endpoint: Endpoint,
    transport: Transport,
    retry: RetryPolicy,
    pub(super) clock: Clock,
}

#[derive(Deserialize)]
struct TokenReply {
    token: String,
}

impl Exchange {
    /// The service of the settings, else that of the cluster that this process runs in.
    pub(super) fn new(settings: &Settings, clock: Clock) -> Result<Self, StorageError> {
        let environment = &settings.environment;
        let url = match (&settings.oke_endpoint, environment.get("KUBERNETES_SERVICE_HOST")) {
            (Some(url), _) => url.clone(),
            (None, Some(host)) if host.contains(':') => format!("https://[{host}]:{PORT}"),
            (None, Some(host)) => format!("https://{host}:{PORT}"),
            (None, None) => {
                return Err(StorageError::config(
                    "finding OKE's identity service",
                    "this process runs in no cluster (KUBERNETES_SERVICE_HOST is not set)",
                )
                .with_remedy("set --oke-endpoint, or another --auth"));
            }
        };
        let ca_file = settings
            .oke_ca_file
            .clone()
            .or_else(|| {
                let named = environment.get("OCI_KUBERNETES_SERVICE_ACCOUNT_CERT_PATH")?;
                Some(environment.expand(named))
            })
            .or_else(|| Some(Path::new(CA_FILE).to_owned()).filter(|file| file.exists()));
        let endpoint = Endpoint::parse_bare(&url, "the endpoint of OKE's identity service")?;
        let transport = Transport::direct((&settings.timeouts).into(), ca_file.as_deref())?;
        Ok(Self { endpoint, transport, retry: settings.retry.clone(), clock })
    }

    /// Exchanges a service account's token for a credential with a key that is made here.
    ///
    /// # Errors
    /// `Unauthenticated` for a token that has expired, which is not sent, or that the service does
    /// not accept; `Forbidden` where the cluster has no such service for it; `Identity` when the
    /// service cannot be reached.
    pub(super) async fn credential(
        &self,
        owner: &TokenOwner<'_>,
        token: &str,
    ) -> Result<Credential, StorageError> {
        let host = self.endpoint.host();
        let attempted = format!("exchanging the token of {} at {host}", owner.who);
        let now = self.clock.now();
        // A token that is not a JWT is left to the service.
        if Lifetime::expiry(token).is_some_and(|expiry| expiry <= now) {
            let why = "it has expired";
            return Err(StorageError::new(StorageErrorKind::Unauthenticated, attempted, why)
                .with_remedy(owner.expired));
        }
        let broken =
            |why: String| StorageError::new(StorageErrorKind::Identity, attempted.clone(), why);
        let session_key = tokio::task::spawn_blocking(KeyPair::generate)
            .await
            .map_err(|error| broken(error.to_string()))?
            .map_err(|error| broken(error.to_string()))?;
        let public = session_key.public_der().map_err(|error| broken(error.to_string()))?;
        let body = serde_json::json!({ "podKey": BASE64.encode(public) }).to_string();
        let mut attempts = self.retry.start();
        let (jwt, theirs) = loop {
            match self.attempt(owner, &attempted, token, Bytes::from(body.clone())).await {
                Ok(answer) => break answer,
                Err(error) => attempts.again(error).await?,
            }
        };
        let lifetime = Lifetime::of_jwt(&jwt, self.clock.now(), theirs)
            .map_err(|why| StorageError::new(StorageErrorKind::Protocol, attempted, why))?;
        let lifetime = lifetime.replaced_at_half(self.clock.now());
        Ok(Credential::of_token(&jwt, session_key, lifetime))
    }

    async fn attempt(
        &self,
        owner: &TokenOwner<'_>,
        attempted: &str,
        token: &str,
        body: Bytes,
    ) -> Result<(String, Option<SystemTime>), StorageError> {
        let request = self
            .request(token, body)
            .map_err(|why| StorageError::config(attempted.to_owned(), why))?;
        let unreachable = |failure: TransportFailure| {
            unanswered(StorageErrorKind::Identity, attempted, failure).with_remedy(
                "check that this pod may reach the cluster's own address on port 12250",
            )
        };
        let response = self.transport.send(request).await.map_err(unreachable)?;
        let (parts, body) = response.into_parts();
        let body = self.transport.read(body, LONGEST_ANSWER).await.map_err(unreachable)?;
        if parts.status.is_success() {
            let jwt = session_token(&body).ok_or_else(|| {
                // Not quoted: it may hold a token.
                StorageError::new(
                    StorageErrorKind::Protocol,
                    attempted.to_owned(),
                    "the answer has no token",
                )
            })?;
            return Ok((jwt, server_time(&parts.headers)));
        }
        let now = self.clock.now();
        let mut answer = HttpError::of_json(parts.status, &parts.headers, &body, now);
        // A service that quotes its input must not put a token into our messages.
        answer.message = answer.message.filter(|message| !message.contains(token));
        let remedy = match answer.meaning() {
            HttpMeaning::Unauthenticated => Some(owner.refused),
            HttpMeaning::Forbidden | HttpMeaning::NotFound => {
                Some("oke_workload_identity needs an enhanced cluster: use one, or another auth")
            }
            _ if identity_kind(&answer) == StorageErrorKind::Identity => Some(OUTAGE),
            _ => None,
        };
        // Whatever else it refuses is not the fault of the request for a model.
        let kind = match identity_kind(&answer) {
            StorageErrorKind::Invalid => StorageErrorKind::Forbidden,
            kind => kind,
        };
        Err(refused(kind, attempted, answer).with_known_remedy(remedy))
    }

    fn request(&self, token: &str, body: Bytes) -> Result<Request<Full<Bytes>>, String> {
        let target = self.endpoint.target("/resourcePrincipalSessionTokens");
        let uri = self.endpoint.uri(&target).map_err(|error| error.to_string())?;
        let mut authorization = HeaderValue::try_from(format!("Bearer {token}"))
            .map_err(|_| "the token has bytes that no token has".to_owned())?;
        authorization.set_sensitive(true);
        Request::post(uri)
            .header(header::HOST, self.endpoint.host())
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::CONTENT_LENGTH, body.len())
            .header(header::AUTHORIZATION, authorization)
            .body(Full::new(body))
            .map_err(|error| error.to_string())
    }
}

/// The JWT of an answer: a JSON string of base64 of `{"token": "ST$…"}`.
fn session_token(body: &[u8]) -> Option<String> {
    let encoded: String = serde_json::from_slice(body).ok()?;
    let answer: TokenReply = serde_json::from_slice(&BASE64.decode(encoded.trim()).ok()?).ok()?;
    let jwt = answer.token.strip_prefix("ST$").unwrap_or(&answer.token);
    (!jwt.is_empty()).then(|| jwt.to_owned())
}
