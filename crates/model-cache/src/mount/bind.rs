//! The read-only bind mount, and the proof that it is one.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::mount::{MsFlags, mount};
use tracing::{debug, warn};

use super::mountinfo::{MountEntry, MountTable};
use super::open_target::{OpenTarget, TargetState};
use super::{DirId, HARDENED, Mounted, disk, fd_path, mount_id, open_directory, sys};
use crate::{Error, Result};

/// Options of a mount in addition to read-only, nosuid and nodev, which every mount has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BindOptions {
    /// Nothing in the volume can be executed or mapped executable.
    pub noexec: bool,
    /// Reads do not update access times. A read-only mount never updates
    /// them, so where the kernel forbids the change (in a user namespace),
    /// the mount is made without it.
    pub noatime: bool,
}

impl OpenTarget {
    /// Binds the directory `source` to this target: read-only, nosuid, nodev.
    ///
    /// The target is an existing empty directory. On a kernel with
    /// mount_setattr(2), Linux 5.12, there is no instant at which the volume is
    /// writable; on others, or where a sandbox refuses the call, see
    /// [`OpenTarget::bind_read_only_by_remount`]. After this call no descriptor
    /// of the process refers to the mount.
    ///
    /// # Errors
    /// `Invalid` when the target is missing, a symbolic link or not a directory;
    /// `Conflict` when it is not empty or a mount point already; `Internal`
    /// when the kernel refuses, or afterwards shows less than was requested.
    /// After any error nothing of this call is mounted.
    pub fn bind_read_only(&self, source: &Path, options: BindOptions) -> Result<Mounted> {
        let ends = BindEnds::open(source, self)?;
        let id = match attach_by_mount_api(&ends, options) {
            Ok(id) => Some(id),
            Err(error) if is_unsupported(&error) => {
                debug!(target = %self.path().display(), %error, "binding by mount and remount");
                attach_by_remount(&ends, options)?;
                None
            }
            Err(error) => return Err(ends.refused("attaching the mount", &error)),
        };
        prove(ends, id, options)
    }

    /// [`OpenTarget::bind_read_only`] with mount(2) alone: a bind mount, then a
    /// remount that makes it read-only.
    ///
    /// The volume is writable between the two steps, and a process killed there
    /// leaves it so; [`Mounted::hardened`] shows it.
    ///
    /// # Errors
    /// As [`OpenTarget::bind_read_only`].
    pub fn bind_read_only_by_remount(
        &self,
        source: &Path,
        options: BindOptions,
    ) -> Result<Mounted> {
        let ends = BindEnds::open(source, self)?;
        attach_by_remount(&ends, options)?;
        prove(ends, None, options)
    }
}

/// Both ends of a bind mount, opened and checked once: what is checked is what is mounted.
struct BindEnds<'a> {
    source: PathBuf,
    source_dir: File,
    root: DirId,
    place: &'a OpenTarget,
    target_dir: File,
}

impl<'a> BindEnds<'a> {
    fn open(source: &Path, place: &'a OpenTarget) -> Result<Self> {
        let opening = |error| {
            let attempted = format!(
                "opening {} to publish it (a directory, no symbolic link)",
                source.display()
            );
            disk::named(Error::io(attempted, &error), source)
        };
        let source_dir: File = open_directory(source).map_err(opening)?.into();
        let root = DirId::from(&source_dir.metadata().map_err(opening)?);

        let unusable = |why: &str| {
            Error::invalid(format!("target {} cannot be mounted on: {why}", place.path().display()))
        };
        let target_dir = match place.open_name(OFlag::O_DIRECTORY) {
            Ok(target_dir) => target_dir,
            Err(Errno::ENOENT) => return Err(unusable("it does not exist")),
            Err(Errno::ENOTDIR) => {
                return Err(unusable("it is a symbolic link or not a directory"));
            }
            Err(errno) => {
                let opening = format!("opening the target {}", place.path().display());
                return Err(disk::named(Error::io(opening, &errno.into()), place.path()));
            }
        };
        let ends = Self { source: source.into(), source_dir, root, place, target_dir };
        ends.check_target_is_free()?;
        Ok(ends)
    }

