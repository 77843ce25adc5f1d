//! The node's cache: complete models, and the one way to add them.
//!
//! The disk is the source of truth (see [`Layout`]); memory is rebuilt from it.
//! A blob is the unit of download, verification, resume and sharing; a model
//! is the unit of publishing and leasing. A commit never copies: staging file,
//! blob and tree entry are the same inode.

mod fill;
mod manage;
mod report;
mod space;
mod store;
mod warm;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use fill::import::{ImportOptions, ImportProgress, ImportSnapshot, Imported, NotAdopted};
pub use fill::progress::{FillProgress, Phase, Snapshot, Unverified};
pub use fill::slots::Priority;
pub use manage::{CollectOptions, Collected, EvictionRequest};
pub use report::{CacheReport, ModelReport, ModelState};
pub use space::disk::CacheDisk;
pub use space::reservations::{CacheLimits, FileSystem};
pub use space::shortfall::Shortfall;
pub use space::usage::Usage;
pub use store::layout::Layout;
pub use store::leases::{Lease, LeaseHolder, LeaseRecord};
pub use store::models::CachedModel;
pub use store::open::{DirectoryContent, examine as examine_directory};
pub use store::probe::{FileSystemProbe, passing_name, probe_file_system};
pub use store::purge::Purged;
pub use store::quarantine::Damage;
pub use store::recover::Recovered;
pub use store::requests::{KeepRevisions, MAX_KEPT_REVISIONS};
pub use store::selinux::{SelinuxLabel, label_of as selinux_label_of};
pub use store::set_aside::{Older, SetAside};
pub use store::verify::{Verification, VerifyProgress};
pub use warm::{Warmed, warm};

use crate::blocking::blocking;
use crate::download::Engine;
use crate::error::Result;
use crate::flight::Waiter;
use crate::metrics::Metrics;
use crate::model::{Manifest, ModelKey, RequestDigest, Revision, Summary};
use crate::mount::Mounted;
use crate::source::ObjectSource;
use fill::{CacheFill, FillFlights};
use space::{CacheSpace, Downloads};
use store::{CacheStore, files};

/// The administrator's options of the cache.
#[derive(Debug, Clone)]
pub struct CacheOptions {
    /// The directory.
    pub dir: PathBuf,
    /// Whether the directory must be a mount point.
    pub require_mount: bool,
    /// How much space the cache may take.
    pub limits: CacheLimits,
    /// Models that were not used for this long are evicted; `None` keeps them
    /// while there is space.
    pub idle_ttl: Option<Duration>,
    /// Models that download at once. For pods' models, prefetches do not count.
    pub max_models: usize,
    /// How long a download continues without a caller.
    pub abandon_after: Duration,
    /// Of which models older revisions are kept; see [`Cache::keep_revisions`].
    pub keep_revisions: Vec<KeepRevisions>,
}

/// The cache. Cheap to clone.
///
/// Its parts know each other in one direction: fill, space, store.
#[derive(Clone)]
pub struct Cache {
    store: Arc<CacheStore>,
    space: Arc<CacheSpace>,
    fill: Arc<CacheFill>,
}

impl Cache {
    /// Takes ownership of the directory. Fast, whatever its size. Nothing may be
    /// published before [`Cache::recover`] has run. Blocks.
    ///
    /// Background work is tracked by `tasks` and ends at `shutdown`.
    ///
    /// # Errors
    /// `Precondition` when the directory cannot be used as a cache.
    pub fn open(
        options: CacheOptions,
        metrics: Arc<Metrics>,
        tasks: &TaskTracker,
        shutdown: &CancellationToken,
    ) -> Result<Self> {
        let store = Arc::new(CacheStore::open(
            options.dir,
            options.require_mount,
            Arc::clone(&metrics),
            shutdown.clone(),
        )?);
        let flights = Arc::new(FillFlights::new(options.abandon_after, tasks, shutdown));
        let space = Arc::new(CacheSpace::new(
            Arc::clone(&store),
            Arc::clone(&flights) as Arc<dyn Downloads>,
            options.limits,
            options.idle_ttl,
            options.keep_revisions,
            Arc::clone(&metrics),
        ));
        let fill = Arc::new(CacheFill::new(
            Arc::clone(&space),
            Arc::clone(&store),
            flights,
            options.max_models,
            metrics,
        ));
        Ok(Self { store, space, fill })
    }

    /// Recovers the cache after the end of the last process, however it ended; `pods`
    /// is kubelet's directory of pods. Blocks; the time does not depend on the size
    /// of the cache.
    pub fn recover(&self, pods: &Path) -> Result<Recovered> {
        self.store.recover(pods)
    }

    /// Registers the damage listener. Later calls are ignored.
    pub fn on_damage(&self, listener: impl Fn(&Damage) + Send + Sync + 'static) {
        self.store.on_damage(Box::new(listener));
    }

