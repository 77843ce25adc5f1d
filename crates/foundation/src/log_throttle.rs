//! Statements that repeat: each is made about the same key once in a while only.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use tokio::time::Instant;

/// Keys that are remembered at once. Beyond that, the one whose silence ends first is forgotten.
const REMEMBERED: usize = 4096;

/// Remembers the last statement about each key, so that it is not repeated.
#[derive(Debug)]
pub struct LogThrottle<K, S>(HashMap<K, LastStatement<S>>);

#[derive(Debug)]
struct LastStatement<S> {
    statement: S,
    quiet_until: Instant,
}

impl<K, S> Default for LogThrottle<K, S> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Clone + Eq + Hash, S: PartialEq> LogThrottle<K, S> {
    /// Whether to make this statement now: it is not the last one about its key, or that was
    /// made longer ago than it asked for. If so, it is recorded, and not made again for `quiet`.
    pub fn admits(&mut self, key: K, statement: S, quiet: Duration) -> bool {
        let now = Instant::now();
        match self.0.get(&key) {
            Some(last) if last.statement == statement && now < last.quiet_until => return false,
            Some(_) => {}
            None => self.make_space(now),
        }
        self.0.insert(key, LastStatement { statement, quiet_until: now + quiet });
        true
    }

    fn make_space(&mut self, now: Instant) {
        if self.0.len() < REMEMBERED {
            return;
        }
        self.0.retain(|_, last| now < last.quiet_until);
        if self.0.len() >= REMEMBERED {
            let first = self.0.iter().min_by_key(|(_, last)| last.quiet_until);
            if let Some(first) = first.map(|(key, _)| key.clone()) {
                self.0.remove(&first);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUIET: Duration = Duration::from_secs(300);

    #[tokio::test(start_paused = true)]
    async fn a_statement_is_repeated_after_its_silence_only() {
        let mut throttle = LogThrottle::default();
        let mut admits = |key, statement| throttle.admits(key, statement, QUIET);
        assert!(admits("a", "no bucket"));
        assert!(!admits("a", "no bucket"));
        assert!(admits("b", "no bucket"), "about another key");
        assert!(admits("a", "no prefix"), "another statement");
        tokio::time::advance(Duration::from_secs(299)).await;
        assert!(!admits("a", "no prefix"));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(admits("a", "no prefix"));
    }

    #[tokio::test(start_paused = true)]
    async fn memory_is_bounded_and_the_newest_keys_are_remembered() {
        let mut throttle = LogThrottle::default();
        for key in 0..2 * REMEMBERED {
            tokio::time::advance(Duration::from_millis(1)).await;
            assert!(throttle.admits(key, (), QUIET));
        }
        assert_eq!(throttle.0.len(), REMEMBERED);
        assert!(!throttle.admits(REMEMBERED, (), QUIET), "the oldest that is remembered");
        assert!(throttle.admits(REMEMBERED - 1, (), QUIET), "forgotten");
    }
}
