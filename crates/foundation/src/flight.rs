//! Single flight: work that callers share and that outlives them.
//!
//! A flight is a spawned task that owns its entry in the registry; callers hold
//! only a [`Waiter`], to wait and to read the progress. A caller that leaves
//! (kubelet cancels every call after two minutes) does not stop the work, and the
//! next caller does not start it twice. A flight ends when its work is done, at
//! shutdown, or when no caller has asked for it during `grace`, if there is one.
//!
//! The registry's lock decides all races: waiters are created, and abandoned
//! flights removed, under it. It is never held across an await.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::error::{Error, ErrorKind, Result};
use crate::sync::lock;

/// How long a failure is remembered: long enough that a hundred pods do not each
/// repeat it, short enough not to delay a retry.
const MEMO: Duration = Duration::from_millis(1500);

/// The running flights of one kind.
pub struct Flights<K, P, T> {
    shared: Arc<FlightTable<K, P, T>>,
    /// How long a flight continues without a waiter; `None` for as long as its work takes.
    grace: Option<Duration>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

struct FlightTable<K, P, T> {
    entries: Mutex<HashMap<K, FlightState<P, T>>>,
}

struct FlightState<P, T> {
    id: u64,
    progress: Arc<P>,
    outcome: watch::Receiver<Option<Result<T>>>,
    interest: Arc<CallerCount>,
}

/// Counts the waiters of a flight.
struct CallerCount {
    state: Mutex<CallerState>,
    changed: Notify,
}

struct CallerState {
    waiters: usize,
    /// When the last one left.
    idle_since: Instant,
}

/// What [`Flights::join_unless`] has for a caller.
pub enum Joined<P, T> {
    /// The result, which was known.
    Known(T),
    /// A caller's part of the flight.
    Flight(Waiter<P, T>),
}

/// One caller of a flight. Dropping it does not cancel the flight.
pub struct Waiter<P, T> {
    progress: Arc<P>,
    outcome: watch::Receiver<Option<Result<T>>>,
    interest: Arc<CallerCount>,
    joined: bool,
}

impl<K, P, T> Flights<K, P, T>
where
    K: Clone + Eq + Hash + Send + 'static,
    P: Send + Sync + 'static,
    T: Clone + Send + Sync + 'static,
{
    /// Creates a registry whose flights are tracked by `tasks` and end at `shutdown`.
    pub fn new(grace: Duration, tasks: TaskTracker, shutdown: CancellationToken) -> Self {
        let shared = Arc::new(FlightTable { entries: Mutex::new(HashMap::new()) });
        Self { shared, grace: Some(grace), tasks, shutdown }
    }

    /// Creates a registry whose flights end with their work or with the runtime only.
    pub fn detached() -> Self {
        let shared = Arc::new(FlightTable { entries: Mutex::new(HashMap::new()) });
        let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
        Self { shared, grace: None, tasks, shutdown }
    }

    /// Joins the running flight of this key, or starts it.
    ///
    /// A failure within `MEMO` is returned at once, except one about permission:
    /// those are never shared.
    pub fn join<F>(&self, key: K, progress: P, work: impl FnOnce(Arc<P>) -> F) -> Waiter<P, T>
    where
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let entries = self.shared.lock();
        self.join_locked(entries, key, progress, work)
    }

