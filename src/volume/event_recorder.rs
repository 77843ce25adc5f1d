//! The events of pods and claims about their models.

use std::convert::Infallible;
use std::time::Duration;

use super::claims::ClaimName;
use crate::cache::{CachedModel, Damage, FillProgress, LeaseRecord, Phase, Unverified};
use crate::error::{Error, ErrorKind};
use crate::events::{Events, InvolvedObject, ObjectKind, Reason};
use crate::metrics::{Metrics, PublishResult};
use crate::model::{PodIdentity, Warning, size_text};
use crate::text::shown;

/// Records events of one pod; none if kubelet did not send its identity.
#[derive(Debug, Clone)]
pub(super) struct EventRecorder<'a> {
    events: &'a Events,
    pod: Option<&'a PodIdentity>,
}

impl<'a> EventRecorder<'a> {
    pub(super) fn new(events: &'a Events, pod: Option<&'a PodIdentity>) -> Self {
        Self { events, pod }
    }

    fn record(&self, reason: Reason, note: &str) {
        if let Some(pod) = self.pod {
            self.events.record(pod, reason, note);
        }
    }

    /// Records the progress of a download for as long as this is polled.
    pub(super) async fn progress(&self, progress: &FillProgress) -> Infallible {
        let mut second = tokio::time::interval(Duration::from_secs(1));
        loop {
            second.tick().await;
            let now = progress.snapshot();
            if now.phase == Phase::Downloading && now.done > 0 {
                self.record(Reason::Pulling, &now.text(progress.title()));
            }
        }
    }

    /// Records how the pod got its model.
    pub(super) fn published(&self, how: PublishResult, model: &CachedModel) {
        let title = model.summary.source.title();
        let (size, revision) = (size_text(model.summary.bytes), &model.summary.revision);
        match how {
            PublishResult::Hit => {
                let note = format!("{title} ({size}) was in this node's cache");
                self.record(Reason::CacheHit, &note);
            }
            PublishResult::Joined | PublishResult::Downloaded => {
                let note = format!("{title} ({size}) was downloaded and verified");
                self.record(Reason::Pulled, &note);
            }
            PublishResult::Stale => {
                let note = format!(
                    "Object Storage cannot be reached for {title}; the newest revision in this \
                     node's cache, {revision}, was mounted (serveStaleOnOutage)"
                );
                self.record(Reason::ServedStale, &note);
            }
            PublishResult::Failed => {}
        }
    }

    /// Records that some files of the pod's model could not be verified by a checksum.
    pub(super) fn unverified(&self, files: &Unverified, title: &str) {
        let (example, n) = (shown(&files.example, 200), files.files);
        let note = format!(
            "{n} of the files of {title} could be verified by size and ETag only, {example} among \
             them: their objects carry only a multipart MD5, and the sizes of their parts are \
             unknown; upload them again with a CRC-32C checksum (oci os object put --force \
             --opc-checksum-algorithm CRC32C)"
        );
        self.record(Reason::Unverified, &note);
    }

    /// Records the warnings about a published model: in one event, in the log, and in
    /// a metric.
    pub(super) fn suspect(&self, warnings: &[Warning], title: &str, metrics: &Metrics) {
        for Warning { kind, text } in warnings {
            let reason = kind.label();
            metrics.model_warning(reason);
            tracing::warn!(model = title, reason, warning = text, "published with a warning");
        }
        if !warnings.is_empty() {
            let texts: Vec<&str> = warnings.iter().map(|warning| warning.text.as_str()).collect();
            self.record(Reason::Suspect, &texts.join("; "));
        }
    }

    /// Records why the pod does not get its model.
    pub(super) fn failed(&self, error: &Error) {
        if error.kind() != ErrorKind::InProgress {
            self.record(Reason::PullFailed, error.message());
        }
    }
}

/// Records in a claim's events why it gets no volume. The claim's UID comes from the
/// volume's name, where external-provisioner puts it by default.
pub(super) fn not_provisioned(
    events: &Events,
    claim: Option<ClaimName<'_>>,
    volume: &str,
    error: &Error,
) {
    let Some(ClaimName { namespace, name }) = claim else { return };
    if error.kind() == ErrorKind::InProgress {
        return;
    }
    if let Some(uid) = uid_in(volume) {
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        let claim =
            InvolvedObject { kind: ObjectKind::Claim, namespace, name, uid: uid.to_owned() };
        events.record(claim, Reason::PullFailed, error.message());
    }
}

/// The UUID at the end of `pvc-0f3c…`.
fn uid_in(volume: &str) -> Option<&str> {
    let uid = volume.get(volume.len().checked_sub(36)?..)?;
    let groups: Vec<&str> = uid.split('-').collect();
    let lengths = groups.iter().map(|group| group.len()).eq([8, 4, 4, 4, 12]);
    let hex = groups.iter().all(|group| group.bytes().all(|b| b.is_ascii_hexdigit()));
    (lengths && hex).then_some(uid)
}

/// Records an event for every pod that mounts damaged content.
pub(super) fn damaged(events: &Events, damage: &Damage) {
    for lease in &damage.volumes {
        if let Some(pod) = subject(lease) {
            let note = format!(
                "{} of this pod's model is damaged on the node's disk ({}); restart the pod to \
                 have it downloaded again",
                damage.what, damage.why
            );
            events.record(pod, Reason::Damaged, &note);
        }
    }
}

/// The pod of a lease: its name is in the lease, its UID in kubelet's path.
fn subject(lease: &LeaseRecord) -> Option<InvolvedObject> {
    let (namespace, name) = lease.pod.as_deref()?.split_once('/')?;
    let parts: Vec<_> = lease.target.iter().map(|part| part.to_string_lossy()).collect();
    let place = parts.windows(3).find(|place| place[0] == "pods" && place[2] == "volumes")?;
    let uid = place[1].clone().into_owned();
    let (namespace, name) = (namespace.to_owned(), name.to_owned());
    Some(InvolvedObject { kind: ObjectKind::Pod, namespace, name, uid })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_claims_uid_is_at_the_end_of_the_volumes_name() {
        let uid = "0f3c2a1e-7d55-4c0b-9a51-3f0c6f3e8f11";
        for volume in [format!("pvc-{uid}"), format!("models-{uid}"), uid.to_owned()] {
            assert_eq!(uid_in(&volume), Some(uid), "{volume}");
        }
        let others = ["", "pvc-1", "pvc-0f3c2a1e7d554c0b9a513f0c6f3e8f11", "ä-0f3c2a1e-7d55-4c0b"];
        for volume in others.into_iter().map(str::to_owned).chain([format!("{uid}x")]) {
            assert_eq!(uid_in(&volume), None, "{volume}");
        }
    }
}
