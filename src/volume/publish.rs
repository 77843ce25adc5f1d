//! Publish, unpublish and stats of one volume.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{Instrument as _, Span};

use super::calls::Calls;
use super::ensure::Ensured;
use super::event_recorder::{self, EventRecorder};
use super::page_warmer::PageWarmer;
use super::step_times::StepTimes;
use super::targets::{TargetGuard, Targets};
use super::{IncomingPublish, PublishKey, PublishRequest, VolumeStats};
use crate::blocking::blocking;
use crate::cache::{Cache, Older};
use crate::download::Engine;
use crate::error::{Error, ErrorKind, Result};
use crate::events::Events;
use crate::metrics::{Metrics, PublishResult};
use crate::model::PodIdentity;
use crate::mount;
use crate::policy::Policy;
use crate::resolve::RevisionSelector;
use crate::telemetry;
use crate::trace;
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
    /// Reads models ahead after a hit.
    pub warmer: PageWarmer,
    /// Counts publishes.
    pub metrics: Arc<Metrics>,
}

pub(super) struct VolumesInner {
    pub(super) parts: VolumeParts,
    targets: Targets,
    calls: Calls,
}

/// One call of a publish.
pub(super) struct PublishAttempt {
    pub(super) key: PublishKey,
    pub(super) pod: Option<PodIdentity>,
    pub(super) request: PublishRequest,
    /// The model's title, for messages.
    pub(super) title: String,
    /// When the call must have answered.
    pub(super) deadline: Instant,
    /// For the log.
    pub(super) steps: StepTimes,
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

    pub(super) fn parts(&self) -> &VolumeParts {
        &self.0.parts
    }

    /// Mounts a model read-only at the target path. Succeeds if it is mounted already,
    /// whatever the request says besides its key.
    ///
    /// Waits at most `wait` for a download. Then the answer is `InProgress` with the
    /// progress, the download continues, and the next call joins it.
    ///
    /// Cancellation safe: lease and mount, which must not be left half done, are
    /// finished even if the caller goes away.
    pub async fn publish(&self, incoming: IncomingPublish, wait: Duration) -> Result<()> {
        let started = Instant::now();
        let IncomingPublish { key, pod, request } = incoming;
        let span = Span::current();
        if let Some(pod) = &pod {
            span.record("pod", format!("{}/{}", pod.namespace, pod.name));
        }
        if let Ok(request) = &request {
            span.record("model", request.model.title());
        }
        let guard = self.0.targets.enter(&key.target)?;
        // kubelet repeats the call for every running pod after its restart: no schema,
        // policy, network or limit of today may break those.
        let published = self.is_published(&key).await;
        if published == Ok(true) {
            return Ok(());
        }
        let request = request.inspect_err(|error| self.recorder(pod.as_ref()).failed(error))?;
        let title = request.model.title();
        let deadline = started + wait;
        let steps = StepTimes::since(started);
        steps.ended("target");
        let attempt = Arc::new(PublishAttempt { key, pod, request, title, deadline, steps });
        let result = match published {
            Ok(_) => self.mount_model(guard, &attempt).await,
            Err(error) => Err(error),
        };
        let result = result.map_err(|error| self.on_disk(error));
        let metrics = &self.0.parts.metrics;
        match &result {
            Ok((how, first)) => {
                attempt.steps.ended("answer");
                tracing::debug!(steps = %attempt.steps, "milliseconds of the publish by step");
                telemetry::set(&Span::current(), "oci_model_csi.result", how.label());
                metrics.published(*how, first.elapsed().as_secs_f64());
            }
            Err(error) if error.kind() == ErrorKind::InProgress => {}
            Err(error) => {
                self.recorder(attempt.pod.as_ref()).failed(error);
                metrics.published(PublishResult::Failed, started.elapsed().as_secs_f64());
            }
        }
        result.map(drop)
    }

    /// Ensures that the model is cached, and mounts it. Returns the result, and the
    /// time of the first call for the volume.
    async fn mount_model(
        &self,
        guard: TargetGuard,
        attempt: &Arc<PublishAttempt>,
    ) -> Result<(PublishResult, Instant)> {
        let begun = self.0.calls.enter(&attempt.key);
        let ensuring = self.ensure_permitted(attempt, &begun.silence);
        let Ok(ensured) = tokio::time::timeout_at(attempt.deadline, ensuring).await else {
            let title = &attempt.title;
            let text = format!("looking up {title} in Object Storage; the lookup continues");
            return Err(Error::new(ErrorKind::InProgress, text));
        };
        let Ensured { model, how, warnings } = ensured?;
        let inner = Arc::clone(&self.0);
        let mounting = Arc::clone(attempt);
        let mounted = model.clone();
        blocking(move || inner.mount(guard, &mounting, mounted))
            .instrument(tracing::info_span!(target: trace::STEP, "mount"))
            .await?;
        attempt.steps.ended("bind");
        self.0.calls.end(&attempt.key.target);
        if matches!(how, PublishResult::Hit | PublishResult::Stale) {
            self.0.parts.warmer.hit(&model);
        }
        let recorder = self.recorder(attempt.pod.as_ref());
        recorder.published(how, &model);
        recorder.suspect(&warnings, &attempt.title, &self.0.parts.metrics);
        tracing::info!(
            target = %attempt.key.target.display(),
            revision = model.summary.revision.as_str(),
            result = how.label(),
            "published"
        );
        Ok((how, begun.first))
    }

    /// Records the events of one pod.
    pub(super) fn recorder<'a>(&'a self, pod: Option<&'a PodIdentity>) -> EventRecorder<'a> {
        EventRecorder::new(&self.0.parts.events, pod)
    }

    /// Whether this volume's model is mounted at the target already, for this request.
    ///
    /// # Errors
    /// `Conflict` if something else is mounted there.
    async fn is_published(&self, key: &PublishKey) -> Result<bool> {
        let Some(lease) = self.0.parts.cache.lease_of(&key.target) else { return Ok(false) };
        let same_volume = lease.volume_id == key.volume_id;
        // A lease of an earlier version has the digest of the attributes as written.
        let same_request = lease.request == key.digest || lease.request == key.as_written;
        // A volume of an older layout matches every request.
        if same_volume && (same_request || lease.older.is_some()) {
            let inner = Arc::clone(&self.0);
            return blocking(move || inner.is_mounted_as_leased(&lease)).await;
        }
        let inner = Arc::clone(&self.0);
        let target = key.target.clone();
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

    /// Unpublishes a volume: unmounts it, removes the empty directory, ends the lease.
    /// Succeeds if the volume is not published.
    pub async fn unpublish(&self, volume_id: &str, target: &Path) -> Result<()> {
        let guard = self.0.targets.enter(target)?;
        self.0.calls.end(target);
        let inner = Arc::clone(&self.0);
        let volume_id = volume_id.to_owned();
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
