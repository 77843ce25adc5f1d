//! The disk that the cache is on: which one, what else is on it, and whether it is one at all.

use std::path::Path;

use super::block::BlockDevice;
use super::system::LocalSystem;
use super::{CheckId, Finding};
use crate::cache::CacheDisk;
use crate::mount::mountinfo::MountEntry;

/// What to do about a disk that is not the cache's own.
const OWN_DISK: &str = "give the cache a disk of its own (docs/nodes.md: NVMe drives or a block \
                        volume, mounted at /mnt/models) and set config.cache.dir to its mount point";

/// Kinds of file systems that are no disk of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DiskPlace {
    Disk,
    Network,
    Memory,
    Container,
    Fuse,
}

impl DiskPlace {
    fn of(fs_type: &str) -> Self {
        match fs_type {
            "nfs" | "nfs4" | "cifs" | "smb3" | "ceph" | "9p" | "lustre" | "glusterfs"
            | "fuse.glusterfs" | "fuse.sshfs" | "fuse.s3fs" | "fuse.ocifs" | "afs" | "gfs2"
            | "ocfs2" | "beegfs" | "virtiofs" => Self::Network,
            "tmpfs" | "ramfs" => Self::Memory,
            "overlay" | "aufs" => Self::Container,
            fuse if fuse == "fuse" || fuse.starts_with("fuse.") => Self::Fuse,
            _ => Self::Disk,
        }
    }
}

pub(super) fn examine(
    disk: &CacheDisk,
    device: Option<&BlockDevice>,
    system: &LocalSystem,
) -> Vec<Finding> {
    let mount = match (&system.mounts, system.mount_of(&disk.existing)) {
        (Err(error), _) => return vec![Finding::skipped(CheckId::CacheDisk, error.message())],
        (Ok(_), None) => {
            let why = format!("no mount is known for {}", disk.existing.display());
            return vec![Finding::skipped(CheckId::CacheDisk, why)];
        }
        (Ok(_), Some(mount)) => mount,
    };
    let root = system.mount_of(Path::new("/"));
    let root = root.and_then(|root| BlockDevice::of(system, root));
    of_mount(disk, mount, device, root.as_ref())
}

fn of_mount(
    disk: &CacheDisk,
    mount: &MountEntry,
    device: Option<&BlockDevice>,
    root: Option<&BlockDevice>,
) -> Vec<Finding> {
    let on = shown(disk, mount, device);
    let mut findings = Vec::new();
    if mount.options.has("ro") || mount.super_options.has("ro") {
        findings.push(Finding::fault(
            CheckId::CacheDisk,
            format!("{on}, and mounted read-only"),
            format!(
                "read `dmesg`: the kernel makes a file system read-only when its disk fails; else \
                 `mount -o remount,rw {}`, or no readOnly in the DaemonSet's volume mount",
                mount.mount_point.display()
            ),
        ));
    }
    let place = DiskPlace::of(&mount.fs_type.to_string_lossy());
    findings.extend(no_disk(place, &on));
    if place == DiskPlace::Disk {
        findings.extend(of_device(&on, device));
        findings.extend(shared(disk, mount, &on, device, root));
    }
    if findings.is_empty() {
        findings.push(Finding::fine(CheckId::CacheDisk, on));
    }
    findings
}

/// `/mnt/models is on /dev/md127 (xfs at /mnt/models: RAID 0 of 2 NVMe drives)`.
fn shown(disk: &CacheDisk, mount: &MountEntry, device: Option<&BlockDevice>) -> String {
    let kind = device.map_or_else(String::new, |device| format!(": {}", device.kind));
    let source = match device {
        Some(device) => format!("/dev/{}", device.name),
        None => mount.source.display().to_string(),
    };
    format!(
        "{} is on {source} ({} at {}{kind})",
        disk.existing.display(),
        mount.fs_type.display(),
        mount.mount_point.display(),
    )
}

fn no_disk(place: DiskPlace, on: &str) -> Option<Finding> {
    let hurts = match place {
        DiskPlace::Disk => return None,
        DiskPlace::Network => {
            "a network file system: each pod reads its model over the network again, and two nodes \
             must never share a cache"
        }
        DiskPlace::Memory => {
            "memory: models take it from pods, and none is left after the node's next start"
        }
        DiskPlace::Container => {
            "the container's own file system: all models are lost when the container restarts"
        }
        DiskPlace::Fuse => "FUSE: every read of a model goes through a program that may end",
    };
    Some(Finding::warning(CheckId::CacheDisk, format!("{on}, {hurts}"), OWN_DISK))
}

fn of_device(on: &str, device: Option<&BlockDevice>) -> Vec<Finding> {
    let Some(device) = device else { return Vec::new() };
    let mut findings = Vec::new();
    if let Some((_, missing @ 1..)) = device.raid {
        findings.push(Finding::warning(
            CheckId::CacheDisk,
            format!("{on}, and {missing} of its members failed"),
            format!("`mdadm --detail /dev/{}` names the failed drive: replace it", device.name),
        ));
    }
    if device.rotates {
        let what = format!("{on}, a rotating disk: starts of models take minutes");
        findings.push(Finding::warning(CheckId::CacheDisk, what, OWN_DISK));
    }
    findings
}

