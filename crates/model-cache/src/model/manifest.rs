//! The exact content of one model: which bytes are at which path.

mod scan;

use std::collections::HashMap;
use std::fmt::{self, Display};
use std::io::{self, Read, Write};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use self::scan::{ManifestPart, scan};
use super::{
    BlobId, BucketName, ModelKey, ModelSource, NamespaceName, Prefix, Revision, Tree, Warning,
};
use crate::error::{Error, Result};

/// Version of the stored form.
const FORMAT: u32 = 1;

/// Size of a file's entry in the stored form, without its path and ETag.
const STORED_FILE: usize = 220;

/// The unit to which the stored size is rounded down.
const STORED_UNIT: usize = 64 * 1024;

/// The most files of a model that share a blob. Each model links the blob once for
/// each of them, and ext4 allows an inode 65,000 names.
const NAMES_OF_A_BLOB: usize = 16;

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
    /// The id of the blob with the bytes.
    pub blob: BlobId,
}

/// One revision of one source, resolved: everything that is needed to build,
/// check and describe it without asking Object Storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Where it comes from.
    pub source: ModelSource,
    /// Which cached copies may be shared with whom; empty for the whole cluster.
    pub scope: String,
    /// Its revision.
    pub revision: Revision,
    /// Files, sorted by path.
    pub files: Vec<ManifestFile>,
    /// Directories that only a marker names, without those that the files' paths
    /// imply: there may be hundreds of those for each file.
    pub directories: Vec<String>,
    /// Warnings for users of the model, from the listing that it was
    /// resolved from: they are not stored.
    pub warnings: Vec<Warning>,
    /// What it is accounted with.
    pub kept: Attachment,
}

/// A value that lives as long as its manifest, and is not part of it.
#[derive(Clone, Default)]
pub struct Attachment(Option<Arc<dyn Send + Sync>>);

impl Attachment {
    /// Attaches this value.
    pub fn new(kept: impl Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(kept)))
    }
}

impl fmt::Debug for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Kept" } else { "-" })
    }
}

impl PartialEq for Attachment {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Attachment {}

/// The parts of a model that are needed often, in a few hundred bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Where it comes from.
    pub source: ModelSource,
    /// Which cached copies may be shared with whom; empty for the whole cluster.
    pub scope: String,
    /// Its revision.
    pub revision: Revision,
    /// Sum of the files' sizes, in bytes.
    pub bytes: u64,
    /// Files, directories and the root.
    pub inodes: u64,
}

/// The content of `manifest.json`.
#[derive(Serialize)]
struct Stored<'a> {
    format: u32,
    location: &'a str,
    namespace: &'a str,
    bucket: &'a str,
    prefix: &'a str,
    scope: &'a str,
    revision: &'a Revision,
    bytes: u64,
    files: &'a [ManifestFile],
    directories: &'a [String],
}

/// The content of the summary next to it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredSummary {
    format: u32,
    location: String,
    namespace: String,
    bucket: String,
    prefix: String,
    scope: String,
    revision: Revision,
    bytes: u64,
    inodes: u64,
}

impl Manifest {
    /// The manifest of a tree that was resolved from `source`.
    pub fn new(source: ModelSource, scope: &str, tree: Tree) -> Self {
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
        let (scope, kept) = (scope.to_owned(), Attachment::default());
        Self { source, scope, revision, files, directories, warnings, kept }
    }

    /// Gives files of the same size and MD5 the same blob. They are in one listing,
    /// so a user who constructs an MD5 collision changes only their own model.
    #[must_use]
    pub fn with_equal_bytes_once(mut self) -> Self {
        let mut first: HashMap<(u64, &str), (usize, usize)> = HashMap::new();
        let mut equal = Vec::new();
        for (at, file) in self.files.iter().enumerate() {
            let Some(md5) = file.md5.as_deref() else { continue };
            let (shared, names) = first.entry((file.size, md5)).or_insert((at, 0));
            if *names == NAMES_OF_A_BLOB {
                (*shared, *names) = (at, 0);
            }
            *names += 1;
            if *shared != at {
                equal.push((at, *shared));
            }
        }
        for (at, shared) in equal {
            self.files[at].blob = self.files[shared].blob.clone();
        }
        self
    }

