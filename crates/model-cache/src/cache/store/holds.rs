//! Holds: they protect models and blobs that an operation of the driver uses from
//! eviction. They are kept in memory, since they end with the process.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::sync::{Arc, Condvar};

use super::lock_order;
use crate::model::{BlobId, ModelKey};
use crate::sync::{OrderedGuard, OrderedMutex};

/// Counts the holds of each model and blob. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(in crate::cache) struct Holds(Arc<HoldTable>);

#[derive(Debug)]
struct HoldTable {
    counts: OrderedMutex<Counts>,
    /// Notified when the removal of a model has ended.
    left: Condvar,
    eviction: OrderedMutex<()>,
}

impl Default for HoldTable {
    fn default() -> Self {
        Self {
            counts: OrderedMutex::new(lock_order::HOLDS, Counts::default()),
            left: Condvar::new(),
            eviction: OrderedMutex::new(lock_order::EVICTION, ()),
        }
    }
}

#[derive(Debug, Default)]
struct Counts {
    models: HashMap<ModelKey, usize>,
    /// Models that are being evicted.
    leaving: HashSet<ModelKey>,
    blobs: HashMap<BlobId, usize>,
}

/// Keeps a model in the cache while this, or a clone of it, lives.
#[derive(Debug, Clone)]
pub(in crate::cache) struct ModelHold(
    #[expect(dead_code, reason = "held for its end")] Arc<ModelGuard>,
);

#[derive(Debug)]
struct ModelGuard {
    holds: Holds,
    key: ModelKey,
}

/// Keeps blobs in the cache while this lives.
#[derive(Debug)]
pub(in crate::cache) struct BlobHold {
    holds: Holds,
    ids: Vec<BlobId>,
}

impl Holds {
    /// Holds a model, whether it exists or not: check after taking the hold. Waits
    /// for a running eviction of this model. Blocks.
    pub(in crate::cache) fn model(&self, key: &ModelKey) -> ModelHold {
        let leaving = |counts: &mut Counts| counts.leaving.contains(key);
        let mut counts = self.lock().wait_while(&self.0.left, leaving);
        *counts.models.entry(key.clone()).or_default() += 1;
        drop(counts);
        ModelHold(Arc::new(ModelGuard { holds: self.clone(), key: key.clone() }))
    }

    /// Holds blobs, whether they exist or not. Waits for a running eviction. Blocks.
    pub(in crate::cache) fn blobs(&self, ids: impl Iterator<Item = BlobId>) -> BlobHold {
        let _no_eviction = self.lock_eviction();
        let mut counts = self.lock();
        let ids: Vec<_> = ids.collect();
        for id in &ids {
            *counts.blobs.entry(id.clone()).or_default() += 1;
        }
        BlobHold { holds: self.clone(), ids }
    }

    /// Locks eviction: one caller at a time, and no new hold on blobs meanwhile.
    pub(in crate::cache) fn lock_eviction(&self) -> OrderedGuard<'_, ()> {
        self.0.eviction.lock()
    }

    /// The models that are held now.
    pub(in crate::cache) fn held_models(&self) -> HashSet<ModelKey> {
        self.lock().models.keys().cloned().collect()
    }

    /// The blobs that are held now.
    pub(in crate::cache) fn held_blobs(&self) -> HashSet<BlobId> {
        self.lock().blobs.keys().cloned().collect()
    }

    /// Runs `act` unless the model is held. No new hold on it begins meanwhile. The
    /// caller must have [`Holds::lock_eviction`]. The counts are not locked while
    /// `act` uses the disk, since holds may end in async code. Blocks.
    pub(in crate::cache) fn unless_held<T>(
        &self,
        key: &ModelKey,
        act: impl FnOnce() -> T,
    ) -> Option<T> {
        let mut counts = self.lock();
        if counts.models.contains_key(key) {
            return None;
        }
        counts.leaving.insert(key.clone());
        drop(counts);
        let _leaving = RemovalGuard { holds: self, key };
        Some(act())
    }

    fn lock(&self) -> OrderedGuard<'_, Counts> {
        self.0.counts.lock()
    }
}

/// Ends the removal of a model, even if it panics.
struct RemovalGuard<'a> {
    holds: &'a Holds,
    key: &'a ModelKey,
}

impl Drop for RemovalGuard<'_> {
    fn drop(&mut self) {
        self.holds.lock().leaving.remove(self.key);
        self.holds.0.left.notify_all();
    }
}

