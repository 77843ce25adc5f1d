//! The directory that is imported from. Whoever filled it may still be at it,
//! and may be hostile: files are opened one directory after the other, no
//! symbolic link below the directory is followed, and what was opened is what
//! is verified and taken.

use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;

use crate::error::{Error, ErrorKind, Result};
use crate::mount;

/// Entries that are counted of what is left in a directory.
const MOST_COUNTED: usize = 1_000_000;

/// An open directory.
#[derive(Debug)]
pub(super) struct Source {
    root: OwnedFd,
    path: PathBuf,
}

/// A regular file below it, open for reading.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) file: Arc<File>,
    pub(super) metadata: Metadata,
    parent: OwnedFd,
    name: OsString,
}

impl Source {
    /// Opens a directory, which may be reached through symbolic links.
    pub(super) fn open(dir: &Path) -> Result<Self> {
        let failed = |e: io::Error| match e.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Error::new(
                ErrorKind::NotFound,
                format!(
                    "{} is not a directory that this process can see; a driver in a container \
                     sees what is mounted into it",
                    dir.display()
                ),
            ),
            _ => Error::io(format!("opening {}", dir.display()), &e),
        };
        let path = fs::canonicalize(dir).map_err(failed)?;
        let root = open(&path, DIRECTORY, Mode::empty()).map_err(|e| failed(e.into()))?;
        Ok(Self { root, path })
    }

    /// Its path, free of symbolic links.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The regular file of this relative path; `None` when there is none.
    pub(super) fn find(&self, relative: &str) -> Result<Option<Found>> {
        match self.walk(relative) {
            Ok(found) => Ok(found),
            // A link, a directory in place of a file or the reverse, nothing,
            // or a name that this file system cannot have.
            Err(
                Errno::ENOENT
                | Errno::ENOTDIR
                | Errno::EISDIR
                | Errno::ELOOP
                | Errno::ENXIO
                | Errno::ENAMETOOLONG
                | Errno::EILSEQ,
            ) => Ok(None),
            Err(e) => {
                let path = self.path.join(relative);
                Err(Error::io(format!("opening {}", path.display()), &e.into()))
            }
        }
    }

    fn walk(&self, relative: &str) -> nix::Result<Option<Found>> {
        let (directories, name) = match relative.rsplit_once('/') {
            Some((directories, name)) => (Some(directories), name),
            None => (None, relative),
        };
        let mut parent = self.root.try_clone().map_err(|e| errno(&e))?;
        for segment in directories.iter().flat_map(|directories| directories.split('/')) {
            parent = openat(&parent, checked(segment)?, DIRECTORY, Mode::empty())?;
        }
        let file = Arc::new(File::from(openat(&parent, checked(name)?, FILE, Mode::empty())?));
        let metadata = file.metadata().map_err(|e| errno(&e))?;
        let found = Found { file, parent, name: name.into(), metadata };
        Ok(found.metadata.is_file().then_some(found))
    }

    /// How many files are in it, and the first names, sorted.
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

/// Opening a named pipe must not wait for its writer.
const FILE: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_NOFOLLOW).union(OFlag::O_NONBLOCK).union(OFlag::O_CLOEXEC);

/// Names come from a manifest, which was checked when it was resolved; one
/// from a cache's disk is checked again.
fn checked(segment: &str) -> nix::Result<&str> {
    if matches!(segment, "" | "." | "..") { Err(Errno::ENOENT) } else { Ok(segment) }
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or_default())
}

impl Found {
    /// Opens the same file again, whatever stands under its name.
    pub(super) fn as_opened(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.file.as_raw_fd()).into()
    }

    /// Its name in its directory, wherever that was moved meanwhile.
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

/// Refuses a directory that files cannot be moved from: they have to be
/// reached as the cache is, and nobody may reach them in another way.
pub(super) fn check_movable(source: &Source, cache: &Path) -> Result<()> {
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
    if !mount::on_one_mount(&from, &to)? {
        let device = |file: &File| file.metadata().map(|metadata| metadata.dev()).ok();
        return refused(match device(&from) == device(&to) {
            true => format!(
                "it and the cache {} are on one file system, but reached through two mounts, \
                 between which nothing can be renamed; mount a directory that has both",
                cache.display()
            ),
            false => format!("the cache {} is on another file system", cache.display()),
        });
    }
    match mount::shown_elsewhere(&source.path)? {
        Some(other) => refused(format!(
            "it is mounted at {} too, where somebody may use it; unmount that first",
            other.display()
        )),
        None => Ok(()),
    }
}
