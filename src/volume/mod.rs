//! The use cases: publish, unpublish, stats, and the provisioning of volumes. They
//! follow the contract and know neither gRPC nor Oracle.

mod calls;
mod claims;
mod ensure;
mod event_recorder;
mod mounting;
mod page_warmer;
mod permit;
mod provision;
mod publish;
mod records;
mod scrub;
mod step_times;
mod targets;
mod template;

use std::path::PathBuf;

pub use claims::ClaimReader;
pub use page_warmer::{PageWarmer, WarmPageCache};
pub use permit::is_for_every_pod;
pub use provision::{Capacity, NewVolume, ProvisionRequest, Provisioner, is_volume_id};
pub use publish::{VolumeParts, Volumes};

use crate::error::Result;
use crate::model::{ModelRequest, PodIdentity, PodTokens, RequestDigest};
use crate::mount::BindOptions;
use crate::source::PodSecret;

/// A NodePublishVolume, parsed once.
#[derive(Debug, Clone)]
pub struct IncomingPublish {
    /// The volume, its target, and the digest of the request.
    pub key: PublishKey,
    /// The pod, if kubelet's information on it can be trusted.
    pub pod: Option<PodIdentity>,
    /// What is asked for, or why it is refused. A volume that is mounted already needs
    /// only the key.
    pub request: Result<PublishRequest>,
}

/// The identity of a publish: what makes two publishes the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishKey {
    /// CSI volume id.
    pub volume_id: String,
    /// Absolute path below kubelet's directory of pods, without symbolic links.
    pub target: PathBuf,
    /// Digest of the driver's own keys and the mount options, by their meaning.
    pub digest: RequestDigest,
    /// The same digest of the keys as written, which leases of earlier versions have.
    pub as_written: RequestDigest,
}

/// What a publish asks for: every field has a validated type.
#[derive(Debug, Clone)]
pub struct PublishRequest {
    /// The model to mount.
    pub model: ModelRequest,
    /// The tokens of the pod's service account, if kubelet sends them.
    pub tokens: Option<PodTokens>,
    /// The Secret of the volume, if it has one.
    pub secret: Option<PodSecret>,
    /// Mount options beyond read-only, nosuid, nodev.
    pub options: BindOptions,
}

/// The answer to NodeGetVolumeStats, from the model's manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeStats {
    /// Sum of the files' sizes.
    pub bytes: u64,
    /// Files and directories.
    pub inodes: u64,
    /// The volume's problem, if it has one.
    pub abnormal: Option<String>,
}
