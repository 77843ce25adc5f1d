//! Executes a command on a cache that no driver uses. This process takes its lock.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Common, is_cache};
use crate::blocking::blocking;
use crate::cache::Cache;
use crate::cli::cache_dir;
use crate::cli::storage::{self, StorageArgs};
use crate::config::Config;
use crate::download::Engine;
use crate::error::{Error, ErrorKind, Result};
use crate::manage::{CacheCommand, CommandAnswer, Manager, ProgressCallback, Remote};
use crate::metrics::Metrics;
use crate::resolve::{ClientPool, Resolver};
use crate::source::AuthMethod;
use crate::weights::WeightsChecker;

/// How long to wait until added models are durable.
const SYNC: Duration = Duration::from_secs(300);

/// How long background work may take to stop.
const GRACE: Duration = Duration::from_secs(5);

pub(super) async fn execute(
    command: CacheCommand,
    config: &Config,
    dir: &Path,
    common: &Common,
    storage: Option<&StorageArgs>,
    on_progress: &ProgressCallback,
) -> Result<CommandAnswer> {
    if !command.downloads() && !is_cache(dir) {
        return Err(not_a_cache(dir));
    }
    let metrics = Arc::new(Metrics::default());
    let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
    let options = cache_dir::options(config, Some(dir), &common.kubelet_dir, &metrics)?;
    let cache = Cache::open(options, Arc::clone(&metrics), &tasks, &shutdown)?;
    let recovering = cache.clone();
    let pods = common.kubelet_dir.join("pods");
    blocking(move || recovering.recover(&pods)).await?;
    let remote = match storage {
        Some(storage) => Some(connect(config, storage, &metrics, &tasks, &shutdown).await?),
        None => None,
    };
    let manager = Manager::of_directory(cache.clone(), remote.clone(), &tasks, &shutdown);
    let answer = manager.execute(command, on_progress).await;
    if let Ok(answer) = &answer {
        // Otherwise the next process must read these models before it serves them.
        for key in answer.added_models() {
            if !cache.wait_until_durable(key, SYNC).await {
                tracing::warn!(model = key.as_str(), "the model is not durable on the disk yet");
            }
        }
    }
    shutdown.cancel();
    tasks.close();
    let _ = tokio::time::timeout(GRACE, tasks.wait()).await;
    if let Some(Remote { engine, .. }) = remote {
        blocking(move || {
            engine.stop(GRACE);
            Ok(())
        })
        .await?;
    }
    answer
}

fn not_a_cache(dir: &Path) -> Error {
    Error::new(
        ErrorKind::NotFound,
        format!(
            "{} is not a cache, and no driver listens in it; name the cache with --cache-dir, or \
             run the command where the driver runs",
            dir.display()
        ),
    )
}

async fn connect(
    config: &Config,
    storage: &StorageArgs,
    metrics: &Arc<Metrics>,
    tasks: &TaskTracker,
    shutdown: &CancellationToken,
) -> Result<Remote> {
    let object_storage = Some(&config.object_storage);
    let settings = storage.settings(object_storage, AuthMethod::InstancePrincipal, metrics)?;
    let settings = settings.coming_from(&config.download);
    let connector = storage::connect(settings, metrics).await?;
    let pool = ClientPool::new(connector, config.object_storage.buckets.clone());
    let resolver = Resolver::new(pool, (&config.limits).into(), tasks, shutdown);
    let engine = Engine::new(config.download.engine(true), Arc::clone(metrics))?;
    let grace = config.download.abandon_after;
    let weights = WeightsChecker::new(config.check_safetensors, grace, tasks, shutdown);
    Ok(Remote { engine, resolver, weights })
}
