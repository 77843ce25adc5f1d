//! A request and its answer: 401, repetition, what was attempted.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode};
use hyper::body::Incoming;

use super::ObjectStorageInner;
use super::request::{Authority, UnsignedRequest};
use crate::oci::endpoint::Endpoint;
use crate::oci::error::{StorageError, StorageErrorKind, unanswered};
use crate::oci::identity::{Credential, Identity};
use crate::source::UploadBody;
use crate::transport::Proxy;

/// Errors are short; a longer one is not one of the service's.
const LONGEST_ERROR: usize = 64 * 1024;

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
        let credential = self.credential_of(identity).await?;
        let response = self.exchange(call, &endpoint, Some(&credential), None).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return self.succeeded(call, &endpoint, response).await;
        }
        let other = match identity.invalidate(&credential).await {
            Ok(Some(other)) => other,
            Ok(None) => return self.succeeded(call, &endpoint, response).await,
            Err(error) if error.is_outage() => return Err(error.of_identity()),
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
        let credential = self.credential_of(identity).await?;
        let response = self.exchange(call, &endpoint, Some(&credential), Some(body)).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            match identity.invalidate(&credential).await {
                Ok(Some(_)) => {
                    let why = "the credential was refused, and has been replaced";
                    return Err(call.error(StorageErrorKind::Unavailable, why));
                }
                Err(error) if error.is_outage() => return Err(error.of_identity()),
                Ok(None) | Err(_) => {}
            }
        }
        self.succeeded(call, &endpoint, response).await
    }

    async fn credential_of(&self, identity: &Identity) -> Result<Arc<Credential>, StorageError> {
        let credential = identity.credentials().await;
        credential.map_err(|error| self.of_chosen(error).of_identity())
    }

    /// Where a request is sent.
    async fn endpoint(&self, call: &UnsignedRequest<'_>) -> Result<Endpoint, StorageError> {
        self.place.endpoint(call.namespace).await
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
    pub(super) fn attempted_at(&self, call: &UnsignedRequest<'_>, endpoint: &Endpoint) -> String {
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
        let (mut parts, body) = response.into_parts();
        // The status is what counts; without the body only the message is missing.
        let mut body = self.transport.read(body, LONGEST_ERROR).await.unwrap_or_default();
        if let Some(par) = &self.par {
            parts.headers = par.hidden_in_headers(&parts.headers);
            body = par.hidden_in(&body).into();
        }
        Err(self.refusal(call, endpoint, &parts, &body))
    }
}

fn through(proxy: &Proxy) -> String {
    format!(" through the proxy {proxy}")
}
