//! The answers of the commands, on the socket and with `--output json`.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::prefetch_list::PrefetchEntry;
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
    /// Of `prefetch`, in the order of the request.
    Prefetch(Vec<PrefetchResult>),
    /// Of `import`.
    Import(Import),
    /// Of `purge`.
    Purge(Removal),
}

/// The cache and its models.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CacheListing {
    /// Its disk usage.
    pub cache: CacheState,
    /// Its models, most recently used first.
    pub models: Vec<ModelEntry>,
    /// Caches of older layouts that an upgrade set aside.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub set_aside: Vec<SetAsideEntry>,
    /// The prefetch list, in the order of the configuration.
    pub prefetch: Vec<PrefetchEntry>,
}

/// A cache of an older layout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SetAsideEntry {
    /// Its directory in the cache.
    pub name: String,
    /// Its size on the disk.
    pub bytes: u64,
    /// Mount points of its models.
    pub mounts: Vec<PathBuf>,
}

/// Disk usage of the cache, in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CacheState {
    /// Its directory.
    pub directory: PathBuf,
    /// Size of everything in it.
    pub total_bytes: u64,
    /// Inodes in use.
    pub inodes: u64,
    /// Size of what could be evicted now.
    pub evictable_bytes: u64,
    /// Size of running and interrupted downloads.
    pub staging_bytes: u64,
    /// Size of what is evicted and not deleted yet.
    pub trash_bytes: u64,
    /// Size of damaged files, which are kept for analysis.
    pub quarantine_bytes: u64,
    /// Size of set-aside caches.
    #[serde(default)]
    pub set_aside_bytes: u64,
    /// Its maximum size.
    pub limit_bytes: u64,
    /// Free space on its file system.
    pub free_bytes: u64,
    /// Free space to keep there.
    pub min_free_bytes: u64,
}

/// One model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ModelEntry {
    /// Its key.
    pub key: ModelKey,
    /// `oci://BUCKET@NAMESPACE/PREFIX`; `None` if unknown.
    pub uri: Option<String>,
    /// Region or endpoint.
    pub location: Option<String>,
    /// Its revision.
    pub revision: Option<Revision>,
    /// The name part of its node label, after the driver's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_label: Option<String>,
    /// Its scope; empty if the whole cluster shares it.
    pub scope: String,
    /// `complete`, `unchecked`, `downloading`, `waiting` or `damaged`.
    pub state: String,
    /// Bytes downloaded so far, during its download.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub done_bytes: Option<u64>,
    /// Bytes per second, during its download.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<u64>,
    /// Total size of its files.
    pub bytes: u64,
    /// Its size on the disk, including shared blobs.
    pub allocated_bytes: u64,
    /// Size of its blobs that other models share.
    pub shared_bytes: u64,
    /// When a pod last started or stopped using it, RFC 3339.
    pub last_used: String,
    /// Whether it is pinned.
    pub pinned: bool,
    /// Whether it is one of the newest revisions that `keepRevisions` keeps.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub kept: bool,
    /// The volumes that hold it.
    pub holders: Vec<HolderEntry>,
    /// Mount points that belong to no volume of this driver.
    pub mounts: Vec<PathBuf>,
    /// Its files; only with `inspect`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<FileEntry>,
}

/// A volume that holds a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HolderEntry {
    /// `namespace/name`, if kubelet sent them.
    pub pod: Option<String>,
    /// CSI volume id.
    pub volume_id: String,
    /// Its mount point.
    pub target: PathBuf,
    /// When it was published, RFC 3339.
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
    /// The blob in `blobs/` with its content.
    pub blob: BlobId,
}

/// Result of a verification.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VerifyReport {
    /// Models whose trees were compared with their manifests.
    pub models: usize,
    /// Blobs that were read.
    pub blobs: usize,
    /// Bytes that were read.
    pub bytes: u64,
    /// Damaged content; it was moved to the quarantine.
    pub damaged: Vec<DamageEntry>,
}

/// One damaged object or file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DamageEntry {
    /// The object, or the path in the model's tree.
    pub what: String,
    /// How the damage was detected.
    pub why: String,
    /// URIs of the affected models.
    pub models: Vec<String>,
    /// The affected volumes.
    pub volumes: Vec<HolderEntry>,
}

/// Result of a garbage collection, or of its dry run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Collection {
    /// Whether nothing was removed.
    pub dry_run: bool,
    /// The models, in the order of their removal.
    pub models: Vec<RemovedModel>,
    /// Bytes freed.
    pub bytes: u64,
    /// Inodes freed.
    pub inodes: u64,
    /// Whether the requested amount was reached.
    pub reached: bool,
}

/// A removed model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RemovedModel {
    /// Its key.
    pub key: ModelKey,
    /// Its URI, if known.
    pub uri: Option<String>,
    /// When it was last used, RFC 3339.
    pub last_used: String,
}

/// Models that were pinned or unpinned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pins {
    /// Whether they are pinned now.
    pub pinned: bool,
    /// The keys of the models.
    pub keys: Vec<ModelKey>,
}

/// Result of one prefetch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PrefetchResult {
    /// The URI, as requested.
    pub uri: String,
    /// `cached`, `downloaded`, `started` or `failed`.
    pub result: String,
    /// Its key.
    pub key: Option<ModelKey>,
    /// Its revision.
    pub revision: Option<Revision>,
    /// Total size of its files.
    pub bytes: u64,
    /// The kind of the failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<ErrorKind>,
    /// The message of the failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Warnings about the model.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// Result of an import.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Import {
    /// The model that is in the cache now.
    pub key: ModelKey,
    /// Its revision.
    pub revision: Revision,
    /// How its files were obtained.
    #[serde(flatten)]
    pub imported: Imported,
    /// Warnings about the model.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// Result of a purge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Removal {
    /// Number of removed models.
    pub models: usize,
    /// Bytes freed.
    pub bytes: u64,
}

impl CommandAnswer {
    /// The models that the command added to the cache, or found in it.
    pub fn added_models(&self) -> Vec<&ModelKey> {
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
            ModelState::Complete | ModelState::Unchecked | ModelState::Damaged => None,
        };
        let state = match &report.state {
            ModelState::Complete => "complete",
            ModelState::Unchecked => "unchecked",
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
            kept: report.kept,
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
