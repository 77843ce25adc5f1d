//! Through which mounts a directory can be reached.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::mountinfo::{MountEntry, MountTable};
use super::{is_whole, lookup_failed, mount_id, open_path};
use crate::Result;

/// Whether two open files are reached through one mount: only then can one be
/// renamed to the other's name, even within one file system.
pub fn on_one_mount(one: &File, other: &File) -> Result<bool> {
    let id =
        |file| mount_id(file).map_err(|error| lookup_failed(Path::new("an open file"), &error));
    Ok(id(one)? == id(other)?)
}

/// Another mount that shows `dir`, something in it, or a directory around it, if
/// this process can see one. `dir` is absolute and free of symbolic links.
///
/// Mounts of whole file systems and of btrfs subvolumes do not count: they are
/// the normal way to reach a disk.
pub fn shown_elsewhere(dir: &Path) -> Result<Option<PathBuf>> {
    let doing = |error| lookup_failed(dir, &error);
    let id = mount_id(&open_path(dir, 0).map_err(doing)?).map_err(doing)?;
    let table = MountTable::read()?;
    let Some(own) = table.by_id(id) else { return Ok(None) };
    Ok(other_mount(&table, own, dir).map(|entry| entry.mount_point.clone()))
}

fn other_mount<'a>(table: &'a MountTable, own: &MountEntry, dir: &Path) -> Option<&'a MountEntry> {
    let below = dir.strip_prefix(&own.mount_point).unwrap_or(dir);
    // Joining nothing would leave a slash at the end.
    let path = if below.as_os_str().is_empty() { own.root.clone() } else { own.root.join(below) };
    table.on_device(own.device).find(|other| {
        let around = path.starts_with(&other.root) && !is_whole(other);
        other.id != own.id && (around || other.root.starts_with(&path))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(dir: &str) -> Option<String> {
        let table = "\
            20 1 8:1 / / rw - ext4 /dev/sda rw\n\
            21 20 8:2 / /data rw - ext4 /dev/sdb rw\n\
            22 20 8:2 / /mnt/again rw - ext4 /dev/sdb rw\n\
            23 20 8:2 /shared /pods/1 rw - ext4 /dev/sdb rw\n\
            24 20 8:2 /deep/er/file /pods/2 rw - ext4 /dev/sdb rw\n\
            25 20 8:1 /models /host/models rw - ext4 /dev/sda rw\n";
        let table = MountTable::parse(table.as_bytes()).unwrap();
        let own = table.around(Path::new(dir)).expect("something is mounted at /");
        other_mount(&table, own, Path::new(dir)).map(|e| e.mount_point.display().to_string())
    }

    #[test]
    fn binds_of_a_directory_of_what_is_in_it_and_of_what_is_around_it_are_found() {
        assert_eq!(found("/data/own"), None, "mounts of the whole disk do not count");
        assert_eq!(found("/data/shared").as_deref(), Some("/pods/1"));
        assert_eq!(found("/data/shared/x").as_deref(), Some("/pods/1"));
        assert_eq!(found("/data/sharedness"), None);
        assert_eq!(found("/data/deep").as_deref(), Some("/pods/2"));
        assert_eq!(found("/data/deep/other"), None);
        assert_eq!(found("/pods/1"), None, "its own mount, and whole disks");
        assert_eq!(found("/host/models/a"), None);
        assert_eq!(found("/models/a").as_deref(), Some("/host/models"));
    }
}
