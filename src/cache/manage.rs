//! What the node's administrator may ask of the cache.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError};
use std::time::SystemTime;

use super::layout::DIRECTORIES;
use super::policy::{EvictionGoal, Space};
use super::report::CacheReport;
use super::trash::discard;
use super::{Cache, CacheInner, files, foreign, pins};
use crate::blocking::blocking;
use crate::error::{Error, ErrorKind, Result};
use crate::metrics::EvictionReason;
use crate::model::{ModelKey, size_text};

/// What a garbage collection is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CollectOptions {
    /// Only tell what would go.
    pub dry_run: bool,
    /// How much is to go.
    pub wish: EvictionRequest,
}

/// How much is to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EvictionRequest {
    /// What the limits ask for: the watermark, `cache.maxSize`, `cache.idleTTL`.
    Limits,
    /// So many bytes, as far as they can be had.
    Free(u64),
    /// Everything that nobody uses and nobody pinned.
    All,
}

/// What went, or would go.
#[derive(Debug, Clone, Default)]
pub struct Collected {
    /// Key, place in Object Storage if known, and last use; in the order in
    /// which they go.
    pub models: Vec<(ModelKey, Option<String>, SystemTime)>,
    /// Bytes that become free, those of blobs without a model included.
    pub bytes: u64,
    /// Inodes that become free.
    pub inodes: u64,
    /// Whether the wish was fulfilled.
    pub reached: bool,
}

/// What a purge removed.
#[derive(Debug, Clone, Default)]
pub struct Purged {
    /// Models that stood in the cache.
    pub models: usize,
    /// Bytes that they took.
    pub bytes: u64,
}

impl Cache {
    /// Everything that the cache holds. Blocks, a fraction of a second for
    /// thousands of models.
    pub fn inventory(&self) -> Result<CacheReport> {
        self.0.inventory()
    }

    /// Collects garbage now: evicts, deletes and sweeps.
    pub async fn collect(&self, options: CollectOptions) -> Result<Collected> {
        let inner = Arc::clone(&self.0);
        blocking(move || inner.collect(options)).await
    }

    /// Makes a model stay although nobody uses it, or no longer. Blocks.
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

    /// Removes everything that is ours from the cache directory; what is not
    /// ours is left. A driver that goes on has an empty cache afterwards; for
    /// the end of the cache's life nothing of it is left. Blocks.
    ///
    /// # Errors
    /// `Conflict` while a volume holds a model or one is mounted, or while one
    /// is on its way: nothing is removed then.
    pub fn purge(&self, go_on: bool) -> Result<Purged> {
        self.0.purge(go_on)
    }
}

impl CacheInner {
    fn collect(&self, options: CollectOptions) -> Result<Collected> {
        let goal = match options.wish {
            EvictionRequest::Limits => self.limits_ask()?,
            EvictionRequest::Free(bytes) => EvictionGoal::BestEffort(Space { bytes, inodes: 0 }),
            EvictionRequest::All => EvictionGoal::All,
        };
        let reason = (!options.dry_run).then_some(EvictionReason::Command);
        // What nobody uses of an older layout goes before any model.
        let aside = match options.wish {
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
            if options.wish == EvictionRequest::All {
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

    fn purge(&self, go_on: bool) -> Result<Purged> {
        let usage = self.inventory()?.usage;
        // Nobody evicts, deletes, or begins to build on blobs meanwhile.
        let _alone = self.holds.exclusively();
        let _emptying = self.emptying.lock().unwrap_or_else(PoisonError::into_inner);
        self.check_unused()?;
        let mut models = 0;
        for name in files::names(&self.layout.models())? {
            // One that is found in this moment may be leased in the next: out
            // of everybody's reach first, and only if nobody holds it.
            let model = self.layout.models().join(&name);
            let Some(key) = ModelKey::parse(&name) else { continue };
            let moved = self.holds.unless_held(&key, || {
                let leased = self.leases.all().iter().any(|lease| lease.model == key);
                self.models.distrust(&key);
                if leased { Err(self.in_use("a pod just took a model")) } else { Ok(()) }
                    .and_then(|()| discard(&self.layout, &model))
            });
            moved.unwrap_or_else(|| Err(self.in_use("somebody began to use it just now")))?;
            models += 1;
        }
        for name in DIRECTORIES.iter().filter(|name| **name != "leases") {
            foreign::remove_ours(&self.layout, name)?;
        }
        self.remove_set_aside()?;
        if !go_on {
            foreign::remove_ours(&self.layout, "leases")?;
            for name in DIRECTORIES {
                foreign::remove_empty(&self.layout.directory(name))?;
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

    /// Whether nobody uses anything of the cache, or who does.
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
            let text = format!("model {key} is being brought in; end what asks for it");
            return Err(self.in_use(&text));
        }
        if !self.holds.held_blobs().is_empty() || !self.holds.held_models().is_empty() {
            return Err(self.in_use("a model is being brought in, imported or mounted just now"));
        }
        Ok(())
    }

    fn in_use(&self, why: &str) -> Error {
        let root = self.layout.root().display();
        Error::new(ErrorKind::Conflict, format!("the cache {root} was not removed: {why}"))
    }
}
