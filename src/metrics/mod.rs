//! The driver's metrics, under the prefix `oci_model_csi_`. No label ever
//! names a pod, a model or an object.

mod plain;

use std::sync::OnceLock;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VerifyLabels {
    check: &'static str,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RpcLabels {
    method: &'static str,
    code: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    operation: &'static str,
    status: String,
}

type Seconds = Family<ResultLabel, Histogram, fn() -> Histogram>;
type RpcSeconds = Family<RpcLabels, Histogram, fn() -> Histogram>;

/// All metrics of one process.
pub struct Metrics {
    registry: Registry,
    /// Bytes received from Object Storage, repeated ones included.
    pub download_bytes: Counter,
    /// Duration of successful model downloads in seconds.
    pub download_duration: Histogram,
    /// Model downloads that are running.
    pub downloads_in_flight: Gauge,
    /// Answers 429 and 503 during downloads.
    pub object_storage_throttled: Counter,
    /// Current leases.
    pub leases: Gauge,
    /// The most bytes that the cache may use.
    pub cache_limit: Gauge,
    /// 1 where the cache shares its file system with the node's root or kubelet.
    pub cache_shared_file_system: Gauge,
    /// Blobs and models that were found damaged on the disk.
    pub cache_damaged: Counter,
    credential_refresh_failures: Counter,
    credential_expiry: Gauge,
    credential: OnceLock<Box<dyn Fn() -> CredentialState + Send + Sync>>,
    /// 1 while the configuration file is valid as it is now.
    pub config_valid: Gauge,
    /// When the configuration in use was read, in seconds since 1970.
    pub config_read: Gauge,
    /// Policy rules in force; with 0 every pod may mount what the driver can read.
    pub policy_rules: Gauge,
    cache_size: Family<StateLabel, Gauge>,
    cache_models: Family<StateLabel, Gauge>,
    cache_evictions: Family<ReasonLabel, Counter>,
    requests: Family<RequestLabels, Counter>,
    verify: Family<VerifyLabels, Counter>,
    publish: Family<ResultLabel, Counter>,
    model_warning: Family<ReasonLabel, Counter>,
    publish_duration: Seconds,
    rpc_duration: RpcSeconds,
}

/// The state of the driver's own credential.
#[derive(Debug, Clone, Copy, Default)]
pub struct CredentialState {
    /// Times that getting a new one failed.
    pub refresh_failures: u64,
    /// When the current one expires; `None` where it does not, or there is none yet.
    pub expires_at: Option<SystemTime>,
}

/// How a publish got its model: the label of `publish_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PublishResult {
    /// The model was in the cache.
    Hit,
    /// It joined a download that was already running.
    Joined,
    /// The model was downloaded.
    Downloaded,
    /// An older revision was mounted, since Object Storage could not be reached.
    Stale,
    /// The publish failed.
    Failed,
}

impl PublishResult {
    /// The value of the label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Joined => "joined",
            Self::Downloaded => "downloaded",
            Self::Stale => "stale",
            Self::Failed => "failed",
        }
    }
}

/// Why a model was evicted: the label of `cache_evictions_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EvictionReason {
    /// A requested model needed its space.
    Space,
    /// The file system ran full.
    Watermark,
    /// The cache was over its own limit.
    Limit,
    /// It was unused for `cache.idleTTL`.
    Idle,
    /// A newer revision replaced it.
    Superseded,
    /// The administrator asked for it.
    Command,
}

impl EvictionReason {
    /// The value of the label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Space => "space",
            Self::Watermark => "watermark",
            Self::Limit => "limit",
            Self::Idle => "idle",
            Self::Superseded => "superseded",
            Self::Command => "command",
        }
    }
}

fn short_buckets() -> Histogram {
    Histogram::new([0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 120.0])
}

fn publish_buckets() -> Histogram {
    Histogram::new([0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 5.0, 15.0, 60.0, 120.0, 300.0, 900.0, 3600.0])
}

