//! The node's model cache: the vocabulary of models ([`model`]), kernel mounts ([`mount`]),
//! downloads ([`download`]), and the cache on disk that all pods of the node share ([`cache`]).

pub mod budget;
pub mod cache;
pub mod download;
pub mod fair;
pub mod model;
pub mod mount;

// `crate::error` and the like mean the same in every crate of the driver.
use oci_model_csi_foundation::{
    Error, ErrorKind, Result, abort_point, blocking, error, flight, metrics, redact, source, sync,
    text, trace,
};
use oci_model_csi_md5_lanes::md5_lanes;
