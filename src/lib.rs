//! OCI Object Storage models as shared, verified, read-only volumes.
//!
//! A pod names a model, which is a prefix of objects in a bucket. The driver downloads the
//! model into a cache that all pods of the node share, verifies it, and mounts it read-only.
//! `ARCHITECTURE.md` has the table of modules with the arrows between them, the protocols and
//! the tests that hold each promise. This page follows one request, from kubelet to the disk.
//!
//! # The journey of a `NodePublishVolume`
//!
//! 1. [`cli`] parses the flags, [`config`] the administrator's file. `cli` builds every part
//!    with its options and starts the servers; it is the only module that names `config`.
//! 2. [`csi`] accepts kubelet's call on a Unix socket, checks it, and turns protobuf into
//!    types of [`model`]: names, patterns, the pull policy. It is the only code that knows
//!    protobuf and gRPC codes.
//! 3. [`volume`] runs the use case. It locks the target, asks [`policy`] whether this pod may
//!    mount this model, and resolves the prefix to a revision: the exact set of object versions.
//! 4. [`resolve`] lists the bucket for that, through the trait of [`source`]. [`oci`] implements
//!    it, the only code that knows Oracle: endpoints, signatures, credentials. Its requests go
//!    through `transport`, the only code that opens connections.
//! 5. [`cache`] looks the revision up. On a miss it reserves space, evicts models that no
//!    volume uses, and starts a flight, which all callers for the same revision share. The flight
//!    outlives the call: when kubelet's deadline is near, the call ends with the progress,
//!    and kubelet's next call joins the flight.
//! 6. [`download`] turns one object into one file: ranges, retries, a journal, checksums. `fair`
//!    shares its connections between tenants.
//! 7. Once all blobs are there, `cache` builds the tree of hard links, renames it into place,
//!    and writes a lease for the volume.
//! 8. [`mount`] binds the tree to the pod's target, read-only, and reads mountinfo to prove it.
//! 9. [`events`] reports the outcome to the pod's users, [`metrics`] counts it, and `csi` maps the
//!    [`ErrorKind`] of a failure to a gRPC code.
//!
//! `NodeUnpublishVolume` goes the other way: unmount, remove the target, drop the lease. The
//! model stays in the cache until `cache` needs its space.
//!
//! # Other entrances
//!
//! - [`manage`] runs the administrator's commands on the cache and the prefetch list; they
//!   arrive through [`admin`], which also serves `/metrics`, `/healthz` and `/readyz`.
//! - [`node`] removes the startup taint and labels the node with its models, through the
//!   API client of [`kubernetes`].
//! - [`fleet`] lists all nodes with what their labels and annotations say.
//! - [`telemetry`] exports traces of publishes to an OpenTelemetry collector.
//! - [`fetch`] downloads a model into a plain directory, without a cluster.
//! - [`browse`] lists the models under a prefix, and what is wrong with each.
//! - [`push`] uploads one, through the sink of [`source`].
//! - [`doctor`] looks at everything that a model needs, and says what to mend.
//!
//! # Errors
//!
//! Every module returns the same [`Error`]: a kind that a caller can act on, and one sentence
//! that says what failed, on what, why, and what to do. [`abort_point`] marks the steps at which
//! the crash tests stop the process.

pub mod admin;
pub mod browse;
pub mod cli;
pub mod config;
pub mod csi;
pub mod doctor;
pub mod events;
pub mod fetch;
pub mod fleet;
pub mod kubernetes;
pub mod manage;
pub mod node;
pub mod policy;
pub mod push;
pub mod resolve;
pub mod socket;
pub mod telemetry;
pub mod volume;
pub mod weights;

// The floors below, each a crate: `crate::cache` means the same here as in its own crate.
pub use oci_model_csi_foundation::{
    Error, ErrorKind, Result, abort_point, error, flight, metrics, source,
};
pub use oci_model_csi_model_cache::{cache, download, model, mount};
pub use oci_model_csi_object_storage::oci;

use oci_model_csi_foundation::{
    blocking, http_error, log_throttle, random, redact, retry, sync, text, trace,
};
use oci_model_csi_md5_lanes::md5_lanes;
use oci_model_csi_model_cache::{budget, fair};
use oci_model_csi_object_storage::transport;
