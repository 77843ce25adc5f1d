//! The target of a volume: a name in a directory that is held open.
//!
//! Names below kubelet's directory of pods can be exchanged during a call
//! (renameat2(2)). A path that was checked may lead to another pod's
//! volume when it is used. So the directory of the target is opened
//! once, through no symbolic link, and everything is done in it by descriptor.
//! Symbolic links in kubelet's own directory and above belong to the administrator
//! and are followed.
//!
//! One race remains for a process that can rename there: a mount point itself can be
//! exchanged from another mount namespace between the last comparison and
//! umount2(2), which takes no descriptor of the mount to unmount.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::mount::{MntFlags, umount2};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use tracing::debug;

use super::mountinfo::MountTable;
use super::{DirId, Mounted, disk, fd_path, mount_id};
use crate::{Error, ErrorKind, Result};

/// How often a busy mount is tried, and the pause between: a process that only
/// passes by (statfs, a directory walk) is gone after this.
const BUSY_TRIES: u32 = 5;
const BUSY_PAUSE: Duration = Duration::from_millis(20);

/// A target path whose directory is open.
#[derive(Debug)]
pub struct OpenTarget {
    pub(super) parent: OwnedFd,
    id: DirId,
    pub(super) name: OsString,
    path: PathBuf,
}

/// What is at a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetState {
    /// The name does not exist.
    Nothing,
    /// A directory that is not a mount point.
    Directory,
    /// A mount, the topmost of a stack.
    Mount(Mounted),
    /// Something else, in words: "a regular file".
    Other(&'static str),
}

impl OpenTarget {
    /// Opens the directory of `target`; `None` when it does not exist.
    ///
    /// # Errors
    /// `Invalid` when the target is not below `pods/<uid>/` of `kubelet`, or a
    /// part of it below `kubelet` is a symbolic link or not a directory.
    pub fn open(kubelet: &Path, target: &Path) -> Result<Option<Self>> {
        let below = target.strip_prefix(kubelet.join("pods")).ok().and_then(|below| {
            // At least the pod's directory and a name in it.
            let parent = below.parent().filter(|parent| !parent.as_os_str().is_empty())?;
            Some((Path::new("pods").join(parent), below.file_name()?.to_owned()))
        });
        let Some((parent, name)) = below else {
            return Err(Error::invalid(format!(
                "{} is not a place of a pod below {}",
                target.display(),
                kubelet.join("pods").display()
            )));
        };
        let directory = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let top = match nix::fcntl::open(kubelet, directory, Mode::empty()) {
            Ok(top) => top,
            Err(Errno::ENOENT) => return Ok(None),
            Err(errno) => return Err(failed("opening", kubelet, errno)),
        };
        let resolve = ResolveFlag::RESOLVE_BENEATH
            | ResolveFlag::RESOLVE_NO_SYMLINKS
            | ResolveFlag::RESOLVE_NO_MAGICLINKS;
        let how = OpenHow::new().flags(directory).resolve(resolve);
        let opened = match openat2(&top, &parent, how) {
            Ok(opened) => opened,
            Err(Errno::ENOENT) => return Ok(None),
            // Before Linux 5.6, or under a sandbox; or a link, which the error should name.
            Err(Errno::ENOSYS | Errno::EPERM | Errno::ELOOP | Errno::ENOTDIR) => {
                match walk(top, kubelet, &parent, target)? {
                    Some(opened) => opened,
                    None => return Ok(None),
                }
            }
            Err(errno) => return Err(failed("opening the directory of", target, errno)),
        };
        let parent = File::from(opened);
        let metadata = parent
            .metadata()
            .map_err(|error| failing("looking at the directory of", target, &error))?;
        let id = DirId::from(&metadata);
        Ok(Some(Self { parent: parent.into(), id, name, path: target.to_owned() }))
    }

    /// The target path, as it was given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The identity of the target's directory, whatever its path is by now.
    pub fn directory(&self) -> DirId {
        self.id
    }

