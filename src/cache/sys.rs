#![expect(
    unsafe_code,
    reason = "file leases, FICLONE and extended attributes have no safe wrapper in nix or std"
)]
//! The system calls of the cache that no crate wraps.
//!
//! JUSTIFICATION: a file that is taken over by its inode must be open for
//! writing nowhere, and only the kernel knows (`F_SETLEASE`); a copy that takes
//! no space is `FICLONE`. A label of SELinux is the extended attribute
//! `security.selinux`. It holds nothing but the calls.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::libc::{self, c_int};

/// Chooses the signal of a broken lease (`linux/fcntl.h`; not in libc).
const F_SETSIG: c_int = 10;

/// A read lease: while it holds, nobody has the file open for writing. Who
/// wants to waits in `open` until it ends, for some seconds at most
/// (`/proc/sys/fs/lease-break-time`); so it has to be looked at when it counts.
#[derive(Debug)]
pub(super) struct ReadLease<F: AsFd>(F);

impl<F: AsFd> ReadLease<F> {
    /// Takes the lease on a file that is open for reading only; `None` when
    /// somebody has it open for writing.
    ///
    /// # Errors
    /// EACCES when the file is another user's and CAP_LEASE is missing; EINVAL
    /// where the file system knows no leases.
    pub(super) fn take(file: F) -> io::Result<Option<Self>> {
        // A broken lease is told by SIGIO, which would end the process. Nobody
        // listens for SIGURG, and by default it does nothing.
        fcntl(&file, F_SETSIG, libc::SIGURG)?;
        match fcntl(&file, libc::F_SETLEASE, libc::F_RDLCK) {
            Ok(_) => Ok(Some(Self(file))),
            Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Whether nobody has asked to write since.
    pub(super) fn holds(&self) -> io::Result<bool> {
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
/// EOPNOTSUPP, EINVAL or EXDEV where that cannot be done.
pub(super) fn reflink(from: impl AsFd, to: impl AsFd) -> io::Result<()> {
    let (from, to) = (from.as_fd().as_raw_fd(), to.as_fd().as_raw_fd());
    // SAFETY: the caller's values keep both descriptors open for the duration of
    // the call, and the argument of this request is a descriptor and no pointer.
    let result = unsafe { libc::ioctl(to, libc::FICLONE, from) };
    check(result).map(drop)
}

/// The attribute that is a label (`linux/xattr.h`, XATTR_NAME_SELINUX).
const SELINUX: &CStr = c"security.selinux";

/// Longer than any label.
const LABEL: usize = 4096;

/// The SELinux label of a file or directory; `None` where it has none. A
/// symbolic link is not followed.
pub(super) fn label(path: &Path) -> io::Result<Option<String>> {
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
/// EOPNOTSUPP where the file system keeps none, or was mounted with one for all.
pub(super) fn set_label(path: &Path, label: &str) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // As the tools of SELinux store it: with its NUL.
    let label = CString::new(label)?;
    let value = label.as_bytes_with_nul();
    // SAFETY: all strings end with NUL, and the kernel reads exactly the bytes of the value.
    check(unsafe {
        libc::lsetxattr(path.as_ptr(), SELINUX.as_ptr(), value.as_ptr().cast(), value.len(), 0)
    })
    .map(drop)
}

/// The requests of this module take an integer, or nothing.
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
    fn only_a_file_that_nobody_writes_can_be_leased() {
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
    fn a_writer_that_waits_is_noticed_and_kills_nobody() {
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
