//! Which revision a request gets: the current one, or one that is cached.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{Resolver, Route};
use crate::cache::{Cache, CachedModel};
use crate::error::{Error, ErrorKind, Result};
use crate::model::{Manifest, ModelKey, ModelRequest, PullPolicy, Revision};

/// How long Object Storage has to be out of reach before an older revision is mounted.
const OUTAGE: Duration = Duration::from_secs(10);

/// Between two tries during an outage.
const RETRY: Duration = Duration::from_secs(1);

/// What to mount.
pub(super) enum Choice {
    /// This cached model; Object Storage was not asked.
    Cached(CachedModel),
    /// This cached model, since Object Storage could not be asked.
    Stale(CachedModel),
    /// This revision, cached or not.
    Wanted(Arc<Manifest>),
}

/// Applies pull policy and revision to requests.
#[derive(Clone)]
pub struct Chooser {
    resolver: Resolver,
    serve_stale: bool,
}

impl Chooser {
    /// A chooser that asks `resolver`; `serve_stale` is the administrator's
    /// `serveStaleOnOutage`.
    pub fn new(resolver: Resolver, serve_stale: bool) -> Self {
        Self { resolver, serve_stale }
    }

    pub(super) fn resolver(&self) -> &Resolver {
        &self.resolver
    }

    pub(super) async fn choose(
        &self,
        cache: &Cache,
        request: &ModelRequest,
        route: &Route,
    ) -> Result<Choice> {
        if let Some(revision) = &request.revision {
            return self.pinned(cache, request, route, revision).await;
        }
        match request.pull_policy {
            PullPolicy::Always => self.current(cache, request, route).await,
            PullPolicy::IfNotPresent => match self.latest(cache, request, route).await? {
                Some(model) => self.cached(request, route, model).await,
                None => self.resolver.resolve(request, route).await.map(Choice::Wanted),
            },
            PullPolicy::Never => match self.latest(cache, request, route).await? {
                Some(model) => self.cached(request, route, model).await,
                None => Err(not_cached(request)),
            },
        }
    }

    /// This exact revision: a cached copy is as good as any, under any policy.
    async fn pinned(
        &self,
        cache: &Cache,
        request: &ModelRequest,
        route: &Route,
        revision: &Revision,
    ) -> Result<Choice> {
        // The newest copy may be it; that needs no network, not even for the namespace.
        let latest = self.latest(cache, request, route).await?;
        if let Some(model) = latest.filter(|model| model.manifest.revision == *revision) {
            return self.cached(request, route, model).await;
        }
        let source = self.resolver.source(request, route).await?;
        if let Some(model) = cache.find(&ModelKey::of(route.scope(), &source, revision)).await? {
            return self.cached(request, route, model).await;
        }
        if request.pull_policy == PullPolicy::Never {
            return Err(not_cached(request));
        }
        let manifest = self.resolver.resolve(request, route).await?;
        if manifest.revision == *revision {
            return Ok(Choice::Wanted(manifest));
        }
        Err(Error::new(
            ErrorKind::Precondition,
            format!(
                "{} is at revision {}, and {revision} was asked for: upload that again, or ask \
                 for the present one",
                request.title(),
                manifest.revision
            ),
        ))
    }

    /// The current revision, or during an outage the newest one that is cached.
    async fn current(
        &self,
        cache: &Cache,
        request: &ModelRequest,
        route: &Route,
    ) -> Result<Choice> {
        if !self.serve_stale {
            return self.resolver.resolve(request, route).await.map(Choice::Wanted);
        }
        let started = Instant::now();
        let mut ticket = self.resolver.start(request, route);
        loop {
            // The outage lasts since the last answer, or since this call began.
            let outage = ticket.progress().last().max(started) + OUTAGE;
            let error = tokio::select! {
                landed = ticket.landed() => match landed {
                    Ok(manifest) => return Ok(Choice::Wanted(manifest)),
                    Err(error) if error.kind() == ErrorKind::Unavailable => Some(error),
                    Err(error) => return Err(error),
                },
                () = tokio::time::sleep_until(outage) => None,
            };
            let over = Instant::now() >= ticket.progress().last().max(started) + OUTAGE;
            if error.is_none() && !over {
                continue;
            }
            let fallback = match self.resolver.was_permitted(request, route) {
                true => self.latest(cache, request, route).await,
                false => Ok(None),
            };
            match (fallback, error) {
                (Ok(Some(model)), error) if over => {
                    tracing::warn!(
                        model = request.title(),
                        revision = model.manifest.revision.as_str(),
                        error = error.map(|e| e.to_string()),
                        "Object Storage cannot be asked; the newest cached revision is mounted"
                    );
                    return Ok(Choice::Stale(model));
                }
                (Ok(Some(_)), _) => {
                    tokio::time::sleep_until((Instant::now() + RETRY).min(outage)).await;
                    ticket = self.resolver.start(request, route);
                }
                // Without anything to fall back on, the caller gets to know at once.
                (_, Some(error)) => return Err(error),
                (_, None) => return ticket.landed().await.map(Choice::Wanted),
            }
        }
    }

    /// A cached model, for those who may read it: that is asked also when
    /// nothing else is. During an outage, who could read it before still may.
    async fn cached(
        &self,
        request: &ModelRequest,
        route: &Route,
        model: CachedModel,
    ) -> Result<Choice> {
        let trusted = self.serve_stale && self.resolver.was_permitted(request, route);
        let outage = Instant::now() + OUTAGE;
        loop {
            let error = tokio::select! {
                asked = self.resolver.permit(request, route) => match asked {
                    Ok(()) => return Ok(Choice::Cached(model)),
                    Err(error) if trusted && error.kind() == ErrorKind::Unavailable => Some(error),
                    Err(error) => return Err(error),
                },
                () = tokio::time::sleep_until(outage), if trusted => None,
            };
            if error.is_none() || Instant::now() >= outage {
                tracing::warn!(
                    model = request.title(),
                    error = error.map(|e| e.to_string()),
                    "whether the pod may read the model cannot be asked; it could before"
                );
                return Ok(Choice::Stale(model));
            }
            tokio::time::sleep_until((Instant::now() + RETRY).min(outage)).await;
        }
    }

    async fn latest(
        &self,
        cache: &Cache,
        request: &ModelRequest,
        route: &Route,
    ) -> Result<Option<CachedModel>> {
        cache.latest(&route.digest(request)).await
    }
}

fn not_cached(request: &ModelRequest) -> Error {
    Error::new(
        ErrorKind::NotFound,
        format!(
            "{} is not in this node's cache, and pullPolicy Never forbids to download it; use \
             IfNotPresent, or schedule the pod where it is cached",
            request.title()
        ),
    )
}
