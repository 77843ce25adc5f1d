//! Checks before a publish whether a model's weights can be loaded
//! (`checkSafetensors`). A loader's own error comes minutes later, and names no
//! remedy.
//!
//! Each model is checked once for all pods, by names and headers alone. Only files
//! that loaders open (`weights/loaders.rs`) make a model unloadable; problems of
//! other files are warnings. A file that cannot be opened is wrong for all
//! requests. A shard that an index names but the tree lacks is wrong only for
//! requests whose filters would have selected it, since filters may leave shards out
//! on purpose.

mod contents;
mod inspect;
mod loaders;
mod report;
mod safetensors;
mod tensors;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::blocking::blocking;
use crate::cache::CachedModel;
use crate::error::Result;
use crate::fair::FairSemaphore;
use crate::flight::Flights;
use crate::model::{ModelKey, ModelRequest, Tenant, Warning};
use crate::sync::lock;
use report::WeightsReport;
pub use safetensors::check_header;
use safetensors::{IndexContent, MAX_INDEX, shard_path, shards};

/// Most reports that are remembered. Beyond that, all are dropped.
const REMEMBERED: usize = 10_000;

/// Most bytes of remembered reports, since uploaders choose the names in them.
const REMEMBERED_BYTES: usize = 16 << 20;

/// Models checked at once, at most two of one tenant. Each takes up to about 20 MB of
/// memory (see [`safetensors`]).
const AT_ONCE: usize = 3;

/// The longest index of shards that is read, in bytes.
pub(crate) const LONGEST_INDEX: u64 = MAX_INDEX;

/// The shards that an index of this name and content names and a listing lacks, by full names.
///
/// # Errors
/// Why no loader accepts the index.
pub(crate) fn missing_shards(
    index: &str,
    content: &[u8],
    has: impl Fn(&str) -> bool,
) -> Result<Vec<String>, String> {
    match shards(content).map_err(|error| error.to_string())? {
        IndexContent::Flawed(why) => Err(why),
        IndexContent::Other => Ok(Vec::new()),
        IndexContent::Shards(named) => Ok(named
            .into_iter()
            .map(|shard| shard_path(index, &shard).unwrap_or(shard))
            .filter(|shard| !has(shard))
            .collect()),
    }
}

/// What to do with a model whose weights no loader can open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SafetensorsCheck {
    /// Refuse to publish it.
    Refuse,
    /// Publish it with a warning.
    Warn,
    /// Do not check.
    Ignore,
}

/// Checks the weights of models, and remembers what it found; cheap to clone.
#[derive(Clone)]
pub struct WeightsChecker(Arc<CheckerInner>);

struct CheckerInner {
    check: SafetensorsCheck,
    /// Also keyed by tenant, so that no tenant waits for the turn of another.
    flights: Flights<(ModelKey, Tenant), (), Option<Arc<WeightsReport>>>,
    known: Mutex<RememberedReports>,
    places: FairSemaphore,
}

#[derive(Debug, Default)]
struct RememberedReports {
    reports: HashMap<ModelKey, Arc<WeightsReport>>,
    bytes: usize,
}

impl WeightsChecker {
    /// Creates a checker whose work is tracked by `tasks` and ends at `shutdown`, or
    /// when no caller has waited for it during `grace`.
    pub fn new(
        check: SafetensorsCheck,
        grace: Duration,
        tasks: &TaskTracker,
        shutdown: &CancellationToken,
    ) -> Self {
        Self(Arc::new(CheckerInner {
            check,
            flights: Flights::new(grace, tasks.clone(), shutdown.clone()),
            known: Mutex::default(),
            places: FairSemaphore::new(AT_ONCE),
        }))
    }

    /// Refuses a model whose weights no loader can open, and returns warnings about
    /// lesser flaws. The work takes one of the places of `tenant`.
    ///
    /// Cancellation safe: the check continues for the next caller.
    ///
    /// # Errors
    /// `Precondition`, naming the files and what is wrong with them; `Invalid` when
    /// matching the request's filters takes too long.
    pub async fn check(
        &self,
        model: &CachedModel,
        request: &ModelRequest,
        tenant: &Tenant,
    ) -> Result<Vec<Warning>> {
        let check = self.0.check;
        if check == SafetensorsCheck::Ignore {
            return Ok(Vec::new());
        }
        let known = self.0.lock().reports.get(&model.key).cloned();
        let report = match known {
            Some(report) => Some(report),
            None => {
                let key = (model.key.clone(), tenant.clone());
                let inner = Arc::clone(&self.0);
                let inspected = model.clone();
                let mut waiter = self
                    .0
                    .flights
                    .join(key, (), |_| self.0.in_turn(tenant, move || inner.inspect(&inspected)));
                waiter.completed().await?
            }
        };
        let Some(report) = report.filter(|report| **report != WeightsReport::default()) else {
            return Ok(Vec::new());
        };
        let request = request.clone();
        self.0.in_turn(tenant, move || report.for_request(check, &request)).await
    }
}

impl CheckerInner {
    /// Runs work whose cost the model's author controls, when it is the tenant's turn.
    fn in_turn<T, W>(
        &self,
        tenant: &Tenant,
        work: W,
    ) -> impl Future<Output = Result<T>> + Send + use<T, W>
    where
        T: Send + 'static,
        W: FnOnce() -> Result<T> + Send + 'static,
    {
        let places = self.places.clone();
        let tenant = tenant.clone();
        async move {
            let place = places.enter(&tenant).await;
            blocking(move || {
                let _place = place;
                work()
            })
            .await
        }
    }

    /// Checks the files of one model; `None` when they vanished meanwhile. Blocks.
    fn inspect(&self, model: &CachedModel) -> Result<Option<Arc<WeightsReport>>> {
        let Some(manifest) = model.manifest()? else { return Ok(None) };
        let Some(report) = inspect::inspect(&manifest, &model.tree)? else { return Ok(None) };
        let report = Arc::new(report);
        if !report.broken.named.is_empty() {
            tracing::warn!(
                model = %model.summary.source,
                revision = model.summary.revision.as_str(),
                files = report.broken.named.len() + report.broken.more,
                "a model has safetensors files that no loader can open"
            );
        }
        self.lock().insert(model.key.clone(), Arc::clone(&report));
        Ok(Some(report))
    }

    fn lock(&self) -> MutexGuard<'_, RememberedReports> {
        lock(&self.known)
    }
}

impl RememberedReports {
    fn insert(&mut self, key: ModelKey, report: Arc<WeightsReport>) {
        let bytes = report.bytes();
        if self.reports.len() >= REMEMBERED || self.bytes + bytes > REMEMBERED_BYTES {
            *self = Self::default();
        }
        self.bytes += bytes;
        self.reports.insert(key, report);
    }
}

#[cfg(test)]
mod tests;
