//! The trash and the quarantine: what nobody can find any more, until it is
//! deleted. Renaming is an eviction; deleting takes its time afterwards.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::CacheInner;
use super::layout::Layout;
use super::policy::Space;
use super::{disk_usage, files, foreign};
use crate::abort_point;
use crate::error::Result;
use crate::mount::{self, DirId};

/// How long what is damaged is kept for people to look at.
pub(super) const QUARANTINED: Duration = Duration::from_secs(24 * 60 * 60);

/// Renames something into the trash, under a name that is not taken.
pub(super) fn discard(layout: &Layout, path: &Path) -> Result<()> {
    put_aside(path, &layout.trash()).map(|_| ())
}

/// Renames something into a directory, under a name that is not taken there;
/// `None` when it is gone already.
pub(super) fn put_aside(path: &Path, directory: &Path) -> Result<Option<PathBuf>> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let taken: HashSet<String> = files::names(directory)?.into_iter().collect();
    // One more candidate than there are names: one of them is free.
    let mut candidates = (0..=taken.len()).map(|n| format!("{name}.{n}"));
    let free = candidates.find(|candidate| !taken.contains(candidate)).unwrap_or_default();
    let to = directory.join(free);
    Ok(files::rename(path, &to)?.then_some(to))
}

impl CacheInner {
    /// Deletes what is in the trash and not in use. Blocks, for as long as it
    /// takes.
    pub(super) fn empty_trash(&self) -> Result<usize> {
        self.free_from_trash(None)
    }

    /// As [`CacheInner::empty_trash`], only until so much has become free; how many
    /// entries were deleted.
    pub(super) fn free_from_trash(&self, enough: Option<Space>) -> Result<usize> {
        let names = files::names(&self.layout.trash())?;
        if names.is_empty() {
            // A name goes before its space: until whoever deletes it is done.
            drop(self.emptying.lock());
            return Ok(0);
        }
        let in_use = InUse::now(self, "trash")?;
        let (mut deleted, mut freed) = (0, Space::default());
        for name in names {
            if enough.is_some_and(|enough| freed.covers(enough)) {
                break;
            }
            let path = self.layout.trash().join(&name);
            if in_use.has(&name, &path) {
                tracing::debug!(name, "something in the trash is still in use; it is kept for now");
                continue;
            }
            // For one entry only: who waits for space needs not wait for all of it.
            let _alone = self.emptying.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let space = disk_usage::space_of(&path)?;
            match files::delete_tree(&path) {
                Ok(()) => {
                    abort_point::reach("evict-5");
                    deleted += 1;
                    freed = freed.saturating_add(space);
                }
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => {
                    tracing::warn!(name, %error, "could not delete something in the trash");
                }
            }
        }
        if deleted > 0 {
            self.space_freed.notify_waiters();
        }
        Ok(deleted)
    }

    /// Puts what has been in quarantine for `age` and is not in use into the
    /// trash. Blocks.
    pub(super) fn empty_quarantine(&self, age: Duration) -> Result<()> {
        let names = files::names(&self.layout.quarantine())?;
        if names.is_empty() {
            return Ok(());
        }
        let in_use = InUse::now(self, "quarantine")?;
        for name in names.into_iter().filter(|name| foreign::is_ours("quarantine", name)) {
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

/// What of a directory of the cache is still shown to somebody.
struct InUse {
    names: HashSet<String>,
    leased: HashSet<DirId>,
}

impl InUse {
    fn now(inner: &CacheInner, directory: &str) -> Result<Self> {
        let uses = mount::uses_of(inner.layout.root())?;
        let names = uses.iter().filter_map(|one| {
            let mut parts = one.root.components();
            let (Some(Component::Normal(first)), Some(Component::Normal(name))) =
                (parts.next(), parts.next())
            else {
                return None;
            };
            (first == directory).then(|| name.to_string_lossy().into_owned())
        });
        let leased = inner.leases.all().into_iter().map(|lease| lease.root).collect();
        Ok(Self { names: names.collect(), leased })
    }

    fn has(&self, name: &str, path: &Path) -> bool {
        self.names.contains(name)
            || mount::identity(&path.join("tree")).is_ok_and(|tree| self.leased.contains(&tree))
    }
}
