//! From the administrator's configuration to the parts' options.

use std::path::Path;

use bytesize::ByteSize;

use crate::cache::{self, CacheOptions, FileSystem};
use crate::config::{self, Config};
use crate::csi::server::Endpoint;
use crate::download::{EngineOptions, Verify};
use crate::error::Result;
use crate::metrics::Metrics;
use crate::oci::RetryPolicy;
use crate::policy::{Policy, Rule};
use crate::volume::Limits;

/// How the engine works under this configuration.
pub(super) fn engine(config: &config::Download, write_back: bool) -> EngineOptions {
    EngineOptions {
        concurrency: usize::try_from(config.concurrency).unwrap_or(usize::MAX),
        bandwidth: config.bandwidth_limit.map(|limit| limit.as_u64()),
        range_size: config.range_size.as_u64(),
        verify: match config.verify {
            config::Verify::Always => Verify::Always,
            config::Verify::Cheap => Verify::Cheap,
            config::Verify::Strict => Verify::Strict,
        },
        write_back,
        retry: RetryPolicy::default(),
    }
}

/// What a model may be under this configuration.
pub(super) fn limits(config: &config::Limits) -> Limits {
    Limits {
        max_objects: usize::try_from(config.max_objects).unwrap_or(usize::MAX),
        max_bytes: config.max_model_size.map(|size| size.as_u64()),
    }
}

/// Who may mount what under this configuration.
pub(super) fn policy(config: &config::Policy) -> Policy {
    let rule = |rule: &config::Rule| Rule {
        namespaces: rule.namespaces.clone(),
        service_accounts: rule.service_accounts.clone(),
        object_storage_namespaces: rule.object_storage_namespaces.clone(),
        buckets: rule.buckets.clone(),
        prefixes: rule.prefixes.clone(),
        allow: rule.allow,
    };
    Policy::new(config.rules.iter().map(rule).collect())
}

/// The cache under this configuration; `dir` wins over the configured one.
pub(super) fn cache(
    config: &Config,
    dir: Option<&Path>,
    kubelet: &Path,
    metrics: &Metrics,
) -> Result<CacheOptions> {
    let dir = dir.unwrap_or(&config.cache.dir).to_owned();
    // The directory may not exist yet; its file system does.
    let standing = dir.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let fs = FileSystem::of(standing)?;
    let pods = kubelet.join("pods");
    let shared = FileSystem::is_shared(standing, &[Path::new("/"), kubelet, &pods])?;
    metrics.cache_shared_file_system.set(i64::from(shared));
    if shared {
        tracing::warn!(
            cache = %dir.display(),
            "the cache shares its file system with the node's root or with kubelet: cache.minFree \
             keeps it above kubelet's eviction thresholds; a file system of its own is better"
        );
    }
    let total = ByteSize::b(fs.total_bytes);
    Ok(CacheOptions {
        require_mount: config.cache.require_mount,
        limits: cache::Limits {
            min_free: config.cache.min_free.resolve(total, shared).as_u64(),
            min_free_inodes: config.cache.min_free_inodes.of(fs.total_inodes),
            max_size: (config.cache.max_size != config::Amount::Percent(config::Percent::ALL))
                .then(|| config.cache.max_size.resolve(total).as_u64()),
        },
        idle_ttl: config.cache.idle_ttl,
        max_models: usize::try_from(config.download.max_models).unwrap_or(usize::MAX),
        abandon_after: config.download.abandon_after,
        check_safetensors: config.check_safetensors,
        dir,
    })
}

/// Where the driver of this cache takes commands unless it is told otherwise.
///
/// # Errors
/// `Invalid` when the directory's path is too long for a socket in it.
pub(super) fn admin_endpoint(cache: &Path) -> Result<Endpoint> {
    let parsed = format!("unix://{}/admin.sock", cache.display()).parse::<Endpoint>();
    parsed.map_err(|error| error.context("a socket for commands in the cache"))
}
