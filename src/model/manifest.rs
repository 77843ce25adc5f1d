//! The exact content of one model: which bytes stand at which path.

use serde::{Deserialize, Serialize};

use super::{BlobId, BucketName, ModelKey, NamespaceName, Prefix, Revision, Source, Tree, Warning};
use crate::error::{Error, Result};

/// Version of the stored form.
const FORMAT: u32 = 1;

/// One file of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestFile {
    /// Path below the volume's root.
    pub path: String,
    /// Size in bytes.
    pub size: u64,
    /// `ETag` of the object version.
    pub etag: String,
    /// MD5 as the listing gave it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub md5: Option<String>,
    /// Where the bytes stand in the cache.
    pub blob: BlobId,
}

/// One revision of one source, resolved: everything that is needed to build,
/// check and describe it without asking Object Storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Where it comes from.
    pub source: Source,
    /// Which cached copies may be shared with whom; empty for the whole cluster.
    pub scope: String,
    /// What exactly it is.
    pub revision: Revision,
    /// Files, sorted by path.
    pub files: Vec<ManifestFile>,
    /// Directories, parents before children.
    pub directories: Vec<String>,
    /// What whoever gets the model should look at. Those of the listing that it
    /// was resolved from: they are not stored.
    pub warnings: Vec<Warning>,
}

/// What `manifest.json` holds.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    format: u32,
    location: String,
    namespace: String,
    bucket: String,
    prefix: String,
    scope: String,
    revision: Revision,
    bytes: u64,
    files: Vec<ManifestFile>,
    directories: Vec<String>,
}

impl Manifest {
    /// The manifest of a tree that was resolved from `source`.
    pub fn new(source: Source, scope: &str, tree: Tree) -> Self {
        let files = tree
            .files
            .into_iter()
            .map(|file| {
                let object = format!("{}{}", source.prefix, file.path);
                let blob = BlobId::of(scope, &source, &object, &file.etag);
                let (path, size, etag, md5) = (file.path, file.size, file.etag, file.md5);
                ManifestFile { path, size, etag, md5, blob }
            })
            .collect();
        let Tree { revision, directories, warnings, .. } = tree;
        Self { source, scope: scope.to_owned(), revision, files, directories, warnings }
    }

    /// The key under which this model is cached.
    pub fn key(&self) -> ModelKey {
        ModelKey::of(&self.scope, &self.source, &self.revision)
    }

    /// The full name of a file's object.
    pub fn object_name(&self, file: &ManifestFile) -> String {
        format!("{}{}", self.source.prefix, file.path)
    }

    /// Sum of the files' sizes, in bytes.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|f| f.size).fold(0, u64::saturating_add)
    }

    /// Number of inodes a copy of the tree shows: files, directories and the root.
    pub fn inodes(&self) -> u64 {
        let entries = self.files.len().saturating_add(self.directories.len());
        u64::try_from(entries).unwrap_or(u64::MAX).saturating_add(1)
    }

    /// The stored form.
    pub fn to_json(&self) -> Vec<u8> {
        let stored = Stored {
            format: FORMAT,
            location: self.source.location.clone(),
            namespace: self.source.namespace.as_str().to_owned(),
            bucket: self.source.bucket.as_str().to_owned(),
            prefix: self.source.prefix.as_str().to_owned(),
            scope: self.scope.clone(),
            revision: self.revision.clone(),
            bytes: self.bytes(),
            files: self.files.clone(),
            directories: self.directories.clone(),
        };
        serde_json::to_vec_pretty(&stored).expect("strings and numbers always serialize")
    }

    /// Reads the stored form; anything that does not hold together is an error.
    pub fn from_json(bytes: &[u8]) -> Result<Self> {
        let broken = |why: String| Error::internal(format!("manifest.json is not usable: {why}"));
        let stored: Stored = serde_json::from_slice(bytes).map_err(|e| broken(e.to_string()))?;
        if stored.format != FORMAT {
            return Err(broken(format!("format {} is not {FORMAT}", stored.format)));
        }
        let manifest = Self {
            source: Source {
                location: stored.location,
                namespace: NamespaceName::parse(&stored.namespace)?,
                bucket: BucketName::parse(&stored.bucket)?,
                prefix: Prefix::parse(&stored.prefix)?,
            },
            scope: stored.scope,
            revision: stored.revision,
            files: stored.files,
            directories: stored.directories,
            warnings: Vec::new(),
        };
        if manifest.bytes() != stored.bytes {
            return Err(broken("its sizes do not add up".to_owned()));
        }
        Ok(manifest)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Filters, ListedObject};
    use super::*;

    fn manifest() -> Manifest {
        let source = Source {
            location: "us-ashburn-1".into(),
            namespace: NamespaceName::parse("ns").unwrap(),
            bucket: BucketName::parse("b").unwrap(),
            prefix: Prefix::parse("m/").unwrap(),
        };
        let object = |name: &str, size| ListedObject {
            name: name.into(),
            size,
            etag: format!("e-{name}"),
            md5: Some("x==".into()),
            archived: false,
        };
        let listing = [object("m/w", 7), object("m/d/c", 0)];
        let tree = Tree::arrange(listing, &source.prefix, &Filters::default()).unwrap().unwrap();
        Manifest::new(source, "", tree)
    }

    #[test]
    fn what_is_stored_is_read_back() {
        let manifest = manifest();
        assert_eq!(Manifest::from_json(&manifest.to_json()).unwrap(), manifest);
        assert_eq!((manifest.bytes(), manifest.inodes()), (7, 4));
    }

    #[test]
    fn a_torn_or_foreign_manifest_is_refused() {
        let json = manifest().to_json();
        for cut in [0, 1, json.len() / 2, json.len() - 1] {
            assert!(Manifest::from_json(&json[..cut]).is_err());
        }
        let newer = String::from_utf8(json).unwrap().replace("\"format\": 1", "\"format\": 2");
        assert!(Manifest::from_json(newer.as_bytes()).is_err());
    }
}
