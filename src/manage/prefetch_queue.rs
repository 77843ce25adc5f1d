//! Works off the prefetch list of the configuration, which fills the cache of a new node.
//!
//! Models are downloaded one after the other, in the order of the list, and each
//! only once: a model that is evicted later is not downloaded again. Otherwise two
//! models that do not fit together would evict each other without end. A failed
//! download is retried later. The download of a model that leaves the list stops, and
//! so does that of a model whose `nodeSelector` no longer selects this node.
//!
//! A new list reaches all nodes of a cluster within a minute or two. Each node begins
//! with what is new in it after a delay of its own, up to [`CHANGE_SPREAD`], so that they
//! do not all send their first requests at once. A new node begins at once. Pods are
//! not affected by either.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::ensure::log_warnings;
use super::prefetch_list::{PrefetchEntry, PrefetchModel, PrefetchState};
use super::{Manager, ignore_progress};
use crate::cache::KeepRevisions;
use crate::error::Result;
use crate::model::{ModelKey, ModelRequest, NamespaceName};
use crate::node::{NodeLabels, NodeSelection, OwnLabels};
use crate::random;
use crate::retry::Backoff;
use crate::sync::lock;

/// Spreads the first requests of many nodes that start at the same time.
const START_SPREAD: Duration = Duration::from_secs(3);

/// Spreads the first requests of all nodes after a change of the list.
const CHANGE_SPREAD: Duration = Duration::from_secs(30);

/// Between failed attempts of one entry.
const BACKOFF: Backoff = Backoff::new(Duration::from_secs(10), Duration::from_secs(600));

/// The state of the prefetch list, for `cache ls`; cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct PrefetchQueue(Arc<Mutex<Vec<PrefetchEntry>>>);

/// One entry, and when it is due.
struct ScheduledPrefetch {
    model: PrefetchModel,
    entry: PrefetchEntry,
    failures: u32,
    /// The delay of this node for a new entry.
    earliest: Instant,
    /// `None` while there is nothing to do.
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

/// The list and the node's labels, which both may change at any time.
struct Selectors {
    list: watch::Receiver<Vec<PrefetchModel>>,
    labels: OwnLabels,
}

impl Selectors {
    /// The list and the labels as they are now. Asks for labels only if the list needs them.
    fn now(&mut self) -> (Vec<PrefetchModel>, NodeLabels) {
        let list = self.list.borrow_and_update().clone();
        self.labels.want(list.iter().any(|model| !model.node_selector.is_empty()));
        (list, self.labels.now())
    }

    /// Waits for a change of either. Cancellation safe.
    async fn changed(&mut self) {
        let Self { list, labels } = self;
        let list_changed = async {
            if list.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        let is_list = tokio::select! {
            () = list_changed => true,
            () = labels.changed() => false,
        };
        if is_list {
            // Labels are often changed together with the list.
            labels.read_again();
        }
    }
}

impl Manager {
    /// Downloads the models of the list, and follows its changes and those of the
    /// node's labels, until shutdown.
    pub async fn run_prefetch(&self, list: watch::Receiver<Vec<PrefetchModel>>, labels: OwnLabels) {
        let shutdown = self.0.shutdown.clone();
        tokio::select! {
            () = self.prefetch_list_entries(Selectors { list, labels }) => {}
            () = shutdown.cancelled() => {}
        }
    }

    async fn prefetch_list_entries(&self, mut selectors: Selectors) {
        let mut scheduled = Vec::new();
        let mut spread = START_SPREAD;
        loop {
            let (list, labels) = selectors.now();
            scheduled = merge(scheduled, &list, &labels, random::up_to(spread));
            spread = CHANGE_SPREAD;
            // Known after the first entry that needs it, with which this loop runs again.
            let own = self.0.remote.as_ref().and_then(|remote| remote.resolver.known_namespace());
            self.0.cache.keep_revisions(kept(&list, &labels, own.as_ref()));
            self.0.prefetch_queue.update(&scheduled);
            let Some(next) = next(&mut scheduled) else {
                selectors.changed().await;
                continue;
            };
            let due = next.due.unwrap_or_else(Instant::now);
            tokio::select! {
                () = tokio::time::sleep_until(due) => {}
                () = selectors.changed() => continue,
            }
            next.entry.state = PrefetchState::Running;
            let model = next.model.clone();
            self.0.prefetch_queue.update(&scheduled);
            let result = self.ensure_while_selected(&model, &mut selectors).await;
            if let Some(one) = scheduled.iter_mut().find(|one| one.model.is_same(&model)) {
                one.record(result);
            }
        }
    }

