//! What volumes use: leases, mounts, and when a model was last used.

use std::path::Path;

use super::CacheStore;
use super::disk_usage;
use super::layout::names::EntryPath;
use super::leases::{Lease, LeaseHolder, LeaseRecord};
use super::models::CachedModel;
use super::recover::{self, Recovered};
use crate::error::Result;
use crate::model::ModelKey;
use crate::mount::{self, Mounted, Use};

impl CacheStore {
    /// Recovers the cache after the end of the last process. Blocks.
    pub(in crate::cache) fn recover(&self, pods: &Path) -> Result<Recovered> {
        let recovered = recover::recover(&self.layout, &self.leases, pods)?;
        self.count_leases();
        Ok(recovered)
    }

    /// Leases a model for a volume. Blocks.
    pub(in crate::cache) fn lease(&self, model: CachedModel, holder: LeaseHolder) -> Result<Lease> {
        let key = model.key.clone();
        let lease = self.leases.take(model, holder);
        self.count_leases();
        self.record_use(&key);
        lease
    }

    /// Ends the lease of a target path, if there is one, and returns its model. Blocks.
    pub(in crate::cache) fn release(&self, target: &Path) -> (Option<ModelKey>, Result<()>) {
        let model = self.lease_of(target).map(|lease| lease.model);
        let released = self.leases.release(target);
        self.count_leases();
        if let Some(model) = &model {
            self.record_use(model);
        }
        (model, released)
    }

    /// Ends leases whose mount and pod are gone, while the driver runs. Blocks.
    pub(in crate::cache) fn drop_dead_leases(&self, pods: &Path) -> Result<()> {
        recover::drop_dead_leases(&self.layout, &self.leases, pods)?;
        self.count_leases();
        Ok(())
    }

    /// Records the mount id of a lease.
    pub(in crate::cache) fn record_mount(&self, target: &Path, mount: u64) {
        self.leases.record_mount(target, mount);
    }

    /// The lease of a target path.
    pub(in crate::cache) fn lease_of(&self, target: &Path) -> Option<LeaseRecord> {
        self.leases.of_target(target)
    }

    /// Whether a volume uses this model.
    pub(in crate::cache) fn is_leased(&self, key: &ModelKey) -> bool {
        self.leases.has(key)
    }

    /// All leases.
    pub(in crate::cache) fn leases(&self) -> Vec<LeaseRecord> {
        self.leases.all()
    }

    /// All mounts of parts of the cache. Blocks.
    pub(in crate::cache) fn mounts(&self) -> Result<Vec<Use>> {
        mount::uses_of(self.layout.root())
    }

    /// Whether a mount is of the tree of a model. Blocks.
    pub(in crate::cache) fn is_tree(&self, mounted: &Mounted) -> Result<bool> {
        let is_tree = |path: &Path| EntryPath::parse(path).is_some_and(|path| path.is_tree());
        Ok(self.mounts()?.iter().any(|one| one.id == mounted.id && is_tree(&one.root)))
    }

    /// Records a use, for the eviction policy. A failure is only logged.
    pub(in crate::cache) fn record_use(&self, key: &ModelKey) {
        if let Err(error) = disk_usage::touch(&self.layout, key) {
            tracing::warn!(%error, "recording a model's last use failed");
        }
    }

    fn count_leases(&self) {
        let count = i64::try_from(self.leases.all().len()).unwrap_or(i64::MAX);
        self.metrics.leases.set(count);
    }
}
