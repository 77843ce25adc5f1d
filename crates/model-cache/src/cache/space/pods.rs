//! What pods do to the space: models that they wait for or use are kept, and models that
//! they release may be evicted.

use std::path::Path;
use std::time::{Duration, Instant};

use super::CacheSpace;
use crate::cache::store::leases::{Lease, LeaseHolder};
use crate::cache::store::lock_order;
use crate::cache::store::models::CachedModel;
use crate::error::Result;
use crate::model::{ModelKey, RequestDigest};
use crate::sync::OrderedMutex;

/// How long a completed model is held for the pod that waited for it.
const POD_RETURNS: Duration = Duration::from_secs(180);

/// Completed models whose pods have not asked again yet.
pub(super) struct Arrivals(OrderedMutex<Vec<(Instant, CachedModel)>>);

impl Default for Arrivals {
    fn default() -> Self {
        Self(OrderedMutex::new(lock_order::ARRIVALS, Vec::new()))
    }
}

impl Arrivals {
    /// Ends the hold of a model that was leased, and of those whose pod did not return
    /// in time.
    pub(super) fn forget(&self, leased: Option<&ModelKey>) {
        self.0
            .lock()
            .retain(|(at, model)| at.elapsed() < POD_RETURNS && Some(&model.key) != leased);
    }
}

impl CacheSpace {
    /// Holds a completed model until its pod has asked again. Otherwise a model that
    /// waits for space could evict it first, since kubelet's pauses reach two
    /// minutes.
    pub(in crate::cache) fn await_pod(&self, model: &CachedModel) {
        self.arrivals.forget(None);
        self.arrivals.0.lock().push((Instant::now(), model.clone()));
    }

    /// Leases a model for a volume. Blocks.
    pub(in crate::cache) fn lease(&self, model: CachedModel, holder: LeaseHolder) -> Result<Lease> {
        let key = model.key.clone();
        let lease = self.store.lease(model, holder);
        self.arrivals.forget(Some(&key));
        lease
    }

    /// Ends the lease of a target path, if there is one. Blocks.
    pub(in crate::cache) fn release(&self, target: &Path) -> Result<()> {
        let (model, released) = self.store.release(target);
        if model.is_some() {
            self.released.notify_one();
            self.store.announce_space();
        }
        released
    }

    /// Records a complete model as the newest revision of a request. `exact` says that the
    /// request named the revision. Blocks.
    pub(in crate::cache) fn record_latest(
        &self,
        request: &RequestDigest,
        model: &CachedModel,
        exact: bool,
    ) -> Result<()> {
        if self.store.record_latest(request, model, exact)? {
            self.released.notify_one();
        }
        Ok(())
    }
}
