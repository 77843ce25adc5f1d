//! Which models download at once: `download.maxModels`, and who goes first.
//!
//! Models that pods wait for come before those that are prefetched. Of these the
//! next one is of the tenant with the fewest models under way, within the tenant
//! of the bucket with the fewest, and then the one that came first. A prefetch
//! gets a slot where fewer models than `download.maxModels` download; a pod's
//! model gets one where fewer than that many *pods'* models do. So it never waits
//! for a prefetch, and at most twice as many models download at once: the gate of
//! the download engine gives the connections to the pods' models then, and the
//! prefetches wait with theirs.
//!
//! Of models of very many files one downloads at once, whatever slots are free:
//! what is noted of each file meanwhile is as much as its manifest. The others wait
//! for it in the same order, and tenants take turns of [`LARGE_TURN`].
//!
//! A model gives its slot back before it is there, and comes back in its turn, if
//! another one has waited for half a second and
//!
//! - the tenant of the other has at least two models fewer under way; or
//! - both have very many files, and it is prefetched while a pod waits for the other,
//!   or has had its turn while a model of another tenant waits; or
//! - the network has brought it next to nothing for [`STALLED`]. What our own
//!   pacing under `download.bandwidthLimit` takes, the disk and checksums count as
//!   no lack of progress.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use crate::download::{FairShare, Origin, PATIENCE};
use crate::fair::Turns;
use crate::model::Tenant;

/// How long a model may be without progress while others wait.
const STALLED: Duration = Duration::from_secs(2);

/// How long a model that gave its slot back takes only a free one.
const PENANCE: Duration = Duration::from_secs(30);

/// How long a model of very many files keeps its slot while one of another tenant waits.
const LARGE_TURN: Duration = Duration::from_secs(20);

/// How often it is looked whether a model has to give way, while others wait.
const LOOK: Duration = Duration::from_millis(250);

/// Who asks for a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Priority {
    /// A pod of this tenant, which waits for it.
    Pod(Tenant),
    /// The driver: it is to be here, or whole again, before a pod asks.
    Prefetch,
}

impl Priority {
    /// The share of a model that this one is the first to ask for.
    pub(super) fn share(&self) -> FairShare {
        let share = match self {
            Self::Pod(_) => FairShare::urgent(),
            Self::Prefetch => FairShare::background(),
        };
        self.joins(&share);
        share
    }

    /// Asks for the model of this share too.
    pub(super) fn joins(&self, share: &FairShare) {
        if let Self::Pod(tenant) = self {
            share.wanted_by(tenant);
            share.raise();
        }
    }
}

/// The slots; clones are the same ones.
#[derive(Debug, Clone)]
pub(super) struct Slots(Arc<Mutex<SlotsState>>);

#[derive(Debug)]
struct SlotsState {
    most: usize,
    /// Who came so far.
    count: u64,
    tenants: Turns<Tenant>,
    origins: Turns<Arc<Origin>>,
    holders: BTreeMap<u64, SlotHolder>,
    /// By the order in which they came.
    waiting: BTreeMap<u64, SlotRequest>,
    /// Whether a task looks after those that wait.
    watched: bool,
}

/// A model that asks for a slot.
#[derive(Debug, Clone)]
pub(super) struct Candidate {
    pub(super) share: FairShare,
    pub(super) origin: Arc<Origin>,
    /// Whether it has very many files.
    pub(super) large: bool,
}

#[derive(Debug)]
struct SlotHolder {
    model: Candidate,
    tenant: Tenant,
    since: Instant,
    asked: Arc<Notify>,
    /// Whether it was asked to give way already, and if because it is stalled.
    leaves: Option<Stalled>,
}

/// Whether a model is without progress.
type Stalled = bool;

#[derive(Debug)]
struct SlotRequest {
    model: Candidate,
    since: Instant,
    /// Until when it takes only a free slot.
    modest_until: Instant,
    grant: oneshot::Sender<DownloadSlot>,
}

/// A model's place among those that download; ends when dropped.
#[derive(Debug)]
pub(super) struct DownloadSlot {
    slots: Slots,
    /// `None` once it is given back.
    id: Option<u64>,
    asked: Arc<Notify>,
}

impl DownloadSlot {
    /// Returns when the model has to give way to another. Cancellation safe.
    pub(super) async fn asked_back(&self) {
        self.asked.notified().await;
    }
}

impl Slots {
    pub(super) fn new(most: usize) -> Self {
        Self(Arc::new(Mutex::new(SlotsState {
            most,
            count: 0,
            tenants: Turns::default(),
            origins: Turns::default(),
            holders: BTreeMap::new(),
            waiting: BTreeMap::new(),
            watched: false,
        })))
    }

    /// Waits for a slot; moves up when a pod asks for the model meanwhile.
    /// Cancellation safe: who goes away loses the turn.
    pub(super) async fn take(&self, model: &Candidate) -> DownloadSlot {
        self.wait(model, Duration::ZERO).await
    }

    /// As [`Slots::take`], after giving back the slot that was asked for. If that was
    /// for want of progress, others come first.
    pub(super) async fn take_again(&self, model: &Candidate, slot: DownloadSlot) -> DownloadSlot {
        let stalled = slot.id.and_then(|id| self.lock().holders.get(&id)?.leaves);
        drop(slot);
        let modest = if stalled == Some(true) { PENANCE } else { Duration::ZERO };
        self.wait(model, modest).await
    }

