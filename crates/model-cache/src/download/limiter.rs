//! Limits how many requests run at once, and decides whose is next.
//!
//! At most as many as configured run at once; fewer of one bucket after Object
//! Storage throttled there, or delivered next to nothing (`buckets`). The order of
//! those that wait:
//!
//! 1. a model that a pod waits for, before those that are downloaded ahead;
//! 2. a bucket that delivers, before one that delivered next to nothing lately;
//! 3. the tenant with the fewest running requests, and among equals the one
//!    whose last turn was longest ago: however many models it wants, a
//!    tenant gets its share and not more;
//! 4. likewise the model within the tenant: two models share the connections
//!    evenly, however many objects and ranges each of them has;
//! 5. the smaller object, since a loader starts with the configuration and the
//!    tokenizer;
//! 6. the one that came first.
//!
//! A running request keeps its permit to the end of its range, unless a request
//! that may preempt it has waited for [`PATIENCE`]: then it is asked to give way
//! (`preempt`), and continues later from the byte that it reached.

mod buckets;
mod preempt;

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use self::buckets::Buckets;
pub(crate) use self::buckets::Origin;
use super::fair_share::{FairShare, Interest};
use super::flow::Flow;
use crate::fair::{TurnOrder, Turns};
use crate::model::Tenant;
use crate::sync::lock;

/// How long a request waits before it may preempt another.
pub(crate) const PATIENCE: Duration = Duration::from_millis(500);

/// Interval of the checks for requests to preempt, while others wait. Patience and lack of
/// progress end with time, and not with an event.
const CHECK_INTERVAL: Duration = Duration::from_millis(250);

/// Admits the requests of all downloads; clones are the same limiter.
#[derive(Debug, Clone)]
pub(crate) struct ConcurrencyLimiter(Arc<Mutex<LimiterState>>);

#[derive(Debug)]
struct LimiterState {
    most: usize,
    buckets: Buckets,
    standings: LimiterTurns,
    /// Admissions so far.
    turns: u64,
    /// Running requests, by admission.
    running: BTreeMap<u64, Running>,
    /// Waiting requests, by object.
    lines: BTreeMap<u64, ObjectQueue>,
    /// Whether a task watches the waiting requests.
    watched: bool,
}

/// What tenants and models have running.
#[derive(Debug, Clone, Default)]
pub(super) struct LimiterTurns {
    tenants: Turns<Tenant>,
    shares: Turns<u64>,
}

#[derive(Debug)]
struct Running {
    share: FairShare,
    tenant: Tenant,
    origin: Arc<Origin>,
    flow: Flow,
    asked: Arc<Notify>,
    /// Whether it was asked to give way already.
    leaves: bool,
}

/// The waiting requests of one object, in the order of arrival.
#[derive(Debug)]
struct ObjectQueue {
    download: ObjectDownload,
    waiting: VecDeque<QueuedRequest>,
}

#[derive(Debug)]
struct QueuedRequest {
    since: Instant,
    grant: oneshot::Sender<RequestPermit>,
}

/// One object's download, as the limiter knows it; clones wait in the same queue.
#[derive(Debug, Clone)]
pub(crate) struct ObjectDownload {
    /// Unique in this process, and ascending.
    id: u64,
    interest: Interest,
    size: u64,
    origin: Arc<Origin>,
}

impl ObjectDownload {
    /// Creates the download of an object of this size.
    pub(crate) fn new(interest: Interest, size: u64, origin: Arc<Origin>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self { id: NEXT.fetch_add(1, Ordering::Relaxed), interest, size, origin }
    }

    pub(super) fn interest(&self) -> &Interest {
        &self.interest
    }
}

/// The permit of a running request; returned when dropped.
#[derive(Debug)]
pub(crate) struct RequestPermit {
    /// `None` once it is returned.
    limiter: Option<ConcurrencyLimiter>,
    id: u64,
    flow: Flow,
    asked: Arc<Notify>,
}

