//! What was recorded lately for each pod, so that it is not repeated.

use std::time::Duration;

use super::{InvolvedObject, Reason};
use crate::log_throttle::LogThrottle;

/// The same note is recorded again after this long.
const SAME: Duration = Duration::from_secs(5 * 60);

/// Progress is recorded at most once in this long.
const PROGRESS: Duration = Duration::from_secs(60);

/// The last note of each pod and reason.
#[derive(Debug, Default)]
pub(super) struct RecentEvents(LogThrottle<(String, Reason), String>);

impl RecentEvents {
    /// Whether this is news; if so, it is remembered.
    pub(super) fn admits(&mut self, subject: &InvolvedObject, reason: Reason, note: &str) -> bool {
        // Each note about progress differs, and is the same statement.
        let (statement, quiet) = match reason {
            Reason::Pulling => ("", PROGRESS),
            _ => (note, SAME),
        };
        self.0.admits((subject.uid.clone(), reason), statement.to_owned(), quiet)
    }
}
