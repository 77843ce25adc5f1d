//! Quarantine of damage: content on the disk that differs from what was downloaded.
//!
//! # How a damaged blob is quarantined
//!
//! 1. Each model that has it is renamed to `quarantine/<key>.<n>`: it can no longer
//!    be found. Pods that mount it keep their content.
//! 2. The leases of those pods are marked, and their volumes' condition reports it.
//! 3. The blob is renamed to `quarantine/blob-<id>`, replacing an earlier copy,
//!    and its records are removed: the next publish of the model downloads this
//!    blob and nothing else.
//!
//! Killed after 1 or 2: the blob remains, without a model or with models built on it
//! since; the next verification finds it again.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use super::CacheStore;
use super::disk_usage::DiskUsage;
use super::files;
use super::layout::names::{Directory, QuarantineFile};
use super::leases::LeaseRecord;
use crate::error::Result;
use crate::model::{BlobId, Manifest, ModelKey};
use crate::mount;

/// Damaged content in the cache.
#[derive(Debug, Clone)]
pub struct Damage {
    /// The object, or the path in the model's tree.
    pub what: String,
    /// How the damage was noticed.
    pub why: String,
    /// The affected models. They were quarantined, and are rebuilt on the next
    /// request.
    pub models: Vec<Arc<Manifest>>,
    /// The volumes that have it mounted.
    pub volumes: Vec<LeaseRecord>,
}

/// What is called for each damage that is found.
pub(super) type DamageListener = Box<dyn Fn(&Damage) + Send + Sync>;

impl CacheStore {
    /// Registers the damage listener. Later calls are ignored.
    pub(in crate::cache) fn on_damage(&self, listener: DamageListener) {
        let _ = self.damage_listener.set(listener);
    }

    /// Quarantines a damaged blob, and every model that has it. Blocks.
    pub(in crate::cache) fn quarantine_blob(
        &self,
        id: &BlobId,
        what: &str,
        why: &str,
    ) -> Result<Damage> {
        let alone = self.holds.lock_eviction();
        let taken = DiskUsage::read(&self.layout)?;
        let at = taken.blobs.iter().position(|blob| blob.ids.contains(id));
        let having =
            taken.models.into_iter().filter(|model| at.is_some_and(|at| model.blobs.contains(&at)));
        let keys: Vec<_> = having.map(|model| model.key).collect();
        let damage = self.move_models_aside(what, why, keys)?;
        for id in at.map(|at| &taken.blobs[at].ids).into_iter().flatten() {
            self.blobs.quarantine(id)?;
        }
        drop(alone);
        self.report_damage(&damage);
        Ok(damage)
    }

    /// Quarantines a model whose tree does not match its manifest. Blocks.
    pub(in crate::cache) fn quarantine_model(
        &self,
        key: &ModelKey,
        what: &str,
        why: &str,
    ) -> Result<Damage> {
        let alone = self.holds.lock_eviction();
        let damage = self.move_models_aside(what, why, vec![key.clone()])?;
        drop(alone);
        self.report_damage(&damage);
        Ok(damage)
    }

    /// Lists the damaged models, with their directories. Blocks.
    pub(in crate::cache) fn damaged(&self) -> Result<Vec<(ModelKey, PathBuf)>> {
        let names = files::names(&self.layout.quarantine())?.into_iter();
        let damaged = names.filter_map(|name| match QuarantineFile::parse(&name)? {
            QuarantineFile::Model(key) => Some((key, self.layout.quarantine().join(name))),
            QuarantineFile::Blob(..) => None,
        });
        Ok(damaged.collect())
    }

    fn move_models_aside(&self, what: &str, why: &str, models: Vec<ModelKey>) -> Result<Damage> {
        let mut volumes = Vec::new();
        let mut manifests = Vec::new();
        for key in models {
            let manifest = self.models.read_manifest(&key).unwrap_or_default();
            let root = mount::identity(&self.layout.tree(&key)).ok();
            self.models.remove(&key, Directory::Quarantine)?;
            if let Some(root) = root {
                volumes.extend(self.leases.mark_damaged(root, what));
            }
            manifests.extend(manifest.map(Arc::new));
        }
        Ok(Damage { what: what.to_owned(), why: why.to_owned(), models: manifests, volumes })
    }

    fn report_damage(&self, damage: &Damage) {
        self.metrics.cache_damaged.inc();
        if let Some(listener) = self.damage_listener.get() {
            listener(damage);
        }
        let pods: HashSet<&str> =
            damage.volumes.iter().filter_map(|lease| lease.pod.as_deref()).collect();
        tracing::error!(
            what = damage.what,
            why = damage.why,
            models = ?damage.models.iter().map(|m| m.source.to_string()).collect::<Vec<_>>(),
            ?pods,
            "damaged content in the cache was quarantined; the next publish downloads it again; \
             restart the pods that use it, and check this node's disk and memory"
        );
    }
}
