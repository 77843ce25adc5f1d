//! Publish, unpublish and stats of one volume.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tracing::Span;

use super::calls::Calls;
use super::event_recorder::{self, EventRecorder};
use super::permit::permit;
use super::targets::Targets;
use super::{PublishKey, PublishRequest, VolumeStats};
use crate::blocking::blocking;
use crate::cache::{Cache, CachedModel, Older, Priority};
use crate::download::Engine;
use crate::error::{Error, ErrorKind, Result};
use crate::events::Events;
use crate::metrics::{Metrics, PublishResult};
use crate::model::{PodIdentity, Warning};
use crate::mount;
use crate::policy::{Policy, Subject};
use crate::resolve::{Changes, UnansweredSince};
use crate::resolve::{Requester, Route, newest};
use crate::resolve::{RevisionSelector, Selection};
use crate::weights::WeightsChecker;

/// The volumes of this node; cheap to clone.
#[derive(Clone)]
pub struct Volumes(Arc<VolumesInner>);

/// What the use cases are built on.
pub struct VolumeParts {
    /// The models of this node, and the leases of its volumes.
    pub cache: Cache,
    /// kubelet's root directory.
    pub kubelet: PathBuf,
    /// Downloads models.
    pub engine: Engine,
    /// Selects the revision of a request.
    pub selector: RevisionSelector,
    /// Checks weights before a publish.
    pub weights: WeightsChecker,
    /// The rules. A change applies from the next check on; mounted models stay mounted.
    pub policy: watch::Receiver<Policy>,
    /// Takes the events about pods.
    pub events: Events,
    /// Counts publishes.
    pub metrics: Arc<Metrics>,
}

pub(super) struct VolumesInner {
    pub(super) parts: VolumeParts,
    targets: Targets,
    calls: Calls,
}

impl Volumes {
    /// Creates the use cases, which also listen to the cache for damage.
    pub fn new(parts: VolumeParts) -> Self {
        let recorder = parts.events.clone();
        parts.cache.on_damage(move |damage| event_recorder::damaged(&recorder, damage));
        let targets = Targets::default();
        let calls = Calls::default();
        Self(Arc::new(VolumesInner { parts, targets, calls }))
    }

    pub(super) fn cache(&self) -> &Cache {
        &self.0.parts.cache
    }

    pub(super) fn selector(&self) -> &RevisionSelector {
        &self.0.parts.selector
    }

    pub(super) fn engine(&self) -> &Engine {
        &self.0.parts.engine
    }

    /// Mounts a model read-only at the target path.
    ///
    /// Waits at most `wait` for a download. Then the answer is `InProgress` with the
    /// progress, the download continues, and the next call joins it.
    ///
    /// Cancellation safe: lease and mount, which must not be left half done, are
    /// finished even if the caller goes away.
    pub async fn publish(&self, request: PublishRequest, wait: Duration) -> Result<()> {
        let started = Instant::now();
        let pod = request.pod.clone();
        let span = Span::current();
        if let Some(pod) = &pod {
            span.record("pod", format!("{}/{}", pod.namespace, pod.name));
        }
        span.record("model", request.model.title());
        let result = self.try_publish(request, started + wait).await;
        let result = result.map_err(|error| self.on_disk(error));
        if let Err(error) = &result {
            EventRecorder::new(&self.0.parts.events, pod.as_ref()).failed(error);
        }
        match &result {
            Ok(None) => {}
            Ok(Some((result, first))) => {
                self.0.parts.metrics.published(*result, first.elapsed().as_secs_f64());
            }
            Err(error) if error.kind() == ErrorKind::InProgress => {}
            Err(_) => {
                let seconds = started.elapsed().as_secs_f64();
                self.0.parts.metrics.published(PublishResult::Failed, seconds);
            }
        }
        result.map(|_| ())
    }

    /// Records in the pod's events a publish that was refused as malformed.
    pub fn record_refusal(&self, pod: Option<&PodIdentity>, error: &Error) {
        EventRecorder::new(&self.0.parts.events, pod).failed(error);
    }

