//! The verified object versions of the cache.
//!
//! # How a blob is committed
//!
//! 1. `staging/<id>.part` holds all bytes, and their checksum was compared.
//! 2. Its mode becomes 0444.
//! 3. `blobs/<2>/<id>.unsynced` is written: size, CRC-32C, check.
//! 4. `staging/<id>.part` is renamed to `blobs/<2>/<id>`: now it is a blob.
//! 5. `staging/<id>.journal` is removed.
//! 6. Later, after a sync of the file system, `.unsynced` is renamed to
//!    `.json`: from here on the blob survives a power loss.
//!
//! A killed process loses nothing, since the kernel has all writes:
//! - after 1 or 2: the part and its journal remain; the next download checks the
//!   journal's spans, finds nothing missing and continues with 2.
//! - after 3: a record without a blob means nothing and is overwritten.
//! - after 4: a journal without a part is removed at start.
//!
//! A power loss may lose anything that was not synced, in any order. So a blob
//! whose record is still `.unsynced` when a process finds it is a suspect: its
//! bytes are read and their CRC compared before it is served, or it is dropped.
//!
//! A file that an import adopts takes the same steps from 3 on, starting at its
//! own path: see `cache/fill/import.rs`.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use serde::{Deserialize, Serialize};

use super::files;
use super::layout::Layout;
use super::layout::names;
use super::lock_order;
use super::reread::{self, ReadPacer, is_damage};
use crate::abort_point;
use crate::download::{Check, Verified, crc32c_of_file};
use crate::error::{Error, Result};
use crate::model::BlobId;
use crate::sync::{OrderedGuard, OrderedMutex};

const FORMAT: u32 = 1;

/// The stored facts about a blob's bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::cache) struct BlobRecord {
    format: u32,
    /// Size in bytes.
    pub size: u64,
    /// CRC-32C of the content.
    pub crc32c: u32,
    /// How the content was verified.
    pub check: Check,
    /// The name of the object, for information.
    pub object: String,
}

/// The blobs of one cache.
#[derive(Debug)]
pub(in crate::cache) struct Blobs {
    layout: Layout,
    /// Unsynced blobs that this process wrote or checked itself, each with a
    /// number: a blob that is dropped and downloaded again gets a new one.
    known_good: OrderedMutex<HashMap<BlobId, u64>>,
    /// Blobs whose bytes in the page cache may never have reached the disk.
    distrusted: OrderedMutex<HashSet<BlobId>>,
    next: AtomicU64,
    placement: OrderedMutex<()>,
}

/// The state of a blob on the disk.
#[derive(Debug)]
pub(in crate::cache) enum BlobState {
    /// It may be served.
    Good(BlobRecord),
    /// It does not exist, or has no valid record.
    Absent,
    /// It differs from what was downloaded.
    Bad(Bad),
}

/// A blob that differs from what was downloaded.
#[derive(Debug)]
pub(in crate::cache) struct Bad {
    /// The record of what it should be.
    pub(in crate::cache) record: BlobRecord,
    /// How it differs.
    pub(in crate::cache) why: String,
    /// Whether it was once synced to the disk. Then the disk damaged it;
    /// otherwise a power loss may have torn it, which is not damage.
    pub(in crate::cache) was_durable: bool,
    /// The file that was inspected.
    pub(in crate::cache) read: Inode,
}

/// Identifies a file independently of its name, which another file may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cache) struct Inode {
    dev: u64,
    ino: u64,
}

/// See [`lock_order::PLACEMENT`].
#[derive(Debug)]
pub(in crate::cache) struct PlacementLock<'a>(
    #[expect(dead_code, reason = "held for its end")] OrderedGuard<'a, ()>,
);

/// The outcome of placing a verified file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cache) enum Placed {
    /// The file is the blob now.
    Blob,
    /// The blob existed already; the file was not moved.
    Late,
    /// The caller did not rename it.
    Refused,
}

impl Blobs {
    pub(in crate::cache) fn new(layout: Layout) -> Self {
        Self {
            layout,
            known_good: OrderedMutex::new(lock_order::BLOBS, HashMap::new()),
            distrusted: OrderedMutex::new(lock_order::DISTRUSTED, HashSet::new()),
            next: AtomicU64::new(0),
            placement: OrderedMutex::new(lock_order::PLACEMENT, ()),
        }
    }

