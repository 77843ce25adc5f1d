//! What the commands answer: on the wire, and with `--output json`.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::prefetch_queue::PrefetchEntry;
use crate::cache::{
    Collected, Damage, Imported, LeaseRecord, ModelReport, ModelState, Phase, SetAside, Usage,
    Verification,
};
use crate::error::{Error, ErrorKind};
use crate::model::{BlobId, ModelKey, Revision, node_label};

/// The answer to a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum CommandAnswer {
    /// Of `ls`.
    Ls(CacheListing),
    /// Of `inspect`.
    Inspect(Vec<ModelEntry>),
    /// Of `verify`.
    Verify(VerifyReport),
    /// Of `gc`.
    Gc(Collection),
    /// Of `pin` and `unpin`.
    Pin(Pins),
    /// Of `prefetch`, in the order in which they were asked for.
    Prefetch(Vec<PrefetchResult>),
    /// Of `import`.
    Import(Import),
    /// Of `purge`.
    Purge(Removal),
}

/// The cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CacheListing {
    /// What it takes.
    pub cache: CacheState,
    /// Its models, most recently used first.
    pub models: Vec<ModelEntry>,
    /// Caches of older layouts that an upgrade set aside.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub set_aside: Vec<SetAsideEntry>,
    /// What the configuration has fetched ahead, in its order.
    pub prefetch: Vec<PrefetchEntry>,
}

/// A cache of an older layout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SetAsideEntry {
    /// Its directory in the cache.
    pub name: String,
    /// What it takes on the disk.
    pub bytes: u64,
    /// Where something of it is mounted.
    pub mounts: Vec<PathBuf>,
}

/// What the cache takes, in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CacheState {
    /// Its directory.
    pub directory: PathBuf,
    /// Everything in it.
    pub total_bytes: u64,
    /// Inodes of everything.
    pub inodes: u64,
    /// What could be evicted now.
    pub evictable_bytes: u64,
    /// Downloads that run or were interrupted.
    pub staging_bytes: u64,
    /// Evicted, and not deleted yet.
    pub trash_bytes: u64,
    /// Damaged, and kept for people to look at.
    pub quarantine_bytes: u64,
    /// Caches of older layouts.
    #[serde(default)]
    pub set_aside_bytes: u64,
    /// What it may take at most.
    pub limit_bytes: u64,
    /// Free on its file system.
    pub free_bytes: u64,
    /// What has to stay free there.
    pub min_free_bytes: u64,
}

/// One model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ModelEntry {
    /// Its key.
    pub key: ModelKey,
    /// `oci://BUCKET@NAMESPACE/PREFIX`; `None` when that cannot be told.
    pub uri: Option<String>,
    /// Region or endpoint.
    pub location: Option<String>,
    /// Its revision.
    pub revision: Option<Revision>,
    /// The part of the node's label for it that stands behind the driver's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_label: Option<String>,
    /// With whom it is shared: empty for the whole cluster.
    pub scope: String,
    /// `complete`, `unchecked`, `downloading`, `waiting` or `damaged`.
    pub state: String,
    /// Bytes that are there, while it is on its way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub done_bytes: Option<u64>,
    /// Bytes per second, while it is on its way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<u64>,
    /// Bytes of its files.
    pub bytes: u64,
    /// Bytes that it takes on the disk, shared ones included.
    pub allocated_bytes: u64,
    /// Of those, bytes that other models have too.
    pub shared_bytes: u64,
    /// When a pod last began or ended to use it, RFC 3339.
    pub last_used: String,
    /// Whether it stays although nobody uses it.
    pub pinned: bool,
    /// Who holds it.
    pub holders: Vec<HolderEntry>,
    /// Mount points of it that no volume of ours explains.
    pub mounts: Vec<PathBuf>,
    /// Its files; with `inspect` only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<FileEntry>,
}

/// A volume that holds a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HolderEntry {
    /// `namespace/name`, when kubelet said it.
    pub pod: Option<String>,
    /// CSI volume id.
    pub volume_id: String,
    /// Where it is mounted.
    pub target: PathBuf,
    /// Since when, RFC 3339.
    pub since: String,
}

/// A file of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FileEntry {
    /// Path below the volume's root.
    pub path: String,
    /// Size in bytes.
    pub bytes: u64,
    /// ETag of the object version.
    pub etag: String,
    /// Where its bytes are, in `blobs/`.
    pub blob: BlobId,
}

/// What a verification found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VerifyReport {
    /// Models whose trees were compared with their manifests.
    pub models: usize,
    /// Blobs that were read.
    pub blobs: usize,
    /// Bytes that were read.
    pub bytes: u64,
    /// What was wrong; it was put aside.
    pub damaged: Vec<DamageEntry>,
}

/// Something that was wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DamageEntry {
    /// The object, or the path in the model's tree.
    pub what: String,
    /// How it was noticed.
    pub why: String,
    /// URIs of the models that had it.
    pub models: Vec<String>,
    /// The volumes that show it.
    pub volumes: Vec<HolderEntry>,
}

/// What a garbage collection removed, or would remove.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Collection {
    /// Nothing was done.
    pub dry_run: bool,
    /// Which models, in their order.
    pub models: Vec<RemovedModel>,
    /// Bytes that become free.
    pub bytes: u64,
    /// Inodes that become free.
    pub inodes: u64,
    /// Whether that is as much as was asked for.
    pub reached: bool,
}

/// A model that goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RemovedModel {
    /// Its key.
    pub key: ModelKey,
    /// Its URI, if known.
    pub uri: Option<String>,
    /// When it was used last, RFC 3339.
    pub last_used: String,
}

