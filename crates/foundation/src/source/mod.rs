//! The seam to where objects are: what the driver needs of a source of objects, and the
//! vocabulary for it.
//!
//! An [`ObjectSource`] lists the objects under a prefix, describes one, and returns bytes of
//! one version, at one location and with one identity. An [`ObjectSink`] also stores and deletes
//! objects. `oci` implements both over Object Storage. Nothing above names `oci` but `cli`, which
//! connects it.

mod auth;
mod body;
mod connector;
mod error;
mod names;
mod objects;
mod pod;
mod region_name;
mod retry;
mod sink;
mod workload;

use std::any::Any;
use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

use futures_util::future::BoxFuture;

pub use auth::AuthMethod;
pub use body::{BodyChunks, ObjectBody};
pub use connector::{BucketLocation, SourceConnector};
pub use error::{StorageError, StorageErrorKind};
pub use names::{Bucket, ObjectName};
pub use objects::parse_md5;
pub use objects::{ListedMd5, MultipartMd5, ObjectHead, ObjectSummary};
pub use pod::{ApiKeySecret, ParSecret, PodCredential, PodKey, PodPar, PodPrincipal, PodSecret};
pub use region_name::RegionName;
pub use retry::{Attempts, RetryPolicy};
pub use sink::{
    ObjectSink, PartToCommit, Replaces, RunningUpload, StoredBytes, UploadBody, UploadedPart,
};
pub use workload::Workload;

/// The result of a call to a source.
pub type Result<T, E = StorageError> = std::result::Result<T, E>;

/// A source of objects at one location, read with one identity.
///
/// [`get`](Self::get) is one attempt, since its callers resume where a body broke; the other
/// calls are repeated inside, as the source's own policy says. All futures can be dropped.
pub trait ObjectSource: Any + Debug + Send + Sync {
    /// The location of the objects, in stable words for cache keys.
    fn location(&self) -> BoxFuture<'_, Result<String>>;

    /// How requests are signed; never `Auto`.
    fn method(&self) -> AuthMethod;

    /// Whether both read with the same identity.
    fn is(&self, other: &dyn ObjectSource) -> bool;

    /// The namespace of buckets that name none.
    fn namespace(&self) -> BoxFuture<'_, Result<String>>;

    /// As [`namespace`](Self::namespace), without a request.
    fn known_namespace(&self) -> Option<&str>;

    /// Lists the objects whose names begin with `prefix`, page by page in the byte order of
    /// their names, and at most `max` of them.
    fn pages<'a>(
        &'a self,
        bucket: &'a Bucket,
        prefix: &'a str,
        max: usize,
    ) -> Box<dyn ListingPages + 'a>;

    /// The directories directly below `prefix`, as full names that end in `/`, from one
    /// request: of very many only the first.
    fn directories<'a>(
        &'a self,
        bucket: &'a Bucket,
        prefix: &'a str,
    ) -> BoxFuture<'a, Result<Vec<String>>>;

    /// The names of the buckets of a namespace that this identity may list, from one request: of
    /// very many only the first, and none where the compartment to ask for is not known.
    fn buckets<'a>(&'a self, namespace: &'a str) -> BoxFuture<'a, Result<Vec<String>>>;

    /// Gets the object's size, ETag and checksums; with `if_match`, of this version only.
    fn head<'a>(
        &'a self,
        object: &'a ObjectName,
        if_match: Option<&'a str>,
    ) -> BoxFuture<'a, Result<ObjectHead>>;

    /// Gets the bytes of this version of the object, all or a part of them. A range is neither
    /// empty nor reaches beyond the object's end; an empty object is requested whole.
    fn get<'a>(
        &'a self,
        object: &'a ObjectName,
        etag: &'a str,
        range: Option<Range<u64>>,
    ) -> BoxFuture<'a, Result<ObjectBody>>;

    /// Checks whether the bytes of an object may be read: reads the first one, with
    /// `if_match` of this version only. Empty objects have no first byte and are read whole.
    ///
    /// # Errors
    /// `Changed` when it is another version; `RangeNotSatisfiable` when it is empty and should
    /// not be.
    fn may_read<'a>(
        &'a self,
        object: &'a ObjectName,
        if_match: Option<&'a str>,
        is_empty: bool,
    ) -> BoxFuture<'a, Result<()>>;

    /// What an administrator can do to let this identity read a bucket, for error messages.
    fn how_to_allow(&self, bucket: &str) -> String;

    /// Whether only a service account may read: that of a pod, with [`as_pod`](Self::as_pod), or
    /// that of this process, with [`as_own_account`](Self::as_own_account).
    fn needs_pod(&self) -> bool {
        false
    }

    /// The same location, read as the pod that has this credential.
    ///
    /// # Errors
    /// `Invalid` where the credential cannot be used, with what is wrong with it and without its
    /// values.
    fn as_pod<'a>(
        &'a self,
        _credential: PodCredential<'a>,
    ) -> BoxFuture<'a, Result<Arc<dyn ObjectSource>>> {
        let why = "this source of objects knows no identities of pods";
        let error = StorageError::config("reading as a pod", why);
        Box::pin(std::future::ready(Err(error)))
    }

    /// The same location, with the identity of this process's own service account; `None` where
    /// pods have no identities of their own.
    fn as_own_account(&self) -> Option<Arc<dyn ObjectSource>> {
        None
    }

    /// The pod's own identity that this source uses.
    fn pod_principal(&self) -> Option<&PodPrincipal> {
        None
    }
}

/// The pages of one listing, in the source's order.
pub trait ListingPages: Send {
    /// The next page; `None` at the end.
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Vec<ObjectSummary>>>>;

    /// Whether there are more objects than requested; known at the end.
    fn truncated(&self) -> bool;
}
