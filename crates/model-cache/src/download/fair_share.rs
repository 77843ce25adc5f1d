//! The unit of fairness: one share per model.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::limiter::LimiterTurns;
use crate::model::Tenant;
use crate::source::ObjectSource;
use crate::sync::lock;

/// Bytes that count as progress of a model.
const PROGRESS: u64 = 64 << 10;

/// Tenants that one model is accounted to; further tenants share the accounts of these.
const TENANTS: usize = 64;

/// One model's share of the node's downloads; clones are the same share.
///
/// Requests of urgent shares are admitted before all others. Of the same urgency,
/// tenants get equally many requests at once, and within a tenant its models.
#[derive(Debug, Clone)]
pub struct FairShare(Arc<FairShareInner>);

#[derive(Debug)]
struct FairShareInner {
    /// Unique in this process.
    id: u64,
    urgent: watch::Sender<bool>,
    /// The tenants whose pods want the model; without any it is the driver's.
    tenants: Mutex<Vec<Tenant>>,
    activity: Mutex<Activity>,
    /// The clients that may read its objects; refused ones are removed.
    readers: Mutex<Vec<Arc<dyn ObjectSource>>>,
}

/// Whether the network delivers what a model requests.
#[derive(Debug)]
struct Activity {
    /// The last progress, moved forward by the time since then that is not counted.
    since: Instant,
    /// Bytes since then.
    bytes: u64,
    /// Local work under way.
    own: usize,
    /// Requests that wait in the limiter because others hold its permits.
    queued: usize,
    /// Requests that the limiter admitted.
    running: usize,
    /// Since when time has not been counted.
    held_since: Option<Instant>,
}

impl Activity {
    fn new() -> Self {
        let (own, queued, running) = (0, 0, 0);
        Self { since: Instant::now(), bytes: 0, own, queued, running, held_since: None }
    }

    /// Applies a change, and updates whether time is counted.
    fn change(&mut self, change: impl FnOnce(&mut Self)) {
        change(self);
        let held = self.own > 0 || (self.queued > 0 && self.running == 0);
        match self.held_since {
            None if held => self.held_since = Some(Instant::now()),
            Some(from) if !held => {
                // Progress may have come after that.
                self.since += from.max(self.since).elapsed();
                self.held_since = None;
            }
            _ => {}
        }
    }

    fn stalled_for(&self) -> Duration {
        self.held_since.unwrap_or_else(Instant::now).saturating_duration_since(self.since)
    }

    fn progressed(&mut self) {
        (self.since, self.bytes) = (Instant::now(), 0);
    }
}

/// Local work on a model, which does not count as waiting for the network: pacing, the
/// disk, checksums. Ends when dropped.
#[derive(Debug)]
pub struct OwnWork(Vec<FairShare>);

/// A request that waits in the limiter because others hold its permits; until dropped.
#[derive(Debug)]
pub(super) struct Queued(Vec<FairShare>);

impl FairShare {
    /// Creates the share of a model that a pod waits for.
    pub fn urgent() -> Self {
        Self::new(true)
    }

    /// Creates the share of a model that is downloaded ahead: it uses what urgent shares leave.
    pub fn background() -> Self {
        Self::new(false)
    }

