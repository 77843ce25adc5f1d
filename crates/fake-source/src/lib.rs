//! A source in memory, for unit tests: the same objects in every bucket. How badly it behaves
//! is set by knobs that can be combined.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, StreamExt as _, stream};
use tokio::sync::watch;

use oci_model_csi_foundation::source::{
    AuthMethod, BodyChunks, Bucket, BucketLocation, ListingPages, ObjectBody, ObjectHead,
    ObjectName, ObjectSource, ObjectSummary, RegionName, Result, SourceConnector, StorageError,
    StorageErrorKind,
};

/// The ETag of every object.
pub const ETAG: &str = "e1";

/// The fake; clones are the same source, with the same counters.
#[derive(Debug, Clone)]
pub struct FakeSource {
    objects: Arc<BTreeMap<String, FakeObject>>,
    counters: Arc<Counters>,
    open: watch::Sender<bool>,
    chunk_sizes: Arc<[usize]>,
    throttled: Option<usize>,
    broken: Option<(usize, usize)>,
    refuses: bool,
}

/// Its bytes are made when they are first read, so that it may be larger than memory if they
/// never are.
#[derive(Debug)]
struct FakeObject {
    size: u64,
    bytes: OnceLock<Bytes>,
}

#[derive(Debug, Default)]
struct Counters {
    listings: AtomicUsize,
    directories: AtomicUsize,
    gets: AtomicUsize,
    throttled: AtomicUsize,
    bodies: AtomicUsize,
    broken: AtomicUsize,
}

impl FakeSource {
    /// A well-behaved source of objects of these names and sizes.
    pub fn new(objects: &[(&str, u64)]) -> Self {
        let object = |(name, size): &(&str, u64)| {
            ((*name).to_owned(), FakeObject { size: *size, bytes: OnceLock::new() })
        };
        Self {
            objects: Arc::new(objects.iter().map(object).collect()),
            counters: Arc::default(),
            open: watch::Sender::new(true),
            chunk_sizes: Arc::new([64 << 10]),
            throttled: None,
            broken: None,
            refuses: false,
        }
    }

    /// Cuts bodies into chunks of these sizes, in turns.
    pub fn with_chunks_of(mut self, sizes: &[usize]) -> Self {
        self.chunk_sizes = sizes.into();
        self
    }

    /// Answers each `every`-th GET with 429.
    pub fn throttling_each(mut self, every: usize) -> Self {
        self.throttled = Some(every);
        self
    }

    /// Breaks off each `every`-th body after so many bytes.
    pub fn breaking_each(mut self, every: usize, after: usize) -> Self {
        self.broken = Some((every, after));
        self
    }

    /// Refuses every GET and HEAD with 403.
    pub fn refusing(mut self) -> Self {
        self.refuses = true;
        self
    }

    /// Whether requests are answered or kept waiting.
    pub fn set_open(&self, open: bool) {
        self.open.send_replace(open);
    }

    /// How many pages of listings were requested.
    pub fn listings(&self) -> usize {
        self.counters.listings.load(Ordering::SeqCst)
    }

    /// How many listings of directories were requested.
    pub fn directory_listings(&self) -> usize {
        self.counters.directories.load(Ordering::SeqCst)
    }

    /// How many GETs were answered with 429.
    pub fn throttled(&self) -> usize {
        self.counters.throttled.load(Ordering::SeqCst)
    }

    /// How many bodies broke off.
    pub fn broken(&self) -> usize {
        self.counters.broken.load(Ordering::SeqCst)
    }

    /// The bytes of an object.
    pub fn bytes(&self, name: &str) -> &Bytes {
        let FakeObject { size, bytes } = &self.objects[name];
        bytes.get_or_init(|| content(name, usize::try_from(*size).unwrap()))
    }

    async fn answered(&self) {
        // The sender is this value's own.
        let _ = self.open.subscribe().wait_for(|open| *open).await;
    }

    fn object(&self, object: &ObjectName, if_match: Option<&str>) -> Result<&Bytes> {
        let error = |kind, status, code: &str| {
            let error = StorageError::new(kind, format!("reading {object}"), code);
            Err(error.with_status(status).with_code(Some(code.to_owned())))
        };
        if self.refuses {
            return error(StorageErrorKind::Forbidden, 403, "NotAllowed");
        }
        if !self.objects.contains_key(&object.name) {
            return error(StorageErrorKind::NotFound, 404, "ObjectNotFound");
        }
        if if_match.is_some_and(|etag| etag != ETAG) {
            return error(StorageErrorKind::Changed, 412, "IfMatchFailed");
        }
        Ok(self.bytes(&object.name))
    }

    /// Whether this one, counted from 1, is each `every`-th.
    fn is_due(count: &AtomicUsize, every: usize) -> bool {
        (count.fetch_add(1, Ordering::SeqCst) + 1).is_multiple_of(every)
    }

    fn chunks(&self, bytes: &Bytes) -> BodyChunks {
        let breaks = self
            .broken
            .filter(|(every, after)| {
                Self::is_due(&self.counters.bodies, *every) && *after < bytes.len()
            })
            .map(|(_, after)| after);
        let mut rest = bytes.slice(..breaks.unwrap_or(bytes.len()));
        let mut chunks = Vec::new();
        for size in self.chunk_sizes.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            chunks.push(Ok(rest.split_to((*size).min(rest.len()))));
        }
        if breaks.is_some() {
            self.counters.broken.fetch_add(1, Ordering::SeqCst);
            chunks.push(Err("the body broke off".to_owned()));
        }
        stream::iter(chunks).boxed()
    }
}

