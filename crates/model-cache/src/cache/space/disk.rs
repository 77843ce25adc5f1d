//! Which file system a cache is on, and what kubelet does there: its limits depend on both.

use std::path::{Path, PathBuf};

use super::reservations::FileSystem;
use crate::error::Result;
use crate::model::size_text;

/// The free space of a disk, in percent, below which kubelet evicts pods:
/// `imagefs.available`, the higher of its defaults (Kubernetes documentation,
/// "Node-pressure Eviction").
const KUBELET_EVICTS_AT: u64 = 15;

/// The disk of a cache.
#[derive(Debug, Clone)]
pub struct CacheDisk {
    /// The cache's directory, or the nearest one above it that exists.
    pub existing: PathBuf,
    /// Its file system.
    pub file_system: FileSystem,
    /// Whether kubelet or the node's root file system are, or may be, on it too.
    pub shared: bool,
    /// Whether kubelet's directory or its pods are known to be on it.
    pub with_kubelet: bool,
}

impl CacheDisk {
    /// The disk of the cache in `dir`, which may not exist yet, on a node whose kubelet uses
    /// `kubelet`.
    ///
    /// # Errors
    /// When the kernel's answers about the file system or the mounts cannot be read.
    pub fn of(dir: &Path, kubelet: &Path) -> Result<Self> {
        let existing = dir.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
        let pods = kubelet.join("pods");
        Ok(Self {
            existing: existing.to_owned(),
            file_system: FileSystem::of(existing)?,
            shared: FileSystem::is_shared(existing, &[Path::new("/"), kubelet, &pods])?,
            with_kubelet: [kubelet, &pods].iter().any(|dir| FileSystem::is_same(existing, dir)),
        })
    }

    /// What is wrong with a `minFree` below kubelet's own eviction threshold, on kubelet's disk.
    pub fn warning_of_kubelet(&self, min_free: u64) -> Option<String> {
        let threshold = self.file_system.total_bytes / 100 * KUBELET_EVICTS_AT;
        (self.with_kubelet && min_free < threshold).then(|| {
            format!(
                "cache.minFree keeps {} free on kubelet's disk, and kubelet evicts pods when less \
                 than {KUBELET_EVICTS_AT} % of it, {}, is free (imagefs.available; \
                 nodefs.available at 10 %): set cache.minFree above that, or give the cache its \
                 own disk",
                size_text(min_free),
                size_text(threshold)
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_min_free_below_kubelets_threshold_is_reported_with_both_numbers() {
        let disk = |with_kubelet| {
            let file_system = FileSystem {
                total_bytes: 200 << 30,
                free_bytes: 0,
                total_inodes: 0,
                free_inodes: 0,
            };
            CacheDisk { existing: "/".into(), file_system, shared: true, with_kubelet }
        };
        assert_eq!(disk(true).warning_of_kubelet(40 << 30), None, "auto: 20 %");
        assert_eq!(disk(false).warning_of_kubelet(10 << 30), None, "a disk of its own");
        let warning = disk(true).warning_of_kubelet(10 << 30).unwrap();
        assert!(warning.contains("10 GiB") && warning.contains("15 % of it, 30 GiB"), "{warning}");
    }
}
