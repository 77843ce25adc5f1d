//! Selects the revision of a request: the current one, or a cached one.

use std::sync::Arc;

use futures_util::FutureExt as _;
use tracing::Instrument as _;

use super::authorize::{Permission, is_refusal};
use super::outage::{self, AttemptOutcome, LastAnswer, UnansweredSince, WatchedAttempt};
use super::resolver::listed;
use super::{Resolver, Route, newest};
use crate::blocking::blocking;
use crate::cache::{Cache, CachedModel};
use crate::error::{Error, ErrorKind, Result};
use crate::model::{Manifest, ModelKey, ModelRequest, PullPolicy, Revision};
use crate::trace;

/// The selected revision.
pub(crate) enum Selection {
    /// This cached model, without a request to Object Storage.
    Cached(CachedModel),
    /// This cached model, because Object Storage cannot be reached.
    Stale(CachedModel),
    /// The current revision, cached or not.
    Current(Arc<Manifest>),
}

/// Applies pull policy and revision to requests.
#[derive(Clone)]
pub struct RevisionSelector {
    resolver: Resolver,
    serve_stale: bool,
}

impl RevisionSelector {
    /// Creates a selector that resolves through `resolver`; `serve_stale` is the
    /// administrator's `serveStaleOnOutage`.
    pub fn new(resolver: Resolver, serve_stale: bool) -> Self {
        Self { resolver, serve_stale }
    }

    pub(crate) fn resolver(&self) -> &Resolver {
        &self.resolver
    }

    /// Selects the revision of a request. `silence` is the time without an answer of
    /// Object Storage for its volume.
    pub(crate) async fn select(
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
        if let Some(selection) = self.cached(request, route, latest.as_ref(), silence).await? {
            return Ok(selection);
        }
        match request.pull_policy {
            PullPolicy::Never => self.not_cached(request, route, latest).await,
            _ => self.resolver.resolve(request, route).await.map(Selection::Current),
        }
    }

    /// Selects an exact revision. A cached copy is always good enough, under any policy.
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
        if let Some(selection) = self.cached(request, route, model.as_ref(), silence).await? {
            return Ok(selection);
        }
        if request.pull_policy == PullPolicy::Never {
            return self.not_cached(request, route, model).await;
        }
        let manifest = self.resolver.resolve(request, route).await?;
        if manifest.revision == *revision {
            return Ok(Selection::Current(manifest));
        }
        Err(Error::new(
            ErrorKind::Precondition,
            format!(
                "{} is at revision {}, and {revision} was requested: upload that revision again, \
                 or request the current one",
                request.title(),
                manifest.revision
            ),
        ))
    }

    /// Selects the current revision, or during an outage the newest cached one.
    async fn current(
        &self,
        cache: &Cache,
        request: &ModelRequest,
        route: &Route,
        silence: &UnansweredSince,
    ) -> Result<Selection> {
        if !self.serve_stale {
            return self.resolver.resolve(request, route).await.map(Selection::Current);
        }
        let attempt = || {
            let waiter = self.resolver.start(request, route);
            let pulse = waiter.shared_progress();
            WatchedAttempt { pulse, answer: listed(waiter).boxed() }
        };
        let instead = || {
            async {
                let latest = self.latest(cache, request, route).await.ok().flatten();
                latest.filter(|model| self.resolver.was_authorized(route, &model.key))
            }
            .boxed()
        };
        Ok(match outage::ask(silence, attempt, instead).await? {
            AttemptOutcome::Answered(manifest) => Selection::Current(manifest),
            AttemptOutcome::Instead(model, error) => {
                tracing::warn!(
                    model = request.title(),
                    revision = model.summary.revision.as_str(),
                    error = error.map(|e| e.to_string()),
                    "Object Storage cannot be reached; mounting the newest cached revision"
                );
                Selection::Stale(model)
            }
        })
    }

    /// Selects a cached model if the pod may read its objects, which is checked even
    /// for a cache hit. During an outage, a permission within the last hour is enough.
    ///
    /// `None` without a cached model, and wherever the listing decides: if the pod is refused, or
    /// objects are gone, so that the permission cannot be proved. A pod with its own identity
    /// asks whether something is cached or not, so that a refused one causes the same requests
    /// in both cases: neither its answer nor the time for it discloses what is cached.
    async fn cached(
        &self,
        request: &ModelRequest,
        route: &Route,
        model: Option<&CachedModel>,
        silence: &UnansweredSince,
    ) -> Result<Option<Selection>> {
        if route.principal().is_none() {
            // The driver's identity needs no proof.
            return Ok(model.cloned().map(Selection::Cached));
        }
        let manifest = match model.cloned() {
            Some(model) => blocking(move || model.manifest()).await?,
            None => None,
        };
        let model = model.filter(|_| manifest.is_some());
        let authorize = async || match &manifest {
            Some(manifest) => self.resolver.authorize(route, manifest).await,
            None => self.resolver.authorize_nothing(request, route).await,
        };
        let attempt = || WatchedAttempt {
            pulse: Arc::new(LastAnswer::default()),
            answer: authorize()
                .instrument(tracing::info_span!(target: trace::STEP, "authorize"))
                .boxed(),
        };
        let instead = || {
            let trusted = model.filter(|model| {
                self.serve_stale && self.resolver.was_authorized(route, &model.key)
            });
            async move { trusted.cloned() }.boxed()
        };
        match outage::ask(silence, attempt, instead).await {
            Ok(AttemptOutcome::Answered(Permission::Granted)) => {
                Ok(model.cloned().map(Selection::Cached))
            }
            Ok(AttemptOutcome::Answered(Permission::Unprovable)) => Ok(None),
            Ok(AttemptOutcome::Instead(model, error)) => {
                tracing::warn!(
                    model = request.title(),
                    error = error.map(|e| e.to_string()),
                    "the pod's permission cannot be checked; it was granted within the last hour"
                );
                Ok(Some(Selection::Stale(model)))
            }
            Err(error) if is_refusal(error.kind()) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Explains why `Never` gives nothing. A pod with its own identity must be able to
    /// read the model: otherwise the answer would disclose what is cached.
    async fn not_cached(
        &self,
        request: &ModelRequest,
        route: &Route,
        cached: Option<CachedModel>,
    ) -> Result<Selection> {
        if route.principal().is_some() {
            let manifest = self.resolver.resolve(request, route).await?;
            // A model without files has nothing beyond its listing.
            if let Some(model) = cached.filter(|model| model.key == manifest.key()) {
                return Ok(Selection::Cached(model));
            }
        }
        Err(Error::new(
            ErrorKind::NotFound,
            format!(
                "{} is not in this node's cache, and pullPolicy Never forbids the download; use \
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
