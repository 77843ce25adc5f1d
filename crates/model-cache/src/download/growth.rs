//! How many requests run at once under `auto`, of downloads and of uploads.
//!
//! The number doubles while that raises the throughput. Once it does not, it returns to the
//! number before and stays there for a while; then it tries a little more. Where requests are
//! answered much later than before, or break off often, and no more is transferred for it, it tries a
//! little less, and returns if less is transferred then. Only time in which all permits are taken and
//! requests wait is measured: else the number is not what limits.

use std::time::Duration;

use tokio::time::Instant;

use crate::download::Concurrency;

/// After a change, while new connections open: not measured.
const SETTLE: Duration = Duration::from_millis(250);

/// How long each number is measured.
const WINDOW: Duration = Duration::from_millis(500);

/// By which factor the throughput must grow for a larger number to be kept.
const GAIN: f64 = 1.08;

/// How long a number is kept before a larger one is tried again; doubles with each failure.
const HOLD: Duration = Duration::from_secs(15);
const LONGEST_HOLD: Duration = Duration::from_secs(120);

/// Which share of the throughput a smaller number must keep.
const LOSS: f64 = 0.95;

/// Requests are answered late when they wait this many times as long as when the number was
/// chosen, and longer than [`LATE`].
const LATE_FACTOR: u32 = 3;
const LATE: Duration = Duration::from_millis(50);

/// Answers that a mean is taken of, at least.
const ANSWERS: u64 = 8;

/// Requests that break off in a window before that says something about the number.
const FAILURES: u64 = 4;

/// Windows in a row with trouble before a smaller number is tried.
const WINDOWS: u32 = 2;

/// A request that takes less than this at its connection's throughput may be larger.
const SHORTEST_REQUEST: Duration = Duration::from_millis(500);

/// The most ranges in one request.
const MOST_RANGES: u64 = 4;

/// What all requests have transferred and waited for so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TransferTotals {
    /// Bytes of bodies.
    pub bytes: u64,
    /// Requests that were answered; 0 where they are not counted, and the wait says nothing.
    pub answers: u64,
    /// How long they waited for that in all.
    pub waited: Duration,
    /// Requests that broke off: reset connections, 5xx, 429.
    pub failures: u64,
}

/// The number of requests at once, as it adapts.
#[derive(Debug)]
pub struct ConcurrencyGrowth {
    least: usize,
    most: usize,
    step: GrowthStep,
    hold: Duration,
    /// Whether the first search is over, which doubles.
    settled_once: bool,
    /// Not measured until then.
    quiet_until: Option<Instant>,
    window: Option<(Instant, TransferTotals)>,
    sampled: Option<Instant>,
    /// How long requests waited for an answer when the number was chosen.
    usual_wait: Option<Duration>,
    /// Windows in a row with late answers or many failures.
    troubled: u32,
    /// What the log said last.
    logged: Option<usize>,
    /// Bytes a second of the last window.
    rate: f64,
}

#[derive(Debug, Clone, Copy)]
enum GrowthStep {
    /// Measures what the number gives.
    Measuring,
    /// Measures whether a larger number gives more than the number before, or a smaller one as
    /// much.
    Trying { before: usize, rate: f64 },
    /// Keeps a number that gave this rate.
    Keeping { until: Instant, rate: f64 },
}

/// What one window measured.
struct WindowResult {
    rate: f64,
    wait: Option<Duration>,
    /// Whether requests broke off often.
    broken: bool,
}

impl ConcurrencyGrowth {
    /// Begins with this number, and goes neither below it nor above [`Concurrency::MOST`].
    pub fn beginning_with(least: usize) -> Self {
        Self {
            least,
            most: least,
            step: GrowthStep::Measuring,
            hold: HOLD,
            settled_once: false,
            quiet_until: None,
            window: None,
            sampled: None,
            usual_wait: None,
            troubled: 0,
            logged: None,
            rate: 0.0,
        }
    }

    /// How many requests may run at once.
    pub fn most(&self) -> usize {
        self.most
    }

    /// Whether more requests are tried now, or will be soon.
    pub(super) fn tries_more(&self) -> bool {
        match self.step {
            GrowthStep::Measuring => true,
            GrowthStep::Trying { before, .. } => before < self.most,
            GrowthStep::Keeping { .. } => false,
        }
    }

    /// How many ranges of this size one request may take, so that connections are not idle
    /// between short requests.
    pub(super) fn ranges_at_once(&self, range_size: u64) -> u64 {
        #[expect(clippy::cast_precision_loss, reason = "a rate is an estimate")]
        let (most, size) = (self.most as f64, range_size.max(1) as f64);
        let fit = self.rate / most * SHORTEST_REQUEST.as_secs_f64() / size;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is small")]
        let fit = fit.clamp(1.0, 1024.0) as u64;
        fit.min(MOST_RANGES)
    }