    /// As [`join`](Self::join), unless `known` has the result.
    ///
    /// `known` is called under the registry's lock. A flight that stores its result
    /// before it ends is therefore never repeated by a caller that came too late to join it.
    pub fn join_unless<F>(
        &self,
        key: K,
        progress: P,
        known: impl FnOnce() -> Option<T>,
        work: impl FnOnce(Arc<P>) -> F,
    ) -> Joined<P, T>
    where
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let entries = self.shared.lock();
        match known() {
            Some(result) => Joined::Known(result),
            None => Joined::Flight(self.join_locked(entries, key, progress, work)),
        }
    }

    fn join_locked<F>(
        &self,
        mut entries: MutexGuard<'_, HashMap<K, FlightState<P, T>>>,
        key: K,
        progress: P,
        work: impl FnOnce(Arc<P>) -> F,
    ) -> Waiter<P, T>
    where
        F: Future<Output = Result<T>> + Send + 'static,
    {
        if let Some(entry) = entries.get(&key) {
            return entry.waiter(true);
        }
        let (sender, outcome) = watch::channel(None);
        let progress = Arc::new(progress);
        let waiting = CallerState { waiters: 0, idle_since: Instant::now() };
        let interest = Arc::new(CallerCount { state: Mutex::new(waiting), changed: Notify::new() });
        let id = next_id();
        let entry = FlightState { id, progress: Arc::clone(&progress), outcome, interest };
        let waiter = entry.waiter(false);
        let task = FlightTask {
            shared: Arc::clone(&self.shared),
            key: key.clone(),
            id,
            sender,
            interest: Arc::clone(&entry.interest),
        };
        let work = work(progress);
        let (grace, shutdown) = (self.grace, self.shutdown.clone());
        entries.insert(key, entry);
        drop(entries);
        self.tasks.spawn(async move { task.run(work, grace, shutdown).await });
        waiter
    }

    /// Waits until no flight of this key runs. This is not a caller of the flight, so an
    /// abandoned one ends nevertheless. Cancellation safe.
    pub async fn ended(&self, key: &K) {
        let running = self.shared.lock().get(key).map(|entry| entry.outcome.clone());
        if let Some(mut outcome) = running {
            // An error means that the flight was lost, which ends it too.
            let _ = outcome.wait_for(Option::is_some).await;
        }
    }

    /// Returns the keys and progress of the running flights.
    pub fn running(&self) -> Vec<(K, Arc<P>)> {
        let entries = self.shared.lock();
        let running = entries.iter().filter(|(_, e)| e.outcome.borrow().is_none());
        running.map(|(key, entry)| (key.clone(), Arc::clone(&entry.progress))).collect()
    }
}

impl<K, P, T> FlightTable<K, P, T> {
    fn lock(&self) -> MutexGuard<'_, HashMap<K, FlightState<P, T>>> {
        lock(&self.entries)
    }
}

impl<P, T: Clone> FlightState<P, T> {
    fn waiter(&self, joined: bool) -> Waiter<P, T> {
        self.interest.lock().waiters += 1;
        Waiter {
            progress: Arc::clone(&self.progress),
            outcome: self.outcome.clone(),
            interest: Arc::clone(&self.interest),
            joined,
        }
    }
}

impl CallerCount {
    fn lock(&self) -> MutexGuard<'_, CallerState> {
        lock(&self.state)
    }

    /// Waits until there was no waiter for `grace`; without one, never returns. Cancellation safe.
    async fn abandoned(&self, grace: Option<Duration>) {
        let Some(grace) = grace else { return std::future::pending().await };
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let idle_until = {
                let waiting = self.lock();
                (waiting.waiters == 0).then_some(waiting.idle_since + grace)
            };
            match idle_until {
                Some(until) => tokio::select! {
                    () = tokio::time::sleep_until(until) => return,
                    () = changed => {}
                },
                None => changed.await,
            }
        }
    }
}

impl<P, T: Clone> Waiter<P, T> {
    /// Waits for the end of the flight. Cancellation safe: the flight continues.
    pub async fn completed(&mut self) -> Result<T> {
        match self.outcome.wait_for(Option::is_some).await {
            Ok(outcome) => match outcome.as_ref() {
                Some(result) => result.clone(),
                None => Err(Error::internal("a flight ended without an outcome")),
            },
            Err(_) => Err(Error::internal("a flight was lost")),
        }
    }

    /// The progress of the flight.
    pub fn progress(&self) -> &P {
        &self.progress
    }

    /// The progress, to be kept beyond this waiter.
    pub fn shared_progress(&self) -> Arc<P> {
        Arc::clone(&self.progress)
    }

    /// Whether the flight is over, and only its failure is still remembered.
    pub fn is_over(&self) -> bool {
        self.outcome.borrow().is_some()
    }