/// Models that were pinned or unpinned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pins {
    /// Whether they stay now.
    pub pinned: bool,
    /// Which.
    pub keys: Vec<ModelKey>,
}

/// What became of one prefetch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PrefetchResult {
    /// As it was asked for.
    pub uri: String,
    /// `cached`, `downloaded`, `started` or `failed`.
    pub result: String,
    /// Its key.
    pub key: Option<ModelKey>,
    /// Its revision.
    pub revision: Option<Revision>,
    /// Bytes of its files.
    pub bytes: u64,
    /// The meaning of the failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<ErrorKind>,
    /// The failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What should be looked at in the model.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// What became of an import.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Import {
    /// The model that stands in the cache now.
    pub key: ModelKey,
    /// Its revision.
    pub revision: Revision,
    /// How it came there.
    #[serde(flatten)]
    pub imported: Imported,
    /// What should be looked at in the model.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// What a purge removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Removal {
    /// Models.
    pub models: usize,
    /// Bytes.
    pub bytes: u64,
}

impl CommandAnswer {
    /// The models that stand in the cache because of the command.
    pub fn brought_in(&self) -> Vec<&ModelKey> {
        match self {
            Self::Prefetch(models) => models.iter().filter_map(|one| one.key.as_ref()).collect(),
            Self::Import(import) => vec![&import.key],
            _ => Vec::new(),
        }
    }
}

impl PrefetchResult {
    pub(super) fn failed(uri: &str, error: &Error) -> Self {
        Self {
            uri: uri.to_owned(),
            result: "failed".to_owned(),
            key: None,
            revision: None,
            bytes: 0,
            kind: Some(error.kind()),
            error: Some(error.message().to_owned()),
            warnings: Vec::new(),
        }
    }
}

impl From<SetAside> for SetAsideEntry {
    fn from(aside: SetAside) -> Self {
        let SetAside { name, bytes, mounts } = aside;
        Self { name, bytes, mounts }
    }
}

impl CacheState {
    pub(super) fn new(directory: PathBuf, usage: &Usage) -> Self {
        Self {
            directory,
            total_bytes: usage.total,
            inodes: usage.inodes,
            evictable_bytes: usage.evictable,
            staging_bytes: usage.staging,
            trash_bytes: usage.trash,
            quarantine_bytes: usage.quarantine,
            set_aside_bytes: usage.set_aside,
            limit_bytes: usage.limit,
            free_bytes: usage.free,
            min_free_bytes: usage.min_free,
        }
    }
}

impl ModelEntry {
    pub(super) fn new(report: &ModelReport, with_files: bool) -> Self {
        let summary = report.summary.as_deref();
        let now = match &report.state {
            ModelState::Arriving(progress) => Some(progress.snapshot()),
            ModelState::Complete | ModelState::Unsynced | ModelState::Damaged => None,
        };
        let state = match &report.state {
            ModelState::Complete => "complete",
            ModelState::Unsynced => "unchecked",
            ModelState::Damaged => "damaged",
            ModelState::Arriving(_) => match now.map(|now| now.phase) {
                Some(Phase::Waiting | Phase::Yielded | Phase::WaitingForSpace) => "waiting",
                _ => "downloading",
            },
        };
        let files = if with_files { report.files() } else { Vec::new() };
        Self {
            key: report.key.clone(),
            uri: summary.map(|summary| summary.source.to_string()),
            location: summary.map(|summary| summary.source.location.clone()),
            revision: summary.map(|summary| summary.revision.clone()),
            node_label: summary.map(|summary| node_label(&summary.source)),
            scope: summary.map(|summary| summary.scope.clone()).unwrap_or_default(),
            state: state.to_owned(),
            done_bytes: now.map(|now| now.done),
            bytes_per_second: now.and_then(|now| now.rate),
            bytes: summary.map_or(report.bytes, |summary| summary.bytes),
            allocated_bytes: report.allocated,
            shared_bytes: report.shared,
            last_used: time_text(report.last_used),
            pinned: report.pinned,
            holders: report.holders.iter().map(HolderEntry::new).collect(),
            mounts: report.mounts.clone(),
            files: files
                .into_iter()
                .map(|file| FileEntry {
                    path: file.path,
                    bytes: file.size,
                    etag: file.etag,
                    blob: file.blob,
                })
                .collect(),
        }
    }
}

impl HolderEntry {
    fn new(lease: &LeaseRecord) -> Self {
        Self {
            pod: lease.pod.clone(),
            volume_id: lease.volume_id.clone(),
            target: lease.target.clone(),
            since: time_text(SystemTime::UNIX_EPOCH + Duration::from_secs(lease.since)),
        }
    }
}

impl From<Verification> for VerifyReport {
    fn from(found: Verification) -> Self {
        let damaged = found.damaged.into_iter().map(|Damage { what, why, models, volumes }| {
            let models = models.iter().map(|manifest| manifest.source.to_string()).collect();
            DamageEntry {
                what,
                why,
                models,
                volumes: volumes.iter().map(HolderEntry::new).collect(),
            }
        });
        Self {
            models: found.models,
            blobs: found.blobs,
            bytes: found.bytes,
            damaged: damaged.collect(),
        }
    }
}

impl Collection {
    pub(super) fn new(dry_run: bool, collected: Collected) -> Self {
        let models = collected.models.into_iter().map(|(key, uri, last_used)| RemovedModel {
            key,
            uri,
            last_used: time_text(last_used),
        });
        Self {
            dry_run,
            models: models.collect(),
            bytes: collected.bytes,
            inodes: collected.inodes,
            reached: collected.reached,
        }
    }
}

fn time_text(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}
