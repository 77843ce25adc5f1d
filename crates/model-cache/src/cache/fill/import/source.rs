//! The directory that an import reads. The program that filled it may still write
//! to it, and may be hostile: paths are opened one directory at a time, and the
//! opened file is the one that is verified and adopted.
//!
//! Only one kind of symbolic link below the directory is followed: links of a
//! snapshot in a Hugging Face Hub cache, `models--<ORG>--<NAME>/snapshots/<COMMIT>/`,
//! into `models--<ORG>--<NAME>/blobs/` (`huggingface_hub`, "Understand caching").
//! Such a file is opened in the directory `blobs` by its name there; the link's
//! path itself is not followed. A blob may itself be a link, to a file in the `blobs`
//! beside the repositories, which these share (huggingface_hub 2); that one is opened
//! in the same way.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat, readlinkat};
use nix::sys::stat::Mode;

use crate::error::{Error, ErrorKind, Result};
use crate::mount;
use crate::text::shown;

/// Most files that are counted in a directory after an import.
const MOST_COUNTED: usize = 1_000_000;

/// Names in a Hub cache.
const HUB_REPOSITORY: &str = "models--";
const HUB_SNAPSHOTS: &str = "snapshots";
const HUB_BLOBS: &str = "blobs";

/// Marks the blobs that repositories share.
const HUB_SHARED_MARKER: &str = ".huggingface-shared-blobs";

/// Most characters of a link's target in a message.
const TARGET_SHOWN: usize = 120;

/// The open source directory.
#[derive(Debug)]
pub(super) struct SourceDirectory {
    root: OwnedFd,
    path: PathBuf,
    hub: Option<Hub>,
}

/// The blobs of the Hub cache that contains the directory.
#[derive(Debug)]
struct Hub {
    blobs: OwnedFd,
    path: PathBuf,
    /// The blobs that all repositories of the cache share.
    shared: Option<(OwnedFd, PathBuf)>,
}

/// The kind of file at a relative path.
#[derive(Debug)]
pub(super) enum PathKind {
    /// A regular file.
    File(SourceFile),
    /// A symbolic link that is not followed, with the reason as text.
    Link(String),
    /// Nothing, or a kind that cannot be a file of a model.
    Nothing,
}

/// A regular file below the directory, open for reading.
#[derive(Debug)]
pub(super) struct SourceFile {
    pub(super) file: Arc<File>,
    pub(super) metadata: Metadata,
    /// Whether it was found through a link. Such a file is never moved.
    pub(super) linked: bool,
    parent: OwnedFd,
    name: OsString,
}

