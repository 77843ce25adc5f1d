//! Fairness: permits for work are shared in turns, so that no tenant
//! waits for the queue of another.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::oneshot;

use crate::model::Tenant;
use crate::sync::lock;

/// Accounts without running work whose last turn is remembered.
const REMEMBERED: usize = 1024;

/// What each account has running, and when its last turn was.
#[derive(Debug, Clone)]
pub(crate) struct Turns<K> {
    count: u64,
    accounts: HashMap<K, TurnOrder>,
}

/// The order in which accounts get their turns: the one with the least running
/// work first, and among equals the one whose last turn was longest ago.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TurnOrder {
    pub(crate) running: usize,
    last_turn: u64,
}

impl<K> Default for Turns<K> {
    fn default() -> Self {
        Self { count: 0, accounts: HashMap::new() }
    }
}

impl<K: Clone + Eq + Hash> Turns<K> {
    /// When the turn of an account comes; the least is next.
    pub(crate) fn standing(&self, account: &K) -> TurnOrder {
        self.accounts.get(account).copied().unwrap_or_default()
    }

    /// How much work of an account is running.
    pub(crate) fn running(&self, account: &K) -> usize {
        self.standing(account).running
    }

    /// Records that work of this account begins.
    pub(crate) fn begin(&mut self, account: &K) {
        if self.accounts.len() >= REMEMBERED {
            self.accounts.retain(|_, standing| standing.running > 0);
        }
        self.count += 1;
        let standing = self.accounts.entry(account.clone()).or_default();
        standing.running += 1;
        standing.last_turn = self.count;
    }

    /// Records that work of this account has ended.
    pub(crate) fn end(&mut self, account: &K) {
        if let Some(standing) = self.accounts.get_mut(account) {
            standing.running = standing.running.saturating_sub(1);
        }
    }
}

/// A number of permits for one kind of work; clones share the same permits.
///
/// The next free permit goes to the tenant that holds the fewest, and among
/// equals to the one whose last turn was longest ago. Within a tenant the order
/// is that of arrival. A tenant holds at most half of the permits, rounded up:
/// work that holds one is not interrupted and may take long, so another tenant
/// must still find one free.
#[derive(Debug, Clone)]
pub struct FairSemaphore(Arc<Mutex<SemaphoreState>>);

#[derive(Debug)]
struct SemaphoreState {
    free: usize,
    /// The most permits that one tenant may hold.
    most: usize,
    arrivals: u64,
    turns: Turns<Tenant>,
    /// By arrival.
    waiting: BTreeMap<u64, (Tenant, oneshot::Sender<FairPermit>)>,
}

/// One permit; returned when dropped.
#[derive(Debug)]
pub struct FairPermit(Option<(FairSemaphore, Tenant)>);

impl FairSemaphore {
    /// Makes a semaphore of `count` permits.
    pub fn new(count: usize) -> Self {
        let (turns, waiting) = (Turns::default(), BTreeMap::new());
        Self(Arc::new(Mutex::new(SemaphoreState {
            free: count,
            most: count.div_ceil(2),
            arrivals: 0,
            turns,
            waiting,
        })))
    }

    /// Waits for a permit. Cancellation safe: a caller that leaves loses its turn.
    pub async fn enter(&self, tenant: &Tenant) -> FairPermit {
        let (grant, granted) = oneshot::channel();
        {
            let mut state = self.lock();
            state.arrivals += 1;
            let arrival = state.arrivals;
            state.waiting.insert(arrival, (tenant.clone(), grant));
            self.admit(&mut state);
        }
        granted.await.expect("a waiter is removed only after its caller has gone away")
    }

