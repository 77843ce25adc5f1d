//! The directory of the cache: its options, which depend on its file system, and the
//! socket in it.

use std::path::Path;

use bytesize::ByteSize;

use crate::cache::{CacheDisk, CacheLimits, CacheOptions, KeepRevisions, Layout};
use crate::config::{Amount, Config, Percent};
use crate::error::Result;
use crate::metrics::Metrics;
use crate::model::NamespaceName;
use crate::socket::SocketEndpoint;

/// Options of the cache; `dir` overrides the configured directory.
pub(super) fn options(
    config: &Config,
    dir: Option<&Path>,
    kubelet: &Path,
    metrics: &Metrics,
) -> Result<CacheOptions> {
    let dir = dir.unwrap_or(&config.cache.dir).to_owned();
    let disk = CacheDisk::of(&dir, kubelet)?;
    metrics.cache_shared_file_system.set(i64::from(disk.shared));
    if disk.shared {
        tracing::warn!(
            cache = %dir.display(),
            "the cache shares its file system with the node's root or with kubelet: cache.minFree \
             keeps it above kubelet's eviction thresholds; give the cache its own file system if \
             you can"
        );
    }
    let limits = limits(config, &disk);
    if let Some(warning) = disk.warning_of_kubelet(limits.min_free) {
        tracing::warn!(cache = %dir.display(), "{warning}");
    }
    Ok(CacheOptions {
        require_mount: config.cache.require_mount,
        limits,
        idle_ttl: config.cache.idle_ttl,
        max_models: config.download.max_models,
        abandon_after: config.download.abandon_after,
        keep_revisions: kept(config),
        dir,
    })
}

/// The revisions to keep. Until the labels of the node are known, all entries may be its own.
fn kept(config: &Config) -> Vec<KeepRevisions> {
    let own = config.object_storage.namespace.as_deref();
    let own = own.and_then(|name| NamespaceName::parse(name).ok());
    config.prefetch.iter().filter_map(|model| model.kept(own.as_ref())).collect()
}

/// The limits of a cache on this disk.
pub(super) fn limits(config: &Config, disk: &CacheDisk) -> CacheLimits {
    let total = ByteSize::b(disk.file_system.total_bytes);
    CacheLimits {
        min_free: config.cache.min_free.resolve(total, disk.shared).as_u64(),
        min_free_inodes: config.cache.min_free_inodes.of(disk.file_system.total_inodes),
        max_size: (config.cache.max_size != Amount::Percent(Percent::ALL))
            .then(|| config.cache.max_size.resolve(total).as_u64()),
    }
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
