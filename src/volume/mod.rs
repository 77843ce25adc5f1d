//! The use cases: publish, unpublish, stats, and the provisioning of volumes.
//! Each reads as the contract tells it; nothing here knows gRPC or Oracle.

mod calls;
mod claims;
mod event_recorder;
mod permit;
mod provision;
mod publish;
mod records;
mod scrub;
mod show;
mod targets;
mod template;

use std::path::PathBuf;

pub use claims::ClaimReader;
pub use provision::{Capacity, NewVolume, ProvisionRequest, Provisioner, is_volume_id};
pub use publish::Volumes;

use crate::model::{ModelRequest, PodIdentity, PodTokens, RequestDigest};
use crate::mount::BindOptions;

/// What makes two publishes the same: known before anything else of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishKey {
    /// CSI volume id.
    pub volume_id: String,
    /// Absolute path below kubelet's directory of pods, free of symbolic links.
    pub target: PathBuf,
    /// Digest of our own keys and the mount options, by what they mean.
    pub digest: RequestDigest,
    /// The same of the keys as they were written, which leases of earlier versions have.
    pub as_written: RequestDigest,
}

/// A NodePublishVolume, parsed: every field is of a type that was validated.
#[derive(Debug, Clone)]
pub struct PublishRequest {
    /// Which volume, where, and which request.
    pub key: PublishKey,
    /// What to show.
    pub model: ModelRequest,
    /// The pod, when kubelet's word on it can be trusted.
    pub pod: Option<PodIdentity>,
    /// The tokens of the pod's service account, where kubelet sends them.
    pub tokens: Option<PodTokens>,
    /// Mount options beyond read-only, nosuid, nodev.
    pub options: BindOptions,
}

/// NodeGetVolumeStats: what the model takes, from its manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeStats {
    /// Sum of the files' sizes.
    pub bytes: u64,
    /// Files and directories.
    pub inodes: u64,
    /// What is wrong with the volume, if something is.
    pub abnormal: Option<String>,
}
