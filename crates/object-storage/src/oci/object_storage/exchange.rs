//! One request and its answer: signing, 401, repetition, errors.

use std::fmt::Display;

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header, response,
};
use hyper::body::Incoming;

use super::ObjectStorageInner;
use super::remedies::{Reader, remedy};
use crate::http_error::{HttpError, HttpMeaning, header_text};
use crate::oci::clock::skew_remedy;
use crate::oci::endpoint::Endpoint;
use crate::oci::error::{
    StorageError, StorageErrorKind, proxy_login_remedy, refused, storage_kind, unanswered,
};
use crate::oci::identity::Credential;
use crate::oci::identity::own_account::ServiceAccount;
use crate::oci::par::{NotPermitted, ParUrl};
use crate::oci::sign;
use crate::random;
use crate::source::{AuthMethod, Bucket, PodPrincipal, UploadBody};
use crate::text::excerpt;
use crate::transport::{Proxy, RequestBody};

const USER_AGENT: &str = concat!("oci-model-csi/", env!("CARGO_PKG_VERSION"));

/// Errors are short; a longer one is not one of the service's.
const LONGEST_ERROR: usize = 64 * 1024;

/// A request before it is signed.
pub(in crate::oci) struct UnsignedRequest<'a> {
    operation: &'static str,
    subject: String,
    bucket: Option<&'a Bucket>,
    method: Method,
    target: String,
    pub(super) headers: Vec<(HeaderName, String)>,
    /// A body that is signed; those of objects are sent without.
    json: Option<Bytes>,
}

impl<'a> UnsignedRequest<'a> {
    pub(super) fn new(
        operation: &'static str,
        subject: impl Display,
        method: Method,
        target: String,
    ) -> Self {
        let subject = subject.to_string();
        Self { operation, subject, bucket: None, method, target, headers: Vec::new(), json: None }
    }

    pub(super) fn in_bucket(mut self, bucket: &'a Bucket) -> Self {
        self.bucket = Some(bucket);
        self
    }

    /// With a body, which is signed.
    pub(super) fn with_json(mut self, body: &serde_json::Value) -> Self {
        self.json = Some(body.to_string().into());
        self
    }

    /// Whether the request changes something.
    fn writes(&self) -> bool {
        !self.method.is_safe()
    }

    /// The target with the token of a pre-authenticated request.
    fn target_of_par(&self, par: &ParUrl) -> Result<String, StorageError> {
        par.target(self.bucket, &self.target).map_err(|refused| match refused {
            NotPermitted::Operation => self.error(
                StorageErrorKind::Config,
                "a pre-authenticated request only lists and reads objects of its bucket",
            ),
            NotPermitted::Bucket => {
                let Bucket { namespace, name } = par.bucket();
                self.error(
                    StorageErrorKind::Invalid,
                    "the pre-authenticated request is of another bucket or namespace",
                )
                .with_remedy(format!(
                    "name bucket {name} and namespace {namespace}, or use the URL of one for this \
                     bucket"
                ))
            }
        })
    }

    /// `GetObject of a/b in bucket c of namespace d`.
    pub(super) fn attempted(&self) -> String {
        format!("{} of {}", self.operation, self.subject)
    }

    pub(in crate::oci) fn error(
        &self,
        kind: StorageErrorKind,
        cause: impl Into<String>,
    ) -> StorageError {
        StorageError::new(kind, self.attempted(), cause)
    }

    fn request(
        &self,
        endpoint: &Endpoint,
        date: &str,
        authority: Authority<'_>,
        upload: Option<UploadBody>,
    ) -> Result<Request<RequestBody>, StorageError> {
        let refuse = |error: http::Error| self.error(StorageErrorKind::Config, error.to_string());
        let uri = match authority {
            Authority::Par(par) => endpoint.uri(&self.target_of_par(par)?),
            _ => endpoint.uri(&self.target),
        };
        let uri = uri.map_err(refuse)?;
        let mut request = Request::builder()
            .method(&self.method)
            .header(header::HOST, endpoint.host())
            .header(header::DATE, date)
            .header(header::USER_AGENT, USER_AGENT)
            .header("opc-client-request-id", client_request_id());
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        if let Some(json) = &self.json {
            request = request
                .header(header::CONTENT_TYPE, sign::JSON)
                .header(header::CONTENT_LENGTH, json.len());
        }
        if let Some(upload) = &upload {
            request = request.header(header::CONTENT_LENGTH, upload.length);
        }
        if let Authority::Signed(credential) = authority {
            // The target comes from the URI that is sent, never from a second formatting.
            let target = uri.path_and_query().map_or("/", |target| target.as_str());
            let signed = credential.sign(
                &sign::Request {
                    method: self.method.as_str(),
                    target,
                    host: Some(endpoint.host()),
                    date,
                    date_header: sign::DateHeader::Date,
                    body: self
                        .json
                        .as_ref()
                        .map(|json| sign::Body { content_type: sign::JSON, bytes: json }),
                },
                &endpoint.origin(),
            )?;
            let mut authorization = HeaderValue::try_from(signed.authorization)
                .map_err(|error| self.error(StorageErrorKind::Config, error.to_string()))?;
            authorization.set_sensitive(true);
            request = request.header(header::AUTHORIZATION, authorization);
            if let Some(hash) = signed.content_sha256 {
                request = request.header("x-content-sha256", hash);
            }
        }
        let body = match upload {
            Some(UploadBody { length, chunks }) => RequestBody::stream(length, chunks),
            None => RequestBody::whole(self.json.clone().unwrap_or_default()),
        };
        request.uri(uri).body(body).map_err(refuse)
    }
}

