//! The node half: the cache's disk, kubelet, the kernel, and the running driver.
//!
//! [`examine`] looks at the node that this process is on, [`ask_driver`] asks the driver that
//! runs there. Neither changes anything, but for a small file in the cache that is removed again.

mod block;
mod directory;
mod disk;
mod driver;
mod failures;
mod file_system;
mod kernel;
mod kubelet;
mod registration;
mod selinux;
mod space;
mod system;

use std::fs;
use std::path::PathBuf;

use super::{CheckId, Finding, tidy};
use crate::cache::{CacheDisk, CacheLimits};
use crate::error::Result;
use system::LocalSystem;

pub use driver::ask_driver;

/// Where to look on a node.
#[derive(Debug, Clone)]
pub struct NodeView {
    /// `cache.dir`, or `--cache-dir`.
    pub cache_dir: PathBuf,
    /// `cache.requireMount`.
    pub require_mount: bool,
    /// The limits of the cache on its disk, or why they are not known.
    pub limits: Result<CacheLimits>,
    /// `--kubelet-dir`.
    pub kubelet_dir: PathBuf,
    /// `--driver-name`.
    pub driver_name: String,
    /// `--csi-endpoint`; `None` looks where the chart has it, in the container and on the node.
    pub csi_socket: Option<PathBuf>,
    /// `--admin-endpoint`, or the default in the cache; `None` where that path is too long.
    pub admin_socket: Option<PathBuf>,
    /// Whether a small file may be written to the cache's directory, and removed.
    pub may_write: bool,
}

impl NodeView {
    /// Whether kubelet's directory is here, so that this is a node, or the driver's container.
    fn has_kubelet(&self) -> bool {
        self.kubelet_dir.is_dir()
    }
}

/// Looks at the node. Blocks for a few file operations, and for two syncs where the cache's
/// directory exists and may be written to.
///
/// Where neither kubelet nor a cache is, there is one finding that says so.
pub fn examine(view: &NodeView) -> Vec<Finding> {
    tidy(examine_in(view, &LocalSystem::here()))
}

fn examine_in(view: &NodeView, system: &LocalSystem) -> Vec<Finding> {
    let mut findings = kubelet::directory(view, system);
    let has_cache = fs::symlink_metadata(&view.cache_dir).is_ok();
    if !view.has_kubelet() && !has_cache && !view.require_mount {
        return findings;
    }
    findings.extend(cache(view, system));
    if view.has_kubelet() {
        findings.extend(kubelet::propagation(view, system));
        findings.extend(kernel::calls(view, system));
        findings.extend(kernel::descriptors(system));
    }
    findings
}

/// What there is to say about the cache and its disk.
fn cache(view: &NodeView, system: &LocalSystem) -> Vec<Finding> {
    let (content, mut findings) = directory::examine(view, system);
    match CacheDisk::of(&view.cache_dir, &view.kubelet_dir) {
        Ok(cache_disk) => {
            let device = system.mount_of(&cache_disk.existing);
            let device = device.and_then(|mount| block::BlockDevice::of(system, mount));
            findings.extend(disk::examine(&cache_disk, device.as_ref(), system));
            findings.extend(space::examine(view, &cache_disk, device.as_ref(), content));
            findings.extend(file_system::examine(view, &cache_disk, content, system));
            findings.extend(selinux::examine(view, system));
        }
        Err(error) => {
            let why = format!("the disk of {} is not known: {error}", view.cache_dir.display());
            findings.push(Finding::skipped(CheckId::CacheDisk, why));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::FileSystem;
    use crate::doctor::Severity;

    /// A view of nothing that exists.
    pub(super) fn view() -> NodeView {
        NodeView {
            cache_dir: "/nowhere/cache".into(),
            require_mount: false,
            limits: Ok(CacheLimits { min_free: 0, min_free_inodes: 0, max_size: None }),
            kubelet_dir: "/nowhere/kubelet".into(),
            driver_name: "oci-model-csi.dev".to_owned(),
            csi_socket: None,
            admin_socket: None,
            may_write: true,
        }
    }

    /// A disk of this size, of which so many bytes are free.
    pub(super) fn disk(total_bytes: u64, free_bytes: u64) -> CacheDisk {
        let file_system = FileSystem { total_bytes, free_bytes, total_inodes: 0, free_inodes: 0 };
        CacheDisk { existing: "/mnt".into(), file_system, shared: false, with_kubelet: false }
    }

    #[test]
    fn a_laptop_gets_one_finding_and_it_is_no_fault() {
        let found = examine(&view());
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!((found[0].check, found[0].severity), (CheckId::Kubelet, Severity::Skipped));
        assert!(found[0].what.contains("this is no Kubernetes node"), "{found:?}");
    }

    #[test]
    fn a_node_whose_proc_cannot_be_read_gets_findings_that_say_so() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("kubelet/pods")).unwrap();
        fs::create_dir_all(dir.path().join("kubelet/plugins_registry")).unwrap();
        let cache_dir = dir.path().join("cache");
        let view = NodeView { cache_dir, kubelet_dir: dir.path().join("kubelet"), ..view() };
        let (_empty, system) = system::tests::imitated(&[]);
        let found = examine_in(&view, &system);
        let of = |check| found.iter().find(|one| one.check == check).unwrap();
        for check in [CheckId::Propagation, CheckId::CacheDisk, CheckId::Kernel] {
            assert_eq!(of(check).severity, Severity::Skipped, "{:?}", of(check));
        }
        assert!(of(CheckId::Propagation).what.contains("proc/self/mountinfo"), "{found:?}");
    }
}
