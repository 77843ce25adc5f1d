//! One bucket: its objects by name, its uploads, its attributes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::content::Content;
use super::listing::{self, ListQuery, Page};
use super::object::Object;
use super::plain;
use super::side::SideDir;
use super::uploads::Uploads;
use crate::error::{ApiError, ApiResult};
use crate::sync::RwLock;

/// What anonymous callers may do in a bucket.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum PublicAccess {
    /// Nothing.
    #[default]
    NoPublicAccess,
    /// Read and list objects.
    ObjectRead,
    /// Read objects whose name they know.
    ObjectReadWithoutList,
}

/// Attributes; what `bucket.json` holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct BucketInfo {
    pub(crate) compartment_id: String,
    pub(crate) created_millis: u64,
    pub(crate) etag: String,
    pub(crate) public_access: PublicAccess,
    /// The OCID of a Vault key, which only the description of the bucket has.
    #[serde(default)]
    pub(crate) kms_key_id: Option<String>,
}

/// `if-match` and `if-none-match: *` of a write.
#[derive(Debug, Clone, Default)]
pub(crate) struct Precondition {
    pub(crate) if_match: Option<String>,
    pub(crate) only_create: bool,
}

impl Precondition {
    pub(crate) fn check(&self, existing: Option<&Object>) -> ApiResult<()> {
        if self.only_create && existing.is_some() {
            return Err(ApiError::if_none_match_failed("*"));
        }
        match &self.if_match {
            Some(wanted)
                if !existing.is_some_and(|object| etag_matches(wanted, &object.meta.etag)) =>
            {
                Err(ApiError::if_match_failed(wanted))
            }
            _ => Ok(()),
        }
    }
}

/// ETags are bare in OCI; quoted ones, as HTTP has them, are understood.
pub(crate) fn etag_matches(wanted: &str, etag: &str) -> bool {
    wanted == "*" || wanted.trim_matches('"') == etag
}

/// A bucket and its directory.
#[derive(Debug)]
pub(crate) struct Bucket {
    pub(crate) name: String,
    pub(crate) side: SideDir,
    pub(crate) uploads: Uploads,
    dir: PathBuf,
    info: RwLock<BucketInfo>,
    objects: RwLock<BTreeMap<String, Arc<Object>>>,
}

impl Bucket {
    /// Loads what the side directory kept and finds the plain files.
    pub(crate) fn open(
        name: &str,
        dir: PathBuf,
        side: SideDir,
        info: BucketInfo,
    ) -> std::io::Result<Self> {
        let objects = side
            .load_objects()?
            .into_iter()
            .map(|object| (object.meta.name.clone(), Arc::new(object)))
            .collect();
        let bucket = Self {
            name: name.to_owned(),
            side,
            uploads: Uploads::default(),
            dir,
            info: RwLock::new(info),
            objects: RwLock::new(objects),
        };
        bucket.rescan();
        Ok(bucket)
    }

    pub(crate) fn info(&self) -> BucketInfo {
        self.info.read().clone()
    }

    pub(crate) fn update_info(&self, change: impl FnOnce(&mut BucketInfo)) -> std::io::Result<()> {
        let mut info = self.info.write();
        change(&mut info);
        info.etag = uuid::Uuid::new_v4().to_string();
        self.side.save_bucket(&*info)
    }

    /// The current object. A plain file is checked again, so that a file that was
    /// added, changed or removed by hand is noticed.
    pub(crate) fn get(&self, name: &str) -> ApiResult<Arc<Object>> {
        let known = self.objects.read().get(name).cloned();
        match known {
            Some(object) if plain::unchanged(&object) => Ok(object),
            _ => self.refresh(name).ok_or_else(|| ApiError::object_not_found(name, &self.name)),
        }
    }

    fn refresh(&self, name: &str) -> Option<Arc<Object>> {
        let found = plain::find(&self.dir, name).map(Arc::new);
        let mut objects = self.objects.write();
        match (objects.get(name), found) {
            // Uploaded meanwhile.
            (Some(object), _) if !matches!(object.content, Content::Plain { .. }) => {
                Some(Arc::clone(object))
            }
            (_, Some(found)) => {
                objects.insert(name.to_owned(), Arc::clone(&found));
                Some(found)
            }
            (_, None) => {
                objects.remove(name);
                None
            }
        }
    }

    /// Updates the plain files from the directory.
    fn rescan(&self) {
        let names = plain::scan(&self.dir);
        let stale: Vec<String> = {
            let objects = self.objects.read();
            let gone = objects.iter().filter(|(_, object)| !plain::unchanged(object));
            let new = names.into_iter().filter(|name| !objects.contains_key(name));
            gone.map(|(name, _)| name.clone()).chain(new).collect()
        };
        for name in stale {
            self.refresh(&name);
        }
    }

    pub(crate) fn list(&self, query: &ListQuery) -> Page {
        // Once per listing, not once per page.
        if query.start.is_none() {
            self.rescan();
        }
        listing::list(&self.objects.read(), query)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rescan();
        self.objects.read().is_empty()
    }

    /// Number of objects and bytes.
    pub(crate) fn totals(&self) -> (usize, u64) {
        let objects = self.objects.read();
        (objects.len(), objects.values().map(|object| object.meta.size).sum())
    }

    /// Makes a version the object's current one: readers see the old or the new.
    /// A version that is refused by `condition` leaves nothing behind.
    pub(crate) fn commit(
        &self,
        object: Object,
        condition: &Precondition,
    ) -> ApiResult<Arc<Object>> {
        let mut objects = self.objects.write();
        let existing = objects.get(&object.meta.name).cloned();
        let saved = condition
            .check(existing.as_deref())
            .and_then(|()| self.side.save_object(&object).map_err(ApiError::from));
        if let Err(error) = saved {
            object.content.discard();
            return Err(error);
        }
        if let Some(existing) = existing {
            existing.content.discard();
        }
        let object = Arc::new(object);
        objects.insert(object.meta.name.clone(), Arc::clone(&object));
        Ok(object)
    }

    /// Changes attributes of the current version, keeping its bytes and its ETag.
    pub(crate) fn amend(
        &self,
        name: &str,
        change: impl FnOnce(&mut super::object::Meta),
    ) -> ApiResult<()> {
        let present = self.get(name)?;
        let mut meta = present.meta.clone();
        change(&mut meta);
        let object = Object::new(meta, present.content.clone());
        self.side.save_object(&object)?;
        self.objects.write().insert(name.to_owned(), Arc::new(object));
        Ok(())
    }

    /// Deletes an object; Object Storage answers 404 when there is none.
    pub(crate) fn delete(&self, name: &str, condition: &Precondition) -> ApiResult<Arc<Object>> {
        self.get(name)?;
        let mut objects = self.objects.write();
        let Some(object) = objects.get(name) else {
            return Err(ApiError::object_not_found(name, &self.name));
        };
        condition.check(Some(object))?;
        self.side.remove_object(name);
        object.content.discard();
        objects.remove(name).ok_or_else(|| ApiError::object_not_found(name, &self.name))
    }

    /// Removes the bucket's directories.
    pub(crate) fn destroy(&self) -> std::io::Result<()> {
        self.side.remove_all()?;
        std::fs::remove_dir_all(&self.dir)
    }
}
