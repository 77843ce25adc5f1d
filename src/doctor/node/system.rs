//! What the kernel shows of this machine: `/proc`, `/sys`, `/etc/fstab`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::error::{Error, Result};
use crate::mount::mountinfo::{MountEntry, MountTable};

/// The bit of CAP_SYS_ADMIN in the sets of `/proc/self/status` (capabilities(7)).
const SYS_ADMIN: u32 = 21;

/// A machine, as far as the kernel shows it to this process.
#[derive(Debug)]
pub(super) struct LocalSystem {
    /// `/`, or a directory with imitated files in tests.
    root: PathBuf,
    /// The mounts of this process, or why they cannot be read.
    pub(super) mounts: Result<MountTable>,
    /// Whether this process is root, and so may look at everything.
    pub(super) is_root: bool,
}

impl LocalSystem {
    pub(super) fn here() -> Self {
        Self::at(Path::new("/"))
    }

    /// The machine whose files of the kernel are below `root`.
    pub(super) fn at(root: &Path) -> Self {
        let mountinfo = root.join("proc/self/mountinfo");
        let mounts = fs::read(&mountinfo)
            .map_err(|e| Error::io(format!("reading {}", mountinfo.display()), &e))
            .and_then(|bytes| MountTable::parse(&bytes));
        let is_root = nix::unistd::geteuid().is_root();
        Self { root: root.to_owned(), mounts, is_root }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// A path without its leading slash, on this machine.
    pub(super) fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    /// The text of a file, without white space around it.
    pub(super) fn read(&self, relative: &str) -> io::Result<String> {
        fs::read_to_string(self.path(relative)).map(|text| text.trim().to_owned())
    }

    /// The mount that an existing path is on.
    pub(super) fn mount_of(&self, path: &Path) -> Option<&MountEntry> {
        let path = fs::canonicalize(path).ok()?;
        self.mounts.as_ref().ok()?.around(&path)
    }

    /// Whether this process is in a container: its root directory is an overlay, or a runtime
    /// has left its mark.
    pub(super) fn is_container(&self) -> bool {
        let root = self.mounts.as_ref().ok().and_then(|table| table.at(Path::new("/")));
        root.is_some_and(|root| root.fs_type == "overlay" || root.fs_type == "fuse.fuse-overlayfs")
            || self.path(".dockerenv").exists()
            || self.path("run/.containerenv").exists()
    }

    /// Whether this process may mount; `None` where the kernel does not say.
    pub(super) fn may_mount(&self) -> Option<bool> {
        let status = self.read("proc/self/status").ok()?;
        let set = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
        let set = u64::from_str_radix(set.trim(), 16).ok()?;
        Some(set >> SYS_ADMIN & 1 == 1)
    }
}

/// How long ago this was, in seconds since the epoch.
pub(super) fn age(since: u64, now: SystemTime) -> Duration {
    now.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(Duration::ZERO, |now| Duration::from_secs(now.as_secs().saturating_sub(since)))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A machine of imitated files: each a path and its text.
    pub(in crate::doctor::node) fn imitated(
        files: &[(&str, &str)],
    ) -> (tempfile::TempDir, LocalSystem) {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let system = LocalSystem::at(dir.path());
        (dir, system)
    }

    #[test]
    fn a_container_is_recognized_by_its_root_and_by_the_marks_of_runtimes() {
        let host = ("proc/self/mountinfo", "20 1 8:1 / / rw shared:1 - xfs /dev/sda3 rw\n");
        let overlay = ("proc/self/mountinfo", "20 1 0:40 / / ro - overlay overlay rw\n");
        for (files, expected) in [
            (&[host][..], false),
            (&[overlay], true),
            (&[host, (".dockerenv", "")], true),
            (&[host, ("run/.containerenv", "")], true),
        ] {
            assert_eq!(imitated(files).1.is_container(), expected, "{files:?}");
        }
    }

    #[test]
    fn the_right_to_mount_is_one_bit_of_the_effective_set() {
        for (set, expected) in [
            ("CapEff:\t000001ffffffffff", Some(true)),
            ("CapEff:\t0000000000200000", Some(true)),
            ("CapEff:\t00000000a80425fb", Some(false)),
            ("CapEff:\tx", None),
            ("", None),
        ] {
            let text = format!("Name:\tdoctor\n{set}\n");
            assert_eq!(imitated(&[("proc/self/status", &text)]).1.may_mount(), expected, "{set}");
        }
        assert_eq!(imitated(&[]).1.may_mount(), None, "no /proc");
    }
}
