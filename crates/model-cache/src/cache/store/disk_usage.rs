//! The disk usage of the cache, read from the disk: the models, the inodes they
//! share, and the size of each. Space is counted in allocated blocks of unique
//! inodes, as `du` counts it.

use std::collections::HashMap;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::disk_space::Space;
use super::files;
use super::layout::Layout;
use super::layout::names::{self, BlobFile, Directory, StagingFile};
use super::models;
use super::reread::is_damage;
use super::set_aside;
use crate::error::{Error, Result};
use crate::model::{BlobId, ModelKey, Summary};

/// A last use further in the future than this means that the clock jumped back.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(60);

/// A snapshot of everything in the cache.
#[derive(Debug, Default)]
pub(in crate::cache) struct DiskUsage {
    pub(in crate::cache) models: Vec<StoredModel>,
    /// One per inode: after a re-upload, one inode has two ids.
    pub(in crate::cache) blobs: Vec<StoredBlob>,
    pub(in crate::cache) staging: Space,
    /// The files in staging that will become blobs.
    pub(in crate::cache) parts: Vec<(BlobId, Space)>,
    pub(in crate::cache) trash: Space,
    pub(in crate::cache) quarantine: Space,
    /// Caches of older layouts.
    pub(in crate::cache) aside: Space,
    /// Indexes, leases, pins.
    pub(in crate::cache) rest: Space,
}

#[derive(Debug)]
pub(in crate::cache) struct StoredModel {
    pub(in crate::cache) key: ModelKey,
    /// `None` when the model is torn and cannot be served.
    pub(in crate::cache) summary: Option<Summary>,
    pub(in crate::cache) last_used: SystemTime,
    /// Space of its directories, manifest and marker files.
    pub(in crate::cache) own: Space,
    /// Indices into [`DiskUsage::blobs`], each once.
    pub(in crate::cache) blobs: Vec<usize>,
}

#[derive(Debug)]
pub(in crate::cache) struct StoredBlob {
    pub(in crate::cache) ids: Vec<BlobId>,
    /// Space of the blob and its records.
    pub(in crate::cache) space: Space,
}

impl DiskUsage {
    /// Scans the whole cache without reading a blob. Blocks: a fraction of a second
    /// for tens of thousands of blobs.
    pub(in crate::cache) fn read(layout: &Layout) -> Result<Self> {
        let mut found = Self::default();
        let by_inode = found.read_blobs(layout)?;
        for name in files::names(&layout.models())? {
            if let Some(key) = ModelKey::parse(&name)
                && let Some(model) = StoredModel::read(layout, key, &by_inode)?
            {
                found.models.push(model);
            }
        }
        let rest = space_below_but(&layout.staging(), |name, metadata| {
            let id = StagingFile::parse(name).and_then(StagingFile::future_blob);
            let is_part = id.is_some();
            found.parts.extend(id.map(|id| (id, Space::of(metadata))));
            is_part
        })?;
        found.staging =
            found.parts.iter().map(|(_, space)| *space).fold(rest, Space::saturating_add);
        found.trash = space_below(&layout.trash())?;
        found.quarantine = space_below(&layout.quarantine())?;
        found.aside = set_aside::space(layout)?;
        for directory in
            [Directory::Content, Directory::Requests, Directory::Leases, Directory::Pins]
        {
            found.rest = found.rest.saturating_add(space_below(&layout.directory(directory))?);
        }
        Ok(found)
    }

    /// The space of the whole cache.
    pub(in crate::cache) fn total(&self) -> Space {
        let blobs = self.blobs.iter().map(|blob| blob.space);
        let own = self.models.iter().map(|model| model.own);
        let rest = [self.staging, self.trash, self.quarantine, self.aside, self.rest];
        blobs.chain(own).chain(rest).fold(Space::default(), Space::saturating_add)
    }

