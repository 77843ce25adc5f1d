//! The calls: namespace, list, head, get; those that write are in `write`.
//!
//! Every call has one target string, which is signed and sent as the same
//! bytes. After a 401 the call is repeated once with another credential before the
//! caller gets an error; other failures are reported or repeated as the policy says.

mod connect;
mod exchange;
mod location;
mod pages;
mod pods;
mod refusals;
mod remedies;
mod request;
mod sink;
mod source;
mod write;

use std::ops::Range;
use std::sync::Arc;

use http::{HeaderMap, Method, StatusCode, header};
use tokio::sync::OnceCell;

use self::location::ServiceLocation;
pub use self::pages::Pages;
use self::request::UnsignedRequest;
use super::answer;
use super::clock::Clock;
use super::encode::strict;
use super::environment::Environment;
use super::error::{StorageError, StorageErrorKind};
use super::identity::Identity;
use super::identity::own_account::OwnAccount;
use super::identity::pod_key::PodKeys;
use super::identity::workload::Workloads;
use super::par::ParUrl;
use super::settings::RequestObserver;
use crate::source::{
    AuthMethod, Bucket, ObjectBody, ObjectHead, ObjectName, PodPrincipal, RetryPolicy,
};
use crate::text::excerpt;
use crate::transport::Transport;

/// A client of Object Storage at one location with one identity; cheap to clone.
#[derive(Clone)]
pub struct ObjectStorage(pub(super) Arc<ObjectStorageInner>);

#[derive(Clone)]
pub(super) struct ObjectStorageInner {
    method: AuthMethod,
    /// Why this method, where it was not configured.
    pub(super) chosen: Option<String>,
    environment: Environment,
    pub(super) transport: Transport,
    pub(super) place: ServiceLocation,
    identity: Option<Identity>,
    /// The identities of pods, where each request is a pod's.
    workloads: Option<Workloads>,
    /// The keys that pods have presented.
    pod_keys: PodKeys,
    /// The pre-authenticated request that replaces signatures.
    par: Option<Arc<ParUrl>>,
    /// The pod's own identity that sends the requests.
    principal: Option<PodPrincipal>,
    /// This process's own service account, where that sends the requests.
    own_account: Option<Arc<OwnAccount>>,
    /// Whether the credential is on this machine, so that `connect` can check it.
    load_at_once: bool,
    configured_namespace: Option<String>,
    namespace: Arc<OnceCell<String>>,
    retry: RetryPolicy,
    clock: Clock,
    observer: Option<RequestObserver>,
}

impl ObjectStorage {
    /// The location of the objects, in stable words for cache keys: the region's name,
    /// or the endpoint's URL where one is configured.
    pub async fn location(&self) -> Result<String, StorageError> {
        self.0.place.name().await
    }

    /// How requests are signed; never `Auto`.
    pub fn method(&self) -> AuthMethod {
        self.0.method
    }

    /// Whether both use the same identity.
    pub fn is(&self, other: &Self) -> bool {
        match (&self.0.identity, &other.0.identity) {
            (Some(identity), Some(other)) => identity.is(other),
            (None, None) if self.0.par.is_some() => self.0.par == other.0.par,
            _ => Arc::ptr_eq(&self.0, &other.0),
        }
    }

    /// The client's identity; `None` where requests are not signed.
    pub fn identity(&self) -> Option<&Identity> {
        self.0.identity.as_ref()
    }

    /// The configured namespace, else the tenancy's, which is requested until it is known.
    pub async fn namespace(&self) -> Result<String, StorageError> {
        if let Some(configured) = &self.0.configured_namespace {
            return Ok(configured.clone());
        }
        self.0.namespace.get_or_try_init(|| self.get_namespace()).await.cloned()
    }

    /// As [`namespace`](Self::namespace), without a request.
    pub fn known_namespace(&self) -> Option<&str> {
        self.0
            .configured_namespace
            .as_deref()
            .or_else(|| self.0.namespace.get().map(String::as_str))
    }

    async fn get_namespace(&self) -> Result<String, StorageError> {
        let call =
            UnsignedRequest::new("GetNamespace", "the tenancy", Method::GET, "/n".to_owned());
        let (_, body) = self.0.read_retrying(&call, 64 * 1024).await?;
        serde_json::from_slice::<String>(&body)
            .ok()
            .filter(|namespace| !namespace.is_empty())
            .ok_or_else(|| {
                call.error(StorageErrorKind::Protocol, "the answer is not a JSON string")
            })
    }

