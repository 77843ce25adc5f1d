//! Finds damaged files on the disk before a pod reads them, and repairs them.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Volumes;
use crate::blocking::blocking;
use crate::cache::{Damage, Priority, VerifyProgress};
use crate::error::{Error, ErrorKind, Result};
use crate::model::{Manifest, ModelRequest};
use crate::resolve::Route;

/// The shortest pause between two scrubs.
const PAUSE: Duration = Duration::from_secs(30);

impl Volumes {
    /// Reads the whole cache once per `every`, at most `rate` bytes a second, and
    /// downloads damaged files again, until `shutdown`.
    pub async fn scrub(&self, every: Duration, rate: u64, shutdown: &CancellationToken) {
        loop {
            let cache = self.parts().cache.clone();
            let due = blocking(move || cache.scrub_due(every)).await.unwrap_or(every);
            tokio::select! {
                // Prevents a busy loop if scrubbing fails at once.
                () = tokio::time::sleep(due.max(PAUSE)) => {}
                () = shutdown.cancelled() => return,
            }
            match self.scrub_once(rate).await {
                Err(error) if error.kind() == ErrorKind::InProgress => return,
                Err(error) => tracing::warn!(%error, "scrubbing the cache failed"),
                Ok(()) => {}
            }
        }
    }

    async fn scrub_once(&self, rate: u64) -> Result<()> {
        let progress = Arc::new(VerifyProgress::default());
        let found = self.parts().cache.verify(None, Some(rate), progress).await?;
        tracing::info!(
            models = found.models,
            blobs = found.blobs,
            bytes = found.bytes,
            damaged = found.damaged.len(),
            "scrubbed the cache"
        );
        let cache = self.parts().cache.clone();
        blocking(move || cache.record_scrub()).await?;
        for damage in &found.damaged {
            self.repair(damage).await;
        }
        Ok(())
    }

    /// Downloads damaged content again, if Object Storage still has it.
    pub async fn repair(&self, damage: &Damage) {
        for manifest in &damage.models {
            let title = manifest.source.to_string();
            let route = match self.route_to(manifest).await {
                Ok(route) => route,
                Err(error) => {
                    tracing::warn!(model = title, %error, "repairing a model failed");
                    continue;
                }
            };
            let engine = &self.parts().engine;
            let client = route.client();
            let mut waiter = self.parts().cache.fill(engine, manifest, &Priority::Prefetch, client);
            let progress = waiter.shared_progress();
            let completed = tokio::select! {
                completed = waiter.completed() => completed,
                // Only pods wait for space.
                short = progress.short_of_space() => Err(short.error()),
            };
            match completed {
                Ok(_) => tracing::info!(model = title, "repaired a model"),
                Err(error) => tracing::warn!(model = title, %error, "repairing a model failed"),
            }
        }
    }

    /// The route by which a cached model was downloaded.
    async fn route_to(&self, manifest: &Manifest) -> Result<Route> {
        let source = manifest.source.clone();
        let namespace = Some(source.namespace);
        let mut request = ModelRequest::of(namespace, source.bucket, source.prefix);
        request.auth = Route::auth_of_scope(&manifest.scope)?;
        // Only the administrator can configure an endpoint; a request has none.
        let by_region = !source.location.contains("://");
        request.region = if by_region { Some(source.location.parse()?) } else { None };
        let route = self.parts().selector.resolver().route(&request, "").await?;
        if route.location() == source.location {
            return Ok(route);
        }
        let text = format!("its bucket is configured at {} now", route.location());
        Err(Error::new(ErrorKind::Precondition, text))
    }
}
