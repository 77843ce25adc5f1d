//! The state of a volume between kubelet's calls for it, until it is published or
//! unpublished.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

use super::PublishKey;
use crate::resolve::UnansweredSince;
use crate::sync::lock;

/// A volume without a call for this long is forgotten: kubelet waits two minutes for
/// an answer, and at most two more before its next call.
const FORGOTTEN: Duration = Duration::from_secs(5 * 60);

/// The maximum number of remembered volumes.
const KEPT: usize = 4096;

/// The publishes that have begun and not ended; clones share one state.
#[derive(Debug, Clone, Default)]
pub(super) struct Calls(Arc<Mutex<HashMap<PathBuf, PublishCall>>>);

/// A publish that may take several calls.
#[derive(Debug, Clone)]
pub(super) struct PublishCall {
    volume_id: String,
    /// The time of the first call.
    pub(super) first: Instant,
    last: Instant,
    /// Since when Object Storage has not answered for it.
    pub(super) silence: UnansweredSince,
}

impl Calls {
    /// Records a call for a volume; returns its state, including earlier calls.
    pub(super) fn enter(&self, key: &PublishKey) -> PublishCall {
        let now = Instant::now();
        let mut calls = self.lock();
        let known = calls.get(&key.target).filter(|begun| {
            begun.volume_id == key.volume_id && now.duration_since(begun.last) < FORGOTTEN
        });
        let begun = match known {
            Some(begun) => PublishCall { last: now, ..begun.clone() },
            None => PublishCall {
                volume_id: key.volume_id.clone(),
                first: now,
                last: now,
                silence: UnansweredSince::default(),
            },
        };
        if calls.len() >= KEPT && !calls.contains_key(&key.target) {
            evict_oldest(&mut calls, now);
        }
        calls.insert(key.target.clone(), begun.clone());
        begun
    }

    /// Forgets a volume that is published, or gone.
    pub(super) fn end(&self, target: &Path) {
        self.lock().remove(target);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PathBuf, PublishCall>> {
        lock(&self.0)
    }
}

fn evict_oldest(calls: &mut HashMap<PathBuf, PublishCall>, now: Instant) {
    calls.retain(|_, begun| now.duration_since(begun.last) < FORGOTTEN);
    if calls.len() >= KEPT {
        let oldest = calls.iter().min_by_key(|(_, begun)| begun.last);
        let oldest = oldest.map(|(target, _)| target.clone());
        oldest.map(|oldest| calls.remove(&oldest));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::RequestDigest;

    fn key(volume_id: &str, target: &str) -> PublishKey {
        let digest = RequestDigest::of_fields("test", std::iter::empty());
        PublishKey {
            volume_id: volume_id.to_owned(),
            target: PathBuf::from(target),
            as_written: digest.clone(),
            digest,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_call_counts_until_the_volume_is_published_gone_or_forgotten() {
        let calls = Calls::default();
        let start = Instant::now();
        let first = |volume_id, target| calls.enter(&key(volume_id, target)).first - start;
        let minute = Duration::from_secs(60);
        assert_eq!(first("a", "/t"), Duration::ZERO);
        tokio::time::advance(4 * minute).await;
        assert_eq!(first("a", "/t"), Duration::ZERO);
        assert_eq!(first("a", "/other"), 4 * minute, "another pod of the volume");
        tokio::time::advance(4 * minute).await;
        assert_eq!(first("a", "/t"), Duration::ZERO, "its last call counts");
        assert_eq!(first("b", "/t"), 8 * minute, "another volume");
        calls.end(Path::new("/t"));
        tokio::time::advance(minute).await;
        assert_eq!(first("b", "/t"), 9 * minute);
        tokio::time::advance(5 * minute).await;
        assert_eq!(first("b", "/t"), 14 * minute);
    }

    #[tokio::test(start_paused = true)]
    async fn a_bounded_number_of_volumes_is_remembered() {
        let calls = Calls::default();
        for n in 0..=KEPT {
            calls.enter(&key("a", &n.to_string()));
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        let known = calls.lock();
        assert_eq!(known.len(), KEPT);
        assert!(!known.contains_key(Path::new("0")) && known.contains_key(Path::new("1")));
    }
}
