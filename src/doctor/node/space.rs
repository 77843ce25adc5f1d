//! The room that the cache has for models.

use super::block::BlockDevice;
use super::{CheckId, Finding, NodeView};
use crate::cache::{CacheDisk, CacheLimits, DirectoryContent};
use crate::model::size_text;

/// Less room than this is worth a warning: a model of 8 billion parameters has 16 GB.
const SMALL: u64 = 20 << 30;

/// Fewer free inodes than this are worth a warning; a model takes four for each of its files.
const FEW_INODES: u64 = 10_000;

/// Partitions that take less than this share of their drive, in percent, leave room unused.
const PARTITIONED: u64 = 80;

pub(super) fn examine(
    view: &NodeView,
    disk: &CacheDisk,
    device: Option<&BlockDevice>,
    content: Option<DirectoryContent>,
) -> Vec<Finding> {
    let limits = match &view.limits {
        Ok(limits) => limits,
        Err(error) => {
            let why = format!("the limits of the cache are not known: {error}");
            return vec![Finding::skipped(CheckId::CacheSpace, why)];
        }
    };
    let room = Room::of(disk, limits, content);
    let mut findings: Vec<Finding> = [
        room.finding(),
        inodes(disk, limits),
        disk.warning_of_kubelet(limits.min_free).map(of_kubelet),
        device.and_then(unpartitioned),
    ]
    .into_iter()
    .flatten()
    .collect();
    if findings.is_empty() {
        let text = format!("{} for models: {}", size_text(room.bytes), sizes(disk, limits));
        findings.push(Finding::fine(CheckId::CacheSpace, text));
    }
    findings
}

/// The room for models.
struct Room<'a> {
    disk: &'a CacheDisk,
    /// What models may take now, or in all where the cache has some.
    bytes: u64,
    /// The most that models may take, were the disk empty otherwise.
    largest: u64,
    /// Whether the cache has models, which can be evicted.
    has_models: bool,
    /// What the driver keeps free.
    min_free: u64,
    sizes: String,
}

fn sizes(disk: &CacheDisk, limits: &CacheLimits) -> String {
    let fs = &disk.file_system;
    let max = limits
        .max_size
        .map_or_else(String::new, |max| format!(", cache.maxSize allows {}", size_text(max)));
    format!(
        "the file system of {} has {}, {} are free, cache.minFree keeps {} free{max}",
        disk.existing.display(),
        size_text(fs.total_bytes),
        size_text(fs.free_bytes),
        size_text(limits.min_free)
    )
}

impl<'a> Room<'a> {
    fn of(disk: &'a CacheDisk, limits: &CacheLimits, content: Option<DirectoryContent>) -> Self {
        let most = disk.file_system.total_bytes.saturating_sub(limits.min_free);
        let largest = limits.max_size.map_or(most, |max| max.min(most));
        let now = disk.file_system.free_bytes.saturating_sub(limits.min_free).min(largest);
        // The free space of a cache that is full of models says nothing: they can be evicted.
        let has_models = content == Some(DirectoryContent::Cache);
        let bytes = if has_models { largest } else { now };
        let min_free = limits.min_free;
        Self { disk, bytes, largest, has_models, min_free, sizes: sizes(disk, limits) }
    }

    fn finding(&self) -> Option<Finding> {
        const FIX: &str = "use a larger disk for config.cache.dir, or lower config.cache.minFree \
                           and raise config.cache.maxSize";
        let Self { disk, bytes, largest, sizes, .. } = self;
        if *largest == 0 {
            let what = format!("no room for models: {sizes}");
            return Some(Finding::fault(CheckId::CacheSpace, what, FIX));
        }
        if *bytes == 0 {
            let what = format!("other files leave no room for models: {sizes}");
            let fix = format!(
                "remove what fills the disk (`du -xh --max-depth=2 {}`), or {FIX}",
                disk.existing.display()
            );
            return Some(Finding::fault(CheckId::CacheSpace, what, fix));
        }
        let fs = &disk.file_system;
        if self.has_models && fs.free_bytes < self.min_free {
            // The driver evicts models until this much is free.
            let what = format!("less is free than the driver keeps free: {sizes}");
            let fix = format!(
                "pods use all models, or other files fill the disk: `oci-model-csi cache ls` shows the \
                 models, `du -xh --max-depth=2 {}` the rest",
                disk.existing.display()
            );
            return Some(Finding::warning(CheckId::CacheSpace, what, fix));
        }
        (*bytes < SMALL).then(|| {
            let what = format!("only {} for models: {sizes}", size_text(*bytes));
            Finding::warning(CheckId::CacheSpace, what, FIX)
        })
    }
}

fn inodes(disk: &CacheDisk, limits: &CacheLimits) -> Option<Finding> {
    let fs = &disk.file_system;
    let left = fs.free_inodes.saturating_sub(limits.min_free_inodes);
    // Some file systems make inodes as they are needed, and say 0.
    (fs.total_inodes > 0 && left < FEW_INODES).then(|| {
        let what = format!(
            "{left} inodes are left for models in {}: {} of {} are free, and \
             cache.minFreeInodes keeps {}",
            disk.existing.display(),
            fs.free_inodes,
            fs.total_inodes,
            limits.min_free_inodes
        );
        let fix = "format the disk with more inodes (mkfs.ext4 -i 16384) or as xfs, or remove \
                   small files from it (`df -i`)";
        match left {
            0 => Finding::fault(CheckId::CacheSpace, what, fix),
            _ => Finding::warning(CheckId::CacheSpace, what, fix),
        }
    })
}

