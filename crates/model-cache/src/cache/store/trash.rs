//! The trash and the quarantine: files that can no longer be found, until they are
//! deleted. The rename evicts; deleting takes longer and follows later.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::CacheStore;
use super::disk_space::Space;
use super::disk_usage;
use super::files;
use super::foreign;
use super::layout::Layout;
use super::layout::names::{self, Directory, EntryPath, ModelFile, StagingFile};
use crate::abort_point;
use crate::error::Result;
use crate::model::{BlobId, ModelKey};
use crate::mount::{self, DirId};

/// How long damaged files are kept for inspection.
pub(in crate::cache) const QUARANTINED: Duration = Duration::from_secs(24 * 60 * 60);

/// Renames a file or directory into the trash, under a free name.
pub(in crate::cache) fn discard(layout: &Layout, path: &Path) -> Result<()> {
    move_aside(path, &layout.trash()).map(|_| ())
}

/// Renames a file or directory into a directory, under a free name; `None` when it is
/// already gone.
pub(in crate::cache) fn move_aside(path: &Path, directory: &Path) -> Result<Option<PathBuf>> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let taken: HashSet<String> = files::names(directory)?.into_iter().collect();
    // One more candidate than there are names: one of them is free.
    let mut candidates = (0..=taken.len()).map(|n| names::numbered(&name, n));
    let free = candidates.find(|candidate| !taken.contains(candidate)).unwrap_or_default();
    let to = directory.join(free);
    Ok(files::rename(path, &to)?.then_some(to))
}

impl CacheStore {
    /// Deletes everything in the trash that is not in use. Blocks while it deletes.
    pub(in crate::cache) fn empty_trash(&self) -> Result<usize> {
        self.free_from_trash(None)
    }

    /// Like [`CacheStore::empty_trash`], but stops when enough was freed. Returns the
    /// number of deleted entries.
    pub(in crate::cache) fn free_from_trash(&self, enough: Option<Space>) -> Result<usize> {
        let names = files::names(&self.layout.trash())?;
        if names.is_empty() {
            // A name vanishes before its space is free: wait for a running deletion.
            drop(self.emptying.lock());
            return Ok(0);
        }
        let in_use = InUse::now(self, Directory::Trash)?;
        let (mut deleted, mut freed) = (0, Space::default());
        for name in names {
            if enough.is_some_and(|enough| freed.covers(enough)) {
                break;
            }
            let path = self.layout.trash().join(&name);
            if in_use.has(&name, &path) {
                tracing::debug!(name, "an entry of the trash is still in use; it is kept for now");
                continue;
            }
            // Locked per entry, so that a caller in need of space does not wait for all.
            let _alone = self.emptying.lock();
            let space = disk_usage::space_of(&path)?;
            match files::delete_tree(&path) {
                Ok(()) => {
                    abort_point::reach("evict-5");
                    deleted += 1;
                    freed = freed.saturating_add(space);
                }
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => {
                    tracing::warn!(name, %error, "deleting an entry of the trash failed");
                }
            }
        }
        if deleted > 0 {
            self.space_freed.notify_waiters();
        }
        Ok(deleted)
    }

    /// Moves a model to the trash unless it is held or leased; returns whether it was moved.
    /// The caller must have locked eviction. Blocks.
    pub(in crate::cache) fn discard_unused(&self, key: &ModelKey) -> Result<bool> {
        let moved = self.holds.unless_held(key, || {
            if self.leases.all().iter().any(|lease| lease.model == *key) {
                return Ok(false);
            }
            self.models.remove(key, Directory::Trash).map(|()| true)
        });
        Ok(moved.transpose()?.unwrap_or(false))
    }

    /// Removes interrupted downloads, except those to `keep`. The caller must have locked
    /// eviction, under which none of them is resumed. Blocks.
    pub(in crate::cache) fn abandon_downloads(&self, keep: impl Fn(&BlobId) -> bool) -> Result<()> {
        for name in files::names(&self.layout.staging())? {
            let Some(StagingFile::Part(id)) = StagingFile::parse(&name) else { continue };
            if !keep(&id) {
                self.blobs.abandon(&id)?;
            }
        }
        Ok(())
    }

    /// Moves quarantined entries that are at least `age` old and not in use to the
    /// trash. Blocks.
    pub(in crate::cache) fn empty_quarantine(&self, age: Duration) -> Result<()> {
        let names = files::names(&self.layout.quarantine())?;
        if names.is_empty() {
            return Ok(());
        }
        let in_use = InUse::now(self, Directory::Quarantine)?;
        for name in names.into_iter().filter(|name| foreign::is_ours(Directory::Quarantine, name)) {
            let path = self.layout.quarantine().join(&name);
            // The change time is that of the rename.
            let old = std::fs::symlink_metadata(&path).is_ok_and(|metadata| {
                let since = u64::try_from(metadata.ctime()).unwrap_or(0);
                let since = UNIX_EPOCH + Duration::from_secs(since);
                SystemTime::now().duration_since(since).is_ok_and(|passed| passed >= age)
            });
            if old && !in_use.has(&name, &path) {
                discard(&self.layout, &path)?;
            }
        }
        Ok(())
    }
}

/// The entries of a directory of the cache that are still mounted or leased.
struct InUse {
    names: HashSet<String>,
    leased: HashSet<DirId>,
}

impl InUse {
    fn now(store: &CacheStore, directory: Directory) -> Result<Self> {
        let uses = mount::uses_of(store.layout.root())?;
        let names = uses.iter().filter_map(|one| {
            let name = EntryPath::parse(&one.root)?.entry_of(directory)?;
            Some(name.to_string_lossy().into_owned())
        });
        let leased = store.leases.all().into_iter().map(|lease| lease.root).collect();
        Ok(Self { names: names.collect(), leased })
    }

    fn has(&self, name: &str, path: &Path) -> bool {
        self.names.contains(name)
            || mount::identity(&ModelFile::Tree.of(path))
                .is_ok_and(|tree| self.leased.contains(&tree))
    }
}
