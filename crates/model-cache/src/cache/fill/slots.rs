//! Download slots: which models download at once (`download.maxModels`), and in which
//! order.
//!
//! Models that pods wait for come before prefetches. Among equals, the next model is
//! one of the tenant with the fewest running downloads, then of that tenant's bucket
//! with the fewest, then the first in the queue. A prefetch gets a slot when fewer
//! than `download.maxModels` models download; a pod's model gets one when fewer than
//! that many *pods'* models do. So a pod's model never waits for a prefetch, and at
//! most twice as many models download at once. The limiter of the download engine
//! then gives the connections to the pods' models first.
//!
//! Only one large model (one with very many files) downloads at a time, even if slots
//! are free: tracking its files takes as much memory as its manifest. Other large
//! models wait for it in the same order, and tenants take turns of [`LARGE_TURN`].
//!
//! A model yields its slot before it is complete, and queues again, if another one has
//! waited for half a second and
//!
//! - the other's tenant has at least two fewer running downloads; or
//! - both are large, and it is a prefetch while a pod waits for the other, or it has
//!   had its turn while a model of another tenant waits; or
//! - it has received next to nothing from the network for [`STALLED`]. Time for the
//!   driver's own pacing (`download.bandwidthLimit`), the disk and checksums does not
//!   count.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use crate::download::{FairShare, Origin, PATIENCE};
use crate::fair::Turns;
use crate::model::Tenant;
use crate::sync::lock;

/// How long a model may make no progress while others wait.
const STALLED: Duration = Duration::from_secs(2);

/// How long a stalled model that yielded its slot lets others go first, and makes no
/// stalled model yield.
const YIELD_COOLDOWN: Duration = Duration::from_secs(30);

/// How long a large model keeps its slot while one of another tenant waits.
const LARGE_TURN: Duration = Duration::from_secs(20);

/// How often to check whether a model must yield, while others wait. Patience and lack of
/// progress end with time, and not with an event.
const CHECK_PERIOD: Duration = Duration::from_millis(250);

/// The priority of a request for a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Priority {
    /// A pod of this tenant waits for it.
    Pod(Tenant),
    /// The driver downloads or repairs it before a pod asks.
    Prefetch,
}

impl Priority {
    /// Creates the share of a new download with this priority.
    pub(in crate::cache) fn share(&self) -> FairShare {
        let share = match self {
            Self::Pod(_) => FairShare::urgent(),
            Self::Prefetch => FairShare::background(),
        };
        self.apply_to(&share);
        share
    }

    /// Adds this priority to the share of a running download.
    pub(in crate::cache) fn apply_to(&self, share: &FairShare) {
        if let Self::Pod(tenant) = self {
            share.add_tenant(tenant);
            share.make_urgent();
        }
    }
}

/// The download slots. Clones share them.
#[derive(Debug, Clone)]
pub(in crate::cache) struct Slots(Arc<Mutex<SlotsState>>);

#[derive(Debug)]
struct SlotsState {
    limit: usize,
    /// Requests so far.
    count: u64,
    tenants: Turns<Tenant>,
    origins: Turns<Arc<Origin>>,
    holders: BTreeMap<u64, SlotHolder>,
    /// Ordered by arrival.
    waiting: BTreeMap<u64, SlotRequest>,
    /// Whether a task watches the queue.
    watched: bool,
}

/// A model that requests a slot.
#[derive(Debug, Clone)]
pub(in crate::cache) struct Candidate {
    pub(in crate::cache) share: FairShare,
    pub(in crate::cache) origin: Arc<Origin>,
    /// Whether it is large: has very many files.
    pub(in crate::cache) large: bool,
}

#[derive(Debug)]
struct SlotHolder {
    model: Candidate,
    tenant: Tenant,
    since: Instant,
    asked: Arc<Notify>,
    /// Set once it was asked to yield.
    yielding: Option<YieldReason>,
}

/// Whether a model makes no progress.
/// Why a model must yield its slot; the stronger reason is greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum YieldReason {
    /// It is the turn of another one.
    Turn,
    /// It is stalled.
    Stalled,
}

#[derive(Debug)]
struct SlotRequest {
    model: Candidate,
    since: Instant,
    /// Until then, it lets others go first.
    cooldown_until: Instant,
    grant: oneshot::Sender<DownloadSlot>,
}

