//! Object Storage as a source of objects.

use std::any::Any;
use std::ops::Range;
use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use super::{ObjectStorage, Pages};
use crate::source::{
    AuthMethod, Bucket, ListingPages, ObjectBody, ObjectHead, ObjectName, ObjectSource,
    ObjectSummary, PodCredential, PodPrincipal, Result,
};

impl ObjectSource for ObjectStorage {
    fn location(&self) -> BoxFuture<'_, Result<String>> {
        self.location().boxed()
    }

    fn method(&self) -> AuthMethod {
        self.method()
    }

    fn is(&self, other: &dyn ObjectSource) -> bool {
        let other: &dyn Any = other;
        other.downcast_ref::<Self>().is_some_and(|other| self.is(other))
    }

    fn namespace(&self) -> BoxFuture<'_, Result<String>> {
        self.namespace().boxed()
    }

    fn known_namespace(&self) -> Option<&str> {
        self.known_namespace()
    }

    fn pages<'a>(
        &'a self,
        bucket: &'a Bucket,
        prefix: &'a str,
        max: usize,
    ) -> Box<dyn ListingPages + 'a> {
        Box::new(self.pages(bucket, prefix, max))
    }

    fn directories<'a>(
        &'a self,
        bucket: &'a Bucket,
        prefix: &'a str,
    ) -> BoxFuture<'a, Result<Vec<String>>> {
        self.directories(bucket, prefix).boxed()
    }

    fn buckets<'a>(&'a self, namespace: &'a str) -> BoxFuture<'a, Result<Vec<String>>> {
        self.buckets(namespace).boxed()
    }

    fn head<'a>(
        &'a self,
        object: &'a ObjectName,
        if_match: Option<&'a str>,
    ) -> BoxFuture<'a, Result<ObjectHead>> {
        self.head_object(object, if_match).boxed()
    }

    fn get<'a>(
        &'a self,
        object: &'a ObjectName,
        etag: &'a str,
        range: Option<Range<u64>>,
    ) -> BoxFuture<'a, Result<ObjectBody>> {
        self.get_object(object, etag, range).boxed()
    }

    fn may_read<'a>(
        &'a self,
        object: &'a ObjectName,
        if_match: Option<&'a str>,
        is_empty: bool,
    ) -> BoxFuture<'a, Result<()>> {
        self.may_read(object, if_match, is_empty).boxed()
    }

    fn how_to_allow(&self, bucket: &str) -> String {
        self.statement(bucket, None)
    }

    fn needs_pod(&self) -> bool {
        self.needs_pod()
    }

    fn as_pod<'a>(
        &'a self,
        credential: PodCredential<'a>,
    ) -> BoxFuture<'a, Result<Arc<dyn ObjectSource>>> {
        async move {
            let client: Arc<dyn ObjectSource> = Arc::new(self.as_pod(credential).await?);
            Ok(client)
        }
        .boxed()
    }

    fn as_own_account(&self) -> Option<Arc<dyn ObjectSource>> {
        Some(Arc::new(self.as_own_account()))
    }

    fn pod_principal(&self) -> Option<&PodPrincipal> {
        self.pod_principal()
    }
}

impl ObjectStorage {
    /// The statement that lets the identity of this client read a bucket, with the OCID of the
    /// bucket's compartment where that is known.
    pub fn statement(&self, bucket: &str, compartment: Option<&str>) -> String {
        self.0.reader().statement(bucket, compartment)
    }
}

impl ListingPages for Pages<'_> {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Vec<ObjectSummary>>>> {
        self.next().boxed()
    }

    fn truncated(&self) -> bool {
        self.truncated()
    }
}
