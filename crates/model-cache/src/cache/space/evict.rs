//! Eviction: carries out what `policy` chooses.
//!
//! # How a model is evicted
//!
//! 1. It is chosen; it is not leased, mounted, pinned or held.
//! 2. `models/<key>` is renamed into the trash: it can no longer be found.
//! 3. Each blob that no other model refers to is renamed into the trash.
//! 4. The blob's records are removed.
//! 5. In the background, the trash is deleted.
//!
//! Killed after 2: the blobs are orphans; they serve the next download of the
//! model, or are evicted first. After 3: a record without a blob means nothing, and
//! is swept. A power loss may undo any of these steps: then the model is back, or
//! it lacks blobs, which makes it incomplete and causes a rebuild.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::time::{Duration, SystemTime};

use super::CacheSpace;
use super::policy::{self, Blob, EvictionCandidate, EvictionGoal, EvictionInput, RetentionReason};
use crate::abort_point;
use crate::cache::store::CacheStore;
use crate::cache::store::disk_space::Space;
use crate::cache::store::disk_usage::{DiskUsage, StoredModel};
use crate::cache::store::layout::names::EntryPath;
use crate::cache::store::requests::KeepRevisions;
use crate::error::Result;
use crate::metrics::EvictionReason;
use crate::model::{BlobId, ModelKey};

/// Manifests held open at once. For further models, the sweep removes the entries in
/// the index of contents.
const MAX_OPEN_MANIFESTS: usize = 64;

/// The evicted models, by their index in [`DiskUsage::models`], with their manifests.
type Gone = HashMap<usize, Option<File>>;

/// The result of an eviction, real or simulated.
#[derive(Debug, Default, Clone)]
pub(in crate::cache) struct Evicted {
    /// Least recently used first.
    pub(in crate::cache) models: Vec<EvictedModel>,
    /// All space that becomes free, including orphaned blobs.
    pub(in crate::cache) freed: Space,
    /// Whether the goal was reached.
    pub(in crate::cache) reached: bool,
}

#[derive(Debug, Clone)]
pub(in crate::cache) struct EvictedModel {
    pub(in crate::cache) key: ModelKey,
    /// Its location in Object Storage, if its manifest could be read.
    pub(in crate::cache) source: Option<String>,
    pub(in crate::cache) last_used: SystemTime,
}

/// The models that may not be evicted, by reason.
#[derive(Debug, Default)]
pub(in crate::cache) struct RetentionReasons {
    leased: HashSet<ModelKey>,
    mounted: HashSet<ModelKey>,
    pinned: HashSet<ModelKey>,
    busy: HashSet<ModelKey>,
    /// Revisions that the administrator prefers to keep, with the number of newer ones.
    /// They may be evicted, after all others.
    preferred: HashMap<ModelKey, usize>,
}

impl RetentionReasons {
    /// Collects the present leases, mounts, pins and holds, and what these rules keep.
    fn now(store: &CacheStore, keep: &[KeepRevisions]) -> Result<Self> {
        let leased = store.leases().into_iter().map(|lease| lease.model).collect();
        let uses = store.mounts()?;
        let mounted = uses.iter().filter_map(|one| EntryPath::parse(&one.root)?.model()).collect();
        let pinned = store.pinned()?;
        let preferred = store.requests().kept(keep)?;
        Ok(Self { leased, mounted, pinned, busy: store.holds().held_models(), preferred })
    }

    /// How many newer revisions of a preferred one are in the cache; `None` for others.
    pub(in crate::cache) fn preferred(&self, key: &ModelKey) -> Option<usize> {
        self.preferred.get(key).copied()
    }

    pub(in crate::cache) fn is_pinned(&self, key: &ModelKey) -> bool {
        self.pinned.contains(key)
    }

    pub(in crate::cache) fn why(&self, key: &ModelKey) -> Option<RetentionReason> {
        let reasons = [
            (&self.leased, RetentionReason::Leased),
            (&self.mounted, RetentionReason::Mounted),
            (&self.busy, RetentionReason::Busy),
            (&self.pinned, RetentionReason::Pinned),
        ];
        reasons.into_iter().find(|(keys, _)| keys.contains(key)).map(|(_, keep)| keep)
    }
}

/// Builds the input of the eviction policy.
pub(in crate::cache) fn eviction_input(
    taken: &DiskUsage,
    kept: &RetentionReasons,
    busy_blobs: &HashSet<BlobId>,
) -> EvictionInput {
    let candidate = |model: &StoredModel| EvictionCandidate {
        key: model.key.clone(),
        last_used: model.last_used,
        keep: kept.why(&model.key),
        newer_kept: kept.preferred(&model.key),
        blobs: model.blobs.clone(),
        own: model.own,
    };
    let blobs = taken.blobs.iter().map(|blob| Blob {
        space: blob.space,
        busy: blob.ids.iter().any(|id| busy_blobs.contains(id)),
    });
    EvictionInput { models: taken.models.iter().map(candidate).collect(), blobs: blobs.collect() }
}

impl CacheSpace {
    /// Why models must or should stay, now. Blocks.
    pub(in crate::cache) fn retention(&self) -> Result<RetentionReasons> {
        let keep = self.keep.lock().clone();
        RetentionReasons::now(&self.store, &keep)
    }