impl RequestPermit {
    /// The request's throughput; the request keeps it up to date.
    pub(super) fn flow(&self) -> &Flow {
        &self.flow
    }

    /// Returns when the request must give way to another. Cancellation safe.
    pub(super) async fn preempted(&self) {
        self.asked.notified().await;
    }
}

/// The order of those that wait, the least is next: whether it is downloaded
/// ahead, whether its bucket is slow, tenant, share, size, id of the download.
type Rank = (bool, bool, TurnOrder, TurnOrder, u64, u64);

impl ConcurrencyLimiter {
    pub(crate) fn new(most: usize) -> Self {
        Self(Arc::new(Mutex::new(LimiterState {
            most,
            buckets: Buckets::new(most),
            standings: LimiterTurns::default(),
            turns: 0,
            running: BTreeMap::new(),
            lines: BTreeMap::new(),
            watched: false,
        })))
    }

    /// Waits for a permit. Cancellation safe: a caller that leaves loses its turn.
    pub(crate) async fn enter(&self, download: &ObjectDownload) -> RequestPermit {
        let (grant, mut granted) = oneshot::channel();
        let queued = {
            let mut state = self.lock();
            let line = state.lines.entry(download.id);
            let line = line.or_insert_with(|| ObjectQueue {
                download: download.clone(),
                waiting: VecDeque::new(),
            });
            line.waiting.push_back(QueuedRequest { since: Instant::now(), grant });
            self.admit(&mut state);
            if !state.watched && !state.lines.is_empty() {
                state.watched = true;
                tokio::spawn(self.clone().watch());
            }
            // Other downloads holding all permits is not this model's lack of progress;
            // its own bucket's limit is.
            let by_others = state.buckets.admits(&download.origin, 0, Instant::now());
            by_others.then(|| download.interest.queued())
        };
        let slot = (&mut granted).await.expect("a queue ends only with its limiter");
        drop(queued);
        slot
    }

    /// Checks the waiting requests until there are none.
    async fn watch(self) {
        loop {
            tokio::time::sleep(CHECK_INTERVAL).await;
            let mut state = self.lock();
            // A bucket may be slow no longer.
            self.admit(&mut state);
            if state.lines.is_empty() {
                state.watched = false;
                return;
            }
            state.preempt(Instant::now());
        }
    }

    /// Halves the limit of this bucket: Object Storage answered 429 or 503.
    pub(super) fn throttled(&self, download: &ObjectDownload) {
        self.lock().buckets.throttled(&download.origin);
    }

    /// Marks the bucket as slow: a request received next to nothing, so others get its permits.
    pub(super) fn slow(&self, download: &ObjectDownload) {
        self.lock().buckets.slow(&download.origin, Instant::now());
    }

    /// Records a request that succeeded.
    pub(super) fn succeeded(&self, download: &ObjectDownload) {
        let mut state = self.lock();
        if state.buckets.succeeded(&download.origin) {
            self.admit(&mut state);
        }
    }

    fn admit(&self, state: &mut LimiterState) {
        while state.running.len() < state.most {
            let Some((grant, running)) = state.next() else { return };
            state.turns += 1;
            let id = state.turns;
            let (flow, asked) = (running.flow.clone(), Arc::clone(&running.asked));
            state.begin(id, running);
            if let Err(mut refused) =
                grant.send(RequestPermit { limiter: Some(self.clone()), id, flow, asked })
            {
                // Its caller has just left. Taken apart here, since its
                // drop would lock the limiter once more.
                refused.limiter = None;
                state.leave(id);
            }
        }
    }

    /// The current limit of this download's bucket.
    #[cfg(test)]
    pub(crate) fn limit(&self, download: &ObjectDownload) -> usize {
        self.lock().buckets.limit(&download.origin)
    }