    fn new(urgent: bool) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(Arc::new(FairShareInner {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            urgent: watch::Sender::new(urgent),
            tenants: Mutex::default(),
            activity: Mutex::new(Activity::new()),
            readers: Mutex::default(),
        }))
    }

    pub(super) fn id(&self) -> u64 {
        self.0.id
    }

    /// Accounts the model to this tenant too.
    pub fn add_tenant(&self, tenant: &Tenant) {
        let mut tenants = self.tenants();
        if tenants.len() < TENANTS && !tenants.contains(tenant) {
            tenants.push(tenant.clone());
        }
    }

    /// The tenant to which the next piece of work is accounted: the one with
    /// the least `standing`.
    pub fn tenant<T: Ord>(&self, standing: impl Fn(&Tenant) -> T) -> Tenant {
        let tenants = self.tenants();
        tenants.iter().min_by_key(|tenant| standing(tenant)).cloned().unwrap_or(Tenant::Driver)
    }

    fn tenants(&self) -> MutexGuard<'_, Vec<Tenant>> {
        lock(&self.0.tenants)
    }

    /// How long the network has delivered next to nothing. Time spent on local work
    /// does not count, nor time in which other downloads hold all connections.
    pub fn stalled_for(&self) -> Duration {
        self.activity().stalled_for()
    }

    /// Records progress: an object is complete, or its turn to download has come.
    pub fn progressed(&self) {
        self.activity().progressed();
    }

    fn received(&self, bytes: u64) {
        let mut activity = self.activity();
        activity.bytes = activity.bytes.saturating_add(bytes);
        if activity.bytes >= PROGRESS {
            activity.progressed();
        }
    }

    /// Begins local work on the model.
    pub fn own_work(&self) -> OwnWork {
        OwnWork::begin(vec![self.clone()])
    }

    /// Records that the limiter admitted one of its requests.
    pub(super) fn admitted(&self) {
        self.activity().change(|activity| activity.running += 1);
    }

    /// Records that an admitted request has ended.
    pub(super) fn left(&self) {
        self.activity().change(|activity| activity.running -= 1);
    }

    fn activity(&self) -> MutexGuard<'_, Activity> {
        lock(&self.0.activity)
    }

    /// Adds a client that may read its objects.
    pub fn add_reader(&self, client: &Arc<dyn ObjectSource>) {
        let mut readers = self.readers();
        if !readers.iter().any(|reader| reader.is(&**client)) {
            readers.push(client.clone());
        }
    }

    fn readers(&self) -> MutexGuard<'_, Vec<Arc<dyn ObjectSource>>> {
        lock(&self.0.readers)
    }

    /// Whether a pod waits for the model.
    pub fn is_urgent(&self) -> bool {
        *self.0.urgent.borrow()
    }

    /// Makes the share urgent: a pod waits for the model from now on.
    pub fn make_urgent(&self) {
        self.0.urgent.send_replace(true);
    }

    /// Returns once the share is urgent. Cancellation safe.
    pub async fn until_urgent(&self) {
        // The sender belongs to this share, so the channel is open.
        let _ = self.0.urgent.subscribe().wait_for(|urgent| *urgent).await;
    }

    fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl OwnWork {
    fn begin(shares: Vec<FairShare>) -> Self {
        for share in &shares {
            share.activity().change(|activity| activity.own += 1);
        }
        Self(shares)
    }
}

impl Drop for OwnWork {
    fn drop(&mut self) {
        for share in &self.0 {
            share.activity().change(|activity| activity.own -= 1);
        }
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        for share in &self.0 {
            share.activity().change(|activity| activity.queued -= 1);
        }
    }
}

/// All shares that want one object: models have objects in common.
/// Clones are the same list.
#[derive(Debug, Clone)]
pub struct Interest {
    first: FairShare,
    others: Arc<Mutex<Vec<FairShare>>>,
}

impl Interest {
    /// Creates the interest of one model.
    pub fn of(share: FairShare) -> Self {
        Self { first: share, others: Arc::default() }
    }

    /// Adds a model that wants the object too.
    pub fn join(&self, share: &FairShare) {
        let mut others = self.others();
        if !self.first.is(share) && !others.iter().any(|other| other.is(share)) {
            others.push(share.clone());
        }
    }

    /// The account of the next request: that of an urgent share, if there is one,
    /// and among several the one whose turn comes first.
    pub(super) fn account(&self, standings: &LimiterTurns) -> (FairShare, Tenant) {
        let ranked = |share: &FairShare| {
            let tenant = share.tenant(|tenant| standings.of(share, tenant));
            (!share.is_urgent(), standings.of(share, &tenant), tenant)
        };
        let (mut account, mut least) = (self.first.clone(), ranked(&self.first));
        for share in self.others().iter() {
            let rank = ranked(share);
            if (rank.0, rank.1) < (least.0, least.1) {
                (account, least) = (share.clone(), rank);
            }
        }
        (account, least.2)
    }

    /// Begins local work on the object.
    pub(super) fn own_work(&self) -> OwnWork {
        OwnWork::begin(self.shares())
    }

    /// Records that a request for the object waits because others hold the limiter's permits.
    pub(super) fn queued(&self) -> Queued {
        let shares = self.shares();
        for share in &shares {
            share.activity().change(|activity| activity.queued += 1);
        }
        Queued(shares)
    }

    fn shares(&self) -> Vec<FairShare> {
        std::iter::once(self.first.clone()).chain(self.others().iter().cloned()).collect()
    }

    /// Records received bytes of the object.
    pub(super) fn received(&self, bytes: u64) {
        self.first.received(bytes);
        self.others().iter().for_each(|share| share.received(bytes));
    }

    /// Records that the object is complete.
    pub(super) fn progressed(&self) {
        self.first.progressed();
        self.others().iter().for_each(FairShare::progressed);
    }

    /// The client that reads the object next; `None` when no share has one left.
    pub(super) fn reader(&self) -> Option<Arc<dyn ObjectSource>> {
        let first = self.first.readers().first().cloned();
        first.or_else(|| self.others().iter().find_map(|share| share.readers().first().cloned()))
    }

    /// Drops this client if another one remains.
    pub(super) fn switch_reader(&self, refused: &dyn ObjectSource) -> bool {
        let others = self.others();
        let shares = || std::iter::once(&self.first).chain(others.iter());
        let another =
            shares().any(|share| share.readers().iter().any(|reader| !reader.is(refused)));
        if another {
            shares().for_each(|share| share.readers().retain(|reader| !reader.is(refused)));
        }
        another
    }

