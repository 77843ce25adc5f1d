//! Evicting: the effects of what `policy` chooses.
//!
//! # How a model is evicted
//!
//! 1. It was chosen, and nobody leases, mounts, pins or holds it.
//! 2. `models/<key>` is renamed into the trash: nobody can find it any more.
//! 3. Each blob that no other model refers to is renamed into the trash.
//! 4. The blob's records are removed.
//! 5. In the background, the trash is deleted.
//!
//! Killed after 2: the blobs are orphans; they serve the next download of the
//! model, or are the first to go. After 3: a record without a blob means
//! nothing, and is swept. A machine that dies may show any of it undone: then
//! the model is there again, or a model without its blobs, which is not whole
//! and is built again.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::path::{Component, Path};
use std::time::{Duration, SystemTime};

use super::CacheInner;
use super::disk_usage::{DiskUsage, StoredModel};
use super::files;
use super::pins;
use super::policy::{
    self, Blob, EvictionCandidate, EvictionGoal, EvictionInput, RetentionReason, Space,
};
use super::trash::discard;
use crate::abort_point;
use crate::error::Result;
use crate::metrics::EvictionReason;
use crate::model::{BlobId, ModelKey};
use crate::mount;

/// Manifests that are held open at once; of models beyond that, the sweep removes
/// what the index of contents has.
const OPEN: usize = 64;

/// The models that left, by their place in the stocktaking, with what they were.
type Gone = HashMap<usize, Option<File>>;

/// What went, or would go.
#[derive(Debug, Default, Clone)]
pub(super) struct Evicted {
    /// Least recently used first.
    pub(super) models: Vec<EvictedModel>,
    /// All that becomes free, blobs without a model included.
    pub(super) freed: Space,
    /// Whether the goal was reached.
    pub(super) reached: bool,
}

#[derive(Debug, Clone)]
pub(super) struct EvictedModel {
    pub(super) key: ModelKey,
    /// Its place in Object Storage, if its manifest could be read.
    pub(super) source: Option<String>,
    pub(super) last_used: SystemTime,
}

/// Why a model stays, for each of those that do.
#[derive(Debug, Default)]
pub(super) struct RetentionReasons {
    leased: HashSet<ModelKey>,
    mounted: HashSet<ModelKey>,
    pinned: HashSet<ModelKey>,
    busy: HashSet<ModelKey>,
}

impl RetentionReasons {
    /// Asks leases, kernel, pins and holds.
    pub(super) fn now(inner: &CacheInner) -> Result<Self> {
        let leased = inner.leases.all().into_iter().map(|lease| lease.model).collect();
        let uses = mount::uses_of(inner.layout.root())?;
        let mounted = uses.iter().filter_map(|one| model_of(&one.root)).collect();
        let pinned = pins::all(&inner.layout)?;
        Ok(Self { leased, mounted, pinned, busy: inner.holds.held_models() })
    }

    pub(super) fn is_pinned(&self, key: &ModelKey) -> bool {
        self.pinned.contains(key)
    }

    pub(super) fn why(&self, key: &ModelKey) -> Option<RetentionReason> {
        let reasons = [
            (&self.leased, RetentionReason::Leased),
            (&self.mounted, RetentionReason::Mounted),
            (&self.busy, RetentionReason::Busy),
            (&self.pinned, RetentionReason::Pinned),
        ];
        reasons.into_iter().find(|(keys, _)| keys.contains(key)).map(|(_, keep)| keep)
    }
}

/// The model that a path below the cache belongs to.
fn model_of(below: &Path) -> Option<ModelKey> {
    let mut parts = below.components();
    match (parts.next()?, parts.next()?) {
        (Component::Normal(models), Component::Normal(key)) if models == "models" => {
            ModelKey::parse(key.to_str()?)
        }
        _ => None,
    }
}