impl Drop for ModelGuard {
    fn drop(&mut self) {
        release(&mut self.holds.lock().models, &self.key);
    }
}

impl Drop for BlobHold {
    fn drop(&mut self) {
        let mut counts = self.holds.lock();
        for id in &self.ids {
            release(&mut counts.blobs, id);
        }
    }
}

fn release<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, mpsc};
    use std::thread;
    use std::time::Duration;

    use oci_model_csi_foundation::sync::interleave::{run, switch};

    use super::*;
    use crate::sync::lock;

    #[test]
    fn a_model_is_held_until_the_last_hold_ends() {
        let holds = Holds::default();
        let key = ModelKey::parse(&"a".repeat(64)).unwrap();
        let (first, second) = (holds.model(&key), holds.model(&key));
        let third = second.clone();
        drop((first, second));
        assert_eq!(holds.unless_held(&key, || ()), None);
        drop(third);
        assert_eq!(holds.unless_held(&key, || 7), Some(7));
        assert!(holds.held_models().is_empty());
    }

    #[test]
    fn only_a_hold_on_a_model_that_is_being_evicted_waits() {
        let holds = Holds::default();
        let [key, other] = ["a", "b"].map(|c| ModelKey::parse(&c.repeat(64)).unwrap());
        let kept = holds.model(&other);
        let (sender, held) = mpsc::channel();
        let waits = holds.unless_held(&key, || {
            // The end of a hold, in async code, does not wait for the disk either.
            drop(kept);
            drop(holds.model(&other));
            let (holds, key) = (holds.clone(), key.clone());
            thread::spawn(move || sender.send(holds.model(&key)));
            held.recv_timeout(Duration::from_millis(200)).is_err()
        });
        assert_eq!(waits, Some(true));
        let now_held = held.recv_timeout(Duration::from_secs(30)).unwrap();
        assert_eq!(holds.held_models(), HashSet::from([key.clone()]));
        drop(now_held);
        assert_eq!(holds.unless_held(&key, || ()), Some(()));
    }

    #[test]
    fn blobs_are_held_until_the_last_hold_ends() {
        let holds = Holds::default();
        let id = BlobId::parse(&"b".repeat(64)).unwrap();
        let (a, b) = (holds.blobs([id.clone()].into_iter()), holds.blobs([id.clone()].into_iter()));
        drop(a);
        assert!(holds.held_blobs().contains(&id));
        drop(b);
        assert!(holds.held_blobs().is_empty());
    }

    /// Runs a user of something and two evictions of it in many orders.
    fn in_any_order(uses: impl Fn() + Sync, evicts: impl Fn() + Sync) {
        for seed in 0..300 {
            let uses = || (0..3).for_each(|_| uses());
            run(seed, vec![Box::new(uses), Box::new(&evicts), Box::new(&evicts), Box::new(uses)]);
        }
    }

    #[test]
    fn in_any_order_a_model_that_was_seen_under_a_hold_stays_to_its_end() {
        let (holds, key) = (Holds::default(), ModelKey::parse(&"a".repeat(64)).unwrap());
        let exists = Mutex::new(true);
        let uses = || {
            let _hold = holds.model(&key);
            if *lock(&exists) {
                switch();
                assert!(*lock(&exists), "evicted while it is held");
            } else {
                *lock(&exists) = true;
            }
        };
        let evicts = || {
            let _eviction = holds.lock_eviction();
            holds.unless_held(&key, || *lock(&exists) = false);
        };
        in_any_order(uses, evicts);
        assert!(holds.held_models().is_empty());
    }

    #[test]
    fn in_any_order_a_blob_that_was_seen_under_a_hold_stays_to_its_end() {
        let (holds, id) = (Holds::default(), BlobId::parse(&"b".repeat(64)).unwrap());
        let exists = Mutex::new(true);
        let uses = || {
            let _hold = holds.blobs([id.clone()].into_iter());
            let seen = *lock(&exists);
            switch();
            assert!(!seen || *lock(&exists), "evicted while it is held");
            *lock(&exists) = true;
        };
        let evicts = || {
            let _eviction = holds.lock_eviction();
            if !holds.held_blobs().contains(&id) {
                *lock(&exists) = false;
            }
        };
        in_any_order(uses, evicts);
        assert!(holds.held_blobs().is_empty());
    }
}
