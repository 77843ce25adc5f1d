//! The ground floor of oci-model-csi: what every other part may use, and what uses none of them.
//!
//! [`Error`] is the error of the whole driver. [`source`] is the seam to where objects are,
//! which `oci-model-csi-object-storage` implements and `oci-model-csi-model-cache` reads through.

pub mod abort_point;
pub mod blocking;
pub mod error;
pub mod flight;
pub mod http_error;
pub mod log_throttle;
pub mod metrics;
pub mod random;
pub mod redact;
pub mod retry;
pub mod source;
pub mod sync;
pub mod text;
pub mod trace;

pub use error::{Error, ErrorKind, Result};
