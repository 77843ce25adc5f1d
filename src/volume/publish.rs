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
use crate::resolve::UnansweredSince;
use crate::resolve::{Requester, Route, newest};
use crate::resolve::{RevisionSelector, Selection};

/// Times that a model may change under a publish before that is the answer.
const RESOLVES: u32 = 3;

/// The volumes of this node; cheap to clone.
#[derive(Clone)]
pub struct Volumes(Arc<VolumesInner>);

pub(super) struct VolumesInner {
    pub(super) cache: Cache,
    /// kubelet's root directory.
    pub(super) kubelet: PathBuf,
    engine: Engine,
    chooser: RevisionSelector,
    policy: watch::Receiver<Policy>,
    targets: Targets,
    calls: Calls,
    events: Events,
    metrics: Arc<Metrics>,
}

impl Volumes {
    /// The use cases over these parts; `kubelet` is kubelet's root directory. A
    /// change of the policy holds from the next question on; what is mounted stays.
    pub fn new(
        cache: Cache,
        kubelet: PathBuf,
        engine: Engine,
        chooser: RevisionSelector,
        policy: watch::Receiver<Policy>,
        events: Events,
        metrics: Arc<Metrics>,
    ) -> Self {
        let (targets, calls) = (Targets::default(), Calls::default());
        let told = events.clone();
        cache.on_damage(move |damage| event_recorder::damaged(&told, damage));
        let inner = VolumesInner {
            cache,
            kubelet,
            engine,
            chooser,
            policy,
            targets,
            calls,
            events,
            metrics,
        };
        Self(Arc::new(inner))
    }

    pub(super) fn cache(&self) -> &Cache {
        &self.0.cache
    }

    pub(super) fn chooser(&self) -> &RevisionSelector {
        &self.0.chooser
    }

    pub(super) fn engine(&self) -> &Engine {
        &self.0.engine
    }

