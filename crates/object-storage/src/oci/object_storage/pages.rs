//! A listing, page by page.

use http::Method;
use serde::Deserialize;

use super::ObjectStorageInner;
use super::request::UnsignedRequest;
use crate::oci::answer::{PAGE_LIMIT, RawPage};
use crate::oci::encode::strict;
use crate::oci::error::{StorageError, StorageErrorKind};
use crate::source::{Bucket, ObjectSummary};
use crate::text::excerpt;

/// The longest page that is read: the memory of one listing. Usual pages
/// of a thousand objects have a third of it.
const LONGEST_PAGE: usize = 1024 * 1024;

/// Objects of a page that is below this limit whatever their names are: 1 KiB each,
/// with each byte escaped.
const SHORT_PAGE: usize = 125;

/// A page may be empty and point further; after this many in a row the server is stuck.
const EMPTY_PAGES: usize = 1000;

const LISTED_FIELDS: &str = "name,size,etag,md5,timeModified,storageTier,archivalState";

/// The pages of one listing, in the service's order.
pub struct Pages<'a> {
    store: &'a ObjectStorageInner,
    bucket: &'a Bucket,
    prefix: &'a str,
    /// Objects that may still come.
    left: usize,
    /// Objects that a page may have.
    page: usize,
    start: Option<String>,
    last: Option<String>,
    empty: usize,
    is_over: bool,
    truncated: bool,
}

impl<'a> Pages<'a> {
    pub(super) fn new(
        store: &'a ObjectStorageInner,
        bucket: &'a Bucket,
        prefix: &'a str,
        max: usize,
    ) -> Self {
        let (start, last) = (None, None);
        let (empty, is_over, truncated) = (0, false, false);
        let page = PAGE_LIMIT;
        Self { store, bucket, prefix, left: max, page, start, last, empty, is_over, truncated }
    }

    /// Whether there are more objects than requested; known at the end.
    pub fn truncated(&self) -> bool {
        self.truncated
    }

    /// The next page; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Vec<ObjectSummary>>, StorageError> {
        if self.is_over {
            return Ok(None);
        }
        let (call, body) = loop {
            let call = self.call();
            let (_, body) = self.store.read_short_retrying(&call, LONGEST_PAGE).await?;
            match body {
                Some(body) => break (call, body),
                None if self.page > SHORT_PAGE => self.page = SHORT_PAGE,
                None => {
                    let why = format!("the answer is longer than {LONGEST_PAGE} bytes");
                    return Err(call.error(StorageErrorKind::Protocol, why));
                }
            }
        };
        let broken = |why: String| call.error(StorageErrorKind::Protocol, why);
        let page: RawPage = serde_json::from_slice(&body)
            .map_err(|error| broken(format!("the answer is not a listing: {error}")))?;
        drop(body);
        let mut found = page.objects.map(|objects| objects.0).unwrap_or_default();
        self.empty = if found.is_empty() { self.empty + 1 } else { 0 };
        if found.len() > self.left {
            found.truncate(self.left);
            (self.truncated, self.is_over) = (true, true);
        }
        self.left -= found.len();
        let objects = found.into_iter().map(|object| object.complete().map_err(broken));
        let objects = objects.collect::<Result<Vec<_>, _>>()?;
        if let Some(object) = objects.last() {
            self.last = Some(object.name.clone());
        }
        match page.next_start_with.filter(|next| !next.is_empty()) {
            Some(next) if !self.is_over => self.advance(&call, next)?,
            _ => self.is_over = true,
        }
        Ok(Some(objects))
    }

    /// The request of the next page.
    fn call(&self) -> UnsignedRequest<'a> {
        // One more than the limit shows whether there are more.
        let limit = self.left.saturating_add(1).min(self.page);
        let mut target = format!(
            "/n/{}/b/{}/o?fields={}&limit={limit}&prefix={}",
            strict(&self.bucket.namespace),
            strict(&self.bucket.name),
            strict(LISTED_FIELDS),
            strict(self.prefix),
        );
        if let Some(start) = &self.start {
            target.push_str("&start=");
            target.push_str(&strict(start).to_string());
        }
        list_call(self.bucket, self.prefix, target)
    }

    fn advance(&mut self, call: &UnsignedRequest<'_>, next: String) -> Result<(), StorageError> {
        let not_after = |before: &Option<String>| {
            before.as_ref().is_some_and(|before| next.as_bytes() <= before.as_bytes())
        };
        if not_after(&self.start) || not_after(&self.last) || self.empty > EMPTY_PAGES {
            let why = format!("the listing does not advance beyond {:?}", excerpt(&next, 200));
            return Err(call.error(StorageErrorKind::Protocol, why));
        }
        self.start = Some(next);
        Ok(())
    }
}

/// The directories directly below a prefix that one page shows.
pub(super) async fn directories(
    store: &ObjectStorageInner,
    bucket: &Bucket,
    prefix: &str,
) -> Result<Vec<String>, StorageError> {
    let target = format!(
        "/n/{}/b/{}/o?fields=name&limit={PAGE_LIMIT}&delimiter=%2F&prefix={}",
        strict(&bucket.namespace),
        strict(&bucket.name),
        strict(prefix),
    );
    let call = list_call(bucket, prefix, target);
    let (_, body) = store.read_retrying(&call, LONGEST_PAGE).await?;
    let page: RawPage = serde_json::from_slice(&body).map_err(|error| {
        let why = format!("the answer is not a listing: {error}");
        call.error(StorageErrorKind::Protocol, why)
    })?;
    Ok(page.prefixes.unwrap_or_default())
}

/// The names of the buckets of a compartment that one page shows.
pub(super) async fn buckets(
    store: &ObjectStorageInner,
    namespace: &str,
    compartment: &str,
) -> Result<Vec<String>, StorageError> {
    #[derive(Deserialize)]
    struct BucketSummary {
        name: String,
    }
    let target = format!(
        "/n/{}/b?compartmentId={}&limit={PAGE_LIMIT}",
        strict(namespace),
        strict(compartment)
    );
    let subject = format!("namespace {namespace}");
    let call =
        UnsignedRequest::new("ListBuckets", subject, Method::GET, target).in_namespace(namespace);
    let (_, body) = store.read_retrying(&call, LONGEST_PAGE).await?;
    let found: Vec<BucketSummary> = serde_json::from_slice(&body).map_err(|error| {
        let why = format!("the answer is not a listing: {error}");
        call.error(StorageErrorKind::Protocol, why)
    })?;
    Ok(found.into_iter().map(|bucket| bucket.name).collect())
}

fn list_call<'a>(bucket: &'a Bucket, prefix: &str, target: String) -> UnsignedRequest<'a> {
    let subject = format!("prefix {:?} in {bucket}", excerpt(prefix, 200));
    UnsignedRequest::new("ListObjects", subject, Method::GET, target).in_bucket(bucket)
}
