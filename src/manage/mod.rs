//! What the node's administrator does with the cache: the commands, and what
//! they answer. The same code runs in the driver, behind its admin socket, and
//! in the command itself where no driver runs.

mod answer;
mod command;
mod ensure;
mod list;
mod prefetch_queue;
mod select;

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use answer::{
    CacheListing, CacheState, Collection, CommandAnswer, DamageEntry, FileEntry, HolderEntry,
    Import, ModelEntry, Pins, PrefetchResult, Removal, RemovedModel, VerifyReport,
};
pub use command::{CacheCommand, CollectionScope, CommandProgress, ModelSpec};
use prefetch_queue::PrefetchQueue;
pub use prefetch_queue::{PrefetchEntry, PrefetchState};

use crate::blocking::blocking;
use crate::cache::{Cache, CollectOptions, EvictionRequest, VerifyProgress};
use crate::download::Engine;
use crate::error::{Error, Result};
use crate::resolve::Resolver;

/// Between two words on how far something is.
const TELL: Duration = Duration::from_millis(250);

/// Hears how far a command is, some times a second.
pub type Tell = Arc<dyn Fn(CommandProgress) + Send + Sync>;

/// Nobody listens.
fn silent() -> Tell {
    Arc::new(|_| ())
}

/// What the commands need; cheap to clone.
#[derive(Clone)]
pub struct Manager(Arc<ManagerInner>);

struct ManagerInner {
    cache: Cache,
    remote: Option<Remote>,
    /// Whether the cache is used on after it was purged.
    goes_on: bool,
    tasks: TaskTracker,
    shutdown: CancellationToken,
    warmth: PrefetchQueue,
}

/// What brings models in.
#[derive(Clone)]
pub struct Remote {
    /// Downloads.
    pub engine: Engine,
    /// Finds out what there is.
    pub resolver: Resolver,
}

impl Manager {
    /// A manager of the cache of a driver. What goes on without its caller is
    /// tracked by `tasks` and ends at `shutdown`.
    pub fn of_driver(
        cache: Cache,
        remote: Remote,
        tasks: &TaskTracker,
        shutdown: &CancellationToken,
    ) -> Self {
        Self::new(cache, Some(remote), true, tasks, shutdown)
    }

    /// A manager of a cache that no driver uses, for one command. Without
    /// `remote` it brings nothing in.
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
        goes_on: bool,
        tasks: &TaskTracker,
        shutdown: &CancellationToken,
    ) -> Self {
        let (tasks, shutdown) = (tasks.clone(), shutdown.clone());
        let warmth = PrefetchQueue::default();
        Self(Arc::new(ManagerInner { cache, remote, goes_on, tasks, shutdown, warmth }))
    }

    fn remote(&self) -> Result<&Remote> {
        self.0.remote.as_ref().ok_or_else(|| Error::internal("nothing brings models in here"))
    }

    /// Does what a command says; `tell` hears how far it is, some times a second.
    ///
    /// When the future is dropped, what is being read is read no further, and
    /// downloads end after a while.
    ///
    /// # Errors
    /// Those of the cache; `NotFound` and `Invalid` when a key or URI names no
    /// model, or several where one is meant.
    pub async fn execute(&self, command: CacheCommand, tell: &Tell) -> Result<CommandAnswer> {
        match command {
            CacheCommand::Ls => self.list().await.map(CommandAnswer::Ls),
            CacheCommand::Inspect { model } => {
                let found = self.inspect(model).await?;
                Ok(CommandAnswer::Inspect(found))
            }
            CacheCommand::Verify { models, rate } => self.verify(models, rate, tell).await,
            CacheCommand::Gc { dry_run, selection } => self.collect(dry_run, selection).await,
            CacheCommand::Pin { model } => self.pin(model, true).await,
            CacheCommand::Unpin { model } => self.pin(model, false).await,
            CacheCommand::Prefetch { models, detach } => self.prefetch(models, detach, tell).await,
            CacheCommand::Import { dir, model, take } => self.import(dir, model, take, tell).await,
            CacheCommand::Purge => {
                let (cache, goes_on) = (self.0.cache.clone(), self.0.goes_on);
                let purged = blocking(move || cache.purge(goes_on)).await?;
                Ok(CommandAnswer::Purge(Removal { models: purged.models, bytes: purged.bytes }))
            }
        }
    }

    async fn verify(
        &self,
        models: Vec<String>,
        rate: Option<u64>,
        tell: &Tell,
    ) -> Result<CommandAnswer> {
        let keys = match models.is_empty() {
            true => None,
            false => {
                let inventory = self.inventory().await?;
                let mut keys = Vec::new();
                for model in &models {
                    let found = select::all(&inventory, model)?;
                    keys.extend(found.into_iter().map(|report| report.key.clone()));
                }
                Some(keys)
            }
        };
        let progress = Arc::new(VerifyProgress::default());
        let verifying = self.0.cache.verify(keys, rate, Arc::clone(&progress));
        let found = telling(tell, verifying, || {
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
            let found = match pinned {
                // Pinning old revisions by accident would fill the disk.
                true => vec![select::one(&inventory, &model)?],
                false => select::all(&inventory, &model)?,
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

/// Does `work`, and tells meanwhile how far it is.
async fn telling<T>(
    tell: &Tell,
    work: impl Future<Output = Result<T>>,
    now: impl Fn() -> CommandProgress,
) -> Result<T> {
    let ticking = async {
        let mut ticks = tokio::time::interval(TELL);
        loop {
            ticks.tick().await;
            tell(now());
        }
    };
    tokio::select! {
        done = work => done,
        () = ticking => Err(Error::internal("a clock stopped")),
    }
}
