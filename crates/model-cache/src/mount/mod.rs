//! Kernel mounts: bind read-only, unmount, and list what is mounted.
//!
//! A published volume is an ordinary bind mount. It belongs to the
//! kernel, not to this process: pods do not notice when the driver stops.
//!
//! All functions block, and none waits longer than a fraction of a second;
//! async callers run them on a blocking thread. None takes a lock: the caller
//! must prevent two concurrent calls for one target.

mod bind;
mod calls;
mod disk;
mod elsewhere;
pub mod mountinfo;
mod open_target;
mod sys;
mod uses;

use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::libc;

pub use bind::BindOptions;
pub use calls::{MountCalls, probe_calls};
pub use disk::named as on_disk;
pub use elsewhere::{on_one_mount, shown_elsewhere};
use mountinfo::{MountEntry, MountTable};
pub use open_target::{OpenTarget, TargetState};
pub use uses::{Use, uses_of};

use crate::{Error, Result};

/// The identity of a directory or file: device and inode, which no rename changes.
///
/// Two paths with one identity show the same thing, through whatever mounts.
/// An identity is meaningless once its last name and mount are gone: inode
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
    /// The mount's id in mountinfo. The kernel uses it again once the mount is gone.
    pub id: u64,
    /// The id of the mount that this one is mounted on.
    pub parent: u64,
    /// Where it is mounted.
    pub target: PathBuf,
    /// The directory or file that it shows.
    pub root: DirId,
    /// The path of that within its file system, as the kernel knows it today.
    pub root_path: PathBuf,
    /// Whether it is read-only, nosuid and nodev. A driver that was killed
    /// between the two steps of the fallback leaves a mount without them.
    pub hardened: bool,
}

impl Mounted {
    fn new(entry: &MountEntry, root: DirId) -> Self {
        Self {
            id: entry.id,
            parent: entry.parent,
            target: entry.mount_point.clone(),
            root,
            root_path: entry.root.clone(),
            hardened: HARDENED.iter().all(|option| entry.options.has(option)),
        }
    }
}

/// The options that every mount of ours has, as mountinfo spells them.
const HARDENED: [&str; 3] = ["ro", "nosuid", "nodev"];

/// The identity of the directory or file at `path`; a symbolic link is not followed.
pub fn identity(path: &Path) -> Result<DirId> {
    fs::symlink_metadata(path)
        .map(|metadata| DirId::from(&metadata))
        .map_err(|error| Error::io(format_args!("lookup_failed at {}", path.display()), &error))
}

/// The mount with this id, wherever it is.
pub fn mounted_with_id(id: u64) -> Result<Option<Mounted>> {
    let table = MountTable::read()?;
    let Some(entry) = table.by_id(id) else { return Ok(None) };
    match fs::symlink_metadata(&entry.mount_point) {
        Ok(metadata) => Ok(Some(Mounted::new(entry, DirId::from(&metadata)))),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(lookup_failed(&entry.mount_point, &error)),
    }
}

/// The mounts below one at the same target, topmost first. What they show
/// cannot be seen, so [`Mounted::root`] is that of the mount on top.
pub fn stack_below(top: &Mounted) -> Result<Vec<Mounted>> {
    let table = MountTable::read()?;
    let mut below = Vec::new();
    let mut parent = top.parent;
    while let Some(entry) = table.by_id(parent).filter(|one| one.mount_point == top.target) {
        below.push(Mounted::new(entry, top.root));
        parent = entry.parent;
    }
    Ok(below)
}

/// Where the file system of `dir` is mounted, without accessing any of those
/// mount points: one that a dead network file system covers would not answer.
pub fn mount_points_of_file_system(dir: &Path) -> Result<Vec<PathBuf>> {
    let (table, device) = home(dir)?;
    Ok(table.on_device(device).map(|entry| entry.mount_point.clone()).collect())
}

/// Whether `dir` is on a mount that shows the whole of its file system or of a
/// btrfs subvolume, as the mount of a disk of its own does, and a bind of a
/// directory does not.
pub fn is_on_whole_file_system(dir: &Path) -> Result<bool> {
    Ok(mount_of(dir)?.1.is_some_and(|entry| is_whole(&entry)))
}

/// Whether `dir` is the mount point of such a mount. In a container every
/// hostPath is a mount point, so being one proves nothing.
pub fn is_own_file_system(dir: &Path) -> Result<bool> {
    let doing = |error| lookup_failed(dir, &error);
    let here = resolve(dir).map_err(doing)?;
    Ok(mount_of(dir)?
        .1
        .is_some_and(|entry| Some(&entry.mount_point) == here.as_ref() && is_whole(&entry)))
}

/// Whether two directories share the space of one file system. Subvolumes
/// of one btrfs do, although `stat` reports different devices for them, so
/// the kernel's device of the mount is compared. `None` when a lookup fails.
pub fn same_file_system(one: &Path, other: &Path) -> Option<bool> {
    let device = |dir: &Path| mount_of(dir).ok()?.1.map(|entry| entry.device);
    Some(device(one)? == device(other)?)
}

/// The root of every btrfs subvolume has this inode number
/// (BTRFS_FIRST_FREE_OBJECTID in Linux' btrfs_tree.h).
const SUBVOLUME_ROOT: u64 = 256;

fn is_whole(entry: &MountEntry) -> bool {
    let has_root_of_subvolume =
        || fs::metadata(&entry.mount_point).is_ok_and(|root| root.ino() == SUBVOLUME_ROOT);
    entry.root == Path::new("/") || entry.fs_type == "btrfs" && has_root_of_subvolume()
}

/// The current mounts, and the one that `dir` is on.
fn mount_of(dir: &Path) -> Result<(MountTable, Option<MountEntry>)> {
    let doing = |error| lookup_failed(dir, &error);
    // A link in the path is followed: the question is where the files are.
    let dir = fs::canonicalize(dir).map_err(doing)?;
    let id = mount_id(&open_path(&dir, 0).map_err(doing)?).map_err(doing)?;
    let table = MountTable::read()?;
    let entry = table.by_id(id).cloned();
    Ok((table, entry))
}

/// The current mounts, and the device of the mount that `dir` is on.
fn home(dir: &Path) -> Result<(MountTable, mountinfo::Device)> {
    let (table, entry) = mount_of(dir)?;
    let device = entry.map(|entry| entry.device).ok_or_else(|| {
        Error::internal(format!("the mount that {} is on is not in mountinfo", dir.display()))
    })?;
    Ok((table, device))
}

fn lookup_failed(path: &Path, error: &io::Error) -> Error {
    on_disk(Error::io(format_args!("lookup_failed for a mount at {}", path.display()), error), path)
}

/// A path as mountinfo spells it: kubelet's own directory may be a link. Returned
/// unchanged where it cannot be resolved.
pub fn spelled(path: &Path) -> PathBuf {
    resolve(path).ok().flatten().unwrap_or_else(|| path.to_owned())
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

/// Opens a handle on the name itself, without opening what is there for reading.
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
