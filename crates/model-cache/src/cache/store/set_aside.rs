//! Set-aside caches: caches of an older layout, moved to `old-layout-<number>.<n>/`.
//!
//! Running pods keep their models: the leases in there stay valid, and mounted trees
//! are not touched. Nothing new is served from there, so a model is downloaded again
//! on the next request. Unused ones are removed first when space is needed, and with
//! `cache gc --all`.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::CacheStore;
use super::disk_space::Space;
use super::files;
use super::layout::Layout;
use super::layout::names::{self, Directory};
use super::leases::{LeaseRecord, Leases};
use super::trash::discard;
use crate::error::{Error, Result};
use crate::mount::{self, Use};

/// A report of a set-aside cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetAside {
    /// Its directory in the cache.
    pub name: String,
    /// Bytes that it takes on the disk.
    pub bytes: u64,
    /// Mount points of its trees.
    pub mounts: Vec<PathBuf>,
}

/// The origin of a lease of an older layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Older {
    /// Its file.
    pub(in crate::cache) file: PathBuf,
    /// The tree that is mounted.
    pub(in crate::cache) tree: PathBuf,
}

/// The fields that leases have in all layouts; other fields are ignored.
#[derive(Debug, Deserialize)]
struct OldLease {
    volume_id: String,
    target: PathBuf,
    #[serde(default)]
    pod: Option<String>,
    #[serde(default)]
    since: Option<u64>,
}

/// Lists the names of the set-aside caches.
pub(in crate::cache) fn names(layout: &Layout) -> Result<Vec<String>> {
    let mut names = files::names(layout.root())?;
    names.retain(|name| names::is_set_aside(name) && layout.root().join(name).is_dir());
    names.sort();
    Ok(names)
}

/// Returns the space of all set-aside caches, counting each inode once.
pub(in crate::cache) fn space(layout: &Layout) -> Result<Space> {
    let mut seen = HashSet::new();
    let mut spaces =
        names(layout)?.into_iter().map(|name| space_of(&layout.root().join(name), &mut seen));
    spaces.try_fold(Space::default(), |sum, space| Ok(sum.saturating_add(space?)))
}

/// Returns the space of a directory tree, without the inodes in `seen`.
fn space_of(top: &Path, seen: &mut HashSet<u64>) -> Result<Space> {
    let mut space = Space::default();
    let mut open = vec![top.to_owned()];
    while let Some(path) = open.pop() {
        // A file that vanishes meanwhile takes no space.
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        if !seen.insert(metadata.ino()) {
            continue;
        }
        space = space.saturating_add(Space::of(&metadata));
        if metadata.is_dir() {
            open.extend(files::names(&path)?.into_iter().map(|name| path.join(name)));
        }
    }
    Ok(space)
}

/// Adopts the leases of older layouts that still have their mounts, and returns their
/// number. Leases without a mount are ignored. Blocks.
pub(in crate::cache) fn adopt(layout: &Layout, leases: &Leases) -> Result<usize> {
    let names = names(layout)?;
    if names.is_empty() {
        return Ok(0);
    }
    let uses = mount::uses_of(layout.root())?;
    let mut adopted = 0;
    for aside in names {
        let mut candidates =
            Directory::Leases.names().map(|name| layout.root().join(&aside).join(name));
        let Some(directory) = candidates.find(|path| path.is_dir()) else { continue };
        for name in files::names(&directory)? {
            let file = directory.join(name);
            let Some(bytes) = files::read(&file)? else { continue };
            let Ok(lease) = serde_json::from_slice::<OldLease>(&bytes) else { continue };
            let Some(shown) = mount_at(&lease.target, &aside, &uses) else { continue };
            let tree = layout.root().join(&shown.root);
            // The tree may have been deleted by hand, but is still mounted.
            let identity = mount::identity(&tree).or_else(|_| mount::identity(&shown.target));
            let Ok(root) = identity else { continue };
            let older = Older { file, tree };
            let OldLease { volume_id, target, pod, since } = lease;
            let since = since.unwrap_or_default();
            leases.adopt(LeaseRecord::older(volume_id, target, root, pod, since, older));
            adopted += 1;
        }
    }
    Ok(adopted)
}

/// Finds the mount of a directory of `aside` at a target.
fn mount_at<'a>(target: &Path, aside: &str, uses: &'a [Use]) -> Option<&'a Use> {
    let spelled = mount::spelled(target);
    uses.iter()
        .find(|one| one.root.starts_with(aside) && (one.target == target || one.target == spelled))
}

impl Older {
    /// Counts the bytes and inodes of the tree; unreadable files are skipped. Blocks.
    pub fn usage(&self) -> (u64, u64) {
        let (mut bytes, mut inodes) = (0_u64, 0_u64);
        let mut open = vec![self.tree.clone()];
        while let Some(path) = open.pop() {
            let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
            inodes = inodes.saturating_add(1);
            if metadata.is_dir() {
                let names = files::names(&path).unwrap_or_default();
                open.extend(names.into_iter().map(|name| path.join(name)));
            } else {
                bytes = bytes.saturating_add(metadata.len());
            }
        }
        (bytes, inodes)
    }
}

impl CacheStore {
    /// Reports the set-aside caches, and where they are mounted. Blocks.
    pub(in crate::cache) fn set_aside(&self) -> Result<Vec<SetAside>> {
        let names = names(&self.layout)?;
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let uses = mount::uses_of(self.layout.root())?;
        let mut seen = HashSet::new();
        let described = names.into_iter().map(|name| {
            let bytes = space_of(&self.layout.root().join(&name), &mut seen)?.bytes;
            let shown = uses.iter().filter(|one| one.root.starts_with(&name));
            let mounts = shown.map(|one| one.target.clone()).collect();
            Ok(SetAside { name, bytes, mounts })
        });
        described.collect()
    }

    /// Moves set-aside caches that are not mounted to the trash, and returns their
    /// space. With `dry_run` it only returns the space. Blocks.
    pub(in crate::cache) fn drop_set_aside(&self, dry_run: bool) -> Result<Space> {
        let mut freed = Space::default();
        let mut seen = HashSet::new();
        for one in self.set_aside()?.into_iter().filter(|one| one.mounts.is_empty()) {
            let path = self.layout.root().join(&one.name);
            freed = freed.saturating_add(space_of(&path, &mut seen)?);
            if dry_run {
                continue;
            }
            discard(&self.layout, &path)?;
            tracing::info!(name = one.name, "removed an unused cache of an older layout");
            self.trash_filled.notify_one();
        }
        Ok(freed)
    }

    /// Removes all set-aside caches. The purge has checked that they are not in use.
    pub(in crate::cache) fn remove_set_aside(&self) -> Result<()> {
        for name in names(&self.layout)? {
            let path = self.layout.root().join(name);
            files::delete_tree(&path)
                .map_err(|e| Error::io(format!("removing {}", path.display()), &e))?;
        }
        Ok(())
    }
}
