#![expect(
    unsafe_code,
    reason = "open_tree(2), mount_setattr(2) and move_mount(2) have no safe wrapper in nix or std"
)]
//! The three mount system calls that no crate wraps.
//!
//! JUSTIFICATION: a read-only bind mount that was never writable needs a mount
//! that is changed before it is attached. `mount(2)` cannot do this, and nix
//! has no wrappers for the calls that can. This module holds only the calls.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::libc;

/// Clones the mount that shows the directory behind `dir`, rooted there and
/// attached nowhere: `open_tree(dir, "", OPEN_TREE_CLONE)`. Mounts below it are not cloned.
///
/// When the descriptor is closed before [`move_mount`], the clone is gone.
///
/// # Errors
/// ENOSYS before Linux 5.2; EPERM without `CAP_SYS_ADMIN` or under a seccomp filter.
pub(super) fn open_tree(dir: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags =
        libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | libc::AT_EMPTY_PATH.cast_unsigned();
    // SAFETY: the path is a NUL-terminated string that lives for the program,
    // `dir` is open for the duration of the call, and the kernel only reads.
    let result =
        unsafe { libc::syscall(libc::SYS_open_tree, dir.as_raw_fd(), c"".as_ptr(), flags) };
    let fd = RawFd::try_from(check(result)?).map_err(io::Error::other)?;
    // SAFETY: the kernel has just created this descriptor for this call, so nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sets the attributes `set` and clears `clear` (`MOUNT_ATTR_*`) of the mount behind `mount`.
///
/// # Errors
/// ENOSYS before Linux 5.12; EPERM when a flag is locked by the parent user namespace.
pub(super) fn mount_setattr(mount: BorrowedFd<'_>, set: u64, clear: u64) -> io::Result<()> {
    let attributes =
        libc::mount_attr { attr_set: set, attr_clr: clear, propagation: 0, userns_fd: 0 };
    // SAFETY: the path is a NUL-terminated string that lives for the program,
    // the structure outlives the call, and the size is that of the structure.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    check(result).map(drop)
}

/// Attaches the detached mount behind `mount` to the directory behind `target`.
///
/// # Errors
/// ENOSYS before Linux 5.2; ENOENT when the directory was removed meanwhile.
pub(super) fn move_mount(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    let flags = libc::MOVE_MOUNT_F_EMPTY_PATH | libc::MOVE_MOUNT_T_EMPTY_PATH;
    // SAFETY: both paths are NUL-terminated strings that live for the program,
    // and both descriptors are open for the duration of the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            target.as_raw_fd(),
            c"".as_ptr(),
            flags,
        )
    };
    check(result).map(drop)
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
