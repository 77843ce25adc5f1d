//! Every name on disk: no other file spells one, and `tests/it/architecture.rs` compares.
//!
//! To rename something, change it here, raise [`VERSION`], and keep the former name in
//! [`FORMER_DIRECTORIES`] or [`FORMER_TREES`]. Caches of the older layout are then set
//! aside at the next start, and the mounts of running pods in them are still recognized.

use std::ffi::OsStr;
use std::fmt;
use std::path::{Component, Path, PathBuf};

use crate::model::{BlobId, ModelKey, RequestDigest};

/// The content of [`RootFile::Version`].
pub(in crate::cache) const VERSION: &str = "oci-model-csi cache 1\n";

/// The start of [`VERSION`] in every layout.
pub(in crate::cache) const VERSION_STEM: &str = "oci-model-csi cache ";

/// Names that directories had in older layouts.
const FORMER_DIRECTORIES: &[(Directory, &str)] = &[];

/// Names that [`ModelFile::Tree`] had in older layouts.
const FORMER_TREES: &[&str] = &[];

/// The start of the name under which an older layout is set aside.
const SET_ASIDE: &str = "old-layout-";

/// The start of the name of a blob outside `blobs/`.
const BLOB: &str = "blob-";

/// The start of the name of a model that is being built.
const BUILDING: &str = "model-";

const RECORD: &str = ".json";
const UNSYNCED_RECORD: &str = ".unsynced";
const LEASE: &str = ".json";
const PART: &str = ".part";
const JOURNAL: &str = ".journal";
const COPY: &str = ".import";
const UNFINISHED: &str = ".tmp";

/// A file of the cache directory itself. These names are the same in every layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cache) enum RootFile {
    /// Names the driver and the layout.
    Version,
    /// Locked by the process that owns the cache.
    Lock,
    /// Its modification time is that of the last scrub.
    Scrubbed,
    /// The configuration that was last in force.
    ConfigInForce,
    /// The socket for commands, which the driver's caller binds.
    AdminSocket,
}

impl RootFile {
    pub(in crate::cache) fn name(self) -> &'static str {
        match self {
            Self::Version => "VERSION",
            Self::Lock => "lock",
            Self::Scrubbed => "scrubbed",
            Self::ConfigInForce => "config-in-force.json",
            Self::AdminSocket => "admin.sock",
        }
    }

    /// Whether a directory that is not a cache yet may contain this name: files of a fresh
    /// file system, and of a start before it writes VERSION. They stay when an older layout
    /// is set aside.
    pub(in crate::cache) fn may_precede_version(name: &str) -> bool {
        let own = [Self::Lock, Self::ConfigInForce, Self::AdminSocket];
        // The files that binding the socket makes beside it.
        let beside = name.strip_prefix('.').and_then(|n| n.strip_prefix(Self::AdminSocket.name()));
        own.iter().any(|file| file.name() == name)
            || matches!(beside, Some(".lock" | ".new"))
            || name == "lost+found"
            || is_unfinished(name)
    }
}

/// A directory of the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cache) enum Directory {
    /// Verified object versions, in directories by the start of their ids.
    Blobs,
    /// Which blob has this name, size and MD5.
    Content,
    /// Complete models.
    Models,
    /// The newest revision of each request.
    Requests,
    /// Downloads, copies of imports, and models being built.
    Staging,
    /// The volumes that use models.
    Leases,
    /// Models that stay even when unused.
    Pins,
    /// What is damaged.
    Quarantine,
    /// What was evicted, until it is deleted.
    Trash,
}

impl Directory {
    pub(in crate::cache) const ALL: [Self; 9] = [
        Self::Blobs,
        Self::Content,
        Self::Models,
        Self::Requests,
        Self::Staging,
        Self::Leases,
        Self::Pins,
        Self::Quarantine,
        Self::Trash,
    ];

    pub(in crate::cache) fn name(self) -> &'static str {
        match self {
            Self::Blobs => "blobs",
            Self::Content => "content",
            Self::Models => "models",
            Self::Requests => "requests",
            Self::Staging => "staging",
            Self::Leases => "leases",
            Self::Pins => "pins",
            Self::Quarantine => "quarantine",
            Self::Trash => "trash",
        }
    }

    /// Its names in this layout and in older ones.
    pub(in crate::cache) fn names(self) -> impl Iterator<Item = &'static str> {
        let former = FORMER_DIRECTORIES.iter().filter(move |(directory, _)| *directory == self);
        std::iter::once(self.name()).chain(former.map(|(_, name)| *name))
    }

    fn parse(name: &OsStr) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.names().any(|own| name == own))
    }
}

