//! Limits how many requests run at once, and decides whose is next.
//!
//! At most as many as configured run at once, or as many as give the most (`growth`);
//! fewer of one bucket after Object Storage throttled there, reset many connections, or
//! delivered next to nothing (`buckets`). The order of those that wait:
//!
//! 1. a model that a pod waits for, before those that are downloaded ahead;
//! 2. a bucket that delivers, before one that delivered next to nothing lately;
//! 3. the tenant with the fewest running requests, and among equals the one
//!    whose last turn was longest ago: however many models it wants, a
//!    tenant gets its share and not more;
//! 4. likewise the model within the tenant: two models share the connections
//!    evenly, however many objects and ranges each of them has;
//! 5. an object that has a stream to hash for each of its requests;
//! 6. the smaller object among small ones, since a loader starts with the configuration
//!    and the tokenizer, and small ones before large ones;
//! 7. the first one in the order of the model, then the one that came first.
//!
//! A running request keeps its permit to the end of its range, unless a request
//! that may preempt it has waited for [`PATIENCE`]: then it is asked to give way
//! (`preempt`), and continues later from the byte that it reached.

mod buckets;
mod preempt;
mod request;

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use self::buckets::Buckets;
pub(crate) use self::buckets::Origin;
use self::request::Streams;
pub(crate) use self::request::{ObjectDownload, RequestPermit};
use super::Concurrency;
use super::fair_share::FairShare;
use super::flow::Flow;
use super::growth::{ConcurrencyGrowth, TransferTotals};
use super::plan::RequestSize;
use crate::fair::{TurnOrder, Turns};
use crate::metrics::Metrics;
use crate::model::Tenant;
use crate::sync::lock;

/// How long a request waits before it may preempt another.
pub(crate) const PATIENCE: Duration = Duration::from_millis(500);

/// Interval of the checks for requests to preempt, while others wait. Patience and lack of
/// progress end with time, and not with an event.
const CHECK_INTERVAL: Duration = Duration::from_millis(250);

/// Admits the requests of all downloads; clones are the same limiter.
#[derive(Debug, Clone)]
pub(crate) struct ConcurrencyLimiter(Arc<LimiterInner>);

#[derive(Debug)]
struct LimiterInner {
    state: Mutex<LimiterState>,
    received: ReceivedTotals,
}

/// Counted without the limiter's lock, by all running requests.
#[derive(Debug, Default)]
struct ReceivedTotals {
    bytes: AtomicU64,
    answers: AtomicU64,
    waited_micros: AtomicU64,
    failures: AtomicU64,
}

impl ReceivedTotals {
    fn now(&self) -> TransferTotals {
        TransferTotals {
            bytes: self.bytes.load(Ordering::Relaxed),
            answers: self.answers.load(Ordering::Relaxed),
            waited: Duration::from_micros(self.waited_micros.load(Ordering::Relaxed)),
            failures: self.failures.load(Ordering::Relaxed),
        }
    }
}

#[derive(Debug)]
struct LimiterState {
    most: usize,
    metrics: Arc<Metrics>,
    /// What decides `most`, unless it is fixed.
    growth: Option<ConcurrencyGrowth>,
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
    streams: Arc<Streams>,
    flow: Flow,
    answered: Arc<AtomicBool>,
    asked: Arc<Notify>,
    /// Whether it was asked to give way already.
    leaves: bool,
}

impl Running {
    /// Whether its answer has begun, and its bytes arrive.
    fn is_served(&self) -> bool {
        self.answered.load(Ordering::Relaxed) && !self.flow.is_slow()
    }
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

/// The order of those that wait, the least is next: whether it is downloaded
/// ahead, whether its bucket is slow, tenant, share, whether the object is crowded, size,
/// position, id of the download.
type Rank = (bool, bool, TurnOrder, TurnOrder, bool, u64, usize, u64);

impl ConcurrencyLimiter {
    pub(crate) fn new(concurrency: Concurrency, metrics: Arc<Metrics>) -> Self {
        let most = concurrency.first();
        let mut state = LimiterState {
            metrics,
            most,
            growth: (concurrency == Concurrency::Auto)
                .then(|| ConcurrencyGrowth::beginning_with(most)),
            buckets: Buckets::new(most),
            standings: LimiterTurns::default(),
            turns: 0,
            running: BTreeMap::new(),
            lines: BTreeMap::new(),
            watched: false,
        };
        state.set_most(most);
        let (state, received) = (Mutex::new(state), ReceivedTotals::default());
        Self(Arc::new(LimiterInner { state, received }))
    }

    /// How many requests may run at once now.
    pub(super) fn most(&self) -> usize {
        self.lock().most
    }