/// The cache as the policy sees it.
pub(super) fn stock(
    taken: &DiskUsage,
    kept: &RetentionReasons,
    busy_blobs: &HashSet<BlobId>,
) -> EvictionInput {
    let candidate = |model: &StoredModel| EvictionCandidate {
        key: model.key.clone(),
        last_used: model.last_used,
        keep: kept.why(&model.key),
        blobs: model.blobs.clone(),
        own: model.own,
    };
    let blobs = taken.blobs.iter().map(|blob| Blob {
        space: blob.space,
        busy: blob.ids.iter().any(|id| busy_blobs.contains(id)),
    });
    EvictionInput { models: taken.models.iter().map(candidate).collect(), blobs: blobs.collect() }
}

impl CacheInner {
    /// Evicts towards the goal, and what has been idle too long. With
    /// `reason: None` nothing is done, only told. Blocks.
    pub(super) fn evict(
        &self,
        goal: &EvictionGoal,
        reason: Option<EvictionReason>,
    ) -> Result<Evicted> {
        let alone = self.holds.exclusively();
        // Asked before the stocktaking: what lets go of its blobs after it may
        // have committed a model that was not counted.
        let busy = self.holds.held_blobs();
        let taken = DiskUsage::read(&self.layout)?;
        let kept = RetentionReasons::now(self)?;
        let stock = stock(&taken, &kept, &busy);
        let idle_before = self.idle_ttl.and_then(|ttl| SystemTime::now().checked_sub(ttl));
        let choice = policy::choose(&stock, goal, idle_before);
        let mut evicted =
            Evicted { models: Vec::new(), freed: choice.freed, reached: choice.reached };
        let mut gone = Gone::new();
        for at in choice.models {
            let model = &taken.models[at];
            let idle = idle_before.is_some_and(|before| model.last_used < before);
            let reason = reason.map(|reason| if idle { EvictionReason::Idle } else { reason });
            let manifest = match reason {
                Some(_) if gone.len() < OPEN => self.models.open_manifest(&model.key)?,
                _ => None,
            };
            if let Some(reason) = reason
                && !self.evict_model(model, reason)?
            {
                evicted.reached = false;
                continue;
            }
            gone.insert(at, manifest);
            evicted.models.push(EvictedModel {
                key: model.key.clone(),
                source: model.summary.as_ref().map(|summary| summary.source.to_string()),
                last_used: model.last_used,
            });
        }
        if reason.is_some() {
            self.evict_blobs(&taken, &gone, choice.blobs)?;
        }
        drop(alone);
        Ok(evicted)
    }

    /// Evicts those of the blobs that only models have which are gone. One that
    /// was leased meanwhile keeps its blobs.
    fn evict_blobs(&self, taken: &DiskUsage, gone: &Gone, blobs: Vec<usize>) -> Result<()> {
        let stay = taken.models.iter().enumerate().filter(|(at, _)| !gone.contains_key(at));
        let needed: HashSet<usize> = stay.flat_map(|(_, model)| &model.blobs).copied().collect();
        let mut left = HashSet::new();
        for at in blobs.into_iter().filter(|at| !needed.contains(at)) {
            for id in &taken.blobs[at].ids {
                self.blobs.evict(id)?;
                left.insert(id.clone());
            }
        }
        for (at, manifest) in gone {
            if let (Some(summary), Some(file)) = (&taken.models[*at].summary, manifest)
                && !left.is_empty()
            {
                self.forget_contents(summary, file, &left);
            }
        }
        // Who waits for space is woken by what is deleted, and not for nothing.
        if !gone.is_empty() || !left.is_empty() {
            self.trash_filled.notify_one();
        }
        Ok(())
    }

