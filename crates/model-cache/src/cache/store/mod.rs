//! What is on the disk: layout, blobs, models, leases, damage, trash. Knows neither
//! [`super::space`] nor [`super::fill`].

pub(super) mod blobs;
mod check;
mod content;
pub(super) mod disk_space;
pub(super) mod disk_usage;
mod durability;
pub(super) mod files;
mod foreign;
mod holds;
mod in_force;
mod in_use;
pub(super) mod layout;
pub(super) mod leases;
pub(super) mod lock_order;
pub(super) mod models;
pub(super) mod open;
mod pins;
pub(super) mod probe;
pub(super) mod purge;
pub(super) mod quarantine;
pub(super) mod recover;
pub(super) mod requests;
mod reread;
pub(super) mod selinux;
pub(super) mod set_aside;
mod sweep;
pub(super) mod sys;
pub(super) mod trash;
pub(super) mod verify;

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio_util::sync::CancellationToken;

use self::blobs::Blobs;
use self::disk_usage::DiskUsage;
use self::durability::Syncer;
use self::holds::Holds;
use self::layout::Layout;
use self::leases::Leases;
use self::models::Models;
use self::open::Ownership;
use self::quarantine::DamageListener;
use self::requests::Requests;
use crate::error::Result;
use crate::metrics::Metrics;
use crate::mount;
use crate::sync::OrderedMutex;

/// What is on the disk, and what in it is in use.
pub(super) struct CacheStore {
    layout: Layout,
    blobs: Arc<Blobs>,
    models: Arc<Models>,
    requests: Requests,
    leases: Leases,
    holds: Holds,
    syncer: Syncer,
    damage_listener: OnceLock<DamageListener>,
    emptying: OrderedMutex<()>,
    trash_filled: Notify,
    /// Notified when models that wait for space should try again.
    space_freed: Notify,
    metrics: Arc<Metrics>,
    shutdown: CancellationToken,
    _ownership: Ownership,
}

impl CacheStore {
    /// Takes ownership of the directory. Fast, whatever its size. Blocks.
    pub(super) fn open(
        dir: PathBuf,
        require_mount: bool,
        metrics: Arc<Metrics>,
        shutdown: CancellationToken,
    ) -> Result<Self> {
        let layout = Layout::new(dir);
        let taken = open::take(&layout, require_mount);
        let ownership = taken.map_err(|error| mount::on_disk(error, layout.root()))?;
        let blobs = Arc::new(Blobs::new(layout.clone()));
        let holds = Holds::default();
        let models = Arc::new(Models::new(layout.clone(), holds.clone()));
        let (syncer, work) = Syncer::new(&layout, Arc::clone(&blobs), Arc::clone(&models))?;
        // Not tracked: it ends when the cache is dropped.
        tokio::spawn(work);
        Ok(Self {
            leases: Leases::new(layout.clone(), leases::boot_id()?),
            requests: Requests::new(layout.clone()),
            layout,
            blobs,
            models,
            holds,
            syncer,
            damage_listener: OnceLock::new(),
            emptying: OrderedMutex::new(lock_order::DELETION, ()),
            trash_filled: Notify::new(),
            space_freed: Notify::new(),
            metrics,
            shutdown,
            _ownership: ownership,
        })
    }

    /// The paths in the cache.
    pub(super) fn layout(&self) -> &Layout {
        &self.layout
    }

    pub(super) fn blobs(&self) -> &Blobs {
        &self.blobs
    }

    pub(super) fn models(&self) -> &Models {
        &self.models
    }

    pub(super) fn requests(&self) -> &Requests {
        &self.requests
    }

    pub(super) fn holds(&self) -> &Holds {
        &self.holds
    }

    /// Scans the whole cache; see [`DiskUsage::read`]. Blocks.
    pub(super) fn usage(&self) -> Result<DiskUsage> {
        DiskUsage::read(&self.layout)
    }

    /// Wakes the task that deletes the trash.
    pub(super) fn wake_deletion(&self) {
        self.trash_filled.notify_one();
    }

    /// Waits for [`CacheStore::wake_deletion`]. Cancellation safe.
    pub(super) fn deletion_woken(&self) -> Notified<'_> {
        self.trash_filled.notified()
    }

    /// Wakes the models that wait for space.
    pub(super) fn announce_space(&self) {
        self.space_freed.notify_waiters();
    }

    /// Waits for [`CacheStore::announce_space`]. Cancellation safe.
    pub(super) fn space_announced(&self) -> Notified<'_> {
        self.space_freed.notified()
    }
}
