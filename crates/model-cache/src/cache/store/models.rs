//! The complete models of the cache.
//!
//! # How a model is committed
//!
//! 1. All of its blobs are committed (`blobs.rs`).
//! 2. `staging/model-<key>/` is built: manifest.json, its summary.json, and
//!    tree/ of hard links into blobs/, directories 0555.
//! 3. It is renamed to `models/<key>`: now it is a model, and may be leased.
//! 4. `requests/<digest>` names it as the newest for its request (`requests.rs`).
//! 5. After the publish, in the background: the file system is synced, the
//!    blobs' records become durable, and `models/<key>/durable` is written;
//!    after 4 it is synced once more.
//!
//! Killed after 2: the half-built directory is deleted at start. Killed after 3:
//! only `IfNotPresent` misses it until the next resolve. After a power loss before
//! 5, the model is a suspect at the next start. Its manifest is parsed, its links
//! and blobs are checked, and it is rebuilt or dropped before it is served; a model
//! with `durable` skips these checks.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::{Notify, watch};

use super::files;
use super::holds::{Holds, ModelHold};
use super::layout::Layout;
use super::layout::names::{Directory, ModelFile};
use super::lock_order;
use super::reread::is_damage;
use super::trash::{discard, move_aside};
use crate::abort_point;
use crate::error::{Error, ErrorKind, Result};
use crate::model::{BlobId, Manifest, ModelKey, Summary};
use crate::mount::{self, DirId};
use crate::sync::{OrderedGuard, OrderedMutex};

/// Size in bytes above which only one manifest at a time is read into memory.
const LARGE: u64 = 1 << 20;

/// A complete model in the cache.
#[derive(Debug, Clone)]
pub struct CachedModel {
    /// Its key in the cache.
    pub key: ModelKey,
    /// Its summary. The manifest stays on the disk, since it may list a hundred
    /// thousand files.
    pub summary: Arc<Summary>,
    /// The tree that is bound into pods.
    pub tree: PathBuf,
    /// Protects it from eviction while this lives.
    pub(in crate::cache) _hold: ModelHold,
}

impl CachedModel {
    /// Reads the manifest from the disk; `None` when it is gone. Blocks.
    pub fn manifest(&self) -> Result<Option<Manifest>> {
        let Some(directory) = self.tree.parent() else { return Ok(None) };
        let path = ModelFile::Manifest.of(directory);
        match File::open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io(format!("reading {}", path.display()), &e)),
            Ok(file) => Manifest::read(file).map(Some),
        }
    }
}

/// A difference between a model's tree and its manifest.
#[derive(Debug)]
pub(in crate::cache) struct Mismatch {
    /// The path in the tree.
    pub(in crate::cache) path: String,
    pub(in crate::cache) why: String,
    pub(in crate::cache) cause: MismatchCause,
}

/// The cause of a [`Mismatch`].
#[derive(Debug)]
pub(in crate::cache) enum MismatchCause {
    /// The tree itself.
    Tree,
    /// This blob, which the tree links to.
    Blob(BlobId),
    /// A blob was removed, by an interrupted eviction or by hand.
    NoBlob,
}

/// The models of one cache.
#[derive(Debug)]
pub(in crate::cache) struct Models {
    layout: Layout,
    holds: Holds,
    /// Models that this process built or checked.
    known: OrderedMutex<HashMap<ModelKey, Arc<Summary>>>,
    reading: OrderedMutex<()>,
    /// Notified when a model has become durable.
    became_durable: Notify,
    /// Notified when a model was added or removed.
    set_changed: watch::Sender<()>,
}

impl Models {
    pub(in crate::cache) fn new(layout: Layout, holds: Holds) -> Self {
        Self {
            layout,
            holds,
            known: OrderedMutex::new(lock_order::MODELS, HashMap::new()),
            reading: OrderedMutex::new(lock_order::LARGE_MANIFEST, ()),
            became_durable: Notify::new(),
            set_changed: watch::Sender::new(()),
        }
    }

    /// Builds the model from its committed blobs. Blocks.
    pub(in crate::cache) fn commit(&self, manifest: &Arc<Manifest>) -> Result<CachedModel> {
        abort_point::reach("model-commit-1");
        let key = manifest.key();
        let held = self.holds.model(&key);
        let building = self.layout.building(&key);
        discard(&self.layout, &building)?;
        files::make_directory(&building, 0o755)?;
        let stored = ModelFile::Manifest.of(&building);
        files::write_parts(&stored, |file| manifest.write(file), 0o644)?;
        let summary = manifest.summary();
        files::write_whole(&ModelFile::Summary.of(&building), &summary.to_json(), 0o644)?;
        self.build_tree(manifest, &ModelFile::Tree.of(&building))?;
        abort_point::reach("model-commit-2");
        let model = self.layout.model(&key);
        if model.exists() {
            // Its flight found it damaged. Pods that mount it keep their content:
            // mounted trees in the trash are not deleted.
            self.remove(&key, Directory::Trash)?;
        }
        files::rename(&building, &model)?;
        abort_point::reach("model-commit-3");
        // A blob may have been quarantined since it was linked.
        if let Some(Mismatch { path, why, .. }) = self.mismatch(&key, manifest) {
            self.remove(&key, Directory::Trash)?;
            let text = format!("{path} changed while its model was built ({why}); try again");
            return Err(Error::new(ErrorKind::InProgress, text));
        }
        let summary = Arc::new(summary);
        self.lock().insert(key.clone(), Arc::clone(&summary));
        self.set_changed.send_replace(());
        Ok(self.cached(key, summary, held))
    }