impl SourceDirectory {
    /// Opens a directory, which may be reached through symbolic links.
    pub(super) fn open(dir: &Path) -> Result<Self> {
        let failed = |e: io::Error| match e.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Error::new(
                ErrorKind::NotFound,
                format!(
                    "{} is not a directory that this process can see; a driver in a container \
                     sees only what is mounted into it",
                    dir.display()
                ),
            ),
            _ => Error::io(format!("opening {}", dir.display()), &e),
        };
        let path = fs::canonicalize(dir).map_err(failed)?;
        let root = open(&path, DIRECTORY, Mode::empty()).map_err(|e| failed(e.into()))?;
        let hub = Hub::around(&path);
        Ok(Self { root, path, hub })
    }

    /// The canonical path of the directory.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the regular file at this relative path, or returns what is there instead.
    pub(super) fn find(&self, relative: &str) -> Result<PathKind> {
        match self.walk(relative) {
            Ok(kind) => Ok(kind),
            // Nothing, a link, a file in place of a directory or the reverse, or a
            // name that this file system does not allow.
            Err(
                Errno::ENOENT
                | Errno::ENOTDIR
                | Errno::EISDIR
                | Errno::ELOOP
                | Errno::ENXIO
                | Errno::ENAMETOOLONG
                | Errno::EILSEQ,
            ) => Ok(PathKind::Nothing),
            Err(e) => {
                let path = self.path.join(relative);
                Err(Error::io(format!("opening {}", path.display()), &e.into()))
            }
        }
    }

    fn walk(&self, relative: &str) -> nix::Result<PathKind> {
        let (directories, name) = match relative.rsplit_once('/') {
            Some((directories, name)) => (Some(directories), name),
            None => (None, relative),
        };
        let mut parent = self.root.try_clone().map_err(|e| errno(&e))?;
        let mut at = PathBuf::new();
        for segment in directories.iter().flat_map(|directories| directories.split('/')) {
            let opened = openat(&parent, checked(segment)?, DIRECTORY, Mode::empty());
            match (opened, readlinkat(&parent, segment)) {
                (Err(_), Ok(target)) => return Ok(self.unfollowed(&at.join(segment), &target)),
                (opened, _) => parent = opened?,
            }
            at.push(segment);
        }
        match openat(&parent, checked(name)?, FILE, Mode::empty()) {
            Err(Errno::ELOOP) => {
                let target = readlinkat(&parent, name)?;
                self.follow(&at, name, &target)
            }
            opened => found(opened?, parent, name.into(), false),
        }
    }

    /// Opens the target of a link, if it is a blob of the same Hub cache.
    fn follow(&self, directory: &Path, name: &str, target: &OsStr) -> nix::Result<PathKind> {
        let (link, leads_to) = (directory.join(name), self.path.join(directory).join(target));
        let blob = self.hub.as_ref().and_then(|hub| Some((hub, hub.blob(&leads_to)?)));
        let Some((hub, blob)) = blob else { return Ok(self.unfollowed(&link, target)) };
        match hub.open(&blob) {
            // Nothing, or a link to somewhere else.
            Err(Errno::ENOENT | Errno::ELOOP) => Ok(self.unfollowed(&link, target)),
            opened => opened,
        }
    }

    fn unfollowed(&self, link: &Path, target: &OsStr) -> PathKind {
        let (shown_link, shown_target) =
            (shown(&link.to_string_lossy(), 80), shown(&target.to_string_lossy(), TARGET_SHOWN));
        let dangling = fs::metadata(self.path.join(link))
            .is_err_and(|e| matches!(e.kind(), io::ErrorKind::NotFound));
        let why = match (dangling, &self.hub) {
            (true, _) => {
                "which does not exist (in a Hub cache, `blobs` must be beside `snapshots`)"
            }
            (false, Some(_)) => "which is not followed, since it is not a blob of this Hub cache",
            (false, None) => "which is not followed",
        };
        PathKind::Link(format!("{shown_link} is a symbolic link to {shown_target}, {why}"))
    }

    /// Counts the files in the directory, and lists the first names, sorted.
    pub(super) fn left(&self, most_names: usize) -> (usize, Vec<String>) {
        let (mut count, mut names) = (0, Vec::new());
        let mut open = vec![self.path.clone()];
        while let Some(directory) = open.pop() {
            for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
                if count >= MOST_COUNTED {
                    break;
                }
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    open.push(entry.path());
                    continue;
                }
                count += 1;
                let path = entry.path();
                let shown = path.strip_prefix(&self.path).unwrap_or(&path);
                names.push(shown.display().to_string());
                if names.len() > 2 * most_names {
                    names.sort();
                    names.truncate(most_names);
                }
            }
        }
        names.sort();
        names.truncate(most_names);
        (count, names)
    }
}

const DIRECTORY: OFlag =
    OFlag::O_PATH.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// `O_NONBLOCK`, since opening a named pipe must not wait for its writer.
const FILE: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_NOFOLLOW).union(OFlag::O_NONBLOCK).union(OFlag::O_CLOEXEC);

/// Rejects segments that could leave the directory. Names come from a manifest that
/// was checked when it was resolved, but may have been read back from the disk.
fn checked(segment: &str) -> nix::Result<&str> {
    if matches!(segment, "" | "." | "..") { Err(Errno::ENOENT) } else { Ok(segment) }
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or_default())
}

impl Hub {
    /// Finds the Hub cache of the snapshot that contains this canonical path.
    fn around(directory: &Path) -> Option<Self> {
        let repository = directory.ancestors().find_map(|commit| {
            let snapshots = commit.parent()?;
            let repository = snapshots.parent()?;
            let is_one = snapshots.file_name()? == HUB_SNAPSHOTS
                && repository.file_name()?.to_str()?.starts_with(HUB_REPOSITORY);
            is_one.then_some(repository)
        })?;
        let path = repository.join(HUB_BLOBS);
        let blobs = open(&path, DIRECTORY, Mode::empty()).ok()?;
        let shared = repository.parent().and_then(|cache| {
            let path = cache.join(HUB_BLOBS);
            let marker = fs::symlink_metadata(path.join(HUB_SHARED_MARKER)).ok()?;
            let opened = open(&path, DIRECTORY, Mode::empty()).ok()?;
            marker.is_file().then_some((opened, path))
        });
        Some(Self { blobs, path, shared })
    }

