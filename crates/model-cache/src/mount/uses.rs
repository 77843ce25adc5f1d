//! The mounts that show a part of a directory, whatever made them.

use std::path::{Path, PathBuf};

use super::mountinfo::MountTable;
use super::{lookup_failed, mount_id, open_path, resolve};
use crate::{Error, Result};

/// A mount whose root is a directory, or something below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Use {
    /// The mount's id in mountinfo.
    pub id: u64,
    /// The mount's root, relative to the directory in question.
    pub root: PathBuf,
    /// Where it is mounted.
    pub target: PathBuf,
}

/// The mounts that show `dir` or a part of it: binds of this process, of an earlier
/// one, and of others (kubelet's `subPath` binds show a directory or a single
/// file of a tree). Roots follow renames; a root without a name cannot be
/// assigned and is left out. The mount through which `dir` is reached does not count.
///
/// Only the table is read: a mount point that does not answer blocks no caller.
///
/// # Errors
/// When the kernel's answers cannot be read: then nothing is known, and
/// everything must be treated as in use.
pub fn uses_of(dir: &Path) -> Result<Vec<Use>> {
    let doing = |error| lookup_failed(dir, &error);
    let id = mount_id(&open_path(dir, 0).map_err(doing)?).map_err(doing)?;
    let Some(here) = resolve(dir).map_err(doing)? else { return Ok(Vec::new()) };
    let table = MountTable::read()?;
    uses_in(&table, id, &here).ok_or_else(|| {
        Error::internal(format!("the mount that {} is on is not in mountinfo", dir.display()))
    })
}

fn uses_in(table: &MountTable, id: u64, here: &Path) -> Option<Vec<Use>> {
    let home = table.by_id(id)?;
    let below_mount = here.strip_prefix(&home.mount_point).ok()?;
    // Joining an empty path would leave a trailing slash.
    let in_fs = match below_mount.as_os_str().is_empty() {
        true => home.root.clone(),
        false => home.root.join(below_mount),
    };
    let uses = table.on_device(home.device).filter(|entry| entry.id != id);
    let uses = uses.filter_map(|entry| {
        let root = entry.root.strip_prefix(&in_fs).ok()?.to_owned();
        Some(Use { id: entry.id, root, target: entry.mount_point.clone() })
    });
    Some(uses.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
20 1 8:1 / / rw - ext4 /dev/sda1 rw
21 20 8:2 / /data rw - ext4 /dev/sdb rw
22 20 8:2 /cache/models/k/tree /pods/a/mount ro - ext4 /dev/sdb rw
23 20 8:2 /cache/models/k/tree/config.json /pods/a/subpath ro - ext4 /dev/sdb rw
24 20 8:2 /cache/trash/k.0/tree /pods/b/mount ro - ext4 /dev/sdb rw
25 20 8:2 /cachet/models/x /elsewhere rw - ext4 /dev/sdb rw
26 20 8:1 /cache/models/k/tree /other-disk ro - ext4 /dev/sda1 rw
27 20 8:2 /cache /var/lib/cache rw - ext4 /dev/sdb rw
";

    fn roots(id: u64, here: &str) -> Vec<String> {
        let table = MountTable::parse(TABLE.as_bytes()).unwrap();
        let uses = uses_in(&table, id, Path::new(here)).unwrap();
        uses.into_iter().map(|one| one.root.display().to_string()).collect()
    }

    #[test]
    fn every_bind_of_a_part_is_a_use_whatever_part_it_is() {
        let expected = ["models/k/tree", "models/k/tree/config.json", "trash/k.0/tree", ""];
        assert_eq!(roots(21, "/data/cache"), expected);
        assert_eq!(roots(27, "/var/lib/cache"), expected[..3], "seen through a bind");
    }
}