/// What else is on the disk.
fn shared(
    disk: &CacheDisk,
    mount: &MountEntry,
    on: &str,
    device: Option<&BlockDevice>,
    root: Option<&BlockDevice>,
) -> Option<Finding> {
    let with = if disk.with_kubelet {
        "kubelet's directory is on it too: images, logs and models fill one disk, the boot volume \
         unless kubelet was moved"
            .to_owned()
    } else if disk.shared && mount.root != Path::new("/") {
        format!("as the directory {} of that disk, which others may fill too", mount.root.display())
    } else if disk.shared {
        "the node's root file system is on it too: the boot volume".to_owned()
    } else {
        let (device, root) = (device?, root?);
        let same = root.drives.iter().find(|drive| device.drives.contains(drive))?;
        format!("another partition of /dev/{same} has the node's root: they share its speed")
    };
    Some(Finding::warning(CheckId::CacheDisk, format!("{on}, and {with}"), OWN_DISK))
}

#[cfg(test)]
mod tests {
    use super::super::block::tests::bare_metal;
    use super::super::tests::disk;
    use super::*;
    use crate::doctor::Severity;

    const ROOT: &str = "20 1 8:3 / / rw shared:1 - xfs /dev/sda3 rw\n";

    /// What is found for a cache on the mount of this line, beside the node's root.
    fn found(line: &str, cache_disk: &CacheDisk) -> Vec<Finding> {
        let (_dir, system) = bare_metal(&format!("{line}\n{ROOT}"));
        let [mount, root] = system.mounts.as_ref().unwrap().entries() else { panic!("two mounts") };
        let device = |mount| BlockDevice::of(&system, mount);
        of_mount(cache_disk, mount, device(mount).as_ref(), device(root).as_ref())
    }

    #[test]
    fn each_kind_of_disk_has_its_finding() {
        use Severity::{Fault, Fine, Warning};
        let own = disk(1 << 40, 1 << 40);
        let shared = CacheDisk { shared: true, ..own.clone() };
        let kubelets = CacheDisk { with_kubelet: true, ..shared.clone() };
        for (line, disk, severity, part) in [
            ("9 20 9:127 / /mnt rw - xfs /dev/md127 rw", &own, Fine, "RAID 0 of 2 NVMe drives"),
            ("9 20 259:0 / /mnt rw - ext4 /dev/nvme0n1 rw", &own, Fine, "one NVMe drive"),
            ("9 20 9:127 / /mnt ro - xfs /dev/md127 rw", &own, Fault, "and mounted read-only"),
            ("9 20 9:127 / /mnt rw - xfs /dev/md127 ro", &own, Fault, "and mounted read-only"),
            ("9 20 8:3 / /mnt rw - xfs /dev/sda3 rw", &kubelets, Warning, "kubelet's directory"),
            ("9 20 8:3 / /mnt rw - xfs /dev/sda3 rw", &shared, Warning, "the boot volume"),
            ("9 20 8:3 /srv /mnt rw - xfs /dev/sda3 rw", &shared, Warning, "the directory /srv"),
            (
                "9 20 8:3 / /mnt rw - xfs /dev/sda3 rw",
                &own,
                Warning,
                "another partition of /dev/sda",
            ),
            ("9 20 0:50 / /mnt rw - nfs4 10.0.0.2:/e rw", &own, Warning, "a network file system"),
            ("9 20 0:51 / /mnt rw - tmpfs tmpfs rw", &shared, Warning, "memory"),
            (
                "9 20 0:40 / / rw - overlay overlay rw",
                &shared,
                Warning,
                "when the container restarts",
            ),
            ("9 20 0:52 / /mnt rw - fuse.mine mine rw", &own, Warning, "FUSE"),
        ] {
            let found = found(line, disk);
            assert_eq!((found.len(), found[0].severity), (1, severity), "{line}: {found:#?}");
            assert!(found[0].what.contains(part), "{part}: {found:#?}");
        }
    }

    #[test]
    fn a_raid_with_a_failed_member_and_a_rotating_disk_are_warnings() {
        let device = BlockDevice {
            name: "md0".to_owned(),
            raid: Some(("raid10".to_owned(), 1)),
            rotates: true,
            ..BlockDevice::default()
        };
        let found = of_device("/mnt is on /dev/md0", Some(&device));
        assert!(found[0].what.contains("1 of its members failed"), "{found:#?}");
        assert!(found[0].fix.as_ref().unwrap().contains("mdadm --detail /dev/md0"), "{found:#?}");
        assert!(found[1].what.contains("a rotating disk"), "{found:#?}");
    }
}
