//! How often a request is repeated, and the pauses in between.

use std::time::Duration;

use tokio::time::Instant;

use super::error::StorageError;

/// The longest `Retry-After` that is honoured: beyond it the caller gets the error.
const RETRY_AFTER_CAP: Duration = Duration::from_secs(60);

/// Exponential backoff with full jitter under a budget of attempts and time.
///
/// Only transient errors are repeated ([`StorageError::is_transient`]); every request
/// that is repeated here is idempotent. The official SDKs ignore `Retry-After`;
/// here it is the shortest pause, up to one minute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryPolicy {
    attempts: u32,
    initial: Duration,
    max: Duration,
    budget: Duration,
}

impl RetryPolicy {
    /// `attempts` in all (1 means no repetition), the first delay at most `initial`,
    /// each later one at most twice the one before and at most `max`; none
    /// that would end after `budget`, measured from the first attempt.
    pub fn new(
        attempts: u32,
        initial: Duration,
        max: Duration,
        budget: Duration,
    ) -> Result<Self, StorageError> {
        let refuse = |why: &str| Err(StorageError::config("setting the retry policy", why));
        if attempts == 0 {
            return refuse("the number of attempts must be at least 1");
        }
        if initial.is_zero() {
            return refuse("the initial delay must be more than 0");
        }
        if max < initial {
            return refuse("the greatest delay must not be less than the initial one");
        }
        Ok(Self { attempts, initial, max, budget })
    }

    /// One attempt.
    pub fn once() -> Self {
        let second = Duration::from_secs(1);
        Self { attempts: 1, initial: second, max: second, budget: Duration::ZERO }
    }

    /// Attempts in all.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// How long after the first attempt another one may begin.
    pub fn budget(&self) -> Duration {
        self.budget
    }

    /// The pause after attempt number `attempt` (from 1), drawn at random.
    ///
    /// Full jitter spreads clients that failed together; it is added to `retry_after`
    /// (from the service, capped at one minute).
    pub fn delay(&self, attempt: u32, retry_after: Option<Duration>) -> Duration {
        let doublings = attempt.saturating_sub(1).min(31);
        let ceiling = self.initial.saturating_mul(1 << doublings).min(self.max);
        let jitter = ceiling.mul_f64(random_fraction());
        match retry_after {
            Some(least) => least.min(RETRY_AFTER_CAP) + jitter.min(self.initial),
            None => jitter,
        }
    }

    /// Begins counting attempts and time.
    pub fn start(&self) -> Attempts {
        Attempts { policy: self.clone(), started: Instant::now(), failed: 0 }
    }
}

impl Default for RetryPolicy {
    /// Eight attempts within a minute, pauses of up to 8 s.
    fn default() -> Self {
        Self {
            attempts: 8,
            initial: Duration::from_millis(250),
            max: Duration::from_secs(8),
            budget: Duration::from_secs(60),
        }
    }
}

/// The attempts of one request: the loop's state without the loop.
#[derive(Debug)]
pub struct Attempts {
    policy: RetryPolicy,
    started: Instant,
    failed: u32,
}

impl Attempts {
    /// After a failed attempt: sleeps and returns `Ok` where another one is due,
    /// else returns the error with attempts and elapsed time in it.
    ///
    /// An error that has attempts already comes from below, where it was
    /// repeated: a credential that a request waited for. It is returned as it
    /// is, since policies that repeat each other multiply.
    ///
    /// Cancel safe: dropped while it sleeps, it has only counted the attempt.
    pub async fn again(&mut self, error: StorageError) -> Result<(), StorageError> {
        self.failed += 1;
        if error.was_repeated() {
            return Err(error);
        }
        let elapsed = self.started.elapsed();
        let delay = self.policy.delay(self.failed, error.retry_after());
        if !error.is_transient()
            || self.failed >= self.policy.attempts
            || elapsed + delay > self.policy.budget
        {
            return Err(error.with_attempts(self.failed, elapsed));
        }
        tracing::debug!(attempt = self.failed, ?delay, %error, "repeating a request");
        tokio::time::sleep(delay).await;
        Ok(())
    }
}

/// Evenly spread over [0, 1).
fn random_fraction() -> f64 {
    let mut bytes = [0; 4];
    // Without randomness the delays are still bounded; only their spread is lost.
    if aws_lc_rs::rand::fill(&mut bytes).is_err() {
        return 0.5;
    }
    f64::from(u32::from_le_bytes(bytes)) / (f64::from(u32::MAX) + 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::StorageErrorKind;

    fn policy(attempts: u32, budget: u64) -> RetryPolicy {
        let (initial, max) = (Duration::from_millis(100), Duration::from_secs(1));
        RetryPolicy::new(attempts, initial, max, Duration::from_secs(budget)).unwrap()
    }

    fn transient() -> StorageError {
        StorageError::new(StorageErrorKind::Unavailable, "asking", "no answer")
    }

    #[test]
    fn invalid_settings_are_refused() {
        let (ms, s) = (Duration::from_millis(1), Duration::from_secs(1));
        assert!(RetryPolicy::new(0, ms, s, s).is_err());
        assert!(RetryPolicy::new(1, Duration::ZERO, s, s).is_err());
        assert!(RetryPolicy::new(1, s, ms, s).is_err());
    }

    #[test]
    fn delays_double_up_to_the_greatest_and_are_spread() {
        let policy = policy(8, 60);
        for (attempt, ceiling_ms) in [(1, 100), (2, 200), (4, 800), (5, 1000), (40, 1000)] {
            let draws: Vec<_> = (0..64).map(|_| policy.delay(attempt, None)).collect();
            assert!(draws.iter().all(|d| *d <= Duration::from_millis(ceiling_ms)));
            assert!(draws.iter().any(|d| *d != draws[0]), "no jitter at attempt {attempt}");
        }
    }

    #[test]
    fn retry_after_is_the_least_that_is_waited_and_capped() {
        let policy = policy(8, 60);
        let asked = policy.delay(1, Some(Duration::from_secs(20)));
        assert!(asked >= Duration::from_secs(20) && asked < Duration::from_secs(21));
        assert!(policy.delay(1, Some(Duration::from_secs(3600))) < Duration::from_secs(61));
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_error_carries_attempts_and_elapsed_time() {
        let mut attempts = policy(3, 60).start();
        attempts.again(transient()).await.unwrap();
        attempts.again(transient()).await.unwrap();
        let error = attempts.again(transient()).await.unwrap_err();
        assert!(error.to_string().contains("after 3 attempts in"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_that_would_end_after_the_budget_is_not_begun() {
        let mut attempts = policy(100, 5).start();
        let asked = transient().with_retry_after(Some(Duration::from_secs(6)));
        assert!(attempts.again(asked).await.is_err());
        assert!(attempts.again(transient()).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn an_error_that_was_repeated_below_is_not_repeated_again() {
        let mut below = policy(2, 60).start();
        below.again(transient()).await.unwrap();
        let error = below.again(transient()).await.unwrap_err();
        let text = error.to_string();
        let error = policy(8, 60).start().again(error).await.unwrap_err();
        assert_eq!(error.to_string(), text);
    }

    #[tokio::test(start_paused = true)]
    async fn a_permanent_error_is_not_repeated() {
        let error = StorageError::new(StorageErrorKind::NotFound, "asking", "not there");
        assert!(policy(8, 60).start().again(error).await.is_err());
    }
}