fn download_buckets() -> Histogram {
    Histogram::new([1.0, 3.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0])
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("oci_model_csi");
        let metrics = Self {
            download_bytes: Counter::default(),
            download_duration: download_buckets(),
            downloads_in_flight: Gauge::default(),
            object_storage_throttled: Counter::default(),
            leases: Gauge::default(),
            cache_limit: Gauge::default(),
            cache_shared_file_system: Gauge::default(),
            cache_damaged: Counter::default(),
            credential_refresh_failures: Counter::default(),
            credential_expiry: Gauge::default(),
            credential: OnceLock::new(),
            config_valid: Gauge::default(),
            config_read: Gauge::default(),
            policy_rules: Gauge::default(),
            cache_size: Family::default(),
            cache_models: Family::default(),
            cache_evictions: Family::default(),
            requests: Family::default(),
            verify: Family::default(),
            publish: Family::default(),
            model_warning: Family::default(),
            publish_duration: Family::new_with_constructor(publish_buckets),
            rpc_duration: Family::new_with_constructor(short_buckets),
            registry: Registry::default(),
        };
        let m = &metrics;
        let r = &mut registry;
        r.register(
            "download_bytes",
            "Bytes received from Object Storage, repeated ones included",
            m.download_bytes.clone(),
        );
        r.register(
            "download_duration_seconds",
            "Duration of successful model downloads in seconds",
            m.download_duration.clone(),
        );
        r.register(
            "downloads_in_flight",
            "Model downloads that are running",
            m.downloads_in_flight.clone(),
        );
        r.register(
            "object_storage_throttled",
            "Answers 429 and 503 of Object Storage, to requests of any kind",
            m.object_storage_throttled.clone(),
        );
        r.register(
            "object_storage_requests",
            "Requests to Object Storage, by operation and HTTP status; status none means no answer",
            m.requests.clone(),
        );
        r.register(
            "credential_refresh_failures",
            "Failed attempts of the driver to renew its own credential",
            m.credential_refresh_failures.clone(),
        );
        r.register(
            "credential_expiry_timestamp_seconds",
            "Expiry of the driver's credential in seconds since 1970; 0 where it does not expire",
            m.credential_expiry.clone(),
        );
        r.register(
            "config_valid",
            "1 while the configuration file is valid; 0 while the last good configuration is used \
             instead",
            m.config_valid.clone(),
        );
        r.register(
            "config_last_reload_success_timestamp_seconds",
            "Time at which the configuration in use was read, in seconds since 1970",
            m.config_read.clone(),
        );
        r.register(
            "policy_rules",
            "Policy rules in force; with 0 every pod may mount what the driver can read",
            m.policy_rules.clone(),
        );
        r.register("leases", "Volumes that use a model", m.leases.clone());
        r.register(
            "cache_size_bytes",
            "Disk usage of the cache in bytes, by purpose",
            m.cache_size.clone(),
        );
        r.register(
            "cache_limit_bytes",
            "Maximum size of the cache in bytes (cache.maxSize, cache.minFree)",
            m.cache_limit.clone(),
        );
        r.register("cache_models", "Models in the cache, by state", m.cache_models.clone());
        r.register("cache_evictions", "Evicted models, by reason", m.cache_evictions.clone());
        r.register(
            "cache_damaged",
            "Blobs and models found damaged in the cache and put aside",
            m.cache_damaged.clone(),
        );
        r.register(
            "cache_shared_file_system",
            "1 where the cache shares its file system with the node's root or with kubelet",
            m.cache_shared_file_system.clone(),
        );
        r.register(
            "verify",
            "Verifications of downloaded content, by the checksum compared; size_etag means \
             that the object has none",
            m.verify.clone(),
        );
        r.register(
            "model_suspect",
            "Warnings about models that were mounted anyway, by reason",
            m.model_warning.clone(),
        );
        r.register("publish", "NodePublishVolume calls answered, by outcome", m.publish.clone());
        r.register(
            "publish_duration_seconds",
            "Duration of answered NodePublishVolume calls in seconds, by outcome",
            m.publish_duration.clone(),
        );
        r.register(
            "rpc_duration_seconds",
            "Duration of CSI calls in seconds, by method and gRPC code",
            m.rpc_duration.clone(),
        );
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        r.register("build", "Version of the driver", version);
        Self { registry, ..metrics }
    }
}

