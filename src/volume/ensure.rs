//! Ensures that the model of a publish is cached: selects its revision, and finds or
//! downloads it.

use std::sync::Arc;

use tracing::Span;

use super::PublishRequest;
use super::permit::permit;
use super::publish::{PublishAttempt, Volumes};
use crate::blocking::blocking;
use crate::cache::{CachedModel, Priority};
use crate::error::{Error, ErrorKind, Result};
use crate::metrics::PublishResult;
use crate::model::{Manifest, ModelRequest, Warning};
use crate::policy::Subject;
use crate::resolve::{
    Changes, Requester, Route, Selection, UnansweredSince, newest, with_siblings,
};

/// A cached model for a publish.
pub(super) struct Ensured {
    pub(super) model: CachedModel,
    /// How it got into the cache.
    pub(super) how: PublishResult,
    /// What is suspect about it.
    pub(super) warnings: Vec<Warning>,
}

impl PublishAttempt {
    fn requester(&self) -> Requester<'_> {
        let PublishRequest { tokens, secret, .. } = &self.request;
        Requester::Pod { pod: self.pod.as_ref(), tokens: tokens.as_ref(), secret: secret.as_ref() }
    }
}

impl Volumes {
    /// Ensures that the model is cached, if the rules allow it before and after.
    pub(super) async fn ensure_permitted(
        &self,
        attempt: &PublishAttempt,
        silence: &UnansweredSince,
    ) -> Result<Ensured> {
        self.permit(attempt).await?;
        attempt.steps.ended("permit");
        let ensured = self.ensure(attempt, silence).await?;
        // The rules may have changed during the download.
        self.permit(attempt).await?;
        attempt.steps.ended("permit");
        Ok(ensured)
    }

    async fn permit(&self, attempt: &PublishAttempt) -> Result<()> {
        self.permit_model(attempt, &attempt.request.model).await
    }

    async fn permit_model(&self, attempt: &PublishAttempt, model: &ModelRequest) -> Result<()> {
        let parts = self.parts();
        let asking = (Subject::Pod(attempt.pod.as_ref()), attempt.requester());
        permit(&parts.policy, parts.selector.resolver(), asking, model).await
    }

    /// Adds to the error of an empty prefix the nearest directories that the rules let this
    /// pod mount. None where the administrator's volume has an identity or a region of its own:
    /// the pod could not mount others there.
    async fn name_siblings(&self, attempt: &PublishAttempt, route: &Route, error: Error) -> Error {
        let request = &attempt.request.model;
        if request.auth.is_some() || request.region.is_some() {
            return error;
        }
        let resolver = self.parts().selector.resolver();
        let mut allowed = Vec::new();
        for prefix in resolver.siblings(&error, request, route, 1).await {
            let model = ModelRequest { prefix: prefix.clone(), ..request.clone() };
            if self.permit_model(attempt, &model).await.is_ok() {
                allowed.push(prefix);
            }
        }
        with_siblings(error, &allowed)
    }

    /// Ensures that the model is cached, and checks its weights.
    async fn ensure(&self, attempt: &PublishAttempt, silence: &UnansweredSince) -> Result<Ensured> {
        let parts = self.parts();
        let request = &attempt.request.model;
        let scope = request.scope_id(attempt.pod.as_ref())?;
        let resolver = parts.selector.resolver();
        let route = resolver.route_of(attempt.requester(), request, &scope).await?;
        let mut changes = Changes::default();
        let mut refused_once = false;
        let steps = &attempt.steps;
        steps.ended("route");
        let (model, how, current) = loop {
            let selected = parts.selector.select(&parts.cache, request, &route, silence).await;
            steps.ended("revision");
            let manifest = match selected {
                Ok(Selection::Cached(model)) => break (model, PublishResult::Hit, None),
                Ok(Selection::Stale(model)) => break (model, PublishResult::Stale, None),
                Ok(Selection::Current(manifest)) => manifest,
                Err(error) => return Err(self.name_siblings(attempt, &route, error).await),
            };
            let found = parts.cache.find(&manifest.key()).await?;
            steps.ended("lookup");
            if let Some(model) = found {
                break (model, PublishResult::Hit, Some(manifest));
            }
            let (how, filled) = self.fill(attempt, &route, &manifest).await;
            steps.ended("download");
            match filled {
                Ok(model) => break (model, how, Some(manifest)),
                // The callers that began the download were refused; this one may not be.
                Err(error)
                    if how == PublishResult::Joined
                        && route.principal().is_some()
                        && is_refusal(error.kind())
                        && !refused_once =>
                {
                    refused_once = true;
                }
                Err(error) => changes.retry(&attempt.title, error)?,
            }
        };
        let suspect = parts.weights.check(&model, request, route.tenant()).await?;
        steps.ended("weights");
        if how != PublishResult::Stale {
            self.record_result(attempt, &route, &model, current.is_some()).await?;
            steps.ended("record");
        }
        let mut warnings = current.map(|manifest| manifest.warnings.clone()).unwrap_or_default();
        warnings.extend(suspect);
        Ok(Ensured { model, how, warnings })
    }

    /// Joins or starts the model's download, and waits for it until the deadline or
    /// until there is no space for it. Meanwhile it reports the progress to the pod.
    async fn fill(
        &self,
        attempt: &PublishAttempt,
        route: &Route,
        manifest: &Arc<Manifest>,
    ) -> (PublishResult, Result<CachedModel>) {
        let parts = self.parts();
        let recorder = self.recorder(attempt.pod.as_ref());
        let priority = Priority::Pod(route.tenant().clone());
        let mut waiter = parts.cache.fill(&parts.engine, manifest, &priority, route.client());
        let joined = waiter.joined();
        let how = if joined { PublishResult::Joined } else { PublishResult::Downloaded };
        let progress = waiter.shared_progress();
        Span::current().record("flight", progress.id());
        tracing::debug!(joined, "waiting for the model");
        let filled = tokio::select! {
            completed = waiter.completed() => completed,
            short = progress.short_of_space() => {
                let namespace = attempt.pod.as_ref().map(|pod| pod.namespace.as_str());
                Err(short.error_of_pod(namespace))
            }
            never = recorder.progress(&progress) => match never {},
            () = tokio::time::sleep_until(attempt.deadline) => {
                Err(Error::new(ErrorKind::InProgress, progress.snapshot().text(progress.title())))
            }
        };
        if filled.is_ok()
            && let Some(files) = progress.unverified()
        {
            recorder.unverified(&files, progress.title());
        }
        (how, filled)
    }

    /// Records the model that a request got: the newest revision, or the one it names.
    async fn record_result(
        &self,
        attempt: &PublishAttempt,
        route: &Route,
        model: &CachedModel,
        is_newest: bool,
    ) -> Result<()> {
        let cache = self.parts().cache.clone();
        let request = attempt.request.model.clone();
        let route = route.clone();
        let model = model.clone();
        blocking(move || {
            if request.revision.is_some() {
                cache.record_revision(&route.digest(&request), &model)?;
            }
            if is_newest {
                newest::record(&cache, &request, &route, &model)?;
            }
            Ok(())
        })
        .await
    }
}

/// Whether another identity may get a different answer.
fn is_refusal(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Unauthenticated | ErrorKind::Denied | ErrorKind::NotFound)
}
