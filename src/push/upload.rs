//! Uploads one file: skips it, sends it whole, or leaves it to `parts`.

use std::sync::Arc;

use super::body::{OpenFile, ReadFailure, body_of};
use super::files::LocalFile;
use super::hashes::{RangeDigest, crc32c_of_parts, digests, md5_of_parts};
use super::progress::PushProgress;
use super::requests::RequestLimit;
use crate::blocking::blocking;
use crate::error::{Error, ErrorKind, Result};
use crate::source::{
    Bucket, ListedMd5, ObjectHead, ObjectName, ObjectSink, ObjectSummary, Replaces, RetryPolicy,
    StorageError, StorageErrorKind, StoredBytes,
};
use crate::text::shown;

/// The most parts of a multipart upload (Object Storage API, UploadPart).
const MOST_PARTS: u64 = 10_000;

/// Parts are as many whole MiB as this.
const MIB: u64 = 1 << 20;

/// How often the same bytes may arrive damaged.
const DAMAGED: u32 = 3;

/// The code of an object that does not have the MD5 that was announced.
const UNMATCHED_MD5: &str = "UnmatchedContentMD5";

/// What all uploads of a push share.
pub(super) struct Uploader {
    pub(super) sink: Arc<dyn ObjectSink>,
    pub(super) bucket: Arc<Bucket>,
    /// Object names begin with it.
    pub(super) prefix: String,
    pub(super) part_size: u64,
    /// Requests with a body that run at once.
    pub(super) requests: RequestLimit,
    pub(super) retry: RetryPolicy,
    pub(super) progress: Arc<PushProgress>,
}

/// An object that has the bytes of its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StoredObject {
    pub(super) etag: String,
    /// Whether readers can verify it by its CRC-32C.
    pub(super) has_crc32c: bool,
}

/// What the object of a file must be.
#[derive(Debug, Clone, Copy)]
pub(super) struct WholeDigest {
    pub(super) size: u64,
    pub(super) crc32c: u32,
    pub(super) md5: ListedMd5,
}

impl WholeDigest {
    /// Whether an object is this: by size and MD5, never by its CRC-32C alone.
    pub(super) fn is_of(&self, head: &ObjectHead) -> bool {
        let same_md5 = match self.md5 {
            ListedMd5::Whole(md5) => head.content_md5 == Some(md5),
            ListedMd5::Parts(md5) => {
                head.multipart_md5.is_some_and(|other| other.digest == md5.digest)
            }
        };
        let same_crc = head.crc32c.is_none_or(|crc32c| crc32c == self.crc32c);
        head.size == Some(self.size) && same_md5 && same_crc
    }
}

impl Uploader {
    pub(super) fn object(&self, file: &LocalFile) -> ObjectName {
        self.bucket.object(format!("{}{}", self.prefix, file.name))
    }

    /// The size of the parts of a file of this size.
    pub(super) fn part_size_of(&self, size: u64) -> u64 {
        self.part_size.max(size.div_ceil(MOST_PARTS).next_multiple_of(MIB))
    }

    /// Whether a file is sent in parts.
    pub(super) fn is_in_parts(&self, size: u64) -> bool {
        size > self.part_size
    }

