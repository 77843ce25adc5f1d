//! Which disk a path is on, so that messages about a failure name it.

use std::path::Path;

use super::mountinfo::MountTable;
use crate::{Error, ErrorKind};

/// Adds the name of the failed disk and what to do about it. An error
/// about anything else is returned unchanged.
#[must_use]
pub fn named(error: Error, path: &Path) -> Error {
    if error.kind() != ErrorKind::Disk {
        return error;
    }
    // The disk itself is not asked for its name: only the table of mounts is read.
    let table = MountTable::read().unwrap_or_default();
    let disk = table.around(path).map_or_else(
        || format!("the disk of {}", path.display()),
        |entry| {
            format!(
                "{} is on {} ({}, mounted at {}), which",
                path.display(),
                entry.source.display(),
                entry.fs_type.display(),
                entry.mount_point.display()
            )
        },
    );
    Error::new(
        ErrorKind::Unavailable,
        format!(
            "{error}; {disk} does not do what it should: read the node's kernel log (dmesg) and \
             repair or replace that disk; it will be tried again"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_disk_of_a_path_is_named_with_its_device_and_its_mount_point() {
        let table = "\
            20 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
            21 20 8:16 / /var/lib/oci-model-csi rw - xfs /dev/sdb rw\n";
        let table = MountTable::parse(table.as_bytes()).unwrap();
        let device = |path: &str| table.around(Path::new(path)).unwrap().source.clone();
        assert_eq!(device("/var/lib/oci-model-csi/blobs"), "/dev/sdb");
        assert_eq!(device("/var/lib/kubelet"), "/dev/sda1");

        let error = Error::io("writing x", &nix::errno::Errno::EIO.into());
        let error = named(error, Path::new("/nowhere"));
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.message().contains("mounted at /") && error.message().contains("dmesg"));
        let other = Error::invalid("x");
        assert_eq!(named(other.clone(), Path::new("/")), other);
    }
}
