//! The verified object versions of the cache.
//!
//! # How a blob is committed
//!
//! 1. `staging/<id>.part` holds all bytes, and their checksum was compared.
//! 2. Its mode becomes 0444.
//! 3. `blobs/<2>/<id>.unsynced` is written: size, CRC-32C, what proved it.
//! 4. `staging/<id>.part` is renamed to `blobs/<2>/<id>`: now it is a blob.
//! 5. `staging/<id>.journal` is removed.
//! 6. Later, after a sync of the file system, `.unsynced` is renamed to
//!    `.json`: the machine may die from here on.
//!
//! A killed process loses nothing of this, since the kernel has it all:
//! - after 1 or 2: the part and its journal; the next download checks the
//!   journal's spans, finds nothing missing and goes on with 2.
//! - after 3: a record without a blob means nothing and is overwritten.
//! - after 4: a journal without a part is removed at start.
//!
//! A dead machine may have lost anything that was not synced, in any order.
//! So a blob whose record is still `.unsynced` when a process finds it is a
//! suspect: it is read and its CRC compared before it is served, or dropped.
//!
//! A file that an import adopts goes the same way from 3 on, from a place of
//! its own: see `import.rs`.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use serde::{Deserialize, Serialize};

use super::files;
use super::layout::Layout;
use super::reread::{self, ReadPacer, is_damage};
use crate::abort_point;
use crate::download::{Check, Verified, crc32c_of_file};
use crate::error::{Error, Result};
use crate::model::BlobId;

const FORMAT: u32 = 1;

/// What is known of a blob's bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BlobRecord {
    format: u32,
    /// Size in bytes.
    pub size: u64,
    /// CRC-32C of the content.
    pub crc32c: u32,
    /// What proved the content when it was downloaded.
    pub check: Check,
    /// The object, for people.
    pub object: String,
}

/// The blobs of one cache.
#[derive(Debug)]
pub(super) struct Blobs {
    layout: Layout,
    /// Unsynced blobs that this process wrote or checked itself, numbered by
    /// when: one that is dropped and comes again is another.
    known_good: Mutex<HashMap<BlobId, u64>>,
    /// Blobs of which memory may show what the disk never got.
    distrusted: Mutex<HashSet<BlobId>>,
    next: AtomicU64,
    /// Held while a verified file becomes a blob: a download and an import may
    /// bring the same one.
    placing: Mutex<()>,
}

/// What there is of a blob.
#[derive(Debug)]
pub(super) enum BlobState {
    /// It may be served.
    Good(BlobRecord),
    /// Nothing, or nothing that anybody vouches for.
    Absent,
    /// Something else than what was downloaded.
    Bad(Bad),
}

#[derive(Debug)]
pub(super) struct Bad {
    /// What it should be.
    pub(super) record: BlobRecord,
    /// How it differs.
    pub(super) why: String,
    /// It was on the disk once: the disk has damaged it. Else a power loss may
    /// have torn it, which is no damage.
    pub(super) was_durable: bool,
    /// What was looked at.
    pub(super) read: Inode,
}

/// Which file it is, whatever its name says by then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Inode {
    dev: u64,
    ino: u64,
}

/// See [`Blobs::placing`].
#[derive(Debug)]
pub(super) struct PlacementLock<'a>(
    #[expect(dead_code, reason = "held for its end")] MutexGuard<'a, ()>,
);

/// What became of a verified file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Placed {
    /// It is the blob now.
    Blob,
    /// The blob was there already; the file is where it was.
    Late,
    /// The caller did not rename it.
    Refused,
}

impl Blobs {
    pub(super) fn new(layout: Layout) -> Self {
        Self {
            layout,
            known_good: Mutex::default(),
            distrusted: Mutex::default(),
            next: AtomicU64::new(0),
            placing: Mutex::default(),
        }
    }