    /// The same with a blob for each file, whatever its content.
    #[must_use]
    pub fn with_a_blob_for_each_file(mut self) -> Self {
        for at in 0..self.files.len() {
            let (file, source) = (&self.files[at], &self.source);
            let blob = BlobId::of(&self.scope, source, &self.object_name(file), &file.etag);
            self.files[at].blob = blob;
        }
        self
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

    /// All directories below the root, parents before children: those that the
    /// files' paths imply, and those that only have a marker.
    pub fn all_directories(&self) -> Vec<&str> {
        let mut all: Vec<&str> = Vec::new();
        let mut before = "";
        for file in &self.files {
            all.extend(new_directories(before, &file.path));
            before = &file.path;
        }
        for directory in &self.directories {
            all.extend(new_directories(before, directory));
            all.push(directory);
            before = directory;
        }
        all.sort_unstable();
        all.dedup();
        all
    }

    /// The approximate size of the stored form on disk, in bytes; small ones count
    /// as nothing.
    pub fn stored_bytes(&self) -> u64 {
        let texts = |file: &ManifestFile| file.path.len() + file.etag.len() + STORED_FILE;
        let all = self.files.iter().map(texts).sum::<usize>() / STORED_UNIT * STORED_UNIT;
        u64::try_from(all).unwrap_or(u64::MAX)
    }

    /// The summary of this manifest.
    pub fn summary(&self) -> Summary {
        let entries = self.files.len().saturating_add(self.all_directories().len());
        Summary {
            source: self.source.clone(),
            scope: self.scope.clone(),
            revision: self.revision.clone(),
            bytes: self.bytes(),
            inodes: u64::try_from(entries).unwrap_or(u64::MAX).saturating_add(1),
        }
    }

    /// Writes the stored form, without a second copy in memory.
    ///
    /// # Errors
    /// Those of the output.
    pub fn write(&self, output: impl Write) -> io::Result<()> {
        let stored = Stored {
            format: FORMAT,
            location: &self.source.location,
            namespace: self.source.namespace.as_str(),
            bucket: self.source.bucket.as_str(),
            prefix: self.source.prefix.as_str(),
            scope: &self.scope,
            revision: &self.revision,
            bytes: self.bytes(),
            files: &self.files,
            directories: &self.directories,
        };
        let mut output = io::BufWriter::new(output);
        serde_json::to_writer_pretty(&mut output, &stored)?;
        output.flush()
    }

    /// Reads the stored form; inconsistent content is an error.
    pub fn read(input: impl Read) -> Result<Self> {
        let (mut files, mut directories) = (Vec::new(), Vec::<String>::new());
        let head = scan(input, |part| match part {
            ManifestPart::File(file) => files.push(file),
            ManifestPart::Directory(directory) => {
                // Older manifests name every directory, parents before children.
                let is_parent = |last: &String| {
                    directory.strip_prefix(last.as_str()).is_some_and(|rest| rest.starts_with('/'))
                };
                if directories.last().is_some_and(is_parent) {
                    directories.pop();
                }
                directories.push(directory);
            }
        })?;
        let Summary { source, scope, revision, bytes, .. } = head;
        let (warnings, kept) = (Vec::new(), Attachment::default());
        let manifest = Self { source, scope, revision, files, directories, warnings, kept };
        if manifest.bytes() != bytes {
            return Err(broken("its sizes do not add up"));
        }
        Ok(manifest)
    }
}

impl Manifest {
    /// Visits each file of a stored manifest, in memory that does not grow with it.
    ///
    /// # Errors
    /// `Internal` when it is torn or of another format.
    pub fn each_file(input: impl Read, mut visit: impl FnMut(ManifestFile)) -> Result<()> {
        let head = scan(input, |part| match part {
            ManifestPart::File(file) => visit(file),
            ManifestPart::Directory(_) => {}
        });
        head.map(drop)
    }
}

impl Summary {
    /// The key under which this model is cached.
    pub fn key(&self) -> ModelKey {
        ModelKey::of(&self.scope, &self.source, &self.revision)
    }

    /// Reads the summary of a stored manifest, in memory that does not grow with it.
    ///
    /// # Errors
    /// `Internal` when it is torn or of another format.
    pub fn of_stored(input: impl Read) -> Result<Self> {
        let (mut files, mut named, mut implied) = (0_u64, 0_u64, 0_u64);
        let mut before = String::new();
        let head = scan(input, |part| match part {
            ManifestPart::File(file) => {
                files = files.saturating_add(1);
                let more = new_directories(&before, &file.path).count();
                implied = implied.saturating_add(u64::try_from(more).unwrap_or(u64::MAX));
                before = file.path;
            }
            ManifestPart::Directory(_) => named = named.saturating_add(1),
        })?;
        // Older manifests name all directories; others have a summary next to them.
        let inodes = files.saturating_add(named.max(implied)).saturating_add(1);
        Ok(Self { inodes, ..head })
    }

    /// Encodes the stored form.
    pub fn to_json(&self) -> Vec<u8> {
        let stored = StoredSummary {
            format: FORMAT,
            location: self.source.location.clone(),
            namespace: self.source.namespace.as_str().to_owned(),
            bucket: self.source.bucket.as_str().to_owned(),
            prefix: self.source.prefix.as_str().to_owned(),
            scope: self.scope.clone(),
            revision: self.revision.clone(),
            bytes: self.bytes,
            inodes: self.inodes,
        };
        serde_json::to_vec(&stored).expect("strings and numbers always serialize")
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// `Internal` when it is torn or of another format.
    pub fn from_json(bytes: &[u8]) -> Result<Self> {
        let stored: StoredSummary = serde_json::from_slice(bytes).map_err(broken)?;
        if stored.format != FORMAT {
            return Err(broken(format!("format {} is not {FORMAT}", stored.format)));
        }
        Ok(Self {
            source: ModelSource {
                location: stored.location,
                namespace: NamespaceName::parse(&stored.namespace)?,
                bucket: BucketName::parse(&stored.bucket)?,
                prefix: Prefix::parse(&stored.prefix)?,
            },
            scope: stored.scope,
            revision: stored.revision,
            bytes: stored.bytes,
            inodes: stored.inodes,
        })
    }
}

/// The directories of a name that the name before it, in byte order, does not
/// have: so each is visited once. A name that ends in a slash is in a directory
/// of that name.
pub(super) fn new_directories<'a>(before: &str, name: &'a str) -> impl Iterator<Item = &'a str> {
    let shared = before.bytes().zip(name.bytes()).take_while(|(a, b)| a == b).count();
    name.match_indices('/').filter(move |(at, _)| *at >= shared).map(|(at, _)| &name[..at])
}

fn broken(why: impl Display) -> Error {
    Error::internal(format!("manifest.json is not usable: {why}"))
}

#[cfg(test)]
#[path = "manifest_tests.rs"]
mod tests;
