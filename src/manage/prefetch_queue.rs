//! The prefetch list of the configuration: new nodes warm themselves.
//!
//! One model after the other is brought in, in the order of the list and each
//! once: what is evicted later is not fetched again, or two models that do not
//! fit together would chase each other for ever. What fails is tried again
//! later. Whoever leaves the list is fetched no further.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;

use super::ensure::log_warnings;
use super::{Manager, silent};
use crate::error::Result;
use crate::model::{ModelKey, ModelRequest, ModelUri};

/// A thousand nodes that start at once ask one after the other.
const SPREAD: Duration = Duration::from_secs(3);

/// Between a failure and the next try; twice as long each time.
const FIRST_PAUSE: Duration = Duration::from_secs(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(600);

/// How the list stands; cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct PrefetchQueue(Arc<Mutex<Vec<PrefetchEntry>>>);

/// How one entry of the list stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PrefetchEntry {
    /// As in the configuration.
    pub uri: String,
    /// What is being done about it.
    pub state: PrefetchState,
    /// The model that was brought in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<ModelKey>,
    /// Why the last try failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What is being done about an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PrefetchState {
    /// Its turn has not come.
    Waiting,
    /// It is being brought in.
    Running,
    /// It was brought in.
    Complete,
    /// It failed, and is tried again later.
    Failed,
}

/// One entry, and when it is due.
struct ScheduledPrefetch {
    entry: PrefetchEntry,
    request: ModelRequest,
    tries: u32,
    /// `None` once it is done.
    due: Option<Instant>,
}

impl PrefetchQueue {
    /// The list, in the order of the configuration.
    pub(super) fn entries(&self) -> Vec<PrefetchEntry> {
        self.lock().clone()
    }

    fn show(&self, turns: &[ScheduledPrefetch]) {
        *self.lock() = turns.iter().map(|turn| turn.entry.clone()).collect();
    }

    fn lock(&self) -> MutexGuard<'_, Vec<PrefetchEntry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Manager {
    /// Brings in what the list names, and follows its changes, until shutdown.
    pub async fn keep_warm(&self, mut list: watch::Receiver<Vec<ModelUri>>) {
        let shutdown = self.0.shutdown.clone();
        tokio::select! {
            () = self.follow(&mut list) => {}
            () = shutdown.cancelled() => {}
        }
    }

    async fn follow(&self, list: &mut watch::Receiver<Vec<ModelUri>>) {
        let mut turns = Vec::new();
        loop {
            turns = merged(turns, &list.borrow_and_update());
            self.0.warmth.show(&turns);
            let Some(turn) = next(&mut turns) else {
                if list.changed().await.is_err() {
                    return std::future::pending().await;
                }
                continue;
            };
            let due = turn.due.unwrap_or_else(Instant::now);
            tokio::select! {
                () = tokio::time::sleep_until(due) => {}
                Ok(()) = list.changed() => continue,
            }
            turn.entry.state = PrefetchState::Running;
            let (uri, request) = (turn.entry.uri.clone(), turn.request.clone());
            self.0.warmth.show(&turns);
            let brought = self.while_listed(&uri, &request, list).await;
            if let Some(turn) = turns.iter_mut().find(|turn| turn.entry.uri == uri) {
                turn.note(brought);
            }
        }
    }

