//! For whom bytes are downloaded: what the gate is fair between.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::limiter::LimiterTurns;
use crate::model::Tenant;
use crate::oci::ObjectStorage;

/// Bytes that count as progress of a model.
const PROGRESS: u64 = 64 << 10;

/// Tenants that one model is accounted to; pods of more wait with these.
const TENANTS: usize = 64;

/// One model's part of what the node downloads; clones are the same share.
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
    /// Whose pods asked for it; nobody's is the driver's.
    tenants: Mutex<Vec<Tenant>>,
    activity: Mutex<Activity>,
    /// Who may read its objects, as far as nobody was refused.
    readers: Mutex<Vec<ObjectStorage>>,
}

/// Whether the network brings a model what it asks for.
#[derive(Debug)]
struct Activity {
    /// The last progress, put off by the time since that is not counted.
    since: Instant,
    /// Bytes since then.
    bytes: u64,
    /// Work of our own under way.
    own: usize,
    /// Requests that wait at the gate because others have its places.
    queued: usize,
    /// Requests that the gate admitted.
    running: usize,
    /// Since when time is not counted.
    held_since: Option<Instant>,
}

impl Activity {
    fn new() -> Self {
        let (own, queued, running) = (0, 0, 0);
        Self { since: Instant::now(), bytes: 0, own, queued, running, held_since: None }
    }

