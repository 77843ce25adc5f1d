//! The bandwidth limit of all downloads together.
//!
//! Bytes that arrived are charged to one account, which is paid off at the
//! limit's rate; a reader continues once its bytes are paid. So the account
//! is a queue: requests that run at the same time get a chunk each in turn, and
//! since the limiter gives shares equally many requests, it gives them the same
//! bandwidth. No byte is charged ahead, so a cancelled download leaves no
//! hole in the rate.
//!
//! In any time, what arrives is at most the rate times that time, [`CREDIT`] of
//! the rate, and a chunk (512 KiB at most) of each request under way.

use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

use crate::sync::lock;

/// What may be caught up after a pause; timers that fire late cost no bandwidth.
const CREDIT: Duration = Duration::from_millis(250);

/// Limits the rate.
#[derive(Debug)]
pub(crate) struct RateLimiter {
    bytes_per_second: u64,
    /// When all that was charged is paid.
    paid_at: Mutex<Instant>,
}

impl RateLimiter {
    pub(crate) fn new(bytes_per_second: u64) -> Self {
        let paid_at = Mutex::new(Instant::now());
        Self { bytes_per_second: bytes_per_second.max(1), paid_at }
    }

    /// Charges bytes that arrived and waits until they are paid. Cancellation
    /// safe: they stay charged.
    pub(crate) async fn spend(&self, bytes: u64) {
        let paid_at = self.charge(bytes);
        if paid_at > Instant::now() {
            tokio::time::sleep_until(paid_at).await;
        }
    }

    fn charge(&self, bytes: u64) -> Instant {
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_second);
        let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let now = Instant::now();
        let mut paid_at = lock(&self.paid_at);
        *paid_at = (*paid_at).max(now.checked_sub(CREDIT).unwrap_or(now)) + cost;
        *paid_at
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use tokio::task::JoinSet;

    use super::*;

    const MIB: u64 = 1 << 20;

    /// Spends chunk after chunk until it is dropped, and counts the bytes.
    fn reader(running: &mut JoinSet<()>, pace: &Arc<RateLimiter>, chunk: u64) -> Arc<AtomicU64> {
        let (pace, spent) = (Arc::clone(pace), Arc::new(AtomicU64::new(0)));
        let counted = Arc::clone(&spent);
        running.spawn(async move {
            loop {
                spent.fetch_add(chunk, Ordering::Relaxed);
                pace.spend(chunk).await;
            }
        });
        counted
    }

    #[tokio::test(start_paused = true)]
    async fn the_rate_holds_over_every_second_and_all_of_it_is_used() {
        let pace = Arc::new(RateLimiter::new(10 * MIB));
        let mut running = JoinSet::new();
        let readers: Vec<_> = (0..8).map(|_| reader(&mut running, &pace, MIB / 4)).collect();
        let spent = || readers.iter().map(|r| r.load(Ordering::Relaxed)).sum::<u64>();
        let mut before = 0;
        for second in 0..20 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let now = spent();
            // A quarter of a second of credit, and a chunk of each reader.
            let most = 10 * MIB + if second == 0 { 10 * MIB / 4 + 2 * MIB } else { MIB / 2 };
            assert!(now - before <= most, "{} in second {second}", now - before);
            before = now;
        }
        assert!(before >= 198 * MIB, "{before} in 20 s");
    }

    #[tokio::test(start_paused = true)]
    async fn requests_that_run_at_once_get_the_same() {
        let pace = Arc::new(RateLimiter::new(8 * MIB));
        let mut running = JoinSet::new();
        let readers: Vec<_> = (0..5).map(|_| reader(&mut running, &pace, MIB / 4)).collect();
        tokio::time::sleep(Duration::from_secs(30)).await;
        let spent: Vec<u64> = readers.iter().map(|r| r.load(Ordering::Relaxed)).collect();
        let (least, most) = (*spent.iter().min().unwrap(), *spent.iter().max().unwrap());
        assert!(most - least <= MIB / 2, "{spent:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_is_caught_up_by_a_quarter_of_a_second_and_not_more() {
        let pace = RateLimiter::new(MIB);
        tokio::time::sleep(Duration::from_secs(3600)).await;
        let started = Instant::now();
        pace.spend(MIB / 4).await;
        assert_eq!(started.elapsed(), Duration::ZERO);
        pace.spend(MIB).await;
        assert_eq!(started.elapsed(), Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_cancelled_download_received_stays_charged() {
        let pace = RateLimiter::new(MIB);
        let spending = tokio::time::timeout(Duration::from_millis(1), pace.spend(2 * MIB));
        assert!(spending.await.is_err());
        let started = Instant::now();
        pace.spend(0).await;
        let waited = started.elapsed().as_millis();
        assert!((1_740..=2_010).contains(&waited), "{waited} ms for what the other one received");
    }

    #[tokio::test(start_paused = true)]
    async fn a_chunk_larger_than_a_second_of_the_rate_passes_in_its_time() {
        let pace = RateLimiter::new(1000);
        let started = Instant::now();
        pace.spend(512 * 1024).await;
        let seconds = started.elapsed().as_secs();
        assert!((523..=525).contains(&seconds), "{seconds} s");
    }
}
