//! All paths in the cache. [`names`] has the names.
//!
//! ```text
//! <cache>/
//!   VERSION                 names the driver and the layout
//!   lock                    locked by the process that owns the cache
//!   scrubbed                empty; its modification time is that of the last scrub
//!   config-in-force.json    the configuration in force, whose rules must not be lost by accident
//!   blobs/<2>/<id>          one verified object version, 0444
//!   blobs/<2>/<id>.json     its size, CRC-32C and check; durable
//!   blobs/<2>/<id>.unsynced the same, while not yet durable
//!   content/<id>            which blob has this name, size and MD5
//!   models/<key>/           manifest.json, its summary.json, tree/ of hard links into blobs/,
//!                           `durable` once it is, `superseded` once a request has a newer one
//!   requests/<digest>       the newest revision resolved for a request, and those before it
//!   staging/                downloads (.part, .journal) and models being built
//!   leases/<digest>.json    one per (volume id, target path)
//!   pins/<key>              a model that stays even when unused
//!   quarantine/             damaged blobs, and the models that contain them
//!   trash/                  evicted files, until they are deleted
//! ```

pub(in crate::cache) mod names;

use std::path::{Path, PathBuf};

use self::names::{BlobFile, Directory, ModelFile, RootFile, StagingFile};
use super::files;
use crate::error::Result;
use crate::model::{BlobId, ModelKey, RequestDigest};

/// The paths of one cache directory.
#[derive(Debug, Clone)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// The layout of the cache in `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The cache directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn file(&self, file: RootFile) -> PathBuf {
        self.root.join(file.name())
    }

    /// The file that makes a directory a cache.
    pub fn version(&self) -> PathBuf {
        self.file(RootFile::Version)
    }

    pub(in crate::cache) fn lock(&self) -> PathBuf {
        self.file(RootFile::Lock)
    }

    pub(in crate::cache) fn scrubbed(&self) -> PathBuf {
        self.file(RootFile::Scrubbed)
    }

    pub(in crate::cache) fn config_in_force(&self) -> PathBuf {
        self.file(RootFile::ConfigInForce)
    }

    /// The socket for commands, unless the administrator chose another one.
    pub fn admin_socket(&self) -> PathBuf {
        self.file(RootFile::AdminSocket)
    }

    pub(in crate::cache) fn directory(&self, directory: Directory) -> PathBuf {
        self.root.join(directory.name())
    }

    /// The file of one verified object version.
    pub fn blob(&self, id: &BlobId) -> PathBuf {
        self.blob_directory(id).join(BlobFile::Blob.name(id))
    }

    /// The directories of `blobs/`. Blocks.
    pub(in crate::cache) fn fans(&self) -> Result<Vec<PathBuf>> {
        let blobs = self.directory(Directory::Blobs);
        let names = files::names(&blobs)?.into_iter().filter(|name| names::is_fan(name));
        Ok(names.map(|name| blobs.join(name)).collect())
    }

    pub(in crate::cache) fn blob_directory(&self, id: &BlobId) -> PathBuf {
        self.directory(Directory::Blobs).join(names::fan(id))
    }

    pub(in crate::cache) fn blob_record(&self, id: &BlobId) -> PathBuf {
        self.blob_directory(id).join(BlobFile::Record.name(id))
    }

    pub(in crate::cache) fn blob_record_unsynced(&self, id: &BlobId) -> PathBuf {
        self.blob_directory(id).join(BlobFile::UnsyncedRecord.name(id))
    }

    pub(in crate::cache) fn content(&self, id: &BlobId) -> PathBuf {
        self.directory(Directory::Content).join(id.as_str())
    }

    /// The directory with one subdirectory per complete model.
    pub fn models(&self) -> PathBuf {
        self.directory(Directory::Models)
    }

    pub(in crate::cache) fn model(&self, key: &ModelKey) -> PathBuf {
        self.models().join(key.as_str())
    }

    /// The tree that is bound into pods.
    pub fn tree(&self, key: &ModelKey) -> PathBuf {
        ModelFile::Tree.of(&self.model(key))
    }

    pub(in crate::cache) fn manifest(&self, key: &ModelKey) -> PathBuf {
        ModelFile::Manifest.of(&self.model(key))
    }

    /// A model's summary, which replaces the manifest for most uses.
    pub(in crate::cache) fn summary(&self, key: &ModelKey) -> PathBuf {
        ModelFile::Summary.of(&self.model(key))
    }

    pub(in crate::cache) fn durable(&self, key: &ModelKey) -> PathBuf {
        ModelFile::Durable.of(&self.model(key))
    }

    /// The marker of a model that a newer revision of its request replaced.
    pub(in crate::cache) fn superseded(&self, key: &ModelKey) -> PathBuf {
        ModelFile::Superseded.of(&self.model(key))
    }

    pub(in crate::cache) fn request(&self, digest: &RequestDigest) -> PathBuf {
        self.directory(Directory::Requests).join(digest.as_str())
    }

    pub(in crate::cache) fn staging(&self) -> PathBuf {
        self.directory(Directory::Staging)
    }

    fn staged(&self, file: &StagingFile) -> PathBuf {
        self.staging().join(file.to_string())
    }

    pub(in crate::cache) fn part(&self, id: &BlobId) -> PathBuf {
        self.staged(&StagingFile::Part(id.clone()))
    }

    pub(in crate::cache) fn journal(&self, id: &BlobId) -> PathBuf {
        self.staged(&StagingFile::Journal(id.clone()))
    }

    /// A copy that an import makes; several may be in progress.
    pub(in crate::cache) fn copy(&self, id: &BlobId, number: u64) -> PathBuf {
        self.staged(&StagingFile::Copy(id.clone(), number))
    }

    pub(in crate::cache) fn building(&self, key: &ModelKey) -> PathBuf {
        self.staged(&StagingFile::Building(key.clone()))
    }

    pub(in crate::cache) fn leases(&self) -> PathBuf {
        self.directory(Directory::Leases)
    }

    pub(in crate::cache) fn lease(&self, digest: &RequestDigest) -> PathBuf {
        self.leases().join(names::lease(digest))
    }

    pub(in crate::cache) fn pin(&self, key: &ModelKey) -> PathBuf {
        self.directory(Directory::Pins).join(key.as_str())
    }

    pub(in crate::cache) fn quarantine(&self) -> PathBuf {
        self.directory(Directory::Quarantine)
    }

    pub(in crate::cache) fn trash(&self) -> PathBuf {
        self.directory(Directory::Trash)
    }
}
