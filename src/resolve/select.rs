//! Which revision a request gets: the current one, or one that is cached.

use std::sync::Arc;

use futures_util::FutureExt as _;

use super::authorize::Permission;
use super::outage::{self, AttemptOutcome, LastAnswer, UnansweredSince, WatchedAttempt};
use super::{Resolver, Route, newest};
use crate::blocking::blocking;
use crate::cache::{Cache, CachedModel};
use crate::error::{Error, ErrorKind, Result};
use crate::model::{Manifest, ModelKey, ModelRequest, PullPolicy, Revision};

/// What to mount.
pub(crate) enum Selection {
    /// This cached model; Object Storage was not asked.
    Cached(CachedModel),
    /// This cached model, since Object Storage could not be asked.
    Stale(CachedModel),
    /// This revision, cached or not.
    Wanted(Arc<Manifest>),
}

/// Applies pull policy and revision to requests.
#[derive(Clone)]
pub struct RevisionSelector {
    resolver: Resolver,
    serve_stale: bool,
}

impl RevisionSelector {
    /// A chooser that asks `resolver`; `serve_stale` is the administrator's
    /// `serveStaleOnOutage`.
    pub fn new(resolver: Resolver, serve_stale: bool) -> Self {
        Self { resolver, serve_stale }
    }

    pub(crate) fn resolver(&self) -> &Resolver {
        &self.resolver
    }

    /// What a request gets. `silence` is how long Object Storage has not answered
    /// for its volume.
    pub(crate) async fn choose(
        &self,
        cache: &Cache,
        request: &ModelRequest,
        route: &Route,
        silence: &UnansweredSince,
    ) -> Result<Selection> {
        if let Some(revision) = &request.revision {
            return self.pinned(cache, request, route, revision, silence).await;
        }
        if request.pull_policy == PullPolicy::Always {
            return self.current(cache, request, route, silence).await;
        }
        let latest = self.latest(cache, request, route).await?;
        if let Some(model) = &latest
            && let Some(choice) = self.cached(request, route, model, silence).await?
        {
            return Ok(choice);
        }
        match request.pull_policy {
            PullPolicy::Never => self.not_cached(request, route, latest).await,
            _ => self.resolver.resolve(request, route).await.map(Selection::Wanted),
        }
    }

    /// This exact revision: a cached copy is as good as any, under any policy.
    async fn pinned(
        &self,
        cache: &Cache,
        request: &ModelRequest,
        route: &Route,
        revision: &Revision,
        silence: &UnansweredSince,
    ) -> Result<Selection> {
        // The newest copy may be it; that needs no network, not even for the namespace.
        let latest = self.latest(cache, request, route).await?;
        let model = match latest.filter(|model| model.summary.revision == *revision) {
            Some(model) => Some(model),
            None => {
                let source = self.resolver.source(request, route).await?;
                cache.find(&ModelKey::of(route.scope(), &source, revision)).await?
            }
        };
        if let Some(model) = &model
            && let Some(choice) = self.cached(request, route, model, silence).await?
        {
            return Ok(choice);
        }
        if request.pull_policy == PullPolicy::Never {
            return self.not_cached(request, route, model).await;
        }
        let manifest = self.resolver.resolve(request, route).await?;
        if manifest.revision == *revision {
            return Ok(Selection::Wanted(manifest));
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
        silence: &UnansweredSince,
    ) -> Result<Selection> {
        if !self.serve_stale {
            return self.resolver.resolve(request, route).await.map(Selection::Wanted);
        }
        let attempt = || {
            let mut ticket = self.resolver.start(request, route);
            let pulse = ticket.shared_progress();
            WatchedAttempt { pulse, answer: async move { ticket.completed().await }.boxed() }
        };
        let instead = || {
            async {
                let latest = self.latest(cache, request, route).await.ok().flatten();
                latest.filter(|model| self.resolver.was_authorized(route, &model.key))
            }
            .boxed()
        };
        Ok(match outage::ask(silence, attempt, instead).await? {
            AttemptOutcome::Answered(manifest) => Selection::Wanted(manifest),
            AttemptOutcome::Instead(model, error) => {
                tracing::warn!(
                    model = request.title(),
                    revision = model.summary.revision.as_str(),
                    error = error.map(|e| e.to_string()),
                    "Object Storage cannot be asked; the newest cached revision is mounted"
                );
                Selection::Stale(model)
            }
        })
    }

    /// A cached model, for those who may read its objects: that is asked also when
    /// nothing else is. During an outage, who could read them within the hour still
    /// may. `None` when its objects are gone, so that it cannot be shown.
    async fn cached(
        &self,
        request: &ModelRequest,
        route: &Route,
        model: &CachedModel,
        silence: &UnansweredSince,
    ) -> Result<Option<Selection>> {
        let manifest = match route.workload() {
            None => None,
            Some(_) => {
                let model = model.clone();
                let Some(manifest) = blocking(move || model.manifest()).await? else {
                    return Ok(None);
                };
                Some(manifest)
            }
        };
        let authorize = async || match &manifest {
            Some(manifest) => self.resolver.authorize(route, manifest).await,
            // The driver's identity needs no proof.
            None => Ok(Permission::Granted),
        };
        let attempt = || WatchedAttempt {
            pulse: Arc::new(LastAnswer::default()),
            answer: authorize().boxed(),
        };
        let instead = || {
            let trusted = self.serve_stale && self.resolver.was_authorized(route, &model.key);
            async move { trusted.then_some(()) }.boxed()
        };
        Ok(match outage::ask(silence, attempt, instead).await? {
            AttemptOutcome::Answered(Permission::Granted) => Some(Selection::Cached(model.clone())),
            AttemptOutcome::Answered(Permission::Unprovable) => None,
            AttemptOutcome::Instead((), error) => {
                tracing::warn!(
                    model = request.title(),
                    error = error.map(|e| e.to_string()),
                    "whether the pod may read the model cannot be asked; it could within the hour"
                );
                Some(Selection::Stale(model.clone()))
            }
        })
    }

    /// Why `Never` gives nothing. Whoever asks with an identity of its own has to
    /// be one who may read what is there: else the answer would disclose what is cached.
    async fn not_cached(
        &self,
        request: &ModelRequest,
        route: &Route,
        cached: Option<CachedModel>,
    ) -> Result<Selection> {
        if route.workload().is_some() {
            let manifest = self.resolver.resolve(request, route).await?;
            // Without files, a listing shows all that there is to be shown.
            if let Some(model) = cached.filter(|model| model.key == manifest.key()) {
                return Ok(Selection::Cached(model));
            }
        }
        Err(Error::new(
            ErrorKind::NotFound,
            format!(
                "{} is not in this node's cache, and pullPolicy Never forbids to download it; use \
                 IfNotPresent, or schedule the pod where it is cached",
                request.title()
            ),
        ))
    }

    async fn latest(
        &self,
        cache: &Cache,
        request: &ModelRequest,
        route: &Route,
    ) -> Result<Option<CachedModel>> {
        newest::find(&self.resolver, cache, request, route).await
    }
}
