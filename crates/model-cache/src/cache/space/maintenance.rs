//! Maintenance while the driver runs: watches the disk, deletes the trash, and
//! sweeps leftovers.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use tokio_util::sync::CancellationToken;

use super::evict::Evicted;
use super::policy::{EvictionGoal, Space};
use super::reservations::FileSystem;
use crate::blocking::blocking;
use crate::budget;
use crate::cache::store::disk_usage::DiskUsage;
use crate::cache::store::files;
use crate::cache::store::foreign;
use crate::cache::store::layout::names::{self, BlobFile, Directory};
use crate::cache::store::recover;
use crate::cache::store::trash::QUARANTINED;
use crate::cache::{Cache, CacheInner};
use crate::error::Result;
use crate::metrics::EvictionReason;
use crate::model::{BlobId, ModelKey};

/// Interval between checks of the free space: other programs can fill a disk fast.
const WATERMARK_PERIOD: Duration = Duration::from_secs(5);

/// Interval between scans of the whole cache.
const TIDY_PERIOD: Duration = Duration::from_secs(30);

/// Interval between sweeps of leftovers.
const SWEEP_PERIOD: Duration = Duration::from_secs(60 * 60);

/// An orphaned file is swept only when it is older than this: its other half may
/// still be written.
const ORPHAN_AGE: Duration = Duration::from_secs(60 * 60);

/// The part of the file system (1/50) that an eviction frees beyond the watermark, so
/// that the next write does not cause another one.
const HYSTERESIS: u64 = 50;

