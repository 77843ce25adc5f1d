//! The calls that store objects: whole, or in parts.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::{HeaderMap, HeaderName, Method, StatusCode, header};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::ObjectStorage;
use super::request::UnsignedRequest;
use crate::http_error::header_text;
use crate::oci::encode::strict;
use crate::oci::error::{StorageError, StorageErrorKind};
use crate::source::{
    Bucket, ObjectHead, ObjectName, PartToCommit, Replaces, RunningUpload, StoredBytes, UploadBody,
    UploadedPart, parse_md5,
};

const CHECKSUM_ALGORITHM: HeaderName = HeaderName::from_static("opc-checksum-algorithm");

/// The checksum that readers verify fastest, whatever the sizes of parts.
const CRC32C: &str = "CRC32C";

/// The longest page of uploads or of parts: 1,000 of either, with the longest names.
const LONGEST_PAGE: usize = 4 * 1024 * 1024;

/// The most pages of a listing: ten million uploads.
const MOST_PAGES: usize = 10_000;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct UploadSummary {
    object: String,
    upload_id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PartSummary {
    part_number: u32,
    etag: String,
    #[serde(default)]
    md5: Option<String>,
    size: u64,
}

impl ObjectStorage {
    /// Stores an object in one request; see [`ObjectSink::put`](crate::source::ObjectSink::put).
    pub(super) async fn put_object(
        &self,
        object: &ObjectName,
        body: UploadBody,
        md5: [u8; 16],
        replaces: &Replaces,
    ) -> Result<StoredBytes, StorageError> {
        let call = UnsignedRequest::of_object("PutObject", object, Method::PUT)?
            .with_header(header::CONTENT_TYPE, "application/octet-stream")
            .with_header(HeaderName::from_static("content-md5"), &BASE64.encode(md5))
            .with_header(CHECKSUM_ALGORITHM, CRC32C)
            .replacing(replaces);
        let response = self.0.send_upload(&call, body).await?;
        let stored = call.stored(response.headers())?;
        self.discard(response.into_body()).await;
        Ok(stored)
    }

    /// Begins a multipart upload, and returns its id.
    pub(super) async fn create_multipart_upload(
        &self,
        object: &ObjectName,
        replaces: &Replaces,
    ) -> Result<String, StorageError> {
        let ObjectName { bucket, name } = object;
        let target = format!("/n/{}/b/{}/u", strict(&bucket.namespace), strict(&bucket.name));
        let call = UnsignedRequest::new("CreateMultipartUpload", object, Method::POST, target)
            .in_bucket(bucket)
            .with_header(CHECKSUM_ALGORITHM, CRC32C)
            .replacing(replaces)
            .with_json(&json!({ "object": name, "contentType": "application/octet-stream" }));
        let (_, body) = self.0.read_retrying(&call, LONGEST_PAGE).await?;
        let created: UploadSummary = call.parse(&body, "an upload")?;
        Ok(created.upload_id)
    }

    /// Stores a part of an upload.
    pub(super) async fn upload_one_part(
        &self,
        object: &ObjectName,
        upload: &str,
        number: u32,
        body: UploadBody,
    ) -> Result<StoredBytes, StorageError> {
        let query = format!("uploadId={}&uploadPartNum={number}", strict(upload));
        let call = UnsignedRequest::of_upload("UploadPart", object, Method::PUT, &query)?
            .with_header(header::CONTENT_TYPE, "application/octet-stream")
            .with_header(CHECKSUM_ALGORITHM, CRC32C);
        let response = self.0.send_upload(&call, body).await?;
        let stored = call.stored(response.headers())?;
        self.discard(response.into_body()).await;
        Ok(stored)
    }

    /// Makes an object of parts: one attempt.
    pub(super) async fn commit_multipart_upload(
        &self,
        object: &ObjectName,
        upload: &str,
        parts: &[PartToCommit],
        left_out: &[u32],
        replaces: &Replaces,
    ) -> Result<ObjectHead, StorageError> {
        let parts: Vec<_> =
            parts.iter().map(|part| json!({ "partNum": part.number, "etag": part.etag })).collect();
        let query = format!("uploadId={}", strict(upload));
        let call =
            UnsignedRequest::of_upload("CommitMultipartUpload", object, Method::POST, &query)?
                .replacing(replaces)
                .with_json(&json!({ "partsToCommit": parts, "partsToExclude": left_out }));
        let response = self.0.send(&call).await?;
        let head = call.head_of_whole(response.headers(), None, None)?;
        self.discard(response.into_body()).await;
        Ok(head)
    }

    /// Lists the uploads of these objects that are neither committed nor aborted.
    pub(super) async fn list_multipart_uploads(
        &self,
        bucket: &Bucket,
        objects: &BTreeSet<String>,
    ) -> Result<Vec<RunningUpload>, StorageError> {
        let target = format!("/n/{}/b/{}/u", strict(&bucket.namespace), strict(&bucket.name));
        let call = |page: &str| {
            let target = format!("{target}?limit=1000{page}");
            let call = UnsignedRequest::new("ListMultipartUploads", bucket, Method::GET, target);
            Ok(call.in_bucket(bucket))
        };
        let is_of_them = |upload: &UploadSummary| objects.contains(&upload.object);
        let uploads: Vec<UploadSummary> = self.all_pages(call, is_of_them).await?;
        let each = uploads.into_iter();
        Ok(each.map(|one| RunningUpload { object: one.object, id: one.upload_id }).collect())
    }

    /// Lists the parts of an upload.
    pub(super) async fn list_multipart_upload_parts(
        &self,
        object: &ObjectName,
        upload: &str,
    ) -> Result<Vec<UploadedPart>, StorageError> {
        let call = |page: &str| {
            let query = format!("uploadId={}&limit=1000{page}", strict(upload));
            UnsignedRequest::of_upload("ListMultipartUploadParts", object, Method::GET, &query)
        };
        let parts: Vec<PartSummary> = self.all_pages(call, |_| true).await?;
        let part = |PartSummary { part_number: number, etag, md5, size }| {
            let md5 = md5.as_deref().and_then(parse_md5);
            UploadedPart { number, etag, md5, size }
        };
        Ok(parts.into_iter().map(part).collect())
    }

    /// The entries to keep of a listing whose pages follow each other by `opc-next-page`. `call`
    /// makes the request from the end of its query.
    async fn all_pages<'a, T: DeserializeOwned>(
        &self,
        call: impl Fn(&str) -> Result<UnsignedRequest<'a>, StorageError>,
        is_kept: impl Fn(&T) -> bool,
    ) -> Result<Vec<T>, StorageError> {
        let (mut kept, mut page) = (Vec::new(), String::new());
        for _ in 0..MOST_PAGES {
            let one = call(&page)?;
            let (headers, body) = self.0.read_retrying(&one, LONGEST_PAGE).await?;
            let found: Vec<T> = one.parse(&body, "a list")?;
            kept.extend(found.into_iter().filter(&is_kept));
            match header_text(&headers, "opc-next-page") {
                Some(next) => page = format!("&page={}", strict(next)),
                None => return Ok(kept),
            }
        }
        let why = format!("the listing has more than {MOST_PAGES} pages");
        Err(call("")?.error(StorageErrorKind::Protocol, why))
    }

    /// Deletes this version of an object.
    pub(super) async fn delete_object(
        &self,
        object: &ObjectName,
        etag: &str,
    ) -> Result<(), StorageError> {
        let call = UnsignedRequest::of_object("DeleteObject", object, Method::DELETE)?
            .with_header(header::IF_MATCH, etag);
        let response = self.0.send_retrying(&call).await?;
        self.discard(response.into_body()).await;
        Ok(())
    }

    /// Creates a private bucket; `false` when there is one of this name already.
    pub(super) async fn create_private_bucket(
        &self,
        bucket: &Bucket,
        compartment: &str,
    ) -> Result<bool, StorageError> {
        let target = format!("/n/{}/b", strict(&bucket.namespace));
        // In no bucket yet: what it takes to read or write its objects is no remedy here.
        let call = UnsignedRequest::new("CreateBucket", bucket, Method::POST, target)
            .in_namespace(&bucket.namespace)
            .with_json(&json!({
                "name": bucket.name,
                "compartmentId": compartment,
                "publicAccessType": "NoPublicAccess",
            }));
        match self.0.send_retrying(&call).await {
            Ok(response) => self.discard(response.into_body()).await,
            Err(error) if error.status() == Some(StatusCode::CONFLICT.as_u16()) => {
                return Ok(false);
            }
            Err(error) => {
                let missing = [StorageErrorKind::NotFound, StorageErrorKind::Forbidden];
                let remedy = missing.contains(&error.kind()).then_some(
                    "to allow it: Allow group <the user's group> to manage buckets in compartment \
                     <the bucket's>; check --compartment-id",
                );
                return Err(error.with_known_remedy(remedy));
            }
        }
        Ok(true)
    }

    /// Reads the rest of a short answer: the connection can be used again then.
    async fn discard(&self, body: hyper::body::Incoming) {
        let _ = self.0.transport.read(body, 64 * 1024).await;
    }
}

