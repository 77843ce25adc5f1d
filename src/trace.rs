//! Ids that tie lines of the log together.

use std::hash::{BuildHasher as _, RandomState};

/// Eight random hexadecimal digits: enough to tell apart what happens on one node in some days.
pub(crate) fn id() -> String {
    // Seeded anew by the operating system, and counted on, in each process.
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
