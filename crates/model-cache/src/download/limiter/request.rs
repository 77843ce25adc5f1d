//! One object's requests, as the limiter knows them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

use super::{ConcurrencyLimiter, Origin, ReceivedTotals};
use crate::download::fair_share::Interest;
use crate::download::flow::Flow;
use crate::model::SMALL_FILE;

/// One object's download, as the limiter knows it; clones wait in the same queue.
#[derive(Debug, Clone)]
pub(crate) struct ObjectDownload {
    /// Unique in this process, and ascending.
    pub(super) id: u64,
    pub(super) interest: Interest,
    /// Of a small object in bytes; all larger ones are alike.
    pub(super) size: u64,
    /// Its place in the order of its model.
    pub(super) position: usize,
    pub(super) origin: Arc<Origin>,
    pub(super) streams: Arc<Streams>,
}

/// How many requests of an object run, and for how many of them there is a stream of bytes that
/// is hashed in order.
#[derive(Debug)]
pub(super) struct Streams {
    pub(super) running: AtomicUsize,
    hashed: AtomicUsize,
}

impl ObjectDownload {
    /// Creates the download of an object of this size.
    pub(crate) fn new(interest: Interest, size: u64, position: usize, origin: Arc<Origin>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let size = if size <= SMALL_FILE { size } else { u64::MAX };
        let streams =
            Streams { running: AtomicUsize::new(0), hashed: AtomicUsize::new(usize::MAX) };
        let (id, streams) = (NEXT.fetch_add(1, Ordering::Relaxed), Arc::new(streams));
        Self { id, interest, size, position, origin, streams }
    }

    pub(in crate::download) fn interest(&self) -> &Interest {
        &self.interest
    }

    /// Says how many requests have a stream of their own. Further ones come after those of the
    /// model's other objects: lanes that hash in parallel would be empty.
    pub(in crate::download) fn set_streams(&self, streams: Option<usize>) {
        self.streams.hashed.store(streams.unwrap_or(usize::MAX), Ordering::Relaxed);
    }

    pub(super) fn is_crowded(&self) -> bool {
        self.streams.running.load(Ordering::Relaxed) >= self.streams.hashed.load(Ordering::Relaxed)
    }
}

/// The permit of a running request; returned when dropped.
#[derive(Debug)]
pub(crate) struct RequestPermit {
    /// `None` once it is returned.
    pub(super) limiter: Option<ConcurrencyLimiter>,
    pub(super) id: u64,
    pub(super) flow: Flow,
    pub(super) answered: Arc<AtomicBool>,
    pub(super) asked: Arc<Notify>,
}

impl RequestPermit {
    /// Records that the request was answered after this time.
    pub(in crate::download) fn answered(&self, waited: Duration) {
        self.answered.store(true, Ordering::Relaxed);
        let Some(totals) = self.totals() else { return };
        let micros = u64::try_from(waited.as_micros()).unwrap_or(u64::MAX);
        totals.waited_micros.fetch_add(micros, Ordering::Relaxed);
        totals.answers.fetch_add(1, Ordering::Relaxed);
    }

    /// Its number, in the order in which requests begin.
    pub(in crate::download) fn number(&self) -> u64 {
        self.id
    }

    /// Whether the answer has begun.
    pub(in crate::download) fn is_answered(&self) -> bool {
        self.answered.load(Ordering::Relaxed)
    }

    /// Records bytes that arrived.
    pub(in crate::download) fn arrived(&self, bytes: u64) {
        self.flow.arrived(bytes);
        if let Some(totals) = self.totals() {
            totals.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    fn totals(&self) -> Option<&ReceivedTotals> {
        self.limiter.as_ref().map(|limiter| &limiter.0.received)
    }

    /// The request's throughput; the request keeps it up to date.
    pub(in crate::download) fn flow(&self) -> &Flow {
        &self.flow
    }

    /// Returns when the request must give way to another. Cancellation safe.
    pub(in crate::download) async fn preempted(&self) {
        self.asked.notified().await;
    }
}

impl Drop for RequestPermit {
    fn drop(&mut self) {
        if let Some(limiter) = self.limiter.take() {
            let mut state = limiter.lock();
            state.leave(self.id);
            limiter.admit(&mut state);
        }
    }
}
