//! Placeholder.
/// Says that a step is done.
pub(crate) fn reach(_step: &str) {}