    /// Evicts models that were idle too long, and more until the goal is reached.
    /// With `reason: None` it only returns what it would evict. Blocks.
    pub(in crate::cache) fn evict(
        &self,
        goal: &EvictionGoal,
        reason: Option<EvictionReason>,
    ) -> Result<Evicted> {
        let alone = self.store.holds().lock_eviction();
        // Before the scan: a flight that releases its blobs during the scan may
        // have committed a model that the scan missed.
        let busy = self.store.holds().held_blobs();
        let taken = self.store.usage()?;
        let kept = self.retention()?;
        let input = eviction_input(&taken, &kept, &busy);
        let idle_before = self.idle_ttl.and_then(|ttl| SystemTime::now().checked_sub(ttl));
        let choice = policy::choose(&input, goal, idle_before);
        let mut evicted =
            Evicted { models: Vec::new(), freed: choice.freed, reached: choice.reached };
        let mut gone = Gone::new();
        for at in choice.models {
            let model = &taken.models[at];
            let idle = idle_before.is_some_and(|before| model.last_used < before);
            let reason = reason.map(|reason| if idle { EvictionReason::Idle } else { reason });
            let manifest = match reason {
                Some(_) if gone.len() < MAX_OPEN_MANIFESTS => {
                    self.store.models().open_manifest(&model.key)?
                }
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

    /// Evicts the blobs that only evicted models referenced. A model that was leased
    /// meanwhile keeps its blobs.
    fn evict_blobs(&self, taken: &DiskUsage, gone: &Gone, blobs: Vec<usize>) -> Result<()> {
        let stay = taken.models.iter().enumerate().filter(|(at, _)| !gone.contains_key(at));
        let needed: HashSet<usize> = stay.flat_map(|(_, model)| &model.blobs).copied().collect();
        let mut left = HashSet::new();
        for at in blobs.into_iter().filter(|at| !needed.contains(at)) {
            for id in &taken.blobs[at].ids {
                self.store.blobs().evict(id)?;
                left.insert(id.clone());
            }
        }
        for (at, manifest) in gone {
            if let (Some(summary), Some(file)) = (&taken.models[*at].summary, manifest)
                && !left.is_empty()
            {
                self.store.forget_contents(summary, file, &left);
            }
        }
        // Deletions wake the models that wait for space, so do not wake the deleter
        // for nothing.
        if !gone.is_empty() || !left.is_empty() {
            self.store.wake_deletion();
        }
        Ok(())
    }

    /// Evicts superseded revisions that are not in use and that no request has as
    /// its latest. Blocks.
    pub(in crate::cache) fn evict_superseded(&self) -> Result<()> {
        let superseded = self.store.requests().superseded()?;
        if superseded.is_empty() {
            return Ok(());
        }
        let stays = |kept: &RetentionReasons, key: &ModelKey| {
            kept.why(key).is_some() || kept.preferred(key).is_some()
        };
        // Pods may use theirs for months: avoid a scan of the cache for those.
        let kept = self.retention()?;
        if superseded.iter().all(|key| stays(&kept, key)) {
            return Ok(());
        }
        let _alone = self.store.holds().lock_eviction();
        let busy = self.store.holds().held_blobs();
        let taken = self.store.usage()?;
        let kept = self.retention()?;
        // Again, under the lock: only a held model can become the latest of a
        // request, and held models are kept.
        let superseded = self.store.requests().superseded()?;
        let mut gone = Gone::new();
        let mut blobs = HashSet::new();
        for (at, model) in taken.models.iter().enumerate() {
            let goes = superseded.contains(&model.key) && !stays(&kept, &model.key);
            if !goes {
                continue;
            }
            let manifest = match gone.len() {
                0..MAX_OPEN_MANIFESTS => self.store.models().open_manifest(&model.key)?,
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

    /// Moves one model to the trash; `false` when it came into use meanwhile.
    fn evict_model(&self, model: &StoredModel, reason: EvictionReason) -> Result<bool> {
        let key = &model.key;
        abort_point::reach("evict-1");
        if !self.store.discard_unused(key)? {
            return Ok(false);
        }
        abort_point::reach("evict-2");
        self.metrics.evicted(reason);
        tracing::info!(
            model = key.as_str(),
            source = model.summary.as_ref().map(|summary| summary.source.to_string()),
            idle = ?SystemTime::now().duration_since(model.last_used).unwrap_or_default(),
            reason = reason.label(),
            "evicted a model"
        );
        Ok(true)
    }

    /// The blobs of running downloads, and of models that wait for space.
    pub(in crate::cache) fn wanted_blobs(&self) -> HashSet<BlobId> {
        let mut wanted = self.reservations.admitted();
        wanted.extend(self.store.holds().held_blobs());
        wanted.extend(self.downloads.blobs());
        wanted
    }

    /// Moves what is least worth keeping to the trash: interrupted downloads that are
    /// not being resumed, except those in `wanted`; what is in quarantine; and
    /// set-aside caches that are not mounted. Blocks.
    pub(in crate::cache) fn drop_leftovers(&self, wanted: &HashSet<BlobId>) -> Result<()> {
        let alone = self.store.holds().lock_eviction();
        let busy = self.wanted_blobs();
        self.store.abandon_downloads(|id| busy.contains(id) || wanted.contains(id))?;
        drop(alone);
        self.store.drop_set_aside(false)?;
        self.store.empty_quarantine(Duration::ZERO)
    }
}
