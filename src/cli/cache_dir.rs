//! The directory of the cache: its options, which depend on its file system, and the
//! socket in it.

use std::path::Path;

use bytesize::ByteSize;

use crate::cache::{CacheLimits, CacheOptions, FileSystem, Layout};
use crate::config::{Amount, Config, Percent};
use crate::error::Result;
use crate::metrics::Metrics;
use crate::model::size_text;
use crate::socket::SocketEndpoint;

/// Options of the cache; `dir` overrides the configured directory.
pub(super) fn options(
    config: &Config,
    dir: Option<&Path>,
    kubelet: &Path,
    metrics: &Metrics,
) -> Result<CacheOptions> {
    let dir = dir.unwrap_or(&config.cache.dir).to_owned();
    // The directory may not exist yet; its file system does.
    let existing = dir.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let fs = FileSystem::of(existing)?;
    let pods = kubelet.join("pods");
    let shared = FileSystem::is_shared(existing, &[Path::new("/"), kubelet, &pods])?;
    metrics.cache_shared_file_system.set(i64::from(shared));
    if shared {
        tracing::warn!(
            cache = %dir.display(),
            "the cache shares its file system with the node's root or with kubelet: cache.minFree \
             keeps it above kubelet's eviction thresholds; give the cache its own file system if \
             you can"
        );
    }
    let total = ByteSize::b(fs.total_bytes);
    let min_free = config.cache.min_free.resolve(total, shared).as_u64();
    let is_kubelets = [kubelet, &pods].iter().any(|dir| FileSystem::is_same(existing, dir));
    if let Some(warning) =
        below_kubelets_threshold(min_free, fs.total_bytes).filter(|_| is_kubelets)
    {
        tracing::warn!(cache = %dir.display(), "{warning}");
    }
    Ok(CacheOptions {
        require_mount: config.cache.require_mount,
        limits: CacheLimits {
            min_free,
            min_free_inodes: config.cache.min_free_inodes.of(fs.total_inodes),
            max_size: (config.cache.max_size != Amount::Percent(Percent::ALL))
                .then(|| config.cache.max_size.resolve(total).as_u64()),
        },
        idle_ttl: config.cache.idle_ttl,
        max_models: config.download.max_models,
        abandon_after: config.download.abandon_after,
        dir,
    })
}

/// The free space of a disk, in percent, below which kubelet evicts pods:
/// `imagefs.available`, the higher of its defaults (Kubernetes documentation,
/// "Node-pressure Eviction").
const KUBELET_EVICTS_AT: u64 = 15;

/// Warns of a `min_free` below kubelet's own eviction threshold on kubelet's disk.
fn below_kubelets_threshold(min_free: u64, total: u64) -> Option<String> {
    let threshold = total / 100 * KUBELET_EVICTS_AT;
    (min_free < threshold).then(|| {
        format!(
            "cache.minFree keeps {} free on kubelet's disk, and kubelet evicts pods when less than \
             {KUBELET_EVICTS_AT} % of it, {}, is free (imagefs.available; nodefs.available at \
             10 %): set cache.minFree above that, or give the cache its own disk",
            size_text(min_free),
            size_text(threshold)
        )
    })
}

/// The default endpoint at which the driver of this cache takes commands.
///
/// # Errors
/// `Invalid` if the path of the directory is too long for a socket in it.
pub(super) fn admin_endpoint(cache: &Path) -> Result<SocketEndpoint> {
    let parsed =
        format!("unix://{}", Layout::new(cache).admin_socket().display()).parse::<SocketEndpoint>();
    parsed.map_err(|error| error.context("the socket for commands in the cache"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_min_free_below_kubelets_threshold_is_reported_with_both_numbers() {
        let total = 200 << 30;
        assert_eq!(below_kubelets_threshold(40 << 30, total), None, "auto: 20 %");
        let warning = below_kubelets_threshold(10 << 30, total).unwrap();
        assert!(warning.contains("10 GiB") && warning.contains("15 % of it, 30 GiB"), "{warning}");
    }
}
