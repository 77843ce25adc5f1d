//! Opens a cache directory, for one process at a time.

use std::collections::HashSet;
use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use super::files;
use super::layout::Layout;
use super::layout::names::{self, Directory, RootFile, VERSION, VERSION_STEM};
use super::selinux;
use crate::error::{Error, ErrorKind, Result};
use crate::mount;

/// Ownership of a cache directory, until dropped.
#[derive(Debug)]
pub(in crate::cache) struct Ownership {
    _lock: File,
}

/// Makes the directory a cache or recognizes it as one, and locks it.
///
/// A directory of a newer layout, of another program, or in use by another driver
/// is refused and left unchanged.
pub(in crate::cache) fn take(layout: &Layout, require_mount: bool) -> Result<Ownership> {
    let root = layout.root();
    if !may_be_used(root, require_mount)? {
        std::fs::create_dir_all(root)
            .map_err(|e| Error::io(format!("creating the cache {}", root.display()), &e))?;
        files::set_mode(root, 0o700)?;
    }
    check_owner(root)?;
    let lock = match files::read(&layout.version())? {
        // A process may be using it: lock it first.
        Some(version) if is_older(&version) => {
            let lock = lock(layout)?;
            claim(layout)?;
            lock
        }
        _ => {
            claim(layout)?;
            lock(layout)?
        }
    };
    let is_new = !layout.models().exists();
    let directories = Directory::ALL.map(|directory| layout.directory(directory));
    for directory in &directories {
        files::make_directory(directory, 0o755)?;
    }
    selinux::label(&selinux::Kernel::default(), root, &directories, is_new);
    warn_of_foreign_files(layout)?;
    Ok(Ownership { _lock: lock })
}

/// Whether the directory exists already; refuses one that must not become a cache.
fn may_be_used(root: &Path, require_mount: bool) -> Result<bool> {
    if !root.is_absolute() {
        return Err(refused(root, "is not an absolute path; give one with --cache-dir"));
    }
    let exists = match std::fs::symlink_metadata(root) {
        Ok(metadata) if metadata.is_dir() => true,
        Ok(_) => {
            return Err(refused(root, "is a file or a symbolic link; a cache must be a directory"));
        }
        Err(_) if require_mount => {
            return Err(refused(root, "does not exist, and cache.requireMount is set: mount it"));
        }
        Err(_) => false,
    };
    if require_mount && !mount::is_own_file_system(root)? {
        return Err(refused(
            root,
            "is not the mount point of a file system of its own, and cache.requireMount is set: \
             its disk (or btrfs subvolume) is not mounted, and downloads would fill the one below",
        ));
    }
    Ok(exists)
}

/// What a directory holds, as a driver that starts on it sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DirectoryContent {
    /// It does not exist; the driver creates it.
    Absent,
    /// No file of another program; the driver makes it a cache.
    Empty,
    /// A cache of this layout.
    Cache,
    /// A cache of an older layout, which the driver sets aside.
    OlderCache,
}

/// What a driver that starts on this directory would find. Changes nothing.
///
/// # Errors
/// Those with which the driver would refuse to start, but that another process uses the cache.
pub fn examine(root: &Path, require_mount: bool) -> Result<DirectoryContent> {
    if !may_be_used(root, require_mount)? {
        return Ok(DirectoryContent::Absent);
    }
    check_owner(root)?;
    recognize(&Layout::new(root)).map(|(content, _)| content)
}

/// Recognizes the layout of an existing directory, with what VERSION says.
///
/// # Errors
/// `Precondition` for a newer layout, and for another program's files.
fn recognize(layout: &Layout) -> Result<(DirectoryContent, Vec<u8>)> {
    let root = layout.root();
    let Some(version) = files::read(&layout.version())? else {
        // A start that was killed between setting an older layout aside and
        // writing VERSION leaves only the set-aside cache.
        let ours =
            |name: &str| RootFile::may_precede_version(name) || is_set_aside(&root.join(name));
        return match files::names(root)?.into_iter().find(|name| !ours(name)) {
            None => Ok((DirectoryContent::Empty, Vec::new())),
            Some(name) => Err(refused(
                root,
                &format!(
                    "is neither empty nor a cache of this driver (it holds {name:?}); choose an \
                     empty directory with --cache-dir"
                ),
            )),
        };
    };
    if version == VERSION.as_bytes() {
        return Ok((DirectoryContent::Cache, version));
    }
    if is_older(&version) {
        return Ok((DirectoryContent::OlderCache, version));
    }
    let text = String::from_utf8_lossy(&version);
    let shown: String = text.lines().next().unwrap_or("").chars().take(60).collect();
    Err(refused(
        root,
        &match text.strip_prefix(VERSION_STEM) {
            Some(_) => format!(
                "has the layout {shown:?}; this version knows {:?}. It was left unchanged: \
                 run the version that wrote it, or choose another --cache-dir",
                VERSION.trim_end()
            ),
            None => format!("belongs to another program (VERSION says {shown:?})"),
        },
    ))
}

