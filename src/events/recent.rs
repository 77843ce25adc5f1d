//! What pods were told lately, so that they are not told again.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::{InvolvedObject, Reason};

/// The same note is told again after this long.
const SAME: Duration = Duration::from_secs(5 * 60);

/// Progress is told at most once in this long.
const PROGRESS: Duration = Duration::from_secs(60);

/// Entries that are remembered; beyond it the old ones go.
const REMEMBERED: usize = 4096;

/// The last note of each pod and reason, and when.
#[derive(Debug, Default)]
pub(super) struct RecentEvents(HashMap<(String, Reason), (String, Instant)>);

impl RecentEvents {
    /// Whether this is news; then it is remembered.
    pub(super) fn admits(&mut self, subject: &InvolvedObject, reason: Reason, note: &str) -> bool {
        let now = Instant::now();
        if self.0.len() >= REMEMBERED {
            self.0.retain(|_, (_, told)| now - *told < SAME);
            if self.0.len() >= REMEMBERED {
                return false;
            }
        }
        let key = (subject.uid.clone(), reason);
        if let Some((last, told)) = self.0.get(&key) {
            let quiet = if reason == Reason::Pulling { PROGRESS } else { SAME };
            let same = last == note || reason == Reason::Pulling;
            if same && now - *told < quiet {
                return false;
            }
        }
        self.0.insert(key, (note.to_owned(), now));
        true
    }
}
