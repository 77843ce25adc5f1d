//! Bringing models in without a pod: `prefetch` and `import`.

use std::path::PathBuf;
use std::sync::Arc;

use futures_util::{StreamExt, stream};

use super::answer::{CommandAnswer, Import, PrefetchResult};
use super::command::{CommandProgress, ModelSpec};
use super::{Manager, Remote, Tell, silent, telling};
use crate::blocking::blocking;
use crate::cache::{
    CachedModel, FillProgress, ImportOptions, ImportProgress, ImportSnapshot, Phase, Priority,
};
use crate::error::{Error, ErrorKind, Result};
use crate::model::{ModelRequest, Warning};
use crate::resolve::{Route, newest};

/// Times that a model may change under a download before that is the answer.
const RESOLVES: u32 = 3;

/// Models of one command that are brought in side by side.
const AT_ONCE: usize = 4;

/// How a model came.
pub(super) enum EnsureOutcome {
    /// It was there.
    Cached(CachedModel),
    Downloaded(CachedModel),
}

/// How often a model was found to have changed.
#[derive(Default)]
struct Changes {
    seen: u32,
}

impl Changes {
    /// Whether to resolve again.
    ///
    /// # Errors
    /// `error` itself unless it says that the model changed; `Precondition`
    /// when that has been so too often.
    fn again(&mut self, title: &str, error: Error) -> Result<()> {
        if error.kind() != ErrorKind::Changed {
            return Err(error);
        }
        self.seen += 1;
        if self.seen < RESOLVES {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Precondition,
            format!(
                "{title} kept changing while it was downloaded, {RESOLVES} times in a row \
                 ({error}); wait until its upload is finished"
            ),
        ))
    }
}

impl Manager {
    pub(super) async fn prefetch(
        &self,
        models: Vec<ModelSpec>,
        detach: bool,
        tell: &Tell,
    ) -> Result<CommandAnswer> {
        // All are understood before the first one is begun.
        let mut requests = Vec::new();
        for wanted in models {
            let request = wanted.request()?;
            requests.push((wanted.uri, request));
        }
        let brought = requests.into_iter().map(|(uri, request)| {
            let (manager, tell) = (self.clone(), Arc::clone(tell));
            async move {
                let brought = match detach {
                    true => manager.start(&uri, request).await,
                    false => manager.bring(&request, &tell).await.map(|came| brought(&uri, came)),
                };
                brought.unwrap_or_else(|error| PrefetchResult::failed(&uri, &error))
            }
        });
        Ok(CommandAnswer::Prefetch(stream::iter(brought).buffered(AT_ONCE).collect().await))
    }