/// Recognizes the layout, or writes VERSION into an empty directory.
fn claim(layout: &Layout) -> Result<()> {
    let (content, version) = recognize(layout)?;
    if content == DirectoryContent::Cache {
        return Ok(());
    }
    check_hard_links(layout.root())?;
    if content == DirectoryContent::OlderCache {
        set_aside(layout, &version)?;
    }
    // A torn VERSION would be taken for another program's ever after.
    files::write_durably(&layout.version(), VERSION.as_bytes(), 0o644)
}

/// Parses the number of a layout of this driver.
fn layout_number(version: &[u8]) -> Option<u32> {
    std::str::from_utf8(version).ok()?.strip_prefix(VERSION_STEM)?.trim_end().parse().ok()
}

fn is_older(version: &[u8]) -> bool {
    layout_number(version) < layout_number(VERSION.as_bytes()) && layout_number(version).is_some()
}

/// Moves a cache of an older layout into a directory inside the new one. Its models
/// may still be mounted, so nothing of it is deleted.
fn set_aside(layout: &Layout, version: &[u8]) -> Result<()> {
    let root = layout.root();
    let number = layout_number(version).unwrap_or_default();
    let present: HashSet<String> = files::names(root)?.into_iter().collect();
    let mut candidates = (0..=present.len()).map(|n| names::set_aside(number, n));
    // VERSION is moved last: a set-aside cache without it was begun by a start that
    // was killed. It is completed, so that leases and models of a cache stay together.
    let is_free =
        |name: &String| !present.contains(name) || !Layout::new(root.join(name)).version().exists();
    let free = candidates.find(is_free).unwrap_or_default();
    let aside = root.join(&free);
    files::make_directory(&aside, 0o700)?;
    let version = RootFile::Version.name();
    let stays = |name: &str| RootFile::may_precede_version(name) || names::is_set_aside(name);
    let moved = present.iter().filter(|name| !stays(name) && *name != version);
    for name in moved.map(String::as_str).chain([version]) {
        files::rename(&root.join(name), &aside.join(name))?;
    }
    tracing::warn!(
        set_aside = %aside.display(),
        "the cache has an older layout; it was set aside, and a new cache was created. Running pods \
         keep their models; later requests download again. The old cache is removed when its space \
         is needed and no pod uses it, or with `oci-model-csi cache gc --all`"
    );
    Ok(())
}

/// Whether this is a completely set-aside cache of an older layout.
fn is_set_aside(path: &Path) -> bool {
    let is_named =
        path.file_name().is_some_and(|name| names::is_set_aside(&name.to_string_lossy()));
    let version = files::read(&Layout::new(path).version()).ok().flatten();
    is_named && version.is_some_and(|version| is_older(&version))
}

/// Checks owner and mode: anyone who may write to the directory could change what
/// every pod of the node reads.
fn check_owner(root: &Path) -> Result<()> {
    let metadata = std::fs::metadata(root)
        .map_err(|e| Error::io(format!("looking at {}", root.display()), &e))?;
    let (owner, mode) = (metadata.uid(), metadata.mode() & 0o7777);
    if owner != nix::unistd::geteuid().as_raw() {
        let why = format!(
            "belongs to user {owner}, who could change the models that pods read; chown it to the \
             driver's user, or choose another --cache-dir"
        );
        return Err(refused(root, &why));
    }
    // The sticky bit does not help: others could still add files.
    if mode & 0o022 != 0 {
        let why = format!(
            "can be written to by others (mode {mode:04o}), who could change the models that pods \
             read; chmod it to 0755 or less"
        );
        return Err(refused(root, &why));
    }
    Ok(())
}

fn lock(layout: &Layout) -> Result<File> {
    let path = layout.lock();
    let shown = path.display().to_string();
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(|e| Error::io(format!("opening {shown}"), &e))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::new(
            ErrorKind::Precondition,
            format!(
                "the cache {} is in use by another oci-model-csi process (it holds {shown}); one \
                 process owns a cache",
                layout.root().display()
            ),
        )),
        Err(TryLockError::Error(e)) => Err(Error::io(format!("locking {shown}"), &e)),
    }
}

/// Checks that the file system has hard links, which trees are made of.
fn check_hard_links(root: &Path) -> Result<()> {
    let name = |number| root.join(names::unfinished("hard-link", number));
    let (from, to) = (name(0), name(1));
    files::remove(&to)?;
    files::write_whole(&from, b"", 0o600)?;
    let linked = std::fs::hard_link(&from, &to);
    files::remove(&from)?;
    files::remove(&to)?;
    linked.map_err(|e| {
        let why = format!("is on a file system without hard links ({e}); use ext4, xfs or btrfs");
        refused(root, &why)
    })
}

