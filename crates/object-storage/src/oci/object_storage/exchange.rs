//! One request and its answer: signing, 401, repetition, errors.

use std::fmt::Display;

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header, response,
};
use http_body_util::Full;
use hyper::body::Incoming;

use super::ObjectStorageInner;
use crate::http_error::{HttpError, HttpMeaning, header_text};
use crate::oci::clock::skew_remedy;
use crate::oci::endpoint::Endpoint;
use crate::oci::error::{StorageError, StorageErrorKind, refused, storage_kind, unanswered};
use crate::oci::identity::Credential;
use crate::oci::sign;
use crate::random;
use crate::source::{AuthMethod, Bucket, Workload};
use crate::text::excerpt;

const USER_AGENT: &str = concat!("oci-model-csi/", env!("CARGO_PKG_VERSION"));

/// Errors are short; a longer one is not one of the service's.
const LONGEST_ERROR: usize = 64 * 1024;

/// A request before it is signed.
pub(super) struct UnsignedRequest<'a> {
    operation: &'static str,
    subject: String,
    bucket: Option<&'a Bucket>,
    method: Method,
    target: String,
    pub(super) headers: Vec<(HeaderName, String)>,
}

impl<'a> UnsignedRequest<'a> {
    pub(super) fn new(
        operation: &'static str,
        subject: impl Display,
        method: Method,
        target: String,
    ) -> Self {
        let subject = subject.to_string();
        Self { operation, subject, bucket: None, method, target, headers: Vec::new() }
    }

    pub(super) fn in_bucket(mut self, bucket: &'a Bucket) -> Self {
        self.bucket = Some(bucket);
        self
    }

    /// `GetObject of a/b in bucket c of namespace d`.
    pub(super) fn attempted(&self) -> String {
        format!("{} of {}", self.operation, self.subject)
    }

    pub(super) fn error(&self, kind: StorageErrorKind, cause: impl Into<String>) -> StorageError {
        StorageError::new(kind, self.attempted(), cause)
    }

    fn request(
        &self,
        endpoint: &Endpoint,
        date: &str,
        credential: Option<&Credential>,
    ) -> Result<Request<Full<Bytes>>, StorageError> {
        let refuse = |error: http::Error| self.error(StorageErrorKind::Config, error.to_string());
        let uri = endpoint.uri(&self.target).map_err(refuse)?;
        let mut request = Request::builder()
            .method(&self.method)
            .header(header::HOST, endpoint.host())
            .header(header::DATE, date)
            .header(header::USER_AGENT, USER_AGENT)
            .header("opc-client-request-id", client_request_id());
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        if let Some(credential) = credential {
            // The target comes from the URI that is sent, never from a second formatting.
            let target = uri.path_and_query().map_or("/", |target| target.as_str());
            let signed = credential.sign(
                &sign::Request {
                    method: self.method.as_str(),
                    target,
                    host: Some(endpoint.host()),
                    date,
                    date_header: sign::DateHeader::Date,
                    body: None,
                },
                &endpoint.origin(),
            )?;
            let mut authorization = HeaderValue::try_from(signed.authorization)
                .map_err(|error| self.error(StorageErrorKind::Config, error.to_string()))?;
            authorization.set_sensitive(true);
            request = request.header(header::AUTHORIZATION, authorization);
        }
        request.uri(uri).body(Full::new(Bytes::new())).map_err(refuse)
    }
}

