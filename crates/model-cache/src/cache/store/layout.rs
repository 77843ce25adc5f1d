//! All paths and names in the cache.
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
//!   requests/<digest>       the newest revision resolved for a request
//!   staging/                downloads (.part, .journal) and models being built
//!   leases/<digest>.json    one per (volume id, target path)
//!   pins/<key>              a model that stays even when unused
//!   quarantine/             damaged blobs, and the models that contain them
//!   trash/                  evicted files, until they are deleted
//! ```

use std::path::{Path, PathBuf};

use super::files;
use crate::error::Result;
use crate::model::{BlobId, ModelKey, RequestDigest};

/// The content of VERSION.
pub(in crate::cache) const VERSION: &str = "oci-model-csi cache 1\n";

/// The start of VERSION in every layout.
pub(in crate::cache) const VERSION_STEM: &str = "oci-model-csi cache ";

/// The name of the configuration that was last in force, in every layout.
pub(in crate::cache) const CONFIG_IN_FORCE: &str = "config-in-force.json";

/// The suffix of an import's copy.
const COPY: &str = ".import";

/// Directories that are created with the cache.
pub(in crate::cache) const DIRECTORIES: &[&str] =
    &["blobs", "content", "models", "requests", "staging", "leases", "pins", "quarantine", "trash"];

/// The start of the name under which an older layout is set aside.
pub(in crate::cache) const OLD_LAYOUT: &str = "old-layout-";

/// Whether a path below the cache is the tree of a model: present, evicted or
/// damaged, in this layout or in a set-aside cache.
pub(in crate::cache) fn is_tree(below: &Path) -> bool {
    let mut names = below.iter().map(|name| name.to_string_lossy()).collect::<Vec<_>>();
    if names.first().is_some_and(|name| name.starts_with(OLD_LAYOUT)) {
        names.remove(0);
    }
    let is_place = |name: &str| matches!(name, "models" | "trash" | "quarantine");
    matches!(&*names, [place, _, tree] if is_place(place) && tree == "tree")
}

/// Whether a directory of `blobs/` may have this name.
pub(in crate::cache) fn is_fan(name: &str) -> bool {
    name.len() == 2 && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

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

    pub(in crate::cache) fn version(&self) -> PathBuf {
        self.root.join("VERSION")
    }

    pub(in crate::cache) fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    pub(in crate::cache) fn scrubbed(&self) -> PathBuf {
        self.root.join("scrubbed")
    }

    pub(in crate::cache) fn config_in_force(&self) -> PathBuf {
        self.root.join(CONFIG_IN_FORCE)
    }

    pub(in crate::cache) fn directory(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The file of one verified object version.
    pub fn blob(&self, id: &BlobId) -> PathBuf {
        self.blob_directory(id).join(id.as_str())
    }

    /// The directories of `blobs/`. Blocks.
    pub(in crate::cache) fn fans(&self) -> Result<Vec<PathBuf>> {
        let blobs = self.root.join("blobs");
        let names = files::names(&blobs)?.into_iter().filter(|name| is_fan(name));
        Ok(names.map(|name| blobs.join(name)).collect())
    }

    pub(in crate::cache) fn blob_directory(&self, id: &BlobId) -> PathBuf {
        self.root.join("blobs").join(&id.as_str()[..2])
    }

    pub(in crate::cache) fn blob_record(&self, id: &BlobId) -> PathBuf {
        self.blob_directory(id).join(format!("{id}.json"))
    }

    pub(in crate::cache) fn blob_record_unsynced(&self, id: &BlobId) -> PathBuf {
        self.blob_directory(id).join(format!("{id}.unsynced"))
    }

    pub(in crate::cache) fn content(&self, id: &BlobId) -> PathBuf {
        self.root.join("content").join(id.as_str())
    }

    /// The directory with one subdirectory per complete model.
    pub fn models(&self) -> PathBuf {
        self.root.join("models")
    }

    pub(in crate::cache) fn model(&self, key: &ModelKey) -> PathBuf {
        self.models().join(key.as_str())
    }

    /// The tree that is bound into pods.
    pub fn tree(&self, key: &ModelKey) -> PathBuf {
        self.model(key).join("tree")
    }

    pub(in crate::cache) fn manifest(&self, key: &ModelKey) -> PathBuf {
        self.model(key).join("manifest.json")
    }

    /// A model's summary, which replaces the manifest for most uses.
    pub(in crate::cache) fn summary(&self, key: &ModelKey) -> PathBuf {
        self.model(key).join("summary.json")
    }

    pub(in crate::cache) fn durable(&self, key: &ModelKey) -> PathBuf {
        self.model(key).join("durable")
    }

    /// The marker of a model that a newer revision of its request replaced.
    pub(in crate::cache) fn superseded(&self, key: &ModelKey) -> PathBuf {
        self.model(key).join("superseded")
    }

    pub(in crate::cache) fn request(&self, digest: &RequestDigest) -> PathBuf {
        self.root.join("requests").join(digest.as_str())
    }

    pub(in crate::cache) fn staging(&self) -> PathBuf {
        self.root.join("staging")
    }

    pub(in crate::cache) fn part(&self, id: &BlobId) -> PathBuf {
        self.staging().join(format!("{id}.part"))
    }

    pub(in crate::cache) fn journal(&self, id: &BlobId) -> PathBuf {
        self.staging().join(format!("{id}.journal"))
    }

    /// A copy that an import makes; several may be in progress.
    pub(in crate::cache) fn copy(&self, id: &BlobId, number: u64) -> PathBuf {
        self.staging().join(format!("{id}.{number}{COPY}"))
    }

    /// The blob that a copy in the staging directory will become.
    pub(in crate::cache) fn blob_of_copy(name: &str) -> Option<BlobId> {
        let (id, number) = name.strip_suffix(COPY)?.split_once('.')?;
        number.parse::<u64>().ok()?;
        BlobId::parse(id)
    }

    pub(in crate::cache) fn building(&self, key: &ModelKey) -> PathBuf {
        self.staging().join(format!("model-{key}"))
    }

    pub(in crate::cache) fn leases(&self) -> PathBuf {
        self.root.join("leases")
    }

    pub(in crate::cache) fn lease(&self, digest: &RequestDigest) -> PathBuf {
        self.leases().join(format!("{digest}.json"))
    }

    pub(in crate::cache) fn pin(&self, key: &ModelKey) -> PathBuf {
        self.root.join("pins").join(key.as_str())
    }

    pub(in crate::cache) fn quarantine(&self) -> PathBuf {
        self.root.join("quarantine")
    }

    pub(in crate::cache) fn trash(&self) -> PathBuf {
        self.root.join("trash")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_tree_of_a_model_counts_as_one() {
        for tree in ["models/k/tree", "trash/k.0/tree", "old-layout-1.0/models/k/tree"] {
            assert!(is_tree(Path::new(tree)), "{tree}");
        }
        for other in
            ["", "models", "models/k", "models/k/tree/d", "staging/k/tree", "data/models/k/tree"]
        {
            assert!(!is_tree(Path::new(other)), "{other}");
        }
    }
}
