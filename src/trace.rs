//! Ids that tie lines of the log together.

use std::hash::{BuildHasher as _, RandomState};

/// Returns eight random hexadecimal digits: enough to distinguish the events of one node over days.
pub(crate) fn id() -> String {
    // Each process seeds it from the operating system, and counts on from there.
    format!("{:08x}", RandomState::new().hash_one(()) >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_short_and_differ() {
        let ids: std::collections::HashSet<_> = (0..1000).map(|_| id()).collect();
        assert!(ids.len() > 990);
        assert!(ids.iter().all(|id| id.len() == 8));
    }
}
