//! The administrator's commands for the cache, and their answers. The same code
//! runs in the driver, behind its admin socket, and in the command line tool when
//! no driver runs.

mod answer;
mod command;
mod ensure;
mod list;
mod prefetch_list;
mod prefetch_queue;
mod select;

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use answer::{
    CacheListing, CacheState, Collection, CommandAnswer, DamageEntry, FileEntry, HolderEntry,
    Import, ModelEntry, Pins, PrefetchResult, Removal, RemovedModel, SetAsideEntry, VerifyReport,
};
pub use command::{CacheCommand, CollectionScope, CommandProgress, ModelSpec};
pub use prefetch_list::{PrefetchEntry, PrefetchModel, PrefetchState};
use prefetch_queue::PrefetchQueue;

use crate::blocking::blocking;
use crate::cache::{Cache, CollectOptions, EvictionRequest, VerifyProgress};
use crate::download::Engine;
use crate::error::{Error, Result};
use crate::resolve::Resolver;
use crate::weights::WeightsChecker;

/// How often progress is reported.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);

/// Receives the progress of a command, a few times a second.
pub type ProgressCallback = Arc<dyn Fn(CommandProgress) + Send + Sync>;

/// A callback that ignores the progress.
fn ignore_progress() -> ProgressCallback {
    Arc::new(|_| ())
}

/// Executes commands on the cache; cheap to clone.
#[derive(Clone)]
pub struct Manager(Arc<ManagerInner>);

struct ManagerInner {
    cache: Cache,
    remote: Option<Remote>,
    /// Whether this runs in a driver, which keeps using the cache after a purge.
    in_driver: bool,
    tasks: TaskTracker,
    shutdown: CancellationToken,
    prefetch_queue: PrefetchQueue,
}

/// Access to models in Object Storage.
#[derive(Clone)]
pub struct Remote {
    /// Downloads models.
    pub engine: Engine,
    /// Resolves requests to revisions.
    pub resolver: Resolver,
    /// Checks the weights of downloaded models.
    pub weights: WeightsChecker,
}

impl Manager {
    /// Creates the manager of a driver's cache. Work that outlives its caller is
    /// tracked by `tasks` and ends at `shutdown`.
    pub fn of_driver(
        cache: Cache,
        remote: Remote,
        tasks: &TaskTracker,
        shutdown: &CancellationToken,
    ) -> Self {
        Self::new(cache, Some(remote), true, tasks, shutdown)
    }

    /// Creates the manager of a cache that no driver uses, for one command. It
    /// downloads nothing without `remote`.
    pub fn of_directory(
        cache: Cache,
        remote: Option<Remote>,
        tasks: &TaskTracker,
        shutdown: &CancellationToken,
    ) -> Self {
        Self::new(cache, remote, false, tasks, shutdown)
    }

    fn new(
        cache: Cache,
        remote: Option<Remote>,
        in_driver: bool,
        tasks: &TaskTracker,
        shutdown: &CancellationToken,
    ) -> Self {
        let (tasks, shutdown) = (tasks.clone(), shutdown.clone());
        let prefetch_queue = PrefetchQueue::default();
        Self(Arc::new(ManagerInner { cache, remote, in_driver, tasks, shutdown, prefetch_queue }))
    }

    fn remote(&self) -> Result<&Remote> {
        self.0
            .remote
            .as_ref()
            .ok_or_else(|| Error::internal("this manager has no access to Object Storage"))
    }

    /// Executes a command; `on_progress` receives its progress a few times a second.
    ///
    /// Dropping the future stops reads at once, and downloads after a grace period.
    ///
    /// # Errors
    /// Those of the cache; `NotFound` if a key or URI names no model; `Invalid` if
    /// it names several where the command takes one.
    pub async fn execute(
        &self,
        command: CacheCommand,
        on_progress: &ProgressCallback,
    ) -> Result<CommandAnswer> {
        match command {
            CacheCommand::Ls => self.list().await.map(CommandAnswer::Ls),
            CacheCommand::Inspect { model } => {
                let found = self.inspect(model).await?;
                Ok(CommandAnswer::Inspect(found))
            }
            CacheCommand::Verify { models, rate } => self.verify(models, rate, on_progress).await,
            CacheCommand::Gc { dry_run, selection } => self.collect(dry_run, selection).await,
            CacheCommand::Pin { model } => self.pin(model, true).await,
            CacheCommand::Unpin { model } => self.pin(model, false).await,
            CacheCommand::Prefetch { models, detach } => {
                self.prefetch(models, detach, on_progress).await
            }
            CacheCommand::Import { dir, model, take } => {
                self.import(dir, model, take, on_progress).await
            }
            CacheCommand::Purge => {
                let cache = self.0.cache.clone();
                let in_driver = self.0.in_driver;
                let purged = blocking(move || cache.purge(in_driver)).await?;
                Ok(CommandAnswer::Purge(Removal { models: purged.models, bytes: purged.bytes }))
            }
        }
    }

    async fn verify(
        &self,
        models: Vec<String>,
        rate: Option<u64>,
        on_progress: &ProgressCallback,
    ) -> Result<CommandAnswer> {
        let keys = if models.is_empty() {
            None
        } else {
            let inventory = self.inventory().await?;
            let mut keys = Vec::new();
            for model in &models {
                let found = select::all(&inventory, model)?;
                keys.extend(found.into_iter().map(|report| report.key.clone()));
            }
            Some(keys)
        };
        let progress = Arc::new(VerifyProgress::default());
        let verifying = self.0.cache.verify(keys, rate, Arc::clone(&progress));
        let found = report_progress(on_progress, verifying, || {
            let (done, total) = (progress.done(), progress.total());
            CommandProgress::of_bytes("verifying", done, total)
        })
        .await?;
        Ok(CommandAnswer::Verify(found.into()))
    }

    async fn collect(&self, dry_run: bool, selection: CollectionScope) -> Result<CommandAnswer> {
        let request = match selection {
            CollectionScope::Limits => EvictionRequest::Limits,
            CollectionScope::All => EvictionRequest::All,
            CollectionScope::Free { bytes } => EvictionRequest::Free(bytes),
        };
        let collected = self.0.cache.collect(CollectOptions { dry_run, request }).await?;
        Ok(CommandAnswer::Gc(Collection::new(dry_run, collected)))
    }

    async fn pin(&self, model: String, pinned: bool) -> Result<CommandAnswer> {
        let cache = self.0.cache.clone();
        let keys = blocking(move || {
            let inventory = cache.report()?;
            let found = if pinned {
                // Pinning old revisions by accident could fill the disk.
                vec![select::one(&inventory, &model)?]
            } else {
                select::all(&inventory, &model)?
            };
            let keys: Vec<_> = found.into_iter().map(|report| report.key.clone()).collect();
            for key in &keys {
                cache.pin(key, pinned)?;
            }
            Ok(keys)
        })
        .await?;
        Ok(CommandAnswer::Pin(Pins { pinned, keys }))
    }
}

/// Runs `work` and reports its progress meanwhile.
async fn report_progress<T>(
    on_progress: &ProgressCallback,
    work: impl Future<Output = Result<T>>,
    now: impl Fn() -> CommandProgress,
) -> Result<T> {
    let ticking = async {
        let mut ticks = tokio::time::interval(PROGRESS_INTERVAL);
        loop {
            ticks.tick().await;
            on_progress(now());
        }
    };
    tokio::select! {
        done = work => done,
        () = ticking => Err(Error::internal("the progress timer stopped")),
    }
}
