//! Re-uploads: an object of the same bucket, name, size and MD5 as a blob that
//! was proved by that MD5 has its bytes, whatever its ETag says now.

use std::collections::HashSet;
use std::fs::File;

use super::CacheInner;
use super::files;
use crate::download::Check;
use crate::error::Result;
use crate::model::{BlobId, Manifest, ManifestFile, ModelSource, Summary};

impl CacheInner {
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

    /// Forgets under which contents the blobs of a model could be found that
    /// `left` with it. What is missed is swept later. Blocks.
    pub(super) fn forget_contents(
        &self,
        summary: &Summary,
        manifest: &File,
        left: &HashSet<BlobId>,
    ) {
        let scanned = Manifest::each_file(manifest, |file| {
            let object = format!("{}{}", summary.source.prefix, file.path);
            let content = content_of(&summary.scope, &summary.source, &object, &file);
            if let Some(content) = content.filter(|_| left.contains(&file.blob))
                && let Err(error) = self.forget_content(&content, &file.blob)
            {
                tracing::debug!(%error, "an index could not be removed");
            }
        });
        if let Err(error) = scanned {
            tracing::debug!(%error, "an evicted model's manifest could not be read");
        }
    }

    fn forget_content(&self, content: &BlobId, blob: &BlobId) -> Result<()> {
        let path = self.layout.content(content);
        match files::read(&path)?.is_some_and(|named| named == blob.as_str().as_bytes()) {
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
    let object = manifest.object_name(file);
    content_of(&manifest.scope, &manifest.source, &object, file)
}

fn content_of(
    scope: &str,
    source: &ModelSource,
    object: &str,
    file: &ManifestFile,
) -> Option<BlobId> {
    let md5 = file.md5.as_deref()?;
    Some(BlobId::of_content(scope, source, object, file.size, md5))
}
