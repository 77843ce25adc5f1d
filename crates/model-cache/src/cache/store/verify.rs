//! Verification: reads the cache again, and compares it with what was downloaded.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::CacheStore;
use super::disk_usage::DiskUsage;
use super::layout::names::ModelFile;
use super::quarantine::Damage;
use super::reread::{self, ReadPacer, is_damage};
use crate::blocking::blocking;
use crate::error::{Error, ErrorKind, Result};
use crate::model::{BlobId, ModelKey};

/// The progress of a verification.
#[derive(Debug, Default)]
pub struct VerifyProgress {
    done: AtomicU64,
    total: AtomicU64,
}

impl VerifyProgress {
    /// Bytes read so far.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Bytes to read in total.
    pub fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }
}

/// The result of a verification.
#[derive(Debug, Default)]
pub struct Verification {
    /// Models whose trees were compared with their manifests.
    pub models: usize,
    /// Blobs that were read.
    pub blobs: usize,
    /// Bytes that were read.
    pub bytes: u64,
    /// The damage that was found and quarantined.
    pub damaged: Vec<Damage>,
}

impl CacheStore {
    /// Verifies these models, or everything. Reads at most `rate` bytes per second, and
    /// blocks meanwhile.
    fn read_again(
        &self,
        keys: Option<&[ModelKey]>,
        rate: Option<u64>,
        progress: &VerifyProgress,
        cancelled: &CancellationToken,
    ) -> Result<Verification> {
        let taken = DiskUsage::read(&self.layout)?;
        let wanted = |key: &ModelKey| keys.is_none_or(|keys| keys.contains(key));
        let mut found = Verification::default();
        let mut blobs: Vec<usize> = Vec::new();
        let mut unchecked = Vec::new();
        for model in taken.models.iter().filter(|model| wanted(&model.key)) {
            // Held against eviction; a model that was evicted before is not damage.
            let _held = self.holds.model(&model.key);
            if !self.layout.model(&model.key).is_dir() {
                continue;
            }
            found.models += 1;
            blobs.extend(&model.blobs);
            let mismatch = match self.models.read_manifest(&model.key).unwrap_or_default() {
                None => {
                    Some((ModelFile::Manifest.name().to_owned(), "it cannot be read".to_owned()))
                }
                Some(manifest) => self
                    .models
                    .mismatch(&model.key, &manifest)
                    .map(|mismatch| (mismatch.path, mismatch.why)),
            };
            match mismatch {
                Some((what, why)) => {
                    found.damaged.push(self.quarantine_model(&model.key, &what, &why)?);
                }
                None if !self.models.is_durable(&model.key) => unchecked.push(&model.key),
                None => {}
            }
        }
        if keys.is_none() {
            blobs = (0..taken.blobs.len()).collect();
        }
        blobs.sort_unstable();
        blobs.dedup();
        let bytes = blobs.iter().map(|at| taken.blobs[*at].space.bytes);
        progress.total.store(bytes.fold(0, u64::saturating_add), Ordering::Relaxed);
        let mut pace = ReadPacer::new(rate);
        for at in blobs {
            let ids = &taken.blobs[at].ids;
            let keep_reading = |bytes| {
                progress.done.fetch_add(bytes, Ordering::Relaxed);
                !cancelled.is_cancelled()
            };
            let Some((bytes, damage)) = self.verify_blob(ids, &mut pace, keep_reading)? else {
                continue;
            };
            found.blobs += 1;
            found.bytes += bytes;
            found.damaged.extend(damage);
            if cancelled.is_cancelled() {
                return Err(Error::new(ErrorKind::InProgress, "the verification was interrupted"));
            }
        }
        progress.total.store(progress.done(), Ordering::Relaxed);
        for key in unchecked {
            self.accept(key)?;
        }
        Ok(found)
    }

