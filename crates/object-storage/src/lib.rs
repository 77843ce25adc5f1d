//! OCI Object Storage, as the driver reads it: [`oci`] implements the driver's seam to sources
//! of objects, and `transport` opens the connections for it.

pub mod oci;
pub mod transport;

// `crate::error` and the like mean the same in every crate of the driver.
use oci_model_csi_foundation::{error, flight, http_error, random, retry, source, sync, text};
