//! Object Storage as a place to store objects.

use std::collections::BTreeSet;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use super::ObjectStorage;
use crate::source::{
    Bucket, ObjectHead, ObjectName, ObjectSink, PartToCommit, Replaces, Result, RunningUpload,
    StoredBytes, UploadBody, UploadedPart,
};

impl ObjectSink for ObjectStorage {
    fn put<'a>(
        &'a self,
        object: &'a ObjectName,
        body: UploadBody,
        md5: [u8; 16],
        replaces: &'a Replaces,
    ) -> BoxFuture<'a, Result<StoredBytes>> {
        self.put_object(object, body, md5, replaces).boxed()
    }

    fn create_upload<'a>(
        &'a self,
        object: &'a ObjectName,
        replaces: &'a Replaces,
    ) -> BoxFuture<'a, Result<String>> {
        self.create_multipart_upload(object, replaces).boxed()
    }

    fn upload_part<'a>(
        &'a self,
        object: &'a ObjectName,
        upload: &'a str,
        number: u32,
        body: UploadBody,
    ) -> BoxFuture<'a, Result<StoredBytes>> {
        self.upload_one_part(object, upload, number, body).boxed()
    }

    fn commit<'a>(
        &'a self,
        object: &'a ObjectName,
        upload: &'a str,
        parts: &'a [PartToCommit],
        left_out: &'a [u32],
        replaces: &'a Replaces,
    ) -> BoxFuture<'a, Result<ObjectHead>> {
        self.commit_multipart_upload(object, upload, parts, left_out, replaces).boxed()
    }

    fn running_uploads<'a>(
        &'a self,
        bucket: &'a Bucket,
        objects: &'a BTreeSet<String>,
    ) -> BoxFuture<'a, Result<Vec<RunningUpload>>> {
        self.list_multipart_uploads(bucket, objects).boxed()
    }

    fn uploaded_parts<'a>(
        &'a self,
        object: &'a ObjectName,
        upload: &'a str,
    ) -> BoxFuture<'a, Result<Vec<UploadedPart>>> {
        self.list_multipart_upload_parts(object, upload).boxed()
    }

    fn delete<'a>(&'a self, object: &'a ObjectName, etag: &'a str) -> BoxFuture<'a, Result<()>> {
        self.delete_object(object, etag).boxed()
    }

    fn create_bucket<'a>(
        &'a self,
        bucket: &'a Bucket,
        compartment: &'a str,
    ) -> BoxFuture<'a, Result<bool>> {
        self.create_private_bucket(bucket, compartment).boxed()
    }
}