    /// Publishes the volume. Returns the result and the time of the first call for it,
    /// or `None` if it was published before.
    async fn try_publish(
        &self,
        request: PublishRequest,
        deadline: Instant,
    ) -> Result<Option<(PublishResult, Instant)>> {
        let guard = self.0.targets.enter(&request.key.target)?;
        // kubelet repeats the call for every running pod after its restart: no
        // policy, network or limit of today may break those.
        if self.is_published(&request.key).await? {
            return Ok(None);
        }
        let begun = self.0.calls.enter(&request.key);
        let title = request.model.title();
        let ensuring = async {
            self.permit(&request).await?;
            let ensured = self.ensure_cached(&request, &title, deadline, &begun.silence).await?;
            // The rules may have changed during the download.
            self.permit(&request).await.map(|()| ensured)
        };
        let (model, how, warnings) = match tokio::time::timeout_at(deadline, ensuring).await {
            Ok(ensured) => ensured?,
            Err(_) => {
                let text = format!("looking up {title} in Object Storage; the lookup continues");
                return Err(Error::new(ErrorKind::InProgress, text));
            }
        };
        let (inner, revision) = (Arc::clone(&self.0), model.summary.revision.clone());
        let target = request.key.target.clone();
        let (pod, mounted) = (request.pod.clone(), model.clone());
        blocking(move || inner.mount(guard, request, model)).await?;
        self.0.calls.end(&target);
        let recorder = EventRecorder::new(&self.0.parts.events, pod.as_ref());
        recorder.published(how, &mounted, &title);
        recorder.suspect(&warnings, &title, &self.0.parts.metrics);
        let (target, result) = (target.display(), how.label());
        tracing::info!(%target, revision = revision.as_str(), result, "published");
        Ok(Some((how, begun.first)))
    }

    /// Whether this volume's model is mounted at the target already, for this request.
    ///
    /// # Errors
    /// `Conflict` if something else is mounted there.
    pub async fn is_published(&self, key: &PublishKey) -> Result<bool> {
        let Some(lease) = self.0.parts.cache.lease_of(&key.target) else { return Ok(false) };
        let same_volume = lease.volume_id == key.volume_id;
        // A lease of an earlier version has the digest of the attributes as written.
        let same_request = lease.request == key.digest || lease.request == key.as_written;
        // A volume of an older layout matches every request.
        if same_volume && (same_request || lease.older.is_some()) {
            let inner = Arc::clone(&self.0);
            return blocking(move || inner.is_mounted_as_leased(&lease)).await;
        }
        let (inner, target) = (Arc::clone(&self.0), key.target.clone());
        if !blocking(move || inner.is_mounted(&target)).await? {
            return Ok(false);
        }
        let target = key.target.display();
        Err(Error::new(
            ErrorKind::Conflict,
            if same_volume {
                format!(
                    "this volume is mounted at {target} with other attributes; a mounted volume \
                     does not change: delete the pod to get the new ones"
                )
            } else {
                format!(
                    "another volume, {}, is mounted at {target}; unpublish it first",
                    lease.volume_id
                )
            },
        ))
    }

    async fn permit(&self, request: &PublishRequest) -> Result<()> {
        let VolumeParts { policy, selector, .. } = &self.0.parts;
        let pod = request.pod.as_ref();
        let asking = (Subject::Pod(pod), Requester::Pod { pod, tokens: request.tokens.as_ref() });
        permit(policy, selector.resolver(), asking, &request.model).await
    }

    /// Ensures that the model is cached. Also returns the warnings about it.
    async fn ensure_cached(
        &self,
        request: &PublishRequest,
        title: &str,
        deadline: Instant,
        silence: &UnansweredSince,
    ) -> Result<(CachedModel, PublishResult, Vec<Warning>)> {
        let scope = request.model.scope_id(request.pod.as_ref())?;
        let caller = Requester::Pod { pod: request.pod.as_ref(), tokens: request.tokens.as_ref() };
        let resolver = self.0.parts.selector.resolver();
        let route = resolver.route_of(caller, &request.model, &scope).await?;
        let recorder = EventRecorder::new(&self.0.parts.events, request.pod.as_ref());
        let mut changes = Changes::default();
        let mut refused_once = false;
        loop {
            let VolumeParts { cache, selector, .. } = &self.0.parts;
            let selection = selector.select(cache, &request.model, &route, silence).await?;
            let manifest = match selection {
                Selection::Cached(model) => {
                    let warnings =
                        self.0.parts.weights.check(&model, &request.model, route.tenant()).await?;
                    self.record_result(request, &route, &model, false).await?;
                    return Ok((model, PublishResult::Hit, warnings));
                }
                Selection::Stale(model) => {
                    let warnings =
                        self.0.parts.weights.check(&model, &request.model, route.tenant()).await?;
                    return Ok((model, PublishResult::Stale, warnings));
                }
                Selection::Current(manifest) => manifest,
            };
            let (model, how) = match self.0.parts.cache.find(&manifest.key()).await? {
                Some(model) => (model, PublishResult::Hit),
                None => {
                    let (engine, client) = (&self.0.parts.engine, route.client());
                    let priority = Priority::Pod(route.tenant().clone());
                    let mut waiter =
                        self.0.parts.cache.fill(engine, &manifest, title, &priority, client);
                    let how = match waiter.joined() {
                        true => PublishResult::Joined,
                        false => PublishResult::Downloaded,
                    };
                    let progress = waiter.shared_progress();
                    Span::current().record("flight", progress.id());
                    tracing::debug!(joined = waiter.joined(), "waiting for the model");
                    let completed = tokio::select! {
                        completed = waiter.completed() => completed,
                        short = progress.short_of_space() => {
                            let namespace = request.pod.as_ref().map(|pod| pod.namespace.as_str());
                            return Err(short.error_of_pod(title, namespace));
                        }
                        () = recorder.progress(&progress, title) => continue,
                        () = tokio::time::sleep_until(deadline) => {
                            let text = progress.snapshot().text(title);
                            return Err(Error::new(ErrorKind::InProgress, text));
                        }
                    };
                    match completed {
                        Ok(model) => {
                            if let Some(files) = progress.unverified() {
                                recorder.unverified(&files, title);
                            }
                            (model, how)
                        }
                        // The callers that began the download were refused; this one may not be.
                        Err(error)
                            if how == PublishResult::Joined
                                && route.workload().is_some()
                                && is_refusal(error.kind())
                                && !refused_once =>
                        {
                            refused_once = true;
                            continue;
                        }
                        Err(error) => {
                            changes.retry(title, error)?;
                            continue;
                        }
                    }
                }
            };
            let suspect =
                self.0.parts.weights.check(&model, &request.model, route.tenant()).await?;
            self.record_result(request, &route, &model, true).await?;
            let warnings = manifest.warnings.iter().cloned().chain(suspect).collect();
            return Ok((model, how, warnings));
        }
    }

