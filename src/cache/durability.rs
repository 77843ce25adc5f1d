//! Makes what was committed outlive the machine, after the publish and in the
//! background: one sync of the file system, then the records that say so.
//!
//! A publish never waits for the disk. Whatever is not recorded when the
//! machine dies is checked before it is served again.

use std::fs::File;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use super::blobs::Blobs;
use super::layout::Layout;
use super::models::Models;
use crate::abort_point;
use crate::blocking::blocking;
use crate::error::{Error, Result};
use crate::model::{BlobId, ModelKey};

/// What is not yet known to be on the disk.
#[derive(Debug)]
pub(super) enum Unsynced {
    /// A committed model, and those of its blobs that are not durable either.
    Model { model: ModelKey, blobs: Vec<BlobId> },
    /// An index, whose loss hurts and harms nobody: nothing is recorded of it.
    Index,
    /// Somebody who waits for what came before; dropped when that is synced.
    Waiter(#[allow(dead_code, reason = "told by its end")] oneshot::Sender<()>),
}

/// Hands committed models to the task that syncs them.
#[derive(Debug, Clone)]
pub(super) struct Syncer(mpsc::UnboundedSender<Unsynced>);

impl Syncer {
    /// The handle, and the work: to be spawned; it ends when all handles are dropped
    /// and everything is synced.
    pub(super) fn new(
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
            // All that piled up during one sync shares the next.
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
                        "the cache could not be made durable; what was written is checked again \
                         before it is served"
                    );
                }
            }
        };
        Ok((Self(sender), work))
    }

    pub(super) fn enqueue(&self, unsynced: Unsynced) {
        // Without a receiver the process is ending; then it stays a suspect.
        let _ = self.0.send(unsynced);
    }

    /// Waits until all that was enqueued is on the disk, or known not to be.
    pub(super) async fn settled(&self) {
        let (waiter, told) = oneshot::channel();
        self.enqueue(Unsynced::Waiter(waiter));
        let _ = told.await;
    }
}

fn models_of(batch: &[Unsynced]) -> impl Iterator<Item = (&ModelKey, &[BlobId])> {
    batch.iter().filter_map(|unsynced| match unsynced {
        Unsynced::Model { model, blobs } => Some((model, &blobs[..])),
        Unsynced::Index | Unsynced::Waiter(_) => None,
    })
}

/// # Errors
/// When the disk did not take everything: then nobody knows what it has.
fn sync(directory: &File, blobs: &Blobs, models: &Models, batch: &[Unsynced]) -> Result<()> {
    let started = std::time::Instant::now();
    let standing: Vec<_> = models_of(batch)
        .map(|(model, ids)| (model, models.standing(model), ids, blobs.before_sync(ids)))
        .collect();
    nix::unistd::syncfs(directory)
        .map_err(|e| Error::io("syncing the cache's file system", &e.into()))?;
    abort_point::reach("durability-1");
    // Only now, and in this order: a record that reaches the disk speaks of
    // bytes that have reached it before.
    for (model, tree, ids, synced) in standing {
        let note = || {
            blobs.made_durable(&synced)?;
            abort_point::reach("durability-2");
            match tree {
                Some(tree) if ids.iter().all(|id| blobs.is_durable(id)) => {
                    models.made_durable(model, &tree)
                }
                _ => Ok(()),
            }
        };
        if let Err(error) = note() {
            // What is not noted is only read again after a start.
            tracing::warn!(model = model.as_str(), %error, "a model could not be noted as durable");
        }
    }
    tracing::debug!(batch = batch.len(), elapsed = ?started.elapsed(), "made durable");
    Ok(())
}