    /// Downloads an entry; `None` if it left the list meanwhile, or the node its selector.
    async fn ensure_while_selected(
        &self,
        model: &PrefetchModel,
        selectors: &mut Selectors,
    ) -> Option<Result<ModelKey>> {
        let request: ModelRequest = model.request();
        let on_progress = ignore_progress();
        let ensuring = self.ensure(&request, &on_progress);
        tokio::pin!(ensuring);
        loop {
            tokio::select! {
                ensured = &mut ensuring => {
                    return Some(ensured.map(|(outcome, warnings)| {
                        log_warnings(&request, &warnings);
                        outcome.model().key.clone()
                    }));
                }
                () = selectors.changed() => {
                    let (list, labels) = selectors.now();
                    let listed = list.iter().any(|listed| listed.is_same(model));
                    let selection = labels.selection(&model.node_selector);
                    if !listed || selection != NodeSelection::Selected {
                        return None;
                    }
                }
            }
        }
    }
}

impl ScheduledPrefetch {
    /// A new entry, which this node begins with after `delay`.
    fn new(model: &PrefetchModel, delay: Duration) -> Self {
        let entry = PrefetchEntry {
            uri: model.uri.to_string(),
            node_selector: model.node_selector.clone(),
            state: PrefetchState::Waiting,
            key: None,
            error: None,
        };
        let earliest = Instant::now() + delay;
        Self { model: model.clone(), entry, failures: 0, earliest, due: None }
    }

    /// Begins with the entry if it selects this node, and ends with it if it does not.
    fn select(&mut self, labels: &NodeLabels) {
        let state = match labels.selection(&self.model.node_selector) {
            NodeSelection::Selected => {
                let waits = self.entry.state == PrefetchState::Waiting && self.due.is_none();
                if waits || self.is_unselected() {
                    self.entry.state = PrefetchState::Waiting;
                    self.entry.error = None;
                    self.due = Some(self.earliest.max(Instant::now()));
                }
                return;
            }
            NodeSelection::Pending => return,
            NodeSelection::NotSelected => {
                self.entry.error = None;
                PrefetchState::NotSelected
            }
            NodeSelection::Unknown(why) => {
                if self.entry.error.as_ref() != Some(&why) {
                    tracing::warn!(
                        model = self.entry.uri,
                        why,
                        "a model of the prefetch list has a nodeSelector, and the labels of this \
                         node are unknown: it is not downloaded"
                    );
                }
                self.entry.error = Some(why);
                PrefetchState::LabelsUnknown
            }
        };
        (self.entry.state, self.entry.key, self.due, self.failures) = (state, None, None, 0);
    }

    fn is_unselected(&self) -> bool {
        matches!(self.entry.state, PrefetchState::NotSelected | PrefetchState::LabelsUnknown)
    }

    /// Records the result of an attempt.
    fn record(&mut self, result: Option<Result<ModelKey>>) {
        match result {
            // If it is selected again, it begins again.
            None => (self.entry.state, self.due) = (PrefetchState::Waiting, None),
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

/// Schedules the entries of a list; entries that are known keep their state, and new ones
/// are due after `delay`.
fn merge(
    mut known: Vec<ScheduledPrefetch>,
    list: &[PrefetchModel],
    labels: &NodeLabels,
    delay: Duration,
) -> Vec<ScheduledPrefetch> {
    let mut scheduled: Vec<ScheduledPrefetch> = Vec::new();
    for model in list {
        if scheduled.iter().any(|one| one.model.is_same(model)) {
            continue;
        }
        let mut one = match known.iter().position(|one| one.model.is_same(model)) {
            Some(at) => known.swap_remove(at),
            None => ScheduledPrefetch::new(model, delay),
        };
        one.select(labels);
        scheduled.push(one);
    }
    scheduled
}

/// The revisions that stay on this node. While its labels are unknown, those of every entry.
fn kept(
    list: &[PrefetchModel],
    labels: &NodeLabels,
    own: Option<&NamespaceName>,
) -> Vec<KeepRevisions> {
    let may_be_here = |model: &&PrefetchModel| {
        labels.selection(&model.node_selector) != NodeSelection::NotSelected
    };
    list.iter().filter(may_be_here).filter_map(|model| model.kept(own)).collect()
}

/// The next entry: the first one that is due, or else the one that is due soonest.
fn next(scheduled: &mut [ScheduledPrefetch]) -> Option<&mut ScheduledPrefetch> {
    let now = Instant::now();
    let open = scheduled.iter_mut().filter(|one| one.due.is_some());
    // Entries that are due already are equal, so the order of the list decides.
    open.min_by_key(|one| one.due.map(|due| due.max(now)))
}

#[cfg(test)]
#[path = "prefetch_queue_tests.rs"]
mod tests;
