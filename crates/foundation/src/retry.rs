//! The pauses between attempts of work that failed.

use std::time::Duration;

use crate::random;

/// The longest `Retry-After` that is honoured: beyond it the caller gets the error.
const RETRY_AFTER_CAP: Duration = Duration::from_secs(60);

/// Exponential backoff with full jitter, which spreads clients that failed together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    initial: Duration,
    max: Duration,
}

impl Backoff {
    /// The first pause is at most `initial`, each later one at most twice the one before and
    /// at most `max`.
    pub const fn new(initial: Duration, max: Duration) -> Self {
        Self { initial, max }
    }

    /// The pause after so many failures in a row (from 1), drawn at random.
    ///
    /// The official SDKs ignore `Retry-After`; here it is the shortest pause, up to one minute,
    /// and the jitter is added to it.
    pub fn pause(self, failures: u32, retry_after: Option<Duration>) -> Duration {
        let doublings = failures.saturating_sub(1).min(31);
        let longest = self.initial.saturating_mul(1 << doublings).min(self.max);
        let jitter = random::up_to(longest);
        match retry_after {
            Some(least) => least.min(RETRY_AFTER_CAP) + jitter.min(self.initial),
            None => jitter,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKOFF: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));

    #[test]
    fn pauses_double_up_to_the_greatest_and_are_spread() {
        for (failures, longest_ms) in [(1, 100), (2, 200), (4, 800), (5, 1000), (40, 1000)] {
            let longest = Duration::from_millis(longest_ms);
            let draws: Vec<_> = (0..256).map(|_| BACKOFF.pause(failures, None)).collect();
            assert!(draws.iter().all(|pause| *pause <= longest));
            assert!(draws.iter().any(|pause| *pause > longest / 2), "after {failures} failures");
            assert!(draws.iter().any(|pause| *pause < longest / 2), "after {failures} failures");
        }
    }

    #[test]
    fn retry_after_is_the_shortest_pause_and_is_capped() {
        let asked = BACKOFF.pause(1, Some(Duration::from_secs(20)));
        assert!(asked >= Duration::from_secs(20) && asked < Duration::from_secs(21));
        assert!(BACKOFF.pause(1, Some(Duration::from_secs(3600))) < Duration::from_secs(61));
    }
}
