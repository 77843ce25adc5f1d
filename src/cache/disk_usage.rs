//! What stands in the cache, read from the disk: the models, the inodes they
//! share, and what each takes. Space is counted in allocated blocks of unique
//! inodes, as `du` counts it.

use std::collections::HashMap;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::layout::Layout;
use super::models;
use super::policy::Space;
use super::reread::is_damage;
use super::{files, set_aside};
use crate::error::{Error, Result};
use crate::model::{BlobId, ModelKey, Summary};

/// A last use further ahead than this is a clock that jumped back.
const AHEAD: Duration = Duration::from_secs(60);

/// Everything, at one moment.
#[derive(Debug, Default)]
pub(super) struct DiskUsage {
    pub(super) models: Vec<StoredModel>,
    /// One for each inode: a re-upload has two names for one.
    pub(super) blobs: Vec<StoredBlob>,
    pub(super) staging: Space,
    /// Those of it that become blobs.
    pub(super) parts: Vec<(BlobId, Space)>,
    pub(super) trash: Space,
    pub(super) quarantine: Space,
    /// Caches of older layouts.
    pub(super) aside: Space,
    /// Indexes, leases, pins.
    pub(super) rest: Space,
}

#[derive(Debug)]
pub(super) struct StoredModel {
    pub(super) key: ModelKey,
    /// `None` when it is torn: nobody can be served from it.
    pub(super) summary: Option<Summary>,
    pub(super) last_used: SystemTime,
    /// Its directories, manifest and marks.
    pub(super) own: Space,
    /// Indices into [`DiskUsage::blobs`], each once.
    pub(super) blobs: Vec<usize>,
}

#[derive(Debug)]
pub(super) struct StoredBlob {
    pub(super) ids: Vec<BlobId>,
    /// Its blocks and its records'.
    pub(super) space: Space,
}

