//! How many requests run at once, and whose is next.
//!
//! At once run as many as are configured; of one bucket fewer after Object
//! Storage throttled there, or gave next to nothing (`buckets`). Who is next, of
//! those that wait:
//!
//! 1. a model that a pod waits for, before those that are downloaded ahead;
//! 2. a bucket that gives bytes, before one that gave next to nothing lately;
//! 3. the tenant with the fewest requests under way, and of several the one
//!    whose last turn was longest ago: however many models it asks for, a
//!    tenant gets its part and not more;
//! 4. likewise the model within the tenant: two models share the connections
//!    evenly, however many objects and ranges each of them has;
//! 5. the smaller object, since a loader starts with the configuration and the
//!    tokenizer;
//! 6. the one that came first.
//!
//! A request that runs keeps its slot to the end of its range, unless another
//! one that it takes the place of has waited for [`PATIENCE`]: then it is asked
//! to give way (`give_way`), and goes on later with the byte it reached.

mod buckets;
mod preempt;

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use self::buckets::Buckets;
pub(crate) use self::buckets::Origin;
use super::fair_share::{FairShare, Interest};
use super::flow::Flow;
use crate::fair::{TurnOrder, Turns};
use crate::model::Tenant;

/// How long a request waits before it may take the place of another.
pub(crate) const PATIENCE: Duration = Duration::from_millis(500);

/// How often it is looked whether a request has to give way, while others wait.
const LOOK: Duration = Duration::from_millis(250);

/// Admits requests of all downloads; clones are the same gate.
#[derive(Debug, Clone)]
pub(crate) struct ConcurrencyLimiter(Arc<Mutex<LimiterState>>);

#[derive(Debug)]
struct LimiterState {
    most: usize,
    buckets: Buckets,
    standings: LimiterTurns,
    /// Admissions so far.
    turns: u64,
    /// What runs, by admission.
    running: BTreeMap<u64, Running>,
    /// What waits, by object.
    lines: BTreeMap<u64, ObjectQueue>,
    /// Whether a task looks after those that wait.
    watched: bool,
}

/// What tenants and models have under way.
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

/// The requests of one object that wait, in the order in which they came.
#[derive(Debug)]
struct ObjectQueue {
    visitor: ObjectDownload,
    waiting: VecDeque<QueuedRequest>,
}

#[derive(Debug)]
struct QueuedRequest {
    since: Instant,
    grant: oneshot::Sender<RequestPermit>,
}

/// One object's download, as the gate knows it; clones stand in the same line.
#[derive(Debug, Clone)]
pub(crate) struct ObjectDownload {
    /// Unique in this process, and ascending.
    id: u64,
    demand: Interest,
    size: u64,
    origin: Arc<Origin>,
}

impl ObjectDownload {
    /// A download of an object of this size.
    pub(crate) fn new(demand: Interest, size: u64, origin: Arc<Origin>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self { id: NEXT.fetch_add(1, Ordering::Relaxed), demand, size, origin }
    }

    pub(super) fn demand(&self) -> &Interest {
        &self.demand
    }
}

/// A running request's place; gives it back when dropped.
#[derive(Debug)]
pub(crate) struct RequestPermit {
    /// `None` once it is given back.
    gate: Option<ConcurrencyLimiter>,
    id: u64,
    flow: Flow,
    asked: Arc<Notify>,
}

impl RequestPermit {
    /// What the request gets; to be kept up to date.
    pub(super) fn flow(&self) -> &Flow {
        &self.flow
    }

    /// Returns when the request has to give way to another. Cancellation safe.
    pub(super) async fn asked_back(&self) {
        self.asked.notified().await;
    }
}

