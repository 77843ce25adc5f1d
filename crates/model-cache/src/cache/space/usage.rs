//! How much of the space is taken, for reports and metrics.

use super::CacheSpace;
use super::evict::{RetentionReasons, eviction_input};
use super::policy::{self, RetentionReason};
use super::reservations::FileSystem;
use crate::cache::store::disk_space::Space;
use crate::cache::store::disk_usage::DiskUsage;
use crate::error::Result;

/// The space of the cache and its limits, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Everything in the cache directory.
    pub total: u64,
    /// Inodes of everything in the cache directory.
    pub inodes: u64,
    /// Evictable now.
    pub evictable: u64,
    /// Downloads that run or were interrupted.
    pub staging: u64,
    /// Evicted, but not deleted yet.
    pub trash: u64,
    /// Damaged, and kept for inspection.
    pub quarantine: u64,
    /// Caches of older layouts.
    pub set_aside: u64,
    /// The most that the cache may take.
    pub limit: u64,
    /// Free on the file system.
    pub free: u64,
    /// To be kept free on the file system.
    pub min_free: u64,
}

impl CacheSpace {
    pub(in crate::cache) fn usage(
        &self,
        taken: &DiskUsage,
        kept: &RetentionReasons,
    ) -> Result<Usage> {
        let fs = FileSystem::of(self.store.layout().root())?;
        let input = eviction_input(taken, kept, &self.store.holds().held_blobs());
        let Space { bytes: total, inodes } = taken.total();
        let limits = self.reservations.limits();
        let most = fs.total_bytes.saturating_sub(limits.min_free);
        Ok(Usage {
            total,
            inodes,
            evictable: policy::evictable(&input).bytes,
            staging: taken.staging.bytes,
            trash: taken.trash.bytes,
            quarantine: taken.quarantine.bytes,
            set_aside: taken.aside.bytes,
            limit: limits.max_size.map_or(most, |max| max.min(most)),
            free: fs.free_bytes,
            min_free: limits.min_free,
        })
    }

    /// Updates the gauges of the metrics. Blocks.
    pub(in crate::cache) fn measure(&self) -> Result<()> {
        let (taken, kept) = (self.store.usage()?, self.retention()?);
        let usage = self.usage(&taken, &kept)?;
        let models = |wanted: fn(Option<RetentionReason>) -> bool| {
            taken.models.iter().filter(|model| wanted(kept.why(&model.key))).count()
        };
        let m = &self.metrics;
        m.cache_size("evictable", usage.evictable);
        m.cache_size("staging", usage.staging);
        m.cache_size("trash", usage.trash);
        m.cache_size("quarantine", usage.quarantine);
        m.cache_size("set_aside", usage.set_aside);
        let rest = [usage.evictable, usage.staging, usage.trash, usage.quarantine, usage.set_aside];
        m.cache_size("in_use", rest.into_iter().fold(usage.total, u64::saturating_sub));
        m.cache_limit.set(i64::try_from(usage.limit).unwrap_or(i64::MAX));
        m.cache_models(
            "in_use",
            models(|keep| matches!(keep, Some(keep) if keep != RetentionReason::Pinned)),
        );
        m.cache_models("pinned", models(|keep| keep == Some(RetentionReason::Pinned)));
        m.cache_models("evictable", models(|keep| keep.is_none()));
        m.cache_models("arriving", self.downloads.models());
        m.cache_models("damaged", self.store.damaged()?.len());
        Ok(())
    }
}
