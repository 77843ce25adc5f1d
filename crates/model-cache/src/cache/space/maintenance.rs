//! Maintenance while the driver runs: watches the disk, deletes the trash, and
//! sweeps leftovers.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::CacheSpace;
use super::evict::Evicted;
use super::policy::EvictionGoal;
use super::reservations::FileSystem;
use crate::blocking::blocking;
use crate::budget;
use crate::cache::store::disk_space::Space;
use crate::cache::store::trash::QUARANTINED;
use crate::error::Result;
use crate::metrics::EvictionReason;
use crate::model::size_text;

/// Interval between checks of the free space: other programs can fill a disk fast.
const WATERMARK_PERIOD: Duration = Duration::from_secs(5);

/// Interval between scans of the whole cache.
const TIDY_PERIOD: Duration = Duration::from_secs(30);

/// Interval between sweeps of leftovers.
const SWEEP_PERIOD: Duration = Duration::from_secs(60 * 60);

/// The part of the file system (1/50) that an eviction frees beyond the watermark, so
/// that the next write does not cause another one.
const HYSTERESIS: u64 = 50;

impl CacheSpace {
    /// Runs maintenance until `shutdown`; `pods` is kubelet's directory of pods.
    pub(in crate::cache) async fn run_maintenance(
        self: &Arc<Self>,
        pods: &Path,
        shutdown: &CancellationToken,
    ) {
        let store = Arc::clone(&self.store);
        if let Err(error) = blocking(move || store.warn_of_foreign_files()).await {
            tracing::warn!(%error, "searching the cache for foreign files failed");
        }
        let watermark =
            every(WATERMARK_PERIOD, shutdown, "checking the free space of the cache", || {
                let space = Arc::clone(self);
                blocking(move || space.check_watermark())
            });
        let tidy = every(TIDY_PERIOD, shutdown, "checking the limits of the cache", || {
            let (space, pods) = (Arc::clone(self), pods.to_owned());
            blocking(move || space.tidy(&pods))
        });
        let sweep = every(SWEEP_PERIOD, shutdown, "sweeping the cache", || {
            let space = Arc::clone(self);
            blocking(move || space.sweep())
        });
        let empty = async {
            loop {
                let store = Arc::clone(&self.store);
                if let Err(error) = blocking(move || store.empty_trash()).await {
                    tracing::warn!(%error, "emptying the trash failed");
                }
                tokio::select! {
                    () = self.store.deletion_woken() => {}
                    // Entries that were in use may be deletable now.
                    () = tokio::time::sleep(TIDY_PERIOD) => {}
                    () = shutdown.cancelled() => return,
                }
            }
        };
        let superseded = async {
            loop {
                tokio::select! {
                    () = self.released.notified() => {}
                    // Revisions that were mounted or held may be evictable now.
                    () = tokio::time::sleep(TIDY_PERIOD) => {}
                    () = shutdown.cancelled() => return,
                }
                let space = Arc::clone(self);
                if let Err(error) = blocking(move || space.evict_superseded()).await {
                    tracing::warn!(%error, "evicting superseded revisions failed");
                }
            }
        };
        tokio::join!(watermark, tidy, sweep, empty, superseded);
    }
}

async fn every<F: Future<Output = Result<()>>>(
    period: Duration,
    shutdown: &CancellationToken,
    what: &str,
    mut work: impl FnMut() -> F,
) {
    let mut turns = tokio::time::interval(period);
    turns.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = turns.tick() => {}
            () = shutdown.cancelled() => return,
        }
        if let Err(error) = work().await {
            tracing::warn!(%error, "{what} failed; it will be retried");
        }
    }
}

/// Explains why an almost full disk gets no space from a cache of this many models.
fn nothing_to_evict(models: usize) -> &'static str {
    match models {
        0 => "the disk is almost full, and the cache has no model: other files fill the disk",
        _ => {
            "the disk is almost full, and no model in the cache can be evicted: pods use them, or \
             they are pinned"
        }
    }
}

