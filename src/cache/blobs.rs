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
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use serde::{Deserialize, Serialize};

use super::files;
use super::layout::Layout;
use super::reread::{self, Pace, is_damage};
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
        let _one = self.placing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.find(id)?.is_some() {
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

    /// The record of a blob that may be served, if there is one. A suspect is
    /// read from the disk first, and dropped when it is not what it should be.
    /// Blocks, for a suspect as long as reading it takes.
    pub(super) fn find(&self, id: &BlobId) -> Result<Option<BlobRecord>> {
        let Some((record, durable)) = self.read_record(id)? else { return Ok(None) };
        let path = self.layout.blob(id);
        let size = match fs::symlink_metadata(&path) {
            Ok(metadata) => metadata.len(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io(format!("looking at {}", path.display()), &e)),
        };
        if durable && size == record.size || self.lock().contains_key(id) {
            return Ok(Some(record));
        }
        if size == record.size && self.crc(id)? == Some(record.crc32c) {
            self.vouch_for(id);
            return Ok(Some(record));
        }
        tracing::warn!(
            blob = id.as_str(),
            object = record.object,
            "bytes in the cache are not what was downloaded (the machine may have lost power); \
             they are dropped and will be downloaded again"
        );
        self.evict(id)?;
        Ok(None)
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
        let _one = self.placing.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(record) = self.find(from)? else { return Ok(false) };
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
            reread::crc32c(&path, &mut Pace::new(None), |_| true)
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
mod tests {
    use super::*;

    struct Fixture {
        _dir: tempfile::TempDir,
        layout: Layout,
        id: BlobId,
    }

    const CONTENT: &[u8] = b"weights";

    fn fixture() -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        for name in super::super::layout::DIRECTORIES {
            fs::create_dir(layout.directory(name)).unwrap();
        }
        Fixture { _dir: dir, layout, id: BlobId::parse(&"ab".repeat(32)).unwrap() }
    }

    fn commit(f: &Fixture) -> Blobs {
        let blobs = Blobs::new(f.layout.clone());
        write_and_commit(f, &blobs);
        blobs
    }

    fn write_and_commit(f: &Fixture, blobs: &Blobs) {
        fs::write(f.layout.part(&f.id), CONTENT).unwrap();
        fs::write(f.layout.journal(&f.id), "").unwrap();
        let verified = Verified { crc32c: crc32c::crc32c(CONTENT), check: Check::Md5 };
        blobs.commit(&f.id, "m/weights", CONTENT.len() as u64, verified).unwrap();
    }

    #[test]
    fn a_committed_blob_is_found_and_leaves_nothing_in_staging() {
        let f = fixture();
        let blobs = commit(&f);
        assert_eq!(blobs.find(&f.id).unwrap().unwrap().check, Check::Md5);
        assert_eq!(files::names(&f.layout.staging()).unwrap(), [""; 0]);
        assert!(!blobs.is_durable(&f.id));
        blobs.made_durable(&blobs.before_sync(std::slice::from_ref(&f.id))).unwrap();
        assert!(blobs.is_durable(&f.id));
        assert!(blobs.find(&f.id).unwrap().is_some());
    }

    #[test]
    fn a_sync_vouches_for_no_blob_that_came_after_it_began() {
        let f = fixture();
        let blobs = commit(&f);
        let synced = blobs.before_sync(std::slice::from_ref(&f.id));
        blobs.evict(&f.id).unwrap();
        write_and_commit(&f, &blobs);
        blobs.made_durable(&synced).unwrap();
        assert!(!blobs.is_durable(&f.id));
        assert!(blobs.find(&f.id).unwrap().is_some());
    }

    #[test]
    fn a_suspect_of_an_earlier_process_is_read_before_it_is_served() {
        let f = fixture();
        drop(commit(&f));
        assert!(Blobs::new(f.layout.clone()).find(&f.id).unwrap().is_some(), "intact");
        for torn in [&b""[..], b"weight", b"weighty", b"WEIGHTS", b"\0\0\0\0\0\0\0"] {
            drop(commit(&f));
            files::set_mode(&f.layout.blob(&f.id), 0o644).unwrap();
            fs::write(f.layout.blob(&f.id), torn).unwrap();
            let blobs = Blobs::new(f.layout.clone());
            assert!(blobs.find(&f.id).unwrap().is_none(), "{torn:?} was served");
            assert!(!f.layout.blob(&f.id).exists());
        }
    }

    #[test]
    fn what_a_failed_sync_was_about_is_read_from_the_disk_until_it_is_found_good() {
        let f = fixture();
        let (blobs, ids) = (commit(&f), [f.id.clone()]);
        files::set_mode(&f.layout.blob(&f.id), 0o644).unwrap();
        for (content, good) in [(CONTENT, true), (b"WEIGHTS", false)] {
            fs::write(f.layout.blob(&f.id), content).unwrap();
            blobs.distrust(&ids);
            assert!(blobs.doubts().contains(&f.id) && blobs.before_sync(&ids).is_empty());
            assert_eq!(blobs.find(&f.id).unwrap().is_some(), good);
            assert_eq!(blobs.doubts().contains(&f.id), !good);
        }
    }

    #[test]
    fn a_torn_record_vouches_for_nothing() {
        let f = fixture();
        drop(commit(&f));
        let path = f.layout.blob_record_unsynced(&f.id);
        let whole = fs::read(&path).unwrap();
        for cut in [0, 1, whole.len() / 2, whole.len() - 1] {
            fs::write(&path, &whole[..cut]).unwrap();
            assert!(Blobs::new(f.layout.clone()).find(&f.id).unwrap().is_none());
        }
    }

    #[test]
    fn a_durable_blob_of_the_wrong_size_is_not_served() {
        let f = fixture();
        let blobs = commit(&f);
        blobs.made_durable(&blobs.before_sync(std::slice::from_ref(&f.id))).unwrap();
        files::set_mode(&f.layout.blob(&f.id), 0o644).unwrap();
        fs::write(f.layout.blob(&f.id), b"x").unwrap();
        assert!(Blobs::new(f.layout.clone()).find(&f.id).unwrap().is_none());
    }

    #[test]
    fn equal_content_under_a_new_etag_is_the_same_inode() {
        use std::os::unix::fs::MetadataExt;
        let f = fixture();
        let blobs = commit(&f);
        let other = BlobId::parse(&"cd".repeat(32)).unwrap();
        assert!(blobs.link(&f.id, &other).unwrap());
        assert!(blobs.find(&other).unwrap().is_some());
        let ino = |id| fs::metadata(f.layout.blob(id)).unwrap().ino();
        assert_eq!(ino(&f.id), ino(&other));
        assert!(!blobs.link(&BlobId::parse(&"ef".repeat(32)).unwrap(), &f.id).unwrap());
    }
}