    /// The space of the whole cache without these blobs, complete or partial.
    pub(in crate::cache) fn total_without(&self, arriving: &HashMap<BlobId, u64>) -> Space {
        let blobs =
            self.blobs.iter().filter(|blob| blob.ids.iter().any(|id| arriving.contains_key(id)));
        let parts = self.parts.iter().filter(|(id, _)| arriving.contains_key(id));
        let spaces = blobs.map(|blob| blob.space).chain(parts.map(|(_, space)| *space));
        spaces.fold(self.total(), Space::saturating_sub)
    }

    /// Reads the blobs; returns their indices by inode number.
    fn read_blobs(&mut self, layout: &Layout) -> Result<HashMap<u64, usize>> {
        let mut by_inode = HashMap::new();
        // A record lies beside its blob.
        let (mut index, mut records) = (HashMap::new(), Vec::new());
        for fan in layout.fans()? {
            each(&fan, |name, metadata| match BlobFile::parse(name) {
                Some((BlobFile::Blob, id)) => {
                    let at = *by_inode.entry(metadata.ino()).or_insert_with(|| {
                        let (ids, space) = (Vec::with_capacity(1), Space::of(metadata));
                        self.blobs.push(StoredBlob { ids, space });
                        self.blobs.len() - 1
                    });
                    self.blobs[at].ids.push(id.clone());
                    index.insert(id, at);
                }
                other => records.push((other.map(|(_, id)| id), Space::of(metadata))),
            })?;
            for (id, space) in records.drain(..) {
                match id.and_then(|id| index.get(&id)) {
                    Some(at) => self.blobs[*at].space = self.blobs[*at].space.saturating_add(space),
                    None => self.rest = self.rest.saturating_add(space),
                }
            }
            index.clear();
        }
        Ok(by_inode)
    }
}

impl StoredModel {
    /// Reads a model; `None` when it was removed meanwhile. Its blobs are found
    /// through its tree, without its manifest.
    fn read(
        layout: &Layout,
        key: ModelKey,
        by_inode: &HashMap<u64, usize>,
    ) -> Result<Option<Self>> {
        let mut blobs = Vec::new();
        let links = |inode| blobs.extend(by_inode.get(&inode).copied());
        let Some(own) = own_space(&layout.model(&key), links)? else { return Ok(None) };
        blobs.sort_unstable();
        blobs.dedup();
        blobs.shrink_to_fit();
        let summary = models::summary(layout, &key)?;
        let last_used = last_used(layout, &key)?;
        Ok(Some(Self { key, summary, last_used, own, blobs }))
    }
}

/// Records that a model was used now. The manifest's modification time holds it,
/// since its content never changes: no extra file is needed, and it survives restarts.
pub(in crate::cache) fn touch(layout: &Layout, key: &ModelKey) -> Result<()> {
    set_last_used(layout, key, SystemTime::now())
}

fn set_last_used(layout: &Layout, key: &ModelKey, when: SystemTime) -> Result<()> {
    let path = layout.manifest(key);
    let set = fs::File::open(&path).and_then(|file| file.set_modified(when));
    match set {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(Error::io(format!("recording the last use of {}", path.display()), &e))
        }
        _ => Ok(()),
    }
}

/// Returns when a model was last used. A time in the future, left by a clock that
/// jumped back, is set to now.
fn last_used(layout: &Layout, key: &ModelKey) -> Result<SystemTime> {
    let now = SystemTime::now();
    let recorded = fs::metadata(layout.manifest(key)).and_then(|metadata| metadata.modified());
    let recorded = recorded.unwrap_or(SystemTime::UNIX_EPOCH);
    if recorded > now + CLOCK_TOLERANCE {
        set_last_used(layout, key, now)?;
        return Ok(now);
    }
    Ok(recorded)
}

