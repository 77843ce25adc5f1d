//! The directory a volume is mounted on: made, unmounted, removed; never emptied.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use tracing::warn;

use super::mounted;
use crate::{Error, ErrorKind, Result};

/// No more mounts than this are taken off one target in one call.
const MAX_STACKED: u32 = 64;

/// How often a busy mount is tried, and how long between: somebody who
/// only looks (statfs, a directory walk) is gone after this.
const BUSY_TRIES: u32 = 5;
const BUSY_PAUSE: Duration = Duration::from_millis(20);

/// Makes the directory that a volume will be mounted on, mode 0750.
///
/// Only the last component is made. A directory that is there already is
/// taken as it is, if it is empty.
///
/// # Errors
/// `Invalid` when the parent does not exist, or something else than a
/// directory has the name, a symbolic link included; `Conflict` when the
/// directory is not empty.
pub fn create_target(target: &Path) -> Result<()> {
    let doing =
        |error| Error::io(format_args!("making the target directory {}", target.display()), &error);
    match DirBuilder::new().mode(0o750).create(target) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) if super::is_absent(&error) => {
            return Err(Error::invalid(format!(
                "target {} cannot be made: its parent directory does not exist; kubelet makes it \
                 before it asks",
                target.display()
            )));
        }
        Err(error) => return Err(doing(error)),
    }
    if !fs::symlink_metadata(target).map_err(doing)?.is_dir() {
        return Err(Error::invalid(format!(
            "target {} is a symbolic link or no directory; a volume is mounted only on a \
             directory",
            target.display()
        )));
    }
    if fs::read_dir(target).map_err(doing)?.next().is_some() {
        return Err(Error::new(
            ErrorKind::Conflict,
            format!(
                "target {} is not empty, so something else is there; it was left alone",
                target.display()
            ),
        ));
    }
    Ok(())
}

/// Takes off whatever is mounted at `target`, a stack of mounts included.
///
/// `Ok(true)` when something was unmounted, `Ok(false)` when nothing was
/// mounted there or `target` does not exist. A mount that stays busy is
/// detached as the last resort: it is gone from the path at once, and from the
/// kernel when its last user is.
///
/// # Errors
/// `Internal` when the kernel refuses; what is mounted then stays mounted.
pub fn unmount(target: &Path) -> Result<bool> {
    for unmounted in 0..MAX_STACKED {
        match unmount_topmost(target) {
            Ok(()) => {}
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(unmounted > 0),
            // No mount point; or one that may not be unmounted, which is told apart.
            Err(Errno::EINVAL) if mounted(target)?.is_none() => return Ok(unmounted > 0),
            Err(errno) => {
                let hint = match errno {
                    Errno::EPERM => "; the driver needs CAP_SYS_ADMIN",
                    Errno::EINVAL => "; the mount belongs to another mount or user namespace",
                    _ => "",
                };
                return Err(Error::internal(format!(
                    "unmounting {}: {}{hint}",
                    target.display(),
                    io::Error::from(errno)
                )));
            }
        }
    }
    Err(Error::internal(format!(
        "unmounting {}: more than {MAX_STACKED} mounts are stacked there; something keeps \
         mounting over it",
        target.display()
    )))
}

fn unmount_topmost(target: &Path) -> nix::Result<()> {
    for _ in 0..BUSY_TRIES {
        match umount2(target, MntFlags::UMOUNT_NOFOLLOW) {
            Err(Errno::EBUSY) => thread::sleep(BUSY_PAUSE),
            done => return done,
        }
    }
    warn!(
        target = %target.display(),
        "the mount is in use after {BUSY_TRIES} attempts to unmount it; detaching it"
    );
    umount2(target, MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH)
}

/// Removes the empty directory `target`; that it is gone already is fine.
///
/// Never recursive: what a failed unmount would leave visible here are the
/// shared files of the cache.
///
/// # Errors
/// `Conflict` when the directory is not empty; `Internal` when it is still a
/// mount point, is no directory, or cannot be removed. Nothing is deleted then.
pub fn remove_target(target: &Path) -> Result<()> {
    let error = match fs::remove_dir(target) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => error,
    };
    if error.kind() == io::ErrorKind::DirectoryNotEmpty {
        return Err(Error::new(
            ErrorKind::Conflict,
            format!(
                "target {} is not empty after unmounting; nothing in it was deleted; look what \
                 wrote there and remove it by hand",
                target.display()
            ),
        ));
    }
    Err(Error::io(format_args!("removing the target directory {}", target.display()), &error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn a_target_is_made_private_to_the_group_and_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("mount");
        create_target(&target).unwrap();
        let mode = fs::metadata(&target).unwrap().permissions().mode();
        assert_eq!(mode & 0o7027, 0, "{mode:o}");
        create_target(&target).unwrap();
    }

    #[test]
    fn only_the_last_component_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let error = create_target(&dir.path().join("pod/mount")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.message().contains("pod/mount"), "{error}");
        assert!(!dir.path().join("pod").exists());
    }

    #[test]
    fn a_target_with_content_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("somebody's");
        fs::write(&file, "data").unwrap();
        assert_eq!(create_target(dir.path()).unwrap_err().kind(), ErrorKind::Conflict);

        let error = remove_target(dir.path()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict);
        assert!(error.message().contains(dir.path().to_str().unwrap()), "{error}");
        assert_eq!(fs::read_to_string(file).unwrap(), "data");
    }

    #[test]
    fn a_symbolic_link_or_a_file_is_no_target() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().join("real");
        fs::create_dir(&real).unwrap();
        let link = dir.path().join("link");
        symlink(&real, &link).unwrap();
        let dangling = dir.path().join("dangling");
        symlink(dir.path().join("nowhere"), &dangling).unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        for path in [&link, &dangling, &file] {
            assert_eq!(create_target(path).unwrap_err().kind(), ErrorKind::Invalid);
            remove_target(path).unwrap_err();
            assert!(fs::symlink_metadata(path).is_ok(), "{} is still there", path.display());
        }
        assert!(real.exists());
    }

    #[test]
    fn removing_what_is_gone_is_fine() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("mount");
        remove_target(&target).unwrap();
        create_target(&target).unwrap();
        remove_target(&target).unwrap();
        assert!(!target.exists());
    }
}
