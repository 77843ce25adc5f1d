//! The read-only bind mount, and the proof that it is one.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::libc;
use nix::mount::{MsFlags, mount};
use tracing::{debug, warn};

use super::mountinfo::{MountEntry, MountTable};
use super::{DirId, HARDENED, fd_path, mount_id, open_directory, open_path, resolve, sys, target};
use crate::{Error, ErrorKind, Result};

/// What a mount has beside read-only, nosuid and nodev, which every mount has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BindOptions {
    /// Nothing in the volume can be executed or mapped executable.
    pub noexec: bool,
    /// Reads do not update access times. A read-only mount never updates
    /// them, so where the kernel forbids the change (in a user namespace),
    /// the mount is made without it.
    pub noatime: bool,
}

/// Shows the directory `source` at `target`: read-only, nosuid, nodev.
///
/// `target` is an existing empty directory. On a kernel with
/// mount_setattr(2), Linux 5.12, there is no instant at which the volume is
/// writable; on others, or where a sandbox refuses the call, see
/// [`bind_read_only_by_remount`]. When this returns, no descriptor of the
/// process refers to the mount.
///
/// # Errors
/// `Invalid` when `target` is relative, missing, a symbolic link or no
/// directory; `Conflict` when it is not empty or a mount point already;
/// `Internal` when the kernel refuses, or shows afterwards less than what was
/// asked for. After any error nothing of this call is mounted.
pub fn bind_read_only(source: &Path, target: &Path, options: BindOptions) -> Result<()> {
    let ends = Ends::open(source, target)?;
    match attach_by_mount_api(&ends, options) {
        Ok(()) => {}
        Err(error) if is_unsupported(&error) => {
            debug!(target = %ends.target.display(), %error, "binding by mount and remount");
            attach_by_remount(&ends, options)?;
        }
        Err(error) => return Err(ends.refused("attaching the mount", &error)),
    }
    prove(ends, options)
}

/// [`bind_read_only`] with mount(2) alone: a bind mount, then a remount that makes it read-only.
///
/// The volume is writable between the two steps, and a process killed there
/// leaves it so; [`super::Mounted::hardened`] tells.
///
/// # Errors
/// As [`bind_read_only`].
pub fn bind_read_only_by_remount(source: &Path, target: &Path, options: BindOptions) -> Result<()> {
    let ends = Ends::open(source, target)?;
    attach_by_remount(&ends, options)?;
    prove(ends, options)
}

/// Both ends of a bind mount, opened and checked once: what is checked is what is mounted.
struct Ends {
    source: PathBuf,
    source_dir: File,
    root: DirId,
    /// Resolved, so that it is spelled as mountinfo spells it.
    target: PathBuf,
    target_dir: File,
}

impl Ends {
    fn open(source: &Path, target: &Path) -> Result<Self> {
        let opening = |error| {
            Error::io(
                format_args!(
                    "opening {} to publish it (a directory, no symbolic link)",
                    source.display()
                ),
                &error,
            )
        };
        let source_dir: File = open_directory(source).map_err(opening)?.into();
        let root = DirId::from(&source_dir.metadata().map_err(opening)?);

        let unusable = |why: &str| {
            Error::invalid(format!("target {} cannot be mounted on: {why}", target.display()))
        };
        if !target.is_absolute() {
            return Err(unusable("it is not an absolute path"));
        }
        let resolved = resolve(target)
            .map_err(|error| unusable(&error.to_string()))?
            .ok_or_else(|| unusable("its parent directory does not exist"))?;
        let target_dir: File = open_directory(&resolved)
            .map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => unusable("it does not exist"),
                io::ErrorKind::NotADirectory => unusable("it is a symbolic link or no directory"),
                _ => unusable(&error.to_string()),
            })?
            .into();
        let ends = Self { source: source.into(), source_dir, root, target: resolved, target_dir };
        ends.check_target_is_free()?;
        Ok(ends)
    }

    fn check_target_is_free(&self) -> Result<()> {
        let looking = |error| super::looking(&self.target, &error);
        let taken = |by: &str| {
            Error::new(
                ErrorKind::Conflict,
                format!("target {} {by}; nothing was mounted over it", self.target.display()),
            )
        };
        let parent = self.target.parent().ok_or_else(|| taken("is the root directory"))?;
        let parent = open_path(parent, 0).map_err(looking)?;
        if mount_id(&parent).map_err(looking)? != mount_id(&self.target_dir).map_err(looking)? {
            return Err(taken("is a mount point already"));
        }
        if fs::read_dir(fd_path(&self.target_dir)).map_err(looking)?.next().is_some() {
            return Err(taken("is not empty"));
        }
        Ok(())
    }

    fn refused(&self, step: &str, error: &io::Error) -> Error {
        let (source, target) = (self.source.display(), self.target.display());
        let refused =
            Error::io(format_args!("binding {source} read-only at {target}: {step}"), error);
        match error.kind() {
            io::ErrorKind::PermissionDenied => Error::new(
                refused.kind(),
                format!(
                    "{refused}; the driver needs CAP_SYS_ADMIN, a privileged container in \
                     Kubernetes"
                ),
            ),
            _ => refused,
        }
    }
}

