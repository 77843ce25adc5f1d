//! Re-uploads: an object of the same bucket, name, size and MD5 as a blob that
//! was proved by that MD5 has its bytes, whatever its ETag says now.

use super::Inner;
use super::files;
use crate::download::Check;
use crate::error::Result;
use crate::model::{BlobId, Manifest, ManifestFile};

impl Inner {
    /// Notes under which content a blob can be found again. Blocks.
    pub(super) fn note_content(
        &self,
        manifest: &Manifest,
        file: &ManifestFile,
        check: Check,
    ) -> Result<()> {
        match (check, content_id(manifest, file)) {
            (Check::Md5 | Check::MultipartMd5, Some(content)) => {
                let id = file.blob.as_str().as_bytes();
                files::write_whole(&self.layout.content(&content), id, 0o644)
            }
            _ => Ok(()),
        }
    }

    /// Forgets under which content an evicted blob could be found. Blocks.
    pub(super) fn forget_content(&self, manifest: &Manifest, file: &ManifestFile) -> Result<()> {
        let Some(content) = content_id(manifest, file) else { return Ok(()) };
        let path = self.layout.content(&content);
        match files::read(&path)?.is_some_and(|named| named == file.blob.as_str().as_bytes()) {
            true => files::remove(&path),
            false => Ok(()),
        }
    }

    /// Gives the blob that holds this file's content the file's blob id;
    /// `false` when there is none. Blocks.
    pub(super) fn find_by_content(&self, manifest: &Manifest, file: &ManifestFile) -> Result<bool> {
        let Some(content) = content_id(manifest, file) else { return Ok(false) };
        let known = files::read(&self.layout.content(&content))?
            .and_then(|bytes| BlobId::parse(std::str::from_utf8(&bytes).ok()?));
        match known {
            Some(known) => self.blobs.link(&known, &file.blob),
            None => Ok(false),
        }
    }
}

fn content_id(manifest: &Manifest, file: &ManifestFile) -> Option<BlobId> {
    let md5 = file.md5.as_deref()?;
    let object = manifest.object_name(file);
    Some(BlobId::of_content(&manifest.scope, &manifest.source, &object, file.size, md5))
}