    fn build_tree(&self, manifest: &Manifest, tree: &Path) -> Result<()> {
        files::make_directory(tree, 0o755)?;
        let directories = manifest.all_directories();
        for directory in &directories {
            files::make_directory(&tree.join(directory), 0o755)?;
        }
        for file in &manifest.files {
            let (blob, link) = (self.layout.blob(&file.blob), tree.join(&file.path));
            fs::hard_link(&blob, &link).map_err(|e| {
                Error::io(format!("linking {} to {}", blob.display(), link.display()), &e)
            })?;
        }
        for directory in directories.iter().rev() {
            files::set_mode(&tree.join(directory), 0o555)?;
        }
        files::set_mode(tree, 0o555)
    }

    /// Returns the model of this key if this process built or checked it. Blocks
    /// briefly.
    pub(in crate::cache) fn known(&self, key: &ModelKey) -> Option<CachedModel> {
        let summary = self.lock().get(key).cloned()?;
        // The hold comes first, so that the tree stays once it is found.
        let held = self.holds.model(key);
        if self.layout.tree(key).is_dir() {
            return Some(self.cached(key.clone(), summary, held));
        }
        self.lock().remove(key);
        None
    }

    /// Records that a model was checked and is complete.
    pub(in crate::cache) fn mark_checked(
        &self,
        key: &ModelKey,
        manifest: &Manifest,
    ) -> Option<CachedModel> {
        self.lock().insert(key.clone(), Arc::new(manifest.summary()));
        self.known(key)
    }

    /// Forgets that a model was checked: it will be checked again.
    pub(in crate::cache) fn distrust(&self, key: &ModelKey) {
        self.lock().remove(key);
    }

    /// Moves a model out of reach, to the trash or the quarantine. Blocks.
    pub(in crate::cache) fn remove(&self, key: &ModelKey, to: Directory) -> Result<()> {
        self.distrust(key);
        move_aside(&self.layout.model(key), &self.layout.directory(to))?;
        self.set_changed.send_replace(());
        Ok(())
    }

    /// Reports each change of the set of models; several at once may be one.
    pub(in crate::cache) fn changes(&self) -> watch::Receiver<()> {
        self.set_changed.subscribe()
    }