/// The kernel is too old, or a sandbox (seccomp answers EPERM) hides the call.
/// Where EPERM means that mounting is not allowed at all, mount(2) says it again.
fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM | libc::EOPNOTSUPP))
}

/// Clone the source's mount, make the clone read-only, then attach it. The
/// clone keeps what the source's mount has, so flags that a parent user
/// namespace locked stay as they are.
fn attach_by_mount_api(ends: &Ends, options: BindOptions) -> io::Result<()> {
    let clone = sys::open_tree(ends.source_dir.as_fd())?;
    set_attributes(clone.as_fd(), options)?;
    sys::move_mount(clone.as_fd(), ends.target_dir.as_fd())
}

fn set_attributes(clone: BorrowedFd<'_>, options: BindOptions) -> io::Result<()> {
    let mut set = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    if options.noexec {
        set |= libc::MOUNT_ATTR_NOEXEC;
    }
    if options.noatime {
        // The access time modes are one field, not flags: it is cleared to be set.
        let with_noatime = set | libc::MOUNT_ATTR_NOATIME;
        match sys::mount_setattr(clone, with_noatime, libc::MOUNT_ATTR__ATIME) {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {}
            done => return done,
        }
    }
    sys::mount_setattr(clone, set, 0)
}

fn attach_by_remount(ends: &Ends, options: BindOptions) -> Result<()> {
    let inherited = flags_to_keep(ends)?;
    mount(
        Some(&fd_path(&ends.source_dir)),
        &fd_path(&ends.target_dir),
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )
    .map_err(|errno| ends.refused("mounting it", &errno.into()))?;

    remount_read_only(ends, options, inherited)
        .map_err(|error| undo(&ends.target, ends.refused("making the mount read-only", &error)))
}

/// A remount clears the flags it does not name, which in a user namespace is
/// refused for those that are locked. Access times are kept when none is named.
fn flags_to_keep(ends: &Ends) -> Result<MsFlags> {
    let looking = |error| super::looking(&ends.source, &error);
    let id = mount_id(&ends.source_dir).map_err(looking)?;
    let table = MountTable::read()?;
    let noexec = table.by_id(id).is_some_and(|entry| entry.options.has("noexec"));
    Ok(if noexec { MsFlags::MS_NOEXEC } else { MsFlags::empty() })
}

fn remount_read_only(ends: &Ends, options: BindOptions, inherited: MsFlags) -> io::Result<()> {
    // The descriptor from before the bind is on the directory below the mount.
    let mounted = open_directory(&ends.target)?;
    let mut flags = MsFlags::MS_REMOUNT
        | MsFlags::MS_BIND
        | MsFlags::MS_RDONLY
        | MsFlags::MS_NOSUID
        | MsFlags::MS_NODEV
        | inherited;
    flags.set(MsFlags::MS_NOEXEC, options.noexec || inherited.contains(MsFlags::MS_NOEXEC));
    let remount =
        |flags| mount(None::<&str>, &fd_path(&mounted), None::<&str>, flags, None::<&str>);
    if options.noatime {
        match remount(flags | MsFlags::MS_NOATIME) {
            Err(Errno::EPERM) => {}
            done => return done.map_err(io::Error::from),
        }
    }
    remount(flags).map_err(io::Error::from)
}

/// Asks the kernel whether the mount is what was promised; less is unmounted and an error.
fn prove(ends: Ends, options: BindOptions) -> Result<()> {
    let Ends { source, target, root, .. } = ends;
    let shortfall = match inspect(&target) {
        Ok((entry, shown)) => shortfall(entry.as_ref(), &target, shown, root, options),
        Err(error) => Some(error.to_string()),
    };
    match shortfall {
        None => Ok(()),
        Some(shortfall) => Err(undo(
            &target,
            Error::internal(format!(
                "binding {} read-only at {}: the kernel reported success, but {shortfall}; \
                 it was unmounted again",
                source.display(),
                target.display()
            )),
        )),
    }
}

