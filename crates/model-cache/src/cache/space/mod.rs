//! How much space there is, and who gets it: reservations, admission, eviction.
//! Knows [`super::store`], and not [`super::fill`].

pub(super) mod admission;
pub(super) mod evict;
pub(super) mod maintenance;
pub(super) mod policy;
pub(super) mod reservations;
pub(super) mod shortfall;