/// The message ends with what to do.
fn of_kubelet(message: String) -> Finding {
    match message.rsplit_once(": ") {
        Some((what, fix)) => Finding::warning(CheckId::CacheSpace, what, fix),
        None => Finding::warning(CheckId::CacheSpace, message, "set config.cache.minFree to auto"),
    }
}

/// A drive that is larger than its partitions, as Oracle Linux leaves a larger boot volume.
fn unpartitioned(device: &BlockDevice) -> Option<Finding> {
    let (size, taken) = device.partitioned?;
    (taken < size / 100 * PARTITIONED).then(|| {
        let (drive, unused) = (device.drives.first().cloned().unwrap_or_default(), size - taken);
        Finding::warning(
            CheckId::CacheSpace,
            format!(
                "/dev/{drive} has {}, and its partitions take {}: {} are not used",
                size_text(size),
                size_text(taken),
                size_text(unused)
            ),
            "`sudo /usr/libexec/oci-growfs -y` on Oracle Linux, growpart elsewhere; for new nodes \
             deploy/examples/boot-volume-cloud-init.sh",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{disk, view};
    use super::*;
    use crate::doctor::Severity;

    const GIB: u64 = 1 << 30;

    fn found(disk: &CacheDisk, limits: CacheLimits, content: DirectoryContent) -> Finding {
        let view = NodeView { limits: Ok(limits), ..view() };
        examine(&view, disk, None, Some(content)).swap_remove(0)
    }

    fn limits(min_free: u64, max_size: Option<u64>) -> CacheLimits {
        CacheLimits { min_free, min_free_inodes: 0, max_size }
    }

    #[test]
    fn the_room_for_models_is_what_the_limits_leave() {
        let large = disk(1000 * GIB, 900 * GIB);
        let fine = found(&large, limits(50 * GIB, None), DirectoryContent::Empty);
        assert_eq!(fine.severity, Severity::Fine);
        assert!(fine.what.starts_with("850 GiB for models"), "{}", fine.what);
        let used = found(&large, limits(50 * GIB, None), DirectoryContent::Cache);
        assert!(used.what.starts_with("950 GiB for models"), "{}", used.what);
        let capped = found(&large, limits(50 * GIB, Some(5 * GIB)), DirectoryContent::Cache);
        assert_eq!(capped.severity, Severity::Warning);
        assert!(capped.what.starts_with("only 5 GiB for models"), "{}", capped.what);
    }

    #[test]
    fn a_disk_that_others_have_filled_is_a_fault_unless_models_did() {
        let full = disk(100 * GIB, 4 * GIB);
        let others = found(&full, limits(5 * GIB, None), DirectoryContent::Empty);
        assert_eq!(others.severity, Severity::Fault);
        assert!(others.what.starts_with("other files leave no room"), "{}", others.what);
        let models = found(&full, limits(5 * GIB, None), DirectoryContent::Cache);
        assert_eq!(models.severity, Severity::Warning, "{}", models.what);
        assert!(models.what.starts_with("less is free than the driver keeps"), "{}", models.what);
        let enough = found(&full, limits(3 * GIB, None), DirectoryContent::Cache);
        assert_eq!(enough.severity, Severity::Fine, "{}", enough.what);
        let nothing = found(&full, limits(200 * GIB, None), DirectoryContent::Cache);
        assert!(nothing.what.starts_with("no room for models"), "{}", nothing.what);
    }

    #[test]
    fn a_lack_of_inodes_is_reported_before_a_model_meets_it() {
        let mut few = disk(1000 * GIB, 900 * GIB);
        few.file_system.total_inodes = 20_000;
        few.file_system.free_inodes = 9_000;
        let warning = found(&few, limits(GIB, None), DirectoryContent::Cache);
        assert_eq!(warning.severity, Severity::Warning);
        few.file_system.free_inodes = 0;
        let fault = found(&few, limits(GIB, None), DirectoryContent::Cache);
        assert_eq!(fault.severity, Severity::Fault);
        assert!(fault.what.starts_with("0 inodes are left"), "{}", fault.what);
    }

    #[test]
    fn a_boot_volume_that_was_not_grown_is_reported_with_the_command() {
        let device = BlockDevice {
            drives: vec!["sda".to_owned()],
            partitioned: Some((200 * GIB, 46 * GIB)),
            ..BlockDevice::default()
        };
        let found = unpartitioned(&device).unwrap();
        assert!(found.what.contains("154 GiB are not used"), "{}", found.what);
        assert!(found.fix.unwrap().contains("oci-growfs"));
        let grown = BlockDevice { partitioned: Some((200 * GIB, 199 * GIB)), ..device };
        assert_eq!(unpartitioned(&grown), None);
    }
}
