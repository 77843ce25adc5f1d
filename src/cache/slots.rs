//! Which models download at once: `download.maxModels`, and who goes first.
//!
//! Models that pods wait for come before those that are prefetched, each in the
//! order in which they came. A prefetch gets a slot where fewer models than
//! `download.maxModels` download; a pod's model gets one where fewer than that
//! many *pods'* models do. So it never waits for a prefetch, and at most twice
//! as many models download at once: the gate of the download engine gives the
//! connections to the pods' models then, and the prefetches wait with theirs.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::download::Share;

/// Who asks for a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asker {
    /// A pod, which waits for it.
    Pod,
    /// Nobody who waits: it is to be here, or whole again, before a pod asks.
    Prefetch,
}

impl Asker {
    /// The share of a model that this one is the first to ask for.
    pub(super) fn share(self) -> Share {
        match self {
            Self::Pod => Share::urgent(),
            Self::Prefetch => Share::background(),
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
    holders: BTreeMap<u64, Share>,
    /// By the order in which they came.
    waiting: BTreeMap<u64, (Share, oneshot::Sender<Slot>)>,
}

/// A model's place among those that download; ends when dropped.
#[derive(Debug)]
pub(super) struct Slot {
    slots: Slots,
    /// `None` once it is given back.
    id: Option<u64>,
}

impl Slots {
    pub(super) fn new(most: usize) -> Self {
        let (holders, waiting) = (BTreeMap::new(), BTreeMap::new());
        Self(Arc::new(Mutex::new(State { most, count: 0, holders, waiting })))
    }

    /// Waits for a slot; moves up when a pod asks for the model meanwhile.
    /// Cancellation safe: who goes away loses the turn.
    pub(super) async fn take(&self, share: &Share) -> Slot {
        let (grant, mut granted) = oneshot::channel();
        {
            let mut state = self.lock();
            state.count += 1;
            let id = state.count;
            state.waiting.insert(id, (share.clone(), grant));
            self.admit(&mut state);
        }
        tokio::select! {
            biased;
            slot = &mut granted => return slot.expect(NEVER_DROPPED),
            () = share.raised() => self.admit(&mut self.lock()),
        }
        granted.await.expect(NEVER_DROPPED)
    }

    fn admit(&self, state: &mut State) {
        state.waiting.retain(|_, (_, grant)| !grant.is_closed());
        while let Some((id, share, grant)) = state.next() {
            state.holders.insert(id, share);
            if let Err(mut refused) = grant.send(Slot { slots: self.clone(), id: Some(id) }) {
                // Its caller went away just now. Taken apart here, since its
                // drop would lock the slots once more.
                refused.id = None;
                state.holders.remove(&id);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const NEVER_DROPPED: &str = "who waits is forgotten only when it went away";

impl State {
    fn next(&mut self) -> Option<(u64, Share, oneshot::Sender<Slot>)> {
        let urgent = self.waiting.iter().find(|(_, (share, _))| share.is_urgent());
        let (id, holders) = match urgent {
            Some((id, _)) => (*id, self.holders.values().filter(|h| h.is_urgent()).count()),
            None => (*self.waiting.first_key_value()?.0, self.holders.len()),
        };
        if holders >= self.most {
            return None;
        }
        self.waiting.remove(&id).map(|(share, grant)| (id, share, grant))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(id) = self.id.take() {
            let mut state = self.slots.lock();
            state.holders.remove(&id);
            self.slots.admit(&mut state);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::mpsc;
    use tokio::task::JoinSet;

    use super::*;

    const BOUND: Duration = Duration::from_secs(20);

    /// Models that wait for a slot, and report when they have it.
    struct Scene {
        slots: Slots,
        started: mpsc::UnboundedReceiver<(&'static str, Slot)>,
        report: mpsc::UnboundedSender<(&'static str, Slot)>,
        tasks: JoinSet<()>,
    }

    impl Scene {
        fn new(most: usize) -> Self {
            let (report, started) = mpsc::unbounded_channel();
            Self { slots: Slots::new(most), started, report, tasks: JoinSet::new() }
        }

        async fn come(&mut self, name: &'static str, asker: Asker) -> Share {
            let share = asker.share();
            let (slots, waiting, report) = (self.slots.clone(), share.clone(), self.report.clone());
            self.tasks.spawn(async move {
                let slot = slots.take(&waiting).await;
                let _ = report.send((name, slot));
            });
            settle().await;
            share
        }

        async fn next(&mut self) -> (&'static str, Slot) {
            tokio::time::timeout(BOUND, self.started.recv()).await.unwrap().unwrap()
        }

        /// Whether nobody else has a slot now.
        async fn nobody(&self) -> bool {
            settle().await;
            self.started.is_empty()
        }
    }

    /// Until every task waits.
    async fn settle() {
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn more_than_the_configured_models_wait_in_the_order_in_which_they_came() {
        let mut scene = Scene::new(2);
        for name in ["1", "2", "3", "4"] {
            scene.come(name, Asker::Pod).await;
        }
        let (first, second) = (scene.next().await, scene.next().await);
        assert_eq!((first.0, second.0), ("1", "2"));
        assert!(scene.nobody().await);
        drop(second);
        let third = scene.next().await;
        assert!(third.0 == "3" && scene.nobody().await);
        drop((first, third));
        assert_eq!(scene.next().await.0, "4");
    }

    #[tokio::test]
    async fn a_pod_waits_for_no_prefetch_and_a_prefetch_for_everybody() {
        let mut scene = Scene::new(2);
        for name in ["prefetch 1", "prefetch 2", "prefetch 3"] {
            scene.come(name, Asker::Prefetch).await;
        }
        let prefetches = [scene.next().await, scene.next().await];
        assert!(scene.nobody().await);
        for name in ["pod 1", "pod 2", "pod 3"] {
            scene.come(name, Asker::Pod).await;
        }
        let pods = [scene.next().await, scene.next().await];
        assert_eq!((pods[0].0, pods[1].0), ("pod 1", "pod 2"), "beside both prefetches");
        assert!(scene.nobody().await, "as many pods' models as are configured");
        drop(prefetches);
        assert!(scene.nobody().await, "the slots are the pods' now");
        let [first, second] = pods;
        drop(first);
        assert_eq!(scene.next().await.0, "pod 3");
        drop(second);
        assert_eq!(scene.next().await.0, "prefetch 3");
    }

    #[tokio::test]
    async fn a_prefetch_that_a_pod_joins_waits_for_no_other_prefetch() {
        let mut scene = Scene::new(1);
        scene.come("running", Asker::Prefetch).await;
        let running = scene.next().await;
        scene.come("other", Asker::Prefetch).await;
        let joined = scene.come("joined", Asker::Prefetch).await;
        assert!(scene.nobody().await);
        joined.raise();
        let started = scene.next().await;
        assert!(started.0 == "joined" && scene.nobody().await);
        drop((running, started));
        assert_eq!(scene.next().await.0, "other");
    }

    #[tokio::test]
    async fn a_running_prefetch_that_a_pod_joins_counts_as_the_pods() {
        let mut scene = Scene::new(1);
        let running = scene.come("running", Asker::Prefetch).await;
        let slot = scene.next().await;
        running.raise();
        scene.come("pod", Asker::Pod).await;
        assert!(scene.nobody().await);
        drop(slot);
        assert_eq!(scene.next().await.0, "pod");
    }

    #[tokio::test]
    async fn whoever_goes_away_takes_no_slot_along() {
        let mut scene = Scene::new(1);
        scene.come("1", Asker::Pod).await;
        let first = scene.next().await;
        for _ in 0..3 {
            scene.come("gone", Asker::Pod).await;
            scene.come("gone", Asker::Prefetch).await;
        }
        scene.tasks.abort_all();
        while scene.tasks.join_next().await.is_some() {}
        scene.come("2", Asker::Pod).await;
        drop(first);
        assert_eq!(scene.next().await.0, "2");
        // Its slot was dropped with the answer.
        assert!(scene.slots.lock().holders.is_empty() && scene.slots.lock().waiting.is_empty());
    }
}
