//! What a pod's events say of its model.

use std::time::Duration;

use crate::cache::{CachedModel, Damage, FillProgress, LeaseRecord, Phase};
use crate::error::{Error, ErrorKind};
use crate::events::{Events, Reason, Subject};
use crate::metrics::PublishResult;
use crate::model::{PodIdentity, size_text};

/// Tells one pod; nobody when kubelet did not say which it is.
#[derive(Debug, Clone)]
pub(super) struct Teller<'a> {
    events: &'a Events,
    pod: Option<&'a PodIdentity>,
}

impl<'a> Teller<'a> {
    pub(super) fn new(events: &'a Events, pod: Option<&'a PodIdentity>) -> Self {
        Self { events, pod }
    }

    fn tell(&self, reason: Reason, note: &str) {
        if let Some(pod) = self.pod {
            self.events.tell(pod, reason, note);
        }
    }

    /// Tells of a download as it goes on, for as long as this is polled.
    pub(super) async fn progress(&self, progress: &FillProgress, title: &str) {
        let mut second = tokio::time::interval(Duration::from_secs(1));
        loop {
            second.tick().await;
            let now = progress.snapshot();
            if now.phase == Phase::Downloading && now.done > 0 {
                self.tell(Reason::Pulling, &now.text(title));
            }
        }
    }

    /// Tells how the pod came to its model.
    pub(super) fn published(&self, how: PublishResult, model: &CachedModel, title: &str) {
        let (size, revision) = (size_text(model.manifest.bytes()), &model.manifest.revision);
        match how {
            PublishResult::Hit => {
                let note = format!("{title} ({size}) was in this node's cache");
                self.tell(Reason::CacheHit, &note);
            }
            PublishResult::Joined | PublishResult::Downloaded => {
                let note = format!("{title} ({size}) was downloaded and verified");
                self.tell(Reason::Pulled, &note);
            }
            PublishResult::Stale => {
                let note = format!(
                    "Object Storage could not be asked for {title}; the newest revision in this \
                     node's cache, {revision}, was mounted (serveStaleOnOutage)"
                );
                self.tell(Reason::ServedStale, &note);
            }
            PublishResult::Failed => {}
        }
    }

    /// Tells why the pod waits for its model in vain.
    pub(super) fn failed(&self, error: &Error) {
        if error.kind() != ErrorKind::InProgress {
            self.tell(Reason::PullFailed, error.message());
        }
    }
}

/// Tells every pod that shows damaged content.
pub(super) fn damaged(events: &Events, damage: &Damage) {
    for lease in &damage.volumes {
        if let Some(pod) = subject(lease) {
            let note = format!(
                "{} of this pod's model is damaged on the node's disk ({}); restart the pod to \
                 have it downloaded again",
                damage.what, damage.why
            );
            events.tell(pod, Reason::Damaged, &note);
        }
    }
}

/// The pod of a lease: its name stands there, its UID in kubelet's path.
fn subject(lease: &LeaseRecord) -> Option<Subject> {
    let (namespace, name) = lease.pod.as_deref()?.split_once('/')?;
    let parts: Vec<_> = lease.target.iter().map(|part| part.to_string_lossy()).collect();
    let place = parts.windows(3).find(|place| place[0] == "pods" && place[2] == "volumes")?;
    let uid = place[1].clone().into_owned();
    Some(Subject { namespace: namespace.to_owned(), name: name.to_owned(), uid })
}