    /// Inspects the target. No descriptor of it stays open: one would keep a mount busy.
    ///
    /// # Errors
    /// When the kernel's answers cannot be read: then nothing is known.
    pub fn inspect(&self) -> Result<TargetState> {
        let doing = |error: io::Error| failing("looking for a mount at", &self.path, &error);
        let file = match self.open_name(OFlag::empty()) {
            Ok(file) => file,
            Err(Errno::ENOENT) => return Ok(TargetState::Nothing),
            Err(errno) => return Err(doing(errno.into())),
        };
        let id = mount_id(&file).map_err(doing)?;
        let metadata = file.metadata().map_err(doing)?;
        if id == mount_id(&self.parent).map_err(doing)? {
            return Ok(match metadata.file_type() {
                kind if kind.is_dir() => TargetState::Directory,
                kind if kind.is_symlink() => TargetState::Other("a symbolic link"),
                kind if kind.is_file() => TargetState::Other("a regular file"),
                _ => TargetState::Other("a special file"),
            });
        }
        let table = MountTable::read()?;
        let entry = table.by_id(id).ok_or_else(|| {
            let text = format!(
                "the mount at {} is not in mountinfo; it is going just now, try again",
                self.path.display()
            );
            Error::new(ErrorKind::Unavailable, text)
        })?;
        Ok(TargetState::Mount(Mounted::new(entry, DirId::from(&metadata))))
    }

    /// The mount at the target, if there is one.
    ///
    /// # Errors
    /// As [`OpenTarget::inspect`].
    pub fn mounted(&self) -> Result<Option<Mounted>> {
        Ok(match self.inspect()? {
            TargetState::Mount(mounted) => Some(mounted),
            _ => None,
        })
    }

    /// Creates the directory for the mount, mode 0750.
    ///
    /// An existing directory is used, if it is empty.
    ///
    /// # Errors
    /// `Invalid` when the parent directory is gone, or when anything but a
    /// directory has the name, a symbolic link included;
    /// `Conflict` when the directory is not empty or a mount point.
    pub fn make(&self) -> Result<()> {
        let shown = self.path.display();
        match mkdirat(&self.parent, self.name.as_os_str(), Mode::from_bits_truncate(0o750)) {
            Ok(()) => return Ok(()),
            Err(Errno::EEXIST) => {}
            Err(Errno::ENOENT) => {
                return Err(Error::invalid(format!(
                    "target {shown} cannot be created: its parent directory does not exist; \
                     kubelet creates it before the call"
                )));
            }
            Err(errno) => return Err(failed("making the target directory", &self.path, errno)),
        }
        match self.inspect()? {
            TargetState::Other(kind) => Err(Error::invalid(format!(
                "target {shown} is {kind}; a volume is mounted only on a directory: remove it"
            ))),
            TargetState::Mount(_) => Err(self.taken("is a mount point already")),
            TargetState::Directory if self.is_empty()? => Ok(()),
            TargetState::Directory => Err(Error::new(
                ErrorKind::Conflict,
                format!(
                    "target {shown} is not empty, so something else is there; it was left alone"
                ),
            )),
            TargetState::Nothing => Err(self.changed()),
        }
    }

    /// Removes the empty directory; it is fine if it is gone already.
    ///
    /// Never recursive: after a failed unmount the files here would be the shared
    /// files of the cache.
    ///
    /// # Errors
    /// `Conflict` when the directory is not empty; `Precondition` when it is not a
    /// directory; `Unavailable` when something is mounted on it by now. Nothing
    /// is deleted then.
    pub fn remove(&self) -> Result<()> {
        let shown = self.path.display();
        match unlinkat(&self.parent, self.name.as_os_str(), UnlinkatFlags::RemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(Errno::ENOTEMPTY | Errno::EEXIST) => Err(Error::new(
                ErrorKind::Conflict,
                format!(
                    "target {shown} is not empty after unmounting; nothing in it was deleted; find \
                     out what wrote there and remove it by hand"
                ),
            )),
            Err(Errno::ENOTDIR) => {
                let kind = match self.inspect()? {
                    TargetState::Other(kind) => kind,
                    _ => "not a directory",
                };
                Err(Error::new(
                    ErrorKind::Precondition,
                    format!(
                        "target {shown} is {kind}, which this driver never makes; it was left as it \
                         is: remove it by hand"
                    ),
                ))
            }
            Err(Errno::EBUSY) => Err(self.changed()),
            Err(errno) => Err(failed("removing the target directory", &self.path, errno)),
        }
    }

