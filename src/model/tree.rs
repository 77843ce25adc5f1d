//! From a listing of objects to a tree of files, or a refusal that names the
//! object. Object names are hostile input: what could leave the tree, collide
//! in it or not exist on a file system is refused before a byte is asked for.

use std::collections::{BTreeMap, BTreeSet};

use super::twins::twins;
use super::{Filters, Pattern, Prefix, Revision, Warning, shown};
use crate::error::{Error, ErrorKind, Result};

/// Longest file name of Linux file systems, in bytes.
const NAME_MAX: usize = 255;

/// Longest object name of Object Storage, in bytes: what is longer is none of its.
const LONGEST_NAME: usize = 1024;

/// Largest object of Object Storage, in bytes.
const LARGEST_OBJECT: u64 = 10 << 40;

/// One object of a listing, as far as the tree needs it.
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

/// What a volume of this model shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    /// The revision: what is selected, by name, size and `ETag`.
    pub revision: Revision,
    /// Files, sorted by path.
    pub files: Vec<TreeFile>,
    /// Directories below the root, parents before children.
    pub directories: Vec<String>,
    /// What whoever gets the model should look at.
    pub warnings: Vec<Warning>,
}

impl Tree {
    /// Selects from a listing under `prefix` and arranges it.
    ///
    /// `Precondition`, naming the object: empty, `.` or `..` segments, NUL, a
    /// segment over 255 bytes, a `d/` with bytes, `a` beside `a/b`, archived.
    /// `Invalid` when the filters take too long. `None` when nothing is selected; the
    /// prefix's own marker does not count. Takes seconds at worst: off the reactor.
    pub fn arrange(
        listing: impl IntoIterator<Item = ListedObject>,
        prefix: &Prefix,
        filters: &Filters,
    ) -> Result<Option<Self>> {
        let mut files: BTreeMap<String, TreeFile> = BTreeMap::new();
        let mut directories: BTreeSet<String> = BTreeSet::new();
        let mut markers: Vec<(String, String)> = Vec::new();
        let mut selection = filters.selection();
        for object in listing {
            let Some(relative) = object.name.strip_prefix(prefix.as_str()) else {
                return Err(Error::internal(format!(
                    "Object Storage listed {:?} under the prefix {prefix:?}",
                    object.name
                )));
            };
            // The prefix's own marker, with or without bytes (some tools write a
            // line break into it), says nothing about what is below it.
            if relative.is_empty() || !selection.has(relative)? {
                continue;
            }
            check_name(&object, relative)?;
            check_size(&object, relative)?;
            if object.archived {
                return Err(refuse(
                    &object.name,
                    relative,
                    "lies in the archive tier: restore it (`oci os object restore`) or move it to \
                     the standard tier, then the next try finds it",
                ));
            }
            if let Some(directory) = relative.strip_suffix('/') {
                if object.size > 0 {
                    return Err(refuse(
                        &object.name,
                        relative,
                        "ends in '/' and has bytes: it can be neither a file nor a directory",
                    ));
                }
                add_parents(&mut directories, relative);
                directories.insert(directory.to_owned());
                markers.push((relative.to_owned(), object.etag));
            } else {
                add_parents(&mut directories, relative);
                let path = relative.to_owned();
                let file = TreeFile { path, size: object.size, etag: object.etag, md5: object.md5 };
                files.insert(file.path.clone(), file);
            }
        }
        if let Some(both) = files.keys().find(|path| directories.contains(*path)) {
            return Err(refuse(
                &format!("{prefix}{both}"),
                both,
                &format!("is an object beside objects under {prefix}{both}/: rename one of them"),
            ));
        }
        if files.is_empty() && markers.is_empty() {
            return Ok(None);
        }
        let files: Vec<TreeFile> = files.into_values().collect();
        let paths = files.iter().map(|file| file.path.as_str());
        let marked = markers.iter().map(|(name, _)| name.trim_end_matches('/'));
        let warnings = twins(paths.chain(marked)).into_iter().chain(filters.unmatched(&selection));
        let warnings = warnings.collect();
        let selected = files.iter().map(|f| (f.path.as_str(), f.size, f.etag.as_str()));
        let marked = markers.iter().map(|(name, etag)| (name.as_str(), 0, etag.as_str()));
        let revision = Revision::of(selected.chain(marked));
        let directories = directories.into_iter().collect();
        Ok(Some(Self { revision, files, directories, warnings }))
    }