impl Metrics {
    /// Counts a verification by the checksum that was compared.
    pub fn verified(&self, check: &'static str, passed: bool) {
        let result = if passed { "passed" } else { "failed" };
        self.verify.get_or_create(&VerifyLabels { check, result }).inc();
    }

    /// Counts an evicted model.
    pub fn evicted(&self, reason: EvictionReason) {
        self.cache_evictions.get_or_create(&ReasonLabel { reason: reason.label() }).inc();
    }

    /// Sets the disk usage of the cache for this purpose.
    pub fn cache_size(&self, state: &'static str, bytes: u64) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.cache_size.get_or_create(&StateLabel { state }).set(bytes);
    }

    /// Sets how many models are in this state.
    pub fn cache_models(&self, state: &'static str, count: usize) {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        self.cache_models.get_or_create(&StateLabel { state }).set(count);
    }

    /// Counts a request to Object Storage; `status` is `None` without an answer.
    pub fn object_storage_request(&self, operation: &'static str, status: Option<u16>) {
        if matches!(status, Some(429 | 503)) {
            self.object_storage_throttled.inc();
        }
        let status = status.map_or_else(|| "none".to_owned(), |status| status.to_string());
        self.requests.get_or_create(&RequestLabels { operation, status }).inc();
    }

    /// Counts an answered publish and its duration.
    pub fn published(&self, result: PublishResult, seconds: f64) {
        let label = ResultLabel { result: result.label() };
        self.publish.get_or_create(&label).inc();
        self.publish_duration.get_or_create(&label).observe(seconds);
    }

    /// Counts a warning about a model that was mounted anyway.
    pub fn model_warning(&self, reason: &'static str) {
        self.model_warning.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// Counts a CSI call.
    pub fn rpc(&self, method: &'static str, code: &'static str, seconds: f64) {
        self.rpc_duration.get_or_create(&RpcLabels { method, code }).observe(seconds);
    }

    /// Registers the reader of the credential's state, which runs whenever metrics are read.
    /// Later calls are ignored.
    pub fn watch_credential(&self, state: impl Fn() -> CredentialState + Send + Sync + 'static) {
        let _ = self.credential.set(Box::new(state));
    }

    /// Encodes the metrics in Prometheus' older text format, which every reader knows.
    pub fn to_plain_text(&self) -> String {
        plain::of(&self.to_text())
    }

    /// Encodes the metrics in the OpenMetrics text format.
    pub fn to_text(&self) -> String {
        if let Some(look) = self.credential.get() {
            let CredentialState { refresh_failures, expires_at } = look();
            self.credential_refresh_failures.inner().store(refresh_failures, Ordering::Relaxed);
            let since = expires_at.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
            let seconds = since.map_or(0, |since| since.as_secs());
            self.credential_expiry.set(i64::try_from(seconds).unwrap_or(i64::MAX));
        }
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_exported_with_their_help() {
        let metrics = Metrics::default();
        metrics.verified("size_etag", true);
        metrics.published(PublishResult::Hit, 0.01);
        let text = metrics.to_text();
        assert!(
            text.contains("oci_model_csi_verify_total{check=\"size_etag\",result=\"passed\"} 1")
        );
        assert!(text.contains("oci_model_csi_publish_total{result=\"hit\"} 1"));
        assert!(text.contains("# HELP oci_model_csi_download_bytes Bytes received"));
        assert!(text.contains("oci_model_csi_build_info{version="));
    }
}
