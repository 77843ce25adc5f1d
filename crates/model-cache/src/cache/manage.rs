//! Cache commands of the node's administrator.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::SystemTime;

use super::report::CacheReport;
use super::space::policy::{EvictionGoal, Space};
use super::store::files;
use super::store::foreign;
use super::store::layout::names::Directory;
use super::store::pins;
use super::store::trash::discard;
use super::{Cache, CacheInner};
use crate::blocking::blocking;
use crate::error::{Error, ErrorKind, Result};
use crate::metrics::EvictionReason;
use crate::model::{ModelKey, size_text};
use crate::sync::lock;

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

/// The result of a purge.
#[derive(Debug, Clone, Default)]
pub struct Purged {
    /// Models that were in the cache.
    pub models: usize,
    /// Bytes that the cache took.
    pub bytes: u64,
}

impl Cache {
    /// Reports everything in the cache. Blocks: a fraction of a second for thousands
    /// of models.
    pub fn report(&self) -> Result<CacheReport> {
        self.0.report()
    }

    /// Collects garbage now: evicts, deletes and sweeps.
    pub async fn collect(&self, options: CollectOptions) -> Result<Collected> {
        let inner = Arc::clone(&self.0);
        blocking(move || inner.collect(options)).await
    }

    /// Pins or unpins a model. A pinned model stays even when it is not in use. Blocks.
    ///
    /// # Errors
    /// `NotFound` when a model to be pinned is not in the cache.
    pub fn pin(&self, key: &ModelKey, pinned: bool) -> Result<()> {
        if pinned && !self.0.layout.model(key).is_dir() {
            let text = format!("model {key} is not in the cache, so it cannot be pinned");
            return Err(Error::new(ErrorKind::NotFound, text));
        }
        pins::set(&self.0.layout, key, pinned)
    }

    /// Removes the driver's files from the cache directory; foreign files stay. With
    /// `keep_running` the driver has an empty cache afterwards; without it, nothing
    /// of the cache remains. Blocks.
    ///
    /// # Errors
    /// `Conflict` while a model is leased, mounted or being downloaded. Then nothing
    /// is removed.
    pub fn purge(&self, keep_running: bool) -> Result<Purged> {
        self.0.purge(keep_running)
    }
}

impl CacheInner {
    fn collect(&self, options: CollectOptions) -> Result<Collected> {
        let goal = match options.request {
            EvictionRequest::Limits => self.limits_goal()?,
            EvictionRequest::Free(bytes) => EvictionGoal::BestEffort(Space { bytes, inodes: 0 }),
            EvictionRequest::All => EvictionGoal::All,
        };
        let reason = (!options.dry_run).then_some(EvictionReason::Command);
        // Unused set-aside caches are removed before any model.
        let aside = match options.request {
            EvictionRequest::Limits => Space::default(),
            EvictionRequest::Free(_) | EvictionRequest::All => {
                self.drop_set_aside(options.dry_run)?
            }
        };
        let goal = match goal {
            EvictionGoal::BestEffort(space) => {
                EvictionGoal::BestEffort(space.saturating_sub(aside))
            }
            other => other,
        };
        let evicted = self.evict(&goal, reason)?;
        if !options.dry_run {
            if options.request == EvictionRequest::All {
                self.drop_leftovers(&HashSet::new())?;
            }
            self.sweep()?;
            self.empty_trash()?;
            self.space_freed.notify_waiters();
        }
        let models = evicted.models.into_iter();
        Ok(Collected {
            models: models.map(|model| (model.key, model.source, model.last_used)).collect(),
            bytes: evicted.freed.bytes.saturating_add(aside.bytes),
            inodes: evicted.freed.inodes.saturating_add(aside.inodes),
            reached: evicted.reached,
        })
    }

    fn purge(&self, keep_running: bool) -> Result<Purged> {
        let usage = self.report()?.usage;
        // No eviction, deletion or new hold on blobs meanwhile.
        let _alone = self.holds.lock_eviction();
        let _emptying = lock(&self.emptying);
        self.check_unused()?;
        let mut models = 0;
        for name in files::names(&self.layout.models())? {
            // A model that is found now may be leased next: first move it out of
            // reach, and only if it is not held.
            let model = self.layout.models().join(&name);
            let Some(key) = ModelKey::parse(&name) else { continue };
            let moved = self.holds.unless_held(&key, || {
                let leased = self.leases.all().iter().any(|lease| lease.model == key);
                self.models.distrust(&key);
                if leased { Err(self.in_use("a pod has just mounted a model")) } else { Ok(()) }
                    .and_then(|()| discard(&self.layout, &model))
            });
            moved.unwrap_or_else(|| Err(self.in_use("a model has just come into use")))?;
            models += 1;
        }
        for directory in Directory::ALL.into_iter().filter(|one| *one != Directory::Leases) {
            foreign::remove_ours(&self.layout, directory)?;
        }
        self.remove_set_aside()?;
        if !keep_running {
            foreign::remove_ours(&self.layout, Directory::Leases)?;
            for directory in Directory::ALL {
                foreign::remove_empty(&self.layout.directory(directory))?;
            }
            let (scrubbed, in_force) = (self.layout.scrubbed(), self.layout.config_in_force());
            for file in [scrubbed, in_force, self.layout.version(), self.layout.lock()] {
                files::remove(&file)?;
            }
        }
        tracing::info!(
            cache = %self.layout.root().display(),
            models,
            bytes = %size_text(usage.total),
            "the cache was removed"
        );
        Ok(Purged { models, bytes: usage.total })
    }

    /// Checks that nothing in the cache is in use; the error names what is.
    fn check_unused(&self) -> Result<()> {
        let leases = self.leases.all();
        if let Some(lease) = leases.first() {
            return Err(self.in_use(&format!(
                "{} volumes hold models of it, among them {} of {}; end those pods first",
                leases.len(),
                lease.volume_id,
                lease.pod.as_deref().unwrap_or("an unknown pod"),
            )));
        }
        let uses = crate::mount::uses_of(self.layout.root())?;
        if let Some(one) = uses.iter().find(|one| !one.root.as_os_str().is_empty()) {
            let (part, at) = (one.root.display(), one.target.display());
            return Err(self.in_use(&format!("{part} is mounted at {at}; unmount that first")));
        }
        if let Some((key, _)) = self.model_flights.running().first() {
            let text = format!("model {key} is being downloaded; end what asks for it");
            return Err(self.in_use(&text));
        }
        if !self.holds.held_blobs().is_empty() || !self.holds.held_models().is_empty() {
            return Err(self.in_use("a model is being downloaded, imported or mounted"));
        }
        Ok(())
    }

    fn in_use(&self, why: &str) -> Error {
        let root = self.layout.root().display();
        Error::new(ErrorKind::Conflict, format!("the cache {root} was not removed: {why}"))
    }
}