    fn others(&self) -> MutexGuard<'_, Vec<FairShare>> {
        lock(&self.others)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_model_csi_fake_source::FakeSource;

    #[test]
    fn an_object_that_a_pod_waits_for_is_downloaded_for_that_model() {
        let (prefetch, pods) = (FairShare::background(), FairShare::background());
        let interest = Interest::of(prefetch.clone());
        interest.join(&pods);
        interest.clone().join(&pods);
        let account = || interest.account(&LimiterTurns::default()).0;
        assert!(account().is(&prefetch));
        pods.make_urgent();
        assert!(account().is(&pods));
        prefetch.make_urgent();
        assert!(account().is(&prefetch), "the one that began it, among equals");
        assert_eq!(interest.others.lock().unwrap().len(), 1, "each model once");
    }

    #[test]
    fn an_object_is_read_as_a_client_that_was_not_refused() {
        let client = || Arc::new(FakeSource::new(&[])) as Arc<dyn ObjectSource>;
        let (a, b, c) = (client(), client(), client());
        let (first, second) = (FairShare::urgent(), FairShare::urgent());
        let interest = Interest::of(first.clone());
        assert!(interest.reader().is_none());
        interest.join(&second);
        second.add_reader(&b);
        assert!(interest.reader().unwrap().is(&*b));
        first.add_reader(&a);
        first.add_reader(&a.clone());
        assert!(interest.reader().unwrap().is(&*a));
        assert!(interest.switch_reader(&*a) && interest.reader().unwrap().is(&*b));
        assert!(
            !interest.switch_reader(&*b) && interest.reader().unwrap().is(&*b),
            "no other is left"
        );
        second.add_reader(&c);
        assert!(interest.switch_reader(&*b) && interest.reader().unwrap().is(&*c));
    }

    #[test]
    fn an_object_that_several_tenants_wait_for_is_accounted_to_the_one_with_the_least() {
        let (first, second) = (FairShare::urgent(), FairShare::urgent());
        let [a, b] = ["a", "b"].map(Tenant::of_namespace);
        first.add_tenant(&a);
        let interest = Interest::of(first.clone());
        let mut standings = LimiterTurns::default();
        assert_eq!(interest.account(&standings).1, a);
        standings.begin(&first, &a);
        interest.join(&second);
        second.add_tenant(&b);
        assert_eq!(interest.account(&standings).1, b);
        standings.begin(&second, &b);
        standings.begin(&second, &b);
        assert_eq!(interest.account(&standings).1, a);
        assert_eq!(FairShare::urgent().tenant(|_| 0), Tenant::Driver);
    }

    #[tokio::test(start_paused = true)]
    async fn a_model_stalls_while_the_network_delivers_next_to_nothing_and_not_by_local_work() {
        let share = FairShare::urgent();
        let second = Duration::from_secs(1);
        for _ in 0..10 {
            share.received(1);
            tokio::time::advance(second).await;
        }
        assert_eq!(share.stalled_for(), 10 * second, "ten bytes are no progress");
        let (work, other) = (share.own_work(), share.own_work());
        tokio::time::advance(60 * second).await;
        assert_eq!(share.stalled_for(), 10 * second);
        drop(other);
        tokio::time::advance(60 * second).await;
        drop(work);
        assert_eq!(share.stalled_for(), 10 * second);
        tokio::time::advance(second).await;
        share.received(PROGRESS);
        assert_eq!(share.stalled_for(), Duration::ZERO);
        let work = share.own_work();
        tokio::time::advance(second).await;
        share.progressed();
        tokio::time::advance(second).await;
        drop(work);
        assert_eq!(share.stalled_for(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_behind_others_is_no_stall_and_waiting_behind_its_own_requests_is() {
        let share = FairShare::urgent();
        let interest = Interest::of(share.clone());
        let second = Duration::from_secs(1);
        let queued = [interest.queued(), interest.queued()];
        tokio::time::advance(60 * second).await;
        assert_eq!(share.stalled_for(), Duration::ZERO);
        share.admitted();
        tokio::time::advance(5 * second).await;
        assert_eq!(share.stalled_for(), 5 * second);
        share.left();
        tokio::time::advance(60 * second).await;
        drop(queued);
        assert_eq!(share.stalled_for(), 5 * second);
    }

    #[tokio::test]
    async fn a_caller_that_waits_for_urgency_learns_of_it_before_and_after() {
        let share = FairShare::background();
        let waiting = tokio::spawn({
            let share = share.clone();
            async move { share.until_urgent().await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished() && !share.is_urgent());
        share.make_urgent();
        waiting.await.unwrap();
        share.until_urgent().await;
        FairShare::urgent().until_urgent().await;
    }
}
