//! Reading the cache again: is it still what was downloaded?

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::CacheInner;
use super::disk_usage::DiskUsage;
use super::quarantine::Damage;
use super::reread::{self, ReadPacer, is_damage};
use crate::error::{Error, ErrorKind, Result};
use crate::model::{BlobId, ModelKey};

/// How far a verification is.
#[derive(Debug, Default)]
pub struct VerifyProgress {
    done: AtomicU64,
    total: AtomicU64,
}

impl VerifyProgress {
    /// Bytes that were read.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Bytes that are to be read.
    pub fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }
}

/// What a verification found.
#[derive(Debug, Default)]
pub struct Verification {
    /// Models whose trees were compared with their manifests.
    pub models: usize,
    /// Blobs that were read.
    pub blobs: usize,
    /// Bytes that were read.
    pub bytes: u64,
    /// What was wrong; it was put aside.
    pub damaged: Vec<Damage>,
}

impl CacheInner {
    /// Verifies these models, or everything. Blocks, as long as reading takes
    /// at `rate` bytes a second.
    pub(super) fn verify(
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
        for model in taken.models.iter().filter(|model| wanted(&model.key)) {
            // Not evicted while it is looked at; one that went before is no damage.
            let _held = self.holds.model(&model.key);
            if !self.layout.model(&model.key).is_dir() {
                continue;
            }
            found.models += 1;
            blobs.extend(&model.blobs);
            let misfit = match self.models.read_manifest(&model.key).unwrap_or_default() {
                None => Some(("manifest.json".to_owned(), "it cannot be read".to_owned())),
                Some(manifest) => self
                    .models
                    .misfit(&model.key, &manifest)
                    .map(|misfit| (misfit.path, misfit.why)),
            };
            if let Some((what, why)) = misfit {
                found.damaged.push(self.quarantine_model(&model.key, &what, &why)?);
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
            let Some(id) = taken.blobs[at].ids.first() else { continue };
            let go_on = |bytes| {
                progress.done.fetch_add(bytes, Ordering::Relaxed);
                !cancelled.is_cancelled()
            };
            let Some((bytes, damage)) = self.verify_blob(id, &mut pace, go_on)? else { continue };
            found.blobs += 1;
            found.bytes += bytes;
            found.damaged.extend(damage);
            if cancelled.is_cancelled() {
                return Err(Error::new(ErrorKind::InProgress, "the verification was ended early"));
            }
        }
        progress.total.store(progress.done(), Ordering::Relaxed);
        Ok(found)
    }

    /// Reads one blob: its bytes, and what is wrong with it. `None` when it is
    /// not there any more.
    fn verify_blob(
        &self,
        id: &BlobId,
        pace: &mut ReadPacer,
        go_on: impl FnMut(u64) -> bool,
    ) -> Result<Option<(u64, Option<Damage>)>> {
        // Not evicted while it is read.
        let _held = self.holds.blobs(std::iter::once(id.clone()));
        let path = self.layout.blob(id);
        let Some((record, _)) = self.blobs.record(id)? else {
            if !path.exists() {
                return Ok(None);
            }
            let why = "its record is gone, so nothing vouches for it";
            return self
                .quarantine_blob(id, id.as_str(), why)
                .map(|damage| Some((0, Some(damage))));
        };
        let Some(read) = self.blobs.inode(id) else { return Ok(None) };
        let (bytes, why) = match reread::crc32c(&path, pace, go_on) {
            Ok(None) => return Ok(Some((0, None))),
            Ok(Some((crc32c, size))) if size == record.size && crc32c == record.crc32c => {
                (size, None)
            }
            Ok(Some((_, size))) if size != record.size => {
                (size, Some(format!("it has {size} bytes instead of {}", record.size)))
            }
            Ok(Some((_, size))) => (size, Some("its CRC-32C is not the one it had".to_owned())),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) if is_damage(&e) => (0, Some(format!("it cannot be read: {e}"))),
            // Out of memory or descriptors: that says nothing about the disk.
            Err(e) => return Err(Error::io(format!("reading {}", path.display()), &e)),
        };
        let _placing = self.blobs.placing();
        let damage = match why {
            // A publish may have noticed it too, and brought a good one.
            Some(why) if self.blobs.stands(id, read) => {
                Some(self.quarantine_blob(id, &record.object, &why)?)
            }
            _ => None,
        };
        Ok(Some((bytes, damage)))
    }
}

impl super::Cache {
    /// How long until everything is due to be read again; counted from the last
    /// time across restarts, and from now where there was none. Blocks.
    pub fn scrub_due(&self, every: Duration) -> Result<Duration> {
        let path = self.0.layout.scrubbed();
        match std::fs::metadata(&path).and_then(|metadata| metadata.modified()) {
            // A clock that jumped back begins anew.
            Ok(last) => Ok(last.elapsed().map_or(every, |passed| every.saturating_sub(passed))),
            Err(_) => self.scrubbed().map(|()| every),
        }
    }

    /// Notes that everything was read again. Blocks.
    pub fn scrubbed(&self) -> Result<()> {
        super::files::write_whole(&self.0.layout.scrubbed(), b"", 0o644)
    }

    /// Reads models again, all of them when `keys` is `None`, and puts aside
    /// what is not what was downloaded. At most `rate` bytes a second.
    ///
    /// # Errors
    /// `InProgress` when the driver stops meanwhile.
    pub async fn verify(
        &self,
        keys: Option<Vec<ModelKey>>,
        rate: Option<u64>,
        progress: Arc<VerifyProgress>,
    ) -> Result<Verification> {
        let inner = Arc::clone(&self.0);
        // Ends with the caller: nobody reads on for somebody who left.
        let cancelled = inner.shutdown.child_token();
        let _ends = cancelled.clone().drop_guard();
        crate::blocking::blocking(move || {
            inner.verify(keys.as_deref(), rate, &progress, &cancelled)
        })
        .await
    }
}
