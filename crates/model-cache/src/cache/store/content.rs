//! Re-uploads: an object with the bucket, name, size and MD5 of a cached blob has
//! the same bytes, even under a new ETag, if that MD5 verified the blob.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::path::Path;

use super::CacheStore;
use super::blobs::Placed;
use super::files;
use crate::download::{Check, Staging, Verified};
use crate::error::Result;
use crate::model::{BlobId, Manifest, ManifestFile, ModelSource, Summary};

impl CacheStore {
    /// The files of the download of a blob.
    pub(in crate::cache) fn staging_of(&self, id: &BlobId) -> Staging {
        Staging { data: self.layout.part(id), journal: self.layout.journal(id) }
    }

    /// Commits a downloaded blob, and indexes its content. Blocks.
    pub(in crate::cache) fn commit_blob(
        &self,
        manifest: &Manifest,
        file: &ManifestFile,
        verified: Verified,
    ) -> Result<()> {
        self.blobs.commit(&file.blob, &manifest.object_name(file), file.size, verified)?;
        self.index_content(manifest, file, verified.check)
    }

    /// Makes a verified file a blob, and indexes its content; see [`Blobs::place`]. Blocks.
    ///
    /// [`Blobs::place`]: super::blobs::Blobs::place
    pub(in crate::cache) fn place_blob(
        &self,
        manifest: &Manifest,
        file: &ManifestFile,
        verified: Verified,
        rename: impl FnOnce(&Path) -> io::Result<bool>,
    ) -> Result<Placed> {
        let object = manifest.object_name(file);
        let placed = self.blobs.place(&file.blob, &object, file.size, verified, rename)?;
        if placed == Placed::Blob {
            self.index_content(manifest, file, verified.check)?;
        }
        Ok(placed)
    }

    /// Adds a blob to the index of contents. Blocks.
    fn index_content(&self, manifest: &Manifest, file: &ManifestFile, check: Check) -> Result<()> {
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
