//! How an event is written to the API server.

use std::collections::HashMap;
use std::time::SystemTime;

use serde_json::json;

use super::Event;
use crate::kubernetes::{self, ApiFailure, Patch};

/// Events of one pod and reason that are counted up instead of created again.
const REMEMBERED: usize = 4096;

/// The outcome of posting an event.
#[derive(Debug)]
pub(super) enum Posted {
    Done,
    Forbidden,
    Failed(String),
}

pub(super) struct EventsApi {
    server: kubernetes::ApiServer,
    driver: String,
    node: String,
    /// Name and count of the current event for a pod and reason.
    current: HashMap<(String, &'static str), (String, u32)>,
    next: u64,
}

impl EventsApi {
    pub(super) fn new(server: kubernetes::ApiServer, driver: &str, node: &str) -> Self {
        Self {
            server,
            driver: driver.to_owned(),
            node: node.to_owned(),
            current: HashMap::new(),
            next: 0,
        }
    }

    /// Posts an event, or counts up the current one of its pod and reason.
    pub(super) async fn post(&mut self, event: &Event) -> Posted {
        let key = (event.subject.uid.clone(), event.reason.name());
        if let Some((name, count)) = self.current.get(&key).cloned() {
            let count = count.saturating_add(1);
            let body = json!({
                "count": count, "message": event.note, "lastTimestamp": now(),
            });
            let path = format!("{}/{name}", path(event));
            match self.server.patch(&path, &Patch::Merge(body)).await {
                Ok(_) => {
                    self.current.insert(key, (name, count));
                    return Posted::Done;
                }
                Err(failure) if failure.is_not_found() => {
                    // It expired after an hour, as events do.
                    self.current.remove(&key);
                }
                Err(failure) => return failed(&failure),
            }
        }
        self.create(event, key).await
    }

    async fn create(&mut self, event: &Event, key: (String, &'static str)) -> Posted {
        self.next += 1;
        let started = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        // Named as client-go does: unique, and sorted by time.
        let unique = format!("{:x}", started.as_nanos().wrapping_add(u128::from(self.next)));
        let most = 253 - unique.len() - 1;
        let subject: String = event.subject.name.chars().take(most).collect();
        let name = format!("{subject}.{unique}");
        let kind = if event.reason.is_warning() { "Warning" } else { "Normal" };
        let body = json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": event.subject.namespace},
            "involvedObject": {
                "apiVersion": "v1",
                "kind": event.subject.kind.name(),
                "namespace": event.subject.namespace,
                "name": event.subject.name,
                "uid": event.subject.uid,
            },
            "reason": event.reason.name(),
            "message": event.note,
            "type": kind,
            "count": 1,
            "firstTimestamp": now(),
            "lastTimestamp": now(),
            "source": {"component": self.driver, "host": self.node},
            "reportingComponent": self.driver,
            "reportingInstance": self.node,
        });
        match self.server.post(&path(event), &body).await {
            Ok(_) => {
                if self.current.len() >= REMEMBERED {
                    self.current.clear();
                }
                self.current.insert(key, (name, 1));
                Posted::Done
            }
            Err(failure) => failed(&failure),
        }
    }
}

fn path(event: &Event) -> String {
    kubernetes::path(["api", "v1", "namespaces", &event.subject.namespace, "events"])
}

fn failed(failure: &ApiFailure) -> Posted {
    if failure.is_forbidden() { Posted::Forbidden } else { Posted::Failed(failure.to_string()) }
}

/// RFC 3339 in whole seconds, as `metav1.Time` has it.
fn now() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}
