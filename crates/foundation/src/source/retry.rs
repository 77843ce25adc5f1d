//! How often a request is repeated. The pauses in between are those of [`Backoff`].

use std::time::Duration;

use tokio::time::Instant;

use super::StorageError;
use crate::retry::Backoff;

/// Exponential backoff with full jitter under a budget of attempts and time.
///
/// Only transient errors are repeated ([`StorageError::is_transient`]); every request
/// that is repeated here is idempotent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryPolicy {
    attempts: u32,
    backoff: Backoff,
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
        Ok(Self { attempts, backoff: Backoff::new(initial, max), budget })
    }

    /// One attempt.
    pub fn once() -> Self {
        let second = Duration::from_secs(1);
        Self { attempts: 1, backoff: Backoff::new(second, second), budget: Duration::ZERO }
    }

    /// The same, for requests that take longer: the last attempt begins at most `budget` after
    /// the first one.
    #[must_use]
    pub fn within(self, budget: Duration) -> Self {
        Self { budget, ..self }
    }

    /// Attempts in all.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// How long after the first attempt another one may begin.
    pub fn budget(&self) -> Duration {
        self.budget
    }

    /// The pause after attempt number `attempt` (from 1); see `Backoff::pause`.
    pub fn delay(&self, attempt: u32, retry_after: Option<Duration>) -> Duration {
        self.backoff.pause(attempt, retry_after)
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
            backoff: Backoff::new(Duration::from_millis(250), Duration::from_secs(8)),
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