    /// Begins a prefetch that goes on by itself. What can be refused at once
    /// is: the model is resolved first.
    async fn start(&self, uri: &str, request: ModelRequest) -> Result<PrefetchResult> {
        if !self.0.goes_on {
            return Err(Error::invalid(
                "no driver runs here that could go on with it: leave --detach out",
            ));
        }
        let resolver = &self.remote()?.resolver;
        let route = resolver.route(&request, "").await?;
        let manifest = resolver.resolve(&request, &route).await?;
        let brought = PrefetchResult {
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
            let (shutdown, nobody) = (manager.0.shutdown.clone(), silent());
            let brought = tokio::select! {
                brought = manager.bring(&request, &nobody) => brought,
                () = shutdown.cancelled() => return,
            };
            match brought {
                Ok((_, warnings)) => log_warnings(&request, &warnings),
                Err(error) => {
                    tracing::warn!(model = request.title(), %error, "a prefetch failed");
                }
            }
        });
        Ok(brought)
    }

    /// Brings the current revision in, or finds it there; with what should be
    /// looked at in it.
    ///
    /// # Errors
    /// `NoSpace` when it does not fit now: only pods wait for space.
    pub(super) async fn bring(
        &self,
        request: &ModelRequest,
        tell: &Tell,
    ) -> Result<(EnsureOutcome, Vec<Warning>)> {
        let title = request.title();
        let mut changes = Changes::default();
        let Remote { engine, resolver } = self.remote()?;
        let route = resolver.route(request, "").await?;
        let (came, mut warnings) = loop {
            let manifest = resolver.resolve(request, &route).await?;
            if let Some(model) = self.0.cache.find(&manifest.key()).await? {
                break (EnsureOutcome::Cached(model), manifest.warnings.clone());
            }
            let client = route.client();
            let mut ticket =
                self.0.cache.fill(engine, &manifest, &title, &Priority::Prefetch, client);
            let progress = ticket.shared_progress();
            let landing = async {
                tokio::select! {
                    completed = ticket.completed() => completed,
                    short = progress.short_of_space() => Err(short.error(&title)),
                }
            };
            match telling(tell, landing, || of_fill(&title, &progress)).await {
                Ok(model) => break (EnsureOutcome::Downloaded(model), manifest.warnings.clone()),
                Err(error) => changes.again(&title, error)?,
            }
        };
        warnings.extend(self.settle(request, &route, came.model()).await?);
        Ok((came, warnings))
    }

    pub(super) async fn import(
        &self,
        dir: PathBuf,
        model: ModelSpec,
        take: bool,
        tell: &Tell,
    ) -> Result<CommandAnswer> {
        let request = model.request()?;
        let title = request.title();
        let mut changes = Changes::default();
        let Remote { engine, resolver } = self.remote()?;
        let route = resolver.route(&request, "").await?;
        let (model, imported, mut warnings) = loop {
            let manifest = resolver.resolve(&request, &route).await?;
            let options = ImportOptions { dir: dir.clone(), move_files: take };
            let progress = ImportProgress::default();
            let (cache, client) = (&self.0.cache, route.client());
            let importing = cache.import(engine, client, &manifest, &title, options, &progress);
            match telling(tell, importing, || of_import(&title, &progress)).await {
                Ok((model, imported)) => break (model, imported, manifest.warnings.clone()),
                Err(error) => changes.again(&title, error)?,
            }
        };
        warnings.extend(self.settle(&request, &route, &model).await?);
        let (key, revision) = (model.key.clone(), model.summary.revision.clone());
        Ok(CommandAnswer::Import(Import { key, revision, imported, warnings: texts(warnings) }))
    }

    /// What a publish does with a model that it brought.
    async fn settle(
        &self,
        request: &ModelRequest,
        route: &Route,
        model: &CachedModel,
    ) -> Result<Vec<Warning>> {
        let warnings = self.0.cache.check_weights(model, request, route.tenant()).await?;
        let (cache, model) = (self.0.cache.clone(), model.clone());
        let (request, route) = (request.clone(), route.clone());
        blocking(move || newest::record(&cache, &request, &route, &model)).await?;
        Ok(warnings)
    }
}

/// Says in the log what should be looked at in a model that nobody waits for.
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

fn brought(uri: &str, (came, warnings): (EnsureOutcome, Vec<Warning>)) -> PrefetchResult {
    let model = came.model();
    PrefetchResult {
        uri: uri.to_owned(),
        result: came.label().to_owned(),
        key: Some(model.key.clone()),
        revision: Some(model.summary.revision.clone()),
        bytes: model.summary.bytes,
        kind: None,
        error: None,
        warnings: texts(warnings),
    }
}

fn of_fill(title: &str, progress: &FillProgress) -> CommandProgress {
    let now = progress.snapshot();
    let total = if now.phase == Phase::Downloading { now.total } else { 0 };
    CommandProgress { subject: title.to_owned(), text: now.text(title), done: now.done, total }
}

fn of_import(title: &str, progress: &ImportProgress) -> CommandProgress {
    let now = progress.snapshot();
    let (done, total) = match now {
        ImportSnapshot::Scanning => (0, 0),
        ImportSnapshot::Comparing { done, total } => (done, total),
        ImportSnapshot::Filling(now) => (now.done, now.total),
    };
    CommandProgress { subject: title.to_owned(), text: now.text(title), done, total }
}