/// What lets the service answer a request.
#[derive(Clone, Copy)]
enum Authority<'a> {
    /// A signature.
    Signed(&'a Credential),
    /// The token in the URL of a pre-authenticated request.
    Par(&'a ParUrl),
    /// Nothing: the bucket is public.
    Nothing,
}

impl ObjectStorageInner {
    /// Sends a request once, and again after a 401; any status but 2xx is an error.
    pub(super) async fn send(
        &self,
        call: &UnsignedRequest<'_>,
    ) -> Result<Response<Incoming>, StorageError> {
        self.check_requester(call)?;
        let endpoint = self.endpoint(call).await?;
        let Some(identity) = &self.identity else {
            let response = self.exchange(call, &endpoint, None, None).await?;
            return self.succeeded(call, &endpoint, response).await;
        };
        let credential = identity.credentials().await.map_err(StorageError::of_identity)?;
        let response = self.exchange(call, &endpoint, Some(&credential), None).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return self.succeeded(call, &endpoint, response).await;
        }
        let other = match identity.invalidate(&credential).await {
            Ok(Some(other)) => other,
            Ok(None) => return self.succeeded(call, &endpoint, response).await,
            Err(error) if error.is_transient() => return Err(error.of_identity()),
            // The refusal is what happened; why there is no other credential belongs to it.
            Err(cause) => {
                let refusal = self.succeeded(call, &endpoint, response).await;
                let why = format!("no other credential is available: {cause}");
                return refusal.map_err(|refusal| refusal.with_remedy(why));
            }
        };
        // A connection whose body was read to its end can be used again.
        let _ = self.transport.read(response.into_body(), LONGEST_ERROR).await;
        let response = self.exchange(call, &endpoint, Some(&other), None).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            identity.repeat_was_futile();
        }
        self.succeeded(call, &endpoint, response).await
    }

    /// Sends a request with a body that cannot be sent twice. After a 401 that another
    /// credential may mend the error is transient: the caller sends the bytes again.
    pub(super) async fn send_upload(
        &self,
        call: &UnsignedRequest<'_>,
        body: UploadBody,
    ) -> Result<Response<Incoming>, StorageError> {
        self.check_requester(call)?;
        let endpoint = self.endpoint(call).await?;
        let Some(identity) = &self.identity else {
            let response = self.exchange(call, &endpoint, None, Some(body)).await?;
            return self.succeeded(call, &endpoint, response).await;
        };
        let credential = identity.credentials().await.map_err(StorageError::of_identity)?;
        let response = self.exchange(call, &endpoint, Some(&credential), Some(body)).await?;
        if response.status() == StatusCode::UNAUTHORIZED
            && let Ok(Some(_)) = identity.invalidate(&credential).await
        {
            let why = "the credential was refused, and has been replaced";
            return Err(call.error(StorageErrorKind::Unavailable, why));
        }
        self.succeeded(call, &endpoint, response).await
    }

    /// Where a request is sent.
    async fn endpoint(&self, call: &UnsignedRequest<'_>) -> Result<Endpoint, StorageError> {
        self.place.endpoint(call.bucket.map(|bucket| bucket.namespace.as_str())).await
    }

    /// The proxy between this machine and an endpoint.
    pub(in crate::oci) fn proxy(&self, endpoint: &Endpoint) -> Option<&Proxy> {
        self.transport.choose(&endpoint.uri("/").ok()?).proxy()
    }

    /// What a request attempts, for failures after the head of its answer.
    pub(super) async fn attempted(&self, call: &UnsignedRequest<'_>) -> String {
        let endpoint = self.endpoint(call).await.ok();
        let through = endpoint.and_then(|endpoint| self.proxy(&endpoint).map(through));
        format!("{}{}", call.attempted(), through.unwrap_or_default())
    }

    /// As [`attempted`](Self::attempted), with the endpoint's host.
    fn attempted_at(&self, call: &UnsignedRequest<'_>, endpoint: &Endpoint) -> String {
        let through = self.proxy(endpoint).map(through).unwrap_or_default();
        format!("{} at {}{through}", call.attempted(), endpoint.host())
    }

    fn check_requester(&self, call: &UnsignedRequest<'_>) -> Result<(), StorageError> {
        if self.workloads.is_some() && self.identity.is_none() {
            let why = "oke_workload_identity asks as a pod, and there is none here";
            return Err(call.error(StorageErrorKind::Config, why));
        }
        Ok(())
    }

    /// As [`send`](Self::send), repeated as the policy says.
    pub(super) async fn send_retrying(
        &self,
        call: &UnsignedRequest<'_>,
    ) -> Result<Response<Incoming>, StorageError> {
        let mut attempts = self.retry.start();
        loop {
            match self.send(call).await {
                Ok(response) => return Ok(response),
                Err(error) => attempts.again(error).await?,
            }
        }
    }

    /// Returns the head and the whole body, repeated as the policy says even when the body breaks.
    pub(in crate::oci) async fn read_retrying(
        &self,
        call: &UnsignedRequest<'_>,
        limit: usize,
    ) -> Result<(HeaderMap, Bytes), StorageError> {
        match self.read_short_retrying(call, limit).await? {
            (headers, Some(body)) => Ok((headers, body)),
            (_, None) => {
                let why = format!("the answer is longer than {limit} bytes");
                Err(call.error(StorageErrorKind::Protocol, why))
            }
        }
    }

    /// As [`read_retrying`](Self::read_retrying); no body when it is longer than `limit` bytes.
    pub(super) async fn read_short_retrying(
        &self,
        call: &UnsignedRequest<'_>,
        limit: usize,
    ) -> Result<(HeaderMap, Option<Bytes>), StorageError> {
        let mut attempts = self.retry.start();
        loop {
            let error = match self.send(call).await {
                Ok(response) => {
                    let (parts, body) = response.into_parts();
                    match self.transport.read_short(body, limit).await {
                        Ok(body) => return Ok((parts.headers, body)),
                        Err(failure) => {
                            let kind = StorageErrorKind::Unavailable;
                            unanswered(kind, self.attempted(call).await, failure)
                        }
                    }
                }
                Err(error) => error,
            };
            attempts.again(error).await?;
        }
    }

    async fn exchange(
        &self,
        call: &UnsignedRequest<'_>,
        endpoint: &Endpoint,
        credential: Option<&Credential>,
        upload: Option<UploadBody>,
    ) -> Result<Response<Incoming>, StorageError> {
        let date = httpdate::fmt_http_date(self.clock.now());
        let authority = match (credential, &self.par) {
            (Some(credential), _) => Authority::Signed(credential),
            (None, Some(par)) => Authority::Par(par),
            (None, None) => Authority::Nothing,
        };
        let request = call.request(endpoint, &date, authority, upload)?;
        let answer = self.transport.send(request).await;
        if let Some(observe) = &self.observer {
            observe(call.operation, answer.as_ref().ok().map(|answer| answer.status().as_u16()));
        }
        answer.map_err(|failure| {
            let attempted = self.attempted_at(call, endpoint);
            unanswered(StorageErrorKind::Unavailable, attempted, failure)
        })
    }

    async fn succeeded(
        &self,
        call: &UnsignedRequest<'_>,
        endpoint: &Endpoint,
        response: Response<Incoming>,
    ) -> Result<Response<Incoming>, StorageError> {
        if response.status().is_success() {
            return Ok(response);
        }
        let (parts, body) = response.into_parts();
        // The status is what counts; without the body only the message is missing.
        let body = self.transport.read(body, LONGEST_ERROR).await.unwrap_or_default();
        Err(self.refusal(call, endpoint, &parts, &body))
    }

    fn refusal(
        &self,
        call: &UnsignedRequest<'_>,
        endpoint: &Endpoint,
        parts: &response::Parts,
        body: &[u8],
    ) -> StorageError {
        let now = self.clock.now();
        let answer = HttpError::of_json(parts.status, &parts.headers, body, now);
        let kind = storage_kind(&answer);
        let remedy = match answer.meaning() {
            HttpMeaning::Unauthenticated => skew_remedy(now, &parts.headers, "Object Storage")
                .or_else(|| Some(self.unauthenticated_remedy())),
            HttpMeaning::LoginRequired => Some(self.login_remedy(&parts.headers, endpoint)),
            _ if answer.redirect.is_some() => Some(REDIRECTED.to_owned()),
            _ => {
                let code = answer.code.as_deref();
                remedy(kind, code, call.bucket, call.writes(), &self.reader())
            }
        };
        let attempted = self.attempted_at(call, endpoint);
        refused(kind, attempted, answer).with_known_remedy(remedy)
    }

    fn login_remedy(&self, headers: &HeaderMap, endpoint: &Endpoint) -> String {
        if let Some(proxy) = self.proxy(endpoint).filter(|_| !endpoint.is_https()) {
            return proxy_login_remedy(proxy.named_by(), proxy.secret().is_some());
        }
        let how = header_text(headers, "proxy-authenticate");
        let how = how.map(|how| format!(" ({})", excerpt(how, 80))).unwrap_or_default();
        format!(
            "a proxy between this node and Object Storage asks for a login{how}: let {} through \
             without one, exempt it from the proxy, or name the proxy with its login \
             (objectStorage.proxy, HTTPS_PROXY)",
            endpoint.host()
        )
    }

    /// As whom it reads.
    pub(super) fn reader(&self) -> Reader<'_> {
        Reader {
            method: self.method,
            principal: self.principal.as_ref(),
            own_account: self.own_account(),
            has_par: self.par.is_some(),
        }
    }

    /// The service account of this process, where that sends the requests.
    pub(in crate::oci) fn own_account(&self) -> Option<ServiceAccount> {
        self.own_account.as_ref().map(|own| own.name())
    }

    fn unauthenticated_remedy(&self) -> String {
        if let Some(account) = self.own_account() {
            return format!("the cluster of {account} has to be of this tenancy");
        }
        match &self.principal {
            _ if self.par.is_some() => {
                return "check that the pre-authenticated request still exists, has not expired, and \
                        permits this: the key par of the Secret, or --par-file, has its URL"
                    .to_owned();
            }
            Some(PodPrincipal::Account(workload)) => {
                return format!("the cluster of {workload} has to be of this tenancy");
            }
            Some(PodPrincipal::ApiKey(key)) => {
                return format!(
                    "check that user, tenancy and key of the volume's Secret belong together, and \
                     that the key {} still is one of this user's API keys",
                    key.fingerprint
                );
            }
            Some(PodPrincipal::Par(_)) | None => {}
        }
        let remedy = match self.method {
            AuthMethod::None => {
                "the request was not signed: choose another --auth, or make the bucket public"
            }
            AuthMethod::SecurityToken => {
                "the session was ended, or is of another tenancy or key: begin another with `oci \
                 session authenticate`, and check security_token_file and key_file of the profile"
            }
            AuthMethod::ResourcePrincipal => {
                "the resource principal's token was revoked, or is of another tenancy or key: \
                 restart the process, whose platform sets it"
            }
            _ => "check that the key or the dynamic group still exists in this tenancy and region",
        };
        remedy.to_owned()
    }
}

