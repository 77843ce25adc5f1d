//! Which of the kernel's newer calls this process may use.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

use super::{open_directory, sys};

/// The kernel's answers to the calls that mounts are made with. Each has a fallback where it
/// is missing (ENOSYS) or a sandbox refuses it (EPERM).
#[derive(Debug)]
pub struct MountCalls {
    /// open_tree(2), Linux 5.2. Without it a volume is bound, then made read-only.
    pub open_tree: io::Result<()>,
    /// mount_setattr(2), Linux 5.12. Without it the same.
    pub mount_setattr: io::Result<()>,
    /// openat2(2), Linux 5.6. Without it each part of a path is opened by itself.
    pub openat2: io::Result<()>,
}

/// Tries the calls on a directory, without any effect: a clone of its mount that is attached
/// nowhere, and a change of no attribute.
///
/// # Errors
/// When the directory cannot be opened.
pub fn probe_calls(dir: &Path) -> io::Result<MountCalls> {
    let dir: OwnedFd = open_directory(dir)?;
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    Ok(MountCalls {
        open_tree: sys::open_tree(dir.as_fd()).map(drop),
        mount_setattr: sys::mount_setattr(dir.as_fd(), 0, 0),
        openat2: openat2(&dir, ".", how).map(drop).map_err(io::Error::from),
    })
}
