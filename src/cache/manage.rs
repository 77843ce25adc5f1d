//! What the node's administrator may ask of the cache.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::SystemTime;

use super::evict::Kept;
use super::files;
use super::layout::DIRECTORIES;
use super::policy::{Goal, Space};
use super::report::Inventory;
use super::{Cache, Inner, pins};
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
    pub wish: Wish,
}

/// How much is to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
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
    pub fn inventory(&self) -> Result<Inventory> {
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

impl Inner {
    fn collect(&self, options: CollectOptions) -> Result<Collected> {
        let goal = match options.wish {
            Wish::Limits => self.limits_ask()?,
            Wish::Free(bytes) => Goal::AsFar(Space { bytes, inodes: 0 }),
            Wish::All => Goal::All,
        };
        let reason = (!options.dry_run).then_some(EvictionReason::Command);
        let evicted = self.evict(&goal, reason)?;
        if !options.dry_run {
            if options.wish == Wish::All {
                self.drop_leftovers(&HashSet::new())?;
            }
            self.sweep()?;
            self.empty_trash()?;
            self.space_freed.notify_waiters();
        }
        let models = evicted.models.into_iter();
        Ok(Collected {
            models: models.map(|model| (model.key, model.source, model.last_used)).collect(),
            bytes: evicted.freed.bytes,
            inodes: evicted.freed.inodes,
            reached: evicted.reached,
        })
    }

    fn purge(&self, go_on: bool) -> Result<Purged> {
        let inventory = self.inventory()?;
        let root = self.layout.root().display();
        let refused = |why: String| {
            let text = format!("the cache {root} was not removed: {why}");
            Err(Error::new(ErrorKind::Conflict, text))
        };
        let leases = self.leases.all();
        if let Some(lease) = leases.first() {
            return refused(format!(
                "{} volumes hold models of it, among them {} of {}; end those pods first",
                leases.len(),
                lease.volume_id,
                lease.pod.as_deref().unwrap_or("an unknown pod"),
            ));
        }
        let uses = crate::mount::uses_of(self.layout.root())?;
        if let Some(one) = uses.iter().find(|one| !one.root.as_os_str().is_empty()) {
            let (part, at) = (one.root.display(), one.target.display());
            return refused(format!("{part} is mounted at {at}; unmount that first"));
        }
        if let Some((key, _)) = self.model_flights.running().first() {
            return refused(format!("model {key} is being brought in; end what asks for it"));
        }
        let _alone = self.holds.exclusively();
        let kept = Kept::now(self)?;
        if inventory.models.iter().any(|model| {
            kept.why(&model.key).is_some_and(|keep| keep != super::policy::Keep::Pinned)
        }) {
            return refused("somebody began to use it just now".to_owned());
        }
        for name in DIRECTORIES {
            let directory = self.layout.directory(name);
            files::delete_tree(&directory)
                .map_err(|e| Error::io(format!("removing {}", directory.display()), &e))?;
        }
        if go_on {
            for name in DIRECTORIES {
                files::make_directory(&self.layout.directory(name), 0o755)?;
            }
        } else {
            files::remove(&self.layout.version())?;
            files::remove(&self.layout.lock())?;
        }
        let purged = Purged { models: inventory.models.len(), bytes: inventory.usage.total };
        tracing::info!(
            cache = %root,
            models = purged.models,
            bytes = %size_text(purged.bytes),
            "the cache was removed"
        );
        Ok(purged)
    }
}
