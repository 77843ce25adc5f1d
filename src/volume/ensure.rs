//! Ensures that the model of a publish is cached: selects its revision, and finds or
//! downloads it.

use std::sync::Arc;

use tracing::{Instrument as _, Span};

use super::PublishRequest;
use super::permit::{or_object, permit};
use super::publish::{PublishAttempt, Volumes};
use crate::blocking::blocking;
use crate::cache::{CachedModel, Priority};
use crate::error::{Error, ErrorKind, Result};
use crate::metrics::PublishResult;
use crate::model::{Manifest, ModelRequest, Warning};
use crate::policy::Subject;
use crate::resolve::{
    Changes, Requester, Route, Selection, UnansweredSince, is_refusal, newest, with_siblings,
};
use crate::trace;

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
        permit(&parts.policy, parts.selector.resolver(), asking, model)
            .instrument(tracing::info_span!(target: trace::STEP, "policy"))
            .await
    }

    /// Adds to an error about the prefix what this pod may know of what is beside it.
    async fn hint(&self, attempt: &PublishAttempt, route: &Route, error: Error) -> Error {
        let parts = self.parts();
        let asking = (Subject::Pod(attempt.pod.as_ref()), attempt.requester());
        let (policy, resolver) = (&parts.policy, parts.selector.resolver());
        let request = &attempt.request.model;
        let error = or_object(policy, resolver, asking, (request, route), error).await;
        self.name_siblings(attempt, route, error).await
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
        let route = resolver
            .route_of(attempt.requester(), request, &scope)
            .instrument(tracing::info_span!(target: trace::STEP, "route"))
            .await?;
        let mut changes = Changes::default();
        let mut refused_once = false;
        let steps = &attempt.steps;
        steps.ended("route");
        let (model, how, current) = loop {
            let selected = parts
                .selector
                .select(&parts.cache, request, &route, silence)
                .instrument(tracing::info_span!(target: trace::STEP, "revision"))
                .await;
            steps.ended("revision");
            let manifest = match selected {
                Ok(Selection::Cached(model)) => break (model, PublishResult::Hit, None),
                Ok(Selection::Stale(model)) => break (model, PublishResult::Stale, None),
                Ok(Selection::Current(manifest)) => manifest,
                Err(error) => return Err(self.hint(attempt, &route, error).await),
            };
            let found = parts
                .cache
                .find(&manifest.key())
                .instrument(tracing::info_span!(target: trace::STEP, "lookup"))
                .await?;
            steps.ended("lookup");
            if let Some(model) = found {
                break (model, PublishResult::Hit, Some(manifest));
            }
            let (how, filled) = self.fill(attempt, &route, &manifest).await;
            steps.ended("download");
            match filled {
                Ok(model) => break (model, how, Some(manifest)),
                Err(error) if is_of_another(&error, &route) => {
                    // This pod's own refusal, if it is refused too.
                    resolver.check_reader(&route, &manifest).await?;
                    if std::mem::replace(&mut refused_once, true) {
                        return Err(read_for_another(&attempt.title));
                    }
                }
                Err(error) => changes.retry(&attempt.title, error)?,
            }
        };
        let suspect = parts
            .weights
            .check(&model, request, route.tenant())
            .instrument(tracing::info_span!(target: trace::STEP, "weights"))
            .await?;
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
        let waiting = async {
            tokio::select! {
                completed = waiter.completed() => completed,
                short = progress.short_of_space() => {
                    let namespace = attempt.pod.as_ref().map(|pod| pod.namespace.as_str());
                    Err(short.error_of_pod(namespace))
                }
                never = recorder.progress(&progress) => match never {},
                () = tokio::time::sleep_until(attempt.deadline) => {
                    let text = progress.snapshot().text(progress.title());
                    Err(Error::new(ErrorKind::InProgress, text))
                }
            }
        };
        let (flight, bytes) = (progress.id(), manifest.bytes());
        let span = tracing::info_span!(target: trace::STEP, "download", flight, joined, bytes);
        span.follows_from(progress.span());
        let filled = waiting.instrument(span).await;
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

/// Whether a download's error may be that of another pod, for which its objects were read: it is
/// a refusal, or names the other pod's identity. A download reads as any of the pods that wait
/// for it.
fn is_of_another(error: &Error, route: &Route) -> bool {
    let Some(own) = route.principal() else { return false };
    is_refusal(error.kind()) || names_another_than(&own.to_string(), error.message())
}

/// Whether a message names an identity other than `own`, which is one as messages name it.
fn names_another_than(own: &str, message: &str) -> bool {
    let is_name = |c: char| c.is_ascii_alphanumeric() || "-./:".contains(c);
    ["service account ", "the user of API key "].iter().any(|kind| {
        message.match_indices(kind).any(|(at, kind)| {
            let named = &message[at + kind.len()..];
            let end = named.find(|c| !is_name(c)).unwrap_or(named.len());
            own.strip_prefix(kind) != Some(named[..end].trim_end_matches(':'))
        })
    })
}

/// The error of a download that fails as other pods, whose names are not this pod's business.
fn read_for_another(title: &str) -> Error {
    Error::new(
        ErrorKind::InProgress,
        format!(
            "downloading {title} failed while it was read with the identity of another pod that \
             waits for it; the call will be retried"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_that_names_another_service_account_is_found() {
        let own = "service account team-a/default";
        for (message, expected) in [
            ("reading m/: 503 after 5 attempts", false),
            ("exchanging the token of service account team-a/default at host: 503", false),
            ("exchanging the token of service account team-b/default at host: 503", true),
            ("exchanging the token of service account team-a/default-2 at host: 503", true),
            ("service account team-a/default; service account team-b/x", true),
            ("reading as service account team-a/default: 403", false),
            ("reading as the user of API key 0a:1b: 503", true),
        ] {
            assert_eq!(names_another_than(own, message), expected, "{message}");
        }
    }
}