impl CacheSpace {
    /// Evicts models when the free space is below the watermark. Blocks.
    fn check_watermark(&self) -> Result<()> {
        self.arrivals.forget(None);
        if self.below_watermark()? == Space::default() {
            self.watermark_warned.store(false, Ordering::Relaxed);
            return Ok(());
        }
        self.drop_leftovers(&HashSet::new())?;
        // Delete the trash first: otherwise models would be evicted for its space.
        self.store.empty_trash()?;
        let missing = self.below_watermark()?;
        let evicted =
            self.evict(&EvictionGoal::BestEffort(missing), Some(EvictionReason::Watermark))?;
        self.warn_watermark(&evicted)
    }

    /// Returns the space to free once the watermark is passed, including the margin
    /// of [`HYSTERESIS`].
    fn below_watermark(&self) -> Result<Space> {
        let (fs, limits) =
            (FileSystem::of(self.store.layout().root())?, self.reservations.limits());
        let missing = |free: u64, least: u64, total: u64| match free < least {
            true => least.saturating_add(total / HYSTERESIS).min(total) - free,
            false => 0,
        };
        let bytes = missing(fs.free_bytes, limits.min_free, fs.total_bytes);
        let inodes = missing(fs.free_inodes, limits.min_free_inodes, fs.total_inodes);
        Ok(Space { bytes, inodes })
    }

    fn warn_watermark(&self, evicted: &Evicted) -> Result<()> {
        let (models, bytes) = (evicted.models.len(), evicted.freed.bytes);
        if models > 0 {
            tracing::warn!(models, bytes, "the disk is almost full; unused models were evicted");
        } else if !evicted.reached && !self.watermark_warned.swap(true, Ordering::Relaxed) {
            let root = self.store.layout().root();
            let (fs, cached) = (FileSystem::of(root)?, self.store.usage()?);
            tracing::warn!(
                cache = %root.display(),
                models = cached.models.len(),
                cached = size_text(cached.total().bytes),
                free = size_text(fs.free_bytes),
                reserve = size_text(self.reservations.limits().min_free),
                "{}",
                nothing_to_evict(cached.models.len())
            );
        }
        Ok(())
    }

    /// Enforces `cache.maxSize` and `cache.idleTTL`, ends leases of pods that are gone,
    /// and updates the gauges. Blocks.
    fn tidy(&self, pods: &Path) -> Result<()> {
        self.store.drop_dead_leases(pods)?;
        let mut over = self.over_limit()?;
        if over > 0 {
            self.drop_leftovers(&HashSet::new())?;
            self.store.empty_trash()?;
            over = self.over_limit()?;
        }
        if over > 0 || self.idle_ttl.is_some() {
            let goal = EvictionGoal::BestEffort(Space { bytes: over, inodes: 0 });
            self.evict(&goal, Some(EvictionReason::Limit))?;
        }
        self.measure()?;
        // A scan of many blobs leaves many small free pieces on the heap.
        budget::trim_soon();
        Ok(())
    }

    fn over_limit(&self) -> Result<u64> {
        let Some(most) = self.reservations.limits().max_size else { return Ok(0) };
        let taken = self.store.usage()?;
        // The trash is deleted anyway.
        Ok(taken.total().bytes.saturating_sub(taken.trash.bytes).saturating_sub(most))
    }

    /// Returns the goal that the limits imply now, for `gc`. Blocks.
    pub(in crate::cache) fn limits_goal(&self) -> Result<EvictionGoal> {
        let mut missing = self.below_watermark()?;
        missing.bytes = missing.bytes.max(self.over_limit()?);
        Ok(EvictionGoal::BestEffort(missing))
    }

    /// Sweeps leftovers that take inodes: stale downloads, quarantine older than a day,
    /// orphaned records and index entries. Blocks.
    pub(in crate::cache) fn sweep(&self) -> Result<()> {
        self.store.empty_quarantine(QUARANTINED)?;
        // A use is recorded when it begins and ends; a machine that dies records no
        // end.
        for lease in self.store.leases() {
            self.store.record_use(&lease.model);
        }
        let _alone = self.store.holds().lock_eviction();
        self.store.sweep(&self.wanted_blobs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_cache_is_not_said_to_be_held_by_pods() {
        assert!(nothing_to_evict(0).contains("other files fill the disk"));
        assert!(!nothing_to_evict(0).contains("pods"));
        assert!(nothing_to_evict(1).contains("pods use them"));
    }
}