    /// Lists the objects whose names begin with `prefix`, in the service's order: the first `max`,
    /// and whether there are more. A caller that keeps only a part of each object needs no memory
    /// for the rest, since they arrive page by page.
    pub fn pages<'a>(&'a self, bucket: &'a Bucket, prefix: &'a str, max: usize) -> Pages<'a> {
        Pages::new(&self.0, bucket, prefix, max)
    }

    /// The directories directly below a prefix, as full names that end in `/`: those of one
    /// page, so of very many only the first.
    pub async fn directories(
        &self,
        bucket: &Bucket,
        prefix: &str,
    ) -> Result<Vec<String>, StorageError> {
        pages::directories(&self.0, bucket, prefix).await
    }

    /// The names of the buckets in the root compartment of the identity's tenancy: those of one
    /// page, and none where the tenancy is not known. Listing takes a compartment, and this is the
    /// only one that an API key names.
    pub async fn buckets(&self, namespace: &str) -> Result<Vec<String>, StorageError> {
        let Some(identity) = &self.0.identity else { return Ok(Vec::new()) };
        let credential = identity.credentials().await.map_err(StorageError::of_identity)?;
        match credential.listable_tenancy() {
            Some(tenancy) => pages::buckets(&self.0, namespace, tenancy).await,
            None => Ok(Vec::new()),
        }
    }

    /// Checks whether the bytes of an object may be read: requests the first one, with
    /// `if_match` of this version only. Empty objects have no first byte and
    /// are requested whole.
    ///
    /// # Errors
    /// `Changed` when it is another version; `RangeNotSatisfiable` when it is
    /// empty and should not be; `Protocol` for an answer without an ETag,
    /// which does not come from Object Storage.
    pub async fn may_read(
        &self,
        object: &ObjectName,
        if_match: Option<&str>,
        is_empty: bool,
    ) -> Result<(), StorageError> {
        let mut call = UnsignedRequest::of_object("GetObject", object, Method::GET)?;
        if let Some(etag) = if_match {
            call = call.with_header(header::IF_MATCH, etag);
        }
        if !is_empty {
            call = call.with_header(header::RANGE, "bytes=0-0");
        }
        let response = self.0.send_retrying(&call).await?;
        let (parts, body) = response.into_parts();
        let etag = answer::part_head(&parts.headers, None).etag;
        let broken = |why: &str| Err(call.error(StorageErrorKind::Protocol, why));
        match (parts.status, if_match) {
            (StatusCode::OK | StatusCode::PARTIAL_CONTENT, _) if etag.is_empty() => {
                broken("the answer has no etag")
            }
            (StatusCode::OK | StatusCode::PARTIAL_CONTENT, Some(asked))
                if etag != answer::opaque(asked) =>
            {
                let why = format!("version {asked} was requested, and {etag} was returned");
                Err(call.error(StorageErrorKind::Changed, why))
            }
            (StatusCode::PARTIAL_CONTENT, _) => {
                // A connection whose body was read to its end can be used again.
                let _ = self.0.transport.read(body, 16).await;
                Ok(())
            }
            // The range was ignored, as it may be: the body is not read.
            (StatusCode::OK, _) => Ok(()),
            (status, _) => broken(&format!("unexpected status {status}")),
        }
    }

    /// A request for the bucket itself.
    pub(super) fn bucket_request<'a>(
        operation: &'static str,
        bucket: &'a Bucket,
        method: Method,
    ) -> UnsignedRequest<'a> {
        let target = format!("/n/{}/b/{}", strict(&bucket.namespace), strict(&bucket.name));
        UnsignedRequest::new(operation, bucket, method, target).in_bucket(bucket)
    }

    /// Gets the object's size, ETag and checksums; with `if_match`, of this version only.
    ///
    /// An answer that cannot be relied on (no ETag although a version was requested,
    /// a malformed checksum) is requested again like a missing answer.
    pub async fn head_object(
        &self,
        object: &ObjectName,
        if_match: Option<&str>,
    ) -> Result<ObjectHead, StorageError> {
        let mut call = UnsignedRequest::of_object("HeadObject", object, Method::HEAD)?;
        if let Some(etag) = if_match {
            call = call.with_header(header::IF_MATCH, etag);
        }
        let mut attempts = self.0.retry.start();
        loop {
            let answered = match self.0.send(&call).await {
                Ok(response) => {
                    let size = answer::length(response.headers());
                    call.head_of_whole(response.headers(), size, if_match)
                }
                Err(error) => Err(error),
            };
            match answered {
                Ok(head) => return Ok(head),
                Err(error) => attempts.again(error).await?,
            }
        }
    }

    /// Gets the bytes of this version of the object, all or a part of them.
    ///
    /// One attempt, since callers resume where a body broke; only a 401 is repeated
    /// inside, with another credential. Status, range and length are checked here,
    /// so that what [`ObjectBody::chunk`] returns can be written where it belongs.
    /// A range must be neither empty nor reach beyond the object's end; an empty
    /// object is requested whole.
    pub async fn get_object(
        &self,
        object: &ObjectName,
        etag: &str,
        range: Option<Range<u64>>,
    ) -> Result<ObjectBody, StorageError> {
        let mut call = UnsignedRequest::of_object("GetObject", object, Method::GET)?
            .with_header(header::IF_MATCH, etag);
        if let Some(range) = &range {
            if range.is_empty() {
                return Err(call.error(StorageErrorKind::Invalid, "the requested range is empty"));
            }
            let value = format!("bytes={}-{}", range.start, range.end - 1);
            call = call.with_header(header::RANGE, &value);
        }
        let response = self.0.send(&call).await?;
        let headers = response.headers();
        let broken = |why: String| call.error(StorageErrorKind::Protocol, why);
        // A proxy may have left it out, and sent the body in chunks or until the end.
        let named = answer::length(headers);
        let (head, length) = match (&range, response.status()) {
            (None, StatusCode::OK) => (call.head_of_whole(headers, named, Some(etag))?, named),
            (Some(asked), StatusCode::PARTIAL_CONTENT) => {
                let (given, total) = answer::content_range(headers)
                    .ok_or_else(|| broken("the answer has no valid content-range".into()))?;
                let wanted = asked.end - asked.start;
                let length = named.unwrap_or(wanted);
                if given != *asked || length != wanted {
                    return Err(broken(format!(
                        "bytes {}-{} were requested, and {}-{} in a body of {length} were returned",
                        asked.start,
                        asked.end - 1,
                        given.start,
                        given.end - 1,
                    )));
                }
                let head = answer::part_head(headers, total);
                call.check_version(&head, etag)?;
                (head, Some(length))
            }
            (Some(_), StatusCode::OK) => {
                return Err(broken(
                    "a range was requested, and the whole object was returned".into(),
                ));
            }
            (_, status) => return Err(broken(format!("unexpected status {status}"))),
        };
        let chunks = self.0.transport.chunks(response.into_body());
        Ok(ObjectBody::new(head, chunks, length, self.0.attempted(&call).await))
    }
}

