//! Turns a listing of objects into a tree of files, or a refusal that names the
//! object. Object names are hostile input: names that could leave the tree, collide
//! in it or not exist on a file system are refused before any byte is requested.

use super::listing::Listed;
use super::manifest::new_directories;
use super::twins::twins;
use super::{Filters, ObjectListing, Pattern, Prefix, Revision, Warning, size_text};
use crate::error::{Error, ErrorKind, Result};
use crate::source::ObjectSummary;
use crate::text::shown;

/// Longest file name of Linux file systems, in bytes.
const NAME_MAX: usize = 255;

/// Longest object name of Object Storage, in bytes.
const LONGEST_NAME: usize = 1024;

/// Largest object of Object Storage, in bytes.
const LARGEST_OBJECT: u64 = 10 << 40;

/// Size of a directory on disk, in bytes.
const BLOCK: u64 = 4096;

/// Size of a file's entry in a manifest in memory, without its texts, in bytes.
const FILE_WEIGHT: usize = 240;

/// One object of a listing, with the fields that the tree needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedObject {
    /// Full object name.
    pub name: String,
    /// Size in bytes.
    pub size: u64,
    /// `ETag`, opaque.
    pub etag: String,
    /// MD5 as the listing gives it: base64, with `-N` behind it for multipart uploads.
    pub md5: Option<String>,
    /// The object lies in the archive tier and is not restored.
    pub archived: bool,
}

impl From<ObjectSummary> for ListedObject {
    fn from(object: ObjectSummary) -> Self {
        let archived = object.is_archived();
        let (name, size, etag, md5) = (object.name, object.size, object.etag, object.md5);
        Self { name, size, etag, md5, archived }
    }
}

/// One file of the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeFile {
    /// Path below the root, safe to create.
    pub path: String,
    /// Size in bytes.
    pub size: u64,
    /// `ETag` of the object version.
    pub etag: String,
    /// MD5 of the listing.
    pub md5: Option<String>,
}

/// The content of a volume of this model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    /// The revision: a digest of the selected names, sizes and `ETag`s.
    pub revision: Revision,
    /// Files, sorted by path.
    pub files: Vec<TreeFile>,
    /// Directories that only a marker names. Those that the files' paths imply
    /// are not listed.
    pub directories: Vec<String>,
    /// Warnings for users of the model.
    pub warnings: Vec<Warning>,
}

/// The limits of one tree.
#[derive(Debug, Clone, Copy)]
pub struct TreeLimits {
    /// Directories, in number.
    pub directories: usize,
    /// Bytes of the files and of the directories' blocks; `None` for no limit.
    pub bytes: Option<u64>,
}

impl Default for TreeLimits {
    fn default() -> Self {
        Self { directories: usize::MAX, bytes: None }
    }
}

/// The selected part of a listing, checked and counted; no tree is built yet.
#[derive(Debug)]
pub struct Selected<'a> {
    /// In the order of their names, each once.
    objects: Vec<Listed<'a>>,
    directories: usize,
    bytes: u64,
    /// Warnings about patterns that matched nothing.
    unmatched: Option<Warning>,
}

impl<'a> Selected<'a> {
    /// Selects from a listing.
    ///
    /// `Precondition`, naming the object: empty, `.` or `..` segments, NUL, a
    /// segment over 255 bytes, a name or a size that no object has, a `d/` with
    /// bytes, `a` beside `a/b`, archived; and more than the limits allow.
    /// `Invalid` when the filters take too long. `None` when nothing is selected; the
    /// prefix's own marker does not count. Takes a second at worst: off the reactor.
    pub fn of(
        listing: &'a ObjectListing,
        filters: &Filters,
        limits: &TreeLimits,
    ) -> Result<Option<Self>> {
        let prefix = listing.prefix().as_str();
        let mut selection = filters.selection();
        let mut objects: Vec<Listed<'a>> = Vec::new();
        for object in listing.iter() {
            // The prefix's own marker, with or without bytes (some tools write a
            // line break into it), says nothing about what is below it.
            if object.name.is_empty() || !selection.has(object.name)? {
                continue;
            }
            check(prefix, &object)?;
            objects.push(object);
        }
        if objects.is_empty() {
            return Ok(None);
        }
        // The service lists in this order; of two entries of one name the later one counts.
        if !objects.is_sorted_by(|a, b| a.name < b.name) {
            objects.reverse();
            objects.sort_by_key(|object| object.name);
            objects.dedup_by_key(|object| object.name);
        }
        let unmatched = filters.unmatched(&selection);
        let mut found = Self { objects, directories: 0, bytes: 0, unmatched };
        found.count(prefix, limits)?;
        Ok(Some(found))
    }

    /// Counts directories and bytes, and refuses files that have a directory's name.
    fn count(&mut self, prefix: &str, limits: &TreeLimits) -> Result<()> {
        let (mut before, mut directories, mut bytes) = ("", 0_usize, 0_u64);
        for object in &self.objects {
            bytes = bytes.saturating_add(object.size);
            for directory in new_directories(before, object.name) {
                if self.objects.binary_search_by_key(&directory, |other| other.name).is_ok() {
                    let both = format!("{prefix}{directory}");
                    let why = "is an object beside objects under ";
                    let why = format!("{why}{}/: rename one of them", shown(&both, 200));
                    return Err(refuse(&both, directory, &why));
                }
                directories += 1;
            }
            before = object.name;
            if directories > limits.directories {
                let most = limits.directories;
                let why = format!("has more than {most} directories (limits.maxObjects)");
                return Err(too_much(prefix, &why));
            }
        }
        let blocks = u64::try_from(directories).unwrap_or(u64::MAX).saturating_mul(BLOCK);
        let all = bytes.saturating_add(blocks);
        if limits.bytes.is_some_and(|most| all > most) {
            let with = match directories {
                0 => String::new(),
                some => format!(" with its {some} directories"),
            };
            let size = size_text(all);
            let why = format!("is {size} large{with}, more than limits.maxModelSize allows");
            return Err(too_much(prefix, &why));
        }
        (self.directories, self.bytes) = (directories, bytes);
        Ok(())
    }