    /// Unmounts the mount that [`OpenTarget::mounted`] found, if it is still there.
    ///
    /// The mount's id and its root are compared once more, and a mount is never
    /// detached while it is in use.
    ///
    /// # Errors
    /// `Unavailable` while it is in use, or when another mount is there by
    /// now; `Precondition` when something is mounted on top of it or in it;
    /// `Internal` when the kernel refuses. It then stays mounted.
    pub fn unmount(&self, found: &Mounted) -> Result<()> {
        let path = fd_path(&self.parent).join(&self.name);
        for attempt in 0..BUSY_TRIES {
            if attempt > 0 {
                thread::sleep(BUSY_PAUSE);
            }
            match self.inspect()? {
                TargetState::Mount(now) if (now.id, now.root) == (found.id, found.root) => {}
                TargetState::Nothing | TargetState::Directory => return Ok(()),
                _ => return Err(self.changed()),
            }
            match umount2(&path, MntFlags::UMOUNT_NOFOLLOW) {
                Ok(()) => return Ok(()),
                // No longer a mount point, or one that may not be unmounted.
                Err(errno @ (Errno::EBUSY | Errno::EINVAL | Errno::ENOENT))
                    if attempt + 1 < BUSY_TRIES =>
                {
                    debug!(target = %self.path.display(), %errno, "unmounting it again");
                }
                Err(Errno::EBUSY) => return Err(self.busy(found)),
                Err(errno) => {
                    let hint = match errno {
                        Errno::EPERM => "; the driver needs CAP_SYS_ADMIN",
                        Errno::EINVAL => "; the mount belongs to another mount or user namespace",
                        _ => "",
                    };
                    let failed = failed("unmounting", &self.path, errno);
                    return Err(Error::new(failed.kind(), format!("{failed}{hint}")));
                }
            }
        }
        Err(self.busy(found))
    }

    fn busy(&self, found: &Mounted) -> Error {
        let shown = self.path.display();
        let inside = MountTable::read().ok().and_then(|table| {
            let entries = table.entries().iter();
            entries.filter(|entry| entry.parent == found.id).map(|e| e.mount_point.clone()).next()
        });
        match inside {
            Some(inside) => Error::new(
                ErrorKind::Precondition,
                format!(
                    "unmounting {shown}: something else is mounted inside it, at {}; it was left as \
                     it is: unmount that first",
                    inside.display()
                ),
            ),
            None => Error::new(
                ErrorKind::Unavailable,
                format!(
                    "unmounting {shown}: a process of the node uses it (`fuser -vm {shown}` names \
                     it); it will be tried again and is never detached while in use"
                ),
            ),
        }
    }

    /// The error for a target that changed since it was inspected.
    fn changed(&self) -> Error {
        Error::new(
            ErrorKind::Unavailable,
            format!(
                "{} is exchanged or mounted over by something else during the call; it was \
                 left as it is and will be tried again",
                self.path.display()
            ),
        )
    }

    pub(super) fn taken(&self, by: &str) -> Error {
        Error::new(
            ErrorKind::Conflict,
            format!("target {} {by}; nothing was mounted over it", self.path.display()),
        )
    }

    pub(super) fn open_name(&self, flags: OFlag) -> nix::Result<File> {
        open_in(&self.parent, &self.name, flags).map(File::from)
    }

    pub(super) fn is_empty(&self) -> Result<bool> {
        let doing = |error: io::Error| failing("listing", &self.path, &error);
        let directory = self.open_name(OFlag::O_DIRECTORY).map_err(|errno| doing(errno.into()))?;
        Ok(fs::read_dir(fd_path(&directory)).map_err(doing)?.next().is_none())
    }
}

/// Opens the directory `relative` below `top`, one name after the other: where
/// openat2(2) is missing, and to name what it refuses.
fn walk(top: OwnedFd, kubelet: &Path, relative: &Path, target: &Path) -> Result<Option<OwnedFd>> {
    let (mut directory, mut path) = (top, kubelet.to_owned());
    for name in relative {
        path.push(name);
        let opened = match open_in(&directory, name, OFlag::empty()) {
            Ok(opened) => File::from(opened),
            Err(Errno::ENOENT) => return Ok(None),
            Err(errno) => return Err(failed("opening", &path, errno)),
        };
        let kind = opened.metadata().map_err(|error| failing("looking at", &path, &error))?;
        if kind.is_symlink() {
            return Err(Error::invalid(format!(
                "{} is a symbolic link; no part of a target below kubelet's directory of pods may \
                 be one (target_path {})",
                path.display(),
                target.display()
            )));
        }
        if !kind.is_dir() {
            return Err(Error::invalid(format!(
                "a parent of {} is not a directory (target_path {})",
                path.display(),
                target.display()
            )));
        }
        directory = opened.into();
    }
    Ok(Some(directory))
}

fn open_in(directory: &OwnedFd, name: &OsStr, flags: OFlag) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | flags;
    openat(directory, name, flags, Mode::empty())
}

fn failed(doing: &str, path: &Path, errno: Errno) -> Error {
    failing(doing, path, &errno.into())
}

fn failing(doing: &str, path: &Path, error: &io::Error) -> Error {
    disk::named(Error::io(format_args!("{doing} {}", path.display()), error), path)
}

#[cfg(test)]
#[path = "open_target_tests.rs"]
mod tests;