    /// Returns the name of the blob at this path.
    fn blob(&self, path: &Path) -> Option<OsString> {
        let name = without_dots(path);
        let name = name.strip_prefix(&self.path).ok()?;
        (name.components().count() == 1).then(|| name.as_os_str().to_owned())
    }

    /// Opens a blob, which may be a link to a shared one.
    fn open(&self, blob: &OsStr) -> nix::Result<PathKind> {
        let opened = openat(&self.blobs, blob, FILE, Mode::empty());
        let (Err(Errno::ELOOP), Some((shared, path))) = (&opened, &self.shared) else {
            let blobs = self.blobs.try_clone().map_err(|e| errno(&e))?;
            return found(opened?, blobs, blob.into(), true);
        };
        let target = without_dots(&self.path.join(readlinkat(&self.blobs, blob)?));
        let target = target.strip_prefix(path).map_err(|_| Errno::ELOOP)?;
        // Below a directory that is named after the beginning of their own names.
        let (Some(above), Some(name)) = (target.parent(), target.file_name()) else {
            return Err(Errno::ELOOP);
        };
        if above.components().count() != 1 {
            return Err(Errno::ELOOP);
        }
        let parent = openat(shared, above, DIRECTORY, Mode::empty())?;
        found(openat(&parent, name, FILE, Mode::empty())?, parent, name.into(), true)
    }
}

/// Resolves `.` and `..` in a path, by its text alone.
fn without_dots(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(plain.pop()),
            Component::CurDir => {}
            part => plain.push(part),
        }
    }
    plain
}

/// Wraps an opened file, if it is a regular file.
fn found(file: OwnedFd, parent: OwnedFd, name: OsString, linked: bool) -> nix::Result<PathKind> {
    let file = Arc::new(File::from(file));
    let metadata = file.metadata().map_err(|e| errno(&e))?;
    let is_file = metadata.is_file();
    let found = SourceFile { file, metadata, linked, parent, name };
    Ok(if is_file { PathKind::File(found) } else { PathKind::Nothing })
}

impl SourceFile {
    /// Returns a path that opens the same file again, even if its name was reused.
    pub(super) fn as_opened(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.file.as_raw_fd()).into()
    }

    /// Returns its path in its opened directory, even if that was moved meanwhile.
    pub(super) fn as_named(&self) -> PathBuf {
        Path::new(&format!("/proc/self/fd/{}", self.parent.as_raw_fd())).join(&self.name)
    }

    /// Whether another name leads to the same bytes.
    pub(super) fn has_other_names(&self) -> io::Result<bool> {
        Ok(self.file.metadata()?.nlink() != 1)
    }

    /// Whether this path leads to this file.
    pub(super) fn is_at(&self, path: &Path) -> bool {
        let id = |metadata: &Metadata| (metadata.dev(), metadata.ino());
        fs::symlink_metadata(path).is_ok_and(|there| id(&there) == id(&self.metadata))
    }
}

/// Refuses a directory that files cannot be moved from: it must be on the mount of
/// the cache, and mounted nowhere else.
pub(super) fn check_movable(source: &SourceDirectory, cache: &Path) -> Result<()> {
    let shown = source.path.display();
    let refused = |why: String| {
        Err(Error::new(
            ErrorKind::Precondition,
            format!("{shown} cannot be imported with --move: {why}; without --move it is copied"),
        ))
    };
    let opened = |path: &Path| {
        File::open(path).map_err(|e| Error::io(format!("opening {}", path.display()), &e))
    };
    let (from, to) = (opened(&source.path)?, opened(cache)?);
    // The device in `stat` differs between subvolumes of one btrfs.
    let device = |file: &File| file.metadata().map(|metadata| metadata.dev()).ok();
    let (is_one_mount, is_one_device) =
        (mount::on_one_mount(&from, &to)?, device(&from) == device(&to));
    if !is_one_mount || !is_one_device {
        let cache_shown = cache.display();
        return refused(match (is_one_device, mount::same_file_system(&source.path, cache)) {
            (true, _) => format!(
                "it and the cache {cache_shown} are on one file system, but reached through two \
                 mounts, between which nothing can be renamed; mount a directory that contains \
                 both"
            ),
            (false, Some(true)) => format!(
                "it and the cache {cache_shown} are in two subvolumes of one file system, between \
                 which nothing can be renamed"
            ),
            (false, _) => format!("the cache {cache_shown} is on another file system"),
        });
    }
    match mount::shown_elsewhere(&source.path)? {
        Some(other) => refused(format!(
            "it is also mounted at {}, where it may be in use; unmount that first",
            other.display()
        )),
        None => Ok(()),
    }
}