    /// Object Storage throttled a bucket, or reset many connections: a larger number that is
    /// being tried may be the reason.
    pub fn throttled(&mut self, now: Instant) {
        if let GrowthStep::Trying { before, rate } = self.step
            && before < self.most
        {
            self.back_to(before, rate, now);
        }
    }

    /// Records what was transferred up to now. `limited`: all permits are taken and requests
    /// wait. Called a few times a second.
    pub fn sample(&mut self, now: Instant, totals: TransferTotals, limited: bool) {
        let gap = self.sampled.replace(now).is_none_or(|last| now - last > WINDOW);
        if !limited || gap || self.quiet_until.is_some_and(|until| now < until) {
            self.window = None;
            return;
        }
        let (since, before) = *self.window.get_or_insert((now, totals));
        let spent = now - since;
        if spent < WINDOW {
            return;
        }
        self.window = Some((now, totals));
        let measured = WindowResult::of(spent, before, totals);
        self.rate = measured.rate;
        self.judge(now, &measured);
    }

    fn judge(&mut self, now: Instant, measured: &WindowResult) {
        match self.step {
            GrowthStep::Measuring if measured.broken => self.keep(measured.rate, now),
            GrowthStep::Measuring => self.try_more(measured.rate, now),
            GrowthStep::Trying { before, rate } if self.most > before => {
                if measured.broken || measured.rate < rate * GAIN {
                    self.back_to(before, rate, now);
                } else {
                    self.hold = HOLD;
                    self.try_more(measured.rate, now);
                }
            }
            GrowthStep::Trying { before, rate } => {
                if measured.rate < rate * LOSS {
                    self.back_to(before, rate, now);
                } else {
                    self.keep(measured.rate, now);
                }
            }
            GrowthStep::Keeping { until, rate } => {
                let troubled = measured.broken || self.is_late(measured.wait);
                let trouble = troubled && measured.rate <= rate * GAIN;
                self.troubled = if trouble { self.troubled + 1 } else { 0 };
                if self.troubled >= WINDOWS && self.most > self.least {
                    self.step = GrowthStep::Trying { before: self.most, rate: measured.rate };
                    self.set((self.most * 3 / 4).max(self.least), now);
                } else if now >= until && (!trouble || self.most == self.least) {
                    // Of the least number, late answers may be what this service gives.
                    self.try_more(measured.rate, now);
                }
            }
        }
    }

    fn is_late(&mut self, wait: Option<Duration>) -> bool {
        let Some(wait) = wait else { return false };
        let usual = *self.usual_wait.get_or_insert(wait);
        wait > LATE && wait > usual * LATE_FACTOR
    }

    fn try_more(&mut self, rate: f64, now: Instant) {
        let before = self.most;
        let more = if self.settled_once { before + before / 4 } else { before * 2 };
        if before >= Concurrency::MOST {
            self.keep(rate, now);
            return;
        }
        self.set(more.min(Concurrency::MOST), now);
        self.step = GrowthStep::Trying { before, rate };
    }

    fn back_to(&mut self, before: usize, rate: f64, now: Instant) {
        self.set(before, now);
        self.keep(rate, now);
        self.hold = (self.hold * 2).min(LONGEST_HOLD);
    }

    fn keep(&mut self, rate: f64, now: Instant) {
        self.step = GrowthStep::Keeping { until: now + self.hold, rate };
        // The next window says what is usual with this number.
        (self.settled_once, self.troubled, self.usual_wait) = (true, 0, None);
        if self.logged.replace(self.most) != Some(self.most) {
            let mib_per_second = rate / f64::from(1 << 20);
            tracing::info!(requests = self.most, mib_per_second, "concurrency is kept");
        }
    }

    fn set(&mut self, most: usize, now: Instant) {
        tracing::debug!(from = self.most, to = most, "concurrency changes");
        (self.most, self.quiet_until, self.window) = (most, Some(now + SETTLE), None);
    }
}

impl WindowResult {
    fn of(spent: Duration, before: TransferTotals, now: TransferTotals) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "a rate is an estimate")]
        let bytes = now.bytes.saturating_sub(before.bytes) as f64;
        let answers = now.answers.saturating_sub(before.answers);
        let failures = now.failures.saturating_sub(before.failures);
        let waited = now.waited.saturating_sub(before.waited);
        Self {
            rate: bytes / spent.as_secs_f64(),
            wait: u32::try_from(answers)
                .ok()
                .filter(|_| answers >= ANSWERS)
                .and_then(|answers| waited.checked_div(answers)),
            broken: failures >= FAILURES && failures > answers / 4,
        }
    }
}

#[cfg(test)]
#[path = "growth_tests.rs"]
mod tests;