    /// The size of its manifest in memory, in bytes.
    pub fn weight(&self) -> u64 {
        let text = |object: &Listed<'_>| object.name.len() + object.etag.len() + object.md5.len();
        let all = self.objects.iter().map(|object| text(object) + FILE_WEIGHT).sum::<usize>();
        u64::try_from(all).unwrap_or(u64::MAX)
    }

    /// Sum of the files' sizes, in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Builds the tree.
    pub fn tree(&self) -> Tree {
        let is_file = |object: &&Listed<'_>| !object.name.ends_with('/');
        let lines = self.objects.iter().map(|object| (object.name, object.size, object.etag));
        let revision = Revision::of(lines);
        let mut files = Vec::with_capacity(self.objects.iter().filter(is_file).count());
        files.extend(self.objects.iter().filter(is_file).map(|object| TreeFile {
            path: object.name.to_owned(),
            size: object.size,
            etag: object.etag.to_owned(),
            md5: (!object.md5.is_empty()).then(|| object.md5.to_owned()),
        }));
        // Whatever is below a marker comes right after it.
        let next = self.objects.iter().skip(1).map(|object| object.name).chain([""]);
        let alone =
            self.objects.iter().zip(next).filter(|(object, next)| {
                object.name.ends_with('/') && !next.starts_with(object.name)
            });
        let directories = alone.filter_map(|(object, _)| object.name.strip_suffix('/'));
        let directories = directories.map(str::to_owned).collect();
        let names = self.objects.iter().map(|object| object.name.trim_end_matches('/'));
        let warnings = twins(names).into_iter().chain(self.unmatched.clone()).collect();
        Tree { revision, files, directories, warnings }
    }
}

impl Tree {
    /// Selects from a listing under `prefix` and builds the tree, as [`Selected::of`].
    pub fn arrange(
        objects: impl IntoIterator<Item = ListedObject>,
        prefix: &Prefix,
        filters: &Filters,
    ) -> Result<Option<Self>> {
        let mut listing = ObjectListing::new(prefix.clone());
        listing.push(objects)?;
        let selected = Selected::of(&listing, filters, &TreeLimits::default())?;
        Ok(selected.map(|selected| selected.tree()))
    }

    /// Sum of the files' sizes, in bytes.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|f| f.size).fold(0, u64::saturating_add)
    }
}

/// Refuses an object that no file system can show, or that cannot be read.
fn check(prefix: &str, object: &Listed<'_>) -> Result<()> {
    let name = format!("{prefix}{}", object.name);
    check_name(&name, object.name)?;
    check_size(&name, object)?;
    if object.archived {
        return Err(refuse(
            &name,
            object.name,
            "lies in the archive tier: restore it (`oci os object restore`) or move it to \
             the standard tier, then the next try finds it",
        ));
    }
    if object.name.ends_with('/') && object.size > 0 {
        return Err(refuse(
            &name,
            object.name,
            "ends in '/' and has bytes: it can be neither a file nor a directory",
        ));
    }
    Ok(())
}

fn check_size(name: &str, object: &Listed<'_>) -> Result<()> {
    if object.size <= LARGEST_OBJECT {
        return Ok(());
    }
    let why = format!(
        "is listed with {} bytes, more than the 10 TiB that an object may have: what answers is \
         not Object Storage, or is broken",
        object.size
    );
    Err(refuse(name, object.name, &why))
}

fn check_name(name: &str, relative: &str) -> Result<()> {
    flaw_of_name(name, relative).map_or(Ok(()), |why| Err(refuse(name, relative, why)))
}

/// Why no directory can show an object of this name, `relative` being its end below the prefix;
/// `None` if one can.
pub fn flaw_of_name(name: &str, relative: &str) -> Option<&'static str> {
    if name.len() > LONGEST_NAME {
        return Some("has a name over 1,024 bytes");
    }
    if relative.contains('\0') {
        return Some("contains a NUL, which no file name can");
    }
    // The one slash at the end of a directory's marker is not an empty segment.
    let path = relative.strip_suffix('/').unwrap_or(relative);
    path.split('/').find_map(|segment| match segment {
        "" => Some("has an empty path segment ('//' or a leading '/')"),
        "." | ".." => Some("has a '.' or '..' path segment"),
        long if long.len() > NAME_MAX => Some("has a path segment over 255 bytes"),
        _ => None,
    })
}

fn too_much(prefix: &str, why: &str) -> Error {
    let place = shown(if prefix.is_empty() { "/" } else { prefix }, 200);
    let text = format!(
        "{place} {why}: use a longer prefix, leave files out with `exclude`, or ask the \
         administrator to raise the limit"
    );
    Error::new(ErrorKind::Precondition, text)
}

/// `relative` is the end of the object's name, below the prefix.
fn refuse(object: &str, relative: &str, why: &str) -> Error {
    // A hostile name must not fill the message or garble a terminal.
    let shown = shown(object, 200);
    let exclude = match Pattern::advised_for(relative) {
        Some(pattern) => format!("`exclude: {pattern}`"),
        None => "`exclude`".to_owned(),
    };
    Error::new(
        ErrorKind::Precondition,
        format!("object \"{shown}\" {why} (or leave it out with {exclude})"),
    )
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;