    /// Records the model that a request got: the newest revision, or the one it names.
    async fn record_result(
        &self,
        request: &PublishRequest,
        route: &Route,
        model: &CachedModel,
        is_newest: bool,
    ) -> Result<()> {
        let (digest, is_named) = (route.digest(&request.model), request.model.revision.is_some());
        let (inner, model) = (Arc::clone(&self.0), model.clone());
        let (request, route) = (request.model.clone(), route.clone());
        blocking(move || {
            if is_named {
                inner.parts.cache.record_revision(&digest, &model)?;
            }
            if is_newest {
                newest::record(&inner.parts.cache, &request, &route, &model)?;
            }
            Ok(())
        })
        .await
    }

    /// Unpublishes a volume: unmounts it, removes the empty directory, ends the lease.
    /// Succeeds if the volume is not published.
    pub async fn unpublish(&self, volume_id: &str, target: &Path) -> Result<()> {
        let guard = self.0.targets.enter(target)?;
        self.0.calls.end(target);
        let (inner, volume_id) = (Arc::clone(&self.0), volume_id.to_owned());
        let target = target.to_owned();
        let unmounted = blocking(move || {
            let _guard = guard;
            inner.unmount(&volume_id, &target)
        })
        .await;
        unmounted.map_err(|error| self.on_disk(error))
    }

    /// Names the cache's disk in an error of that disk.
    fn on_disk(&self, error: Error) -> Error {
        mount::on_disk(error, self.0.parts.cache.layout().root())
    }

    /// The size of a published volume, from its manifest.
    ///
    /// # Errors
    /// `NotFound` if this volume is not published at this path.
    pub async fn stats(&self, volume_id: &str, path: &Path) -> Result<VolumeStats> {
        let unknown = || {
            let path = path.display();
            let text = format!("volume {volume_id} is not published at {path} by this driver");
            Error::new(ErrorKind::NotFound, text)
        };
        let lease = self.0.parts.cache.lease_of(path).filter(|lease| lease.volume_id == volume_id);
        let lease = lease.ok_or_else(unknown)?;
        let inner = Arc::clone(&self.0);
        let damaged = lease.damaged.clone();
        let (summary, older, mounted) = blocking(move || {
            let older = lease.older.as_ref().map(Older::usage);
            Ok((
                inner.parts.cache.summary(&lease.model)?,
                older,
                inner.is_mounted_as_leased(&lease)?,
            ))
        })
        .await
        .map_err(|error| self.on_disk(error))?;
        let abnormal = match (&summary, mounted) {
            _ if damaged.is_some() => damaged.map(|what| {
                format!(
                    "{what} is damaged on this node's disk; restart the pod to have it downloaded \
                     again"
                )
            }),
            (None, _) if older.is_none() => {
                Some("the model's manifest is gone from the cache".to_owned())
            }
            (_, false) => Some("the model is not mounted at the volume's path".to_owned()),
            _ => None,
        };
        let older = older.unwrap_or_default();
        let (bytes, inodes) = summary.map_or(older, |all| (all.bytes, all.inodes));
        Ok(VolumeStats { bytes, inodes, abnormal })
    }
}

/// Whether another identity may get a different answer.
fn is_refusal(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Unauthenticated | ErrorKind::Denied | ErrorKind::NotFound)
}
