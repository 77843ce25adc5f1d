//! Adds models to the cache without a pod: `prefetch` and `import`.

use std::path::PathBuf;
use std::sync::Arc;

use futures_util::{StreamExt, stream};

use super::answer::{CommandAnswer, Import, PrefetchResult};
use super::command::{CommandProgress, ModelSpec};
use super::{Manager, ProgressCallback, Remote, ignore_progress, report_progress};
use crate::blocking::blocking;
use crate::cache::{
    CachedModel, FillProgress, ImportOptions, ImportProgress, ImportSnapshot, Phase, Priority,
};
use crate::error::{Error, Result};
use crate::model::{ModelRequest, Warning};
use crate::resolve::{Changes, Route, newest};

/// How many models of one command are downloaded concurrently.
const AT_ONCE: usize = 4;

/// How a model got into the cache.
pub(super) enum EnsureOutcome {
    /// It was cached already.
    Cached(CachedModel),
    Downloaded(CachedModel),
}

impl Manager {
    pub(super) async fn prefetch(
        &self,
        models: Vec<ModelSpec>,
        detach: bool,
        on_progress: &ProgressCallback,
    ) -> Result<CommandAnswer> {
        // Parse all of them before starting the first one.
        let mut requests = Vec::new();
        for spec in models {
            let request = spec.request()?;
            requests.push((spec.uri, request));
        }
        let results = requests.into_iter().map(|(uri, request)| {
            let manager = self.clone();
            let on_progress = Arc::clone(on_progress);
            async move {
                let result = if detach {
                    manager.start_prefetch(&uri, request).await
                } else {
                    let ensured = manager.ensure(&request, &on_progress).await;
                    ensured.map(|ensured| prefetched(&uri, ensured))
                };
                result.unwrap_or_else(|error| PrefetchResult::failed(&uri, &error))
            }
        });
        Ok(CommandAnswer::Prefetch(stream::iter(results).buffered(AT_ONCE).collect().await))
    }

    /// Starts a prefetch in the background. Resolves the model first, so that a
    /// wrong request fails at once.
    async fn start_prefetch(&self, uri: &str, request: ModelRequest) -> Result<PrefetchResult> {
        if !self.0.in_driver {
            return Err(Error::invalid(
                "no driver runs here to finish the prefetch: omit --detach",
            ));
        }
        let resolver = &self.remote()?.resolver;
        let route = resolver.route(&request, "").await?;
        let manifest = resolver.resolve_or_suggest(&request, &route).await?;
        let started = PrefetchResult {
            uri: uri.to_owned(),
            result: "started".to_owned(),
            key: Some(manifest.key()),
            revision: Some(manifest.revision.clone()),
            bytes: manifest.bytes(),
            kind: None,
            error: None,
            warnings: texts(manifest.warnings.clone()),
        };
        let manager = self.clone();
        self.0.tasks.spawn(async move {
            let shutdown = manager.0.shutdown.clone();
            let on_progress = ignore_progress();
            let ensured = tokio::select! {
                ensured = manager.ensure(&request, &on_progress) => ensured,
                () = shutdown.cancelled() => return,
            };
            match ensured {
                Ok((_, warnings)) => log_warnings(&request, &warnings),
                Err(error) => {
                    tracing::warn!(model = request.title(), %error, "prefetch failed");
                }
            }
        });
        Ok(started)
    }

    /// Ensures that the current revision is cached: finds or downloads it. Also
    /// returns the warnings about the model.
    ///
    /// # Errors
    /// `NoSpace` if it does not fit now: only pods wait for space.
    pub(super) async fn ensure(
        &self,
        request: &ModelRequest,
        on_progress: &ProgressCallback,
    ) -> Result<(EnsureOutcome, Vec<Warning>)> {
        let mut changes = Changes::default();
        let Remote { engine, resolver, .. } = self.remote()?;
        let route = resolver.route(request, "").await?;
        let (outcome, mut warnings) = loop {
            let manifest = resolver.resolve_or_suggest(request, &route).await?;
            if let Some(model) = self.0.cache.find(&manifest.key()).await? {
                break (EnsureOutcome::Cached(model), manifest.warnings.clone());
            }
            let client = route.client();
            let mut waiter = self.0.cache.fill(engine, &manifest, &Priority::Prefetch, client);
            let progress = waiter.shared_progress();
            let filling = async {
                tokio::select! {
                    // First: it names the holders, which the flight's own error must not.
                    biased;
                    short = progress.short_of_space() => Err(short.error_of_administrator()),
                    completed = waiter.completed() => completed,
                }
            };
            match report_progress(on_progress, filling, || fill_progress(&progress)).await {
                Ok(model) => break (EnsureOutcome::Downloaded(model), manifest.warnings.clone()),
                Err(error) => changes.retry(progress.title(), error)?,
            }
        };
        warnings.extend(self.record_latest(request, &route, outcome.model()).await?);
        Ok((outcome, warnings))
    }

