//! Cache commands of the node's administrator.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio_util::sync::CancellationToken;

use super::Cache;
use super::fill::import::{ImportOptions, ImportProgress, Imported};
use super::space::policy::EvictionGoal;
use super::store::disk_space::Space;
use super::store::models::CachedModel;
use super::store::purge::Purged;
use super::store::verify::{Verification, VerifyProgress};
use crate::blocking::blocking;
use crate::download::Engine;
use crate::error::Result;
use crate::metrics::EvictionReason;
use crate::model::{Manifest, ModelKey};
use crate::source::ObjectSource;

/// Options of a garbage collection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CollectOptions {
    /// Only report what would be evicted.
    pub dry_run: bool,
    /// How much to evict.
    pub request: EvictionRequest,
}

/// How much to evict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EvictionRequest {
    /// As much as the limits require: the watermark, `cache.maxSize`, `cache.idleTTL`.
    Limits,
    /// This many bytes, or as many as can be evicted.
    Free(u64),
    /// Everything that is neither in use nor pinned.
    All,
}

/// The result of a garbage collection, real or simulated.
#[derive(Debug, Clone, Default)]
pub struct Collected {
    /// Key, location in Object Storage if known, and last use, in the order of
    /// eviction.
    pub models: Vec<(ModelKey, Option<String>, SystemTime)>,
    /// Bytes that become free, including orphaned blobs.
    pub bytes: u64,
    /// Inodes that become free.
    pub inodes: u64,
    /// Whether the request was met.
    pub reached: bool,
}

impl Cache {
    /// Collects garbage now: evicts, deletes and sweeps.
    pub async fn collect(&self, options: CollectOptions) -> Result<Collected> {
        let cache = self.clone();
        blocking(move || cache.collect_now(options)).await
    }

    fn collect_now(&self, options: CollectOptions) -> Result<Collected> {
        let goal = match options.request {
            EvictionRequest::Limits => self.space.limits_goal()?,
            EvictionRequest::Free(bytes) => EvictionGoal::BestEffort(Space { bytes, inodes: 0 }),
            EvictionRequest::All => EvictionGoal::All,
        };
        let reason = (!options.dry_run).then_some(EvictionReason::Command);
        // Unused set-aside caches are removed before any model.
        let aside = match options.request {
            EvictionRequest::Limits => Space::default(),
            EvictionRequest::Free(_) | EvictionRequest::All => {
                self.store.drop_set_aside(options.dry_run)?
            }
        };
        let goal = match goal {
            EvictionGoal::BestEffort(space) => {
                EvictionGoal::BestEffort(space.saturating_sub(aside))
            }
            other => other,
        };
        let evicted = self.space.evict(&goal, reason)?;
        if !options.dry_run {
            if options.request == EvictionRequest::All {
                self.space.drop_leftovers(&HashSet::new())?;
            }
            self.space.sweep()?;
            self.store.empty_trash()?;
            self.store.announce_space();
        }
        let models = evicted.models.into_iter();
        Ok(Collected {
            models: models.map(|model| (model.key, model.source, model.last_used)).collect(),
            bytes: evicted.freed.bytes.saturating_add(aside.bytes),
            inodes: evicted.freed.inodes.saturating_add(aside.inodes),
            reached: evicted.reached,
        })
    }

    /// Pins or unpins a model. A pinned model stays even when it is not in use. Blocks.
    ///
    /// # Errors
    /// `NotFound` when a model to be pinned is not in the cache.
    pub fn pin(&self, key: &ModelKey, pinned: bool) -> Result<()> {
        self.store.pin(key, pinned)
    }

    /// Removes the driver's files from the cache directory; foreign files stay. With
    /// `keep_running` the driver has an empty cache afterwards; without it, nothing
    /// of the cache remains. Blocks.
    ///
    /// # Errors
    /// `Conflict` while a model is leased, mounted or being downloaded. Then nothing
    /// is removed.
    pub fn purge(&self, keep_running: bool) -> Result<Purged> {
        let downloading = || self.fill.running().into_iter().next().map(|(key, _)| key);
        self.store.purge(keep_running, downloading)
    }

    /// Adds a model to the cache, adopting files from a directory and downloading the
    /// rest with `client`.
    ///
    /// When the future is dropped, adopted files stay in the cache, and the download
    /// continues for a while; the same import can be run again.
    ///
    /// # Errors
    /// `Precondition` when `move_files` is set and a file cannot be moved safely,
    /// before any file is moved; `Changed` when the model is no longer at this
    /// revision; and those of [`Cache::fill`].
    pub async fn import(
        &self,
        engine: &Engine,
        client: &Arc<dyn ObjectSource>,
        manifest: &Arc<Manifest>,
        options: ImportOptions,
        progress: &ImportProgress,
    ) -> Result<(CachedModel, Imported)> {
        self.fill.import(engine, client, manifest, options, progress).await
    }

    /// Returns the time until the next scrub is due, counted from the last scrub, even
    /// before a restart, or from now if there was none. Blocks.
    pub fn scrub_due(&self, every: Duration) -> Result<Duration> {
        self.store.scrub_due(every)
    }

    /// Records that a scrub is complete. Blocks.
    pub fn record_scrub(&self) -> Result<()> {
        self.store.record_scrub()
    }

    /// Verifies models, or everything when `keys` is `None`, and quarantines what is
    /// damaged. Reads at most `rate` bytes per second.
    ///
    /// # Errors
    /// `InProgress` when the driver stops meanwhile.
    pub async fn verify(
        &self,
        keys: Option<Vec<ModelKey>>,
        rate: Option<u64>,
        progress: Arc<VerifyProgress>,
    ) -> Result<Verification> {
        Arc::clone(&self.store).verify(keys, rate, progress).await
    }

    /// Runs maintenance until `shutdown`; `pods` is kubelet's directory of pods.
    pub async fn run_maintenance(&self, pods: &Path, shutdown: &CancellationToken) {
        self.space.run_maintenance(pods, shutdown).await;
    }

    /// Returns the stored configuration, if there is one. Blocks.
    pub fn config_in_force(&self) -> Result<Option<Vec<u8>>> {
        self.store.config_in_force()
    }

    /// Stores the configuration durably. Blocks for the disk.
    pub fn set_config_in_force(&self, content: &[u8]) -> Result<()> {
        self.store.set_config_in_force(content)
    }
}
