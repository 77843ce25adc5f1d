//! Keeping house while the driver runs: the disk is watched, what went is
//! deleted, what nobody needs is swept.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use tokio_util::sync::CancellationToken;

use super::disk_usage::DiskUsage;
use super::evict::Evicted;
use super::policy::{EvictionGoal, Space};
use super::space::FileSystem;
use super::trash::QUARANTINED;
use super::{Cache, CacheInner, files, foreign, recover};
use crate::blocking::blocking;
use crate::budget;
use crate::error::Result;
use crate::metrics::EvictionReason;
use crate::model::{BlobId, ModelKey};

/// Between two looks at what is free: others can fill a disk fast.
const WATCH: Duration = Duration::from_secs(5);

/// Between two looks at the whole cache.
const LOOK: Duration = Duration::from_secs(30);

/// Between two sweeps of what nobody needs.
const SWEEP: Duration = Duration::from_secs(60 * 60);

/// A file without what it belongs to is swept only when it is older: its
/// other half may be on its way.
const SWEPT: Duration = Duration::from_secs(60 * 60);

/// What an eviction for the low watermark frees beyond it, as a share of the
/// file system: the next byte that somebody writes must not evict again.
const HYSTERESIS: u64 = 50;

impl Cache {
    /// Watches and tidies until `shutdown`; `pods` is kubelet's directory of pods.
    pub async fn keep_house(&self, pods: &Path, shutdown: &CancellationToken) {
        let inner = Arc::clone(&self.0);
        if let Err(error) = blocking(move || foreign::warn(&inner.layout)).await {
            tracing::warn!(%error, "could not look for files that are not the driver's");
        }
        let watch = every(WATCH, shutdown, "watching the disk", || {
            let inner = Arc::clone(&self.0);
            blocking(move || inner.watch())
        });
        let look = every(LOOK, shutdown, "looking after the cache", || {
            let (inner, pods) = (Arc::clone(&self.0), pods.to_owned());
            blocking(move || inner.look(&pods))
        });
        let sweep = every(SWEEP, shutdown, "sweeping the cache", || {
            let inner = Arc::clone(&self.0);
            blocking(move || inner.sweep())
        });
        let empty = async {
            loop {
                let inner = Arc::clone(&self.0);
                if let Err(error) = blocking(move || inner.empty_trash()).await {
                    tracing::warn!(%error, "could not empty the trash");
                }
                tokio::select! {
                    () = self.0.trash_filled.notified() => {}
                    // What was in use may be free now.
                    () = tokio::time::sleep(LOOK) => {}
                    () = shutdown.cancelled() => return,
                }
            }
        };
        let let_go = async {
            loop {
                tokio::select! {
                    () = self.0.let_go.notified() => {}
                    // What was mounted or held may not be any more.
                    () = tokio::time::sleep(LOOK) => {}
                    () = shutdown.cancelled() => return,
                }
                let inner = Arc::clone(&self.0);
                if let Err(error) = blocking(move || inner.evict_superseded()).await {
                    tracing::warn!(%error, "could not evict an older revision");
                }
            }
        };
        tokio::join!(watch, look, sweep, empty, let_go);
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
            tracing::warn!(%error, "{what} failed; it is tried again");
        }
    }
}

impl CacheInner {
    /// The low watermark: what others took is given back by the cache. Blocks.
    fn watch(&self) -> Result<()> {
        self.forget_arrivals(None);
        if self.below_watermark()? == Space::default() {
            self.watermark_told.store(false, Ordering::Relaxed);
            return Ok(());
        }
        self.drop_leftovers(&HashSet::new())?;
        // What is in the trash is as good as free: models would go in vain for it.
        self.empty_trash()?;
        let lacking = self.below_watermark()?;
        let evicted =
            self.evict(&EvictionGoal::BestEffort(lacking), Some(EvictionReason::Watermark))?;
        self.tell_watermark(&evicted);
        Ok(())
    }

    /// What is missing to the high watermark, once the low one is passed.
    fn below_watermark(&self) -> Result<Space> {
        let (fs, limits) = (FileSystem::of(self.layout.root())?, self.ledger.limits());
        let lacking = |free: u64, least: u64, total: u64| match free < least {
            true => least.saturating_add(total / HYSTERESIS).min(total) - free,
            false => 0,
        };
        let bytes = lacking(fs.free_bytes, limits.min_free, fs.total_bytes);
        let inodes = lacking(fs.free_inodes, limits.min_free_inodes, fs.total_inodes);
        Ok(Space { bytes, inodes })
    }

    fn tell_watermark(&self, evicted: &Evicted) {
        let (models, bytes) = (evicted.models.len(), evicted.freed.bytes);
        if models > 0 {
            tracing::warn!(
                models,
                bytes,
                "the disk runs full; models that nobody uses were evicted"
            );
        } else if !evicted.reached && !self.watermark_told.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                cache = %self.layout.root().display(),
                "the disk runs full, and nothing in the cache may go: pods hold all of it, or \
                 others filled the disk"
            );
        }
    }

    /// The cache's own limit, what was idle too long, leases of pods that went
    /// without a word; and the gauges. Blocks.
    fn look(&self, pods: &Path) -> Result<()> {
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
        // Looking at many blobs leaves as many small pieces.
        budget::trim_soon();
        Ok(())
    }

    fn over_limit(&self) -> Result<u64> {
        let Some(most) = self.ledger.limits().max_size else { return Ok(0) };
        let taken = DiskUsage::read(&self.layout)?;
        // What is in the trash goes anyway.
        Ok(taken.total().bytes.saturating_sub(taken.trash.bytes).saturating_sub(most))
    }

    /// What the limits ask for now, for `gc`. Blocks.
    pub(super) fn limits_ask(&self) -> Result<EvictionGoal> {
        let mut lacking = self.below_watermark()?;
        lacking.bytes = lacking.bytes.max(self.over_limit()?);
        Ok(EvictionGoal::BestEffort(lacking))
    }

    /// Leftovers that take inodes: stale downloads, what was in quarantine for
    /// a day, records and indexes of what is gone. Blocks.
    pub(super) fn sweep(&self) -> Result<()> {
        self.empty_quarantine(QUARANTINED)?;
        // A last use is noted when it begins and when it ends, which a dead
        // machine does not do.
        for lease in self.leases.all() {
            self.used(&lease.model);
        }
        let _alone = self.holds.exclusively();
        recover::drop_stale_downloads(&self.layout, &self.wanted_blobs())?;
        self.sweep_directory("content", |bytes| {
            let id = BlobId::parse(std::str::from_utf8(bytes).ok()?)?;
            Some(self.layout.blob(&id))
        })?;
        self.sweep_directory("requests", |bytes| {
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
                let blob = name.strip_suffix(".json").or_else(|| name.strip_suffix(".unsynced"));
                let orphaned = blob.is_some_and(|blob| !directory.join(blob).exists());
                if !foreign::is_ours_in_fan(&name) {
                    continue;
                }
                if (orphaned || files::is_unfinished(&name)) && is_old(&path) {
                    files::remove(&path)?;
                }
            }
        }
        Ok(())
    }

    /// Removes old entries of an index that point at what is gone.
    fn sweep_directory(
        &self,
        directory: &str,
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
    modified.is_ok_and(|then| SystemTime::now().duration_since(then).is_ok_and(|age| age > SWEPT))
}
