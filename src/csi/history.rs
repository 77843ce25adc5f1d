//! What the driver remembers of its calls, for the node's administrator: those that failed
//! within the last hour, and whether kubelet has called at all.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tonic::Code;

use super::status;
use crate::sync::lock;
use crate::text::shown;

/// How long a failure is remembered.
const REMEMBERED: Duration = Duration::from_secs(60 * 60);

/// How many failures are remembered, one for each method, code, volume and pod. The namespace that
/// has the most forgets its oldest one first.
const MOST: usize = 64;

/// How kubelet's ids of inline volumes begin, one for each pod (its `makeVolumeHandle`).
const INLINE: &str = "csi-";

/// The longest name of a volume or pod, in characters.
const NAME: usize = 128;

/// The calls of kubelet and the sidecars, in memory. Its size is bounded: 64 failures with a
/// message of 800 characters.
///
/// Cheap to clone; all clones share one state.
#[derive(Debug, Clone)]
pub struct CallHistory(Arc<Mutex<FailedCalls>>);

#[derive(Debug)]
struct FailedCalls {
    started: SystemTime,
    kubelet_called: Option<SystemTime>,
    failures: Vec<FailedCall>,
}

/// A call that failed, once or again and again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FailedCall {
    /// The method, such as `NodePublishVolume`.
    pub method: String,
    /// The gRPC code, such as `NotFound`.
    pub code: String,
    /// The last message.
    pub message: String,
    /// The volume's id or name; may be empty.
    pub volume: String,
    /// The pod, as `namespace/name`, where the call named one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// How often it failed.
    pub count: u64,
    /// The first time, in seconds since the epoch.
    pub first: u64,
    /// The last time, in seconds since the epoch.
    pub last: u64,
    /// Whether a later call for the volume succeeded.
    pub succeeded_later: bool,
}

impl FailedCall {
    /// The Kubernetes namespace of the pod. Calls that name no pod have none, and are as one tenant.
    pub(crate) fn namespace(&self) -> Option<&str> {
        Some(self.pod.as_deref()?.split('/').next().unwrap_or_default())
    }
}

impl Default for CallHistory {
    fn default() -> Self {
        let started = SystemTime::now();
        Self(Arc::new(Mutex::new(FailedCalls {
            started,
            kubelet_called: None,
            failures: Vec::new(),
        })))
    }
}

impl CallHistory {
    /// When the driver started.
    pub fn started(&self) -> SystemTime {
        lock(&self.0).started
    }

    /// When kubelet called last, to register the driver or for a volume.
    pub fn kubelet_called(&self) -> Option<SystemTime> {
        lock(&self.0).kubelet_called
    }

    /// The failures of the last hour, the newest first.
    pub fn failures(&self) -> Vec<FailedCall> {
        let oldest = seconds(SystemTime::now()).saturating_sub(REMEMBERED.as_secs());
        let mut calls = lock(&self.0);
        calls.failures.retain(|call| call.last >= oldest);
        let mut failures = calls.failures.clone();
        failures.sort_by_key(|call| std::cmp::Reverse(call.last));
        failures
    }

    /// Records that kubelet has called.
    pub(super) fn record_kubelet(&self) {
        lock(&self.0).kubelet_called = Some(SystemTime::now());
    }

    /// Records that a call for this volume and pod succeeded. Calls that name no pod count for the
    /// pod of an inline volume; a claim's volume has many pods.
    pub(super) fn record_success(&self, volume: &str, pod: Option<&str>) {
        let (volume, pod) = (shown(volume, NAME), pod.map(|pod| shown(pod, 2 * NAME)));
        let is_of_one_pod = pod.is_none() && volume.starts_with(INLINE);
        for call in &mut lock(&self.0).failures {
            call.succeeded_later |= call.volume == volume && (call.pod == pod || is_of_one_pod);
        }
    }

    /// Records a failure. Answers that say that work continues are none.
    pub(super) fn record_failure(
        &self,
        method: &str,
        code: Code,
        message: &str,
        (volume, pod): (&str, Option<&str>),
    ) {
        if matches!(code, Code::Ok | Code::Aborted | Code::Cancelled | Code::Unimplemented) {
            return;
        }
        let (code, volume) = (status::name(code), shown(volume, NAME));
        let pod = pod.map(|pod| shown(pod, 2 * NAME));
        let now = seconds(SystemTime::now());
        let calls = &mut lock(&self.0).failures;
        let known = calls.iter_mut().find(|call| {
            (&*call.method, &*call.code, &call.volume, &call.pod) == (method, code, &volume, &pod)
        });
        if let Some(known) = known {
            known.message = shown(message, status::MESSAGE_MAX);
            known.count += 1;
            known.last = now;
            known.succeeded_later = false;
            return;
        }
        calls.push(FailedCall {
            method: method.to_owned(),
            code: code.to_owned(),
            message: shown(message, status::MESSAGE_MAX),
            pod,
            volume,
            count: 1,
            first: now,
            last: now,
            succeeded_later: false,
        });
        if calls.len() > MOST {
            forget_one(calls);
        }
    }
}

