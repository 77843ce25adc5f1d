//! For whom bytes are downloaded: what the gate is fair between.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::oci::ObjectStorage;

/// One model's part of what the node downloads; clones are the same share.
///
/// Requests of urgent shares are admitted before all others, and shares of the
/// same urgency get equally many requests at once.
#[derive(Debug, Clone)]
pub struct Share(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    urgent: watch::Sender<bool>,
    /// Written by the gate, under its lock.
    running: AtomicUsize,
    last_turn: AtomicU64,
    /// Who may read its objects, as far as nobody was refused.
    readers: Mutex<Vec<ObjectStorage>>,
}

impl Share {
    /// Of a model that somebody waits for.
    pub fn urgent() -> Self {
        Self::new(true)
    }

    /// Of a model that is downloaded ahead: it takes what the urgent ones leave.
    pub fn background() -> Self {
        Self::new(false)
    }

    fn new(urgent: bool) -> Self {
        Self(Arc::new(Inner {
            urgent: watch::Sender::new(urgent),
            running: AtomicUsize::new(0),
            last_turn: AtomicU64::new(0),
            readers: Mutex::default(),
        }))
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

    /// Its requests under way.
    pub(super) fn running(&self) -> usize {
        self.0.running.load(Ordering::Relaxed)
    }

    /// Which admission of the gate was its last one; 0 before the first.
    pub(super) fn last_turn(&self) -> u64 {
        self.0.last_turn.load(Ordering::Relaxed)
    }

    pub(super) fn admitted(&self, turn: u64) {
        self.0.running.fetch_add(1, Ordering::Relaxed);
        self.0.last_turn.store(turn, Ordering::Relaxed);
    }

    pub(super) fn left(&self) {
        self.0.running.fetch_sub(1, Ordering::Relaxed);
    }

    fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// All shares that one object is downloaded for: models have objects in common.
/// Clones are the same list.
#[derive(Debug, Clone)]
pub struct Demand {
    first: Share,
    others: Arc<Mutex<Vec<Share>>>,
}

impl Demand {
    /// The demand of one model.
    pub fn of(share: Share) -> Self {
        Self { first: share, others: Arc::default() }
    }

    /// The object is wanted for this model too.
    pub fn join(&self, share: &Share) {
        let mut others = self.others();
        if !self.first.is(share) && !others.iter().any(|other| other.is(share)) {
            others.push(share.clone());
        }
    }

    /// Whose request the next one is: an urgent share's, if there is one.
    pub(super) fn account(&self) -> Share {
        if self.first.is_urgent() {
            return self.first.clone();
        }
        self.others().iter().find(|other| other.is_urgent()).unwrap_or(&self.first).clone()
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

    fn others(&self) -> MutexGuard<'_, Vec<Share>> {
        self.others.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{AuthMethod, Environment, Settings};

    #[test]
    fn an_object_that_somebody_waits_for_is_downloaded_for_that_model() {
        let (prefetch, pods) = (Share::background(), Share::background());
        let demand = Demand::of(prefetch.clone());
        demand.join(&pods);
        demand.clone().join(&pods);
        assert!(demand.account().is(&prefetch));
        pods.raise();
        assert!(demand.account().is(&pods));
        prefetch.raise();
        assert!(demand.account().is(&prefetch), "who began it, among equals");
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
        let (first, second) = (Share::urgent(), Share::urgent());
        let demand = Demand::of(first.clone());
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

    #[tokio::test]
    async fn who_waits_for_urgency_hears_of_it_before_and_after() {
        let share = Share::background();
        let waiting = tokio::spawn({
            let share = share.clone();
            async move { share.raised().await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished() && !share.is_urgent());
        share.raise();
        waiting.await.unwrap();
        share.raised().await;
        Share::urgent().raised().await;
    }
}
