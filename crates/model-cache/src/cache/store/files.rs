//! File operations of the cache. Each error names the path.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::layout::names;
use crate::abort_point;
use crate::error::{Error, Result};

/// Writes a small file atomically: readers see all of it or nothing. Not durable.
pub(in crate::cache) fn write_whole(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    write(path, |file| file.write_all(content), mode, |_| Ok(()))
}

/// Like [`write_whole`], for content that would take too much memory at once.
pub(in crate::cache) fn write_parts(
    path: &Path,
    parts: impl FnOnce(&mut File) -> io::Result<()>,
    mode: u32,
) -> Result<()> {
    write(path, parts, mode, |_| Ok(()))
}

/// Like [`write_whole`], but durable: waits for the disk.
pub(in crate::cache) fn write_durably(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    write(path, |file| file.write_all(content), mode, File::sync_all)?;
    let directory = path.parent().unwrap_or(Path::new("/"));
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(|e| Error::io(format!("syncing {}", directory.display()), &e))
}

fn write(
    path: &Path,
    content: impl FnOnce(&mut File) -> io::Result<()>,
    mode: u32,
    before_rename: impl FnOnce(&File) -> io::Result<()>,
) -> Result<()> {
    let temporary = beside(path);
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&temporary)
        .and_then(|mut file| content(&mut file).and_then(|()| before_rename(&file)))
        .inspect(|()| abort_point::reach("write-1"))
        .and_then(|()| fs::rename(&temporary, path));
    written.map_err(|e| {
        // The rest of a failed write is harmless, but takes an inode.
        let _ = fs::remove_file(&temporary);
        Error::io(format!("writing {}", path.display()), &e)
    })
}

/// Returns a name for the unfinished file; two writers never share one.
fn beside(path: &Path) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(names::unfinished(&name, n))
}

/// Creates a directory that may already exist.
pub(in crate::cache) fn make_directory(path: &Path, mode: u32) -> Result<()> {
    match DirBuilder::new().mode(mode).create(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other.map_err(|e| Error::io(format!("creating {}", path.display()), &e)),
    }
}

/// Reads a small file; `None` when it does not exist.
pub(in crate::cache) fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io(format!("reading {}", path.display()), &e)),
    }
}

/// Removes a file that may already be gone.
pub(in crate::cache) fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(Error::io(format!("removing {}", path.display()), &e))
        }
        _ => Ok(()),
    }
}

/// Renames a file or directory; `false` when the source is gone.
pub(in crate::cache) fn rename(from: &Path, to: &Path) -> Result<bool> {
    match fs::rename(from, to) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound && !from.exists() => Ok(false),
        Err(e) => Err(Error::io(format!("renaming {} to {}", from.display(), to.display()), &e)),
    }
}

/// Sets the permission bits.
pub(in crate::cache) fn set_mode(path: &Path, mode: u32) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .map_err(|e| Error::io(format!("setting the mode of {}", path.display()), &e))
}

/// Lists the names in a directory.
pub(in crate::cache) fn names(directory: &Path) -> Result<Vec<String>> {
    let failed = |e: io::Error| Error::io(format!("listing {}", directory.display()), &e);
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        names.push(entry.map_err(failed)?.file_name().to_string_lossy().into_owned());
    }
    Ok(names)
}

/// Deletes a tree whose directories are read-only. For the trash only.
pub(in crate::cache) fn delete_tree(path: &Path) -> io::Result<()> {
    let metadata = fs::symlink_metadata(path)?;
    if !metadata.is_dir() {
        return fs::remove_file(path);
    }
    // Without the write bit an owner other than root cannot empty it.
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
    for entry in fs::read_dir(path)? {
        delete_tree(&entry?.path())?;
    }
    fs::remove_dir(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_only_tree_is_deleted_and_links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("precious"), "x").unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir_all(tree.join("a/b")).unwrap();
        fs::write(tree.join("a/b/file"), "x").unwrap();
        std::os::unix::fs::symlink(&outside, tree.join("a/link")).unwrap();
        for path in ["a/b", "a", ""] {
            set_mode(&tree.join(path), 0o555).unwrap();
        }
        delete_tree(&tree).unwrap();
        assert!(!tree.exists());
        assert!(outside.join("precious").exists());
    }

    #[test]
    fn a_written_file_replaces_the_old_one_and_leaves_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        write_whole(&path, b"one", 0o600).unwrap();
        write_whole(&path, b"two", 0o600).unwrap();
        assert_eq!(read(&path).unwrap().unwrap(), b"two");
        assert_eq!(names(dir.path()).unwrap(), ["f"]);
        assert!(!rename(&dir.path().join("gone"), &path).unwrap());
    }
}