    /// Commits a verified part; see the module's numbered steps. Blocks.
    pub(in crate::cache) fn commit(
        &self,
        id: &BlobId,
        object: &str,
        size: u64,
        verified: Verified,
    ) -> Result<()> {
        let part = self.layout.part(id);
        abort_point::reach("blob-commit-1");
        files::set_mode(&part, 0o444)?;
        abort_point::reach("blob-commit-2");
        // An abandoned flight may still get this far: then another one placed
        // the blob first, and this part is not needed.
        match self
            .place(id, object, size, verified, |blob| fs::rename(&part, blob).map(|()| true))?
        {
            Placed::Blob => {
                abort_point::reach("blob-commit-4");
                files::remove(&self.layout.journal(id))?;
                abort_point::reach("blob-commit-5");
                Ok(())
            }
            Placed::Late | Placed::Refused => self.abandon(id),
        }
    }

    /// Performs steps 3 and 4 for a verified file of mode 0444. `rename` moves it to
    /// the given path, or returns `false` to refuse. Blocks.
    pub(in crate::cache) fn place(
        &self,
        id: &BlobId,
        object: &str,
        size: u64,
        verified: Verified,
        rename: impl FnOnce(&Path) -> io::Result<bool>,
    ) -> Result<Placed> {
        let lock = self.lock_placement();
        if self.find_locked(&lock, id)?.is_some() {
            return Ok(Placed::Late);
        }
        let Verified { crc32c, check } = verified;
        self.write_record(
            id,
            &BlobRecord { format: FORMAT, size, crc32c, check, object: object.to_owned() },
        )?;
        abort_point::reach("blob-commit-3");
        let blob = self.layout.blob(id);
        let renamed = rename(&blob).map_err(|e| {
            Error::io(format!("renaming a verified file to {}", blob.display()), &e)
        })?;
        if !renamed {
            files::remove(&self.layout.blob_record_unsynced(id))?;
            return Ok(Placed::Refused);
        }
        self.mark_good(id);
        Ok(Placed::Blob)
    }

    /// Returns the record of a blob that may be served, if there is one. A bad blob
    /// is dropped. Blocks, as [`Blobs::inspect`] does.
    #[cfg(test)]
    pub(in crate::cache) fn find(&self, id: &BlobId) -> Result<Option<BlobRecord>> {
        self.find_locked(&self.lock_placement(), id)
    }

    fn find_locked(&self, lock: &PlacementLock<'_>, id: &BlobId) -> Result<Option<BlobRecord>> {
        match self.inspect(id)? {
            BlobState::Good(record) => Ok(Some(record)),
            BlobState::Absent => Ok(None),
            BlobState::Bad(bad) => self.drop_torn(lock, id, &bad).map(|()| None),
        }
    }