    /// The object, if it has the size, the MD5 and any CRC-32C of the file. Its parts must have
    /// our sizes.
    pub(super) async fn is_there(
        &self,
        file: &LocalFile,
        object: &ObjectSummary,
    ) -> Result<Option<StoredObject>> {
        let size = file.state.size;
        let Some(listed) = object.md5.as_deref().and_then(ListedMd5::parse) else {
            return Ok(None);
        };
        if object.size != size {
            return Ok(None);
        }
        let part_size = match listed {
            ListedMd5::Whole(_) => size.max(1),
            ListedMd5::Parts(_) => self.part_size_of(size),
        };
        let ranges = ranges(size, part_size);
        if let ListedMd5::Parts(md5) = listed
            && md5.parts.is_some_and(|parts| usize::try_from(parts).ok() != Some(ranges.len()))
        {
            return Ok(None);
        }
        let found = match self.open_and_digest(file, ranges.clone()).await {
            Ok((_, found)) => found,
            // Sending it finds that too, and fails for this file only.
            Err(error) if error.kind() == ErrorKind::Changed => return Ok(None),
            Err(error) => return Err(error),
        };
        let crc32c = crc32c_of_parts(found.iter().map(|part| part.crc32c).zip(&ranges));
        let same = match listed {
            ListedMd5::Whole(md5) => found[0].md5 == md5,
            ListedMd5::Parts(md5) => md5_of_parts(found.iter().map(|part| part.md5)) == md5.digest,
        };
        if !same {
            return Ok(None);
        }
        // Listings have no CRC-32C.
        match self.sink.head(&self.object(file), Some(&object.etag)).await {
            // Readers verify it by its CRC-32C, so a wrong one makes it useless.
            Ok(head) if head.crc32c.is_some_and(|stored| stored != crc32c) => Ok(None),
            Ok(head) => {
                let has_crc32c = head.crc32c.is_some();
                Ok(Some(StoredObject { etag: head.etag, has_crc32c }))
            }
            // It changed just now, which sending it under a condition shows.
            Err(error)
                if matches!(
                    error.kind(),
                    StorageErrorKind::NotFound | StorageErrorKind::Changed
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(refused(error)),
        }
    }

    /// Opens a file, and computes the checksums of ranges of it.
    pub(super) async fn open_and_digest(
        &self,
        file: &LocalFile,
        ranges: Vec<std::ops::Range<u64>>,
    ) -> Result<(Arc<OpenFile>, Vec<RangeDigest>)> {
        let local = file.clone();
        blocking(move || {
            let read = || {
                let open = OpenFile::open(&local)?;
                let found =
                    digests(&open.file, &ranges).map_err(|error| ReadFailure::of(&error))?;
                open.check()?;
                Ok((Arc::new(open), found))
            };
            read().map_err(|failure| unreadable(&local, &failure))
        })
        .await
    }

    /// Sends a file in one request.
    pub(super) async fn put(&self, file: &LocalFile, replaces: &Replaces) -> Result<StoredObject> {
        let object = self.object(file);
        let size = file.state.size;
        // Files are read when their turn comes: what was read is in the page cache still.
        let mut permit = Some(self.requests.acquire().await);
        let (open, found) = self.open_and_digest(file, ranges(size, size.max(1))).await?;
        let RangeDigest { md5, crc32c } = found[0];
        let expected = WholeDigest { size, crc32c, md5: ListedMd5::Whole(md5) };
        let (mut attempts, mut damages) = (self.retry.start(), 0);
        loop {
            let turn = match permit.take() {
                Some(first) => first,
                None => self.requests.acquire().await,
            };
            let (sent, bytes) = self.progress.request();
            let (body, read) = body_of(&open, 0..size, sent);
            let answer = self.sink.put(&object, body, md5, replaces).await;
            drop(turn);
            let error = match answer {
                Ok(stored) => return compared(&object, &stored, crc32c),
                Err(error) => error,
            };
            bytes.were_in_vain();
            if let Some(Err(failure)) = read.finished() {
                return Err(unreadable(file, &failure));
            }
            // The answer to an earlier attempt may have been lost.
            if error.kind() == StorageErrorKind::Changed {
                return self.settle(&object, &expected, error).await;
            }
            // The service stores nothing then.
            if error.code() == Some(UNMATCHED_MD5) {
                damages += 1;
                if damages == DAMAGED {
                    return Err(always_damaged(&object, &error));
                }
                continue;
            }
            self.requests.failed(&error);
            attempts.again(error).await.map_err(refused)?;
        }
    }

    /// After a refused condition: the object is ours already, or another writer's.
    pub(super) async fn settle(
        &self,
        object: &ObjectName,
        expected: &WholeDigest,
        error: StorageError,
    ) -> Result<StoredObject> {
        if let Some(stored) = self.find(object, expected).await? {
            return Ok(stored);
        }
        Err(another_writer(object, &error))
    }

    /// The object, if it has the bytes of its file.
    pub(super) async fn find(
        &self,
        object: &ObjectName,
        expected: &WholeDigest,
    ) -> Result<Option<StoredObject>> {
        match self.sink.head(object, None).await {
            Ok(head) if expected.is_of(&head) => {
                Ok(Some(StoredObject { etag: head.etag, has_crc32c: head.crc32c.is_some() }))
            }
            Ok(_) => Ok(None),
            Err(error) if error.kind() == StorageErrorKind::NotFound => Ok(None),
            Err(error) => Err(refused(error)),
        }
    }

    /// Sends one part until its CRC-32C is that of the file's bytes.
    pub(super) async fn part(
        &self,
        file: &LocalFile,
        open: &Arc<OpenFile>,
        upload: &str,
        number: u32,
        range: std::ops::Range<u64>,
    ) -> Result<(StoredBytes, u32)> {
        let object = self.object(file);
        let (mut attempts, mut damages) = (self.retry.start(), 0);
        loop {
            let permit = self.requests.acquire().await;
            let (sent, bytes) = self.progress.request();
            let (body, read) = body_of(open, range.clone(), sent);
            let answer = self.sink.upload_part(&object, upload, number, body).await;
            drop(permit);
            match (answer, read.finished()) {
                (_, Some(Err(failure))) => return Err(unreadable(file, &failure)),
                (Ok(stored), Some(Ok(crc32c))) => {
                    if self.is_intact(file, &stored, crc32c, &range).await? {
                        return Ok((stored, crc32c));
                    }
                    bytes.were_in_vain();
                    damages += 1;
                    if damages == DAMAGED {
                        return Err(damaged(&object));
                    }
                }
                (Ok(_), None) => {
                    return Err(Error::internal(format!(
                        "part {number} of {object} was answered before it was sent"
                    )));
                }
                (Err(error), _) => {
                    bytes.were_in_vain();
                    if error.kind() == StorageErrorKind::NotFound {
                        return Err(self.ended_or_refused(&object, upload, &[], error).await);
                    }
                    self.requests.failed(&error);
                    attempts.again(error).await.map_err(refused)?;
                }
            }
        }
    }

    /// Whether a part was stored as it was read: by its CRC-32C, else by its MD5.
    async fn is_intact(
        &self,
        file: &LocalFile,
        stored: &StoredBytes,
        crc32c: u32,
        range: &std::ops::Range<u64>,
    ) -> Result<bool> {
        match (stored.crc32c, stored.md5) {
            (Some(other), _) => Ok(other == crc32c),
            (None, Some(md5)) => {
                let (_, found) = self.open_and_digest(file, vec![range.clone()]).await?;
                Ok(found[0].md5 == md5)
            }
            (None, None) => Ok(false),
        }
    }
}

/// Compares the CRC-32C of an object that was stored whole, whose MD5 the service has compared.
fn compared(object: &ObjectName, stored: &StoredBytes, crc32c: u32) -> Result<StoredObject> {
    match stored.crc32c {
        Some(other) if other != crc32c => Err(damaged(object)),
        found => Ok(StoredObject { etag: stored.etag.clone(), has_crc32c: found.is_some() }),
    }
}

/// The parts of a file; one empty range for an empty file.
pub(super) fn ranges(size: u64, part_size: u64) -> Vec<std::ops::Range<u64>> {
    let parts = size.div_ceil(part_size).max(1);
    (0..parts).map(|n| n * part_size..((n + 1) * part_size).min(size)).collect()
}

/// The error for a file that cannot be read as it was.
pub(super) fn unreadable(file: &LocalFile, failure: &ReadFailure) -> Error {
    let name = shown(&file.name, 200);
    match failure {
        ReadFailure::Changed => Error::new(
            ErrorKind::Changed,
            format!(
                "{name} changed while it was read, and its object was not stored: wait until no \
                 program writes to it, then run the same command again"
            ),
        ),
        ReadFailure::Failed(why) => {
            let path = file.path.display();
            Error::new(ErrorKind::Precondition, format!("reading {path} failed: {why}"))
        }
    }
}

/// The error for a file that changed after its object was stored.
pub(super) fn changed_later(file: &LocalFile) -> Error {
    let text = format!(
        "{} changed after it was read, and its object has the bytes from before: wait until no \
         program writes to it, then run the same command again",
        shown(&file.name, 200)
    );
    Error::new(ErrorKind::Changed, text)
}

/// The error for an object that is no longer the listed version.
pub(super) fn another_writer(object: &ObjectName, error: &StorageError) -> Error {
    let text = format!(
        "{object} was changed by another writer since this push began, and was not overwritten: see \
         who else writes there, then run the same command again to replace it ({error})"
    );
    Error::new(ErrorKind::Conflict, text)
}

/// The error for a refusal of the service. What it cannot do is not the user's mistyping.
pub(super) fn refused(error: StorageError) -> Error {
    match error.kind() {
        StorageErrorKind::Invalid => Error::new(ErrorKind::Precondition, error.to_string()),
        _ => error.into(),
    }
}

/// The error for an object that the service did not store, since other bytes arrived.
fn always_damaged(object: &ObjectName, error: &StorageError) -> Error {
    let text = format!(
        "{object} arrived damaged {DAMAGED} times, and was not stored: run the same command again; \
         if it persists, check the memory of this machine and the proxies on the way ({error})"
    );
    Error::new(ErrorKind::Corrupt, text)
}

/// The error for an object that does not have the bytes of its file.
pub(super) fn damaged(object: &ObjectName) -> Error {
    let text = format!(
        "{object} was stored with another CRC-32C than its file has: run the same command again; \
         if it persists, check the memory of this machine and the proxies on the way"
    );
    Error::new(ErrorKind::Corrupt, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_the_file_once() {
        for (size, part, ends) in
            [(0, 10, &[0][..]), (10, 10, &[10]), (11, 10, &[10, 11]), (20, 10, &[10, 20])]
        {
            let parts = ranges(size, part);
            let found: Vec<u64> = parts.iter().map(|range| range.end).collect();
            assert_eq!(found, ends, "{size}");
            assert!(parts.windows(2).all(|two| two[0].end == two[1].start), "{size}");
            assert_eq!(parts[0].start, 0);
        }
    }
}
