//! Limits how many requests run at once in each bucket: all that the limiter
//! allows, fewer after Object Storage throttled there or reset the connections of many
//! requests while it answered others, and more again while it does not. Throttling in
//! one bucket slows no other bucket.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::source::Bucket;

/// Requests that have to succeed before one more may run at once again.
pub(super) const SUCCESSES_PER_STEP: usize = 32;

/// Of a limit above this, such a part may run in addition, in place of one more.
const STEPS: usize = 16;

/// What a request that broke off unanswered counts, in requests that succeed meanwhile: one of
/// five is what a bad network may cost.
const BREAK_WEIGHT: usize = 4;

/// Four of them in a row are many.
const MANY_BREAKS: usize = 4 * BREAK_WEIGHT;

/// How long a bucket counts as slow after a request received next to nothing.
const SLOW_FOR: Duration = Duration::from_secs(30);

/// How long an idle bucket is remembered as throttled.
const REMEMBERED: Duration = Duration::from_secs(600);

/// The most idle buckets that are remembered.
const KEPT: usize = 256;

/// A bucket at its location: the unit that is throttled together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Origin {
    /// The region's name, or the endpoint's URL.
    pub(crate) location: String,
    /// The bucket there.
    pub(crate) bucket: Bucket,
}

#[derive(Debug)]
pub(super) struct Buckets {
    /// Requests at once, over all buckets.
    most: usize,
    entries: HashMap<Arc<Origin>, BucketEntry>,
}

#[derive(Debug)]
struct BucketEntry {
    running: usize,
    /// Requests that may run at once after it throttled, below `most`. `running` is above it
    /// until enough of them have ended.
    limit: Option<usize>,
    successes: usize,
    /// Requests that broke off unanswered, by their weight, less those that succeeded.
    broken: usize,
    /// The last request that began before the limit was lowered for that: what those before it
    /// met, the lower limit may have ended.
    lowered_after: u64,
    slow_until: Option<Instant>,
    used: Instant,
}

impl BucketEntry {
    fn new(now: Instant) -> Self {
        let (running, limit, successes, broken, lowered_after, slow_until) = Default::default();
        Self { running, limit, successes, broken, lowered_after, slow_until, used: now }
    }

    fn is_slow(&self, now: Instant) -> bool {
        self.slow_until.is_some_and(|until| now < until)
    }
}

impl Buckets {
    pub(super) fn new(most: usize) -> Self {
        Self { most, entries: HashMap::new() }
    }

    /// Changes how many requests may run at once, over all buckets.
    pub(super) fn set_most(&mut self, most: usize) {
        self.most = most;
    }

    /// What slow buckets may have running together: the others find permits.
    pub(super) fn slow_limit(&self) -> usize {
        (self.most / 2).max(1)
    }

    /// Whether one more request may run there, in addition to what runs and `more`.
    pub(super) fn admits(&self, origin: &Origin, more: usize, now: Instant) -> bool {
        let Some(entry) = self.entries.get(origin) else { return true };
        entry.running + more < entry.limit.unwrap_or(self.most)
            && (!entry.is_slow(now) || self.slow_running(now) + more < self.slow_limit())
    }

    /// Whether it has all the requests that it may have, while others may have more.
    pub(super) fn is_full(&self, origin: &Origin, now: Instant) -> bool {
        let Some(entry) = self.entries.get(origin) else { return false };
        entry.limit.is_some_and(|limit| entry.running >= limit)
            || (entry.is_slow(now) && self.slow_running(now) >= self.slow_limit())
    }

    /// Whether its requests received next to nothing lately.
    pub(super) fn is_slow(&self, origin: &Origin, now: Instant) -> bool {
        self.entries.get(origin).is_some_and(|entry| entry.is_slow(now))
    }

    fn slow_running(&self, now: Instant) -> usize {
        let slow = self.entries.values().filter(|entry| entry.is_slow(now));
        slow.map(|entry| entry.running).sum()
    }

