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
//! A model gives its slot back before it is there, and comes back in its turn, if
//! another one has waited for half a second and
//!
//! - the tenant of the other has at least two models fewer under way; or
//! - the network has brought it next to nothing for [`STALLED`]. What our own
//!   pacing under `download.bandwidthLimit` takes, the disk and checksums count as
//!   no lack of progress.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use crate::download::{Origin, PATIENCE, Share};
use crate::fair::Turns;
use crate::model::Tenant;

/// How long a model may be without progress while others wait.
const STALLED: Duration = Duration::from_secs(2);

/// How long a model that gave its slot back takes only a free one.
const PENANCE: Duration = Duration::from_secs(30);

/// How often it is looked whether a model has to give way, while others wait.
const LOOK: Duration = Duration::from_millis(250);

/// Who asks for a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asker {
    /// A pod of this tenant, which waits for it.
    Pod(Tenant),
    /// The driver: it is to be here, or whole again, before a pod asks.
    Prefetch,
}

impl Asker {
    /// The share of a model that this one is the first to ask for.
    pub(super) fn share(&self) -> Share {
        let share = match self {
            Self::Pod(_) => Share::urgent(),
            Self::Prefetch => Share::background(),
        };
        self.joins(&share);
        share
    }

    /// Asks for the model of this share too.
    pub(super) fn joins(&self, share: &Share) {
        if let Self::Pod(tenant) = self {
            share.wanted_by(tenant);
            share.raise();
        }
    }
}

/// The slots; clones are the same ones.
#[derive(Debug, Clone)]
pub(super) struct Slots(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    most: usize,
    /// Who came so far.
    count: u64,
    tenants: Turns<Tenant>,
    origins: Turns<Arc<Origin>>,
    holders: BTreeMap<u64, Holder>,
    /// By the order in which they came.
    waiting: BTreeMap<u64, Waiting>,
    /// Whether a task looks after those that wait.
    watched: bool,
}

#[derive(Debug)]
struct Holder {
    share: Share,
    tenant: Tenant,
    origin: Arc<Origin>,
    asked: Arc<Notify>,
    /// Whether it was asked to give way already.
    leaves: bool,
}

#[derive(Debug)]
struct Waiting {
    share: Share,
    origin: Arc<Origin>,
    since: Instant,
    /// Until when it takes only a free slot.
    modest_until: Instant,
    grant: oneshot::Sender<Slot>,
}

/// A model's place among those that download; ends when dropped.
#[derive(Debug)]
pub(super) struct Slot {
    slots: Slots,
    /// `None` once it is given back.
    id: Option<u64>,
    asked: Arc<Notify>,
}

impl Slot {
    /// Returns when the model has to give way to another. Cancellation safe.
    pub(super) async fn asked_back(&self) {
        self.asked.notified().await;
    }
}

