//! Damage: what the disk gives back is not what was downloaded.
//!
//! # How a damaged blob is put aside
//!
//! 1. Each model that has it is renamed to `quarantine/<key>.<n>`: nobody finds
//!    it any more. Pods that show it keep what they have.
//! 2. The leases of those pods are marked: their volumes' condition says so.
//! 3. The blob is renamed to `quarantine/blob-<id>`, in place of an earlier copy,
//!    and its records are removed: the next publish of the model downloads this
//!    blob and nothing else.
//!
//! Killed after 1 or 2: the blob stands without a model or with those that were
//! built on it since; the next check of the cache finds it again.

use std::collections::HashSet;
use std::sync::Arc;

use super::CacheInner;
use super::disk_usage::DiskUsage;
use super::leases::LeaseRecord;
use super::trash::put_aside;
use crate::error::Result;
use crate::model::{BlobId, Manifest, ModelKey};
use crate::mount;

/// Something in the cache that is not what it should be.
#[derive(Debug, Clone)]
pub struct Damage {
    /// What: the object, or the path in the model's tree.
    pub what: String,
    /// How it was noticed.
    pub why: String,
    /// The models that had it. They were put aside, and are built again when
    /// somebody asks for them.
    pub models: Vec<Arc<Manifest>>,
    /// The volumes that show it.
    pub volumes: Vec<LeaseRecord>,
}

impl CacheInner {
    /// Puts a damaged blob aside, and every model that has it. Blocks.
    pub(super) fn quarantine_blob(&self, id: &BlobId, what: &str, why: &str) -> Result<Damage> {
        let alone = self.holds.exclusively();
        let taken = DiskUsage::read(&self.layout)?;
        let at = taken.blobs.iter().position(|blob| blob.ids.contains(id));
        let having =
            taken.models.into_iter().filter(|model| at.is_some_and(|at| model.blobs.contains(&at)));
        let keys: Vec<_> = having.map(|model| model.key).collect();
        let damage = self.put_models_aside(what, why, keys)?;
        for id in at.map(|at| &taken.blobs[at].ids).into_iter().flatten() {
            self.blobs.put_aside(id)?;
        }
        drop(alone);
        self.tell(&damage);
        Ok(damage)
    }

    /// Puts a model aside whose tree is not what its manifest says. Blocks.
    pub(super) fn quarantine_model(&self, key: &ModelKey, what: &str, why: &str) -> Result<Damage> {
        let alone = self.holds.exclusively();
        let damage = self.put_models_aside(what, why, vec![key.clone()])?;
        drop(alone);
        self.tell(&damage);
        Ok(damage)
    }

    fn put_models_aside(&self, what: &str, why: &str, models: Vec<ModelKey>) -> Result<Damage> {
        let mut volumes = Vec::new();
        let mut manifests = Vec::new();
        for key in models {
            let manifest = self.models.read_manifest(&key).unwrap_or_default();
            let root = mount::identity(&self.layout.tree(&key)).ok();
            self.models.distrust(&key);
            put_aside(&self.layout.model(&key), &self.layout.quarantine())?;
            if let Some(root) = root {
                volumes.extend(self.leases.mark_damaged(root, what));
            }
            manifests.extend(manifest.map(Arc::new));
        }
        Ok(Damage { what: what.to_owned(), why: why.to_owned(), models: manifests, volumes })
    }

    fn tell(&self, damage: &Damage) {
        self.metrics.cache_damaged.inc();
        if let Some(told) = self.damage_told.get() {
            told(damage);
        }
        let pods: HashSet<&str> =
            damage.volumes.iter().filter_map(|lease| lease.pod.as_deref()).collect();
        tracing::error!(
            what = damage.what,
            why = damage.why,
            models = ?damage.models.iter().map(|m| m.source.to_string()).collect::<Vec<_>>(),
            ?pods,
            "damaged content in the cache was put aside; the next publish downloads it again, and \
             pods that show it should be restarted; look at this node's disk and memory"
        );
    }
}
