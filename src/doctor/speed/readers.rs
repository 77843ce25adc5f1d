//! Connections that read ranges of objects and keep nothing of them.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::report::RampEnd;
use crate::error::Error;
use crate::retry::Backoff;
use crate::source::{ObjectName, ObjectSource, StorageError, StorageErrorKind};
use crate::sync::lock;

/// Bytes of one request, as downloads use them unless `download.rangeSize` says otherwise.
const RANGE: u64 = 16 << 20;

/// Ranges beyond this number are not needed: they are read again and again.
const RANGES: usize = 4096;

/// The pauses of a connection whose requests fail.
const PAUSES: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_millis(500));

/// One object of the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpeedObject {
    /// Its full name.
    pub name: ObjectName,
    /// The ETag of the version that is read.
    pub etag: String,
    /// Its size in bytes.
    pub size: u64,
}

/// A part of an object that one request reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ObjectRange {
    object: SpeedObject,
    bytes: Range<u64>,
}

/// The ranges of the large objects: the first one of each, the second one of each, and so on.
/// Small objects of a model with large ones are left out, since requests for them say more about
/// latency than about speed.
pub(super) fn ranges_of(objects: &[SpeedObject]) -> Vec<ObjectRange> {
    let largest = objects.iter().map(|object| object.size).max().unwrap_or(0);
    let least = largest.div_ceil(2).clamp(1, RANGE);
    let large: Vec<_> = objects.iter().filter(|object| object.size >= least).collect();
    let mut ranges = Vec::new();
    for start in (0..largest).step_by(usize::try_from(RANGE).unwrap_or(usize::MAX)) {
        if ranges.len() >= RANGES {
            break;
        }
        ranges.extend(large.iter().filter(|object| object.size > start).map(|object| {
            let bytes = start..object.size.min(start + RANGE);
            ObjectRange { object: (*object).clone(), bytes }
        }));
    }
    ranges
}

/// What the requests saw since the last look.
#[derive(Debug, Default)]
pub(super) struct RequestCounts {
    pub(super) first_bytes: Vec<Duration>,
    pub(super) failures: BTreeMap<String, u64>,
}

/// Connections that read until they are dropped.
#[derive(Debug)]
pub(super) struct Readers {
    shared: Arc<SharedReading>,
    running: JoinSet<()>,
}

/// What all connections share.
#[derive(Debug)]
struct SharedReading {
    source: Arc<dyn ObjectSource>,
    ranges: Vec<ObjectRange>,
    next: AtomicUsize,
    /// Bytes that arrived, and that may.
    bytes: AtomicU64,
    traffic: u64,
    counts: Mutex<RequestCounts>,
    error: Mutex<Option<Error>>,
    /// Connections that have seen a byte or a failure.
    begun: watch::Sender<usize>,
    ended: watch::Sender<Option<RampEnd>>,
}

impl Readers {
    /// No connections yet. Ranges must not be empty.
    pub(super) fn new(
        source: Arc<dyn ObjectSource>,
        ranges: Vec<ObjectRange>,
        traffic: u64,
    ) -> Self {
        let shared = SharedReading {
            source,
            ranges,
            next: AtomicUsize::new(0),
            bytes: AtomicU64::new(0),
            traffic,
            counts: Mutex::default(),
            error: Mutex::default(),
            begun: watch::Sender::new(0),
            ended: watch::Sender::new(None),
        };
        Self { shared: Arc::new(shared), running: JoinSet::new() }
    }

    /// Adds connections until there are so many.
    pub(super) fn grow_to(&mut self, connections: usize) {
        while self.running.len() < connections {
            self.running.spawn(Arc::clone(&self.shared).read());
        }
    }

    /// Waits until each connection has seen a byte or a failure. Cancellation safe.
    pub(super) async fn begun(&self) {
        let all = self.running.len();
        // The sender is this value's own.
        let _ = self.shared.begun.subscribe().wait_for(|begun| *begun >= all).await;
    }

    /// Waits until reading is of no use any more, and why. Cancellation safe.
    pub(super) async fn ended(&self) -> RampEnd {
        let mut ended = self.shared.ended.subscribe();
        let end = ended.wait_for(Option::is_some).await.ok().and_then(|end| *end);
        end.unwrap_or(RampEnd::Refused)
    }

