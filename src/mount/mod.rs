//! Kernel mounts: bind read-only, unmount, and ask the kernel what is mounted.
//!
//! What is published to a pod is an ordinary bind mount. It belongs to the
//! kernel, not to this process: pods do not notice when the driver stops.
//!
//! All functions block, and none waits longer than a fraction of a second;
//! async callers run them on a blocking thread. None takes a lock: two calls
//! for one target at the same time are the caller's to prevent.

mod bind;
mod elsewhere;
pub mod mountinfo;
mod sys;
mod target;
mod uses;

use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::libc;

pub use bind::{BindOptions, bind_read_only, bind_read_only_by_remount};
pub use elsewhere::{on_one_mount, shown_elsewhere};
use mountinfo::{MountEntry, MountTable};
pub use target::{create_target, remove_target, unmount};
pub use uses::{Use, uses_of};

use crate::{Error, Result};

/// Which directory or file: device and inode, which no rename changes.
///
/// Two paths with one identity show the same thing, through whatever mounts.
/// An identity says nothing after its last name and mount are gone: inode
/// numbers are used again.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub struct DirId {
    /// `st_dev`.
    pub dev: u64,
    /// `st_ino`.
    pub ino: u64,
}

impl From<&Metadata> for DirId {
    fn from(metadata: &Metadata) -> Self {
        Self { dev: metadata.dev(), ino: metadata.ino() }
    }
}

/// A mount that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounted {
    /// Where it is mounted.
    pub target: PathBuf,
    /// The directory or file that it shows.
    pub root: DirId,
    /// The path of that within its file system, as the kernel knows it today.
    pub root_path: PathBuf,
    /// Whether it is read-only, nosuid and nodev. A driver that was killed
    /// between the two steps of the fallback leaves a mount that is not.
    pub hardened: bool,
}

impl Mounted {
    fn new(entry: &MountEntry, root: DirId) -> Self {
        Self {
            target: entry.mount_point.clone(),
            root,
            root_path: entry.root.clone(),
            hardened: HARDENED.iter().all(|option| entry.options.has(option)),
        }
    }
}

/// The options that every mount of ours has, as mountinfo spells them.
const HARDENED: [&str; 3] = ["ro", "nosuid", "nodev"];

/// Which directory or file is at `path`; a symbolic link is not followed.
pub fn identity(path: &Path) -> Result<DirId> {
    fs::symlink_metadata(path)
        .map(|metadata| DirId::from(&metadata))
        .map_err(|error| Error::io(format_args!("looking at {}", path.display()), &error))
}

/// What is mounted at exactly `target`, the topmost of a stack.
///
/// `None` when `target` is no mount point or does not exist. Symbolic links in
/// the parents are followed, at the end not.
///
/// # Errors
/// When the kernel's answers cannot be read: then nothing is known.
pub fn mounted(target: &Path) -> Result<Option<Mounted>> {
    let doing = |error| looking(target, &error);
    let Some(target) = resolve(target).map_err(doing)? else { return Ok(None) };
    let file = match open_path(&target, 0) {
        Ok(file) => file,
        Err(error) if is_absent(&error) => return Ok(None),
        Err(error) => return Err(doing(error)),
    };
    let id = mount_id(&file).map_err(doing)?;
    let table = MountTable::read()?;
    let Some(entry) = table.by_id(id).filter(|entry| entry.mount_point == target) else {
        return Ok(None);
    };
    let root = DirId::from(&file.metadata().map_err(doing)?);
    Ok(Some(Mounted::new(entry, root)))
}

/// The identity of what is mounted at `target`; see [`mounted`].
pub fn mounted_root(target: &Path) -> Result<Option<DirId>> {
    Ok(mounted(target)?.map(|mounted| mounted.root))
}

/// Where the file system that `dir` is on is mounted, without looking at any
/// of those places: one that a dead network file system covers would not answer.
pub fn mount_points_of_file_system(dir: &Path) -> Result<Vec<PathBuf>> {
    let (table, device) = home(dir)?;
    Ok(table.on_device(device).map(|entry| entry.mount_point.clone()).collect())
}

/// Whether `dir` is on a mount that shows the whole of its file system, as the
/// mount of a disk of its own does, and a bind of a directory does not.
pub fn is_on_whole_file_system(dir: &Path) -> Result<bool> {
    let doing = |error| looking(dir, &error);
    let id = mount_id(&open_path(dir, 0).map_err(doing)?).map_err(doing)?;
    Ok(MountTable::read()?.by_id(id).is_some_and(|entry| entry.root == Path::new("/")))
}

/// The mounts of now, and the device of the mount that `dir` is on.
fn home(dir: &Path) -> Result<(MountTable, mountinfo::Device)> {
    let doing = |error| looking(dir, &error);
    let id = mount_id(&open_path(dir, 0).map_err(doing)?).map_err(doing)?;
    let table = MountTable::read()?;
    let device = table.by_id(id).map(|entry| entry.device).ok_or_else(|| {
        Error::internal(format!("the mount that {} is on is not in mountinfo", dir.display()))
    })?;
    Ok((table, device))
}

/// Every visible mount of the file system that `dir` is on, with the identity of what it shows.
///
/// This finds the bind mounts of a cache however they came about: ours, those
/// of an earlier process, and what kubelet made of them (`subPath`). Mount
/// points of other file systems are not touched, since one dead NFS server
/// would stop the caller.
pub fn mounts_of_file_system(dir: &Path) -> Result<Vec<Mounted>> {
    let (table, device) = home(dir)?;
    let mut found = Vec::new();
    for entry in table.on_device(device) {
        match fs::symlink_metadata(&entry.mount_point) {
            Ok(metadata) => found.push(Mounted::new(entry, DirId::from(&metadata))),
            // Unmounted since the table was read, or out of sight below another mount.
            Err(error) if is_absent(&error) => {}
            Err(error) => return Err(looking(&entry.mount_point, &error)),
        }
    }
    Ok(found)
}

fn looking(path: &Path, error: &io::Error) -> Error {
    Error::io(format_args!("looking for a mount at {}", path.display()), error)
}

/// `path` with its parents' symbolic links followed, as mountinfo writes it;
/// `None` when the parents do not exist.
fn resolve(path: &Path) -> io::Result<Option<PathBuf>> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return fs::canonicalize(path).map(Some);
    };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    match fs::canonicalize(parent) {
        Ok(parent) => Ok(Some(parent.join(name))),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// A handle on the place itself, without opening what is there for reading.
///
/// While it is open, the mount it is on answers EBUSY to a plain unmount.
fn open_path(path: &Path, flags: libc::c_int) -> io::Result<File> {
    // O_PATH ignores the access mode, but std insists on one.
    fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC | flags)
        .open(path)
}

/// A directory that is not a symbolic link, for the `*at` family of calls.
fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    open_path(path, libc::O_DIRECTORY).map(OwnedFd::from)
}

/// The path that leads to what a descriptor is open on, whatever its names do meanwhile.
fn fd_path(fd: &impl AsRawFd) -> PathBuf {
    format!("/proc/self/fd/{}", fd.as_raw_fd()).into()
}

/// The id, as in mountinfo, of the mount that a descriptor was opened through.
fn mount_id(fd: &impl AsRawFd) -> io::Result<u64> {
    let path = format!("/proc/self/fdinfo/{}", fd.as_raw_fd());
    let text = fs::read_to_string(&path)?;
    text.lines()
        .find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok())
        .ok_or_else(|| io::Error::other(format!("{path} names no mount")))
}
