//! Kubernetes Events about pods and claims: what `kubectl describe` shows
//! besides kubelet's own and external-provisioner's.
//!
//! Recording never waits and never fails: events go through a bounded queue to
//! one task, which posts them at a bounded rate. A pod's repeated event of one
//! reason becomes a count and a newer text on the first one. Where the API
//! server cannot be reached, events are dropped; after a 403, nothing is sent
//! for a while, unless the only reason is that the pod's namespace is being deleted.

mod api;
mod recent;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use api::{EventsApi, Posted};
use recent::RecentEvents;

use crate::kubernetes;
use crate::model::PodIdentity;
use crate::sync::lock;
use crate::text::shown;

/// Events that wait to be posted; further ones are dropped.
const QUEUE: usize = 1000;

/// Between two posts. kube-apiserver's own limit for a client is higher.
const PACE: Duration = Duration::from_millis(50);

/// Pause after a 403: an administrator may have to extend a role.
const FORBIDDEN: Duration = Duration::from_secs(10 * 60);

/// The longest note that the API server accepts, in bytes.
const NOTE: usize = 1000;

/// The reason of an event about a pod or a claim; the names are part of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Its model is being downloaded.
    Pulling,
    /// Its model was downloaded.
    Pulled,
    /// Its model was in the cache.
    CacheHit,
    /// It got an older revision, since Object Storage could not be reached.
    ServedStale,
    /// Its model could not be downloaded, or the volume of a claim could not be provisioned.
    PullFailed,
    /// Its model is damaged on the node's disk.
    Damaged,
    /// Its model was mounted, and no checksum could prove the content of some file.
    Unverified,
    /// Its model was mounted, and something about it is suspect.
    Suspect,
}

impl Reason {
    fn name(self) -> &'static str {
        match self {
            Self::Pulling => "ModelPulling",
            Self::Pulled => "ModelPulled",
            Self::CacheHit => "ModelCacheHit",
            Self::ServedStale => "ModelServedStale",
            Self::PullFailed => "ModelPullFailed",
            Self::Damaged => "ModelDamaged",
            Self::Unverified => "ModelUnverified",
            Self::Suspect => "ModelSuspect",
        }
    }

    fn is_warning(self) -> bool {
        matches!(
            self,
            Self::ServedStale | Self::PullFailed | Self::Damaged | Self::Unverified | Self::Suspect
        )
    }
}

/// The kind of object that an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ObjectKind {
    /// A pod, about its volume.
    Pod,
    /// A PersistentVolumeClaim, about the volume that is provisioned for it.
    Claim,
}

impl ObjectKind {
    fn name(self) -> &'static str {
        match self {
            Self::Pod => "Pod",
            Self::Claim => "PersistentVolumeClaim",
        }
    }
}

/// The pod or claim that an event is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct InvolvedObject {
    /// What it is.
    pub kind: ObjectKind,
    /// Kubernetes namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID; without it `kubectl describe` does not find the event.
    pub uid: String,
}

impl From<&PodIdentity> for InvolvedObject {
    fn from(pod: &PodIdentity) -> Self {
        let PodIdentity { namespace, name, uid, .. } = pod.clone();
        Self { kind: ObjectKind::Pod, namespace, name, uid }
    }
}

/// One event to post.
#[derive(Debug, Clone)]
struct Event {
    subject: InvolvedObject,
    reason: Reason,
    note: String,
}

/// Records events about pods and claims; cheap to clone. The default drops them: there is no
/// API server.
#[derive(Debug, Clone, Default)]
pub struct Events(Option<Arc<EventsInner>>);

#[derive(Debug)]
struct EventsInner {
    queue: mpsc::Sender<Event>,
    recent: Mutex<RecentEvents>,
}

impl Events {
    /// Posts events to this API server, as `driver` on `node`. The task that posts
    /// them ends at `shutdown`, and drops what is still queued.
    pub fn to(
        server: kubernetes::ApiServer,
        driver: &str,
        node: &str,
        tasks: &TaskTracker,
        shutdown: &CancellationToken,
    ) -> Self {
        let api = EventsApi::new(server, driver, node);
        let (queue, inbox) = mpsc::channel(QUEUE);
        tasks.spawn(post(api, inbox, shutdown.clone()));
        Self(Some(Arc::new(EventsInner { queue, recent: Mutex::default() })))
    }

    /// Records an event, unless the same one was recorded a moment ago.
    pub fn record(&self, subject: impl Into<InvolvedObject>, reason: Reason, note: &str) {
        let Some(inner) = &self.0 else { return };
        let subject = subject.into();
        if subject.uid.is_empty() || subject.name.is_empty() || subject.namespace.is_empty() {
            return;
        }
        if !lock(&inner.recent).admits(&subject, reason, note) {
            return;
        }
        // The limit is in bytes; the longest character has four.
        let event = Event { subject, reason, note: shown(note, NOTE / 4 * 3) };
        if inner.queue.try_send(event).is_err() {
            tracing::debug!(reason = reason.name(), "event dropped: the queue is full");
        }
    }
}

async fn post(mut api: EventsApi, mut inbox: mpsc::Receiver<Event>, shutdown: CancellationToken) {
    let mut silent_until: Option<Instant> = None;
    loop {
        let event = tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            event = inbox.recv() => match event {
                Some(event) => event,
                None => return,
            },
        };
        if silent_until.is_some_and(|until| Instant::now() < until) {
            continue;
        }
        let posted = tokio::select! {
            () = shutdown.cancelled() => return,
            posted = api.post(&event) => posted,
        };
        match posted {
            Posted::Done => silent_until = None,
            Posted::Forbidden => {
                tracing::warn!(
                    "the API server does not let the driver write events (create and patch events \
                     in the namespaces of pods and claims); no events are sent for a while"
                );
                silent_until = Some(Instant::now() + FORBIDDEN);
            }
            Posted::Failed(error) => {
                tracing::debug!(error, reason = event.reason.name(), "posting an event failed");
            }
        }
        tokio::time::sleep(PACE).await;
    }
}

#[cfg(test)]
mod tests;
