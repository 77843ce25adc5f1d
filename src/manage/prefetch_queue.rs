//! The prefetch list of the configuration, which fills the cache of a new node.
//!
//! Models are downloaded one after the other, in the order of the list, and each
//! only once: a model that is evicted later is not downloaded again. Otherwise two
//! models that do not fit together would evict each other without end. A failed
//! download is retried later. The download of a model that leaves the list stops.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;

use super::ensure::log_warnings;
use super::{Manager, ignore_progress};
use crate::error::Result;
use crate::model::{ModelKey, ModelRequest, ModelUri};
use crate::random;
use crate::retry::Backoff;
use crate::sync::lock;

/// Spreads the first requests of many nodes that start at the same time.
const SPREAD: Duration = Duration::from_secs(3);

/// Between failed attempts of one entry.
const BACKOFF: Backoff = Backoff::new(Duration::from_secs(10), Duration::from_secs(600));

/// The state of the prefetch list, for `cache ls`; cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct PrefetchQueue(Arc<Mutex<Vec<PrefetchEntry>>>);

/// The state of one entry of the prefetch list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PrefetchEntry {
    /// The URI, as in the configuration.
    pub uri: String,
    /// Its state.
    pub state: PrefetchState,
    /// The model that was downloaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<ModelKey>,
    /// Why the last attempt failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// State of an entry of the prefetch list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PrefetchState {
    /// It is queued.
    Waiting,
    /// It is being downloaded.
    Running,
    /// It was downloaded.
    Complete,
    /// It failed, and is retried later.
    Failed,
}

/// One entry, and when it is due.
struct ScheduledPrefetch {
    entry: PrefetchEntry,
    request: ModelRequest,
    failures: u32,
    /// `None` once it is done.
    due: Option<Instant>,
}

impl PrefetchQueue {
    /// The entries, in the order of the configuration.
    pub(super) fn entries(&self) -> Vec<PrefetchEntry> {
        self.lock().clone()
    }

    fn update(&self, scheduled: &[ScheduledPrefetch]) {
        *self.lock() = scheduled.iter().map(|one| one.entry.clone()).collect();
    }

    fn lock(&self) -> MutexGuard<'_, Vec<PrefetchEntry>> {
        lock(&self.0)
    }
}

impl Manager {
    /// Downloads the models of the list, and follows its changes, until shutdown.
    pub async fn run_prefetch(&self, mut list: watch::Receiver<Vec<ModelUri>>) {
        let shutdown = self.0.shutdown.clone();
        tokio::select! {
            () = self.prefetch_list_entries(&mut list) => {}
            () = shutdown.cancelled() => {}
        }
    }

    async fn prefetch_list_entries(&self, list: &mut watch::Receiver<Vec<ModelUri>>) {
        let mut scheduled = Vec::new();
        loop {
            scheduled = merge(scheduled, &list.borrow_and_update());
            self.0.prefetch_queue.update(&scheduled);
            let Some(next) = next(&mut scheduled) else {
                if list.changed().await.is_err() {
                    return std::future::pending().await;
                }
                continue;
            };
            let due = next.due.unwrap_or_else(Instant::now);
            tokio::select! {
                () = tokio::time::sleep_until(due) => {}
                Ok(()) = list.changed() => continue,
            }
            next.entry.state = PrefetchState::Running;
            let (uri, request) = (next.entry.uri.clone(), next.request.clone());
            self.0.prefetch_queue.update(&scheduled);
            let result = self.ensure_while_listed(&uri, &request, list).await;
            if let Some(one) = scheduled.iter_mut().find(|one| one.entry.uri == uri) {
                one.record(result);
            }
        }
    }

    /// Downloads an entry; `None` if it left the list meanwhile.
    async fn ensure_while_listed(
        &self,
        uri: &str,
        request: &ModelRequest,
        list: &mut watch::Receiver<Vec<ModelUri>>,
    ) -> Option<Result<ModelKey>> {
        let on_progress = ignore_progress();
        let ensuring = self.ensure(request, &on_progress);
        tokio::pin!(ensuring);
        loop {
            tokio::select! {
                ensured = &mut ensuring => {
                    return Some(ensured.map(|(outcome, warnings)| {
                        log_warnings(request, &warnings);
                        outcome.model().key.clone()
                    }));
                }
                Ok(()) = list.changed() => {
                    let listed = list.borrow().iter().any(|listed| listed.to_string() == uri);
                    if !listed {
                        return None;
                    }
                }
            }
        }
    }
}