/// The order of those that wait, the least is next: whether it is downloaded
/// ahead, whether its bucket is slow, tenant, share, size, id of the visitor.
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

    /// Waits for a place. Cancellation safe: who goes away loses the turn.
    pub(crate) async fn enter(&self, visitor: &ObjectDownload) -> RequestPermit {
        let (grant, mut granted) = oneshot::channel();
        let queued = {
            let mut state = self.lock();
            let line = state.lines.entry(visitor.id);
            let line = line.or_insert_with(|| ObjectQueue {
                visitor: visitor.clone(),
                waiting: VecDeque::new(),
            });
            line.waiting.push_back(QueuedRequest { since: Instant::now(), grant });
            self.admit(&mut state);
            if !state.watched && !state.lines.is_empty() {
                state.watched = true;
                tokio::spawn(self.clone().watch());
            }
            // That others have all places is not the model's lack of progress;
            // that its bucket may have no more is.
            let by_others = state.buckets.admits(&visitor.origin, 0, Instant::now());
            by_others.then(|| visitor.demand.queued())
        };
        let slot = (&mut granted).await.expect("a line ends only with its gate");
        drop(queued);
        slot
    }

    /// Looks after those that wait, until nobody does.
    async fn watch(self) {
        loop {
            tokio::time::sleep(LOOK).await;
            let mut state = self.lock();
            // A bucket may be slow no more.
            self.admit(&mut state);
            if state.lines.is_empty() {
                state.watched = false;
                return;
            }
            state.make_way(Instant::now());
        }
    }

    /// Object Storage said 429 or 503: half of what was allowed in this bucket.
    pub(super) fn throttled(&self, visitor: &ObjectDownload) {
        self.lock().buckets.throttled(&visitor.origin);
    }

    /// A request got next to nothing, and its bucket has to leave places to others.
    pub(super) fn slow(&self, visitor: &ObjectDownload) {
        self.lock().buckets.slow(&visitor.origin, Instant::now());
    }

    /// A request succeeded.
    pub(super) fn succeeded(&self, visitor: &ObjectDownload) {
        let mut state = self.lock();
        if state.buckets.succeeded(&visitor.origin) {
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
                grant.send(RequestPermit { gate: Some(self.clone()), id, flow, asked })
            {
                // Its caller went away just now. Taken apart here, since its
                // drop would lock the gate once more.
                refused.gate = None;
                state.leave(id);
            }
        }
    }

    /// What may run at once in this visitor's bucket now.
    #[cfg(test)]
    pub(crate) fn limit(&self, visitor: &ObjectDownload) -> usize {
        self.lock().buckets.limit(&visitor.origin)
    }

    /// Requests of a share under way.
    #[cfg(test)]
    fn running(&self, share: &FairShare) -> usize {
        self.lock().standings.shares.running(&share.id())
    }

    fn lock(&self) -> MutexGuard<'_, LimiterState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LimiterState {
    /// Takes the next one out of its line. Looks at each line once: there are as
    /// many as objects under way, however many requests each of them has.
    fn next(&mut self) -> Option<(oneshot::Sender<RequestPermit>, Running)> {
        self.forget_gone();
        let (now, slow) = (Instant::now(), self.slow_origins());
        let lines = self.lines.values();
        let admitted = lines.filter(|line| self.buckets.admits(&line.visitor.origin, 0, now));
        let ranked = admitted.map(|line| self.rank(&self.standings, &line.visitor, &slow, now));
        let (rank, (share, tenant)) = ranked.min_by_key(|(rank, _)| *rank)?;
        let line = self.lines.get_mut(&rank.5)?;
        let grant = line.waiting.pop_front()?.grant;
        let origin = Arc::clone(&line.visitor.origin);
        if line.waiting.is_empty() {
            self.lines.remove(&rank.5);
        }
        let (flow, asked) = (Flow::default(), Arc::default());
        Some((grant, Running { share, tenant, origin, flow, asked, leaves: false }))
    }

    /// Whose request the next one of an object is, and when its turn comes.
    fn rank(
        &self,
        standings: &LimiterTurns,
        visitor: &ObjectDownload,
        slow: &[Arc<Origin>],
        now: Instant,
    ) -> (Rank, (FairShare, Tenant)) {
        let (share, tenant) = visitor.demand.account(standings);
        let slow = slow.contains(&visitor.origin) || self.buckets.is_slow(&visitor.origin, now);
        let (of_tenant, of_share) = standings.of(&share, &tenant);
        let rank = (!share.is_urgent(), slow, of_tenant, of_share, visitor.size, visitor.id);
        (rank, (share, tenant))
    }

    /// Buckets whose requests get next to nothing now.
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
        if let Some(gate) = self.gate.take() {
            let mut state = gate.lock();
            state.leave(self.id);
            gate.admit(&mut state);
        }
    }
}

#[cfg(test)]
#[path = "limiter_tests.rs"]
mod tests;