/// A model's slot. Dropping it frees the slot.
#[derive(Debug)]
pub(in crate::cache) struct DownloadSlot {
    slots: Slots,
    /// `None` once it is freed.
    id: Option<u64>,
    asked: Arc<Notify>,
}

impl DownloadSlot {
    /// Waits until the model must yield its slot. Cancellation safe.
    pub(in crate::cache) async fn asked_to_yield(&self) {
        self.asked.notified().await;
    }
}

impl Slots {
    pub(in crate::cache) fn new(limit: usize) -> Self {
        Self(Arc::new(Mutex::new(SlotsState {
            limit,
            count: 0,
            tenants: Turns::default(),
            origins: Turns::default(),
            holders: BTreeMap::new(),
            waiting: BTreeMap::new(),
            watched: false,
        })))
    }

    /// Waits for a slot; moves up when a pod requests the model meanwhile.
    /// Cancellation safe: a caller that leaves loses its place in the queue.
    pub(in crate::cache) async fn take(&self, model: &Candidate) -> DownloadSlot {
        self.wait(model, Duration::ZERO).await
    }

    /// Yields a slot, then waits for one like [`Slots::take`]. A stalled model lets
    /// others go first.
    pub(in crate::cache) async fn take_again(
        &self,
        model: &Candidate,
        slot: DownloadSlot,
    ) -> DownloadSlot {
        let reason = slot.id.and_then(|id| self.lock().holders.get(&id)?.yielding);
        drop(slot);
        let cooldown =
            if reason == Some(YieldReason::Stalled) { YIELD_COOLDOWN } else { Duration::ZERO };
        self.wait(model, cooldown).await
    }

    async fn wait(&self, model: &Candidate, cooldown: Duration) -> DownloadSlot {
        let (grant, mut granted) = oneshot::channel();
        {
            let mut state = self.lock();
            state.count += 1;
            let (id, now) = (state.count, Instant::now());
            let model = model.clone();
            let waiting = SlotRequest { model, since: now, cooldown_until: now + cooldown, grant };
            state.waiting.insert(id, waiting);
            self.admit(&mut state);
            if !state.watched && !state.waiting.is_empty() {
                state.watched = true;
                tokio::spawn(self.clone().watch());
            }
        }
        tokio::select! {
            biased;
            slot = &mut granted => return slot.expect(NEVER_DROPPED),
            () = model.share.until_urgent() => self.admit(&mut self.lock()),
        }
        granted.await.expect(NEVER_DROPPED)
    }

    /// Watches the queue until it is empty.
    async fn watch(self) {
        loop {
            tokio::time::sleep(CHECK_PERIOD).await;
            let mut state = self.lock();
            self.admit(&mut state);
            if state.waiting.is_empty() {
                state.watched = false;
                return;
            }
            state.request_yield(Instant::now());
        }
    }