/// Bytes that differ by object and position.
fn content(name: &str, size: usize) -> Bytes {
    let seed = crc32c::crc32c(name.as_bytes());
    let mut bytes = Vec::with_capacity(size + 4);
    let mut word = seed | 1;
    while bytes.len() < size {
        word = word.wrapping_mul(0x9E37_79B1).rotate_left(13);
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.truncate(size);
    bytes.into()
}

/// The head of a whole object.
fn head(bytes: &Bytes) -> ObjectHead {
    ObjectHead {
        size: Some(bytes.len() as u64),
        etag: ETAG.to_owned(),
        crc32c: Some(crc32c::crc32c(bytes)),
        ..ObjectHead::default()
    }
}

impl ObjectSource for FakeSource {
    fn location(&self) -> BoxFuture<'_, Result<String>> {
        async { Ok("memory".to_owned()) }.boxed()
    }

    fn method(&self) -> AuthMethod {
        AuthMethod::None
    }

    fn is(&self, other: &dyn ObjectSource) -> bool {
        let other: &dyn Any = other;
        let other = other.downcast_ref::<Self>();
        other.is_some_and(|other| Arc::ptr_eq(&self.counters, &other.counters))
    }

    fn namespace(&self) -> BoxFuture<'_, Result<String>> {
        async { Ok("mytenancy".to_owned()) }.boxed()
    }

    fn known_namespace(&self) -> Option<&str> {
        Some("mytenancy")
    }

    fn pages<'a>(
        &'a self,
        _bucket: &'a Bucket,
        prefix: &'a str,
        max: usize,
    ) -> Box<dyn ListingPages + 'a> {
        let summary = |(name, object): (&String, &FakeObject)| ObjectSummary {
            name: name.clone(),
            size: object.size,
            etag: ETAG.to_owned(),
            ..ObjectSummary::default()
        };
        let under = self.objects.iter().filter(|(name, _)| name.starts_with(prefix));
        let mut objects: Vec<ObjectSummary> = under.map(summary).collect();
        let truncated = objects.len() > max;
        objects.truncate(max);
        Box::new(FakePages { source: self, page: Some(objects), truncated })
    }

    fn directories<'a>(
        &'a self,
        _bucket: &'a Bucket,
        prefix: &'a str,
    ) -> BoxFuture<'a, Result<Vec<String>>> {
        self.counters.directories.fetch_add(1, Ordering::SeqCst);
        let below = self.objects.keys().filter_map(|name| name.strip_prefix(prefix));
        let below = below.filter_map(|rest| rest.split_once('/'));
        let found: BTreeSet<String> =
            below.map(|(directory, _)| format!("{prefix}{directory}/")).collect();
        async { Ok(found.into_iter().collect()) }.boxed()
    }

    fn buckets<'a>(&'a self, _namespace: &'a str) -> BoxFuture<'a, Result<Vec<String>>> {
        async { Ok(Vec::new()) }.boxed()
    }

    fn head<'a>(
        &'a self,
        object: &'a ObjectName,
        if_match: Option<&'a str>,
    ) -> BoxFuture<'a, Result<ObjectHead>> {
        async move {
            self.answered().await;
            self.object(object, if_match).map(head)
        }
        .boxed()
    }

    fn get<'a>(
        &'a self,
        object: &'a ObjectName,
        etag: &'a str,
        range: Option<Range<u64>>,
    ) -> BoxFuture<'a, Result<ObjectBody>> {
        async move {
            self.answered().await;
            let attempted = format!("reading {object}");
            if self.throttled.is_some_and(|every| Self::is_due(&self.counters.gets, every)) {
                self.counters.throttled.fetch_add(1, Ordering::SeqCst);
                let kind = StorageErrorKind::Throttled;
                return Err(StorageError::new(kind, attempted, "too many").with_status(429));
            }
            let whole = self.object(object, Some(etag))?;
            let (head, bytes) = match range {
                None => (head(whole), whole.clone()),
                Some(range) => {
                    let at = |at: u64| usize::try_from(at).unwrap();
                    let part = ObjectHead { crc32c: None, ..head(whole) };
                    (part, whole.slice(at(range.start)..at(range.end)))
                }
            };
            let length = Some(bytes.len() as u64);
            Ok(ObjectBody::new(head, self.chunks(&bytes), length, attempted))
        }
        .boxed()
    }

    fn may_read<'a>(
        &'a self,
        object: &'a ObjectName,
        if_match: Option<&'a str>,
        _is_empty: bool,
    ) -> BoxFuture<'a, Result<()>> {
        self.head(object, if_match).map(|head| head.map(drop)).boxed()
    }

    fn how_to_allow(&self, bucket: &str) -> String {
        format!("let the test read {bucket}")
    }
}

/// One page of everything.
struct FakePages<'a> {
    source: &'a FakeSource,
    page: Option<Vec<ObjectSummary>>,
    truncated: bool,
}

impl ListingPages for FakePages<'_> {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Vec<ObjectSummary>>>> {
        async {
            if self.page.is_some() {
                self.source.counters.listings.fetch_add(1, Ordering::SeqCst);
                self.source.answered().await;
            }
            Ok(self.page.take())
        }
        .boxed()
    }

    fn truncated(&self) -> bool {
        self.truncated
    }
}

/// Every location is this source.
impl SourceConnector for FakeSource {
    fn own(&self) -> Arc<dyn ObjectSource> {
        Arc::new(self.clone())
    }

    fn source<'a>(
        &'a self,
        _place: &'a BucketLocation,
    ) -> BoxFuture<'a, oci_model_csi_foundation::Result<Arc<dyn ObjectSource>>> {
        async { Ok(self.own()) }.boxed()
    }

    fn is_in<'a>(
        &'a self,
        _place: &'a BucketLocation,
        _region: &'a RegionName,
    ) -> BoxFuture<'a, oci_model_csi_foundation::Result<bool>> {
        async { Ok(true) }.boxed()
    }
}
