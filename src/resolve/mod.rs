//! From a request to the exact object versions that it means now: where its
//! bucket is and as whom it is read ([`ClientPool`]), what is listed there, who
//! may read it, and which revision is selected ([`RevisionSelector`]).

mod authorize;
mod changes;
mod client_pool;
mod directories;
mod known_buckets;
mod listings;
pub(crate) mod newest;
mod outage;
mod proofs;
mod refusals;
mod resolver;
mod select;
mod siblings;

pub(crate) use authorize::is_refusal;
pub(crate) use changes::Changes;
pub use client_pool::{ClientPool, ListedBucket, Requester, Route};
pub(crate) use outage::UnansweredSince;
pub(crate) use resolver::is_of_empty_prefix;
pub use resolver::{ResolveLimits, Resolver};
pub use select::RevisionSelector;
pub(crate) use select::Selection;
pub(crate) use siblings::{is_answered, nearest_buckets, with_nearest_buckets, with_siblings};