impl ObjectStorageInner {
    /// Sends a request once, and again after a 401; any status but 2xx is an error.
    pub(super) async fn send(
        &self,
        call: &UnsignedRequest<'_>,
    ) -> Result<Response<Incoming>, StorageError> {
        if self.workloads.is_some() && self.identity.is_none() {
            let why = "oke_workload_identity asks as a pod, and there is none here";
            return Err(call.error(StorageErrorKind::Config, why));
        }
        let endpoint = self.place.endpoint().await?;
        let Some(identity) = &self.identity else {
            let response = self.exchange(call, &endpoint, None).await?;
            return self.succeeded(call, &endpoint, response).await;
        };
        let credential = identity.credentials().await.map_err(StorageError::of_identity)?;
        let response = self.exchange(call, &endpoint, Some(&credential)).await?;
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
        let response = self.exchange(call, &endpoint, Some(&other)).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            identity.repeat_was_futile();
        }
        self.succeeded(call, &endpoint, response).await
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
    pub(super) async fn read_retrying(
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
                            unanswered(kind, call.attempted(), failure)
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
    ) -> Result<Response<Incoming>, StorageError> {
        let date = httpdate::fmt_http_date(self.clock.now());
        let request = call.request(endpoint, &date, credential)?;
        let answer = self.transport.send(request).await;
        if let Some(observe) = &self.observer {
            observe(call.operation, answer.as_ref().ok().map(|answer| answer.status().as_u16()));
        }
        answer.map_err(|failure| {
            let attempted = format!("{} at {}", call.attempted(), endpoint.host());
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
            HttpMeaning::LoginRequired => Some(login_remedy(&parts.headers, endpoint.host())),
            _ => {
                let (code, workload) = (answer.code.as_deref(), self.workload.as_ref());
                remedy(kind, code, call.bucket, self.method, workload)
            }
        };
        let attempted = format!("{} at {}", call.attempted(), endpoint.host());
        refused(kind, attempted, answer).with_known_remedy(remedy)
    }

    fn unauthenticated_remedy(&self) -> String {
        if let Some(workload) = &self.workload {
            return format!("the cluster of {workload} has to be of this tenancy");
        }
        let remedy = match self.identity {
            Some(_) => {
                "check that the key or the dynamic group still exists in this tenancy and region"
            }
            None => "the request was not signed: choose another --auth, or make the bucket public",
        };
        remedy.to_owned()
    }
}

/// 32 hex digits, by which Oracle's support finds the request in its logs.
fn client_request_id() -> String {
    format!("{:032X}", u128::from_be_bytes(random::bytes()))
}

fn login_remedy(headers: &HeaderMap, host: &str) -> String {
    let how = header_text(headers, "proxy-authenticate");
    let how = how.map(|how| format!(" ({})", excerpt(how, 80))).unwrap_or_default();
    format!(
        "a proxy between this node and Object Storage asks for a login{how}, and this driver has \
         none for it: let {host} through without one, or exempt it from the proxy"
    )
}

/// The policy statement that lets the driver, or a pod, read a bucket, for the kind of its
/// identity. Shown whole in errors, so that it can be copied.
pub(crate) fn statement(bucket: &str, method: AuthMethod, workload: Option<&Workload>) -> String {
    match (workload, method) {
        (None, AuthMethod::ApiKey) => format!(
            "Allow group <the user's group> to read objects in compartment <the bucket's> where \
             target.bucket.name='{bucket}'"
        ),
        (None, AuthMethod::None) => format!(
            "choose another --auth, or make it public with oci os bucket update --bucket-name \
             {bucket} --public-access-type ObjectRead"
        ),
        (None, _) => format!(
            "Allow dynamic-group <the nodes' group> to read objects in compartment <the bucket's> where \
             target.bucket.name='{bucket}'"
        ),
        (Some(Workload { namespace, service_account, .. }), _) => format!(
            "Allow any-user to read objects in compartment … where all \
             {{request.principal.type='workload', request.principal.cluster_id='…', \
             request.principal.namespace='{namespace}', \
             request.principal.service_account='{service_account}', \
             target.bucket.name='{bucket}'}}"
        ),
    }
}

fn remedy(
    kind: StorageErrorKind,
    code: Option<&str>,
    bucket: Option<&Bucket>,
    method: AuthMethod,
    workload: Option<&Workload>,
) -> Option<String> {
    let bucket = bucket?;
    let who = workload.map_or_else(|| "the driver".to_owned(), Workload::to_string);
    let statement = statement(&bucket.name, method, workload);
    match kind {
        // The bucket was visible, so the permission exists.
        StorageErrorKind::NotFound if code == Some("ObjectNotFound") => None,
        StorageErrorKind::NotFound => {
            Some(format!("it does not exist, or {who} may not see it; to allow it: {statement}"))
        }
        StorageErrorKind::Forbidden => Some(format!("to allow it: {statement}")),
        StorageErrorKind::Archived => Some(format!(
            "restore it first: oci os object restore --bucket-name {} --name NAME",
            bucket.name
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::oci::test_server::{ScriptedAnswer, TestServer};
    use crate::oci::{Environment, ObjectStorage, Settings};

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

    #[test]
    fn a_404_names_the_missing_policy_unless_the_bucket_was_visible() {
        let bucket = Bucket::new("ns", "models");
        let not_found = |code| {
            let method = AuthMethod::InstancePrincipal;
            remedy(StorageErrorKind::NotFound, Some(code), Some(&bucket), method, None)
        };
        let text = not_found("BucketNotFound").unwrap();
        assert!(text.contains("target.bucket.name='models'"), "{text}");
        assert_eq!(not_found("ObjectNotFound"), None);
    }

    #[test]
    fn a_refusal_has_the_policy_for_the_kind_of_identity() {
        for (method, remedy) in [
            (AuthMethod::InstancePrincipal, "Allow dynamic-group <the nodes' group> to read"),
            (AuthMethod::ApiKey, "Allow group <the user's group> to read objects in"),
            (AuthMethod::None, "--bucket-name ai --public-access-type ObjectRead"),
        ] {
            let text = statement("ai", method, None);
            assert!(text.contains(remedy), "{method}: {text}");
        }
    }
}