    fn check_target_is_free(&self) -> Result<()> {
        let place = self.place;
        let looking = |error| super::lookup_failed(place.path(), &error);
        if mount_id(&place.parent).map_err(looking)?
            != mount_id(&self.target_dir).map_err(looking)?
        {
            return Err(place.taken("is a mount point already"));
        }
        if !place.is_empty()? {
            return Err(place.taken("is not empty"));
        }
        Ok(())
    }

    fn refused(&self, step: &str, error: &io::Error) -> Error {
        let (source, target) = (self.source.display(), self.place.path().display());
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

/// Whether the kernel is too old, or a sandbox (seccomp answers EPERM) hides the call.
/// If EPERM means that mounting is not allowed at all, mount(2) fails the same way.
fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM | libc::EOPNOTSUPP))
}

/// Clones the source's mount, makes the clone read-only, then attaches it. The
/// clone keeps the flags of the source's mount, so flags that a parent user
/// namespace locked stay as they are.
///
/// The id is that of the mount before and after it is attached.
fn attach_by_mount_api(ends: &BindEnds<'_>, options: BindOptions) -> io::Result<u64> {
    let clone = sys::open_tree(ends.source_dir.as_fd())?;
    set_attributes(clone.as_fd(), options)?;
    let id = mount_id(&clone)?;
    sys::move_mount(clone.as_fd(), ends.target_dir.as_fd())?;
    Ok(id)
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

fn attach_by_remount(ends: &BindEnds<'_>, options: BindOptions) -> Result<()> {
    let inherited = flags_to_keep(ends)?;
    mount(
        Some(&fd_path(&ends.source_dir)),
        &fd_path(&ends.target_dir),
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )
    .map_err(|errno| ends.refused("mounting it", &errno.into()))?;

    remount_read_only(ends, options, inherited).map_err(|error| {
        undo(ends.place, (None, ends.root), ends.refused("making the mount read-only", &error))
    })
}

/// A remount clears the flags that it does not name, and in a user namespace the kernel
/// refuses to clear locked ones. Access times are kept when none is named.
fn flags_to_keep(ends: &BindEnds<'_>) -> Result<MsFlags> {
    let looking = |error| super::lookup_failed(&ends.source, &error);
    let id = mount_id(&ends.source_dir).map_err(looking)?;
    let table = MountTable::read()?;
    let noexec = table.by_id(id).is_some_and(|entry| entry.options.has("noexec"));
    Ok(if noexec { MsFlags::MS_NOEXEC } else { MsFlags::empty() })
}

fn remount_read_only(
    ends: &BindEnds<'_>,
    options: BindOptions,
    inherited: MsFlags,
) -> io::Result<()> {
    // The descriptor from before the bind refers to the directory below the mount.
    let mounted = ends.place.open_name(OFlag::O_DIRECTORY)?;
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

/// Checks that the kernel shows the mount as requested; otherwise it is unmounted.
///
/// `id` is that of the mount, where it is known without inspecting the target.
fn prove(ends: BindEnds<'_>, id: Option<u64>, options: BindOptions) -> Result<Mounted> {
    let BindEnds { source, place, root, .. } = ends;
    let (shown, shortfall) = match inspect(place) {
        Ok(found) => {
            let shortfall = shortfall(found.as_ref(), id, root, options);
            (found.map(|(_, mounted)| mounted), shortfall)
        }
        Err(error) => (None, Some(error.to_string())),
    };
    match (shown, shortfall) {
        (Some(mounted), None) => Ok(mounted),
        (_, shortfall) => Err(undo(
            place,
            (id, root),
            Error::internal(format!(
                "binding {} read-only at {}: the kernel reported success, but {}; it was \
                 unmounted again",
                source.display(),
                place.path().display(),
                shortfall.unwrap_or_default()
            )),
        )),
    }
}

fn inspect(place: &OpenTarget) -> Result<Option<(MountEntry, Mounted)>> {
    let Some(mounted) = place.mounted()? else { return Ok(None) };
    let table = MountTable::read()?;
    Ok(table.by_id(mounted.id).cloned().map(|entry| (entry, mounted)))
}

fn shortfall(
    found: Option<&(MountEntry, Mounted)>,
    id: Option<u64>,
    wanted: DirId,
    options: BindOptions,
) -> Option<String> {
    let Some((entry, shown)) = found else {
        return Some("mountinfo does not list a mount there".to_owned());
    };
    if shown.root != wanted {
        return Some("another directory is seen there".to_owned());
    }
    if id.is_some_and(|id| id != shown.id) {
        return Some("another mount of it is seen there".to_owned());
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

/// Unmounts what was just mounted, and returns the error with the outcome of that.
fn undo(place: &OpenTarget, (id, root): (Option<u64>, DirId), error: Error) -> Error {
    let unmounted = match place.inspect() {
        Ok(TargetState::Mount(mounted)) if is_of_call(&mounted, id, root) => {
            place.unmount(&mounted)
        }
        Ok(_) => Ok(()),
        Err(failed) => Err(failed),
    };
    match unmounted {
        Ok(()) => error,
        Err(failed) => {
            let target = place.path().display();
            warn!(%target, error = %failed, "a failed bind is still mounted");
            Error::new(error.kind(), format!("{error}; and it is still mounted: {failed}"))
        }
    }
}

/// Whether this is the mount that a call made. Another mount of the same directory is
/// another pod's, which is here after names were exchanged.
fn is_of_call(found: &Mounted, id: Option<u64>, root: DirId) -> bool {
    found.root == root && id.is_none_or(|id| id == found.id)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOWN: DirId = DirId { dev: 1, ino: 2 };

    fn fault(options: &str, asked: BindOptions, id: Option<u64>, shown: DirId) -> Option<String> {
        let line = format!("9 1 8:1 /m /pods/a {options} - ext4 /dev/vda rw\n");
        let table = MountTable::parse(line.as_bytes()).unwrap();
        let entry = table.by_id(9).unwrap().clone();
        let mounted = Mounted::new(&entry, shown);
        shortfall(Some(&(entry, mounted)), id, SHOWN, asked)
    }

    #[test]
    fn a_hardened_mount_of_the_right_directory_is_accepted() {
        let plain = BindOptions::default();
        assert_eq!(fault("ro,nosuid,nodev,relatime", plain, Some(9), SHOWN), None);
        let noatime = BindOptions { noatime: true, ..plain };
        assert_eq!(fault("ro,nosuid,nodev,relatime", noatime, Some(9), SHOWN), None);
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
            let fault = fault(options, plain, Some(9), SHOWN).unwrap();
            assert!(fault.ends_with(lacks), "{fault}");
        }
        let noexec = BindOptions { noexec: true, ..plain };
        assert!(fault("ro,nosuid,nodev", noexec, Some(9), SHOWN).unwrap().ends_with("noexec"));
    }

    #[test]
    fn another_mount_or_another_directory_is_no_proof() {
        let plain = BindOptions::default();
        assert!(fault("ro,nosuid,nodev", plain, Some(8), SHOWN).is_some());
        assert!(fault("ro,nosuid,nodev", plain, None, SHOWN).is_none(), "its id is not known");
        let other = DirId { dev: 1, ino: 3 };
        assert!(fault("ro,nosuid,nodev", plain, Some(9), other).is_some());
        assert!(shortfall(None, None, SHOWN, plain).is_some());
    }

    #[test]
    fn a_failed_bind_unmounts_its_own_mount_and_no_other_of_the_same_directory() {
        let line = "9 1 8:1 /m /pods/a ro - ext4 /dev/vda rw\n";
        let table = MountTable::parse(line.as_bytes()).unwrap();
        let found = Mounted::new(table.by_id(9).unwrap(), SHOWN);
        assert!(is_of_call(&found, Some(9), SHOWN));
        assert!(!is_of_call(&found, Some(8), SHOWN), "another pod's mount of the model");
        assert!(is_of_call(&found, None, SHOWN), "the fallback does not know the id");
        assert!(!is_of_call(&found, None, DirId { dev: 1, ino: 3 }));
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
