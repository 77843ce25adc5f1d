//! What was recorded lately for each pod, so that it is not repeated.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::{InvolvedObject, Reason};

/// The same note is recorded again after this long.
const SAME: Duration = Duration::from_secs(5 * 60);

/// Progress is recorded at most once in this long.
const PROGRESS: Duration = Duration::from_secs(60);

/// Entries that are remembered; beyond that the old ones are dropped.
const REMEMBERED: usize = 4096;

/// The last note of each pod and reason, and when it was recorded.
#[derive(Debug, Default)]
pub(super) struct RecentEvents(HashMap<(String, Reason), (String, Instant)>);

impl RecentEvents {
    /// Whether this is news; if so, it is remembered.
    pub(super) fn admits(&mut self, subject: &InvolvedObject, reason: Reason, note: &str) -> bool {
        let now = Instant::now();
        if self.0.len() >= REMEMBERED {
            self.0.retain(|_, (_, recorded)| now - *recorded < SAME);
            if self.0.len() >= REMEMBERED {
                return false;
            }
        }
        let key = (subject.uid.clone(), reason);
        if let Some((last, recorded)) = self.0.get(&key) {
            let quiet = if reason == Reason::Pulling { PROGRESS } else { SAME };
            let same = last == note || reason == Reason::Pulling;
            if same && now - *recorded < quiet {
                return false;
            }
        }
        self.0.insert(key, (note.to_owned(), now));
        true
    }
}
