//! Caches of an older layout, which were set aside as `old-layout-<number>.<n>/`.
//!
//! Pods may go on with their models: the leases in there stay known, and what
//! is mounted is not touched. Nothing new is served from there, so a model
//! that is asked for again is downloaded again. What nobody uses any more is
//! the first to go when space is needed, and with `cache gc --all`.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::layout::{Layout, OLD_LAYOUT};
use super::leases::{LeaseRecord, Leases};
use super::policy::Space;
use super::trash::discard;
use super::{CacheInner, files};
use crate::error::{Error, Result};
use crate::mount::{self, Use};

/// A cache of an older layout, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetAside {
    /// Its directory in the cache.
    pub name: String,
    /// What it takes on the disk.
    pub bytes: u64,
    /// Where something of it is mounted.
    pub mounts: Vec<PathBuf>,
}

/// Where a lease of an older layout comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Older {
    /// Its file.
    pub(super) file: PathBuf,
    /// The tree that is mounted.
    pub(super) tree: PathBuf,
}

/// What every layout so far says in a lease; the rest may be in any form.
#[derive(Debug, Deserialize)]
struct OldLease {
    volume_id: String,
    target: PathBuf,
    #[serde(default)]
    pod: Option<String>,
    #[serde(default)]
    since: Option<u64>,
}

/// The names of what was set aside.
pub(super) fn names(layout: &Layout) -> Result<Vec<String>> {
    let mut names = files::names(layout.root())?;
    names.retain(|name| name.starts_with(OLD_LAYOUT) && layout.root().join(name).is_dir());
    names.sort();
    Ok(names)
}

/// What all of it takes, each inode once.
pub(super) fn space(layout: &Layout) -> Result<Space> {
    let mut seen = HashSet::new();
    let mut spaces =
        names(layout)?.into_iter().map(|name| space_of(&layout.root().join(name), &mut seen));
    spaces.try_fold(Space::default(), |sum, space| Ok(sum.saturating_add(space?)))
}

/// What a directory takes, with all that is in it but the inodes in `seen`.
fn space_of(top: &Path, seen: &mut HashSet<u64>) -> Result<Space> {
    let mut space = Space::default();
    let mut open = vec![top.to_owned()];
    while let Some(path) = open.pop() {
        // What goes meanwhile takes nothing.
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

/// Takes over the leases of older layouts whose mounts are there; the number.
/// Those without a mount are of no use to anybody. Blocks.
pub(super) fn adopt(layout: &Layout, leases: &Leases) -> Result<usize> {
    let names = names(layout)?;
    if names.is_empty() {
        return Ok(0);
    }
    let uses = mount::uses_of(layout.root())?;
    let mut adopted = 0;
    for aside in names {
        let directory = layout.root().join(&aside).join("leases");
        if !directory.is_dir() {
            continue;
        }
        for name in files::names(&directory)? {
            let file = directory.join(name);
            let Some(bytes) = files::read(&file)? else { continue };
            let Ok(lease) = serde_json::from_slice::<OldLease>(&bytes) else { continue };
            let Some(shown) = shown_at(&lease.target, &aside, &uses) else { continue };
            let tree = layout.root().join(&shown.root);
            // Somebody may have deleted it by hand, for its space; it is mounted still.
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

/// The mount of a directory of `aside` at a target.
fn shown_at<'a>(target: &Path, aside: &str, uses: &'a [Use]) -> Option<&'a Use> {
    let spelled = mount::spelled(target);
    uses.iter()
        .find(|one| one.root.starts_with(aside) && (one.target == target || one.target == spelled))
}

impl Older {
    /// Bytes and inodes of the tree, as far as they can be counted. Blocks.
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

impl CacheInner {
    /// What was set aside, and where it is used. Blocks.
    pub(super) fn set_aside(&self) -> Result<Vec<SetAside>> {
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

    /// Puts into the trash what was set aside and nothing mounts any more; what
    /// it took. With `only_told` nothing is done. Blocks.
    pub(super) fn drop_set_aside(&self, only_told: bool) -> Result<Space> {
        let mut freed = Space::default();
        let mut seen = HashSet::new();
        for one in self.set_aside()?.into_iter().filter(|one| one.mounts.is_empty()) {
            let path = self.layout.root().join(&one.name);
            freed = freed.saturating_add(space_of(&path, &mut seen)?);
            if only_told {
                continue;
            }
            discard(&self.layout, &path)?;
            tracing::info!(name = one.name, "removed a cache of an older layout that nothing uses");
            self.trash_filled.notify_one();
        }
        Ok(freed)
    }

    /// Removes all that was set aside, for a purge, which has asked who uses it.
    pub(super) fn remove_set_aside(&self) -> Result<()> {
        for name in names(&self.layout)? {
            let path = self.layout.root().join(name);
            files::delete_tree(&path)
                .map_err(|e| Error::io(format!("removing {}", path.display()), &e))?;
        }
        Ok(())
    }
}
