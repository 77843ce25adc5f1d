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

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

pub use fill::import::{ImportOptions, ImportProgress, ImportSnapshot, Imported, NotAdopted};
pub use fill::progress::{FillProgress, Phase, Snapshot, Unverified};
pub use fill::slots::Priority;
pub use manage::{CollectOptions, Collected, EvictionRequest, Purged};
pub use report::{CacheReport, ModelReport, ModelState, Usage};
pub use space::reservations::{CacheLimits, FileSystem};
pub use space::shortfall::Shortfall;
pub use store::layout::Layout;
pub use store::leases::{Lease, LeaseHolder, LeaseRecord};
pub use store::models::CachedModel;
pub use store::quarantine::Damage;
pub use store::recover::Recovered;
pub use store::set_aside::{Older, SetAside};
pub use store::verify::{Verification, VerifyProgress};

use crate::blocking::blocking;
use crate::download::Engine;
use crate::error::Result;
use crate::flight::{Flights, Waiter};
use crate::metrics::Metrics;
use crate::model::{BlobId, Manifest, ModelKey, RequestDigest, Revision, Summary};
use crate::mount::{self, Mounted};
use crate::source::ObjectSource;
use crate::sync::lock;
use fill::progress::BlobProgress;
use fill::slots::Slots;
use space::reservations::Reservations;
use store::blobs::Blobs;
use store::durability::{Syncer, Unsynced};
use store::holds::Holds;
use store::layout::names::EntryPath;
use store::leases::Leases;
use store::models::Models;
use store::open::Ownership;
use store::{disk_usage, files, leases, open, recover};

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
}

/// How long a completed model is held for the pod that waited for it.
const POD_RETURNS: Duration = Duration::from_secs(180);

/// The damage listener.
type Listener = Box<dyn Fn(&Damage) + Send + Sync>;

/// The cache. Cheap to clone.
#[derive(Clone)]
pub struct Cache(Arc<CacheInner>);

