//! How models enter the cache: flights, slots, progress, import. Knows [`super::space`] and
//! [`super::store`].

pub(super) mod import;
mod model_flight;
pub(super) mod progress;
pub(super) mod slots;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

use self::progress::{BlobProgress, FillProgress};
use self::slots::{Priority, Slots};
use super::space::{CacheSpace, Downloads};
use super::store::CacheStore;
use super::store::models::CachedModel;
use crate::blocking::blocking;
use crate::download::Engine;
use crate::error::Result;
use crate::flight::{Flights, Waiter};
use crate::metrics::Metrics;
use crate::model::{BlobId, Manifest, ModelKey};
use crate::source::ObjectSource;

/// The flights of the cache, each one per model or blob.
pub(super) struct FillFlights {
    models: Flights<ModelKey, FillProgress, CachedModel>,
    blobs: Flights<BlobId, BlobProgress, ()>,
    /// They check models that are new to this process.
    checks: Flights<ModelKey, (), Option<CachedModel>>,
}

impl FillFlights {
    /// Creates them. The flight of a model continues for `grace` without a caller.
    pub(super) fn new(grace: Duration, tasks: &TaskTracker, shutdown: &CancellationToken) -> Self {
        Self {
            models: Flights::new(grace, tasks.clone(), shutdown.clone()),
            // A blob's flight lives as long as a model's flight waits for it.
            blobs: Flights::new(Duration::ZERO, tasks.clone(), shutdown.clone()),
            checks: Flights::new(grace, tasks.clone(), shutdown.clone()),
        }
    }
}

impl Downloads for FillFlights {
    fn models(&self) -> usize {
        self.models.running().len()
    }

    fn blobs(&self) -> HashSet<BlobId> {
        let mut blobs: HashSet<_> = self.blobs.running().into_iter().map(|(id, _)| id).collect();
        for (_, progress) in self.models.running() {
            let manifest = progress.manifest();
            let files = manifest.iter().flat_map(|manifest| &manifest.files);
            blobs.extend(files.map(|file| file.blob.clone()));
        }
        blobs
    }
}

/// What adds models to the cache, or checks those that it finds there.
pub(super) struct CacheFill {
    store: Arc<CacheStore>,
    space: Arc<CacheSpace>,
    slots: Slots,
    flights: Arc<FillFlights>,
    metrics: Arc<Metrics>,
}

impl CacheFill {
    pub(super) fn new(
        space: Arc<CacheSpace>,
        store: Arc<CacheStore>,
        flights: Arc<FillFlights>,
        max_models: usize,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { store, space, slots: Slots::new(max_models.max(1)), flights, metrics }
    }

    /// Joins the flight that adds this model to the cache, or starts it; see
    /// [`Cache::fill`](super::Cache::fill).
    pub(super) fn fill(
        self: &Arc<Self>,
        engine: &Engine,
        manifest: &Arc<Manifest>,
        priority: &Priority,
        client: &Arc<dyn ObjectSource>,
    ) -> Waiter<FillProgress, CachedModel> {
        let (fill, engine, manifest) = (Arc::clone(self), engine.clone(), Arc::clone(manifest));
        let started = FillProgress::new(Some(Arc::clone(&manifest)), priority.share());
        started.share().add_reader(client);
        let waiter = self.flights.models.join(manifest.key(), started, move |progress| {
            // A root span, since the flight has many callers and outlives them.
            let (flight, model) = (progress.id(), progress.title());
            let span = tracing::error_span!(parent: None, "download", flight, model);
            progress.runs_in(&span);
            model_flight::fill(fill, engine, manifest, progress).instrument(span)
        });
        waiter.progress().share().add_reader(client);
        priority.apply_to(waiter.progress().share());
        waiter
    }

    /// Returns the model of this key, if it is complete. A model that is new to this
    /// process may be read from the disk first.
    pub(super) async fn find(&self, key: &ModelKey) -> Result<Option<CachedModel>> {
        let (store, wanted) = (Arc::clone(&self.store), key.clone());
        let known = blocking(move || Ok(store.models().known(&wanted))).await?;
        if known.is_some() {
            return Ok(known);
        }
        // Reading a suspect may take minutes: once for all callers, and even if they
        // leave.
        let (store, wanted) = (Arc::clone(&self.store), key.clone());
        let mut waiter = self.flights.checks.join(key.clone(), (), move |_| {
            blocking(move || {
                let found = store.check_model(&wanted)?;
                if let Some(model) = &found
                    && !store.models().is_durable(&wanted)
                    && let Some(manifest) = store.models().read_manifest(&wanted)?
                {
                    store.make_durable(model, &manifest);
                }
                Ok(found)
            })
        });
        waiter.completed().await
    }

    /// Returns the models that are being downloaded, with their progress.
    pub(super) fn running(&self) -> Vec<(ModelKey, Arc<FillProgress>)> {
        self.flights.models.running()
    }
}
