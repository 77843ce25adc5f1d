//! The block device below a file system, as sysfs describes it.

use std::fs;
use std::path::{Path, PathBuf};

use super::system::LocalSystem;
use crate::mount::mountinfo::MountEntry;

/// How many devices may lie on one another: a volume on a RAID on partitions on drives.
const DEPTH: u32 = 6;

/// A block device, and the drives below it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct BlockDevice {
    /// Its name below `/dev`, such as `md127` or `sda3`.
    pub(super) name: String,
    /// What it is, in words: "RAID 0 of 2 NVMe drives".
    pub(super) kind: String,
    /// The drives that it is on, each once, sorted.
    pub(super) drives: Vec<String>,
    /// The level and the number of missing members, of a RAID.
    pub(super) raid: Option<(String, u64)>,
    /// Whether a drive below it rotates. OCI's volumes claim to, and do not.
    pub(super) rotates: bool,
    /// Bytes of the drive, and of its partitions, where it has any.
    pub(super) partitioned: Option<(u64, u64)>,
}

impl BlockDevice {
    /// The device of a mount; `None` where there is none, or sysfs does not show it.
    pub(super) fn of(system: &LocalSystem, mount: &MountEntry) -> Option<Self> {
        let device = mount.device;
        // File systems of several devices have no number of their own: the source is one of them.
        let by_number = system.path(&format!("sys/dev/block/{}:{}", device.major, device.minor));
        let name = Path::new(&mount.source).file_name()?;
        let by_name = system.path("sys/class/block").join(name);
        let found = fs::canonicalize(if device.major == 0 { by_name } else { by_number });
        Some(Self::at(&found.ok()?))
    }

    fn at(directory: &Path) -> Self {
        let mut drives = Vec::new();
        drives_below(directory, DEPTH, &mut drives);
        drives.sort();
        drives.dedup();
        let raid = raid_of(directory);
        let kind = match &raid {
            Some((level, _)) => {
                format!("{} of {}", level.replace("raid", "RAID "), kind_of(&drives))
            }
            None => kind_of(&drives),
        };
        Self {
            name: name_of(directory),
            kind,
            raid,
            rotates: drives.iter().any(|drive| rotates(drive)),
            partitioned: match &drives[..] {
                [drive] => partitioned(drive),
                _ => None,
            },
            drives: drives.iter().map(|drive| name_of(drive)).collect(),
        }
    }
}

/// The whole drives at the bottom: partitions lead to their drive, mapped devices to theirs.
fn drives_below(directory: &Path, depth: u32, drives: &mut Vec<PathBuf>) {
    let below: Vec<PathBuf> = fs::read_dir(directory.join("slaves"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| fs::canonicalize(entry.path()).ok())
        .collect();
    if directory.join("partition").exists()
        && let Some(drive) = directory.parent()
    {
        drives_below(drive, depth.saturating_sub(1), drives);
    } else if below.is_empty() || depth == 0 {
        drives.push(directory.to_owned());
    } else {
        for device in &below {
            drives_below(device, depth - 1, drives);
        }
    }
}

/// `2 NVMe drives`, `a volume over iSCSI`, in words.
fn kind_of(drives: &[PathBuf]) -> String {
    let one = |drive: &PathBuf| {
        let (name, path) = (name_of(drive), drive.to_string_lossy().into_owned());
        let vendor = text(&drive.join("device/vendor"));
        match &*name {
            _ if name.starts_with("nvme") => "NVMe drive",
            _ if path.contains("/session") => "block volume over iSCSI",
            _ if vendor.as_deref() == Some("ORACLE") => "paravirtualized block volume",
            _ if name.starts_with("loop") => "file as a loop device",
            _ if name.starts_with("zram") || name.starts_with("ram") => "disk in memory",
            _ if name.starts_with("vd") => "virtual disk",
            _ => "disk",
        }
    };
    let mut kinds: Vec<&str> = drives.iter().map(one).collect();
    kinds.dedup();
    match (&kinds[..], drives.len()) {
        ([kind], 1) => format!("one {kind}"),
        ([kind], count) => format!("{count} {kind}s"),
        (_, count) => format!("{count} disks of different kinds"),
    }
}

fn raid_of(directory: &Path) -> Option<(String, u64)> {
    let level = text(&directory.join("md/level"))?;
    Some((level, number(&directory.join("md/degraded")).unwrap_or(0)))
}

fn rotates(drive: &Path) -> bool {
    let is_volume = text(&drive.join("device/vendor")).as_deref() == Some("ORACLE")
        || drive.to_string_lossy().contains("/session")
        || ["vd", "loop"].iter().any(|start| name_of(drive).starts_with(start));
    number(&drive.join("queue/rotational")) == Some(1) && !is_volume
}

/// Bytes of a drive and of all its partitions, if it has any. sysfs counts 512 bytes each.
fn partitioned(drive: &Path) -> Option<(u64, u64)> {
    let size = number(&drive.join("size"))?;
    let partitions: Vec<PathBuf> = fs::read_dir(drive)
        .ok()?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.join("partition").exists())
        .collect();
    let taken = partitions.iter().filter_map(|one| number(&one.join("size"))).sum::<u64>();
    (!partitions.is_empty()).then(|| (size.saturating_mul(512), taken.saturating_mul(512)))
}