    /// Locks the reading of large manifests; `None` for a small one. Blocks.
    pub(in crate::cache) fn lock_large_manifest(
        &self,
        key: &ModelKey,
    ) -> Option<OrderedGuard<'_, ()>> {
        let stored = fs::metadata(self.layout.manifest(key)).map_or(0, |found| found.len());
        (stored > LARGE).then(|| self.reading.lock())
    }

    /// Reads the manifest of a model; `None` when it is gone or torn.
    pub(in crate::cache) fn read_manifest(&self, key: &ModelKey) -> Result<Option<Manifest>> {
        let Some(file) = self.open_manifest(key)? else { return Ok(None) };
        match Manifest::read(file) {
            Ok(manifest) if manifest.key() == *key => Ok(Some(manifest)),
            Ok(_) => Ok(None),
            Err(error) => {
                tracing::warn!(model = key.as_str(), %error, "a manifest in the cache is torn");
                Ok(None)
            }
        }
    }

    /// Opens the manifest's file, which stays readable after an eviction.
    pub(in crate::cache) fn open_manifest(&self, key: &ModelKey) -> Result<Option<File>> {
        present(File::open(self.layout.manifest(key)), &self.layout.manifest(key))
    }

    /// Reads a model's summary, without reading its manifest into memory.
    pub(in crate::cache) fn read_summary(&self, key: &ModelKey) -> Result<Option<Summary>> {
        summary(&self.layout, key)
    }

    /// Compares the tree with the manifest and returns the first mismatch. Reads no
    /// file content. Blocks.
    pub(in crate::cache) fn mismatch(
        &self,
        key: &ModelKey,
        manifest: &Manifest,
    ) -> Option<Mismatch> {
        let tree = self.layout.tree(key);
        let mismatch = |path: &str, cause, why: &str| {
            Some(Mismatch { path: path.to_owned(), why: why.to_owned(), cause })
        };
        for file in &manifest.files {
            let Ok(link) = fs::symlink_metadata(tree.join(&file.path)) else {
                return mismatch(&file.path, MismatchCause::Tree, "it is missing in the tree");
            };
            let blob = fs::symlink_metadata(self.layout.blob(&file.blob));
            let Ok(blob) = blob else {
                return mismatch(&file.path, MismatchCause::NoBlob, "its blob is missing");
            };
            if blob.ino() != link.ino() {
                let why = "it is not the blob that the manifest names";
                return mismatch(&file.path, MismatchCause::Tree, why);
            }
            if link.len() != file.size {
                let why = format!("it has {} bytes instead of {}", link.len(), file.size);
                return mismatch(&file.path, MismatchCause::Blob(file.blob.clone()), &why);
            }
        }
        let directories = manifest.all_directories();
        let gone = directories.iter().find(|directory| !tree.join(directory).is_dir());
        gone.and_then(|directory| {
            mismatch(directory, MismatchCause::Tree, "it is missing in the tree")
        })
    }

    /// Opens a model's tree before a sync. While it is open, no other directory gets
    /// its inode number.
    pub(in crate::cache) fn open_tree(&self, key: &ModelKey) -> Option<File> {
        File::open(self.layout.tree(key)).ok()
    }

    /// Records that a model is durable, unless it was rebuilt since
    /// [`Models::open_tree`].
    pub(in crate::cache) fn mark_durable(&self, key: &ModelKey, synced: &File) -> Result<()> {
        let tree = self.layout.tree(key);
        let is_at = |metadata: fs::Metadata| {
            mount::identity(&tree).is_ok_and(|tree| tree == DirId::from(&metadata))
        };
        if synced.metadata().is_ok_and(is_at) {
            // Beside this very tree, even if another one takes its name.
            let model = format!("/proc/self/fd/{}/..", synced.as_raw_fd());
            files::write_whole(&ModelFile::Durable.of(Path::new(&model)), b"", 0o644)
                .map_err(|e| e.context(self.layout.durable(key).display()))?;
            abort_point::reach("model-commit-5");
            self.became_durable.notify_waiters();
        }
        Ok(())
    }

    pub(in crate::cache) fn is_durable(&self, key: &ModelKey) -> bool {
        self.layout.durable(key).exists()
    }

    /// Whether a complete model can be served without a check: it is durable, or this process
    /// built or checked it.
    pub(in crate::cache) fn needs_no_check(&self, key: &ModelKey) -> bool {
        self.is_durable(key) || self.lock().contains_key(key)
    }

    /// Waits until a model is recorded as durable. Cancellation safe.
    pub(in crate::cache) async fn wait_until_durable(&self, key: &ModelKey) {
        loop {
            // Created before the check, so that no notification is missed.
            let became_durable = self.became_durable.notified();
            if self.is_durable(key) {
                return;
            }
            became_durable.await;
        }
    }

    fn cached(&self, key: ModelKey, summary: Arc<Summary>, hold: ModelHold) -> CachedModel {
        let tree = self.layout.tree(&key);
        CachedModel { key, summary, tree, _hold: hold }
    }

    fn lock(&self) -> OrderedGuard<'_, HashMap<ModelKey, Arc<Summary>>> {
        self.known.lock()
    }
}

/// Reads a model's summary. A model of an earlier version has none: then its
/// manifest is streamed, and the summary is written beside it. `None` when the model
/// is gone or torn. Blocks.
pub(in crate::cache) fn summary(layout: &Layout, key: &ModelKey) -> Result<Option<Summary>> {
    let path = layout.summary(key);
    let stored = present(fs::read(&path), &path)?;
    let stored = stored.and_then(|bytes| Summary::from_json(&bytes).ok());
    if let Some(summary) = stored {
        return Ok(Some(summary).filter(|summary| summary.key() == *key));
    }
    let manifest = layout.manifest(key);
    let Some(file) = present(File::open(&manifest), &manifest)? else { return Ok(None) };
    let Ok(summary) = Summary::of_stored(file) else { return Ok(None) };
    if summary.key() != *key {
        return Ok(None);
    }
    // If this fails, the manifest is read again the next time.
    if let Err(error) = files::write_whole(&path, &summary.to_json(), 0o644) {
        tracing::debug!(%error, "writing a model's summary failed");
    }
    Ok(Some(summary))
}

/// Returns `None` for a file that is gone or damaged, so that one of those does not
/// end an operation on all models.
fn present<T>(read: io::Result<T>, path: &Path) -> Result<Option<T>> {
    match read {
        Ok(present) => Ok(Some(present)),
        Err(e) if e.kind() == io::ErrorKind::NotFound || is_damage(&e) => Ok(None),
        Err(e) => Err(Error::io(format!("reading {}", path.display()), &e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sync_does_not_make_a_model_durable_that_was_rebuilt_after_it_began() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        let models = Models::new(layout.clone(), Holds::default());
        let key = ModelKey::parse(&"ab".repeat(32)).unwrap();
        let build = || fs::create_dir_all(layout.tree(&key)).unwrap();
        build();
        let before = models.open_tree(&key).unwrap();
        fs::remove_dir_all(layout.model(&key)).unwrap();
        models.mark_durable(&key, &before).unwrap();
        build();
        models.mark_durable(&key, &before).unwrap();
        assert!(!models.is_durable(&key), "the synced tree is gone");
        models.mark_durable(&key, &models.open_tree(&key).unwrap()).unwrap();
        assert!(models.is_durable(&key));
    }
}
