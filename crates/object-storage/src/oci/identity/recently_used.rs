//! What is kept for pods while it is used: a bounded number, and nothing that is idle.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use super::lock;

/// Entries that are kept at once.
pub(super) const KEPT: usize = 512;

/// How long an unused entry is kept: kubelet's own pauses reach two minutes.
pub(super) const IDLE: Duration = Duration::from_secs(10 * 60);

/// Values by their keys; cheap to clone.
pub(super) struct RecentlyUsed<K, V>(Arc<Mutex<HashMap<K, UsedEntry<V>>>>);

struct UsedEntry<V> {
    value: V,
    used: Instant,
    /// The Kubernetes namespace that it is counted for.
    owner: String,
}

impl<K, V> Clone for RecentlyUsed<K, V> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K, V> Default for RecentlyUsed<K, V> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K, V> RecentlyUsed<K, V>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Clone + Send + 'static,
{
    /// The value of a key, which counts as used.
    pub(super) fn get(&self, key: &K) -> Option<V> {
        let mut entries = lock(&self.0);
        let entry = entries.get_mut(key).filter(|entry| entry.used.elapsed() < IDLE)?;
        entry.used = Instant::now();
        Some(entry.value.clone())
    }

    /// As [`get_or_insert_of`](Self::get_or_insert_of), all of one owner.
    pub(super) fn get_or_insert_with(&self, key: &K, make: impl FnOnce() -> V) -> V {
        self.get_or_insert_of("", key, make)
    }

    /// The value of a key, made if there is none; it counts as used. Drops idle entries, and of the
    /// owner with the most entries those that were used the longest ago, until no more than
    /// [`KEPT`] are left: one owner cannot displace what others use.
    pub(super) fn get_or_insert_of(&self, owner: &str, key: &K, make: impl FnOnce() -> V) -> V {
        let mut entries = lock(&self.0);
        let begun = entries.is_empty();
        entries.retain(|other, entry| other == key || entry.used.elapsed() < IDLE);
        while entries.len() >= KEPT && !entries.contains_key(key) {
            let Some(oldest) = oldest_of_the_largest(&entries) else { break };
            entries.remove(&oldest);
        }
        let new = || UsedEntry { value: make(), used: Instant::now(), owner: owner.to_owned() };
        let entry = entries.entry(key.clone()).or_insert_with(new);
        entry.used = Instant::now();
        let value = entry.value.clone();
        drop(entries);
        if begun {
            self.drop_idle_later();
        }
        value
    }

    /// Drops entries as they become idle, until none is left.
    fn drop_idle_later(&self) {
        let shared = Arc::downgrade(&self.0);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(IDLE / 2).await;
                let Some(shared) = shared.upgrade() else { return };
                let mut entries = lock(&shared);
                entries.retain(|_, entry| entry.used.elapsed() < IDLE);
                if entries.is_empty() {
                    return;
                }
            }
        });
    }
}

/// The entry that was used the longest ago, of the owner with the most.
fn oldest_of_the_largest<K: Clone, V>(entries: &HashMap<K, UsedEntry<V>>) -> Option<K> {
    let mut counts: HashMap<&str, usize> = HashMap::new();
    for entry in entries.values() {
        *counts.entry(&entry.owner).or_default() += 1;
    }
    let (largest, _) = counts.into_iter().max_by_key(|(_, count)| *count)?;
    let theirs = entries.iter().filter(|(_, entry)| entry.owner == largest);
    theirs.min_by_key(|(_, entry)| entry.used).map(|(key, _)| key.clone())
}

#[cfg(test)]
impl<K: Eq + Hash, V> RecentlyUsed<K, V> {
    pub(super) fn len(&self) -> usize {
        lock(&self.0).len()
    }

    pub(super) fn has(&self, key: &K) -> bool {
        lock(&self.0).contains_key(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn entries_are_bounded_and_dropped_when_they_are_unused() {
        let kept = RecentlyUsed::default();
        for n in 0..KEPT + 10 {
            assert_eq!(kept.get_or_insert_with(&n, || n), n);
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert_eq!(kept.len(), KEPT);
        assert!(!kept.has(&0) && kept.get(&(KEPT + 8)).is_some());
        let last = KEPT + 9;
        tokio::time::sleep(IDLE / 2).await;
        assert_eq!(kept.get_or_insert_with(&last, || 0), last, "the value that is there");
        tokio::time::sleep(IDLE * 11 / 10).await;
        assert_eq!(kept.len(), 1, "the one that was used since");
        tokio::time::sleep(IDLE * 2).await;
        assert_eq!(kept.len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn an_owner_with_many_entries_displaces_its_own_and_not_those_of_others() {
        let kept = RecentlyUsed::default();
        kept.get_or_insert_of("quiet", &0, || 0);
        for n in 1..KEPT * 2 {
            tokio::time::advance(Duration::from_millis(1)).await;
            kept.get_or_insert_of("loud", &n, || n);
        }
        assert!(kept.has(&0), "the oldest, and the only one of its owner");
        assert!(kept.len() == KEPT && !kept.has(&1) && kept.has(&(KEPT * 2 - 1)));
    }
}