    fn admit(&self, state: &mut SemaphoreState) {
        state.waiting.retain(|_, (_, grant)| !grant.is_closed());
        while state.free > 0 {
            let Some((tenant, grant)) = state.next() else { return };
            state.free -= 1;
            state.turns.begin(&tenant);
            if let Err(mut refused) = grant.send(FairPermit(Some((self.clone(), tenant)))) {
                // Its caller has just left. Taken apart here, since its
                // drop would lock the state once more.
                if let Some((_, tenant)) = refused.0.take() {
                    state.leave(&tenant);
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, SemaphoreState> {
        lock(&self.0)
    }
}

impl SemaphoreState {
    fn next(&mut self) -> Option<(Tenant, oneshot::Sender<FairPermit>)> {
        let waiting = self.waiting.iter();
        let may = waiting.filter(|(_, (tenant, _))| self.turns.running(tenant) < self.most);
        let next = may.min_by_key(|(at, (tenant, _))| (self.turns.standing(tenant), **at));
        let arrival = *next?.0;
        self.waiting.remove(&arrival)
    }

    fn leave(&mut self, tenant: &Tenant) {
        self.free += 1;
        self.turns.end(tenant);
    }
}

impl Drop for FairPermit {
    fn drop(&mut self) {
        if let Some((places, tenant)) = self.0.take() {
            let mut state = places.lock();
            state.leave(&tenant);
            places.admit(&mut state);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn tenant(name: &str) -> Tenant {
        Tenant::of_namespace(name)
    }

    #[tokio::test]
    async fn a_tenant_that_queues_for_hours_delays_another_by_one_turn() {
        let places = FairSemaphore::new(2);
        let (loud, quiet) = (tenant("loud"), tenant("quiet"));
        let held = [places.enter(&loud).await, places.enter(&tenant("other")).await];
        let queue: Vec<_> = (0..50).map(|_| Box::pin(places.enter(&loud))).collect();
        let mut queue: Vec<_> = queue
            .into_iter()
            .map(|mut wait| {
                assert!(wait.as_mut().now_or_never().is_none());
                wait
            })
            .collect();
        let mut late = Box::pin(places.enter(&quiet));
        assert!(late.as_mut().now_or_never().is_none());
        drop(held);
        assert!(late.as_mut().now_or_never().is_some(), "it came last, and is next");
        assert!(queue[0].as_mut().now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_tenant_whose_work_never_ends_leaves_half_of_the_places() {
        for count in [2, 3, 4] {
            let places = FairSemaphore::new(count);
            let (loud, quiet) = (tenant("loud"), tenant("quiet"));
            let mut loud: Vec<_> = (0..count).map(|_| Box::pin(places.enter(&loud))).collect();
            let held: Vec<_> =
                loud.iter_mut().filter_map(|wait| wait.as_mut().now_or_never()).collect();
            assert_eq!(held.len(), count.div_ceil(2));
            let other = places.enter(&quiet).now_or_never();
            assert!(other.is_some(), "a place of {count} is free");
        }
    }

    #[tokio::test]
    async fn tenants_take_turns_where_there_is_one_place() {
        let places = FairSemaphore::new(1);
        let held = places.enter(&tenant("a")).await;
        let names = ["a", "a", "a", "b", "b", "c"];
        let mut waits: Vec<_> = names
            .map(|name| {
                (
                    name,
                    Box::pin({
                        let (places, tenant) = (places.clone(), tenant(name));
                        async move { places.enter(&tenant).await }
                    }),
                )
            })
            .into();
        for (_, wait) in &mut waits {
            assert!(wait.as_mut().now_or_never().is_none());
        }
        drop(held);
        let mut order = Vec::new();
        while !waits.is_empty() {
            let next = waits.iter_mut().position(|(_, wait)| {
                // Its place is dropped at once, for the next one.
                wait.as_mut().now_or_never().is_some()
            });
            order.push(waits.remove(next.expect("one of them is next")).0);
        }
        assert_eq!(order, ["b", "c", "a", "b", "a", "a"]);
    }

    #[tokio::test]
    async fn a_waiter_that_is_dropped_keeps_no_permit() {
        let places = FairSemaphore::new(1);
        let held = places.enter(&tenant("a")).await;
        let b = tenant("b");
        let mut gone = Box::pin(places.enter(&b));
        assert!(gone.as_mut().now_or_never().is_none());
        drop(gone);
        drop(held);
        drop(places.enter(&tenant("c")).await);
        let state = places.lock();
        assert!(state.free == 1 && state.waiting.is_empty());
        assert_eq!(state.turns.running(&tenant("c")), 0);
    }

    #[test]
    fn the_memory_of_tenants_is_bounded() {
        let mut turns = Turns::default();
        turns.begin(&0);
        for account in 1..REMEMBERED * 3 {
            turns.begin(&account);
            turns.end(&account);
        }
        assert!(turns.accounts.len() <= REMEMBERED && turns.running(&0) == 1);
    }
}
