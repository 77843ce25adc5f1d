//! The node's cache: models that stand complete, and the one way to get there.
//!
//! The disk is the truth ([`Layout`] shows it), and memory is rebuilt from it.
//! A blob is the unit of download, verification, resume and sharing; a model
//! is the unit of publishing and leasing. A commit never copies: the staging
//! file's inode is the blob's and the tree's.

mod admission;
mod blobs;
mod check;
mod content;
mod disk_usage;
mod durability;
mod evict;
mod files;
mod fill;
pub mod flight;
mod foreign;
mod holds;
mod import;
mod in_force;
mod layout;
mod leases;
mod maintenance;
mod manage;
mod models;
mod open;
mod pins;
mod policy;
mod progress;
mod quarantine;
mod recover;
mod report;
mod reread;
mod selinux;
mod set_aside;
mod shortfall;
mod slots;
mod space;
mod sys;
mod trash;
mod verify;
mod weights_check;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

pub use flight::Waiter;
pub use import::{ImportOptions, ImportProgress, ImportSnapshot, Imported, NotAdopted};
pub use layout::Layout;
pub use leases::{Lease, LeaseHolder, LeaseRecord};
pub use manage::{CollectOptions, Collected, EvictionRequest, Purged};
pub use models::CachedModel;
pub use progress::{FillProgress, Phase, Snapshot, Unverified};
pub use quarantine::Damage;
pub use recover::Recovered;
pub use report::{CacheReport, ModelReport, ModelState, Usage};
pub use set_aside::{Older, SetAside};
pub use shortfall::Shortfall;
pub use slots::Priority;
pub use space::{CacheLimits, FileSystem};
pub use verify::{Verification, VerifyProgress};

use crate::blocking::blocking;
use crate::download::Engine;
use crate::error::Result;
use crate::metrics::Metrics;
use crate::model::{BlobId, Manifest, ModelKey, RequestDigest, Revision, Summary};
use crate::mount::{self, Mounted};
use crate::oci::ObjectStorage;
use blobs::Blobs;
use durability::{Syncer, Unsynced};
use flight::Flights;
use holds::Holds;
use leases::Leases;
use models::Models;
use open::Ownership;
use progress::BlobProgress;
use slots::Slots;
use space::Reservations;
pub use weights_check::SafetensorsCheck;
use weights_check::Sanity;

/// What the administrator decided about the cache.
#[derive(Debug, Clone)]
pub struct CacheOptions {
    /// The directory.
    pub dir: PathBuf,
    /// Refuse a directory that is no mount point of its own.
    pub require_mount: bool,
    /// What it may take.
    pub limits: CacheLimits,
    /// Models that nobody used for so long are evicted; `None` keeps them
    /// while there is space.
    pub idle_ttl: Option<Duration>,
    /// Models that download at once; prefetches do not count for pods.
    pub max_models: usize,
    /// How long a download goes on that nobody asks for.
    pub abandon_after: Duration,
    /// Look at the headers of safetensors files before a model is published.
    pub check_safetensors: SafetensorsCheck,
}

/// How long a model that arrived is held for the pod that waited for it.
const POD_RETURNS: Duration = Duration::from_secs(180);

/// Is told of damage that is found.
type Listener = Box<dyn Fn(&Damage) + Send + Sync>;

/// The cache; cheap to clone.
#[derive(Clone)]
pub struct Cache(Arc<CacheInner>);

struct CacheInner {
    layout: Layout,
    blobs: Arc<Blobs>,
    models: Arc<Models>,
    leases: Leases,
    holds: Holds,
    ledger: Reservations,
    idle_ttl: Option<Duration>,
    /// Held by the one admission that may evict.
    admissions: Mutex<()>,
    /// Held by the one that empties the trash.
    emptying: Mutex<()>,
    trash_filled: Notify,
    /// A model may be of no use to anybody any more.
    let_go: Notify,
    /// A model that waits for space may look again.
    space_freed: Notify,
    watermark_told: AtomicBool,
    damage_told: OnceLock<Listener>,
    /// Models that arrived for pods which have not asked again yet.
    arrived: Mutex<Vec<(Instant, CachedModel)>>,
    syncer: Syncer,
    model_slots: Slots,
    model_flights: Flights<ModelKey, FillProgress, CachedModel>,
    check_flights: Flights<ModelKey, (), Option<CachedModel>>,
    blob_flights: Flights<BlobId, BlobProgress, ()>,
    sanity: Sanity,
    metrics: Arc<Metrics>,
    shutdown: CancellationToken,
    _ownership: Ownership,
}

