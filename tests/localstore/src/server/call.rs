//! One request in progress, as handlers see it.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use http::{HeaderMap, Method};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde::de::DeserializeOwned;

use super::connection::ResetSwitch;
use super::reply::Failure;
use crate::auth::{Refusal, SignedRequest, content_sha256};
use crate::clock;
use crate::error::{ApiError, ApiResult};
use crate::faults::{Cut, Effects};
use crate::objects::{Algorithm, Bucket, Digests, Hasher};
use crate::route::Target;
use crate::state::State;

/// The largest body that is not an object's: a commit of 10 000 parts fits.
const MAX_JSON: usize = 8 * 1024 * 1024;

/// How much of a refused upload is read before the connection is closed.
const MAX_DRAIN: usize = 256 * 1024 * 1024;

/// A request: its line, its headers, and its body until a handler takes it.
pub(crate) struct Call {
    pub(crate) state: Arc<State>,
    pub(crate) reset: ResetSwitch,
    pub(crate) method: Method,
    /// Path and query, byte for byte.
    pub(crate) raw_target: String,
    pub(crate) target: Target,
    pub(crate) headers: HeaderMap,
    pub(crate) effects: Effects,
    pub(crate) caller: Option<String>,
    /// The signed `x-content-sha256`, which the body has to match.
    pub(crate) signed_digest: Option<String>,
    pub(crate) body: Option<Incoming>,
}

impl Call {
    /// The clock of this request, which a fault may have shifted.
    pub(crate) fn now(&self) -> SystemTime {
        clock::now(self.effects.date_offset_secs)
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    pub(crate) fn signed_request(&self) -> SignedRequest<'_> {
        SignedRequest {
            method: self.method.as_str(),
            target: &self.raw_target,
            headers: &self.headers,
        }
    }

    pub(crate) fn bucket(&self) -> ApiResult<Arc<Bucket>> {
        self.state.catalog.bucket(&self.target.bucket)
    }

    /// Counts a refusal; the client learns only that it is not authenticated.
    pub(crate) fn refuse(&self, refusal: &Refusal) -> ApiError {
        tracing::debug!(target = %self.target.path, %refusal, "not authenticated");
        self.state.counters.refused(refusal);
        ApiError::not_authenticated()
    }

    /// The whole body of a request that is not an upload, checked against its signature.
    pub(crate) async fn read_body(&mut self) -> Result<Bytes, Failure> {
        let Some(body) = self.body.take() else { return Ok(Bytes::new()) };
        let limited = http_body_util::Limited::new(body, MAX_JSON);
        let bytes = limited.collect().await.map_err(|_| Failure::Aborted)?.to_bytes();
        match &self.signed_digest {
            Some(digest) if *digest != content_sha256(&bytes) => {
                Err(self.refuse(&Refusal::WrongBody).into())
            }
            _ => Ok(bytes),
        }
    }

    pub(crate) async fn read_json<T: DeserializeOwned>(&mut self) -> Result<T, Failure> {
        let body = self.read_body().await?;
        serde_json::from_slice(&body).map_err(|error| {
            ApiError::bad_request("CannotParseRequest", format!("The body: {error}")).into()
        })
    }

    /// Streams an upload's bytes to a new file at `path` and checks what the
    /// client said about them. The file is removed unless all is well.
    pub(crate) async fn receive(
        &mut self,
        path: &Path,
        algorithm: Option<Algorithm>,
    ) -> Result<Digests, Failure> {
        let received = self.receive_unchecked(path, algorithm).await;
        let checked = received.and_then(|digests| {
            self.check_digests(&digests)?;
            Ok(digests)
        });
        if checked.is_err() {
            crate::objects::remove(path);
        }
        checked
    }

    async fn receive_unchecked(
        &mut self,
        path: &Path,
        algorithm: Option<Algorithm>,
    ) -> Result<Digests, Failure> {
        use std::io::Write as _;
        let mut file = std::fs::File::create(path).map_err(ApiError::from)?;
        let mut hasher = Hasher::new(algorithm);
        let mut sha256 = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
        let Some(mut body) = self.body.take() else { return Ok(hasher.finish()) };
        let mut received = 0_u64;
        while let Some(frame) = body.frame().await {
            let Ok(bytes) = frame.map_err(|_| Failure::Aborted)?.into_data() else { continue };
            file.write_all(&bytes).map_err(ApiError::from)?;
            hasher.update(&bytes);
            if self.signed_digest.is_some() {
                sha256.update(&bytes);
            }
            received += bytes.len() as u64;
            self.state.counters.received(bytes.len() as u64);
            self.upload_faults(received, bytes.len() as u64).await?;
        }
        if let Some(signed) = &self.signed_digest {
            use base64::Engine as _;
            if base64::engine::general_purpose::STANDARD.encode(sha256.finish()) != *signed {
                return Err(self.refuse(&Refusal::WrongBody).into());
            }
        }
        Ok(hasher.finish())
    }

    async fn upload_faults(&self, received: u64, new: u64) -> Result<(), Failure> {
        let waits = self.effects.body.throttles.iter().map(|throttle| throttle.spend(new));
        if let Some(wait) = waits.max() {
            tokio::time::sleep(wait).await;
        }
        match self.effects.body.cut {
            Some(Cut::ResetAfter(bytes)) if received >= bytes => {
                self.reset.set();
                Err(Failure::Aborted)
            }
            Some(Cut::StallAfter(bytes)) if received >= bytes => std::future::pending().await,
            _ => Ok(()),
        }
    }

    fn check_digests(&self, digests: &Digests) -> ApiResult<()> {
        let compare = |name: &str, code: &'static str, what: &str, computed: &str| match self
            .header(name)
            .filter(|given| !given.is_empty() && *given != computed)
        {
            None => Ok(()),
            Some(given) => Err(ApiError::bad_request(
                code,
                format!(
                    "The computed {what} of the request body ({computed}) does not match the {name} header ({given})"
                ),
            )),
        };
        compare("content-md5", "UnmatchedContentMD5", "MD5", &digests.md5_base64())?;
        match digests.additional() {
            Some((algorithm, value)) => {
                let name = algorithm.content_header();
                compare(name, algorithm.mismatch_code(), "checksum", &value)
            }
            None => Ok(()),
        }
    }

    /// Reads what a refused upload still sends: a client that is writing would
    /// see a reset instead of the answer. Past a limit it does.
    pub(crate) async fn drain(&mut self) {
        let Some(mut body) = self.body.take() else { return };
        let mut drained = 0;
        while let Some(Ok(frame)) = body.frame().await {
            drained += frame.data_ref().map_or(0, Bytes::len);
            if drained > MAX_DRAIN {
                return;
            }
        }
    }
}
