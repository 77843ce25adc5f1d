//! Files in a bucket's directory are objects: the relative path is the name.

use std::collections::HashSet;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::UNIX_EPOCH;

use aws_lc_rs::digest::{SHA256, digest};

use super::content::Content;
use super::digest::Checksums;
use super::object::{Described, Meta, Object};
use crate::clock;

/// Every file below `dir`, by name. Names that are not UTF-8 are left out with a warning.
pub(crate) fn scan(dir: &Path) -> Vec<String> {
    let mut names = Vec::new();
    // Symlinks may make a cycle: each directory is walked once.
    let mut walked = HashSet::new();
    let mut pending = vec![(dir.to_owned(), String::new())];
    while let Some((dir, prefix)) = pending.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries.flatten() {
            let path = entry.path();
            let Ok(name) = entry.file_name().into_string() else {
                tracing::warn!(path = %path.display(), "not served: the name is not UTF-8");
                continue;
            };
            // Follows symlinks, so that a bucket can point at models elsewhere.
            let Ok(metadata) = fs::metadata(&path) else { continue };
            if metadata.is_dir() && walked.insert((metadata.dev(), metadata.ino())) {
                pending.push((path, format!("{prefix}{name}/")));
            } else if metadata.is_file() {
                names.push(format!("{prefix}{name}"));
            }
        }
    }
    names
}

/// The object that the file `name` in `dir` is now, if it is one.
pub(crate) fn find(dir: &Path, name: &str) -> Option<Object> {
    let safe = name.split('/').all(|segment| !matches!(segment, "" | "." | ".."));
    if !safe || name.contains('\0') {
        return None;
    }
    let path = dir.join(name);
    let metadata = fs::metadata(&path).ok().filter(Metadata::is_file)?;
    let modified_nanos = modified_nanos(&metadata);
    let identity = format!("{name}|{}|{modified_nanos}", metadata.len());
    let modified_millis = clock::unix_millis(metadata.modified().ok()?);
    Some(Object::new(
        Meta {
            name: name.to_owned(),
            size: metadata.len(),
            etag: derived_uuid("etag", &identity),
            version_id: derived_uuid("version", &identity),
            created_millis: modified_millis,
            modified_millis,
            described: Described {
                content_type: Described::DEFAULT_TYPE.to_owned(),
                ..Described::default()
            },
            restored: false,
            listed_only: false,
            checksums: Checksums::default(),
        },
        Content::Plain { path, modified_nanos },
    ))
}

/// Whether the file of this object is still the one that was found.
pub(crate) fn unchanged(object: &Object) -> bool {
    let Content::Plain { path, modified_nanos: found } = &object.content else { return true };
    fs::metadata(path).is_ok_and(|metadata| {
        metadata.is_file()
            && metadata.len() == object.meta.size
            && modified_nanos(&metadata) == *found
    })
}

fn modified_nanos(metadata: &Metadata) -> u128 {
    metadata
        .modified()
        .ok()
        .and_then(|time| time.duration_since(UNIX_EPOCH).ok())
        .map_or(0, |elapsed| elapsed.as_nanos())
        // A file renamed over another with the same time is another version.
        .wrapping_mul(31)
        .wrapping_add(u128::from(metadata.ino()))
}

/// The same file has the same ETag after a restart.
pub(crate) fn derived_uuid(purpose: &str, identity: &str) -> String {
    let hash = digest(&SHA256, format!("{purpose}|{identity}").as_bytes());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash.as_ref()[..16]);
    uuid::Builder::from_random_bytes(bytes).into_uuid().to_string()
}