    pub(super) fn begin(&mut self, origin: &Arc<Origin>, now: Instant) {
        self.entry(origin, now).running += 1;
    }

    pub(super) fn end(&mut self, origin: &Origin) {
        let now = Instant::now();
        let Some(entry) = self.entries.get_mut(origin) else { return };
        (entry.running, entry.used) = (entry.running.saturating_sub(1), now);
        if entry.running == 0 && entry.limit.is_none() && !entry.is_slow(now) {
            self.entries.remove(origin);
        }
    }

    /// Halves the limit: Object Storage answered 429 or 503.
    pub(super) fn throttled(&mut self, origin: &Arc<Origin>) {
        let most = self.most;
        let entry = self.entry(origin, Instant::now());
        let limit = entry.limit.unwrap_or(most).min(most);
        entry.limit = Some((limit / 2).max(1)).filter(|limit| *limit < most);
        entry.successes = 0;
    }

    /// Records that a request broke off before its answer, while so many others get their bytes.
    /// Requests are numbered in the order in which they begin; `newest` is the last one.
    ///
    /// Returns whether there may be fewer now: where many break off, the connections are more
    /// than the service, or what is in front of it, allows. If no other gets bytes, it is an outage.
    pub(super) fn broke(
        &mut self,
        origin: &Arc<Origin>,
        request: u64,
        newest: u64,
        served: usize,
    ) -> bool {
        let most = self.most;
        let entry = self.entry(origin, Instant::now());
        if served == 0 {
            entry.broken = 0;
        } else if request > entry.lowered_after {
            entry.broken += BREAK_WEIGHT;
        }
        if entry.broken < MANY_BREAKS {
            return false;
        }
        let limit = entry.limit.unwrap_or(most).min(most);
        // Some of those that will be served have no bytes yet, so it falls by a quarter at most.
        let limit = served.clamp((limit - limit.div_ceil(4)).max(1), limit);
        entry.limit = Some(limit).filter(|limit| *limit < most);
        (entry.broken, entry.successes, entry.lowered_after) = (0, 0, newest);
        true
    }

    /// Records that a request there received next to nothing while others waited.
    pub(super) fn slow(&mut self, origin: &Arc<Origin>, now: Instant) {
        self.throttled(origin);
        self.entry(origin, now).slow_until = Some(now + SLOW_FOR);
    }

    /// Records a request that succeeded; returns whether more may run now.
    pub(super) fn succeeded(&mut self, origin: &Origin) -> bool {
        let most = self.most;
        let Some(entry) = self.entries.get_mut(origin) else { return false };
        entry.broken = entry.broken.saturating_sub(1);
        let was_slow = entry.slow_until.take().is_some();
        let Some(limit) = entry.limit else { return was_slow };
        entry.successes += 1;
        let step = entry.successes >= SUCCESSES_PER_STEP;
        if step {
            entry.successes = 0;
            entry.limit = Some(limit + (limit / STEPS).max(1)).filter(|limit| *limit < most);
        }
        was_slow || step
    }

    /// The current limit there.
    pub(super) fn limit(&self, origin: &Origin) -> usize {
        self.entries.get(origin).and_then(|entry| entry.limit).unwrap_or(self.most)
    }