/// A file or directory of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cache) enum ModelFile {
    Manifest,
    /// Replaces the manifest for most uses.
    Summary,
    /// The marker of a model that survives a power loss.
    Durable,
    /// The marker of a model that a newer revision of its request replaced.
    Superseded,
    /// What is bound into pods.
    Tree,
}

impl ModelFile {
    pub(in crate::cache) fn name(self) -> &'static str {
        match self {
            Self::Manifest => "manifest.json",
            Self::Summary => "summary.json",
            Self::Durable => "durable",
            Self::Superseded => "superseded",
            Self::Tree => "tree",
        }
    }

    /// Its path in a model's directory, wherever that was moved.
    pub(in crate::cache) fn of(self, model: &Path) -> PathBuf {
        model.join(self.name())
    }
}

/// A name in a directory of `blobs/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cache) enum BlobFile {
    Blob,
    /// The durable record of a blob.
    Record,
    /// The record of a blob that is not durable yet.
    UnsyncedRecord,
}

impl BlobFile {
    pub(in crate::cache) fn name(self, id: &BlobId) -> String {
        format!("{id}{}", self.suffix())
    }

    pub(in crate::cache) fn parse(name: &str) -> Option<(Self, BlobId)> {
        [Self::Record, Self::UnsyncedRecord, Self::Blob]
            .into_iter()
            .find_map(|file| Some((file, BlobId::parse(name.strip_suffix(file.suffix())?)?)))
    }

    fn suffix(self) -> &'static str {
        match self {
            Self::Blob => "",
            Self::Record => RECORD,
            Self::UnsyncedRecord => UNSYNCED_RECORD,
        }
    }
}

/// The directory of `blobs/` for a blob.
pub(in crate::cache) fn fan(id: &BlobId) -> &str {
    &id.as_str()[..2]
}

/// Whether a directory of `blobs/` may have this name.
pub(in crate::cache) fn is_fan(name: &str) -> bool {
    name.len() == 2 && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// A name in `staging/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cache) enum StagingFile {
    /// The bytes of a download.
    Part(BlobId),
    /// The journal of a download.
    Journal(BlobId),
    /// A copy that an import makes; several of a blob may be in progress.
    Copy(BlobId, u64),
    /// A model that is being built.
    Building(ModelKey),
}

impl StagingFile {
    pub(in crate::cache) fn parse(name: &str) -> Option<Self> {
        if let Some(key) = name.strip_prefix(BUILDING) {
            return ModelKey::parse(key).map(Self::Building);
        }
        if let Some(id) = name.strip_suffix(PART) {
            return BlobId::parse(id).map(Self::Part);
        }
        if let Some(id) = name.strip_suffix(JOURNAL) {
            return BlobId::parse(id).map(Self::Journal);
        }
        let (id, number) = name.strip_suffix(COPY)?.split_once('.')?;
        Some(Self::Copy(BlobId::parse(id)?, number.parse().ok()?))
    }

    /// The blob that this file will become.
    pub(in crate::cache) fn future_blob(self) -> Option<BlobId> {
        match self {
            Self::Part(id) | Self::Copy(id, _) => Some(id),
            Self::Journal(_) | Self::Building(_) => None,
        }
    }
}

impl fmt::Display for StagingFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Part(id) => write!(f, "{id}{PART}"),
            Self::Journal(id) => write!(f, "{id}{JOURNAL}"),
            Self::Copy(id, number) => write!(f, "{id}.{number}{COPY}"),
            Self::Building(key) => write!(f, "{BUILDING}{key}"),
        }
    }
}

/// A name in `quarantine/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cache) enum QuarantineFile {
    Blob(BlobId),
    /// A model, moved there with [`numbered`].
    Model(ModelKey),
}

impl QuarantineFile {
    pub(in crate::cache) fn parse(name: &str) -> Option<Self> {
        if let Some(id) = name.strip_prefix(BLOB) {
            return BlobId::parse(id).map(Self::Blob);
        }
        let (key, number) = name.rsplit_once('.')?;
        number.parse::<u64>().ok()?;
        ModelKey::parse(key).map(Self::Model)
    }
}

