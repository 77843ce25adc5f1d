//! Multipart uploads that are not committed yet. They live in memory: a restart ends them.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::SystemTime;

use super::content::{Content, DataFile};
use super::digest::{Algorithm, Checksums, Digests};
use super::object::{Described, Meta, Object};
use crate::error::{ApiError, ApiResult};
use crate::sync::Mutex;

/// One upload in progress.
#[derive(Debug)]
pub(crate) struct Upload {
    pub(crate) id: String,
    pub(crate) object: String,
    pub(crate) created: SystemTime,
    pub(crate) described: Described,
    pub(crate) algorithm: Option<Algorithm>,
    parts: Mutex<BTreeMap<u32, Part>>,
}

/// One uploaded part.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    pub(crate) etag: String,
    pub(crate) digests: Digests,
    file: Arc<DataFile>,
}

/// A part that the client names in a commit.
#[derive(Debug, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PartToCommit {
    pub(crate) part_num: u32,
    pub(crate) etag: String,
}

impl Upload {
    /// The largest part number of Object Storage.
    pub(crate) const MAX_PART: u32 = 10_000;

    pub(crate) fn parts(&self) -> BTreeMap<u32, Part> {
        self.parts.lock().clone()
    }

    /// Adds or replaces a part, and returns its ETag.
    pub(crate) fn add_part(&self, number: u32, file: DataFile, digests: Digests) -> String {
        let etag = uuid::Uuid::new_v4().to_string();
        let part = Part { etag: etag.clone(), digests, file: Arc::new(file) };
        if let Some(replaced) = self.parts.lock().insert(number, part) {
            replaced.file.discard();
        }
        etag
    }

    /// The object that these parts make. Every uploaded part must be named in
    /// exactly one of the lists, with its present ETag.
    pub(crate) fn assemble(&self, commit: &[PartToCommit], exclude: &[u32]) -> ApiResult<Object> {
        let parts = self.parts.lock();
        let mut named = HashSet::new();
        let mut chosen = BTreeMap::new();
        for wanted in commit {
            let part = parts
                .get(&wanted.part_num)
                .filter(|part| part.etag == wanted.etag.trim_matches('"'));
            let Some(part) = part.filter(|_| named.insert(wanted.part_num)) else {
                return Err(invalid_part(wanted.part_num));
            };
            chosen.insert(wanted.part_num, part.clone());
        }
        if let Some(number) =
            exclude.iter().find(|&number| !parts.contains_key(number) || !named.insert(*number))
        {
            return Err(invalid_part(*number));
        }
        if let Some(number) = parts.keys().find(|number| !named.contains(number)) {
            return Err(invalid_part(*number));
        }
        if chosen.is_empty() {
            return Err(ApiError::bad_request("InvalidUploadPart", "No part is to be committed"));
        }
        exclude.iter().filter_map(|number| parts.get(number)).for_each(|part| part.file.discard());
        let size = chosen.values().map(|part| part.file.len).sum();
        let checksums = Checksums::of_parts(chosen.values().map(|part| &part.digests));
        let meta = Meta::new(&self.object, size, self.described.clone(), checksums);
        let files = chosen.into_values().map(|part| part.file).collect();
        Ok(Object::new(meta, Content::Files(files)))
    }

    fn discard(&self) {
        self.parts.lock().values().for_each(|part| part.file.discard());
    }
}

fn invalid_part(number: u32) -> ApiError {
    ApiError::bad_request(
        "InvalidUploadPart",
        format!(
            "Part {number} is not one of this upload with the given ETag, or not in exactly one list"
        ),
    )
}

/// The uploads of a bucket.
#[derive(Debug, Default)]
pub(crate) struct Uploads(Mutex<BTreeMap<String, Arc<Upload>>>);

impl Uploads {
    pub(crate) fn create(
        &self,
        object: &str,
        described: Described,
        algorithm: Option<Algorithm>,
    ) -> Arc<Upload> {
        let upload = Arc::new(Upload {
            id: uuid::Uuid::new_v4().to_string(),
            object: object.to_owned(),
            created: SystemTime::now(),
            described,
            algorithm,
            parts: Mutex::default(),
        });
        self.0.lock().insert(upload.id.clone(), Arc::clone(&upload));
        upload
    }

    /// The upload with this id, if it is one of this object.
    pub(crate) fn get(&self, id: &str, object: &str) -> ApiResult<Arc<Upload>> {
        let found = self.0.lock().get(id).filter(|upload| upload.object == object).cloned();
        found.ok_or_else(|| ApiError::upload_not_found(id))
    }

    pub(crate) fn all(&self) -> Vec<Arc<Upload>> {
        self.0.lock().values().cloned().collect()
    }

    /// Removes an upload whose parts become an object. Of concurrent commits only
    /// the first succeeds, since the parts can belong to only one object.
    pub(crate) fn close(&self, id: &str) -> ApiResult<()> {
        self.0.lock().remove(id).map(drop).ok_or_else(|| ApiError::upload_not_found(id))
    }

    pub(crate) fn abort(&self, id: &str, object: &str) -> ApiResult<()> {
        self.get(id, object)?.discard();
        self.0.lock().remove(id);
        Ok(())
    }
}