impl Cache {
    /// Takes the directory as ours; fast, whatever it holds. Nothing may be
    /// published before [`Cache::recover`] has run. Blocks.
    ///
    /// Background work is tracked by `tasks` and ends at `shutdown`.
    ///
    /// # Errors
    /// `Precondition` when the directory is not ours to use.
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
        // A blob's flight lives as long as some model's flight wants it.
        let (grace, t, s) = flights(Duration::ZERO);
        let blob_flights = Flights::new(grace, t, s);
        let (grace, t, s) = flights(options.abandon_after);
        let sanity = Sanity::new(options.check_safetensors, Flights::new(grace, t, s));
        Ok(Self(Arc::new(CacheInner {
            leases: Leases::new(layout.clone(), leases::boot_id()?),
            holds,
            ledger: Reservations::new(layout.clone(), options.limits),
            idle_ttl: options.idle_ttl,
            admissions: Mutex::default(),
            emptying: Mutex::default(),
            trash_filled: Notify::new(),
            let_go: Notify::new(),
            space_freed: Notify::new(),
            watermark_told: AtomicBool::new(false),
            damage_told: OnceLock::new(),
            arrived: Mutex::default(),
            model_slots: Slots::new(options.max_models.max(1)),
            layout,
            blobs,
            models,
            syncer,
            model_flights,
            check_flights,
            blob_flights,
            sanity,
            metrics,
            shutdown: shutdown.clone(),
            _ownership: ownership,
        })))
    }

    /// Puts the cache in order after whatever ended the last process; `pods`
    /// is kubelet's directory of pods. Blocks; the time does not depend on the
    /// size of the cache.
    pub fn recover(&self, pods: &Path) -> Result<Recovered> {
        let recovered = recover::recover(&self.0.layout, &self.0.leases, pods)?;
        self.0.count_leases();
        Ok(recovered)
    }

    /// Has somebody told of damage that is found; the first one who asks.
    pub fn on_damage(&self, tell: impl Fn(&Damage) + Send + Sync + 'static) {
        let _ = self.0.damage_told.set(Box::new(tell));
    }

    /// The paths.
    pub fn layout(&self) -> &Layout {
        &self.0.layout
    }

    /// The model of this key, if it stands complete. One that this process has
    /// not seen may be read from the disk first.
    pub async fn find(&self, key: &ModelKey) -> Result<Option<CachedModel>> {
        let (inner, wanted) = (Arc::clone(&self.0), key.clone());
        let known = blocking(move || Ok(inner.models.known(&wanted))).await?;
        if known.is_some() {
            return Ok(known);
        }
        // Reading a suspect may take minutes: once for all who ask, and going
        // on when they give up.
        let (inner, wanted) = (Arc::clone(&self.0), key.clone());
        let mut ticket = self.0.check_flights.join(key.clone(), (), move |_| {
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
        ticket.completed().await
    }

    /// Waits until a model is known to be on the disk, as it is soon after it
    /// came; `false` when that takes longer than `patience`.
    pub async fn until_durable(&self, key: &ModelKey, patience: Duration) -> bool {
        let look = Duration::from_millis(50);
        let durable = async {
            while !self.0.models.is_durable(key) {
                tokio::time::sleep(look).await;
            }
        };
        tokio::time::timeout(patience, durable).await.is_ok()
    }

    /// Joins the flight that brings this model into the cache, or starts it. A
    /// pod that joins a prefetch makes it as urgent as any pod's model.
    ///
    /// Its objects are read as one of the clients of all who asked.
    pub fn fill(
        &self,
        engine: &Engine,
        manifest: &Arc<Manifest>,
        title: &str,
        asker: &Priority,
        client: &ObjectStorage,
    ) -> Waiter<FillProgress, CachedModel> {
        let (inner, engine) = (Arc::clone(&self.0), engine.clone());
        let (manifest, title) = (Arc::clone(manifest), title.to_owned());
        let started = FillProgress::new(Some(Arc::clone(&manifest)), asker.share());
        started.share().read_as(client);
        let ticket = self.0.model_flights.join(manifest.key(), started, move |progress| {
            // Of its own: it has many callers, and outlives them.
            let flight = progress.id();
            let span = tracing::error_span!(parent: None, "download", flight, model = title);
            fill::fill(inner, engine, manifest, title, progress).instrument(span)
        });
        ticket.progress().share().read_as(client);
        asker.joins(ticket.progress().share());
        ticket
    }

    /// The newest revision of a request, if it stands complete.
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

    /// What is recorded as the newest revision of a request, complete or not. Blocks.
    pub fn recorded(&self, request: &RequestDigest) -> Result<Option<(ModelKey, Revision)>> {
        self.0.models.recorded(request)
    }

    /// Notes a complete model as the newest revision of a request. Blocks.
    pub fn set_latest(&self, request: &RequestDigest, model: &CachedModel) -> Result<()> {
        if self.0.models.set_latest(request, model)? {
            self.0.syncer.enqueue(Unsynced::Index);
            self.0.let_go.notify_one();
        }
        Ok(())
    }

    /// Waits until what was committed is on the disk. Before a process ends: its
    /// successor has less to read again.
    pub async fn settled(&self) {
        self.0.syncer.settled().await;
    }

    /// Notes that somebody asked for exactly this revision: it is not given up
    /// for a newer one. Blocks.
    pub fn set_revision(&self, request: &RequestDigest, model: &CachedModel) -> Result<()> {
        let fields = [request.as_str(), model.summary.revision.as_str()];
        self.set_latest(
            &RequestDigest::of_fields("oci-model-csi revision", fields.into_iter()),
            model,
        )
    }

    /// Leases a model for a volume. Blocks.
    pub fn lease(&self, model: CachedModel, holder: LeaseHolder) -> Result<Lease> {
        let key = model.key.clone();
        let lease = self.0.leases.take(model, holder);
        self.0.count_leases();
        self.0.used(&key);
        self.0.forget_arrivals(Some(&key));
        lease
    }

    /// Remembers which mount shows what is leased at a target.
    pub fn shown(&self, target: &Path, mount: u64) {
        self.0.leases.shown(target, mount);
    }

    /// Whether a mount shows the tree of a model of this cache, whether that
    /// is one by now or not. Blocks.
    pub fn is_tree(&self, mounted: &Mounted) -> Result<bool> {
        let uses = mount::uses_of(self.0.layout.root())?;
        Ok(uses.iter().any(|one| one.id == mounted.id && layout::is_tree(&one.root)))
    }

    /// Ends the lease of a target path, if there is one. Blocks.
    pub fn release(&self, target: &Path) -> Result<()> {
        let model = self.lease_of(target).map(|lease| lease.model);
        let released = self.0.leases.release(target);
        self.0.count_leases();
        if let Some(model) = model {
            self.0.used(&model);
            self.0.let_go.notify_one();
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

    /// What a leased model is. Blocks.
    pub fn summary(&self, key: &ModelKey) -> Result<Option<Summary>> {
        self.0.models.read_summary(key)
    }

    /// The models that are being brought in, and how far they are.
    pub fn running(&self) -> Vec<(ModelKey, Arc<FillProgress>)> {
        self.0.model_flights.running()
    }
}

impl CacheInner {
    fn count_leases(&self) {
        let count = i64::try_from(self.leases.all().len()).unwrap_or(i64::MAX);
        self.metrics.leases.set(count);
    }

    /// Holds a model until the pod that waited for it has asked again, since
    /// another that waits for space would take its place: kubelet's pauses
    /// reach two minutes.
    fn await_pod(&self, model: &CachedModel) {
        self.forget_arrivals(None);
        self.arrivals().push((Instant::now(), model.clone()));
    }

    /// Lets go of what was leased, and of what no pod asked for any more.
    fn forget_arrivals(&self, leased: Option<&ModelKey>) {
        self.arrivals()
            .retain(|(at, model)| at.elapsed() < POD_RETURNS && Some(&model.key) != leased);
    }

    fn arrivals(&self) -> MutexGuard<'_, Vec<(Instant, CachedModel)>> {
        self.arrived.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a use for the choice of what is evicted. That it could not be
    /// noted spoils no publish.
    fn used(&self, key: &ModelKey) {
        if let Err(error) = disk_usage::touch(&self.layout, key) {
            tracing::warn!(%error, "a model's last use could not be noted");
        }
    }
}

#[cfg(test)]
mod cache_tests;