impl Slots {
    pub(super) fn new(most: usize) -> Self {
        Self(Arc::new(Mutex::new(State {
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
    pub(super) async fn take(&self, share: &Share, origin: &Arc<Origin>) -> Slot {
        self.wait(share, origin, Duration::ZERO).await
    }

    /// As [`Slots::take`], after another slot was given back: others come first.
    pub(super) async fn take_again(&self, share: &Share, origin: &Arc<Origin>) -> Slot {
        self.wait(share, origin, PENANCE).await
    }

    async fn wait(&self, share: &Share, origin: &Arc<Origin>, modest: Duration) -> Slot {
        let (grant, mut granted) = oneshot::channel();
        {
            let mut state = self.lock();
            state.count += 1;
            let (id, now) = (state.count, Instant::now());
            let (share, origin) = (share.clone(), Arc::clone(origin));
            let waiting = Waiting { share, origin, since: now, modest_until: now + modest, grant };
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
            () = share.raised() => self.admit(&mut self.lock()),
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

    fn admit(&self, state: &mut State) {
        state.waiting.retain(|_, waiting| !waiting.grant.is_closed());
        while let Some((id, waiting)) = state.next() {
            let Waiting { share, origin, grant, .. } = waiting;
            share.progressed();
            let asked = state.begin(id, share, origin);
            if let Err(mut refused) = grant.send(Slot { slots: self.clone(), id: Some(id), asked })
            {
                // Its caller went away just now. Taken apart here, since its
                // drop would lock the slots once more.
                refused.id = None;
                state.end(id);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const NEVER_DROPPED: &str = "who waits is forgotten only when it went away";

impl State {
    fn next(&mut self) -> Option<(u64, Waiting)> {
        let (id, waiting) = self.first(|_| true)?;
        if self.beside(&waiting.share) >= self.most {
            return None;
        }
        self.waiting.remove(&id).map(|waiting| (id, waiting))
    }

    /// The next one of those that wait and are `meant`.
    fn first(&self, meant: impl Fn(&Waiting) -> bool) -> Option<(u64, &Waiting)> {
        let now = Instant::now();
        let waiting = self.waiting.iter().filter(|(_, waiting)| meant(waiting));
        let ranked = waiting.map(|(id, waiting)| {
            let tenant = self.tenant(&waiting.share);
            let modest = now < waiting.modest_until;
            let origin = self.origins.standing(&waiting.origin);
            let standing = self.tenants.standing(&tenant);
            ((!waiting.share.is_urgent(), modest, standing, origin, *id), waiting)
        });
        ranked.min_by_key(|(rank, _)| *rank).map(|((.., id), waiting)| (id, waiting))
    }

    /// Models that count for this one: pods' models do not wait for prefetches.
    fn beside(&self, share: &Share) -> usize {
        let all = !share.is_urgent();
        self.holders.values().filter(|holder| all || holder.share.is_urgent()).count()
    }

    fn tenant(&self, share: &Share) -> Tenant {
        share.tenant(|tenant| self.tenants.standing(tenant))
    }

    /// Asks a model to give way, where one has waited long enough for that.
    fn make_way(&mut self, now: Instant) {
        let patient = |waiting: &Waiting| now - waiting.since >= PATIENCE;
        let waiting = self.waiting.values().filter(|waiting| patient(waiting)).count();
        if self.holders.values().filter(|holder| holder.leaves).count() >= waiting {
            return;
        }
        let Some((_, next)) = self.first(patient) else { return };
        let (urgent, modest) = (next.share.is_urgent(), now < next.modest_until);
        let tenant = self.tenant(&next.share);
        let theirs = self.tenants.running(&tenant);
        let staying = self.holders.iter().filter(|(_, holder)| !holder.leaves);
        let leaving = staying.filter_map(|(id, holder)| {
            let mine = self.tenants.running(&holder.tenant);
            let more = holder.tenant != tenant && theirs + 1 < mine;
            let stalled = holder.share.stalled_for() >= STALLED;
            let gives_way = holder.share.is_urgent() == urgent && (more || stalled && !modest);
            gives_way.then_some((stalled, mine, *id))
        });
        let Some((stalled, _, id)) = leaving.max() else { return };
        if let Some(holder) = self.holders.get_mut(&id) {
            tracing::debug!(stalled, tenant = %holder.tenant, next = %tenant, "a model gives way");
            holder.leaves = true;
            holder.asked.notify_one();
        }
    }

    fn begin(&mut self, id: u64, share: Share, origin: Arc<Origin>) -> Arc<Notify> {
        let (tenant, asked) = (self.tenant(&share), Arc::new(Notify::new()));
        self.tenants.begin(&tenant);
        self.origins.begin(&origin);
        let notified = Arc::clone(&asked);
        self.holders.insert(id, Holder { share, tenant, origin, asked, leaves: false });
        notified
    }

    fn end(&mut self, id: u64) {
        if let Some(holder) = self.holders.remove(&id) {
            self.tenants.end(&holder.tenant);
            self.origins.end(&holder.origin);
        }
    }
}

impl Drop for Slot {
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
