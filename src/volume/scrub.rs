//! Finding what rots on the disk before a pod reads it, and mending it.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Volumes;
use crate::cache::{Asker, Damage, VerifyProgress};
use crate::error::{ErrorKind, Result};

impl Volumes {
    /// Reads the whole cache again once in `every`, at most `rate` bytes a
    /// second, and brings what is damaged in again, until `shutdown`.
    pub async fn scrub(&self, every: Duration, rate: u64, shutdown: &CancellationToken) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(every) => {}
                () = shutdown.cancelled() => return,
            }
            match self.scrub_once(rate).await {
                Err(error) if error.kind() == ErrorKind::InProgress => return,
                Err(error) => tracing::warn!(%error, "reading the cache again failed"),
                Ok(()) => {}
            }
        }
    }

    async fn scrub_once(&self, rate: u64) -> Result<()> {
        let progress = Arc::new(VerifyProgress::default());
        let found = self.cache().verify(None, Some(rate), progress).await?;
        tracing::info!(
            models = found.models,
            blobs = found.blobs,
            bytes = found.bytes,
            damaged = found.damaged.len(),
            "read the cache again"
        );
        for damage in &found.damaged {
            self.repair(damage).await;
        }
        Ok(())
    }

    /// Downloads what was damaged again, if Object Storage still has it.
    pub async fn repair(&self, damage: &Damage) {
        for manifest in &damage.models {
            let title = manifest.source.to_string();
            let mut ticket = self.cache().fill(self.engine(), manifest, &title, Asker::Prefetch);
            match ticket.landed().await {
                Ok(_) => tracing::info!(model = title, "repaired"),
                Err(error) => tracing::warn!(model = title, %error, "could not repair a model"),
            }
        }
    }
}