    /// Sum of the files' sizes, in bytes.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|f| f.size).fold(0, u64::saturating_add)
    }
}

fn add_parents(directories: &mut BTreeSet<String>, relative: &str) {
    for (end, _) in relative.match_indices('/') {
        directories.insert(relative[..end].to_owned());
    }
}

fn check_size(object: &ListedObject, relative: &str) -> Result<()> {
    if object.size <= LARGEST_OBJECT {
        return Ok(());
    }
    let why = format!(
        "is listed with {} bytes, more than the 10 TiB that an object may have: what answers is \
         not Object Storage, or is broken",
        object.size
    );
    Err(refuse(&object.name, relative, &why))
}

fn check_name(object: &ListedObject, relative: &str) -> Result<()> {
    if object.name.len() > LONGEST_NAME {
        return Err(refuse(&object.name, relative, "has a name over 1,024 bytes"));
    }
    if relative.contains('\0') {
        return Err(refuse(&object.name, relative, "contains a NUL, which no file name can"));
    }
    // The one slash that a directory's marker ends with is no empty segment.
    let path = relative.strip_suffix('/').unwrap_or(relative);
    for segment in path.split('/') {
        let why = match segment {
            "" => "has an empty path segment ('//' or a leading '/')",
            "." | ".." => "has a '.' or '..' path segment",
            long if long.len() > NAME_MAX => "has a path segment over 255 bytes",
            _ => continue,
        };
        return Err(refuse(&object.name, relative, why));
    }
    Ok(())
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
mod tests {
    use super::*;

    fn object(name: &str, size: u64) -> ListedObject {
        let etag = format!("etag-{name}");
        ListedObject { name: name.into(), size, etag, md5: None, archived: false }
    }

    fn arrange(objects: &[ListedObject]) -> Result<Option<Tree>> {
        let prefix = Prefix::parse("m/").unwrap();
        Tree::arrange(objects.to_vec(), &prefix, &Filters::default())
    }

    fn refusal(objects: &[ListedObject]) -> Error {
        let error = arrange(objects).expect_err("was taken");
        assert_eq!(error.kind(), ErrorKind::Precondition);
        error
    }

    #[test]
    fn the_root_is_the_content_of_the_prefix() {
        let tree = arrange(&[object("m/config.json", 3), object("m/a/b/w.bin", 0)]).unwrap();
        let tree = tree.unwrap();
        let paths: Vec<_> = tree.files.iter().map(|f| f.path.as_str()).collect();
        assert_eq!(paths, ["a/b/w.bin", "config.json"]);
        assert_eq!(tree.directories, ["a", "a/b"]);
        assert_eq!(tree.bytes(), 3);
    }

    #[test]
    fn zero_byte_markers_are_directories_and_the_own_marker_is_nothing() {
        assert_eq!(arrange(&[object("m/", 0)]).unwrap(), None);
        assert_eq!(arrange(&[object("m/", 1)]).unwrap(), None);
        let with_bytes = arrange(&[object("m/", 7), object("m/a", 1)]).unwrap();
        assert_eq!(with_bytes, arrange(&[object("m/a", 1)]).unwrap());
        assert_eq!(arrange(&[]).unwrap(), None);
        let tree = arrange(&[object("m/", 0), object("m/empty/", 0)]).unwrap().unwrap();
        assert_eq!(tree.directories, ["empty"]);
        assert!(tree.files.is_empty());
    }

    #[test]
    fn names_that_could_leave_or_break_the_tree_are_refused_by_name() {
        let long = format!("m/{}", "x".repeat(256));
        for (bad, why) in [
            ("m/../etc/passwd", "'..'"),
            ("m/a/./b", "'.'"),
            ("m/a/..", "'..'"),
            ("m//a", "empty path segment"),
            ("m/a//b", "empty path segment"),
            ("m/a//", "empty path segment"),
            ("m//", "empty path segment"),
            ("m/a\0b", "NUL"),
            (long.as_str(), "255"),
        ] {
            let error = refusal(&[object(bad, 1)]);
            assert!(error.message().contains(why), "{bad}: {error}");
        }
        assert!(refusal(&[object("m/../etc/passwd", 1)]).message().contains("m/../etc/passwd"));
        assert!(arrange(&[object(&format!("m/{}", "x".repeat(255)), 1)]).is_ok());
        assert!(arrange(&[object("m/..dots/...", 1)]).is_ok());
    }

    #[test]
    fn a_name_or_a_size_that_no_object_can_have_is_refused_by_name() {
        let long = format!("m/{}", "d/".repeat(512));
        assert!(refusal(&[object(&format!("{long}x"), 1)]).message().contains("1,024 bytes"));
        assert!(arrange(&[object(&long[..1024], 0)]).is_ok());
        for size in [LARGEST_OBJECT + 1, u64::MAX - 4094, u64::MAX] {
            let error = refusal(&[object("m/w", size)]);
            assert!(error.message().contains("\"m/w\"") && error.message().contains("10 TiB"));
        }
        assert!(arrange(&[object("m/w", LARGEST_OBJECT)]).is_ok());
    }

    #[test]
    fn a_file_beside_a_directory_of_its_name_is_refused() {
        for other in ["m/a/b", "m/a/", "m/a/b/c"] {
            let size = u64::from(!other.ends_with('/'));
            let error = refusal(&[object("m/a", 1), object(other, size)]);
            assert!(error.message().contains("\"m/a\""), "{error}");
        }
    }

    #[test]
    fn markers_with_bytes_and_archived_objects_are_refused() {
        assert!(refusal(&[object("m/d/", 1)]).message().contains("has bytes"));
        let archived = ListedObject { archived: true, ..object("m/w", 1) };
        assert!(refusal(&[archived]).message().contains("restore"));
    }

    #[test]
    fn what_the_filters_leave_out_cannot_refuse_the_model() {
        let filters = Filters::parse(None, Some("bad*")).unwrap();
        let prefix = Prefix::parse("m").unwrap();
        let bad = ListedObject { archived: true, ..object("m/bad//x", 1) };
        let tree = Tree::arrange([bad, object("m/w", 1)], &prefix, &filters).unwrap().unwrap();
        assert_eq!(tree.files.len(), 1);
    }

    #[test]
    fn what_a_user_should_look_at_is_a_warning_of_the_tree() {
        let prefix = Prefix::parse("m").unwrap();
        let filters = Filters::parse(Some("*.bin, *.onnx, d/"), Some("original,x.bin")).unwrap();
        let objects = ["m/w.bin", "m/W.bin", "m/original/w", "m/x.bin", "m/d/"];
        let tree = Tree::arrange(objects.map(|name| object(name, 0)), &prefix, &filters);
        let warnings = tree.unwrap().unwrap().warnings;
        let kinds: Vec<_> = warnings.iter().map(|warning| warning.kind.label()).collect();
        assert_eq!(kinds, ["names", "pattern"]);
        assert!(warnings[0].text.contains("\"W.bin\" and \"w.bin\""), "{warnings:?}");
        assert!(warnings[1].text.contains("\"*.onnx\" of include"), "{warnings:?}");
        assert!(warnings[1].text.contains("\"original\" of exclude"), "{warnings:?}");
        assert!(!warnings[1].text.contains("x.bin"), "{warnings:?}");
    }

    #[test]
    fn leaving_out_what_a_refusal_names_as_it_says_works() {
        let prefix = Prefix::parse("m").unwrap();
        for bad in ["m/a//b", "m//a", "m/./x", "m/../x", "m/d//", "m/a\0b", "m/'q'", "m/x,{y}"] {
            let objects = [object("m/w", 1), ListedObject { archived: true, ..object(bad, 0) }];
            let error = refusal(&objects);
            let (_, advice) = error.message().split_once("exclude: ").expect(bad);
            let (pattern, _) = advice.split_once('`').unwrap();
            let filters = Filters::parse(None, Some(pattern)).unwrap();
            let tree = Tree::arrange(objects, &prefix, &filters).unwrap().unwrap();
            assert_eq!(tree.files.len(), 1, "{pattern} for {bad}");
        }
    }

    #[test]
    fn a_hostile_name_cannot_fill_the_message() {
        let name = format!("m/{}\u{1b}[2J/..", "é".repeat(500));
        let error = refusal(&[object(&name, 1)]);
        assert!(error.message().len() < 800, "{}", error.message().len());
        assert!(!refusal(&[object("m/\u{1b}[2J/..", 1)]).message().contains('\u{1b}'));
    }
}
