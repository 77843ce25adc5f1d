//! Makes committed models survive a power loss, after the publish and in the
//! background: syncs the file system, then records what is durable.
//!
//! A publish never waits for the disk. A model that is not recorded as durable when
//! the machine dies is checked before it is served again.

use std::fs::File;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use super::CacheStore;
use super::blobs::Blobs;
use super::layout::Layout;
use super::models::{CachedModel, Models};
use crate::abort_point;
use crate::blocking::blocking;
use crate::error::{Error, Result};
use crate::model::{BlobId, Manifest, ModelKey, RequestDigest};

/// Work for the next sync.
#[derive(Debug)]
pub(in crate::cache) enum Unsynced {
    /// A committed model, and its blobs that are not durable yet.
    Model { model: ModelKey, blobs: Vec<BlobId> },
    /// An index entry. Losing it does no harm, so its durability is not recorded.
    Index,
    /// A caller that waits for everything before it; dropped after the sync.
    Waiter(#[allow(dead_code, reason = "dropping it wakes the caller")] oneshot::Sender<()>),
}

/// Sends committed models to the task that syncs them.
#[derive(Debug, Clone)]
pub(in crate::cache) struct Syncer(mpsc::UnboundedSender<Unsynced>);

impl Syncer {
    /// Returns the handle, and the task to spawn. The task ends when all handles are
    /// dropped and everything is synced.
    pub(in crate::cache) fn new(
        layout: &Layout,
        blobs: Arc<Blobs>,
        models: Arc<Models>,
    ) -> Result<(Self, impl Future<Output = ()> + Send + use<>)> {
        let (sender, mut inbox) = mpsc::unbounded_channel();
        // Opened before the first byte is written: the kernel reports a failed
        // write-back to descriptors that were open by then, and only once.
        let directory = File::open(layout.root())
            .map(Arc::new)
            .map_err(|e| Error::io(format!("opening {}", layout.root().display()), &e))?;
        let work = async move {
            let mut batch = Vec::new();
            // Everything that arrives during one sync shares the next.
            while inbox.recv_many(&mut batch, usize::MAX).await > 0 {
                let (directory, blobs, models) =
                    (Arc::clone(&directory), Arc::clone(&blobs), Arc::clone(&models));
                let batch = std::mem::take(&mut batch);
                let synced = blocking(move || {
                    sync(&directory, &blobs, &models, &batch).inspect_err(|_| {
                        for (model, ids) in models_of(&batch) {
                            blobs.distrust(ids);
                            models.distrust(model);
                        }
                    })
                });
                if let Err(error) = synced.await {
                    tracing::error!(
                        %error,
                        "syncing the cache failed; what was written since the last sync is \
                         checked again before it is served"
                    );
                }
            }
        };
        Ok((Self(sender), work))
    }

    pub(in crate::cache) fn enqueue(&self, unsynced: Unsynced) {
        // Without a receiver the process is ending; the model stays a suspect.
        let _ = self.0.send(unsynced);
    }

    /// Waits until everything enqueued so far was synced, or failed to be.
    pub(in crate::cache) async fn wait_until_synced(&self) {
        let (waiter, ended) = oneshot::channel();
        self.enqueue(Unsynced::Waiter(waiter));
        let _ = ended.await;
    }
}

impl CacheStore {
    /// Builds a model from its committed blobs, and queues it for the next sync. Blocks.
    pub(in crate::cache) fn commit_model(&self, manifest: &Arc<Manifest>) -> Result<CachedModel> {
        let model = self.models.commit(manifest)?;
        self.make_durable(&model, manifest);
        // A commit may have moved a torn model and torn blobs to the trash.
        self.wake_deletion();
        Ok(model)
    }

    /// Queues a complete model for the next sync, unless it is durable already.
    pub(in crate::cache) fn make_durable(&self, model: &CachedModel, manifest: &Manifest) {
        if self.models.is_durable(&model.key) {
            return;
        }
        let blobs = manifest.files.iter().map(|file| &file.blob);
        let blobs = blobs.filter(|id| !self.blobs.is_durable(id)).cloned().collect();
        self.syncer.enqueue(Unsynced::Model { model: model.key.clone(), blobs });
    }

    /// Records a model as the newest revision of a request; returns whether that is new.
    /// `exact` says that the request named the revision. Blocks.
    pub(in crate::cache) fn record_latest(
        &self,
        request: &RequestDigest,
        model: &CachedModel,
        exact: bool,
    ) -> Result<bool> {
        let changed = self.requests.record_latest(request, model, exact)?;
        if changed {
            self.syncer.enqueue(Unsynced::Index);
        }
        Ok(changed)
    }

    /// Waits until everything committed so far was synced, or failed to be.
    pub(in crate::cache) async fn wait_until_synced(&self) {
        self.syncer.wait_until_synced().await;
    }
}

fn models_of(batch: &[Unsynced]) -> impl Iterator<Item = (&ModelKey, &[BlobId])> {
    batch.iter().filter_map(|unsynced| match unsynced {
        Unsynced::Model { model, blobs } => Some((model, &blobs[..])),
        Unsynced::Index | Unsynced::Waiter(_) => None,
    })
}

/// Syncs the file system, then records a batch as durable.
///
/// # Errors
/// When the sync fails. What reached the disk is then unknown.
fn sync(directory: &File, blobs: &Blobs, models: &Models, batch: &[Unsynced]) -> Result<()> {
    let started = std::time::Instant::now();
    let before: Vec<_> = models_of(batch)
        .map(|(model, ids)| (model, models.open_tree(model), ids, blobs.before_sync(ids)))
        .collect();
    nix::unistd::syncfs(directory)
        .map_err(|e| Error::io("syncing the cache's file system", &e.into()))?;
    abort_point::reach("durability-1");
    // Only now, and in this order: a record on the disk must describe bytes that
    // reached the disk before it.
    for (model, tree, ids, synced) in before {
        let record = || {
            blobs.mark_durable(&synced)?;
            abort_point::reach("durability-2");
            match tree {
                Some(tree) if ids.iter().all(|id| blobs.is_durable(id)) => {
                    models.mark_durable(model, &tree)
                }
                _ => Ok(()),
            }
        };
        if let Err(error) = record() {
            // Without the record, the model is only read again after a restart.
            tracing::warn!(model = model.as_str(), %error, "recording a model as durable failed");
        }
    }
    tracing::debug!(batch = batch.len(), elapsed = ?started.elapsed(), "made durable");
    Ok(())
}