fn inspect(target: &Path) -> Result<(Option<MountEntry>, DirId)> {
    let looking = |error| super::looking(target, &error);
    let shown: File = open_directory(target).map_err(looking)?.into();
    let id = mount_id(&shown).map_err(looking)?;
    let root = DirId::from(&shown.metadata().map_err(looking)?);
    Ok((MountTable::read()?.by_id(id).cloned(), root))
}

fn shortfall(
    entry: Option<&MountEntry>,
    target: &Path,
    shown: DirId,
    wanted: DirId,
    options: BindOptions,
) -> Option<String> {
    let Some(entry) = entry.filter(|entry| entry.mount_point == target) else {
        return Some("mountinfo does not list a mount there".to_owned());
    };
    if shown != wanted {
        return Some("another directory is seen there".to_owned());
    }
    let noexec = options.noexec.then_some("noexec");
    let missing: Vec<_> =
        HARDENED.into_iter().chain(noexec).filter(|option| !entry.options.has(option)).collect();
    if missing.is_empty() {
        return None;
    }
    Some(format!(
        "the mount is {} and lacks {}",
        entry.options.as_os_str().display(),
        missing.join(",")
    ))
}

/// Unmounts what was just mounted, and hands the error on with what became of it.
fn undo(target: &Path, error: Error) -> Error {
    match target::unmount(target) {
        Ok(_) => error,
        Err(failed) => {
            warn!(target = %target.display(), error = %failed, "a failed bind is still mounted");
            Error::new(error.kind(), format!("{error}; and it is still mounted: {failed}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOWN: DirId = DirId { dev: 1, ino: 2 };

    fn fault(options: &str, asked: BindOptions, at: &str, shown: DirId) -> Option<String> {
        let line = format!("9 1 8:1 /m /pods/a {options} - ext4 /dev/vda rw\n");
        let table = MountTable::parse(line.as_bytes()).unwrap();
        shortfall(table.by_id(9), Path::new(at), shown, SHOWN, asked)
    }

    #[test]
    fn a_hardened_mount_of_the_right_directory_is_accepted() {
        let plain = BindOptions::default();
        assert_eq!(fault("ro,nosuid,nodev,relatime", plain, "/pods/a", SHOWN), None);
        let noatime = BindOptions { noatime: true, ..plain };
        assert_eq!(fault("ro,nosuid,nodev,relatime", noatime, "/pods/a", SHOWN), None);
    }

    #[test]
    fn each_missing_flag_is_named() {
        let plain = BindOptions::default();
        for (options, lacks) in [
            ("rw,nosuid,nodev", "lacks ro"),
            ("ro,nodev", "lacks nosuid"),
            ("ro,nosuid", "lacks nodev"),
            ("rw,relatime", "lacks ro,nosuid,nodev"),
        ] {
            let fault = fault(options, plain, "/pods/a", SHOWN).unwrap();
            assert!(fault.ends_with(lacks), "{fault}");
        }
        let noexec = BindOptions { noexec: true, ..plain };
        assert!(fault("ro,nosuid,nodev", noexec, "/pods/a", SHOWN).unwrap().ends_with("noexec"));
    }

    #[test]
    fn another_place_or_another_directory_is_no_proof() {
        let plain = BindOptions::default();
        assert!(fault("ro,nosuid,nodev", plain, "/pods/b", SHOWN).is_some());
        let other = DirId { dev: 1, ino: 3 };
        assert!(fault("ro,nosuid,nodev", plain, "/pods/a", other).is_some());
        assert!(shortfall(None, Path::new("/pods/a"), SHOWN, SHOWN, plain).is_some());
    }

    #[test]
    fn only_a_missing_or_hidden_call_leads_to_the_fallback() {
        for (errno, unsupported) in [
            (libc::ENOSYS, true),
            (libc::EPERM, true),
            (libc::EOPNOTSUPP, true),
            (libc::EINVAL, false),
            (libc::ENOENT, false),
            (libc::EBUSY, false),
        ] {
            assert_eq!(is_unsupported(&io::Error::from_raw_os_error(errno)), unsupported);
        }
    }
}