    /// Evicts older revisions that nobody uses and no request has any more.
    /// Blocks.
    pub(super) fn evict_superseded(&self) -> Result<()> {
        let superseded = self.models.superseded()?;
        if superseded.is_empty() {
            return Ok(());
        }
        // Pods may keep theirs for months: the cache is not counted for that.
        let kept = RetentionReasons::now(self)?;
        if superseded.iter().all(|key| kept.why(key).is_some()) {
            return Ok(());
        }
        let _alone = self.holds.exclusively();
        let busy = self.holds.held_blobs();
        let taken = DiskUsage::read(&self.layout)?;
        let kept = RetentionReasons::now(self)?;
        // Asked again: nobody notes a model that is not held, and those are kept.
        let superseded = self.models.superseded()?;
        let mut gone = Gone::new();
        let mut blobs = HashSet::new();
        for (at, model) in taken.models.iter().enumerate() {
            let goes = superseded.contains(&model.key) && kept.why(&model.key).is_none();
            if !goes {
                continue;
            }
            let manifest = match gone.len() {
                0..OPEN => self.models.open_manifest(&model.key)?,
                _ => None,
            };
            if self.evict_model(model, EvictionReason::Superseded)? {
                gone.insert(at, manifest);
                blobs.extend(model.blobs.iter().copied());
            }
        }
        let is_free = |at: &usize| !taken.blobs[*at].ids.iter().any(|id| busy.contains(id));
        self.evict_blobs(&taken, &gone, blobs.into_iter().filter(is_free).collect())
    }

    /// `false` when somebody came to use it meanwhile.
    fn evict_model(&self, model: &StoredModel, reason: EvictionReason) -> Result<bool> {
        let key = &model.key;
        abort_point::reach("evict-1");
        let moved = self.holds.unless_held(key, || {
            if self.leases.all().iter().any(|lease| lease.model == *key) {
                return Ok(false);
            }
            self.models.distrust(key);
            discard(&self.layout, &self.layout.model(key)).map(|()| true)
        });
        if !moved.transpose()?.unwrap_or(false) {
            return Ok(false);
        }
        abort_point::reach("evict-2");
        self.metrics.evicted(reason);
        tracing::info!(
            model = key.as_str(),
            source = model.summary.as_ref().map(|summary| summary.source.to_string()),
            idle = ?SystemTime::now().duration_since(model.last_used).unwrap_or_default(),
            reason = reason.label(),
            "evicted"
        );
        Ok(true)
    }

    /// The blobs that somebody brings in, or waits with them for space.
    pub(super) fn wanted_blobs(&self) -> HashSet<BlobId> {
        let mut wanted = self.ledger.admitted();
        wanted.extend(self.holds.held_blobs());
        wanted.extend(self.blob_flights.running().into_iter().map(|(id, _)| id));
        for (_, progress) in self.model_flights.running() {
            let manifest = progress.manifest();
            let files = manifest.iter().flat_map(|manifest| &manifest.files);
            wanted.extend(files.map(|file| file.blob.clone()));
        }
        wanted
    }

    /// Puts aside what is the least worth keeping: interrupted downloads that
    /// nobody goes on with, except those in `wanted`, and what is in
    /// quarantine; and caches of older layouts that nothing mounts. Blocks.
    pub(super) fn drop_leftovers(&self, wanted: &HashSet<BlobId>) -> Result<()> {
        // Nobody begins to go on with one meanwhile.
        let alone = self.holds.exclusively();
        let busy = self.wanted_blobs();
        for name in files::names(&self.layout.staging())? {
            let Some(id) = name.strip_suffix(".part").and_then(BlobId::parse) else {
                continue;
            };
            if !busy.contains(&id) && !wanted.contains(&id) {
                self.blobs.abandon(&id)?;
            }
        }
        drop(alone);
        self.drop_set_aside(false)?;
        self.empty_quarantine(Duration::ZERO)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_of_any_part_of_a_model_is_a_use_of_the_model() {
        let key = "a".repeat(64);
        for below in ["tree", "tree/config.json", "tree/d/e", ""] {
            let path = Path::new("models").join(&key).join(below);
            assert_eq!(model_of(&path).unwrap().as_str(), key, "{below}");
        }
        for other in [format!("trash/{key}"), "models/x".to_owned(), "models".to_owned()] {
            assert_eq!(model_of(Path::new(&other)), None, "{other}");
        }
    }
}