/// Forgets the oldest failure of the namespace that has the most of them, so that a namespace whose
/// pods fail without end keeps the failures of others. Among equals it is the oldest of all.
fn forget_one(calls: &mut Vec<FailedCall>) {
    let mut sizes = HashMap::<Option<&str>, usize>::new();
    for call in &*calls {
        *sizes.entry(call.namespace()).or_default() += 1;
    }
    let largest = sizes.values().copied().max().unwrap_or_default();
    let of_largest = |call: &FailedCall| sizes.get(&call.namespace()) == Some(&largest);
    let numbered = calls.iter().enumerate().filter(|(_, call)| of_largest(call));
    let oldest = numbered.min_by_key(|(_, call)| call.last).map(|(at, _)| at);
    if let Some(oldest) = oldest {
        calls.remove(oldest);
    }
}

/// Seconds since the epoch.
fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn fail(history: &CallHistory, code: Code, volume: &str) {
        history.record_failure("NodePublishVolume", code, "no bucket", (volume, Some("team/pod")));
    }

    #[test]
    fn repeated_failures_of_a_volume_are_one_entry_with_a_count() {
        let history = CallHistory::default();
        fail(&history, Code::NotFound, "a");
        fail(&history, Code::NotFound, "a");
        fail(&history, Code::NotFound, "b");
        let found = history.failures();
        assert_eq!(found.len(), 2);
        let a = found.iter().find(|call| call.volume == "a").unwrap();
        assert_eq!((a.count, &*a.code, a.pod.as_deref()), (2, "NotFound", Some("team/pod")));
    }

    #[test]
    fn progress_and_missing_methods_are_no_failures() {
        let history = CallHistory::default();
        for code in [Code::Aborted, Code::Cancelled, Code::Unimplemented, Code::Ok] {
            fail(&history, code, "a");
        }
        assert_eq!(history.failures(), []);
    }

    #[test]
    fn a_failure_whose_volume_succeeds_later_says_so() {
        let history = CallHistory::default();
        fail(&history, Code::Unavailable, "a");
        fail(&history, Code::Unavailable, "b");
        history.record_success("a", Some("team/pod"));
        let later = |volume: &str| {
            let found = history.failures();
            found.iter().find(|call| call.volume == volume).unwrap().succeeded_later
        };
        assert!(later("a") && !later("b"));
        fail(&history, Code::Unavailable, "a");
        assert!(!later("a"), "it failed again");
    }

    #[test]
    fn however_many_volumes_fail_the_record_stays_small() {
        let history = CallHistory::default();
        for n in 0..10 * MOST {
            let long = format!("{n}{}", "x".repeat(10_000));
            history.record_failure(
                "NodePublishVolume",
                Code::Internal,
                &long,
                (&long, Some(&long)),
            );
        }
        let found = history.failures();
        assert_eq!(found.len(), MOST);
        let bytes: usize = found.iter().map(|call| call.message.len() + call.volume.len()).sum();
        assert!(bytes < MOST * 1024, "{bytes} bytes");
    }

    fn fail_in(history: &CallHistory, namespace: &str, n: usize) {
        let pod = format!("{namespace}/{n}");
        let subject = (&*format!("csi-{namespace}-{n}"), Some(&*pod));
        history.record_failure("NodePublishVolume", Code::NotFound, "no bucket", subject);
    }

    /// How many failures of each namespace are remembered.
    fn remembered(history: &CallHistory) -> BTreeMap<String, usize> {
        let mut sizes = BTreeMap::new();
        for call in history.failures() {
            *sizes.entry(call.namespace().unwrap_or("-").to_owned()).or_default() += 1;
        }
        sizes
    }

    #[test]
    fn the_failing_pods_of_one_namespace_push_out_none_of_another() {
        let history = CallHistory::default();
        fail_in(&history, "quiet", 0);
        fail_in(&history, "quiet", 1);
        // A claim's volume, whose unpublish names no pod.
        history.record_failure("NodeUnpublishVolume", Code::Internal, "busy", ("pvc-1", None));
        for n in 0..10 * MOST {
            fail_in(&history, "loud", n);
        }
        let sizes = remembered(&history);
        assert_eq!((sizes["quiet"], sizes["-"], sizes["loud"]), (2, 1, MOST - 3));
        let latest = format!("loud/{}", 10 * MOST - 1);
        let pods: Vec<_> = history.failures().into_iter().filter_map(|call| call.pod).collect();
        assert!(pods.contains(&latest), "its newest failure is remembered");

        // Another one that comes later gets its share, and no more.
        for n in 0..10 * MOST {
            fail_in(&history, "late", n);
        }
        let sizes = remembered(&history);
        assert_eq!((sizes["quiet"], sizes["-"]), (2, 1));
        assert!(sizes["late"].abs_diff(sizes["loud"]) <= 1, "{sizes:?}");
    }

    #[test]
    fn more_namespaces_than_places_keep_the_newest_failures() {
        let history = CallHistory::default();
        for n in 0..3 * MOST {
            fail_in(&history, &format!("team-{n}"), 0);
        }
        let sizes = remembered(&history);
        assert_eq!(sizes.len(), MOST);
        assert!(sizes.contains_key(&format!("team-{}", 3 * MOST - 1)), "{sizes:?}");
        assert!(!sizes.contains_key("team-0"), "{sizes:?}");
    }

    #[test]
    fn a_failure_is_forgotten_after_an_hour() {
        let history = CallHistory::default();
        fail(&history, Code::Internal, "a");
        lock(&history.0).failures[0].last -= REMEMBERED.as_secs() - 5;
        assert_eq!(history.failures().len(), 1);
        lock(&history.0).failures[0].last -= 10;
        assert_eq!(history.failures(), []);
    }
}
