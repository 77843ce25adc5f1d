//! A file that is sent in parts: resumes an upload that is running, sends what it lacks, and
//! commits. Until the commit, readers see the old object or none.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::body::OpenFile;
use super::files::LocalFile;
use super::hashes::{RangeDigest, crc32c_of_parts, md5_of_parts};
use super::report::UnfinishedUpload;
use super::upload::{
    StoredObject, Uploader, WholeDigest, another_writer, damaged, ranges, refused, unreadable,
};
use crate::blocking::blocking;
use crate::error::{Error, ErrorKind, Result};
use crate::source::{
    ListedMd5, MultipartMd5, ObjectName, PartToCommit, Replaces, StorageError, StorageErrorKind,
    UploadedPart,
};

/// Parts of one file that are sent at once; all files together are limited by the requests.
const AT_ONCE: usize = 256;

/// An upload, and which of its parts are those of the file.
struct Resumed {
    id: String,
    /// Parts with our size and MD5.
    kept: HashMap<u32, StoredPart>,
    /// Parts that are none of the file's.
    foreign: Vec<u32>,
}

/// A part that the service has.
#[derive(Debug, Clone)]
struct StoredPart {
    etag: String,
    md5: Option<[u8; 16]>,
    crc32c: u32,
}

impl Uploader {
    /// Sends a file in parts. `running` are the ids of uploads of the same object.
    pub(super) async fn upload_in_parts(
        &self,
        file: &LocalFile,
        replaces: &Replaces,
        running: &[String],
    ) -> Result<StoredObject> {
        let object = self.object(file);
        let size = file.state.size;
        let ranges = ranges(size, self.part_size_of(size));
        let resumed = match self.resumable(file, &object, &ranges, running).await? {
            Some(resumed) => resumed,
            None => self.begin(&object, replaces).await?,
        };
        let upload = UnfinishedUpload { object: object.clone(), id: resumed.id.clone() };
        self.progress.began(upload);
        let local = file.clone();
        let opened = blocking(move || {
            OpenFile::open(&local).map(Arc::new).map_err(|failure| unreadable(&local, &failure))
        });
        let open = opened.await?;
        let parts = match self.send_missing(file, &open, &ranges, &resumed).await {
            Ok(parts) => parts,
            // Another push of the same file may have completed the upload.
            Err(error) if error.kind() == ErrorKind::Changed => {
                let expected = self.whole_of(file, &ranges).await?;
                let stored = self.find(&object, &expected).await?;
                self.progress.ended(&resumed.id);
                return stored.ok_or(error);
            }
            Err(error) => return Err(error),
        };
        let (check, local) = (Arc::clone(&open), file.clone());
        blocking(move || check.check().map_err(|failure| unreadable(&local, &failure))).await?;
        let stored = self.commit(&object, &resumed, &parts, size, &ranges, replaces).await?;
        self.progress.ended(&resumed.id);
        Ok(stored)
    }

    /// What the object of this file must be, from the file alone.
    async fn whole_of(&self, file: &LocalFile, ranges: &[Range<u64>]) -> Result<WholeDigest> {
        let (_, found) = self.open_and_digest(file, ranges.to_vec()).await?;
        let part = |RangeDigest { md5, crc32c }| StoredPart {
            etag: String::new(),
            md5: Some(md5),
            crc32c,
        };
        let parts: Vec<StoredPart> = found.into_iter().map(part).collect();
        Ok(whole(&parts, file.state.size, ranges))
    }

    async fn begin(&self, object: &ObjectName, replaces: &Replaces) -> Result<Resumed> {
        match self.sink.create_upload(object, replaces).await {
            Ok(id) => Ok(Resumed { id, kept: HashMap::new(), foreign: Vec::new() }),
            Err(error) if error.kind() == StorageErrorKind::Changed => {
                Err(another_writer(object, &error))
            }
            Err(error) => Err(refused(error)),
        }
    }

    /// The upload with the most bytes of this file. Others are left alone, even empty ones: they
    /// may be another writer's, who is about to fill them.
    async fn resumable(
        &self,
        file: &LocalFile,
        object: &ObjectName,
        ranges: &[Range<u64>],
        running: &[String],
    ) -> Result<Option<Resumed>> {
        let mut best: Option<(u64, Resumed)> = None;
        for id in running {
            let parts = match self.sink.uploaded_parts(object, id).await {
                Ok(parts) => parts,
                // It has ended meanwhile.
                Err(error) if error.kind() == StorageErrorKind::NotFound => continue,
                Err(error) => return Err(refused(error)),
            };
            let resumed = self.compare(file, ranges, id, parts).await?;
            let length =
                |number: &u32| range_of(*number, ranges).map_or(0, |range| range.end - range.start);
            let bytes: u64 = resumed.kept.keys().map(length).sum();
            if bytes > best.as_ref().map_or(0, |(most, _)| *most) {
                best = Some((bytes, resumed));
            }
        }
        Ok(best.map(|(bytes, resumed)| {
            self.progress.found(bytes);
            resumed
        }))
    }

    /// Compares the parts of an upload with the file.
    async fn compare(
        &self,
        file: &LocalFile,
        ranges: &[Range<u64>],
        id: &str,
        parts: Vec<UploadedPart>,
    ) -> Result<Resumed> {
        let mut foreign = Vec::new();
        let mut same_size = Vec::new();
        for part in parts {
            match range_of(part.number, ranges) {
                Some(range) if part.size == range.end - range.start && part.md5.is_some() => {
                    same_size.push((part, range));
                }
                // Our own part replaces it.
                Some(_) => {}
                None => foreign.push(part.number),
            }
        }
        let wanted = same_size.iter().map(|(_, range)| range.clone()).collect();
        let (_, found) = self.open_and_digest(file, wanted).await?;
        let same = same_size.into_iter().zip(found);
        let same = same.filter(|((part, _), digest)| part.md5 == Some(digest.md5));
        let kept = same.map(|((part, _), digest)| {
            let UploadedPart { number, etag, md5, .. } = part;
            (number, StoredPart { etag, md5, crc32c: digest.crc32c })
        });
        Ok(Resumed { id: id.to_owned(), kept: kept.collect(), foreign })
    }

