//! What is under the prefix before and after a push.

use std::collections::{BTreeMap, HashSet};

use super::files::LocalFile;
use crate::blocking::blocking;
use crate::error::{Error, ErrorKind, Result};
use crate::model::{Filters, ListedObject, Prefix, Revision, Tree};
use crate::source::{Bucket, ObjectSink, ObjectSummary};

/// The most objects under a prefix: as many as the driver mounts by default (`limits.maxObjects`).
const MOST_OBJECTS: usize = 100_000;

/// The objects under a prefix, by their names below it.
#[derive(Debug, Clone, Default)]
pub(super) struct RemoteObjects(pub(super) BTreeMap<String, ObjectSummary>);

/// The model that the objects under a prefix are.
#[derive(Debug)]
pub(super) struct RemoteModel {
    pub(super) revision: Revision,
    pub(super) warnings: Vec<String>,
}

impl RemoteObjects {
    /// Lists the objects under a prefix.
    pub(super) async fn list(
        sink: &dyn ObjectSink,
        bucket: &Bucket,
        prefix: &Prefix,
    ) -> Result<Self> {
        let mut pages = sink.pages(bucket, prefix.as_str(), MOST_OBJECTS);
        let mut objects = BTreeMap::new();
        while let Some(page) = pages.next().await? {
            let named = page.into_iter().filter_map(|object| {
                let name = object.name.strip_prefix(prefix.as_str())?.to_owned();
                Some((name, object))
            });
            objects.extend(named);
        }
        if pages.truncated() {
            let text = format!(
                "there are more than {MOST_OBJECTS} objects under {:?} in {bucket}, more than the \
                 driver mounts: name a longer prefix",
                prefix.as_str()
            );
            return Err(Error::new(ErrorKind::Precondition, text));
        }
        Ok(Self(objects))
    }

    /// The names that are not of these files and that the filters select, without markers of
    /// directories.
    pub(super) fn others(&self, files: &[LocalFile], filters: &Filters) -> Result<Vec<String>> {
        let own: HashSet<&str> = files.iter().map(|file| file.name.as_str()).collect();
        let mut selection = filters.selection();
        let mut others = Vec::new();
        for name in self.0.keys() {
            let is_other = !name.is_empty() && !name.ends_with('/') && !is_left_out(name);
            if is_other && !own.contains(name.as_str()) && selection.has(name)? {
                others.push(name.clone());
            }
        }
        Ok(others)
    }

    /// Checks that the driver could mount what is there after the push of these files.
    ///
    /// # Errors
    /// `Precondition`, naming the object.
    pub(super) async fn check_with(
        &self,
        files: &[LocalFile],
        deleted: &[String],
        prefix: &Prefix,
    ) -> Result<()> {
        let mut objects = self.clone().0;
        for name in deleted {
            objects.remove(name);
        }
        for file in files {
            let name = format!("{prefix}{}", file.name);
            let (size, etag) = (file.state.size, "new".to_owned());
            let object = ObjectSummary { name, size, etag, ..ObjectSummary::default() };
            objects.insert(file.name.clone(), object);
        }
        let context = "nothing was sent, since the driver could not mount the result";
        Self(objects).model(prefix).await.map(drop).map_err(|error| error.context(context))
    }

    /// The model that these objects are, as the driver resolves it.
    pub(super) async fn model(self, prefix: &Prefix) -> Result<RemoteModel> {
        let prefix = prefix.clone();
        blocking(move || {
            let objects = self.0.into_values().map(ListedObject::from);
            let tree = Tree::arrange(objects, &prefix, &Filters::default())?;
            let tree = tree.ok_or_else(|| Error::internal("nothing is there after a push"))?;
            let warnings = tree.warnings.into_iter().map(|warning| warning.text).collect();
            Ok(RemoteModel { revision: tree.revision, warnings })
        })
        .await
    }
}

/// Whether a push would leave this name out: then it does not delete it either.
fn is_left_out(name: &str) -> bool {
    name.split('/').any(|segment| super::files::LEFT_OUT.contains(&segment))
}
