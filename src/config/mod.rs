//! The configuration file (`--config`), parsed and validated once.
//!
//! A `Config` is always valid: every value is checked while its line is known.

mod amount;
mod fields;
mod report;
mod rule;
mod whole;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use serde::Deserialize;

pub use amount::{Amount, MinFree, Percent, parse_size};

pub use rule::RuleSection;
pub use whole::RecordedConfig;

use crate::model::{ModelUri, nearest};
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
    pub check_safetensors: CheckSafetensors,
    /// Models that every node downloads ahead; changes apply while the driver runs.
    #[serde(deserialize_with = "fields::models")]
    pub prefetch: Vec<ModelUri>,
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
    pub scrub_rate: ByteSize,
}

/// The `download` section.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Download {
    /// Connections at once, for all models together; 1 to 1024.
    #[serde(deserialize_with = "fields::workers")]
    pub concurrency: u32,
    /// Bytes per request; 1 MiB to 1 GiB.
    #[serde(deserialize_with = "fields::range_size")]
    pub range_size: ByteSize,
    /// Bytes per second for all models together; `None` is no limit.
    #[serde(deserialize_with = "fields::limit")]
    pub bandwidth_limit: Option<ByteSize>,
    /// Models downloaded at once; more wait; 1 to 1024.
    #[serde(deserialize_with = "fields::workers")]
    pub max_models: u32,
    /// Which checksums are computed.
    #[serde(deserialize_with = "fields::verify")]
    pub verify: VerifySetting,
    /// A download that no caller has asked for during this time ends; 1 s to 24 h.
    #[serde(deserialize_with = "fields::abandon_after")]
    pub abandon_after: Duration,
}

/// What to do with a model whose weights no loader could open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckSafetensors {
    /// Do not publish it.
    Refuse,
    /// Publish it, with a warning.
    Warn,
    /// Do not check it.
    Ignore,
}

/// Which checksums of an object are compared before its bytes are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VerifySetting {
    /// The best one that the object has.
    Always,
    /// As `Always`, without MD5 where the object is over 1 GiB.
    Cheap,
    /// As `Always`, and refuses objects without a usable checksum.
    Strict,
}

/// The `limits` section.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct LimitsSection {
    /// Objects that a model may have; 1 to 10 million.
    #[serde(deserialize_with = "fields::max_objects")]
    pub max_objects: u32,
    /// Bytes that a model may have; `None` is no limit.
    #[serde(deserialize_with = "fields::limit")]
    pub max_model_size: Option<ByteSize>,
}

/// The `objectStorage` section. What is `None` here comes from the environment or the identity.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ObjectStorageSection {
    /// How requests are signed.
    #[serde(deserialize_with = "fields::auth")]
    pub auth: AuthName,
    /// The region.
    #[serde(deserialize_with = "fields::optional_name")]
    pub region: Option<String>,
    /// Replaces the region's Object Storage endpoint; without a trailing slash.
    #[serde(deserialize_with = "fields::endpoint")]
    pub endpoint: Option<String>,
    /// The namespace of buckets that name none.
    #[serde(deserialize_with = "fields::optional_name")]
    pub namespace: Option<String>,
    /// Certificates to trust in addition to the system's; absolute.
    #[serde(deserialize_with = "fields::file")]
    pub ca_file: Option<PathBuf>,
    /// Buckets of other regions or tenancies that pods may name; each once.
    #[serde(deserialize_with = "fields::buckets")]
    pub buckets: Vec<BucketSection>,
}

/// A bucket with a route of its own.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BucketSection {
    /// The bucket's name.
    #[serde(deserialize_with = "fields::name")]
    pub name: String,
    /// Its namespace, if not the driver's.
    #[serde(default, deserialize_with = "fields::optional_name")]
    pub namespace: Option<String>,
    /// Its region, if not the driver's.
    #[serde(default, deserialize_with = "fields::optional_name")]
    pub region: Option<String>,
    /// Replaces its region's endpoint; without a trailing slash.
    #[serde(default, deserialize_with = "fields::endpoint")]
    pub endpoint: Option<String>,
    /// How its requests are signed, if not as the driver's.
    #[serde(default, deserialize_with = "fields::optional_auth")]
    pub auth: Option<AuthName>,
}

/// The `policy` section: the first rule that matches decides. Without rules
/// everything the driver can read is allowed; with rules the default is deny.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PolicySection {
    /// In the order of evaluation.
    pub rules: Vec<RuleSection>,
}

/// The name of a way to sign requests, spelled as in the oci CLI's `--auth`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AuthName(String);

impl AuthName {
    const KNOWN: [&str; 7] = [
        "auto",
        "api_key",
        "security_token",
        "instance_principal",
        "resource_principal",
        "oke_workload_identity",
        "none",
    ];

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for AuthName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if Self::KNOWN.contains(&text) {
            return Ok(Self(text.to_owned()));
        }
        let hint = nearest(text, Self::KNOWN)
            .map(|nearest| format!("did you mean `{nearest}`? "))
            .unwrap_or_default();
        Err(format!("unknown auth `{text}`; {hint}valid: {}", Self::KNOWN.join(", ")))
    }
}

impl fmt::Display for AuthName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The services' default; the interactive commands have another.
impl Default for AuthName {
    fn default() -> Self {
        Self("instance_principal".to_owned())
    }
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
            check_safetensors: CheckSafetensors::Refuse,
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
            scrub_rate: ByteSize::mib(50),
        }
    }
}

impl Default for Download {
    fn default() -> Self {
        Self {
            concurrency: 16,
            range_size: ByteSize::mib(16),
            bandwidth_limit: None,
            max_models: 4,
            verify: VerifySetting::Always,
            abandon_after: Duration::from_secs(600),
        }
    }
}

impl Default for LimitsSection {
    fn default() -> Self {
        Self { max_objects: 100_000, max_model_size: None }
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
        Ok(config)
    }
}

#[cfg(test)]
mod tests;