    /// How much the next request of this object takes, from ranges of this size.
    pub(super) fn request_size(&self, download: &ObjectDownload, range_size: u64) -> RequestSize {
        let mut state = self.lock();
        state.forget_gone();
        let now = Instant::now();
        let mut others = state.lines.values().filter(|line| line.download.id != download.id);
        if others.any(|line| !state.buckets.is_full(&line.download.origin, now)) {
            return RequestSize { ranges: 1, share: None };
        }
        let ranges = state.growth.as_ref().map_or(1, |growth| growth.ranges_at_once(range_size));
        // More requests would be throttled more.
        let throttled = state.buckets.limit(&download.origin) < state.most;
        // While more are tried, something has to be left for them.
        let grows = state.growth.as_ref().is_some_and(ConcurrencyGrowth::tries_more);
        let share = if grows { state.most * 2 } else { state.most };
        RequestSize { ranges, share: (!throttled).then_some(share) }
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
            state.forget_gone();
            state.adapt(self.0.received.now(), Instant::now());
            // A bucket may be slow no longer, or more may run.
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
        let mut state = self.lock();
        state.buckets.throttled(&download.origin);
        state.stop_trying_more(&download.origin);
    }

    /// Records a request that broke off and will be repeated.
    pub(super) fn failed(&self) {
        self.0.received.failures.fetch_add(1, Ordering::Relaxed);
    }

    /// Records that the connection of a request ended before an answer. Where that happens to
    /// many while others get their bytes, there are more connections than may be.
    pub(super) fn unanswered(&self, download: &ObjectDownload, request: u64) {
        let mut state = self.lock();
        let of_bucket = state.running.values().filter(|running| running.origin == download.origin);
        // In an outage many have their answers, and no bytes.
        let served = of_bucket.filter(|running| running.is_served()).count();
        let newest = state.turns;
        if state.buckets.broke(&download.origin, request, newest, served) {
            let requests = state.buckets.limit(&download.origin);
            let bucket = &download.origin.bucket.name;
            tracing::info!(bucket, requests, "connections are reset beyond this number");
            state.stop_trying_more(&download.origin);
        }
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
            let (limiter, answered) = (Some(self.clone()), Arc::clone(&running.answered));
            state.begin(id, running);
            let permit = RequestPermit { limiter, id, flow, answered, asked };
            if let Err(mut refused) = grant.send(permit) {
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
        lock(&self.0.state)
    }
}

impl LimiterState {
    /// Lets the number of requests follow what was received.
    fn adapt(&mut self, received: TransferTotals, now: Instant) {
        let limited = self.running.len() >= self.most && !self.lines.is_empty();
        let Some(growth) = &mut self.growth else { return };
        growth.sample(now, received, limited);
        let most = growth.most();
        self.set_most(most);
    }

    /// Returns to the number before, if a larger one is being tried, and most requests are for
    /// this bucket: else its trouble says nothing about the number.
    fn stop_trying_more(&mut self, origin: &Origin) {
        let of_bucket = self.running.values().filter(|running| *running.origin == *origin).count();
        if of_bucket < self.running.len() / 2 {
            return;
        }
        if let Some(growth) = &mut self.growth {
            growth.throttled(Instant::now());
            let most = growth.most();
            self.set_most(most);
        }
    }

    fn set_most(&mut self, most: usize) {
        self.most = most;
        self.buckets.set_most(most);
        self.metrics.download_concurrency.set(i64::try_from(most).unwrap_or(i64::MAX));
    }

    /// Takes the next request from its queue. Checks each queue once: there are as
    /// many as running objects, however many requests each of them has.
    fn next(&mut self) -> Option<(oneshot::Sender<RequestPermit>, Running)> {
        self.forget_gone();
        let (now, slow) = (Instant::now(), self.slow_origins());
        let lines = self.lines.values();
        let admitted = lines.filter(|line| self.buckets.admits(&line.download.origin, 0, now));
        let ranked = admitted.map(|line| self.rank(&self.standings, &line.download, &slow, now));
        let (rank, (share, tenant)) = ranked.min_by_key(|(rank, _)| *rank)?;
        let line = self.lines.get_mut(&rank.7)?;
        let grant = line.waiting.pop_front()?.grant;
        let origin = Arc::clone(&line.download.origin);
        let streams = Arc::clone(&line.download.streams);
        if line.waiting.is_empty() {
            self.lines.remove(&rank.7);
        }
        let (flow, answered, asked, leaves) = Default::default();
        let running = Running { share, tenant, origin, streams, flow, answered, asked, leaves };
        Some((grant, running))
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
        let crowded = download.is_crowded();
        let (size, position) = (download.size, download.position);
        let rank =
            (!share.is_urgent(), slow, of_tenant, of_share, crowded, size, position, download.id);
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
        running.streams.running.fetch_add(1, Ordering::Relaxed);
        self.running.insert(id, running);
    }

    fn leave(&mut self, id: u64) {
        if let Some(running) = self.running.remove(&id) {
            self.standings.end(&running.share, &running.tenant);
            running.share.left();
            self.buckets.end(&running.origin);
            running.streams.running.fetch_sub(1, Ordering::Relaxed);
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

#[cfg(test)]
#[path = "limiter_tests.rs"]
mod tests;