    async fn wait(&self, model: &Candidate, modest: Duration) -> DownloadSlot {
        let (grant, mut granted) = oneshot::channel();
        {
            let mut state = self.lock();
            state.count += 1;
            let (id, now) = (state.count, Instant::now());
            let model = model.clone();
            let waiting = SlotRequest { model, since: now, modest_until: now + modest, grant };
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
            () = model.share.raised() => self.admit(&mut self.lock()),
        }
        granted.await.expect(NEVER_DROPPED)
    }

    /// Looks after those that wait, until nobody does.
    async fn watch(self) {
        loop {
            tokio::time::sleep(LOOK).await;
            let mut state = self.lock();
            self.admit(&mut state);
            if state.waiting.is_empty() {
                state.watched = false;
                return;
            }
            state.make_way(Instant::now());
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
                // Its caller went away just now. Taken apart here, since its
                // drop would lock the slots once more.
                refused.id = None;
                state.end(id);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, SlotsState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const NEVER_DROPPED: &str = "who waits is forgotten only when it went away";

impl SlotsState {
    fn next(&mut self) -> Option<(u64, SlotRequest)> {
        let fits = |waiting: &SlotRequest| {
            self.beside(&waiting.model.share) < self.most
                && !(waiting.model.large && self.holders.values().any(|holder| holder.model.large))
        };
        let id = self.in_order(fits).into_iter().next()?.0;
        self.waiting.remove(&id).map(|waiting| (id, waiting))
    }

    /// Those that wait and are `meant`, the next one first.
    fn in_order(&self, meant: impl Fn(&SlotRequest) -> bool) -> Vec<(u64, &SlotRequest)> {
        let now = Instant::now();
        let waiting = self.waiting.iter().filter(|(_, waiting)| meant(waiting));
        let mut order: Vec<(u64, &SlotRequest)> =
            waiting.map(|(id, waiting)| (*id, waiting)).collect();
        order.sort_by_cached_key(|(id, waiting)| {
            let tenant = self.tenant(&waiting.model.share);
            let modest = now < waiting.modest_until;
            let origin = self.origins.standing(&waiting.model.origin);
            let standing = self.tenants.standing(&tenant);
            (!waiting.model.share.is_urgent(), modest, standing, origin, *id)
        });
        order
    }

    /// Models that count for this one: pods' models do not wait for prefetches.
    fn beside(&self, share: &FairShare) -> usize {
        let all = !share.is_urgent();
        self.holders.values().filter(|holder| all || holder.model.share.is_urgent()).count()
    }

    fn tenant(&self, share: &FairShare) -> Tenant {
        share.tenant(|tenant| self.tenants.standing(tenant))
    }

    /// Asks a model to give way, where one has waited long enough for that.
    fn make_way(&mut self, now: Instant) {
        let patient = |waiting: &SlotRequest| now - waiting.since >= PATIENCE;
        let waiting = self.waiting.values().filter(|waiting| patient(waiting)).count();
        if self.holders.values().filter(|holder| holder.leaves.is_some()).count() >= waiting {
            return;
        }
        let mut patient = self.in_order(patient).into_iter();
        let found = patient.find_map(|(_, next)| self.to_leave(next, now));
        let Some((stalled, id)) = found else { return };
        if let Some(holder) = self.holders.get_mut(&id) {
            tracing::debug!(stalled, tenant = %holder.tenant, "a model gives way");
            holder.leaves = Some(stalled);
            holder.asked.notify_one();
        }
    }

    /// Whether there is a model that gives its slot to this one, which it is, and
    /// whether that is because it is stalled.
    fn to_leave(&self, next: &SlotRequest, now: Instant) -> Option<(Stalled, u64)> {
        let (urgent, modest) = (next.model.share.is_urgent(), now < next.modest_until);
        let tenant = self.tenant(&next.model.share);
        let theirs = self.tenants.running(&tenant);
        // Any other slot would be of no use to a model that may not be beside a large one.
        let only_large = next.model.large && self.holders.values().any(|holder| holder.model.large);
        let staying = self
            .holders
            .iter()
            .filter(|(_, holder)| holder.leaves.is_none() && (!only_large || holder.model.large));
        let leaving = staying.filter_map(|(id, holder)| {
            let mine = self.tenants.running(&holder.tenant);
            let more = holder.tenant != tenant && theirs + 1 < mine;
            let stalled = holder.model.share.stalled_for() >= STALLED;
            let gives_way = if holder.model.share.is_urgent() == urgent {
                let had_its_turn = now - holder.since >= LARGE_TURN;
                let turn = only_large && holder.tenant != tenant && had_its_turn;
                more || turn || stalled && !modest
            } else {
                urgent && only_large
            };
            gives_way.then_some((stalled, mine, *id))
        });
        leaving.max().map(|(stalled, _, id)| (stalled, id))
    }

    fn begin(&mut self, id: u64, model: Candidate) -> Arc<Notify> {
        let (tenant, asked) = (self.tenant(&model.share), Arc::new(Notify::new()));
        self.tenants.begin(&tenant);
        self.origins.begin(&model.origin);
        let notified = Arc::clone(&asked);
        let since = Instant::now();
        self.holders.insert(id, SlotHolder { model, tenant, since, asked, leaves: None });
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