/// Returns the space of a model's directory without the blobs that its tree links;
/// `link` gets their inodes. `None` when the directory is gone.
fn own_space(top: &Path, mut link: impl FnMut(u64)) -> Result<Option<Space>> {
    let Ok(metadata) = fs::symlink_metadata(top) else { return Ok(None) };
    let mut own = Space::of(&metadata);
    // Names with depths, since the full paths of a deep tree take much more memory.
    let mut path = top.to_owned();
    let (mut depth, mut open) = (0, Vec::new());
    loop {
        let below = depth + 1;
        each(&path, |name, metadata| {
            if metadata.is_dir() {
                open.push((below, name.to_owned()));
                own = own.saturating_add(Space::of(metadata));
            } else if metadata.nlink() == 1 {
                own = own.saturating_add(Space::of(metadata));
            } else {
                link(metadata.ino());
            }
        })?;
        let Some((at, name)) = open.pop() else { return Ok(Some(own)) };
        while depth >= at {
            path.pop();
            depth -= 1;
        }
        path.push(name);
        depth = at;
    }
}

/// Returns the space of a directory's content. An inode with other links is not
/// counted, except a quarantined blob: `blobs/` no longer has it.
pub(in crate::cache) fn space_below(top: &Path) -> Result<Space> {
    space_below_but(top, |_, _| false)
}

/// Returns the space that deleting this file or directory frees; zero if it is gone.
pub(in crate::cache) fn space_of(path: &Path) -> Result<Space> {
    let Ok(metadata) = fs::symlink_metadata(path) else { return Ok(Space::default()) };
    if metadata.is_dir() {
        return Ok(space_below(path)?.saturating_add(Space::of(&metadata)));
    }
    Ok(if metadata.nlink() == 1 { Space::of(&metadata) } else { Space::default() })
}

fn space_below_but(
    top: &Path,
    mut leave_out: impl FnMut(&str, &Metadata) -> bool,
) -> Result<Space> {
    let mut space = Space::default();
    let mut directories = vec![top.to_owned()];
    while let Some(directory) = directories.pop() {
        each(&directory, |name, metadata| {
            if metadata.is_dir() {
                directories.push(directory.join(name));
            }
            let at_top = directory == top;
            let aside = at_top && names::is_blob_aside(name);
            let counts = metadata.is_dir() || metadata.nlink() == 1 || aside;
            if counts && !(at_top && leave_out(name, metadata)) {
                space = space.saturating_add(Space::of(metadata));
            }
        })?;
    }
    Ok(space)
}

/// Visits every entry of a directory. Entries that vanish meanwhile, or that the
/// disk cannot read, are skipped.
fn each(directory: &Path, mut see: impl FnMut(&str, &Metadata)) -> Result<()> {
    let failed = |e: io::Error| Error::io(format!("listing {}", directory.display()), &e);
    let Some(entries) = undamaged(fs::read_dir(directory), directory).map_err(failed)? else {
        return Ok(());
    };
    for entry in entries {
        // After such an error there is no next entry.
        let Some(entry) = undamaged(entry, directory).map_err(failed)? else { return Ok(()) };
        if let Some(metadata) = undamaged(entry.metadata(), &entry.path()).map_err(failed)? {
            see(&entry.file_name().to_string_lossy(), &metadata);
        }
    }
    Ok(())
}

/// Returns `None` for an entry that is gone or damaged, so that one of those does
/// not end the whole scan.
fn undamaged<T>(read: io::Result<T>, path: &Path) -> io::Result<Option<T>> {
    match read {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if is_damage(&error) => {
            let path = path.display();
            tracing::warn!(%path, %error, "an entry of the cache cannot be read; check the disk");
            Ok(None)
        }
        read => read.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use nix::libc;

    use super::*;

    #[test]
    fn only_missing_and_damaged_entries_are_skipped() {
        let read =
            |errno| undamaged::<()>(Err(io::Error::from_raw_os_error(errno)), Path::new("x"));
        for skipped in [libc::EIO, libc::EUCLEAN, libc::EBADMSG, libc::ENOENT] {
            assert!(matches!(read(skipped), Ok(None)), "{skipped}");
        }
        for failure in [libc::EMFILE, libc::EACCES, libc::ENOMEM] {
            assert_eq!(read(failure).unwrap_err().raw_os_error(), Some(failure));
        }
        assert!(matches!(undamaged(Ok(()), Path::new("x")), Ok(Some(()))));
    }
}
