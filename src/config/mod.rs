//! The configuration file (`--config`), parsed and validated once.
//!
//! A `Config` is always valid: every value is checked while its line is known, and
//! has the type of the part that uses it.

mod amount;
mod fields;
mod prefetch;
mod report;
mod size;
mod whole;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

pub use amount::{Amount, MinFree, Percent};
pub use size::parse_size;
pub use whole::RecordedConfig;

use crate::download::{Concurrency, EngineOptions, Verify};
use crate::manage::PrefetchModel;
use crate::policy::Rule;
use crate::resolve::{ListedBucket, ResolveLimits};
use crate::source::{AuthMethod, RegionName, RetryPolicy};
use crate::transport::{AddressRange, Proxy};
use crate::volume::WarmPageCache;
use crate::weights::SafetensorsCheck;
use crate::{Error, Result, text};

/// The driver's configuration. Omitted keys have their defaults.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Config {
    /// The cache of this node.
    pub cache: CacheSection,
    /// How models are downloaded and verified.
    pub download: Download,
    /// The limits of a single model.
    pub limits: LimitsSection,
    /// Where models come from.
    pub object_storage: ObjectStorageSection,
    /// Who may mount what.
    pub policy: PolicySection,
    /// Mount the newest cached revision when Object Storage cannot be reached.
    pub serve_stale_on_outage: bool,
    /// What to do with a model whose weights no loader could open.
    #[serde(deserialize_with = "fields::check_safetensors")]
    pub check_safetensors: SafetensorsCheck,
    /// Models that nodes download ahead; changes apply while the driver runs.
    #[serde(deserialize_with = "prefetch::models")]
    pub prefetch: Vec<PrefetchModel>,
}

/// The `cache` section.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CacheSection {
    /// The cache directory; absolute.
    #[serde(deserialize_with = "fields::directory")]
    pub dir: PathBuf,
    /// Refuse to start unless `dir` is a mount point of its own.
    pub require_mount: bool,
    /// The most the cache uses of its file system.
    #[serde(deserialize_with = "fields::max_size")]
    pub max_size: Amount,
    /// What stays free on its file system, whatever else fills it.
    #[serde(deserialize_with = "fields::min_free")]
    pub min_free: MinFree,
    /// The share of inodes that stays free.
    #[serde(deserialize_with = "fields::min_free_inodes")]
    pub min_free_inodes: Percent,
    /// Models unused for this long are evicted; `None` (0) keeps them
    /// while there is space.
    #[serde(rename = "idleTTL", deserialize_with = "fields::idle_ttl")]
    pub idle_ttl: Option<Duration>,
    /// The driver reads the whole cache again this often, to find bit rot;
    /// `None` (0) leaves that to `cache verify`.
    #[serde(deserialize_with = "fields::scrub_interval")]
    pub scrub_interval: Option<Duration>,
    /// Bytes per second that this scrub reads from the disk; 1 MiB to 1 TiB.
    #[serde(deserialize_with = "fields::scrub_rate")]
    pub scrub_rate: u64,
    /// When models are read ahead into the page cache.
    #[serde(deserialize_with = "fields::warm_page_cache")]
    pub warm_page_cache: WarmPageCache,
}

/// The `download` section.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Download {
    /// Requests at once, for all models together.
    #[serde(deserialize_with = "fields::parsed")]
    pub concurrency: Concurrency,
    /// Bytes per request, as [`EngineOptions::range_size`]; 1 MiB to 1 GiB.
    #[serde(deserialize_with = "fields::range_size")]
    pub range_size: u64,
    /// Bytes per second for all models together; `None` is no limit.
    #[serde(deserialize_with = "fields::limit")]
    pub bandwidth_limit: Option<u64>,
    /// Models downloaded at once; more wait; 1 to 1024.
    #[serde(deserialize_with = "fields::workers")]
    pub max_models: usize,
    /// Which checksums are computed.
    #[serde(deserialize_with = "fields::verify")]
    pub verify: Verify,
    /// A download that no caller has asked for during this time ends; 1 s to 24 h.
    #[serde(deserialize_with = "fields::abandon_after")]
    pub abandon_after: Duration,
    /// The addresses of this node that connections to Object Storage take turns over; the
    /// system's choice if there are none.
    #[serde(deserialize_with = "fields::source_addresses")]
    pub source_addresses: Vec<AddressRange>,
}

/// The `limits` section.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct LimitsSection {
    /// Objects that a model may have; 1 to 10 million.
    #[serde(deserialize_with = "fields::max_objects")]
    pub max_objects: usize,
    /// Bytes that a model may have; `None` is no limit.
    #[serde(deserialize_with = "fields::limit")]
    pub max_model_size: Option<u64>,
}