impl Cache {
    /// Runs maintenance until `shutdown`; `pods` is kubelet's directory of pods.
    pub async fn run_maintenance(&self, pods: &Path, shutdown: &CancellationToken) {
        let inner = Arc::clone(&self.0);
        if let Err(error) = blocking(move || foreign::warn(&inner.layout)).await {
            tracing::warn!(%error, "searching the cache for foreign files failed");
        }
        let watermark =
            every(WATERMARK_PERIOD, shutdown, "checking the free space of the cache", || {
                let inner = Arc::clone(&self.0);
                blocking(move || inner.check_watermark())
            });
        let tidy = every(TIDY_PERIOD, shutdown, "checking the limits of the cache", || {
            let (inner, pods) = (Arc::clone(&self.0), pods.to_owned());
            blocking(move || inner.tidy(&pods))
        });
        let sweep = every(SWEEP_PERIOD, shutdown, "sweeping the cache", || {
            let inner = Arc::clone(&self.0);
            blocking(move || inner.sweep())
        });
        let empty = async {
            loop {
                let inner = Arc::clone(&self.0);
                if let Err(error) = blocking(move || inner.empty_trash()).await {
                    tracing::warn!(%error, "emptying the trash failed");
                }
                tokio::select! {
                    () = self.0.trash_filled.notified() => {}
                    // Entries that were in use may be deletable now.
                    () = tokio::time::sleep(TIDY_PERIOD) => {}
                    () = shutdown.cancelled() => return,
                }
            }
        };
        let superseded = async {
            loop {
                tokio::select! {
                    () = self.0.released.notified() => {}
                    // Revisions that were mounted or held may be evictable now.
                    () = tokio::time::sleep(TIDY_PERIOD) => {}
                    () = shutdown.cancelled() => return,
                }
                let inner = Arc::clone(&self.0);
                if let Err(error) = blocking(move || inner.evict_superseded()).await {
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

impl CacheInner {
    /// Evicts models when the free space is below the watermark. Blocks.
    fn check_watermark(&self) -> Result<()> {
        self.forget_arrivals(None);
        if self.below_watermark()? == Space::default() {
            self.watermark_warned.store(false, Ordering::Relaxed);
            return Ok(());
        }
        self.drop_leftovers(&HashSet::new())?;
        // Delete the trash first: otherwise models would be evicted for its space.
        self.empty_trash()?;
        let missing = self.below_watermark()?;
        let evicted =
            self.evict(&EvictionGoal::BestEffort(missing), Some(EvictionReason::Watermark))?;
        self.warn_watermark(&evicted);
        Ok(())
    }

    /// Returns the space to free once the watermark is passed, including the margin
    /// of [`HYSTERESIS`].
    fn below_watermark(&self) -> Result<Space> {
        let (fs, limits) = (FileSystem::of(self.layout.root())?, self.reservations.limits());
        let missing = |free: u64, least: u64, total: u64| match free < least {
            true => least.saturating_add(total / HYSTERESIS).min(total) - free,
            false => 0,
        };
        let bytes = missing(fs.free_bytes, limits.min_free, fs.total_bytes);
        let inodes = missing(fs.free_inodes, limits.min_free_inodes, fs.total_inodes);
        Ok(Space { bytes, inodes })
    }

    fn warn_watermark(&self, evicted: &Evicted) {
        let (models, bytes) = (evicted.models.len(), evicted.freed.bytes);
        if models > 0 {
            tracing::warn!(models, bytes, "the disk is almost full; unused models were evicted");
        } else if !evicted.reached && !self.watermark_warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                cache = %self.layout.root().display(),
                "the disk is almost full, and nothing in the cache can be evicted: pods hold all \
                 of it, or other programs filled the disk"
            );
        }
    }

    /// Enforces `cache.maxSize` and `cache.idleTTL`, ends leases of pods that are gone,
    /// and updates the gauges. Blocks.
    fn tidy(&self, pods: &Path) -> Result<()> {
        recover::drop_dead_leases(&self.layout, &self.leases, pods)?;
        self.count_leases();
        let mut over = self.over_limit()?;
        if over > 0 {
            self.drop_leftovers(&HashSet::new())?;
            self.empty_trash()?;
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
        let taken = DiskUsage::read(&self.layout)?;
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
        self.empty_quarantine(QUARANTINED)?;
        // A use is recorded when it begins and ends; a machine that dies records no
        // end.
        for lease in self.leases.all() {
            self.record_use(&lease.model);
        }
        let _alone = self.holds.lock_eviction();
        recover::drop_stale_downloads(&self.layout, &self.wanted_blobs())?;
        self.sweep_directory(Directory::Content, |bytes| {
            let id = BlobId::parse(std::str::from_utf8(bytes).ok()?)?;
            Some(self.layout.blob(&id))
        })?;
        self.sweep_directory(Directory::Requests, |bytes| {
            #[derive(serde::Deserialize)]
            struct Named {
                model: ModelKey,
            }
            let named: Named = serde_json::from_slice(bytes).ok()?;
            Some(self.layout.model(&named.model))
        })?;
        for directory in self.layout.fans()? {
            for name in files::names(&directory)? {
                let path = directory.join(&name);
                let left_over = match BlobFile::parse(&name) {
                    Some((BlobFile::Blob, _)) => false,
                    Some((_, id)) => !self.layout.blob(&id).exists(),
                    None => names::is_unfinished(&name),
                };
                if left_over && is_old(&path) {
                    files::remove(&path)?;
                }
            }
        }
        Ok(())
    }

    /// Removes old entries of an index whose targets are gone.
    fn sweep_directory(
        &self,
        directory: Directory,
        points_at: impl Fn(&[u8]) -> Option<std::path::PathBuf>,
    ) -> Result<()> {
        let path = self.layout.directory(directory);
        let ours = files::names(&path)?.into_iter().filter(|one| foreign::is_ours(directory, one));
        for path in ours.map(|name| path.join(name)) {
            let gone = files::read(&path)?
                .is_some_and(|bytes| points_at(&bytes).is_none_or(|target| !target.exists()));
            if gone && is_old(&path) {
                files::remove(&path)?;
            }
        }
        Ok(())
    }
}

fn is_old(path: &Path) -> bool {
    let modified = std::fs::symlink_metadata(path).and_then(|metadata| metadata.modified());
    modified
        .is_ok_and(|then| SystemTime::now().duration_since(then).is_ok_and(|age| age > ORPHAN_AGE))
}