    /// Waits until the registry has forgotten the flight: it is over, and if it failed, the
    /// time for which that is remembered has passed. Cancellation safe.
    pub async fn forgotten(&mut self) {
        // The task drops its sender after it has removed its entry.
        while self.outcome.changed().await.is_ok() {}
    }

    /// Whether another caller had started the flight.
    pub fn joined(&self) -> bool {
        self.joined
    }
}

impl<P, T> Drop for Waiter<P, T> {
    fn drop(&mut self) {
        let mut waiting = self.interest.lock();
        waiting.waiters -= 1;
        waiting.idle_since = Instant::now();
        drop(waiting);
        self.interest.changed.notify_waiters();
    }
}

/// The task's side of its entry: even if the task panics, waiters get an outcome
/// and the key becomes free.
struct FlightTask<K: Eq + Hash, P, T> {
    shared: Arc<FlightTable<K, P, T>>,
    key: K,
    id: u64,
    sender: watch::Sender<Option<Result<T>>>,
    interest: Arc<CallerCount>,
}

impl<K: Eq + Hash, P, T: Clone> FlightTask<K, P, T> {
    async fn run<F>(self, work: F, grace: Option<Duration>, shutdown: CancellationToken)
    where
        F: Future<Output = Result<T>>,
    {
        let outcome = {
            tokio::pin!(work);
            loop {
                tokio::select! {
                    outcome = &mut work => break outcome,
                    () = shutdown.cancelled() => break Err(Error::new(
                        ErrorKind::InProgress,
                        "the driver is shutting down; what was downloaded is kept, and the next \
                         call resumes it",
                    )),
                    () = self.interest.abandoned(grace) => {
                        if self.remove_abandoned() {
                            // The future is dropped here; downloads keep their journals.
                            return;
                        }
                    }
                }
            }
        };
        let remembered = outcome.as_ref().is_err_and(|e| is_shared(e.kind()));
        if !remembered {
            self.remove();
        }
        self.sender.send_replace(Some(outcome));
        if remembered {
            tokio::select! {
                () = tokio::time::sleep(MEMO) => {}
                () = shutdown.cancelled() => {}
            }
        }
        // Dropping self removes the entry if it still exists.
    }

    fn remove(&self) {
        let mut entries = self.shared.lock();
        if entries.get(&self.key).is_some_and(|entry| entry.id == self.id) {
            entries.remove(&self.key);
        }
    }

    /// Removes the entry if there is still no waiter, under the same lock that
    /// guards new waiters.
    fn remove_abandoned(&self) -> bool {
        let mut entries = self.shared.lock();
        let abandoned = self.interest.lock().waiters == 0;
        if abandoned {
            entries.remove(&self.key);
        }
        abandoned
    }
}

impl<K: Eq + Hash, P, T> Drop for FlightTask<K, P, T> {
    fn drop(&mut self) {
        let mut entries = self.shared.lock();
        if entries.get(&self.key).is_some_and(|entry| entry.id == self.id) {
            entries.remove(&self.key);
        }
        drop(entries);
        self.sender.send_if_modified(|outcome| {
            let missing = outcome.is_none();
            if missing {
                *outcome = Some(Err(Error::internal("a background task ended early")));
            }
            missing
        });
    }
}

/// Whether a failure is the same for all callers.
fn is_shared(kind: ErrorKind) -> bool {
    match kind {
        ErrorKind::Unauthenticated
        | ErrorKind::Denied
        | ErrorKind::NotFound
        | ErrorKind::InProgress
        | ErrorKind::Changed => false,
        ErrorKind::Unavailable
        | ErrorKind::NoSpace
        | ErrorKind::Invalid
        | ErrorKind::Precondition
        | ErrorKind::Conflict
        | ErrorKind::OutOfRange
        | ErrorKind::Corrupt
        | ErrorKind::Disk
        | ErrorKind::Internal => true,
    }
}

fn next_id() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

#[cfg(test)]
mod interleavings;
#[cfg(test)]
mod tests;