impl<'a> UnsignedRequest<'a> {
    /// `/n/{namespace}/b/{bucket}/u/{object}`, with a query that is encoded already.
    fn of_upload(
        operation: &'static str,
        object: &'a ObjectName,
        method: Method,
        query: &str,
    ) -> Result<Self, StorageError> {
        Self::of_name(operation, object, method, "u", &format!("?{query}"))
    }

    /// With the condition of a write.
    fn replacing(self, replaces: &Replaces) -> Self {
        match replaces {
            Replaces::Nothing => self.with_header(header::IF_NONE_MATCH, "*"),
            Replaces::Version(etag) => self.with_header(header::IF_MATCH, etag),
        }
    }

    /// The head of an answer to stored bytes.
    fn stored(&self, headers: &HeaderMap) -> Result<StoredBytes, StorageError> {
        let head = self.head_of_whole(headers, None, None)?;
        if head.etag.is_empty() {
            return Err(self.error(StorageErrorKind::Protocol, "the answer has no etag"));
        }
        let md5 = header_text(headers, "opc-content-md5").and_then(parse_md5);
        Ok(StoredBytes { etag: head.etag, md5, crc32c: head.crc32c })
    }

    fn parse<T: DeserializeOwned>(&self, body: &[u8], what: &str) -> Result<T, StorageError> {
        serde_json::from_slice(body).map_err(|error| {
            let why = format!("the answer is not {what}: {error}");
            self.error(StorageErrorKind::Protocol, why)
        })
    }
}

#[cfg(test)]
#[path = "write_tests.rs"]
mod tests;