    /// The paths in the cache.
    pub fn layout(&self) -> &Layout {
        self.store.layout()
    }

    /// Returns the model of this key, if it is complete. A model that is new to this
    /// process may be read from the disk first.
    pub async fn find(&self, key: &ModelKey) -> Result<Option<CachedModel>> {
        self.fill.find(key).await
    }

    /// Waits until a model is durable, which it is soon after its commit; `false` when
    /// that takes longer than `patience`.
    pub async fn wait_until_durable(&self, key: &ModelKey, patience: Duration) -> bool {
        let durable = self.store.models().wait_until_durable(key);
        tokio::time::timeout(patience, durable).await.is_ok()
    }

    /// Joins the flight that adds this model to the cache, or starts it. A pod that
    /// joins a prefetch makes it as urgent as any pod's model.
    ///
    /// Objects are read with the client of any of the callers.
    pub fn fill(
        &self,
        engine: &Engine,
        manifest: &Arc<Manifest>,
        priority: &Priority,
        client: &Arc<dyn ObjectSource>,
    ) -> Waiter<FillProgress, CachedModel> {
        self.fill.fill(engine, manifest, priority, client)
    }

    /// Returns the newest revision of a request, if it is complete.
    pub async fn latest(&self, request: &RequestDigest) -> Result<Option<CachedModel>> {
        let (store, request) = (Arc::clone(&self.store), request.clone());
        let key = blocking(move || store.requests().latest(&request)).await?;
        match key {
            Some(key) => self.find(&key).await,
            None => Ok(None),
        }
    }

    /// Whether any model is in the cache.
    pub async fn has_models(&self) -> Result<bool> {
        let models = self.store.layout().models();
        Ok(!blocking(move || files::names(&models)).await?.is_empty())
    }

    /// Reports each model that is added or removed; several at once may be one report.
    pub fn model_changes(&self) -> watch::Receiver<()> {
        self.store.models().changes()
    }

    /// Returns the recorded newest revision of a request, complete or not. Blocks.
    pub fn recorded_latest(&self, request: &RequestDigest) -> Result<Option<(ModelKey, Revision)>> {
        self.store.requests().recorded_latest(request)
    }

    /// Records a complete model as the newest revision of a request. Blocks.
    pub fn record_latest(&self, request: &RequestDigest, model: &CachedModel) -> Result<()> {
        self.space.record_latest(request, model, false)
    }

    /// Waits until everything committed so far was synced. Called before the process
    /// ends, so that the next one has less to read again.
    pub async fn wait_until_synced(&self) {
        self.store.wait_until_synced().await;
    }

    /// Records a request for exactly this revision, so that a newer one does not
    /// supersede it. Blocks.
    pub fn record_revision(&self, request: &RequestDigest, model: &CachedModel) -> Result<()> {
        let fields = [request.as_str(), model.summary.revision.as_str()];
        let digest = RequestDigest::of_fields("oci-model-csi revision", fields.into_iter());
        self.space.record_latest(&digest, model, true)
    }

    /// Replaces the rules that keep older revisions.
    pub fn keep_revisions(&self, rules: Vec<KeepRevisions>) {
        self.space.keep_revisions(rules);
    }

    /// Leases a model for a volume. Blocks.
    pub fn lease(&self, model: CachedModel, holder: LeaseHolder) -> Result<Lease> {
        self.space.lease(model, holder)
    }

    /// Records the mount id of a lease.
    pub fn record_mount(&self, target: &Path, mount: u64) {
        self.store.record_mount(target, mount);
    }

    /// Whether a mount is of the tree of a model of this cache, even one that was
    /// evicted or damaged since. Blocks.
    pub fn is_tree(&self, mounted: &Mounted) -> Result<bool> {
        self.store.is_tree(mounted)
    }

    /// Ends the lease of a target path, if there is one. Blocks.
    pub fn release(&self, target: &Path) -> Result<()> {
        self.space.release(target)
    }

    /// The lease of a target path.
    pub fn lease_of(&self, target: &Path) -> Option<LeaseRecord> {
        self.store.lease_of(target)
    }

    /// Whether a volume uses this model.
    pub fn is_leased(&self, key: &ModelKey) -> bool {
        self.store.is_leased(key)
    }

    /// All leases.
    pub fn leases(&self) -> Vec<LeaseRecord> {
        self.store.leases()
    }

    /// Reads the summary of a model. Blocks.
    pub fn summary(&self, key: &ModelKey) -> Result<Option<Summary>> {
        self.store.models().read_summary(key)
    }

    /// Returns the models that are being downloaded, with their progress.
    pub fn running(&self) -> Vec<(ModelKey, Arc<FillProgress>)> {
        self.fill.running()
    }
}

#[cfg(test)]
mod cache_tests;
