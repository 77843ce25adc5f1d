//! How much space there is, and who gets it: reservations, admission, eviction.
//! Knows [`super::store`], and not [`super::fill`].

pub(super) mod admission;
pub(super) mod disk;
pub(super) mod evict;
mod maintenance;
mod pods;
pub(super) mod policy;
pub(super) mod reservations;
pub(super) mod shortfall;
pub(super) mod usage;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tokio::sync::Notify;

use self::pods::Arrivals;
use self::reservations::{CacheLimits, Reservations};
use super::store::requests::KeepRevisions;
use super::store::{CacheStore, lock_order};
use crate::metrics::Metrics;
use crate::model::BlobId;
use crate::sync::OrderedMutex;

/// What is being downloaded now.
pub(super) trait Downloads: Send + Sync {
    /// How many models are.
    fn models(&self) -> usize;

    /// The blobs that are, and those of models that wait for space.
    fn blobs(&self) -> HashSet<BlobId>;
}

/// The space of the cache: what is reserved, and what may be evicted.
pub(super) struct CacheSpace {
    store: Arc<CacheStore>,
    downloads: Arc<dyn Downloads>,
    reservations: Reservations,
    idle_ttl: Option<Duration>,
    keep: OrderedMutex<Vec<KeepRevisions>>,
    admissions: OrderedMutex<()>,
    arrivals: Arrivals,
    /// Notified when a model may have become unused.
    released: Notify,
    watermark_warned: AtomicBool,
    metrics: Arc<Metrics>,
}

impl CacheSpace {
    pub(super) fn new(
        store: Arc<CacheStore>,
        downloads: Arc<dyn Downloads>,
        limits: CacheLimits,
        idle_ttl: Option<Duration>,
        keep: Vec<KeepRevisions>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            reservations: Reservations::new(store.layout().clone(), limits),
            store,
            downloads,
            idle_ttl,
            keep: OrderedMutex::new(lock_order::KEEP, keep),
            admissions: OrderedMutex::new(lock_order::ADMISSION, ()),
            arrivals: Arrivals::default(),
            released: Notify::new(),
            watermark_warned: AtomicBool::new(false),
            metrics,
        }
    }

    /// Replaces the rules that keep older revisions. What no rule keeps any more is
    /// evicted in the background.
    pub(super) fn keep_revisions(&self, rules: Vec<KeepRevisions>) {
        *self.keep.lock() = rules;
        self.released.notify_one();
    }

    #[cfg(test)]
    pub(super) fn reservations(&self) -> &Reservations {
        &self.reservations
    }
}
