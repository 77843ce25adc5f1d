//! How models enter the cache: flights, slots, progress, import.

pub(super) mod import;
pub(super) mod model_flight;
pub(super) mod progress;
pub(super) mod slots;
