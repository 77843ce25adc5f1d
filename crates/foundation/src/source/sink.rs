//! Writing objects: what a push needs of where objects are.

use std::collections::BTreeSet;

use futures_util::future::BoxFuture;

use super::{BodyChunks, Bucket, ObjectHead, ObjectName, ObjectSource, Result};

/// The bytes of an object or of a part, as they are sent. They are read while they are sent, so
/// a body takes the memory of a few chunks, whatever its length.
pub struct UploadBody {
    /// The number of bytes.
    pub length: u64,
    /// The bytes; an error breaks the request off, and nothing is stored.
    pub chunks: BodyChunks,
}

impl std::fmt::Debug for UploadBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UploadBody").field("length", &self.length).finish_non_exhaustive()
    }
}

/// Which version of an object a write may replace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Replaces {
    /// None: the object is new.
    Nothing,
    /// The version with this ETag.
    Version(String),
}

/// What the service says of bytes that it has stored.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoredBytes {
    /// Opaque and unquoted.
    pub etag: String,
    /// MD5 of the bytes, where the answer has it.
    pub md5: Option<[u8; 16]>,
    /// CRC-32C of the bytes, where the answer has it.
    pub crc32c: Option<u32>,
}

/// A multipart upload that is neither committed nor aborted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningUpload {
    /// The full name of its object.
    pub object: String,
    /// The id of the upload.
    pub id: String,
}

/// A part that the service has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadedPart {
    /// From 1; parts become the object in this order.
    pub number: u32,
    /// Opaque and unquoted.
    pub etag: String,
    /// MD5 of its bytes, where the listing has it.
    pub md5: Option<[u8; 16]>,
    /// Size in bytes.
    pub size: u64,
}

/// A part of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartToCommit {
    /// From 1.
    pub number: u32,
    /// The ETag that the service gave for it.
    pub etag: String,
}

/// A source whose objects can be changed, with one identity.
///
/// [`put`](Self::put), [`upload_part`](Self::upload_part) and [`commit`](Self::commit) are one
/// attempt each, since their callers read the bytes again, or check first whether the lost answer
/// was a success; the other calls are repeated inside, as the source's own policy says. A future
/// that is dropped breaks its request off; no half object is ever visible.
pub trait ObjectSink: ObjectSource {
    /// Stores an object whose MD5 is `md5`, which the service checks, and asks for its CRC-32C.
    ///
    /// # Errors
    /// `Changed` when the object is not what `replaces` says.
    fn put<'a>(
        &'a self,
        object: &'a ObjectName,
        body: UploadBody,
        md5: [u8; 16],
        replaces: &'a Replaces,
    ) -> BoxFuture<'a, Result<StoredBytes>>;

    /// Begins a multipart upload, and returns its id.
    ///
    /// # Errors
    /// `Changed` when the object is not what `replaces` says.
    fn create_upload<'a>(
        &'a self,
        object: &'a ObjectName,
        replaces: &'a Replaces,
    ) -> BoxFuture<'a, Result<String>>;

    /// Stores a part, and asks for its CRC-32C. A part of the same number is replaced.
    fn upload_part<'a>(
        &'a self,
        object: &'a ObjectName,
        upload: &'a str,
        number: u32,
        body: UploadBody,
    ) -> BoxFuture<'a, Result<StoredBytes>>;

    /// Makes an object of these parts, in the order of their numbers. Every part that the
    /// service has is in `parts` or in `left_out`.
    ///
    /// # Errors
    /// `Changed` when the object is not what `replaces` says.
    fn commit<'a>(
        &'a self,
        object: &'a ObjectName,
        upload: &'a str,
        parts: &'a [PartToCommit],
        left_out: &'a [u32],
        replaces: &'a Replaces,
    ) -> BoxFuture<'a, Result<ObjectHead>>;

    /// Lists the multipart uploads of these objects that are neither committed nor aborted. A
    /// bucket may have millions of others, which take no memory.
    fn running_uploads<'a>(
        &'a self,
        bucket: &'a Bucket,
        objects: &'a BTreeSet<String>,
    ) -> BoxFuture<'a, Result<Vec<RunningUpload>>>;

    /// Lists the parts of an upload.
    fn uploaded_parts<'a>(
        &'a self,
        object: &'a ObjectName,
        upload: &'a str,
    ) -> BoxFuture<'a, Result<Vec<UploadedPart>>>;

    /// Deletes this version of an object.
    ///
    /// # Errors
    /// `Changed` when it is another version; `NotFound` when it is gone already.
    fn delete<'a>(&'a self, object: &'a ObjectName, etag: &'a str) -> BoxFuture<'a, Result<()>>;

    /// Creates a private bucket, unless it exists: then `false`.
    fn create_bucket<'a>(
        &'a self,
        bucket: &'a Bucket,
        compartment: &'a str,
    ) -> BoxFuture<'a, Result<bool>>;
}