/// The name of a blob in `quarantine/`.
pub(in crate::cache) fn quarantined_blob(id: &BlobId) -> String {
    format!("{BLOB}{id}")
}

/// The name of a blob in `trash/`.
pub(in crate::cache) fn trashed_blob(id: &BlobId, number: u64) -> String {
    format!("{BLOB}{id}.{}.{number}", std::process::id())
}

/// The name in `trash/` of a file from `staging/`.
pub(in crate::cache) fn trashed_staging(name: &str) -> String {
    format!("{}-{name}", Directory::Staging.name())
}

/// Whether this is the name of a blob in `quarantine/` or `trash/`.
pub(in crate::cache) fn is_blob_aside(name: &str) -> bool {
    name.starts_with(BLOB)
}

/// A name in `quarantine/` or `trash/` of something that is called `name` elsewhere.
pub(in crate::cache) fn numbered(name: &str, number: usize) -> String {
    format!("{name}.{number}")
}

/// The name of a lease.
pub(in crate::cache) fn lease(digest: &RequestDigest) -> String {
    format!("{digest}{LEASE}")
}

/// Whether a lease may have this name.
pub(in crate::cache) fn is_lease(name: &str) -> bool {
    name.strip_suffix(LEASE).is_some_and(|digest| RequestDigest::parse(digest).is_some())
}

/// The name under which a cache of an older layout is set aside.
pub(in crate::cache) fn set_aside(layout: u32, number: usize) -> String {
    format!("{SET_ASIDE}{layout}.{number}")
}

/// Whether a set-aside cache may have this name.
pub(in crate::cache) fn is_set_aside(name: &str) -> bool {
    name.starts_with(SET_ASIDE)
}

/// The name of a file that will be called `name` when it is written.
pub(in crate::cache) fn unfinished(name: &str, number: u64) -> String {
    format!(".{name}.{}.{number}{UNFINISHED}", std::process::id())
}

/// Whether [`unfinished`] makes such names.
pub(in crate::cache) fn is_unfinished(name: &str) -> bool {
    let Some(rest) = name.strip_prefix('.').and_then(|name| name.strip_suffix(UNFINISHED)) else {
        return false;
    };
    // The process, and a number.
    let mut parts = rest.rsplitn(3, '.');
    let mut is_number = || parts.next().is_some_and(|part| part.parse::<u64>().is_ok());
    is_number() && is_number() && parts.next().is_some()
}

/// A path in an entry of one of the directories, as a mount shows it: in this cache, or
/// in a set-aside one.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::cache) struct EntryPath<'a> {
    is_set_aside: bool,
    directory: Directory,
    entry: &'a OsStr,
    below: &'a Path,
}

impl<'a> EntryPath<'a> {
    /// Parses a path below the cache directory.
    pub(in crate::cache) fn parse(path: &'a Path) -> Option<Self> {
        let mut parts = path.components();
        let mut next = || match parts.next()? {
            Component::Normal(name) => Some(name),
            _ => None,
        };
        let mut first = next()?;
        let is_set_aside = is_set_aside(&first.to_string_lossy());
        if is_set_aside {
            first = next()?;
        }
        let (directory, entry) = (Directory::parse(first)?, next()?);
        Some(Self { is_set_aside, directory, entry, below: parts.as_path() })
    }

    /// Whether it is the tree of a model: present, evicted or damaged.
    pub(in crate::cache) fn is_tree(&self) -> bool {
        let mut names = std::iter::once(ModelFile::Tree.name()).chain(FORMER_TREES.iter().copied());
        matches!(self.directory, Directory::Models | Directory::Trash | Directory::Quarantine)
            && names.any(|tree| self.below == Path::new(tree))
    }

    /// The model of this cache that it belongs to.
    pub(in crate::cache) fn model(&self) -> Option<ModelKey> {
        ModelKey::parse(self.entry_of(Directory::Models)?.to_str()?)
    }

    /// Its entry in this directory of this cache.
    pub(in crate::cache) fn entry_of(&self, directory: Directory) -> Option<&'a OsStr> {
        (!self.is_set_aside && self.directory == directory).then_some(self.entry)
    }
}

#[cfg(test)]
mod tests;
