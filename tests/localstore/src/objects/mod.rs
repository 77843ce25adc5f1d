//! Buckets and objects: what is kept, in memory and on disk.

mod bucket;
mod content;
mod digest;
mod listing;
mod object;
mod plain;
mod put;
mod side;
mod synthetic;
mod uploads;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use http::StatusCode;

pub use bucket::PublicAccess;
pub(crate) use bucket::{Bucket, BucketInfo, Precondition, etag_matches};
pub(crate) use content::{Content, DataFile, Reader, remove};
pub(crate) use digest::{Algorithm, Checksums, Digests, Hasher, hex};
pub(crate) use listing::{ListQuery, Page};
pub use object::StorageTier;
pub(crate) use object::{Described, Meta, Object};
pub(crate) use put::put;
pub use put::{PutOptions, Source};
pub use synthetic::synthetic_bytes;
pub(crate) use uploads::{PartToCommit, Upload};

use crate::clock;
use crate::error::{ApiError, ApiResult};
use crate::sync::RwLock;

/// Beside the buckets in the root directory; no bucket can have this name.
pub(crate) const SIDE_DIR: &str = ".localstore";

/// All buckets below a root directory.
#[derive(Debug)]
pub(crate) struct Catalog {
    root: PathBuf,
    namespace: String,
    buckets: RwLock<BTreeMap<String, Arc<Bucket>>>,
}

impl Catalog {
    pub(crate) fn open(root: &Path, namespace: &str) -> io::Result<Self> {
        std::fs::create_dir_all(root)?;
        let catalog = Self {
            root: root.to_owned(),
            namespace: namespace.to_owned(),
            buckets: RwLock::default(),
        };
        for name in catalog.directories()? {
            catalog.open_bucket(&name)?;
        }
        Ok(catalog)
    }

    fn directories(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.root)? {
            let entry = entry?;
            if let Ok(name) = entry.file_name().into_string()
                && is_bucket_name(&name)
                && entry.path().is_dir()
            {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn open_bucket(&self, name: &str) -> io::Result<Arc<Bucket>> {
        let side = bucket_side(&self.root, name);
        let info = side.load_bucket().unwrap_or_else(|| BucketInfo {
            compartment_id: "ocid1.compartment.oc1..localstore".to_owned(),
            created_millis: clock::unix_millis(SystemTime::now()),
            etag: plain::derived_uuid("bucket", name),
            public_access: PublicAccess::NoPublicAccess,
            kms_key_id: None,
        });
        let bucket = Arc::new(Bucket::open(name, self.root.join(name), side, info)?);
        Ok(Arc::clone(self.buckets.write().entry(name.to_owned()).or_insert(bucket)))
    }

    /// The bucket, if need be from a directory that was made by hand.
    pub(crate) fn bucket(&self, name: &str) -> ApiResult<Arc<Bucket>> {
        if let Some(bucket) = self.buckets.read().get(name) {
            return Ok(Arc::clone(bucket));
        }
        if is_bucket_name(name) && self.root.join(name).is_dir() {
            return Ok(self.open_bucket(name)?);
        }
        Err(ApiError::bucket_not_found(name, &self.namespace))
    }

    pub(crate) fn buckets(&self) -> Vec<Arc<Bucket>> {
        for name in self.directories().unwrap_or_default() {
            // One that cannot be opened is not listed; asking for it says why.
            let _ = self.bucket(&name);
        }
        self.buckets.read().values().cloned().collect()
    }

    pub(crate) fn create_bucket(
        &self,
        name: &str,
        compartment_id: &str,
        public_access: PublicAccess,
    ) -> ApiResult<Arc<Bucket>> {
        if !is_bucket_name(name) {
            return Err(ApiError::bad_request(
                "InvalidBucketName",
                format!(
                    "The bucket name '{name}' is not 1 to 256 letters, digits, '-', '_' and '.', or begins with '.'"
                ),
            ));
        }
        if self.bucket(name).is_ok() {
            return Err(ApiError::new(
                StatusCode::CONFLICT,
                "BucketAlreadyExists",
                format!(
                    "Either the bucket '{name}' in namespace '{}' already exists or you are not authorized to create it",
                    self.namespace
                ),
            ));
        }
        std::fs::create_dir_all(self.root.join(name))?;
        bucket_side(&self.root, name).save_bucket(&BucketInfo {
            compartment_id: compartment_id.to_owned(),
            created_millis: clock::unix_millis(SystemTime::now()),
            etag: uuid::Uuid::new_v4().to_string(),
            public_access,
            kms_key_id: None,
        })?;
        Ok(self.open_bucket(name)?)
    }

    pub(crate) fn delete_bucket(&self, name: &str) -> ApiResult<()> {
        let bucket = self.bucket(name)?;
        if !bucket.is_empty() {
            return Err(ApiError::new(
                StatusCode::CONFLICT,
                "BucketNotEmpty",
                format!("The bucket '{name}' still has objects"),
            ));
        }
        self.buckets.write().remove(name);
        Ok(bucket.destroy()?)
    }
}

fn bucket_side(root: &Path, bucket: &str) -> side::SideDir {
    side::SideDir::new(root, bucket)
}

fn is_bucket_name(name: &str) -> bool {
    (1..=256).contains(&name.len())
        && !name.starts_with('.')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}