    fn admit(&self, state: &mut SlotsState) {
        state.waiting.retain(|_, waiting| !waiting.grant.is_closed());
        while let Some((id, waiting)) = state.next() {
            let SlotRequest { model, grant, .. } = waiting;
            model.share.progressed();
            let asked = state.begin(id, model);
            if let Err(mut refused) =
                grant.send(DownloadSlot { slots: self.clone(), id: Some(id), asked })
            {
                // Its caller has just left. Without its id, dropping the slot does not
                // lock the slots again.
                refused.id = None;
                state.end(id);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, SlotsState> {
        lock(&self.0)
    }
}

const NEVER_DROPPED: &str = "a request is removed only after its caller left";

impl SlotsState {
    fn next(&mut self) -> Option<(u64, SlotRequest)> {
        let fits = |waiting: &SlotRequest| {
            self.beside(&waiting.model.share) < self.limit
                && !(waiting.model.large && self.holders.values().any(|holder| holder.model.large))
        };
        let id = self.in_order(fits).into_iter().next()?.0;
        self.waiting.remove(&id).map(|waiting| (id, waiting))
    }

    /// Returns the waiting requests that `matches` accepts, in the order of their turn.
    fn in_order(&self, matches: impl Fn(&SlotRequest) -> bool) -> Vec<(u64, &SlotRequest)> {
        let now = Instant::now();
        let waiting = self.waiting.iter().filter(|(_, waiting)| matches(waiting));
        let mut order: Vec<(u64, &SlotRequest)> =
            waiting.map(|(id, waiting)| (*id, waiting)).collect();
        order.sort_by_cached_key(|(id, waiting)| {
            let tenant = self.tenant(&waiting.model.share);
            let cooling_down = now < waiting.cooldown_until;
            let origin = self.origins.standing(&waiting.model.origin);
            let standing = self.tenants.standing(&tenant);
            (!waiting.model.share.is_urgent(), cooling_down, standing, origin, *id)
        });
        order
    }

    /// Counts the running downloads that this one must wait for: pods' models do not
    /// wait for prefetches.
    fn beside(&self, share: &FairShare) -> usize {
        let all = !share.is_urgent();
        self.holders.values().filter(|holder| all || holder.model.share.is_urgent()).count()
    }

    fn tenant(&self, share: &FairShare) -> Tenant {
        share.tenant(|tenant| self.tenants.standing(tenant))
    }

    /// Asks a model to yield if another one has waited long enough.
    fn request_yield(&mut self, now: Instant) {
        let patient = |waiting: &SlotRequest| now - waiting.since >= PATIENCE;
        let waiting = self.waiting.values().filter(|waiting| patient(waiting)).count();
        if self.holders.values().filter(|holder| holder.yielding.is_some()).count() >= waiting {
            return;
        }
        let mut patient = self.in_order(patient).into_iter();
        let found = patient.find_map(|(_, next)| self.find_yielding(next, now));
        let Some((reason, id)) = found else { return };
        if let Some(holder) = self.holders.get_mut(&id) {
            tracing::debug!(?reason, tenant = %holder.tenant, "a model was asked to yield its slot");
            holder.yielding = Some(reason);
            holder.asked.notify_one();
        }
    }

    /// Finds a model that must yield its slot to this one, and whether because it is
    /// stalled.
    fn find_yielding(&self, next: &SlotRequest, now: Instant) -> Option<(YieldReason, u64)> {
        let (urgent, cooling_down) = (next.model.share.is_urgent(), now < next.cooldown_until);
        let tenant = self.tenant(&next.model.share);
        let theirs = self.tenants.running(&tenant);
        // A large model can only use the slot of another large one.
        let only_large = next.model.large && self.holders.values().any(|holder| holder.model.large);
        let staying = self
            .holders
            .iter()
            .filter(|(_, holder)| holder.yielding.is_none() && (!only_large || holder.model.large));
        let leaving = staying.filter_map(|(id, holder)| {
            let mine = self.tenants.running(&holder.tenant);
            let more = holder.tenant != tenant && theirs + 1 < mine;
            let stalled = holder.model.share.stalled_for() >= STALLED;
            let must_yield = if holder.model.share.is_urgent() == urgent {
                let had_its_turn = now - holder.since >= LARGE_TURN;
                let turn = only_large && holder.tenant != tenant && had_its_turn;
                more || turn || stalled && !cooling_down
            } else {
                urgent && only_large
            };
            let reason = if stalled { YieldReason::Stalled } else { YieldReason::Turn };
            must_yield.then_some((reason, mine, *id))
        });
        leaving.max().map(|(reason, _, id)| (reason, id))
    }

    fn begin(&mut self, id: u64, model: Candidate) -> Arc<Notify> {
        let (tenant, asked) = (self.tenant(&model.share), Arc::new(Notify::new()));
        self.tenants.begin(&tenant);
        self.origins.begin(&model.origin);
        let notified = Arc::clone(&asked);
        let since = Instant::now();
        self.holders.insert(id, SlotHolder { model, tenant, since, asked, yielding: None });
        notified
    }

    fn end(&mut self, id: u64) {
        if let Some(holder) = self.holders.remove(&id) {
            self.tenants.end(&holder.tenant);
            self.origins.end(&holder.model.origin);
        }
    }
}

impl Drop for DownloadSlot {
    fn drop(&mut self) {
        if let Some(id) = self.id.take() {
            let mut state = self.slots.lock();
            state.end(id);
            self.slots.admit(&mut state);
        }
    }
}

#[cfg(test)]
#[path = "slots_tests.rs"]
mod tests;
