//! Re-uploads: an object with the bucket, name, size and MD5 of a cached blob has
//! the same bytes, even under a new ETag, if that MD5 verified the blob.

use std::collections::HashSet;
use std::fs::File;

use super::files;
use crate::cache::CacheInner;
use crate::download::Check;
use crate::error::Result;
use crate::model::{BlobId, Manifest, ManifestFile, ModelSource, Summary};

impl CacheInner {
    /// Adds a blob to the index of contents. Blocks.
    pub(in crate::cache) fn index_content(
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

    /// Removes a model's evicted blobs (`left`) from the index of contents.
    /// Leftover entries are swept later. Blocks.
    pub(in crate::cache) fn forget_contents(
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
                tracing::debug!(%error, "removing an index entry failed");
            }
        });
        if let Err(error) = scanned {
            tracing::debug!(%error, "reading the manifest of an evicted model failed");
        }
    }

    fn forget_content(&self, content: &BlobId, blob: &BlobId) -> Result<()> {
        let path = self.layout.content(content);
        match files::read(&path)?.is_some_and(|named| named == blob.as_str().as_bytes()) {
            true => files::remove(&path),
            false => Ok(()),
        }
    }

    /// Links a blob that has this file's content to the file's blob id; `false` when
    /// there is none. Blocks.
    pub(in crate::cache) fn find_by_content(
        &self,
        manifest: &Manifest,
        file: &ManifestFile,
    ) -> Result<bool> {
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