impl DiskUsage {
    /// Looks at the whole cache. Blocks: a fraction of a second for tens of
    /// thousands of blobs, and no blob is read.
    pub(super) fn read(layout: &Layout) -> Result<Self> {
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
            let part = name.strip_suffix(".part").and_then(BlobId::parse);
            let id = part.or_else(|| Layout::blob_of_copy(name));
            let is_part = id.is_some();
            found.parts.extend(id.map(|id| (id, Space::of(metadata))));
            is_part
        })?;
        found.staging =
            found.parts.iter().map(|(_, space)| *space).fold(rest, Space::saturating_add);
        found.trash = space_below(&layout.trash())?;
        found.quarantine = space_below(&layout.quarantine())?;
        found.aside = set_aside::space(layout)?;
        for name in ["content", "requests", "leases", "pins"] {
            found.rest = found.rest.saturating_add(space_below(&layout.directory(name))?);
        }
        Ok(found)
    }

    /// All of it.
    pub(super) fn total(&self) -> Space {
        let blobs = self.blobs.iter().map(|blob| blob.space);
        let own = self.models.iter().map(|model| model.own);
        let rest = [self.staging, self.trash, self.quarantine, self.aside, self.rest];
        blobs.chain(own).chain(rest).fold(Space::default(), Space::saturating_add)
    }

    /// All of it but these blobs, arrived or not.
    pub(super) fn total_without(&self, arriving: &HashMap<BlobId, u64>) -> Space {
        let blobs =
            self.blobs.iter().filter(|blob| blob.ids.iter().any(|id| arriving.contains_key(id)));
        let parts = self.parts.iter().filter(|(id, _)| arriving.contains_key(id));
        let spaces = blobs.map(|blob| blob.space).chain(parts.map(|(_, space)| *space));
        spaces.fold(self.total(), Space::saturating_sub)
    }

    /// The blobs, by their inodes.
    fn read_blobs(&mut self, layout: &Layout) -> Result<HashMap<u64, usize>> {
        let mut by_inode = HashMap::new();
        // A record stands beside its blob.
        let (mut index, mut records) = (HashMap::new(), Vec::new());
        for fan in layout.fans()? {
            each(&fan, |name, metadata| {
                if let Some(id) = BlobId::parse(name) {
                    let at = *by_inode.entry(metadata.ino()).or_insert_with(|| {
                        let (ids, space) = (Vec::with_capacity(1), Space::of(metadata));
                        self.blobs.push(StoredBlob { ids, space });
                        self.blobs.len() - 1
                    });
                    self.blobs[at].ids.push(id.clone());
                    index.insert(id, at);
                } else {
                    records.push((name.to_owned(), Space::of(metadata)));
                }
            })?;
            for (name, space) in records.drain(..) {
                let id = name.split('.').next().and_then(BlobId::parse);
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
    /// `None` when it left meanwhile. Its manifest is not read: which blobs it
    /// has, its tree says.
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

impl Space {
    /// What one inode takes.
    pub(super) fn of(metadata: &Metadata) -> Self {
        Self { bytes: metadata.blocks().saturating_mul(512), inodes: 1 }
    }
}

/// Notes that a model was used now. The time is that of the manifest, whose
/// content never changes: it needs no file of its own and survives restarts.
pub(super) fn touch(layout: &Layout, key: &ModelKey) -> Result<()> {
    set_last_used(layout, key, SystemTime::now())
}

fn set_last_used(layout: &Layout, key: &ModelKey, when: SystemTime) -> Result<()> {
    let path = layout.manifest(key);
    let set = fs::File::open(&path).and_then(|file| file.set_modified(when));
    match set {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(Error::io(format!("noting the last use of {}", path.display()), &e))
        }
        _ => Ok(()),
    }
}

/// When a model was used last. After a clock jumped back it would stay the
/// newest for as long as it jumped; such a time is set to now.
fn last_used(layout: &Layout, key: &ModelKey) -> Result<SystemTime> {
    let now = SystemTime::now();
    let noted = fs::metadata(layout.manifest(key)).and_then(|metadata| metadata.modified());
    let noted = noted.unwrap_or(SystemTime::UNIX_EPOCH);
    if noted > now + AHEAD {
        set_last_used(layout, key, now)?;
        return Ok(now);
    }
    Ok(noted)
}

/// What a model's directory takes besides the blobs that its tree names, whose
/// inodes are shown to `link`; `None` when it is gone.
fn own_space(top: &Path, mut link: impl FnMut(u64)) -> Result<Option<Space>> {
    let Ok(metadata) = fs::symlink_metadata(top) else { return Ok(None) };
    let mut own = Space::of(&metadata);
    // Names and depths: whole paths of a deep tree would be many times as long.
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

/// What a directory's content takes. An inode with names elsewhere is counted
/// there, but for a blob that was put aside: `blobs/` has it no more.
pub(super) fn space_below(top: &Path) -> Result<Space> {
    space_below_but(top, |_, _| false)
}

/// What becomes free with this file or directory; nothing where it is gone.
pub(super) fn space_of(path: &Path) -> Result<Space> {
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
            let aside = at_top && name.starts_with("blob-");
            let counts = metadata.is_dir() || metadata.nlink() == 1 || aside;
            if counts && !(at_top && leave_out(name, metadata)) {
                space = space.saturating_add(Space::of(metadata));
            }
        })?;
    }
    Ok(space)
}

/// Every entry of a directory; what vanishes meanwhile is left out, and so is
/// what the disk cannot give back.
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

/// `None` for what is gone, and for what is damaged: one of those must not end
/// the looking after all others.
fn undamaged<T>(read: io::Result<T>, path: &Path) -> io::Result<Option<T>> {
    match read {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if is_damage(&error) => {
            let path = path.display();
            tracing::warn!(%path, %error, "something in the cache cannot be read; look at the disk");
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
    fn what_the_disk_cannot_give_back_is_passed_over_and_no_other_failure_is() {
        let read =
            |errno| undamaged::<()>(Err(io::Error::from_raw_os_error(errno)), Path::new("x"));
        for passed_over in [libc::EIO, libc::EUCLEAN, libc::EBADMSG, libc::ENOENT] {
            assert!(matches!(read(passed_over), Ok(None)), "{passed_over}");
        }
        for told in [libc::EMFILE, libc::EACCES, libc::ENOMEM] {
            assert_eq!(read(told).unwrap_err().raw_os_error(), Some(told));
        }
        assert!(matches!(undamaged(Ok(()), Path::new("x")), Ok(Some(()))));
    }
}
