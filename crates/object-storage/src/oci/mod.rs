//! Everything that knows Oracle: endpoints, signing, identity, Object Storage.
//!
//! The path of a request, top to bottom:
//!
//! | step | module |
//! |---|---|
//! | the configuration, and the `oci` CLI's variables and file | `settings`, `environment`, `config_file` |
//! | the calls: list, head, get | `object_storage`, `answer` |
//! | the identity: one immutable credential behind an atomic swap | [`identity`] |
//! | the signature, a pure function | [`sign`], [`key`], `legacy_pem` |
//! | in place of a signature: pre-authenticated requests | `par` |
//! | the host | [`region`], `endpoint` |
//! | what a diagnosis asks beyond that | `diagnosis` |
//! | failures and repetition | `error`, [`RetryPolicy`](crate::source::RetryPolicy) |
//!
//! Nothing outside this module builds a URL or a signature, and nothing in it
//! knows of models, caches or CSI.

mod answer;
mod clock;
mod config_file;
mod connector;
mod diagnosis;
mod encode;
mod endpoint;
mod environment;
mod error;
pub mod identity;
pub mod key;
mod legacy_pem;
mod object_storage;
mod par;
pub mod region;
#[cfg(feature = "oci-rust-sdk")]
mod sdk_signer;
mod settings;
pub mod sign;
#[cfg(test)]
mod test_server;

pub use connector::StorageConnector;
pub use diagnosis::{
    BucketFacts, Principal, ProxyUse, Reached, ServiceWay, key_statement, matching_rule,
    own_instance,
};
pub use environment::Environment;
pub use object_storage::{ObjectStorage, Pages};
pub use par::ParUrl;
pub use settings::{RequestObserver, Settings, Timeouts};