    /// Accepts a model that was read and found good, but whose files may not have been durable:
    /// it needs no check before it is served, and the next sync makes it durable.
    fn accept(&self, key: &ModelKey) -> Result<()> {
        if let Some(model) = self.check_model(key)?
            && let Some(manifest) = self.models.read_manifest(key)?
        {
            self.make_durable(&model, &manifest);
        }
        Ok(())
    }

    /// Verifies one blob, which has these ids: returns the bytes read, and the damage. `None` when the blob
    /// is gone.
    fn verify_blob(
        &self,
        ids: &[BlobId],
        pace: &mut ReadPacer,
        keep_reading: impl FnMut(u64) -> bool,
    ) -> Result<Option<(u64, Option<Damage>)>> {
        let Some(id) = ids.first() else { return Ok(None) };
        // Held against eviction while it is read.
        let _held = self.holds.blobs(std::iter::once(id.clone()));
        let path = self.layout.blob(id);
        let Some((record, _)) = self.blobs.record(id)? else {
            if !path.exists() {
                return Ok(None);
            }
            let why = "its record is missing, so its content cannot be verified";
            return self
                .quarantine_blob(id, id.as_str(), why)
                .map(|damage| Some((0, Some(damage))));
        };
        let Some(read) = self.blobs.inode(id) else { return Ok(None) };
        let (bytes, why) = match reread::crc32c(&path, pace, keep_reading) {
            Ok(None) => return Ok(Some((0, None))),
            Ok(Some((crc32c, size))) if size == record.size && crc32c == record.crc32c => {
                (size, None)
            }
            Ok(Some((_, size))) if size != record.size => {
                (size, Some(format!("it has {size} bytes instead of {}", record.size)))
            }
            Ok(Some((_, size))) => (size, Some("its CRC-32C has changed".to_owned())),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) if is_damage(&e) => (0, Some(format!("it cannot be read: {e}"))),
            // Such as out of memory or descriptors, which says nothing about the disk.
            Err(e) => return Err(Error::io(format!("reading {}", path.display()), &e)),
        };
        let _lock = self.blobs.lock_placement();
        let damage = match why {
            // A publish may have noticed it too, and downloaded a good one.
            Some(why) if self.blobs.is_unchanged(id, read) => {
                Some(self.quarantine_blob(id, &record.object, &why)?)
            }
            Some(_) => None,
            None => {
                let same = ids.iter().filter(|id| self.blobs.is_unchanged(id, read));
                same.for_each(|id| self.blobs.confirm(id));
                None
            }
        };
        Ok(Some((bytes, damage)))
    }
}

impl CacheStore {
    /// Returns the time until the next scrub is due, counted from the last scrub, even
    /// before a restart, or from now if there was none. Blocks.
    pub(in crate::cache) fn scrub_due(&self, every: Duration) -> Result<Duration> {
        let path = self.layout.scrubbed();
        match std::fs::metadata(&path).and_then(|metadata| metadata.modified()) {
            // After the clock jumped back, the interval starts again.
            Ok(last) => Ok(last.elapsed().map_or(every, |passed| every.saturating_sub(passed))),
            Err(_) => self.record_scrub().map(|()| every),
        }
    }

    /// Records that a scrub is complete. Blocks.
    pub(in crate::cache) fn record_scrub(&self) -> Result<()> {
        super::files::write_whole(&self.layout.scrubbed(), b"", 0o644)
    }

    /// Verifies these models, or everything, until the driver stops.
    pub(in crate::cache) async fn verify(
        self: Arc<Self>,
        keys: Option<Vec<ModelKey>>,
        rate: Option<u64>,
        progress: Arc<VerifyProgress>,
    ) -> Result<Verification> {
        // Dropping this future ends the reading.
        let cancelled = self.shutdown.child_token();
        let _ends = cancelled.clone().drop_guard();
        let store = Arc::clone(&self);
        let verified =
            blocking(move || self.read_again(keys.as_deref(), rate, &progress, &cancelled)).await?;
        // What was found good is durable when this returns, or the next check reads it again.
        store.wait_until_synced().await;
        Ok(verified)
    }
}