    /// Running requests of a share.
    #[cfg(test)]
    fn running(&self, share: &FairShare) -> usize {
        self.lock().standings.shares.running(&share.id())
    }

    fn lock(&self) -> MutexGuard<'_, LimiterState> {
        lock(&self.0)
    }
}

impl LimiterState {
    /// Takes the next request from its queue. Checks each queue once: there are as
    /// many as running objects, however many requests each of them has.
    fn next(&mut self) -> Option<(oneshot::Sender<RequestPermit>, Running)> {
        self.forget_gone();
        let (now, slow) = (Instant::now(), self.slow_origins());
        let lines = self.lines.values();
        let admitted = lines.filter(|line| self.buckets.admits(&line.download.origin, 0, now));
        let ranked = admitted.map(|line| self.rank(&self.standings, &line.download, &slow, now));
        let (rank, (share, tenant)) = ranked.min_by_key(|(rank, _)| *rank)?;
        let line = self.lines.get_mut(&rank.5)?;
        let grant = line.waiting.pop_front()?.grant;
        let origin = Arc::clone(&line.download.origin);
        if line.waiting.is_empty() {
            self.lines.remove(&rank.5);
        }
        let (flow, asked) = (Flow::default(), Arc::default());
        Some((grant, Running { share, tenant, origin, flow, asked, leaves: false }))
    }

    /// Whose the next request of an object is, and when its turn comes.
    fn rank(
        &self,
        standings: &LimiterTurns,
        download: &ObjectDownload,
        slow: &[Arc<Origin>],
        now: Instant,
    ) -> (Rank, (FairShare, Tenant)) {
        let (share, tenant) = download.interest.account(standings);
        let slow = slow.contains(&download.origin) || self.buckets.is_slow(&download.origin, now);
        let (of_tenant, of_share) = standings.of(&share, &tenant);
        let rank = (!share.is_urgent(), slow, of_tenant, of_share, download.size, download.id);
        (rank, (share, tenant))
    }

    /// Buckets whose requests receive next to nothing now.
    fn slow_origins(&self) -> Vec<Arc<Origin>> {
        let slow = self.running.values().filter(|running| running.flow.is_slow());
        slow.map(|running| Arc::clone(&running.origin)).collect()
    }

    fn forget_gone(&mut self) {
        self.lines.retain(|_, line| {
            while line.waiting.front().is_some_and(|waiting| waiting.grant.is_closed()) {
                line.waiting.pop_front();
            }
            !line.waiting.is_empty()
        });
    }

    fn begin(&mut self, id: u64, running: Running) {
        self.standings.begin(&running.share, &running.tenant);
        running.share.admitted();
        self.buckets.begin(&running.origin, Instant::now());
        self.running.insert(id, running);
    }

    fn leave(&mut self, id: u64) {
        if let Some(running) = self.running.remove(&id) {
            self.standings.end(&running.share, &running.tenant);
            running.share.left();
            self.buckets.end(&running.origin);
        }
    }
}

impl LimiterTurns {
    /// When the turn of this share of this tenant comes.
    pub(super) fn of(&self, share: &FairShare, tenant: &Tenant) -> (TurnOrder, TurnOrder) {
        (self.tenants.standing(tenant), self.shares.standing(&share.id()))
    }

    pub(super) fn begin(&mut self, share: &FairShare, tenant: &Tenant) {
        self.tenants.begin(tenant);
        self.shares.begin(&share.id());
    }

    pub(super) fn end(&mut self, share: &FairShare, tenant: &Tenant) {
        self.tenants.end(tenant);
        self.shares.end(&share.id());
    }
}

impl Drop for RequestPermit {
    fn drop(&mut self) {
        if let Some(limiter) = self.limiter.take() {
            let mut state = limiter.lock();
            state.leave(self.id);
            limiter.admit(&mut state);
        }
    }
}

#[cfg(test)]
#[path = "limiter_tests.rs"]
mod tests;