fn name_of(directory: &Path) -> String {
    directory.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn text(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn number(path: &Path) -> Option<u64> {
    text(path)?.parse().ok()
}

#[cfg(test)]
pub(super) mod tests {
    use std::os::unix::fs::symlink;

    use super::super::system::tests::imitated;
    use super::*;

    /// The devices of a bare-metal shape: the boot volume over iSCSI, and a RAID of two drives.
    pub(in crate::doctor::node) fn bare_metal(mounts: &str) -> (tempfile::TempDir, LocalSystem) {
        let boot = "sys/devices/platform/host2/session1/target2:0:0/2:0:0:1/block/sda";
        let nvme = |n: u32| format!("sys/devices/pci0000:00/nvme/nvme{n}/nvme{n}n1");
        let md = "sys/devices/virtual/block/md127";
        let file = |directory: &str, name: &str| format!("{directory}/{name}");
        let made = [
            (file(boot, "size"), "419430400"),
            (file(boot, "queue/rotational"), "1"),
            (file(boot, "sda1/partition"), "1"),
            (file(boot, "sda1/size"), "204800"),
            (file(boot, "sda3/partition"), "3"),
            (file(boot, "sda3/size"), "95420416"),
            (file(&nvme(0), "size"), "7501476528"),
            (file(&nvme(0), "queue/rotational"), "0"),
            (file(&nvme(1), "size"), "7501476528"),
            (file(&nvme(1), "queue/rotational"), "0"),
            (file(md, "md/level"), "raid0"),
            (file(md, "md/degraded"), "0"),
            (file(md, "slaves/.keep"), ""),
            ("sys/dev/block/.keep".to_owned(), ""),
            ("sys/class/block/.keep".to_owned(), ""),
            ("proc/self/mountinfo".to_owned(), mounts),
        ];
        let files: Vec<(&str, &str)> = made.iter().map(|(path, text)| (&**path, *text)).collect();
        let (dir, system) = imitated(&files);
        let root = dir.path();
        fs::remove_file(root.join(md).join("slaves/.keep")).unwrap();
        for n in [0, 1] {
            symlink(root.join(nvme(n)), root.join(md).join(format!("slaves/nvme{n}n1"))).unwrap();
        }
        for (number, target) in
            [("8:3", file(boot, "sda3")), ("9:127", md.to_owned()), ("259:0", nvme(0))]
        {
            symlink(root.join(target), root.join("sys/dev/block").join(number)).unwrap();
        }
        symlink(root.join(nvme(1)), root.join("sys/class/block/nvme1n1")).unwrap();
        (dir, system)
    }

    fn device(line: &str) -> Option<BlockDevice> {
        let (_dir, system) = bare_metal(line);
        let mount = system.mounts.as_ref().unwrap().entries()[0].clone();
        BlockDevice::of(&system, &mount)
    }

    #[test]
    fn a_raid_of_nvme_drives_is_named_with_its_level() {
        let raid = device("20 1 9:127 / /mnt/models rw - xfs /dev/md127 rw\n").unwrap();
        assert_eq!(raid.kind, "RAID 0 of 2 NVMe drives");
        assert_eq!(raid.drives, ["nvme0n1", "nvme1n1"]);
        assert!(!raid.rotates && raid.partitioned.is_none());
    }

    #[test]
    fn a_partition_leads_to_its_drive_and_to_what_is_not_partitioned() {
        let boot = device("20 1 8:3 / / rw - xfs /dev/sda3 rw\n").unwrap();
        assert_eq!((&*boot.name, &*boot.kind), ("sda3", "one block volume over iSCSI"));
        assert_eq!(boot.drives, ["sda"]);
        let (size, taken) = boot.partitioned.unwrap();
        assert_eq!((size >> 30, taken >> 30), (200, 45));
        assert!(!boot.rotates, "a volume over the network claims to rotate");
    }

    #[test]
    fn a_file_system_without_a_number_of_its_own_is_found_by_its_source() {
        let found = device("20 1 0:44 / /mnt rw - btrfs /dev/nvme1n1 rw\n").unwrap();
        assert_eq!(found.kind, "one NVMe drive");
        assert_eq!(device("20 1 0:44 / /mnt rw - tmpfs tmpfs rw\n"), None);
        assert_eq!(device("20 1 7:7 / /mnt rw - ext4 /dev/loop7 rw\n"), None, "sysfs is silent");
    }
}