    pub(super) async fn import(
        &self,
        dir: PathBuf,
        model: ModelSpec,
        take: bool,
        on_progress: &ProgressCallback,
    ) -> Result<CommandAnswer> {
        let request = model.request()?;
        let title = request.title();
        let mut changes = Changes::default();
        let Remote { engine, resolver, .. } = self.remote()?;
        let route = resolver.route(&request, "").await?;
        let (model, imported, mut warnings) = loop {
            let manifest = resolver.resolve_or_suggest(&request, &route).await?;
            let options = ImportOptions { dir: dir.clone(), move_files: take };
            let progress = ImportProgress::default();
            let cache = &self.0.cache;
            let client = route.client();
            let importing = cache.import(engine, client, &manifest, options, &progress);
            match report_progress(on_progress, importing, || import_progress(&title, &progress))
                .await
            {
                Ok((model, imported)) => break (model, imported, manifest.warnings.clone()),
                Err(error) => changes.retry(&title, error)?,
            }
        };
        warnings.extend(self.record_latest(&request, &route, &model).await?);
        let (key, revision) = (model.key.clone(), model.summary.revision.clone());
        Ok(CommandAnswer::Import(Import { key, revision, imported, warnings: texts(warnings) }))
    }

    /// Checks an added model and records it as the newest revision, as a publish does.
    async fn record_latest(
        &self,
        request: &ModelRequest,
        route: &Route,
        model: &CachedModel,
    ) -> Result<Vec<Warning>> {
        let warnings = self.remote()?.weights.check(model, request, route.tenant()).await?;
        let cache = self.0.cache.clone();
        let model = model.clone();
        let (request, route) = (request.clone(), route.clone());
        blocking(move || newest::record(&cache, &request, &route, &model)).await?;
        Ok(warnings)
    }
}

/// Logs the warnings about a model that was prefetched in the background.
pub(super) fn log_warnings(request: &ModelRequest, warnings: &[Warning]) {
    for Warning { kind, text } in warnings {
        let (model, reason) = (request.title(), kind.label());
        tracing::warn!(model, reason, warning = text, "prefetched with a warning");
    }
}

fn texts(warnings: Vec<Warning>) -> Vec<String> {
    warnings.into_iter().map(|warning| warning.text).collect()
}

impl EnsureOutcome {
    pub(super) fn model(&self) -> &CachedModel {
        let (Self::Cached(model) | Self::Downloaded(model)) = self;
        model
    }

    fn label(&self) -> &'static str {
        match self {
            Self::Cached(_) => "cached",
            Self::Downloaded(_) => "downloaded",
        }
    }
}

fn prefetched(uri: &str, (outcome, warnings): (EnsureOutcome, Vec<Warning>)) -> PrefetchResult {
    let model = outcome.model();
    PrefetchResult {
        uri: uri.to_owned(),
        result: outcome.label().to_owned(),
        key: Some(model.key.clone()),
        revision: Some(model.summary.revision.clone()),
        bytes: model.summary.bytes,
        kind: None,
        error: None,
        warnings: texts(warnings),
    }
}

fn fill_progress(progress: &FillProgress) -> CommandProgress {
    let title = progress.title();
    let now = progress.snapshot();
    let total = if now.phase == Phase::Downloading { now.total } else { 0 };
    CommandProgress { subject: title.to_owned(), text: now.text(title), done: now.done, total }
}

fn import_progress(title: &str, progress: &ImportProgress) -> CommandProgress {
    let now = progress.snapshot();
    let (done, total) = match now {
        ImportSnapshot::Scanning => (0, 0),
        ImportSnapshot::Comparing { done, total } => (done, total),
        ImportSnapshot::Filling(now) => (now.done, now.total),
    };
    CommandProgress { subject: title.to_owned(), text: now.text(title), done, total }
}