    /// Notes what goes on, and with it whether time is counted.
    fn change(&mut self, change: impl FnOnce(&mut Self)) {
        change(self);
        let held = self.own > 0 || (self.queued > 0 && self.running == 0);
        match self.held_since {
            None if held => self.held_since = Some(Instant::now()),
            Some(from) if !held => {
                // Progress meanwhile came after that.
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

/// Work of our own on a model, which is no waiting for the network: pacing, the
/// disk, checksums. Ends when dropped.
#[derive(Debug)]
pub struct OwnWork(Vec<FairShare>);

/// A request that waits at the gate because others have its places; until dropped.
#[derive(Debug)]
pub(super) struct Queued(Vec<FairShare>);

impl FairShare {
    /// Of a model that somebody waits for.
    pub fn urgent() -> Self {
        Self::new(true)
    }

    /// Of a model that is downloaded ahead: it takes what the urgent ones leave.
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

    /// It is accounted to this tenant too.
    pub fn wanted_by(&self, tenant: &Tenant) {
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
        self.0.tenants.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long the network has brought it next to nothing. The time of our own
    /// work is left out, and that in which others have all connections.
    pub fn stalled_for(&self) -> Duration {
        self.activity().stalled_for()
    }

    /// Something of it is there: an object, or its turn to download.
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

    /// Begins work of our own on it.
    pub fn own_work(&self) -> OwnWork {
        OwnWork::begin(vec![self.clone()])
    }

    /// The gate admitted one of its requests.
    pub(super) fn admitted(&self) {
        self.activity().change(|activity| activity.running += 1);
    }

    /// A request that the gate admitted has ended.
    pub(super) fn left(&self) {
        self.activity().change(|activity| activity.running -= 1);
    }

    fn activity(&self) -> MutexGuard<'_, Activity> {
        self.0.activity.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its objects may be read as this client from now on too.
    pub fn read_as(&self, client: &ObjectStorage) {
        let mut readers = self.readers();
        if !readers.iter().any(|reader| reader.is(client)) {
            readers.push(client.clone());
        }
    }

    fn readers(&self) -> MutexGuard<'_, Vec<ObjectStorage>> {
        self.0.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether somebody waits for it.
    pub fn is_urgent(&self) -> bool {
        *self.0.urgent.borrow()
    }

    /// Somebody waits for it from now on.
    pub fn raise(&self) {
        self.0.urgent.send_replace(true);
    }

    /// Returns when somebody waits for it. Cancellation safe.
    pub async fn raised(&self) {
        // The sender is this share's own, so the channel is open.
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

/// All shares that one object is downloaded for: models have objects in common.
/// Clones are the same list.
#[derive(Debug, Clone)]
pub struct Interest {
    first: FairShare,
    others: Arc<Mutex<Vec<FairShare>>>,
}

impl Interest {
    /// The demand of one model.
    pub fn of(share: FairShare) -> Self {
        Self { first: share, others: Arc::default() }
    }

    /// The object is wanted for this model too.
    pub fn join(&self, share: &FairShare) {
        let mut others = self.others();
        if !self.first.is(share) && !others.iter().any(|other| other.is(share)) {
            others.push(share.clone());
        }
    }

    /// Whose request the next one is: an urgent share's, if there is one, and of
    /// several the one whose turn comes first.
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

    /// Begins work of our own on the object.
    pub(super) fn own_work(&self) -> OwnWork {
        OwnWork::begin(self.shares())
    }

    /// A request for the object waits because others have the gate's places.
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

    /// Bytes of the object arrived.
    pub(super) fn received(&self, bytes: u64) {
        self.first.received(bytes);
        self.others().iter().for_each(|share| share.received(bytes));
    }

    /// The object is there.
    pub(super) fn progressed(&self) {
        self.first.progressed();
        self.others().iter().for_each(FairShare::progressed);
    }

    /// As whom the object is read next; `None` when nobody asks for it who may.
    pub(super) fn reader(&self) -> Option<ObjectStorage> {
        let first = self.first.readers().first().cloned();
        first.or_else(|| self.others().iter().find_map(|share| share.readers().first().cloned()))
    }

    /// Reads no more as this client if there is another to read as.
    pub(super) fn change_over(&self, refused: &ObjectStorage) -> bool {
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
        self.others.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{AuthMethod, Environment, Settings};

    #[test]
    fn an_object_that_somebody_waits_for_is_downloaded_for_that_model() {
        let (prefetch, pods) = (FairShare::background(), FairShare::background());
        let demand = Interest::of(prefetch.clone());
        demand.join(&pods);
        demand.clone().join(&pods);
        let account = || demand.account(&LimiterTurns::default()).0;
        assert!(account().is(&prefetch));
        pods.raise();
        assert!(account().is(&pods));
        prefetch.raise();
        assert!(account().is(&prefetch), "who began it, among equals");
        assert_eq!(demand.others.lock().unwrap().len(), 1, "each model once");
    }

    #[tokio::test]
    async fn an_object_is_read_as_one_of_those_who_ask_and_nobody_refused() {
        let client = async || {
            let endpoint = Some("http://127.0.0.1:1".to_owned());
            let environment = Environment::empty();
            let settings = Settings { endpoint, environment, ..Settings::new(AuthMethod::None) };
            ObjectStorage::connect(settings).await.unwrap()
        };
        let (a, b, c) = (client().await, client().await, client().await);
        let (first, second) = (FairShare::urgent(), FairShare::urgent());
        let demand = Interest::of(first.clone());
        assert!(demand.reader().is_none());
        demand.join(&second);
        second.read_as(&b);
        assert!(demand.reader().unwrap().is(&b));
        first.read_as(&a);
        first.read_as(&a.clone());
        assert!(demand.reader().unwrap().is(&a));
        assert!(demand.change_over(&a) && demand.reader().unwrap().is(&b));
        assert!(!demand.change_over(&b) && demand.reader().unwrap().is(&b), "nobody else is there");
        second.read_as(&c);
        assert!(demand.change_over(&b) && demand.reader().unwrap().is(&c));
    }

    #[test]
    fn an_object_that_several_tenants_wait_for_is_accounted_to_the_one_with_the_least() {
        let (first, second) = (FairShare::urgent(), FairShare::urgent());
        let [a, b] = ["a", "b"].map(Tenant::of_namespace);
        first.wanted_by(&a);
        let demand = Interest::of(first.clone());
        let mut standings = LimiterTurns::default();
        assert_eq!(demand.account(&standings).1, a);
        standings.begin(&first, &a);
        demand.join(&second);
        second.wanted_by(&b);
        assert_eq!(demand.account(&standings).1, b);
        standings.begin(&second, &b);
        standings.begin(&second, &b);
        assert_eq!(demand.account(&standings).1, a);
        assert_eq!(FairShare::urgent().tenant(|_| 0), Tenant::Driver);
    }

    #[tokio::test(start_paused = true)]
    async fn a_model_stalls_while_the_network_brings_next_to_nothing_and_not_by_our_own_work() {
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
        let demand = Interest::of(share.clone());
        let second = Duration::from_secs(1);
        let queued = [demand.queued(), demand.queued()];
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
    async fn who_waits_for_urgency_hears_of_it_before_and_after() {
        let share = FairShare::background();
        let waiting = tokio::spawn({
            let share = share.clone();
            async move { share.raised().await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished() && !share.is_urgent());
        share.raise();
        waiting.await.unwrap();
        share.raised().await;
        FairShare::urgent().raised().await;
    }
}