impl std::fmt::Debug for ObjectStorage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ObjectStorage").field("identity", &self.0.identity).finish_non_exhaustive()
    }
}

impl UnsignedRequest<'_> {
    /// Parses the headers of an answer without a range.
    fn head_of_whole(
        &self,
        headers: &HeaderMap,
        size: Option<u64>,
        if_match: Option<&str>,
    ) -> Result<ObjectHead, StorageError> {
        let head = answer::whole_head(headers, size).map_err(|why| self.unusable(&why))?;
        if let Some(etag) = if_match {
            self.check_version(&head, etag)?;
        }
        Ok(head)
    }

    /// Checks that the answer has the requested version. Without an ETag
    /// nothing proves that If-Match was considered.
    fn check_version(&self, head: &ObjectHead, etag: &str) -> Result<(), StorageError> {
        if head.etag.is_empty() {
            return Err(self.unusable("it has no ETag, so it may be of another version"));
        }
        if head.etag != answer::opaque(etag) {
            let came = excerpt(&head.etag, 80);
            let why = format!("version {etag} was requested, and {came} was returned");
            return Err(self.error(StorageErrorKind::Changed, why));
        }
        Ok(())
    }

    /// The error for an answer that is incomplete; another attempt may get a good one.
    fn unusable(&self, why: &str) -> StorageError {
        self.error(StorageErrorKind::Unavailable, format!("the answer cannot be relied on: {why}"))
            .with_remedy(
                "if it persists, a proxy on the way alters answers: let this node reach Object \
                 Storage without it",
            )
    }
}

#[cfg(test)]
mod tests;