    fn entry(&mut self, origin: &Arc<Origin>, now: Instant) -> &mut BucketEntry {
        if self.entries.len() >= KEPT && !self.entries.contains_key(origin) {
            self.entries.retain(|_, entry| entry.running > 0);
        }
        let entry = self.entries.entry(Arc::clone(origin)).or_insert_with(|| BucketEntry::new(now));
        if entry.running == 0 && now - entry.used >= REMEMBERED {
            *entry = BucketEntry::new(now);
        }
        entry.used = now;
        entry
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(name: &str) -> Arc<Origin> {
        Arc::new(Origin { location: "l".to_owned(), bucket: Bucket::new("n", name) })
    }

    #[tokio::test(start_paused = true)]
    async fn the_memory_of_buckets_is_bounded_in_number_and_time() {
        let mut buckets = Buckets::new(16);
        let busy = origin("busy");
        buckets.begin(&busy, Instant::now());
        for n in 0..KEPT * 3 {
            let one = origin(&n.to_string());
            buckets.begin(&one, Instant::now());
            buckets.throttled(&one);
            buckets.end(&one);
        }
        assert!(buckets.entries.len() <= KEPT && buckets.entries.contains_key(&busy));
        buckets.throttled(&busy);
        buckets.end(&busy);
        assert_eq!(buckets.limit(&busy), 8, "remembered for a while");
        tokio::time::advance(REMEMBERED).await;
        buckets.begin(&busy, Instant::now());
        assert_eq!(buckets.limit(&busy), 16, "and not without end");
    }

    #[tokio::test(start_paused = true)]
    async fn many_requests_that_break_off_beside_answered_ones_lower_the_limit() {
        let mut buckets = Buckets::new(16);
        let origin = origin("a");
        buckets.begin(&origin, Instant::now());
        let mut newest = 0;
        let mut breaks = |buckets: &mut Buckets, served| {
            for _ in 0..4 {
                newest += 1;
                buckets.broke(&origin, newest, newest, served);
            }
            buckets.limit(&origin)
        };
        assert_eq!(breaks(&mut buckets, 14), 14);
        assert_eq!(breaks(&mut buckets, 1), 10, "by a quarter at most");
        assert_eq!(breaks(&mut buckets, 12), 10, "never raised");
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_costs_no_connection_and_is_forgotten() {
        let mut buckets = Buckets::new(16);
        let origin = origin("a");
        buckets.begin(&origin, Instant::now());
        for request in 1..=100 {
            assert!(!buckets.broke(&origin, request, request, 0));
        }
        for request in 101..=103 {
            assert!(!buckets.broke(&origin, request, request, 9), "not many");
        }
        assert_eq!(buckets.limit(&origin), 16);
    }

    #[tokio::test(start_paused = true)]
    async fn requests_that_break_off_together_lower_the_limit_once() {
        let mut buckets = Buckets::new(256);
        let origin = origin("a");
        buckets.begin(&origin, Instant::now());
        let lowered = (1..=200).filter(|request| buckets.broke(&origin, *request, 256, 5)).count();
        assert_eq!((lowered, buckets.limit(&origin)), (1, 192));
        for request in 257..=260 {
            buckets.broke(&origin, request, 300, 5);
        }
        assert_eq!(buckets.limit(&origin), 144, "those that began since then count");
    }

    #[tokio::test(start_paused = true)]
    async fn one_request_of_ten_that_breaks_off_costs_no_connection() {
        let mut buckets = Buckets::new(16);
        let origin = origin("a");
        buckets.begin(&origin, Instant::now());
        for request in 0..1000 {
            if request % 10 == 0 {
                assert!(!buckets.broke(&origin, request, request, 15));
            } else {
                buckets.succeeded(&origin);
            }
        }
        assert_eq!(buckets.limit(&origin), 16);
    }

    #[tokio::test(start_paused = true)]
    async fn slow_buckets_together_leave_half_of_the_places() {
        let mut buckets = Buckets::new(4);
        let slow = [origin("a"), origin("b"), origin("c")];
        let now = Instant::now();
        for one in &slow[..2] {
            buckets.begin(one, now);
            buckets.slow(one, now);
        }
        buckets.slow(&slow[2], now);
        assert!(!buckets.admits(&slow[2], 0, now) && buckets.admits(&origin("d"), 0, now));
        assert!(buckets.admits(&slow[2], 0, now + SLOW_FOR));
        assert!(buckets.succeeded(&slow[2]) && buckets.admits(&slow[2], 0, now));
    }
}