impl ScheduledPrefetch {
    /// Records the result of an attempt.
    fn record(&mut self, result: Option<Result<ModelKey>>) {
        match result {
            None => {}
            Some(Ok(key)) => {
                tracing::info!(model = self.entry.uri, "a model of the prefetch list is cached");
                self.entry.state = PrefetchState::Complete;
                (self.entry.key, self.entry.error, self.due) = (Some(key), None, None);
            }
            Some(Err(error)) => {
                self.failures = self.failures.saturating_add(1);
                let pause = BACKOFF.pause(self.failures, None);
                tracing::warn!(
                    model = self.entry.uri,
                    %error,
                    again_in = ?pause,
                    "the download of a model of the prefetch list failed"
                );
                self.entry.state = PrefetchState::Failed;
                self.entry.error = Some(error.message().to_owned());
                self.due = Some(Instant::now() + pause);
            }
        }
    }
}

/// Schedules the entries of a list; entries that are known keep their state.
fn merge(mut known: Vec<ScheduledPrefetch>, list: &[ModelUri]) -> Vec<ScheduledPrefetch> {
    let mut scheduled: Vec<ScheduledPrefetch> = Vec::new();
    for uri in list {
        let text = uri.to_string();
        if scheduled.iter().any(|one| one.entry.uri == text) {
            continue;
        }
        scheduled.push(match known.iter().position(|one| one.entry.uri == text) {
            Some(at) => known.swap_remove(at),
            None => {
                let ModelUri { namespace, bucket, prefix } = uri.clone();
                ScheduledPrefetch {
                    request: ModelRequest::of(namespace, bucket, prefix),
                    failures: 0,
                    due: Some(Instant::now() + random::up_to(SPREAD)),
                    entry: PrefetchEntry {
                        uri: text,
                        state: PrefetchState::Waiting,
                        key: None,
                        error: None,
                    },
                }
            }
        });
    }
    scheduled
}

/// The next entry: the first one that is due, or else the one that is due soonest.
fn next(scheduled: &mut [ScheduledPrefetch]) -> Option<&mut ScheduledPrefetch> {
    let now = Instant::now();
    let open = scheduled.iter_mut().filter(|one| one.due.is_some());
    // Entries that are due already are equal, so the order of the list decides.
    open.min_by_key(|one| one.due.map(|due| due.max(now)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uris(prefixes: &[&str]) -> Vec<ModelUri> {
        let parse = |prefix: &&str| ModelUri::parse(&format!("oci://b/{prefix}")).unwrap();
        prefixes.iter().map(parse).collect()
    }

    fn order(scheduled: &[ScheduledPrefetch]) -> Vec<&str> {
        scheduled.iter().map(|one| one.entry.uri.as_str()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_list_keeps_the_state_of_known_entries_and_sets_a_new_order() {
        let mut scheduled = merge(Vec::new(), &uris(&["a", "b", "a"]));
        assert_eq!(order(&scheduled), ["oci://b/a/", "oci://b/b/"]);
        let key = ModelKey::parse(&"0".repeat(64)).unwrap();
        scheduled[1].record(Some(Ok(key)));
        let scheduled = merge(scheduled, &uris(&["c", "b"]));
        assert_eq!(order(&scheduled), ["oci://b/c/", "oci://b/b/"]);
        assert_eq!(scheduled[1].entry.state, PrefetchState::Complete);
        assert_eq!(scheduled[0].entry.state, PrefetchState::Waiting);
    }

    #[tokio::test(start_paused = true)]
    async fn due_entries_run_in_the_order_of_the_list_and_failed_ones_wait() {
        let mut scheduled = merge(Vec::new(), &uris(&["a", "b"]));
        tokio::time::advance(SPREAD).await;
        assert_eq!(next(&mut scheduled).unwrap().entry.uri, "oci://b/a/");
        let failed = || Some(Err(crate::error::Error::internal("no")));
        scheduled[0].record(failed());
        assert_eq!(next(&mut scheduled).unwrap().entry.uri, "oci://b/b/");
        scheduled[1].record(Some(Ok(ModelKey::parse(&"0".repeat(64)).unwrap())));
        let again = next(&mut scheduled).unwrap();
        assert_eq!(
            (again.entry.uri.as_str(), again.entry.error.as_deref()),
            ("oci://b/a/", Some("no"))
        );
        assert!(again.due.unwrap() > Instant::now());
    }
}