    /// Locks the places of all blobs: while held, no other caller adds a blob.
    pub(in crate::cache) fn lock_placement(&self) -> PlacementLock<'_> {
        PlacementLock(self.placement.lock())
    }

    /// Whether the file that was read is still the blob.
    pub(in crate::cache) fn is_unchanged(&self, id: &BlobId, read: Inode) -> bool {
        self.inode(id) == Some(read)
    }

    pub(in crate::cache) fn inode(&self, id: &BlobId) -> Option<Inode> {
        let found = fs::symlink_metadata(self.layout.blob(id)).ok()?;
        Some(Inode { dev: found.dev(), ino: found.ino() })
    }

    /// Inspects a blob. A suspect is read from the disk first. Blocks; for a
    /// suspect, while it is read.
    pub(in crate::cache) fn inspect(&self, id: &BlobId) -> Result<BlobState> {
        let Some((record, durable)) = self.read_record(id)? else { return Ok(BlobState::Absent) };
        let path = self.layout.blob(id);
        let metadata = match fs::symlink_metadata(&path) {
            Ok(metadata) => metadata,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(BlobState::Absent),
            Err(e) => return Err(Error::io(format!("looking at {}", path.display()), &e)),
        };
        let size = metadata.len();
        let why = match size == record.size {
            true if durable || self.lock().contains_key(id) => return Ok(BlobState::Good(record)),
            true if self.crc(id)? == Some(record.crc32c) => {
                self.mark_good(id);
                return Ok(BlobState::Good(record));
            }
            true => "its CRC-32C has changed".to_owned(),
            false => format!("it has {size} bytes instead of {}", record.size),
        };
        // It may have been synced under another name.
        let was_durable = durable || self.names_of(id)?.iter().any(|id| self.is_durable(id));
        let read = Inode { dev: metadata.dev(), ino: metadata.ino() };
        Ok(BlobState::Bad(Bad { record, why, was_durable, read }))
    }

    /// Drops a blob that a power loss tore, under all of its names. Blocks.
    pub(in crate::cache) fn drop_torn(
        &self,
        _lock: &PlacementLock<'_>,
        id: &BlobId,
        bad: &Bad,
    ) -> Result<()> {
        tracing::warn!(
            blob = id.as_str(),
            object = bad.record.object,
            "a cached blob differs from what was downloaded (the machine may have lost power); \
             it was dropped and will be downloaded again"
        );
        for id in self.names_of(id)? {
            self.evict(&id)?;
        }
        Ok(())
    }

    /// Returns the blob's id, and the other ids that name the same inode.
    fn names_of(&self, id: &BlobId) -> Result<Vec<BlobId>> {
        let own = self.inode(id);
        let mut names = vec![id.clone()];
        for fan in self.layout.fans()? {
            let ids = files::names(&fan)?.into_iter().filter_map(|name| BlobId::parse(&name));
            names.extend(
                ids.filter(|other| other != id && own.is_some() && self.inode(other) == own),
            );
        }
        Ok(names)
    }

    /// Removes an unfinished download that will not be resumed.
    pub(in crate::cache) fn abandon(&self, id: &BlobId) -> Result<()> {
        files::remove(&self.layout.part(id))?;
        files::remove(&self.layout.journal(id))
    }

    /// Forgets that blobs were good: they are read again, from the disk and not
    /// from the page cache, before they are served.
    pub(in crate::cache) fn distrust(&self, ids: &[BlobId]) {
        for id in ids {
            self.lock_distrusted().insert(id.clone());
            self.lock().remove(id);
            if let Ok(file) = fs::File::open(self.layout.blob(id)) {
                // Pods should see the disk's bytes too. Only advice: mapped pages stay.
                let _ = posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
            }
        }
    }

    /// Links a blob to a second id: the same content under a new ETag. Returns `false`
    /// when there is no such blob.
    pub(in crate::cache) fn link(&self, from: &BlobId, to: &BlobId) -> Result<bool> {
        let lock = self.lock_placement();
        let Some(record) = self.find_locked(&lock, from)? else { return Ok(false) };
        self.write_record(to, &record)?;
        let (source, target) = (self.layout.blob(from), self.layout.blob(to));
        // A file without a good record may already have this name.
        files::rename(&target, &self.trashed(to))?;
        match fs::hard_link(&source, &target) {
            // Evicted after it was found.
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            linked => linked.map_err(|e| {
                Error::io(format!("linking {} to {}", source.display(), target.display()), &e)
            })?,
        }
        self.mark_good(to);
        Ok(true)
    }

    /// Lists the blobs that a sync beginning now will make durable.
    pub(in crate::cache) fn before_sync(&self, ids: &[BlobId]) -> Vec<(BlobId, u64)> {
        let known = self.lock();
        ids.iter().filter_map(|id| Some((id.clone(), *known.get(id)?))).collect()
    }

    /// Records that these blobs are durable, except those that were dropped
    /// and downloaded again since [`Blobs::before_sync`].
    pub(in crate::cache) fn mark_durable(&self, synced: &[(BlobId, u64)]) -> Result<()> {
        for (id, number) in synced {
            // Held during the rename, so that the record cannot be replaced before it.
            let mut known = self.lock();
            if known.get(id) == Some(number) {
                let unsynced = self.layout.blob_record_unsynced(id);
                files::rename(&unsynced, &self.layout.blob_record(id))?;
                abort_point::reach("blob-commit-6");
                known.remove(id);
            }
        }
        Ok(())
    }

    /// Reads the record of a blob, without checking its bytes, and whether it is
    /// durable.
    pub(in crate::cache) fn record(&self, id: &BlobId) -> Result<Option<(BlobRecord, bool)>> {
        self.read_record(id)
    }

    /// Moves a blob to the trash; see the numbered steps of `cache/space/evict.rs`. Blocks.
    pub(in crate::cache) fn evict(&self, id: &BlobId) -> Result<()> {
        self.lock().remove(id);
        files::rename(&self.layout.blob(id), &self.trashed(id))?;
        abort_point::reach("evict-3");
        files::remove(&self.layout.blob_record(id))?;
        files::remove(&self.layout.blob_record_unsynced(id))?;
        abort_point::reach("evict-4");
        Ok(())
    }

    /// Moves a damaged blob to quarantine. Blocks.
    pub(in crate::cache) fn quarantine(&self, id: &BlobId) -> Result<()> {
        self.lock().remove(id);
        let aside = self.layout.quarantine().join(names::quarantined_blob(id));
        files::rename(&self.layout.blob(id), &aside)?;
        files::remove(&self.layout.blob_record(id))?;
        files::remove(&self.layout.blob_record_unsynced(id))
    }

    /// Whether a blob is recorded as durable.
    pub(in crate::cache) fn is_durable(&self, id: &BlobId) -> bool {
        self.layout.blob_record(id).exists()
    }

    fn write_record(&self, id: &BlobId, record: &BlobRecord) -> Result<()> {
        files::make_directory(&self.layout.blob_directory(id), 0o755)?;
        // A leftover record of a dropped blob must not count for this one.
        files::remove(&self.layout.blob_record(id))?;
        let json = serde_json::to_vec(record).map_err(|e| {
            Error::internal(format!("writing the record of blob {id}: {e}")).caused_by(e)
        })?;
        files::write_whole(&self.layout.blob_record_unsynced(id), &json, 0o644)
    }

    /// Reads the record, and whether it is durable. A torn record counts as absent.
    fn read_record(&self, id: &BlobId) -> Result<Option<(BlobRecord, bool)>> {
        // The durable name is read twice: the syncer may rename in between.
        let durable = self.layout.blob_record(id);
        let unsynced = self.layout.blob_record_unsynced(id);
        for (path, durable) in [(&durable, true), (&unsynced, false), (&durable, true)] {
            let Some(bytes) = files::read(path)? else { continue };
            let record = serde_json::from_slice::<BlobRecord>(&bytes).ok();
            if let Some(record) = record.filter(|record| record.format == FORMAT) {
                return Ok(Some((record, durable)));
            }
        }
        Ok(None)
    }

    /// Computes the CRC-32C of a blob's bytes; `None` when the disk cannot read them.
    fn crc(&self, id: &BlobId) -> Result<Option<u32>> {
        let path = self.layout.blob(id);
        let read = if self.lock_distrusted().contains(id) {
            reread::crc32c(&path, &mut ReadPacer::new(None), |_| true)
        } else {
            crc32c_of_file(&path).map(Some)
        };
        match read {
            Ok(read) => Ok(read.map(|(crc32c, _)| crc32c)),
            Err(e) if is_damage(&e) => Ok(None),
            Err(e) => Err(Error::io(format!("checking {}", path.display()), &e)),
        }
    }

    /// Returns a new name in the trash. It is numbered, since renaming a file to
    /// another name of the same inode does nothing.
    fn trashed(&self, id: &BlobId) -> PathBuf {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.layout.trash().join(names::trashed_blob(id, number))
    }

    /// Records that a blob was read from the disk and is good. A durable one needs no mark.
    pub(in crate::cache) fn confirm(&self, id: &BlobId) {
        // One that is known keeps its number: a sync that has begun may count on it.
        let is_known = self.lock().contains_key(id);
        if is_known {
            self.lock_distrusted().remove(id);
        } else if !self.is_durable(id) {
            self.mark_good(id);
        }
    }

    fn mark_good(&self, id: &BlobId) {
        self.lock_distrusted().remove(id);
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.lock().insert(id.clone(), number);
    }

    fn lock_distrusted(&self) -> OrderedGuard<'_, HashSet<BlobId>> {
        self.distrusted.lock()
    }

    fn lock(&self) -> OrderedGuard<'_, HashMap<BlobId, u64>> {
        self.known_good.lock()
    }
}

#[cfg(test)]
#[path = "blobs_tests.rs"]
mod tests;