    /// Sends the parts that the upload lacks; returns all of them in order.
    async fn send_missing(
        &self,
        file: &LocalFile,
        open: &Arc<OpenFile>,
        ranges: &[Range<u64>],
        resumed: &Resumed,
    ) -> Result<Vec<StoredPart>> {
        let parts = (1_u32..).zip(ranges).map(|(number, range)| async move {
            if let Some(kept) = resumed.kept.get(&number) {
                return Ok(kept.clone());
            }
            let (stored, crc32c) =
                self.part(file, open, &resumed.id, number, range.clone()).await?;
            Ok::<_, Error>(StoredPart { etag: stored.etag, md5: stored.md5, crc32c })
        });
        stream::iter(parts).buffered(AT_ONCE).try_collect().await
    }

    /// Commits, and compares the CRC-32C of the whole. After a lost answer it looks whether the
    /// object is there before it tries again.
    async fn commit(
        &self,
        object: &ObjectName,
        resumed: &Resumed,
        parts: &[StoredPart],
        size: u64,
        ranges: &[Range<u64>],
        replaces: &Replaces,
    ) -> Result<StoredObject> {
        let expected = whole(parts, size, ranges);
        let numbered = (1_u32..).zip(parts);
        let named: Vec<PartToCommit> = numbered
            .map(|(number, part)| PartToCommit { number, etag: part.etag.clone() })
            .collect();
        let mut attempts = self.retry.start();
        loop {
            let foreign = &resumed.foreign;
            let answer = self.sink.commit(object, &resumed.id, &named, foreign, replaces).await;
            let error = match answer {
                Ok(head) if head.crc32c.is_some_and(|crc32c| crc32c != expected.crc32c) => {
                    return Err(damaged(object));
                }
                Ok(head) if head.crc32c.is_some() && !head.etag.is_empty() => {
                    return Ok(StoredObject { etag: head.etag, has_crc32c: true });
                }
                Ok(head) => return self.verify(object, &head.etag, &expected).await,
                Err(error) => error,
            };
            match error.kind() {
                StorageErrorKind::Changed => return self.settle(object, &expected, error).await,
                StorageErrorKind::NotFound | StorageErrorKind::Invalid => {
                    if let Some(stored) = self.find(object, &expected).await? {
                        return Ok(stored);
                    }
                    let etags = &named[..];
                    return Err(self.ended_or_refused(object, &resumed.id, etags, error).await);
                }
                _ => {
                    if let Some(stored) = self.find(object, &expected).await? {
                        return Ok(stored);
                    }
                    attempts.again(error).await.map_err(refused)?;
                }
            }
        }
    }

    /// The error for a refused request of an upload: the service says the same 404 to those who
    /// may not write, and the same 400 to what it will never accept, and neither passes by itself.
    pub(super) async fn ended_or_refused(
        &self,
        object: &ObjectName,
        upload: &str,
        stored: &[PartToCommit],
        error: StorageError,
    ) -> Error {
        let is_ended = match error.code() {
            Some("InvalidUploadPart" | "UploadNotFound") => true,
            _ => match self.sink.uploaded_parts(object, upload).await {
                Ok(parts) => stored.iter().any(|ours| {
                    let same =
                        |part: &UploadedPart| part.number == ours.number && part.etag == ours.etag;
                    !parts.iter().any(same)
                }),
                Err(error) => error.kind() == StorageErrorKind::NotFound,
            },
        };
        if is_ended { gone(object, &error.to_string()) } else { refused(error) }
    }

    /// Compares an object whose commit was answered without a checksum, or without its ETag.
    async fn verify(
        &self,
        object: &ObjectName,
        etag: &str,
        expected: &WholeDigest,
    ) -> Result<StoredObject> {
        let etag = Some(etag).filter(|etag| !etag.is_empty());
        let head = self.sink.head(object, etag).await.map_err(refused)?;
        match expected.is_of(&head) {
            true => Ok(StoredObject { etag: head.etag, has_crc32c: head.crc32c.is_some() }),
            false => Err(damaged(object)),
        }
    }
}

/// The range of a part.
fn range_of(number: u32, ranges: &[Range<u64>]) -> Option<Range<u64>> {
    ranges.get(usize::try_from(number).ok()?.checked_sub(1)?).cloned()
}

/// What the object of these parts must be.
fn whole(parts: &[StoredPart], size: u64, ranges: &[Range<u64>]) -> WholeDigest {
    let crc32c = crc32c_of_parts(parts.iter().map(|part| part.crc32c).zip(ranges));
    // Without an MD5 of every part no object is recognized.
    let digest = md5_of_parts(parts.iter().map(|part| part.md5.unwrap_or_default()));
    let md5 = ListedMd5::Parts(MultipartMd5 { digest, parts: u32::try_from(parts.len()).ok() });
    WholeDigest { size, crc32c, md5 }
}

/// The error for an upload that has ended.
fn gone(object: &ObjectName, error: &str) -> Error {
    let text = format!(
        "the multipart upload of {object} was aborted or changed by another writer: run the same \
         command again ({error})"
    );
    Error::new(ErrorKind::Changed, text)
}