/// 32 hex digits, by which Oracle's support finds the request in its logs.
fn client_request_id() -> String {
    format!("{:032X}", u128::from_be_bytes(random::bytes()))
}

/// What to do about a redirect: Object Storage sends none.
const REDIRECTED: &str = "a proxy, a portal or another service answers in place of Object Storage: \
                          check the endpoint, and what is between it and this node";

fn through(proxy: &Proxy) -> String {
    format!(" through the proxy {proxy}")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::oci::test_server::{ScriptedAnswer, TestServer};
    use crate::oci::{Environment, ObjectStorage, Settings};
    use crate::source::AuthMethod;

    #[tokio::test]
    async fn the_refusals_of_the_service_are_reviewed() {
        let mut texts = Vec::new();
        for (status, code) in [
            (400, "InvalidParameter"),
            (401, "NotAuthenticated"),
            (403, "NotAllowed"),
            (404, "BucketNotFound"),
            (404, "ObjectNotFound"),
            (407, "ProxyAuthenticationRequired"),
            (409, "NotRestored"),
            (412, "IfMatchFailed"),
            (413, "PayloadTooLarge"),
            (429, "TooManyRequests"),
            (500, "InternalServerError"),
        ] {
            let server = TestServer::start(move |_, _| ScriptedAnswer::refusal(status, code)).await;
            let settings = Settings {
                endpoint: Some(server.url.clone()),
                environment: Environment::empty(),
                ..Settings::new(AuthMethod::None)
            };
            let client = ObjectStorage::connect(settings).await.unwrap();
            let object = Arc::new(Bucket::new("ns", "models")).object("phi3/config.json");
            let error = client.get_object(&object, "e", None).await.unwrap_err().to_string();
            // The port differs with each run.
            texts.push(error.replace(server.url.trim_start_matches("http://"), "HOST"));
        }
        insta::assert_snapshot!(texts.join("\n"));
    }
}