fn warn_of_foreign_files(layout: &Layout) -> Result<()> {
    let ours = |name: &str| {
        Directory::ALL.iter().any(|directory| directory.name() == name)
            || [RootFile::Version, RootFile::Scrubbed].iter().any(|file| file.name() == name)
            || RootFile::may_precede_version(name)
            || names::is_set_aside(name)
    };
    for name in files::names(layout.root())?.iter().filter(|name| !ours(name)).take(10) {
        tracing::warn!(
            name,
            cache = %layout.root().display(),
            "the cache directory holds a file that is not the driver's; it is left alone"
        );
    }
    Ok(())
}

fn refused(root: &Path, why: &str) -> Error {
    Error::new(ErrorKind::Precondition, format!("the cache directory {} {why}", root.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(layout: &Layout) -> String {
        take(layout, false).expect_err("was taken").message().to_owned()
    }

    #[test]
    fn an_empty_directory_becomes_a_cache_and_is_recognized_again() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().join("new/cache"));
        drop(take(&layout, false).unwrap());
        std::fs::write(layout.root().join("notes.txt"), "mine").unwrap();
        drop(take(&layout, false).unwrap());
        assert!(layout.root().join("notes.txt").exists(), "foreign files are left alone");
    }

    #[test]
    fn a_foreign_directory_is_refused_and_left_unchanged() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        std::fs::write(dir.path().join("data"), "precious").unwrap();
        assert!(refusal(&layout).contains("\"data\""));
        std::fs::write(dir.path().join("VERSION"), "oci-model-csi cache 99\n").unwrap();
        assert!(refusal(&layout).contains("cache 99"));
        std::fs::write(dir.path().join("VERSION"), "something else").unwrap();
        assert!(refusal(&layout).contains("another program"));
        let mut names = files::names(dir.path()).unwrap();
        names.sort();
        assert_eq!(names, ["VERSION", "data"]);
    }

    #[test]
    fn an_older_layout_is_set_aside_with_everything_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        for _ in 0..2 {
            std::fs::write(layout.version(), "oci-model-csi cache 0\n").unwrap();
            std::fs::create_dir_all(dir.path().join("entries/a")).unwrap();
            std::fs::write(dir.path().join("entries/a/weights"), "precious").unwrap();
            drop(take(&layout, false).unwrap());
            assert!(!dir.path().join("entries").exists());
        }
        for aside in ["old-layout-0.0", "old-layout-0.1"] {
            let kept = std::fs::read(dir.path().join(aside).join("entries/a/weights")).unwrap();
            assert_eq!(kept, b"precious");
        }
        drop(take(&layout, false).unwrap());
    }

    #[test]
    fn a_start_that_was_killed_while_it_set_a_layout_aside_is_completed() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        let aside = dir.path().join("old-layout-0.0");
        let names = ["leases", "models", "VERSION"];
        // It may have been killed after any number of moves.
        for moved in 0..=names.len() {
            std::fs::create_dir(&aside).unwrap();
            for (n, name) in names.into_iter().enumerate() {
                let place = if n < moved { &aside } else { dir.path() };
                match name {
                    "VERSION" => std::fs::write(place.join(name), "oci-model-csi cache 0\n"),
                    _ => std::fs::create_dir(place.join(name)),
                }
                .unwrap();
            }
            drop(take(&layout, false).unwrap());
            let mut found = files::names(&aside).unwrap();
            found.sort();
            assert_eq!(found, ["VERSION", "leases", "models"], "{moved} were moved");
            assert!(!dir.path().join("old-layout-0.1").exists(), "{moved} were moved");
            for name in files::names(dir.path()).unwrap() {
                files::delete_tree(&dir.path().join(name)).unwrap();
            }
        }
        // A directory that only has such a name is another program's.
        std::fs::create_dir(&aside).unwrap();
        assert!(refusal(&layout).contains("\"old-layout-0.0\""));
    }

    #[test]
    fn a_directory_that_others_may_write_to_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().join("cache"));
        drop(take(&layout, false).unwrap());
        for mode in [0o775, 0o757, 0o1777] {
            files::set_mode(layout.root(), mode).unwrap();
            assert!(refusal(&layout).contains("can be written to by others"), "{mode:o}");
        }
        files::set_mode(layout.root(), 0o755).unwrap();
        drop(take(&layout, false).unwrap());
    }

    #[test]
    fn a_file_and_a_symbolic_link_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        std::os::unix::fs::symlink(dir.path(), dir.path().join("link")).unwrap();
        for name in ["file", "link"] {
            assert!(refusal(&Layout::new(dir.path().join(name))).contains("symbolic link"));
        }
    }

    #[test]
    fn a_second_process_is_refused_while_the_cache_is_in_use() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        let held = take(&layout, false).unwrap();
        assert!(refusal(&layout).contains("in use by another"));
        drop(held);
        take(&layout, false).unwrap();
    }

    #[test]
    fn a_required_mount_that_is_missing_stops_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let error = take(&Layout::new(dir.path()), true).unwrap_err();
        assert!(error.message().contains("requireMount"), "{error}");
        assert_eq!(files::names(dir.path()).unwrap(), [""; 0], "nothing was written");
    }
}