    /// Commits a verified part; see the module's numbered steps. Blocks.
    pub(super) fn commit(
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
        // A flight that was given up may have come this far all the same: then
        // it is late, and its part is not needed.
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

    /// Steps 3 and 4 for a verified file of mode 0444, which `rename` brings to
    /// the path that it gets, or not. Blocks.
    pub(super) fn place(
        &self,
        id: &BlobId,
        object: &str,
        size: u64,
        verified: Verified,
        rename: impl FnOnce(&Path) -> io::Result<bool>,
    ) -> Result<Placed> {
        let placing = self.placing();
        if self.find_while(&placing, id)?.is_some() {
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
        self.vouch_for(id);
        Ok(Placed::Blob)
    }

    /// The record of a blob that may be served, if there is one. What is not
    /// what it should be is dropped. Blocks, as [`Blobs::look`].
    #[cfg(test)]
    pub(super) fn find(&self, id: &BlobId) -> Result<Option<BlobRecord>> {
        self.find_while(&self.placing(), id)
    }

    fn find_while(&self, placing: &PlacementLock<'_>, id: &BlobId) -> Result<Option<BlobRecord>> {
        match self.look(id)? {
            BlobState::Good(record) => Ok(Some(record)),
            BlobState::Absent => Ok(None),
            BlobState::Bad(bad) => self.drop_torn(placing, id, &bad).map(|()| None),
        }
    }

    /// The right to put a blob where one is to be: what stands there stays.
    pub(super) fn placing(&self) -> PlacementLock<'_> {
        PlacementLock(self.placing.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether what was read stands there still.
    pub(super) fn stands(&self, id: &BlobId, read: Inode) -> bool {
        self.inode(id) == Some(read)
    }

    pub(super) fn inode(&self, id: &BlobId) -> Option<Inode> {
        let found = fs::symlink_metadata(self.layout.blob(id)).ok()?;
        Some(Inode { dev: found.dev(), ino: found.ino() })
    }

    /// What there is of a blob. A suspect is read from the disk first. Blocks,
    /// for a suspect as long as reading it takes.
    pub(super) fn look(&self, id: &BlobId) -> Result<BlobState> {
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
                self.vouch_for(id);
                return Ok(BlobState::Good(record));
            }
            true => "its CRC-32C is not the one it had".to_owned(),
            false => format!("it has {size} bytes instead of {}", record.size),
        };
        // Also under another name it may have been on the disk once.
        let was_durable = durable || self.names_of(id)?.iter().any(|id| self.is_durable(id));
        let read = Inode { dev: metadata.dev(), ino: metadata.ino() };
        Ok(BlobState::Bad(Bad { record, why, was_durable, read }))
    }

    /// Drops what a power loss tore, under all of its names. Blocks.
    pub(super) fn drop_torn(
        &self,
        _placing: &PlacementLock<'_>,
        id: &BlobId,
        bad: &Bad,
    ) -> Result<()> {
        tracing::warn!(
            blob = id.as_str(),
            object = bad.record.object,
            "bytes in the cache are not what was downloaded (the machine may have lost power); \
             they are dropped and will be downloaded again"
        );
        for id in self.names_of(id)? {
            self.evict(&id)?;
        }
        Ok(())
    }

    /// The blob's id, and those that are other names of its inode.
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

    /// Removes what was downloaded of a version that nobody can ask for again.
    pub(super) fn abandon(&self, id: &BlobId) -> Result<()> {
        files::remove(&self.layout.part(id))?;
        files::remove(&self.layout.journal(id))
    }

    /// Forgets what this process knew of blobs: they are read again before
    /// they are served, from the disk and not from memory.
    pub(super) fn distrust(&self, ids: &[BlobId]) {
        for id in ids {
            self.doubts().insert(id.clone());
            self.lock().remove(id);
            if let Ok(file) = fs::File::open(self.layout.blob(id)) {
                // Pods are to see the disk's bytes too. Advice: what they map stays.
                let _ = posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
            }
        }
    }

    /// Gives a blob a second name: the same content under a new ETag.
    pub(super) fn link(&self, from: &BlobId, to: &BlobId) -> Result<bool> {
        let placing = self.placing();
        let Some(record) = self.find_while(&placing, from)? else { return Ok(false) };
        self.write_record(to, &record)?;
        let (source, target) = (self.layout.blob(from), self.layout.blob(to));
        // What stands there without a good record is not what is linked now.
        files::rename(&target, &self.trashed(to))?;
        match fs::hard_link(&source, &target) {
            // Evicted between the look and the link.
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            linked => linked.map_err(|e| {
                Error::io(format!("linking {} to {}", source.display(), target.display()), &e)
            })?,
        }
        self.vouch_for(to);
        Ok(true)
    }

    /// Which blobs stand now and are to be noted as durable after a sync that
    /// begins now.
    pub(super) fn before_sync(&self, ids: &[BlobId]) -> Vec<(BlobId, u64)> {
        let known = self.lock();
        ids.iter().filter_map(|id| Some((id.clone(), *known.get(id)?))).collect()
    }

    /// Notes that these blobs are on the disk, except those that were dropped
    /// and downloaded again since [`Blobs::before_sync`].
    pub(super) fn made_durable(&self, synced: &[(BlobId, u64)]) -> Result<()> {
        for (id, number) in synced {
            // Over the rename, so that it is not another blob's record by then.
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

    /// The record of a blob, whether its bytes are good or not, and whether it
    /// is durable.
    pub(super) fn record(&self, id: &BlobId) -> Result<Option<(BlobRecord, bool)>> {
        self.read_record(id)
    }

    /// Takes a blob away; see the numbered steps of `evict.rs`. Blocks.
    pub(super) fn evict(&self, id: &BlobId) -> Result<()> {
        self.lock().remove(id);
        files::rename(&self.layout.blob(id), &self.trashed(id))?;
        abort_point::reach("evict-3");
        files::remove(&self.layout.blob_record(id))?;
        files::remove(&self.layout.blob_record_unsynced(id))?;
        abort_point::reach("evict-4");
        Ok(())
    }

    /// Puts a damaged blob into quarantine. Blocks.
    pub(super) fn put_aside(&self, id: &BlobId) -> Result<()> {
        self.lock().remove(id);
        let name = format!("blob-{id}");
        files::rename(&self.layout.blob(id), &self.layout.quarantine().join(name))?;
        files::remove(&self.layout.blob_record(id))?;
        files::remove(&self.layout.blob_record_unsynced(id))
    }

    /// Whether a blob's record says that it is on the disk.
    pub(super) fn is_durable(&self, id: &BlobId) -> bool {
        self.layout.blob_record(id).exists()
    }

    fn write_record(&self, id: &BlobId, record: &BlobRecord) -> Result<()> {
        files::make_directory(&self.layout.blob_directory(id), 0o755)?;
        // A record of a blob that was dropped must not vouch for this one.
        files::remove(&self.layout.blob_record(id))?;
        let json = serde_json::to_vec(record)
            .map_err(|e| Error::internal(format!("writing the record of blob {id}: {e}")))?;
        files::write_whole(&self.layout.blob_record_unsynced(id), &json, 0o644)
    }

    /// The record, and whether it is durable. A torn one is none.
    fn read_record(&self, id: &BlobId) -> Result<Option<(BlobRecord, bool)>> {
        // The durable name is asked twice: the syncer may rename in between.
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

    /// CRC-32C of a blob's bytes; `None` when the disk cannot give them back.
    fn crc(&self, id: &BlobId) -> Result<Option<u32>> {
        let path = self.layout.blob(id);
        let read = if self.doubts().contains(id) {
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

    /// A name in the trash. Numbered, since renaming a file to another name of
    /// the same inode does nothing.
    fn trashed(&self, id: &BlobId) -> PathBuf {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.layout.trash().join(format!("blob-{id}.{}.{number}", std::process::id()))
    }

    fn vouch_for(&self, id: &BlobId) {
        self.doubts().remove(id);
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.lock().insert(id.clone(), number);
    }

    fn doubts(&self) -> MutexGuard<'_, HashSet<BlobId>> {
        self.distrusted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<BlobId, u64>> {
        self.known_good.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[path = "blobs_tests.rs"]
mod tests;