    /// Shows a model at the target path, read-only, or says why not.
    ///
    /// Waits for a download at most `wait`; then the answer is `InProgress`
    /// with the progress, the download goes on, and the next call joins it.
    ///
    /// Cancellation safe: what must not be left half done (lease and mount) is
    /// finished even when the caller goes away.
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
            EventRecorder::new(&self.0.events, pod.as_ref()).failed(error);
        }
        match &result {
            Ok(None) => {}
            Ok(Some((how, first))) => {
                self.0.metrics.published(*how, first.elapsed().as_secs_f64());
            }
            Err(error) if error.kind() == ErrorKind::InProgress => {}
            Err(_) => {
                let seconds = started.elapsed().as_secs_f64();
                self.0.metrics.published(PublishResult::Failed, seconds);
            }
        }
        result.map(|_| ())
    }

    /// Tells a pod of a publish that is no request of ours, which nobody can carry out.
    pub fn tell_refused(&self, pod: Option<&PodIdentity>, error: &Error) {
        EventRecorder::new(&self.0.events, pod).failed(error);
    }

    /// How it was published, and when the first call for the volume came; `None` when
    /// it was published before.
    async fn try_publish(
        &self,
        request: PublishRequest,
        deadline: Instant,
    ) -> Result<Option<(PublishResult, Instant)>> {
        let guard = self.0.targets.enter(&request.key.target)?;
        // kubelet asks again for every running pod after its restart: no
        // policy, network or limit of today may hurt those.
        if self.is_published(&request.key).await? {
            return Ok(None);
        }
        let begun = self.0.calls.enter(&request.key);
        let title = request.model.title();
        let bringing = async {
            self.permit(&request).await?;
            let brought = self.bring(&request, &title, deadline, &begun.silence).await?;
            // That took a while, in which the rules may have changed.
            self.permit(&request).await.map(|()| brought)
        };
        let (model, how, warnings) = match tokio::time::timeout_at(deadline, bringing).await {
            Ok(brought) => brought?,
            Err(_) => {
                let text = format!("looking up {title} in Object Storage; it goes on");
                return Err(Error::new(ErrorKind::InProgress, text));
            }
        };
        let (inner, revision) = (Arc::clone(&self.0), model.summary.revision.clone());
        let target = request.key.target.clone();
        let (pod, shown) = (request.pod.clone(), model.clone());
        blocking(move || inner.show(guard, request, model)).await?;
        self.0.calls.end(&target);
        let teller = EventRecorder::new(&self.0.events, pod.as_ref());
        teller.published(how, &shown, &title);
        teller.suspect(&warnings, &title, &self.0.metrics);
        let (target, result) = (target.display(), how.label());
        tracing::info!(%target, revision = revision.as_str(), result, "published");
        Ok(Some((how, begun.first)))
    }

    /// Whether the target shows this volume's model already, for this request.
    ///
    /// # Errors
    /// `Conflict` when it shows something else.
    pub async fn is_published(&self, key: &PublishKey) -> Result<bool> {
        let Some(lease) = self.0.cache.lease_of(&key.target) else { return Ok(false) };
        let same_volume = lease.volume_id == key.volume_id;
        // A lease of an earlier version has the digest of the attributes as they are written.
        let same_request = lease.request == key.digest || lease.request == key.as_written;
        // A volume of an older layout is what it was made as.
        if same_volume && (same_request || lease.older.is_some()) {
            let inner = Arc::clone(&self.0);
            return blocking(move || inner.shows(&lease)).await;
        }
        let (inner, target) = (Arc::clone(&self.0), key.target.clone());
        if !blocking(move || inner.is_mounted(&target)).await? {
            return Ok(false);
        }
        let shown = key.target.display();
        Err(Error::new(
            ErrorKind::Conflict,
            if same_volume {
                format!(
                    "{shown} shows this volume with other attributes; a running volume does not \
                     change: delete the pod to get the new ones"
                )
            } else {
                format!("{shown} shows another volume, {}; unpublish that first", lease.volume_id)
            },
        ))
    }

    async fn permit(&self, request: &PublishRequest) -> Result<()> {
        let VolumesInner { policy, chooser, .. } = &*self.0;
        let pod = request.pod.as_ref();
        let asking = (Subject::Pod(pod), Requester::Pod { pod, tokens: request.tokens.as_ref() });
        permit(policy, chooser.resolver(), asking, &request.model).await
    }

    /// The model, complete in the cache, and what should be looked at in it.
    async fn bring(
        &self,
        request: &PublishRequest,
        title: &str,
        deadline: Instant,
        silence: &UnansweredSince,
    ) -> Result<(CachedModel, PublishResult, Vec<Warning>)> {
        let scope = request.model.scope_id(request.pod.as_ref())?;
        let caller = Requester::Pod { pod: request.pod.as_ref(), tokens: request.tokens.as_ref() };
        let resolver = self.0.chooser.resolver();
        let route = resolver.route_of(caller, &request.model, &scope).await?;
        let teller = EventRecorder::new(&self.0.events, request.pod.as_ref());
        let mut changed = None;
        for _ in 0..RESOLVES {
            let VolumesInner { cache, chooser, .. } = &*self.0;
            let chosen = chooser.choose(cache, &request.model, &route, silence).await?;
            let manifest = match chosen {
                Selection::Cached(model) => {
                    let warnings =
                        self.0.cache.check_weights(&model, &request.model, route.tenant()).await?;
                    self.note(request, &route, &model, false).await?;
                    return Ok((model, PublishResult::Hit, warnings));
                }
                Selection::Stale(model) => {
                    let warnings =
                        self.0.cache.check_weights(&model, &request.model, route.tenant()).await?;
                    return Ok((model, PublishResult::Stale, warnings));
                }
                Selection::Wanted(manifest) => manifest,
            };
            let (model, how) = match self.0.cache.find(&manifest.key()).await? {
                Some(model) => (model, PublishResult::Hit),
                None => {
                    let (engine, client) = (&self.0.engine, route.client());
                    let asker = Priority::Pod(route.tenant().clone());
                    let mut ticket = self.0.cache.fill(engine, &manifest, title, &asker, client);
                    let how = match ticket.joined() {
                        true => PublishResult::Joined,
                        false => PublishResult::Downloaded,
                    };
                    let progress = ticket.shared_progress();
                    Span::current().record("flight", progress.id());
                    tracing::debug!(joined = ticket.joined(), "waiting for the model");
                    let completed = tokio::select! {
                        completed = ticket.completed() => completed,
                        short = progress.short_of_space() => {
                            let namespace = request.pod.as_ref().map(|pod| pod.namespace.as_str());
                            return Err(short.error_of_pod(title, namespace));
                        }
                        () = teller.progress(&progress, title) => continue,
                        () = tokio::time::sleep_until(deadline) => {
                            let text = progress.snapshot().text(title);
                            return Err(Error::new(ErrorKind::InProgress, text));
                        }
                    };
                    match completed {
                        Ok(model) => {
                            if let Some(files) = progress.unverified() {
                                teller.unverified(&files, title);
                            }
                            (model, how)
                        }
                        // It was refused to those who began it, perhaps not to this one.
                        Err(error)
                            if how == PublishResult::Joined
                                && route.workload().is_some()
                                && is_refusal(error.kind())
                                && changed.is_none() =>
                        {
                            changed = Some(error);
                            continue;
                        }
                        Err(error) if error.kind() == ErrorKind::Changed => {
                            tracing::info!(%error, "resolving again");
                            changed = Some(error);
                            continue;
                        }
                        Err(error) => return Err(error),
                    }
                }
            };
            let suspect =
                self.0.cache.check_weights(&model, &request.model, route.tenant()).await?;
            self.note(request, &route, &model, true).await?;
            let warnings = manifest.warnings.iter().cloned().chain(suspect).collect();
            return Ok((model, how, warnings));
        }
        let last = changed.map(|error| format!(" ({error})")).unwrap_or_default();
        Err(Error::new(
            ErrorKind::Precondition,
            format!(
                "{title} kept changing while it was downloaded, {RESOLVES} times in a row{last}; \
                 wait until its upload is finished"
            ),
        ))
    }

    /// Notes what a request got: the newest revision, or one that it names.
    async fn note(
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
                inner.cache.record_revision(&digest, &model)?;
            }
            if is_newest {
                newest::record(&inner.cache, &request, &route, &model)?;
            }
            Ok(())
        })
        .await
    }

    /// Takes a volume away: unmount, remove the empty directory, end the lease.
    /// What is gone already is fine.
    pub async fn unpublish(&self, volume_id: &str, target: &Path) -> Result<()> {
        let guard = self.0.targets.enter(target)?;
        self.0.calls.end(target);
        let (inner, volume_id) = (Arc::clone(&self.0), volume_id.to_owned());
        let target = target.to_owned();
        let taken = blocking(move || {
            let _guard = guard;
            inner.take_away(&volume_id, &target)
        })
        .await;
        taken.map_err(|error| self.on_disk(error))
    }

    /// Names the cache's disk where that is what fails.
    fn on_disk(&self, error: Error) -> Error {
        mount::on_disk(error, self.0.cache.layout().root())
    }

    /// What a published volume takes, from its manifest.
    ///
    /// # Errors
    /// `NotFound` when this path does not show this volume.
    pub async fn stats(&self, volume_id: &str, path: &Path) -> Result<VolumeStats> {
        let unknown = || {
            let shown = path.display();
            let text = format!("volume {volume_id} is not published at {shown} by this driver");
            Error::new(ErrorKind::NotFound, text)
        };
        let lease = self.0.cache.lease_of(path).filter(|lease| lease.volume_id == volume_id);
        let lease = lease.ok_or_else(unknown)?;
        let inner = Arc::clone(&self.0);
        let damaged = lease.damaged.clone();
        let (summary, older, shown) = blocking(move || {
            let older = lease.older.as_ref().map(Older::usage);
            Ok((inner.cache.summary(&lease.model)?, older, inner.shows(&lease)?))
        })
        .await
        .map_err(|error| self.on_disk(error))?;
        let abnormal = match (&summary, shown) {
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

/// Whether another identity may be answered otherwise.
fn is_refusal(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Unauthenticated | ErrorKind::Denied | ErrorKind::NotFound)
}