/// The `objectStorage` section. What is `None` here comes from the environment or the identity.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ObjectStorageSection {
    /// How requests are signed.
    #[serde(deserialize_with = "fields::auth")]
    pub auth: AuthMethod,
    /// The region.
    #[serde(deserialize_with = "fields::optional_region")]
    pub region: Option<RegionName>,
    /// Replaces the region's Object Storage endpoint: a URL without a trailing slash, or the word
    /// for another host of the region.
    #[serde(deserialize_with = "fields::endpoint")]
    pub endpoint: Option<String>,
    /// The proxy in place of those that the environment names.
    #[serde(deserialize_with = "fields::proxy")]
    pub proxy: Option<Proxy>,
    /// Certificates to trust where a proxy is used; absolute.
    #[serde(deserialize_with = "fields::file")]
    pub proxy_ca_file: Option<PathBuf>,
    /// Whether pods may read with the API keys in their Secrets.
    pub pod_secrets: bool,
    /// The namespace of buckets that name none.
    #[serde(deserialize_with = "fields::optional_name")]
    pub namespace: Option<String>,
    /// Certificates to trust in addition to the system's; absolute.
    #[serde(deserialize_with = "fields::file")]
    pub ca_file: Option<PathBuf>,
    /// Buckets of other regions or tenancies that pods may name; each once.
    #[serde(deserialize_with = "fields::buckets")]
    pub buckets: Vec<ListedBucket>,
}

/// The `policy` section: the first rule that matches decides. Without rules
/// everything the driver can read is allowed; with rules the default is deny.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PolicySection {
    /// In the order of evaluation.
    pub rules: Vec<Rule>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            cache: CacheSection::default(),
            download: Download::default(),
            limits: LimitsSection::default(),
            object_storage: ObjectStorageSection::default(),
            policy: PolicySection::default(),
            serve_stale_on_outage: true,
            check_safetensors: SafetensorsCheck::Refuse,
            prefetch: Vec::new(),
        }
    }
}

impl Default for CacheSection {
    fn default() -> Self {
        const TENTH: Percent = Percent::new(10).expect("10 is a percentage");
        Self {
            dir: PathBuf::from("/var/lib/oci-model-csi"),
            require_mount: false,
            max_size: Amount::Percent(Percent::ALL),
            min_free: MinFree::Auto,
            min_free_inodes: TENTH,
            idle_ttl: None,
            scrub_interval: None,
            scrub_rate: 50 << 20,
            warm_page_cache: WarmPageCache::Never,
        }
    }
}

impl Default for Download {
    fn default() -> Self {
        Self {
            concurrency: Concurrency::Auto,
            range_size: 16 << 20,
            bandwidth_limit: None,
            max_models: 4,
            verify: Verify::Always,
            abandon_after: Duration::from_secs(600),
            source_addresses: Vec::new(),
        }
    }
}

impl Default for LimitsSection {
    fn default() -> Self {
        Self { max_objects: 100_000, max_model_size: None }
    }
}

/// The services' identity by default; the interactive commands have another.
impl Default for ObjectStorageSection {
    fn default() -> Self {
        Self {
            auth: AuthMethod::InstancePrincipal,
            region: None,
            endpoint: None,
            proxy: None,
            proxy_ca_file: None,
            pod_secrets: false,
            namespace: None,
            ca_file: None,
            buckets: Vec::new(),
        }
    }
}

impl Download {
    /// The options of the engine. `write_back`: the cache will sync what it downloads.
    pub fn engine(&self, write_back: bool) -> EngineOptions {
        EngineOptions {
            concurrency: self.concurrency,
            bandwidth: self.bandwidth_limit,
            range_size: self.range_size,
            verify: self.verify,
            write_back,
            retry: RetryPolicy::default(),
        }
    }
}

impl From<&LimitsSection> for ResolveLimits {
    fn from(section: &LimitsSection) -> Self {
        Self { max_objects: section.max_objects, max_bytes: section.max_model_size }
    }
}

impl Config {
    /// Reads the configuration file.
    ///
    /// # Errors
    /// `Invalid`, with the file and the system's reason, or with file, line,
    /// key and what would be right.
    pub fn load(path: &Path) -> Result<Self> {
        Self::parse(&Self::read(path)?, &path.display().to_string())
    }

    /// Reads the file's text, for [`Config::parse`]. Blocks.
    ///
    /// # Errors
    /// `Invalid`, with the file and the system's reason, or how the text is malformed.
    pub fn read(path: &Path) -> Result<String> {
        text::read(path).map_err(|why| {
            Error::invalid(format!("reading the configuration {}: {why}", path.display()))
        })
    }

    /// Parses a configuration; `file` is its name in errors.
    pub fn parse(text: &str, file: &str) -> Result<Self> {
        whole::check_not_empty(text, file)?;
        let config = serde_saphyr::from_str(text).map_err(|e| report::explain(file, text, &e))?;
        whole::check_rules(text, file)?;
        whole::check_login(text, &config, file)?;
        Ok(config)
    }
}

#[cfg(test)]
mod tests;
