//! Is what stands in the cache what it should be? Asked before the first use
//! by a process; what is not is put aside, and told where the disk damaged it.

use super::CacheInner;
use super::blobs::{BlobRecord, BlobState};
use super::models::{CachedModel, Mismatch, MismatchCause};
use crate::error::Result;
use crate::model::{BlobId, ModelKey};
use crate::mount;

impl CacheInner {
    /// The model of this key if it stands complete. One that this process has
    /// not seen yet is checked first; what may be torn is read for that, so
    /// this belongs into a flight. Blocks, as long as reading takes.
    pub(super) fn check_model(&self, key: &ModelKey) -> Result<Option<CachedModel>> {
        if let Some(known) = self.models.known(key) {
            return Ok(Some(known));
        }
        let _stays = self.holds.model(key);
        let before = mount::identity(&self.layout.tree(key)).ok();
        // Large ones one after the other: each takes tens of megabytes.
        let _turn = self.models.turn_to_read(key);
        let Some(manifest) = self.models.read_manifest(key)? else { return Ok(None) };
        if let Some(misfit) = self.models.misfit(key, &manifest) {
            // A flight may just build it anew: that is no damage.
            if mount::identity(&self.layout.tree(key)).ok() == before {
                self.put_misfit_aside(key, &misfit)?;
            }
            return Ok(None);
        }
        if !self.models.is_durable(key) {
            for file in &manifest.files {
                if self.find_blob(&file.blob)?.is_none() {
                    not_whole(key, &file.path, "its bytes are not there");
                    return Ok(None);
                }
            }
        }
        Ok(self.models.know(key, &manifest))
    }

    /// The record of a blob that may be served, if there is one. What a power
    /// loss tore is dropped, what the disk damaged is put aside and told.
    /// Blocks, for a suspect as long as reading it takes.
    pub(super) fn find_blob(&self, id: &BlobId) -> Result<Option<BlobRecord>> {
        loop {
            let bad = match self.blobs.look(id)? {
                BlobState::Good(record) => return Ok(Some(record)),
                BlobState::Absent => return Ok(None),
                BlobState::Bad(bad) => bad,
            };
            let placing = self.blobs.placing();
            // Reading takes long: somebody may have brought a good one meanwhile.
            if !self.blobs.stands(id, bad.read) {
                continue;
            }
            if bad.was_durable {
                self.quarantine_blob(id, &bad.record.object, &bad.why)?;
            } else {
                self.blobs.drop_torn(&placing, id, &bad)?;
            }
            return Ok(None);
        }
    }

    fn put_misfit_aside(&self, key: &ModelKey, misfit: &Mismatch) -> Result<()> {
        let Mismatch { path, why, fault } = misfit;
        match fault {
            MismatchCause::Blob(id) => {
                self.find_blob(id)?;
            }
            // What was never on the disk as a whole is what a power loss left.
            MismatchCause::Tree if self.models.is_durable(key) => {
                self.quarantine_model(key, path, why)?;
                return Ok(());
            }
            MismatchCause::Tree | MismatchCause::NoBlob => {}
        }
        not_whole(key, path, why);
        Ok(())
    }
}

fn not_whole(key: &ModelKey, path: &str, why: &str) {
    tracing::warn!(
        model = key.as_str(),
        path,
        why,
        "a cached model is not whole; it will be built again"
    );
}
