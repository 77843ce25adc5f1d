//! OCI Object Storage models as shared, verified, read-only volumes.

pub mod abort_point;
pub mod admin;
mod blocking;
mod budget;
pub mod cache;
pub mod cli;
pub mod config;
pub mod csi;
pub mod download;
pub mod error;
pub mod events;
mod fair;
pub mod fetch;
pub mod flight;
pub mod kubernetes;
pub mod manage;
pub mod metrics;
pub mod model;
pub mod mount;
pub mod node;
pub mod oci;
pub mod policy;
pub mod resolve;
mod text;
mod trace;
mod transport;
pub mod volume;

pub use error::{Error, ErrorKind, Result};
