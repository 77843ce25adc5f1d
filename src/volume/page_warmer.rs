//! Reads models ahead into the page cache after a hit (`cache.warmPageCache`).

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::blocking::blocking;
use crate::cache::{Cache, CachedModel, warm};
use crate::model::ModelKey;
use crate::sync::lock;

/// Models that wait for their turn. Further ones are not read ahead: their pods read by then.
const QUEUE: usize = 16;

/// When models are read ahead into the page cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum WarmPageCache {
    /// Never: pods read from the disk what is not in memory.
    #[default]
    Never,
    /// After a publish that found the model in the cache.
    OnHit,
}

/// Reads models ahead in the background, one after the other.
#[derive(Debug, Clone)]
pub struct PageWarmer(Option<WarmQueue>);

#[derive(Debug, Clone)]
struct WarmQueue {
    sender: mpsc::Sender<QueuedModel>,
    /// Those that wait or are being read: pods of one model start together.
    queued: Arc<Mutex<HashSet<ModelKey>>>,
}

/// A model to read. It may be evicted meanwhile.
#[derive(Debug)]
struct QueuedModel {
    key: ModelKey,
    source: String,
    tree: PathBuf,
}

impl PageWarmer {
    /// Starts the background task, if there is something to do, until `shutdown`.
    pub fn start(
        when: WarmPageCache,
        cache: &Cache,
        tasks: &TaskTracker,
        shutdown: &CancellationToken,
    ) -> Self {
        if when == WarmPageCache::Never {
            return Self(None);
        }
        let (sender, models) = mpsc::channel(QUEUE);
        let queue = WarmQueue { sender, queued: Arc::default() };
        tasks.spawn(run(models, cache.clone(), Arc::clone(&queue.queued), shutdown.clone()));
        Self(Some(queue))
    }

    /// Queues a model that was found in the cache. Never waits.
    pub(super) fn hit(&self, model: &CachedModel) {
        let Some(queue) = &self.0 else { return };
        if !lock(&queue.queued).insert(model.key.clone()) {
            return;
        }
        let source = model.summary.source.to_string();
        let queued = QueuedModel { key: model.key.clone(), source, tree: model.tree.clone() };
        if queue.sender.try_send(queued).is_err() {
            lock(&queue.queued).remove(&model.key);
            tracing::debug!(model = %model.summary.source, "too many hits to read all ahead");
        }
    }
}

async fn run(
    mut models: mpsc::Receiver<QueuedModel>,
    cache: Cache,
    queued: Arc<Mutex<HashSet<ModelKey>>>,
    shutdown: CancellationToken,
) {
    while let Some(Some(model)) = shutdown.run_until_cancelled(models.recv()).await {
        let started = Instant::now();
        let QueuedModel { key, source, tree } = model;
        let (stop, cache, leased) = (shutdown.clone(), cache.clone(), key.clone());
        // When its last pod has ended, others need the memory.
        let stop = move || stop.is_cancelled() || !cache.is_leased(&leased);
        let warmed = blocking(move || warm(&tree, stop)).await;
        lock(&queued).remove(&key);
        match warmed {
            Ok(warmed) => tracing::info!(
                model = source,
                bytes = warmed.bytes,
                complete = warmed.complete,
                elapsed = ?started.elapsed(),
                "read ahead into the page cache"
            ),
            Err(error) => tracing::warn!(model = source, %error, "reading ahead failed"),
        }
    }
}
