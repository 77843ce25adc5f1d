//! A local OCI Object Storage: the native API over http and https with verified
//! signatures, an instance metadata service, a token exchange, and faults on demand.
//!
//! ```no_run
//! use localstore::{Action, LocalStore, Operation, Rule};
//!
//! # fn main() -> anyhow::Result<()> {
//! let store = LocalStore::builder().start()?;
//! store.put("models", "phi/config.json", b"{}")?;
//! store.faults().add(Rule::new(Action::retry_after(503, 1)).operation(Operation::Get).times(2));
//! println!("{}", store.endpoint());
//! assert_eq!(store.stats().requests_of(Operation::Get), 0);
//! # Ok(())
//! # }
//! ```
//!
//! A request's path through the modules, in this order:

/// Settings, and the start.
mod builder;
/// The handle of a running server.
mod store;

/// Connections, TLS, HTTP, and the path of a request.
mod server;

/// From the request line to an operation.
mod route;

/// Which fault rules hit the request.
mod faults;

/// Who calls: keys, tokens, certificates.
mod auth;

/// The operations.
mod api;

/// Buckets and objects, in memory and on disk.
mod objects;

/// Statistics: counters and records.
mod stats;

/// The shared state.
mod state;

mod clock;
mod error;
mod glob;
mod range;
mod sync;

pub use builder::{Builder, DEFAULT_NAMESPACE};
pub use faults::{Action, Faults, Match, Rule, RuleState};
pub use objects::{PublicAccess, PutOptions, Source, StorageTier, synthetic_bytes};
pub use route::Operation;
pub use stats::{RequestRecord, Stats};
pub use store::{LocalStore, UserKey};
