#![expect(
    unsafe_code,
    reason = "file leases, FICLONE and extended attributes have no safe wrapper in nix or std"
)]
//! The system calls of the cache that no crate wraps.
//!
//! JUSTIFICATION: a file whose inode is moved into the cache must not be open for
//! writing anywhere, which only the kernel knows (`F_SETLEASE`); a copy that takes no
//! space needs `FICLONE`; an SELinux label is the extended attribute
//! `security.selinux`. This module contains only these calls.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::libc::{self, c_int};

/// Sets the signal of a broken lease (`linux/fcntl.h`; not in libc).
const F_SETSIG: c_int = 10;

/// A read lease: while it holds, no process has the file open for writing. A process
/// that opens it for writing blocks until the lease ends, but only for some seconds
/// (`/proc/sys/fs/lease-break-time`); so check it again when it matters.
#[derive(Debug)]
pub(in crate::cache) struct ReadLease<F: AsFd>(F);

impl<F: AsFd> ReadLease<F> {
    /// Takes the lease on a file that is open read-only; `None` when a process has it
    /// open for writing.
    ///
    /// # Errors
    /// EACCES when the file is another user's and CAP_LEASE is missing; EINVAL when the
    /// file system does not support leases.
    pub(in crate::cache) fn take(file: F) -> io::Result<Option<Self>> {
        // By default a broken lease raises SIGIO, which would end the process. SIGURG
        // has no handler, and is ignored by default.
        fcntl(&file, F_SETSIG, libc::SIGURG)?;
        match fcntl(&file, libc::F_SETLEASE, libc::F_RDLCK) {
            Ok(_) => Ok(Some(Self(file))),
            Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Whether the lease still holds: no process has tried to write since.
    pub(in crate::cache) fn holds(&self) -> io::Result<bool> {
        Ok(fcntl(&self.0, libc::F_GETLEASE, 0)? == libc::F_RDLCK)
    }
}

impl<F: AsFd> Drop for ReadLease<F> {
    fn drop(&mut self) {
        // It ends with the descriptor at the latest.
        let _ = fcntl(&self.0, libc::F_SETLEASE, libc::F_UNLCK);
    }
}

/// Makes `to` share the blocks of `from`, until one of them is written.
///
/// # Errors
/// EOPNOTSUPP, EINVAL or EXDEV when the files cannot share blocks.
pub(in crate::cache) fn reflink(from: impl AsFd, to: impl AsFd) -> io::Result<()> {
    let (from, to) = (from.as_fd().as_raw_fd(), to.as_fd().as_raw_fd());
    // SAFETY: the caller's values keep both descriptors open for the duration of
    // the call, and the argument of this request is a descriptor, not a pointer.
    let result = unsafe { libc::ioctl(to, libc::FICLONE, from) };
    check(result).map(drop)
}

/// The attribute that holds the label (`linux/xattr.h`, XATTR_NAME_SELINUX).
const SELINUX: &CStr = c"security.selinux";

/// Longer than any label.
const LABEL: usize = 4096;

/// Returns the SELinux label of a file or directory; `None` if it has none. A symbolic
/// link is not followed.
pub(in crate::cache) fn label(path: &Path) -> io::Result<Option<String>> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut value = [0_u8; LABEL];
    // SAFETY: both strings end with NUL, and the kernel writes at most as many
    // bytes as the buffer has.
    let read = unsafe {
        libc::lgetxattr(path.as_ptr(), SELINUX.as_ptr(), value.as_mut_ptr().cast(), value.len())
    };
    match usize::try_from(read) {
        Ok(read) => {
            let text = String::from_utf8_lossy(&value[..read]);
            Ok(Some(text.trim_end_matches('\0').to_owned()))
        }
        Err(_) => match io::Error::last_os_error() {
            none if matches!(none.raw_os_error(), Some(libc::ENODATA | libc::EOPNOTSUPP)) => {
                Ok(None)
            }
            error => Err(error),
        },
    }
}

/// Sets the SELinux label of a file or directory. A symbolic link is not followed.
///
/// # Errors
/// EOPNOTSUPP when the file system has no labels, or was mounted with one for all files.
pub(in crate::cache) fn set_label(path: &Path, label: &str) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // With its NUL, as the SELinux tools store it.
    let label = CString::new(label)?;
    let value = label.as_bytes_with_nul();
    // SAFETY: all strings end with NUL, and the kernel reads exactly the bytes of the value.
    check(unsafe {
        libc::lsetxattr(path.as_ptr(), SELINUX.as_ptr(), value.as_ptr().cast(), value.len(), 0)
    })
    .map(drop)
}

/// Calls fcntl with a request of this module; they take an integer, or nothing.
fn fcntl(file: impl AsFd, request: c_int, argument: c_int) -> io::Result<c_int> {
    // SAFETY: the descriptor is open for the duration of the call, and none of
    // the requests takes a pointer.
    check(unsafe { libc::fcntl(file.as_fd().as_raw_fd(), request, argument) })
}

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::*;

    #[test]
    fn only_a_file_without_a_writer_can_be_leased() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        fs::write(&path, "x").unwrap();
        let reader = File::open(&path).unwrap();
        let writer = File::options().write(true).open(&path).unwrap();
        assert!(ReadLease::take(&reader).unwrap().is_none());
        drop(writer);
        let lease = ReadLease::take(&reader).unwrap().unwrap();
        assert!(lease.holds().unwrap());
        drop(lease);
        File::options().write(true).open(&path).unwrap();
    }

    #[test]
    fn a_waiting_writer_is_noticed_and_no_signal_ends_the_process() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        fs::write(&path, "x").unwrap();
        let reader = File::open(&path).unwrap();
        let lease = ReadLease::take(&reader).unwrap().unwrap();
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| File::options().write(true).open(&path).unwrap());
            while lease.holds().unwrap() {
                std::thread::yield_now();
            }
            drop(lease);
            writer.join().unwrap();
        });
    }
}
