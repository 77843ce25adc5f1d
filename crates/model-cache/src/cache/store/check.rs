//! Checks models and blobs before a process first uses them. Whatever the disk
//! damaged is quarantined and reported.

use super::CacheStore;
use super::blobs::{BlobRecord, BlobState};
use super::models::{CachedModel, Mismatch, MismatchCause};
use crate::error::Result;
use crate::model::{BlobId, ModelKey};
use crate::mount;

impl CacheStore {
    /// Returns the model of this key if it is complete. A model that is new to this
    /// process is checked first, which reads suspect blobs; call it in a flight.
    /// Blocks while it reads.
    pub(in crate::cache) fn check_model(&self, key: &ModelKey) -> Result<Option<CachedModel>> {
        if let Some(known) = self.models.known(key) {
            return Ok(Some(known));
        }
        let _hold = self.holds.model(key);
        let before = mount::identity(&self.layout.tree(key)).ok();
        // Large manifests one after the other: each takes tens of megabytes.
        let _turn = self.models.lock_large_manifest(key);
        let Some(manifest) = self.models.read_manifest(key)? else { return Ok(None) };
        if let Some(mismatch) = self.models.mismatch(key, &manifest) {
            // A flight may have just rebuilt it: that is not damage.
            if mount::identity(&self.layout.tree(key)).ok() == before {
                self.quarantine_mismatch(key, &mismatch)?;
            }
            return Ok(None);
        }
        if !self.models.is_durable(key) {
            for file in &manifest.files {
                if self.find_blob(&file.blob)?.is_none() {
                    warn_incomplete(key, &file.path, "its blob is missing");
                    return Ok(None);
                }
            }
        }
        Ok(self.models.mark_checked(key, &manifest))
    }

    /// Returns the record of a blob that may be served, if there is one. A blob that
    /// a power loss tore is dropped; one that the disk damaged is quarantined and
    /// reported. Blocks; for a suspect, while it is read.
    pub(in crate::cache) fn find_blob(&self, id: &BlobId) -> Result<Option<BlobRecord>> {
        loop {
            let bad = match self.blobs.inspect(id)? {
                BlobState::Good(record) => return Ok(Some(record)),
                BlobState::Absent => return Ok(None),
                BlobState::Bad(bad) => bad,
            };
            let lock = self.blobs.lock_placement();
            // Reading takes long: a good blob may have been downloaded meanwhile.
            if !self.blobs.is_unchanged(id, bad.read) {
                continue;
            }
            if bad.was_durable {
                self.quarantine_blob(id, &bad.record.object, &bad.why)?;
            } else {
                self.blobs.drop_torn(&lock, id, &bad)?;
            }
            return Ok(None);
        }
    }

    fn quarantine_mismatch(&self, key: &ModelKey, mismatch: &Mismatch) -> Result<()> {
        let Mismatch { path, why, cause } = mismatch;
        match cause {
            MismatchCause::Blob(id) => {
                self.find_blob(id)?;
            }
            // A model that never became durable was torn by a power loss.
            MismatchCause::Tree if self.models.is_durable(key) => {
                self.quarantine_model(key, path, why)?;
                return Ok(());
            }
            MismatchCause::Tree | MismatchCause::NoBlob => {}
        }
        warn_incomplete(key, path, why);
        Ok(())
    }
}

fn warn_incomplete(key: &ModelKey, path: &str, why: &str) {
    tracing::warn!(
        model = key.as_str(),
        path,
        why,
        "a cached model is incomplete; it will be rebuilt"
    );
}