struct CacheInner {
    layout: Layout,
    blobs: Arc<Blobs>,
    models: Arc<Models>,
    leases: Leases,
    holds: Holds,
    reservations: Reservations,
    idle_ttl: Option<Duration>,
    /// Held by the admission that may evict.
    admissions: Mutex<()>,
    /// Held while the trash is emptied.
    emptying: Mutex<()>,
    trash_filled: Notify,
    /// Notified when a model may have become unused.
    released: Notify,
    /// Notified when models that wait for space should try again.
    space_freed: Notify,
    watermark_warned: AtomicBool,
    damage_listener: OnceLock<Listener>,
    /// Completed models whose pods have not asked again yet.
    arrived: Mutex<Vec<(Instant, CachedModel)>>,
    syncer: Syncer,
    model_slots: Slots,
    model_flights: Flights<ModelKey, FillProgress, CachedModel>,
    check_flights: Flights<ModelKey, (), Option<CachedModel>>,
    blob_flights: Flights<BlobId, BlobProgress, ()>,
    metrics: Arc<Metrics>,
    shutdown: CancellationToken,
    _ownership: Ownership,
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
        let layout = Layout::new(options.dir);
        let taken = open::take(&layout, options.require_mount);
        let ownership = taken.map_err(|error| mount::on_disk(error, layout.root()))?;
        let blobs = Arc::new(Blobs::new(layout.clone()));
        let holds = Holds::default();
        let models = Arc::new(Models::new(layout.clone(), holds.clone()));
        let (syncer, work) = Syncer::new(&layout, Arc::clone(&blobs), Arc::clone(&models))?;
        // Not tracked: it ends when the cache is dropped.
        tokio::spawn(work);
        let flights = |grace| (grace, tasks.clone(), shutdown.clone());
        let (grace, t, s) = flights(options.abandon_after);
        let model_flights = Flights::new(grace, t, s);
        let (grace, t, s) = flights(options.abandon_after);
        let check_flights = Flights::new(grace, t, s);
        // A blob's flight lives as long as a model's flight waits for it.
        let (grace, t, s) = flights(Duration::ZERO);
        let blob_flights = Flights::new(grace, t, s);
        Ok(Self(Arc::new(CacheInner {
            leases: Leases::new(layout.clone(), leases::boot_id()?),
            holds,
            reservations: Reservations::new(layout.clone(), options.limits),
            idle_ttl: options.idle_ttl,
            admissions: Mutex::default(),
            emptying: Mutex::default(),
            trash_filled: Notify::new(),
            released: Notify::new(),
            space_freed: Notify::new(),
            watermark_warned: AtomicBool::new(false),
            damage_listener: OnceLock::new(),
            arrived: Mutex::default(),
            model_slots: Slots::new(options.max_models.max(1)),
            layout,
            blobs,
            models,
            syncer,
            model_flights,
            check_flights,
            blob_flights,
            metrics,
            shutdown: shutdown.clone(),
            _ownership: ownership,
        })))
    }

    /// Recovers the cache after the end of the last process, however it ended; `pods`
    /// is kubelet's directory of pods. Blocks; the time does not depend on the size
    /// of the cache.
    pub fn recover(&self, pods: &Path) -> Result<Recovered> {
        let recovered = recover::recover(&self.0.layout, &self.0.leases, pods)?;
        self.0.count_leases();
        Ok(recovered)
    }

    /// Registers the damage listener. Later calls are ignored.
    pub fn on_damage(&self, listener: impl Fn(&Damage) + Send + Sync + 'static) {
        let _ = self.0.damage_listener.set(Box::new(listener));
    }

    /// The paths in the cache.
    pub fn layout(&self) -> &Layout {
        &self.0.layout
    }

    /// Returns the model of this key, if it is complete. A model that is new to this
    /// process may be read from the disk first.
    pub async fn find(&self, key: &ModelKey) -> Result<Option<CachedModel>> {
        let (inner, wanted) = (Arc::clone(&self.0), key.clone());
        let known = blocking(move || Ok(inner.models.known(&wanted))).await?;
        if known.is_some() {
            return Ok(known);
        }
        // Reading a suspect may take minutes: once for all callers, and even if they
        // leave.
        let (inner, wanted) = (Arc::clone(&self.0), key.clone());
        let mut waiter = self.0.check_flights.join(key.clone(), (), move |_| {
            blocking(move || {
                let found = inner.check_model(&wanted)?;
                if let Some(model) = &found
                    && !inner.models.is_durable(&wanted)
                    && let Some(manifest) = inner.models.read_manifest(&wanted)?
                {
                    inner.make_durable(model, &manifest);
                }
                Ok(found)
            })
        });
        waiter.completed().await
    }

    /// Waits until a model is durable, which it is soon after its commit; `false` when
    /// that takes longer than `patience`.
    pub async fn wait_until_durable(&self, key: &ModelKey, patience: Duration) -> bool {
        let interval = Duration::from_millis(50);
        let durable = async {
            while !self.0.models.is_durable(key) {
                tokio::time::sleep(interval).await;
            }
        };
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
        title: &str,
        priority: &Priority,
        client: &Arc<dyn ObjectSource>,
    ) -> Waiter<FillProgress, CachedModel> {
        let (inner, engine) = (Arc::clone(&self.0), engine.clone());
        let (manifest, title) = (Arc::clone(manifest), title.to_owned());
        let started = FillProgress::new(Some(Arc::clone(&manifest)), priority.share());
        started.share().add_reader(client);
        let waiter = self.0.model_flights.join(manifest.key(), started, move |progress| {
            // A root span, since the flight has many callers and outlives them.
            let flight = progress.id();
            let span = tracing::error_span!(parent: None, "download", flight, model = title);
            fill::model_flight::fill(inner, engine, manifest, title, progress).instrument(span)
        });
        waiter.progress().share().add_reader(client);
        priority.apply_to(waiter.progress().share());
        waiter
    }

    /// Returns the newest revision of a request, if it is complete.
    pub async fn latest(&self, request: &RequestDigest) -> Result<Option<CachedModel>> {
        let (inner, request) = (Arc::clone(&self.0), request.clone());
        let key = blocking(move || inner.models.latest(&request)).await?;
        match key {
            Some(key) => self.find(&key).await,
            None => Ok(None),
        }
    }

    /// Whether any model is in the cache.
    pub async fn has_models(&self) -> Result<bool> {
        let models = self.0.layout.models();
        Ok(!blocking(move || files::names(&models)).await?.is_empty())
    }

    /// Returns the recorded newest revision of a request, complete or not. Blocks.
    pub fn recorded_latest(&self, request: &RequestDigest) -> Result<Option<(ModelKey, Revision)>> {
        self.0.models.recorded_latest(request)
    }

    /// Records a complete model as the newest revision of a request. Blocks.
    pub fn record_latest(&self, request: &RequestDigest, model: &CachedModel) -> Result<()> {
        if self.0.models.record_latest(request, model)? {
            self.0.syncer.enqueue(Unsynced::Index);
            self.0.released.notify_one();
        }
        Ok(())
    }

    /// Waits until everything committed so far was synced. Called before the process
    /// ends, so that the next one has less to read again.
    pub async fn wait_until_synced(&self) {
        self.0.syncer.wait_until_synced().await;
    }

    /// Records a request for exactly this revision, so that a newer one does not
    /// supersede it. Blocks.
    pub fn record_revision(&self, request: &RequestDigest, model: &CachedModel) -> Result<()> {
        let fields = [request.as_str(), model.summary.revision.as_str()];
        self.record_latest(
            &RequestDigest::of_fields("oci-model-csi revision", fields.into_iter()),
            model,
        )
    }

    /// Leases a model for a volume. Blocks.
    pub fn lease(&self, model: CachedModel, holder: LeaseHolder) -> Result<Lease> {
        let key = model.key.clone();
        let lease = self.0.leases.take(model, holder);
        self.0.count_leases();
        self.0.record_use(&key);
        self.0.forget_arrivals(Some(&key));
        lease
    }

    /// Records the mount id of a lease.
    pub fn record_mount(&self, target: &Path, mount: u64) {
        self.0.leases.record_mount(target, mount);
    }

    /// Whether a mount is of the tree of a model of this cache, even one that was
    /// evicted or damaged since. Blocks.
    pub fn is_tree(&self, mounted: &Mounted) -> Result<bool> {
        let uses = mount::uses_of(self.0.layout.root())?;
        let is_tree = |path: &Path| EntryPath::parse(path).is_some_and(|path| path.is_tree());
        Ok(uses.iter().any(|one| one.id == mounted.id && is_tree(&one.root)))
    }

    /// Ends the lease of a target path, if there is one. Blocks.
    pub fn release(&self, target: &Path) -> Result<()> {
        let model = self.lease_of(target).map(|lease| lease.model);
        let released = self.0.leases.release(target);
        self.0.count_leases();
        if let Some(model) = model {
            self.0.record_use(&model);
            self.0.released.notify_one();
            self.0.space_freed.notify_waiters();
        }
        released
    }

    /// The lease of a target path.
    pub fn lease_of(&self, target: &Path) -> Option<LeaseRecord> {
        self.0.leases.of_target(target)
    }

    /// All leases.
    pub fn leases(&self) -> Vec<LeaseRecord> {
        self.0.leases.all()
    }

    /// Reads the summary of a model. Blocks.
    pub fn summary(&self, key: &ModelKey) -> Result<Option<Summary>> {
        self.0.models.read_summary(key)
    }

    /// Returns the models that are being downloaded, with their progress.
    pub fn running(&self) -> Vec<(ModelKey, Arc<FillProgress>)> {
        self.0.model_flights.running()
    }
}

impl CacheInner {
    fn count_leases(&self) {
        let count = i64::try_from(self.leases.all().len()).unwrap_or(i64::MAX);
        self.metrics.leases.set(count);
    }

    /// Holds a completed model until its pod has asked again. Otherwise a model that
    /// waits for space could evict it first, since kubelet's pauses reach two
    /// minutes.
    fn await_pod(&self, model: &CachedModel) {
        self.forget_arrivals(None);
        self.arrivals().push((Instant::now(), model.clone()));
    }

    /// Ends the hold of a model that was leased, and of those whose pod did not return
    /// in time.
    fn forget_arrivals(&self, leased: Option<&ModelKey>) {
        self.arrivals()
            .retain(|(at, model)| at.elapsed() < POD_RETURNS && Some(&model.key) != leased);
    }

    fn arrivals(&self) -> MutexGuard<'_, Vec<(Instant, CachedModel)>> {
        lock(&self.arrived)
    }

    /// Records a use, for the eviction policy. A failure is only logged.
    fn record_use(&self, key: &ModelKey) {
        if let Err(error) = disk_usage::touch(&self.layout, key) {
            tracing::warn!(%error, "recording a model's last use failed");
        }
    }
}

#[cfg(test)]
mod cache_tests;