    /// `None` when the entry left the list meanwhile.
    async fn while_listed(
        &self,
        uri: &str,
        request: &ModelRequest,
        list: &mut watch::Receiver<Vec<ModelUri>>,
    ) -> Option<Result<ModelKey>> {
        let nobody = silent();
        let bringing = self.bring(request, &nobody);
        tokio::pin!(bringing);
        loop {
            tokio::select! {
                brought = &mut bringing => {
                    return Some(brought.map(|(came, warnings)| {
                        log_warnings(request, &warnings);
                        came.model().key.clone()
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
    fn note(&mut self, brought: Option<Result<ModelKey>>) {
        match brought {
            None => {}
            Some(Ok(key)) => {
                tracing::info!(model = self.entry.uri, "a model of the prefetch list is there");
                self.entry.state = PrefetchState::Complete;
                (self.entry.key, self.entry.error, self.due) = (Some(key), None, None);
            }
            Some(Err(error)) => {
                let pause = pause(self.tries, random());
                tracing::warn!(
                    model = self.entry.uri,
                    %error,
                    again_in = ?pause,
                    "a model of the prefetch list could not be brought in"
                );
                self.entry.state = PrefetchState::Failed;
                self.entry.error = Some(error.message().to_owned());
                self.tries = self.tries.saturating_add(1);
                self.due = Some(Instant::now() + pause);
            }
        }
    }
}

/// The turns of a list, those that were known before as they stand.
fn merged(mut known: Vec<ScheduledPrefetch>, list: &[ModelUri]) -> Vec<ScheduledPrefetch> {
    let mut turns: Vec<ScheduledPrefetch> = Vec::new();
    for uri in list {
        let text = uri.to_string();
        if turns.iter().any(|turn| turn.entry.uri == text) {
            continue;
        }
        turns.push(match known.iter().position(|turn| turn.entry.uri == text) {
            Some(at) => known.swap_remove(at),
            None => {
                let ModelUri { namespace, bucket, prefix } = uri.clone();
                ScheduledPrefetch {
                    request: ModelRequest::of(namespace, bucket, prefix),
                    tries: 0,
                    due: Some(Instant::now() + share(SPREAD, random())),
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
    turns
}

/// The entry whose turn it is: the first that is due, else the one that will be.
fn next(turns: &mut [ScheduledPrefetch]) -> Option<&mut ScheduledPrefetch> {
    let now = Instant::now();
    let open = turns.iter_mut().filter(|turn| turn.due.is_some());
    // Whatever is due already is equal, so the order of the list decides.
    open.min_by_key(|turn| turn.due.map(|due| due.max(now)))
}

/// How long to wait after so many tries: between half and all of it, by `random`.
fn pause(tries: u32, random: u64) -> Duration {
    let whole = FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(tries)).min(LONGEST_PAUSE);
    whole / 2 + share(whole / 2, random)
}

/// A part of a time, by `random`.
fn share(whole: Duration, random: u64) -> Duration {
    whole / 1000 * u32::try_from(random % 1000).unwrap_or_default()
}

fn random() -> u64 {
    RandomState::new().hash_one(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uris(prefixes: &[&str]) -> Vec<ModelUri> {
        let parse = |prefix: &&str| ModelUri::parse(&format!("oci://b/{prefix}")).unwrap();
        prefixes.iter().map(parse).collect()
    }

    fn order(turns: &[ScheduledPrefetch]) -> Vec<&str> {
        turns.iter().map(|turn| turn.entry.uri.as_str()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_list_keeps_what_is_known_and_follows_the_new_order() {
        let mut turns = merged(Vec::new(), &uris(&["a", "b", "a"]));
        assert_eq!(order(&turns), ["oci://b/a/", "oci://b/b/"]);
        let key = ModelKey::parse(&"0".repeat(64)).unwrap();
        turns[1].note(Some(Ok(key)));
        let turns = merged(turns, &uris(&["c", "b"]));
        assert_eq!(order(&turns), ["oci://b/c/", "oci://b/b/"]);
        assert_eq!(turns[1].entry.state, PrefetchState::Complete);
        assert_eq!(turns[0].entry.state, PrefetchState::Waiting);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_due_goes_in_the_order_of_the_list_and_failures_wait() {
        let mut turns = merged(Vec::new(), &uris(&["a", "b"]));
        tokio::time::advance(SPREAD).await;
        assert_eq!(next(&mut turns).unwrap().entry.uri, "oci://b/a/");
        let failed = || Some(Err(crate::error::Error::internal("no")));
        turns[0].note(failed());
        assert_eq!(next(&mut turns).unwrap().entry.uri, "oci://b/b/");
        turns[1].note(Some(Ok(ModelKey::parse(&"0".repeat(64)).unwrap())));
        let again = next(&mut turns).unwrap();
        assert_eq!(
            (again.entry.uri.as_str(), again.entry.error.as_deref()),
            ("oci://b/a/", Some("no"))
        );
        assert!(again.due.unwrap() > Instant::now());
    }

    #[test]
    fn pauses_grow_to_ten_minutes_and_are_spread() {
        let half = |tries| pause(tries, 0);
        assert_eq!([half(0), half(1), half(2)].map(|p| p.as_secs()), [5, 10, 20]);
        assert_eq!(half(40), LONGEST_PAUSE / 2);
        for random in 0..2000 {
            assert!((LONGEST_PAUSE / 2..=LONGEST_PAUSE).contains(&pause(30, random)));
        }
    }
}
