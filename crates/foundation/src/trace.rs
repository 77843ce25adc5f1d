//! Ids that tie lines of the log together, and the spans of traces.

use crate::random;

/// The target of spans that only traces have (docs/traces.md), and the log does not. Without a
/// collector they are disabled where they are made.
pub const STEP: &str = "oci_model_csi_trace";

/// Returns eight random hexadecimal digits: enough to distinguish the events of one node over days.
pub fn id() -> String {
    format!("{:08x}", u32::from_be_bytes(random::bytes()))
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
