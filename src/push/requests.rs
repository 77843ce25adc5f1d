//! How many requests with bytes run at once: a fixed number, or under `auto` as many as give the
//! most, judged as for downloads.

use std::convert::Infallible;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

use super::progress::PushProgress;
use crate::download::{Concurrency, ConcurrencyGrowth, TransferTotals};
use crate::source::{StorageError, StorageErrorKind};
use crate::sync::lock;

/// Where `auto` begins, fewer than for downloads: what an interrupted push has sent of its running
/// parts is lost, and on a slow line parts that share it are all far from their end.
const LEAST: usize = 4;

/// The interval in which the throughput is looked at.
const LOOK: Duration = Duration::from_millis(250);

/// Admits requests, in the order in which they ask.
#[derive(Debug)]
pub(super) struct RequestLimit {
    permits: Semaphore,
    waiting: AtomicUsize,
    /// Requests that failed and are sent again.
    failures: AtomicU64,
    /// `None` for a fixed number.
    adapting: Option<Mutex<AdaptingLimit>>,
}

#[derive(Debug)]
struct AdaptingLimit {
    growth: ConcurrencyGrowth,
    /// Running requests above the number, which shrank meanwhile: their permits are not used again.
    surplus: usize,
}

/// One running request.
pub(super) struct RequestTurn<'a> {
    limit: &'a RequestLimit,
    permit: Option<SemaphorePermit<'a>>,
}

impl RequestLimit {
    pub(super) fn new(concurrency: Concurrency) -> Self {
        let (number, adapting) = match concurrency {
            Concurrency::Auto => {
                let growth = ConcurrencyGrowth::beginning_with(LEAST);
                (growth.most(), Some(Mutex::new(AdaptingLimit { growth, surplus: 0 })))
            }
            Concurrency::Fixed(number) => (number, None),
        };
        let permits = Semaphore::new(number);
        Self { permits, waiting: AtomicUsize::new(0), failures: AtomicU64::new(0), adapting }
    }

    /// Waits for the turn of a request. Cancellation safe: a caller that leaves loses its turn.
    pub(super) async fn acquire(&self) -> RequestTurn<'_> {
        let waiting = Waiting::of(&self.waiting);
        // It is never closed.
        let permit = self.permits.acquire().await.ok();
        drop(waiting);
        RequestTurn { limit: self, permit }
    }

    /// Records a request that will be sent again. Throttling ends an attempt with more requests.
    pub(super) fn failed(&self, error: &StorageError) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        let is_throttled =
            error.kind() == StorageErrorKind::Throttled || error.status() == Some(503);
        if let Some(adapting) = self.adapting.as_ref().filter(|_| is_throttled) {
            self.change(&mut lock(adapting), |growth| growth.throttled(Instant::now()));
        }
    }

    /// Lets the number follow what is sent, until the future is dropped.
    pub(super) async fn follow(&self, progress: &PushProgress) -> Infallible {
        loop {
            tokio::time::sleep(LOOK).await;
            self.look(progress.sent());
        }
    }

    fn look(&self, bytes: u64) {
        let Some(adapting) = &self.adapting else { return };
        let limited =
            self.permits.available_permits() == 0 && self.waiting.load(Ordering::Relaxed) > 0;
        let failures = self.failures.load(Ordering::Relaxed);
        let totals = TransferTotals { bytes, failures, ..TransferTotals::default() };
        self.change(&mut lock(adapting), |growth| growth.sample(Instant::now(), totals, limited));
    }

    fn change(&self, adapting: &mut AdaptingLimit, change: impl FnOnce(&mut ConcurrencyGrowth)) {
        let before = adapting.growth.most();
        change(&mut adapting.growth);
        let now = adapting.growth.most();
        let more = now.saturating_sub(before);
        let kept = more.min(adapting.surplus);
        adapting.surplus -= kept;
        self.permits.add_permits(more - kept);
        let fewer = before.saturating_sub(now);
        adapting.surplus += fewer - self.permits.forget_permits(fewer);
    }
}

impl Drop for RequestTurn<'_> {
    fn drop(&mut self) {
        let Some(adapting) = &self.limit.adapting else { return };
        let mut adapting = lock(adapting);
        if adapting.surplus > 0
            && let Some(permit) = self.permit.take()
        {
            adapting.surplus -= 1;
            permit.forget();
        }
    }
}

/// Counts a caller that waits.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn of(waiting: &'a AtomicUsize) -> Self {
        waiting.fetch_add(1, Ordering::Relaxed);
        Self(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends through the limit in virtual time, with as many callers as want to. Each request
    /// takes a second; the service takes `rate` bytes a second for each of so many requests.
    async fn running_after(
        limit: &RequestLimit,
        seconds: u32,
        sent: &mut u64,
        rate: impl Fn(usize) -> u64,
    ) -> usize {
        let mut turns = Vec::new();
        for _ in 0..seconds * 4 {
            while limit.permits.available_permits() > 0 {
                turns.push(limit.acquire().await);
            }
            let queued = Waiting::of(&limit.waiting);
            tokio::time::advance(LOOK).await;
            *sent += rate(turns.len()) / 4;
            limit.look(*sent);
            drop(queued);
            // A part of the requests end.
            turns.drain(..turns.len() / 4);
        }
        while limit.permits.available_permits() > 0 {
            turns.push(limit.acquire().await);
        }
        turns.len()
    }

    #[tokio::test(start_paused = true)]
    async fn connections_that_each_give_little_are_added_and_those_that_give_nothing_are_not() {
        let limit = RequestLimit::new(Concurrency::Auto);
        let mut sent = 0;
        let per_connection = |requests: usize| 2_000_000 * requests as u64;
        assert_eq!(running_after(&limit, 8, &mut sent, per_connection).await, Concurrency::MOST);
        let limit = RequestLimit::new(Concurrency::Auto);
        let together = |_| 50_000_000;
        assert_eq!(running_after(&limit, 10, &mut sent, together).await, LEAST);
    }

    #[tokio::test(start_paused = true)]
    async fn a_number_that_shrinks_lets_running_requests_end() {
        let limit = RequestLimit::new(Concurrency::Auto);
        let mut sent = 0;
        let running = running_after(&limit, 1, &mut sent, |requests| 1_000_000 * requests as u64);
        assert!(running.await > LEAST);
        let mut turns = Vec::new();
        while limit.permits.available_permits() > 0 {
            turns.push(limit.acquire().await);
        }
        let error = StorageError::new(StorageErrorKind::Throttled, "UploadPart", "429");
        limit.failed(&error);
        assert_eq!(limit.permits.available_permits(), 0);
        drop(turns);
        assert_eq!(limit.permits.available_permits(), LEAST);
    }

    #[tokio::test(start_paused = true)]
    async fn a_fixed_number_stays_whatever_is_sent() {
        let limit = RequestLimit::new(Concurrency::Fixed(3));
        let mut sent = 0;
        let rate = |requests: usize| 2_000_000 * requests as u64;
        assert_eq!(running_after(&limit, 10, &mut sent, rate).await, 3);
    }
}