    /// Bytes that arrived so far.
    pub(super) fn bytes(&self) -> u64 {
        self.shared.bytes.load(Ordering::Relaxed)
    }

    /// What the requests saw since the last call.
    pub(super) fn take_counts(&self) -> RequestCounts {
        std::mem::take(&mut *lock(&self.shared.counts))
    }

    /// Closes the connections, and returns the last error of a request.
    pub(super) async fn stop(mut self) -> Option<Error> {
        self.running.shutdown().await;
        lock(&self.shared.error).take()
    }
}

impl SharedReading {
    /// Reads one range after the other.
    async fn read(self: Arc<Self>) {
        let (mut failures, mut has_begun) = (0, false);
        loop {
            let at = self.next.fetch_add(1, Ordering::Relaxed) % self.ranges.len();
            let outcome = self.read_range(&self.ranges[at], &mut has_begun).await;
            self.begin(&mut has_begun);
            let Err(error) = outcome else {
                failures = 0;
                continue;
            };
            failures += 1;
            let pause = PAUSES.pause(failures, error.retry_after());
            if !self.note(error) {
                return;
            }
            tokio::time::sleep(pause).await;
        }
    }

    async fn read_range(
        &self,
        range: &ObjectRange,
        has_begun: &mut bool,
    ) -> Result<(), StorageError> {
        let ObjectRange { object, bytes } = range;
        let asked = Instant::now();
        let mut body = self.source.get(&object.name, &object.etag, Some(bytes.clone())).await?;
        let mut waited = None;
        while let Some(chunk) = body.chunk().await? {
            if waited.is_none() {
                waited = Some(asked.elapsed());
                lock(&self.counts).first_bytes.extend(waited);
                self.begin(has_begun);
            }
            let length = chunk.len() as u64;
            let before = self.bytes.fetch_add(length, Ordering::Relaxed);
            if before + length >= self.traffic {
                self.end(RampEnd::Traffic);
            }
        }
        Ok(())
    }

    fn begin(&self, has_begun: &mut bool) {
        if !std::mem::replace(has_begun, true) {
            self.begun.send_modify(|begun| *begun += 1);
        }
    }

    /// Counts a failure; whether the request may be repeated.
    fn note(&self, error: StorageError) -> bool {
        let kind = match error.status() {
            Some(status) => status.to_string(),
            None => "connection".to_owned(),
        };
        *lock(&self.counts).failures.entry(kind).or_default() += 1;
        // An invalid answer comes from a proxy in between; the next one may be good.
        let again = error.is_transient() || error.kind() == StorageErrorKind::Protocol;
        *lock(&self.error) = Some(error.into());
        if !again {
            self.end(RampEnd::Refused);
        }
        again
    }

    /// The first reason counts.
    fn end(&self, end: RampEnd) {
        self.ended.send_if_modified(|ended| {
            let is_first = ended.is_none();
            ended.get_or_insert(end);
            is_first
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Bucket;

    const MIB: u64 = 1 << 20;

    fn objects(sizes: &[u64]) -> Vec<SpeedObject> {
        let bucket = Arc::new(Bucket::new("n", "b"));
        let object = |(at, size): (usize, &u64)| SpeedObject {
            name: bucket.object(at.to_string()),
            etag: "e".to_owned(),
            size: *size,
        };
        sizes.iter().enumerate().map(object).collect()
    }

    fn ranges(sizes: &[u64]) -> Vec<(String, Range<u64>)> {
        let ranges = ranges_of(&objects(sizes)).into_iter();
        ranges.map(|range| (range.object.name.name, range.bytes)).collect()
    }

    #[test]
    fn large_objects_are_read_in_turns_and_small_ones_beside_them_not_at_all() {
        let range = |name: &str, bytes: Range<u64>| (name.to_owned(), bytes);
        assert_eq!(
            ranges(&[40 * MIB, 3, 17 * MIB]),
            [
                range("0", 0..16 * MIB),
                range("2", 0..16 * MIB),
                range("0", 16 * MIB..32 * MIB),
                range("2", 16 * MIB..17 * MIB),
                range("0", 32 * MIB..40 * MIB),
            ]
        );
        assert_eq!(ranges(&[3, 7, 8, 0]), [range("1", 0..7), range("2", 0..8)]);
        assert!(ranges(&[0]).is_empty() && ranges(&[]).is_empty());
        assert_eq!(ranges(&[1 << 50]).len(), RANGES);
    }
}
