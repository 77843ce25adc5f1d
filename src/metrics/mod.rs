//! What the driver counts, under the prefix `oci_model_csi_`. No label ever
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
    /// Bytes that arrived from Object Storage, repeated ones included.
    pub download_bytes: Counter,
    /// Seconds that downloads of models took which came to a good end.
    pub download_duration: Histogram,
    /// Downloads of models that run now.
    pub downloads_in_flight: Gauge,
    /// 429 and 503 answers during downloads.
    pub object_storage_throttled: Counter,
    /// Leases that stand now.
    pub leases: Gauge,
    /// Bytes that the cache may take at most.
    pub cache_limit: Gauge,
    /// 1 where the cache shares its file system with the node's root or kubelet.
    pub cache_shared_file_system: Gauge,
    /// Blobs and models that were found damaged on the disk.
    pub cache_damaged: Counter,
    credential_refresh_failures: Counter,
    credential_expiry: Gauge,
    credential: OnceLock<Box<dyn Fn() -> CredentialState + Send + Sync>>,
    /// 1 while the configuration's file is usable as it is now.
    pub config_valid: Gauge,
    /// When the configuration that is in use was read, in seconds since 1970.
    pub config_read: Gauge,
    /// Rules of the policy in force; 0 allows every pod what the driver can read.
    pub policy_rules: Gauge,
    cache_size: Family<StateLabel, Gauge>,
    cache_models: Family<StateLabel, Gauge>,
    cache_evictions: Family<ReasonLabel, Counter>,
    requests: Family<RequestLabels, Counter>,
    verify: Family<VerifyLabels, Counter>,
    publish: Family<ResultLabel, Counter>,
    suspect: Family<ReasonLabel, Counter>,
    publish_duration: Seconds,
    rpc_duration: RpcSeconds,
}

/// How it stands with the driver's own credential.
#[derive(Debug, Clone, Copy, Default)]
pub struct CredentialState {
    /// Times that a new one could not be had.
    pub refresh_failures: u64,
    /// When the current one ends; `None` where it does not, or there is none yet.
    pub expires_at: Option<SystemTime>,
}

/// How a publish came to its model: the label of `publish_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PublishResult {
    /// It stood in the cache.
    Hit,
    /// A download that already ran was joined.
    Joined,
    /// It was downloaded.
    Downloaded,
    /// An older revision, since Object Storage could not be asked.
    Stale,
    /// Not published.
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
    /// A model that was asked for needed its space.
    Space,
    /// The file system ran full.
    Watermark,
    /// The cache was over its own limit.
    Limit,
    /// Nobody used it for `cache.idleTTL`.
    Idle,
    /// A newer revision took its place.
    Superseded,
    /// The administrator said so.
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
            suspect: Family::default(),
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
            "Duration of downloads of models that came to a good end",
            m.download_duration.clone(),
        );
        r.register(
            "downloads_in_flight",
            "Downloads of models that run now",
            m.downloads_in_flight.clone(),
        );
        r.register(
            "object_storage_throttled",
            "Answers 429 and 503 of Object Storage, to requests of any kind",
            m.object_storage_throttled.clone(),
        );
        r.register(
            "object_storage_requests",
            "Requests to Object Storage, by operation and HTTP status; none without an answer",
            m.requests.clone(),
        );
        r.register(
            "credential_refresh_failures",
            "Times that the driver could not get a new credential for itself",
            m.credential_refresh_failures.clone(),
        );
        r.register(
            "credential_expiry_timestamp_seconds",
            "When the driver's credential ends, in seconds since 1970; 0 where it does not end",
            m.credential_expiry.clone(),
        );
        r.register(
            "config_valid",
            "1 while the configuration's file is usable as it is now; 0 while the last good one is \
             used",
            m.config_valid.clone(),
        );
        r.register(
            "config_last_reload_success_timestamp_seconds",
            "When the configuration that is in use was read",
            m.config_read.clone(),
        );
        r.register(
            "policy_rules",
            "Rules of the policy in force; with 0 every pod may mount what the driver can read",
            m.policy_rules.clone(),
        );
        r.register("leases", "Volumes that hold a model", m.leases.clone());
        r.register(
            "cache_size_bytes",
            "Bytes that the cache takes on the disk, by what they are for",
            m.cache_size.clone(),
        );
        r.register(
            "cache_limit_bytes",
            "Bytes that the cache may take at most (cache.maxSize, cache.minFree)",
            m.cache_limit.clone(),
        );
        r.register("cache_models", "Models in the cache, by state", m.cache_models.clone());
        r.register(
            "cache_evictions",
            "Models that were evicted, by reason",
            m.cache_evictions.clone(),
        );
        r.register(
            "cache_damaged",
            "Times that content of the cache was found damaged and put aside",
            m.cache_damaged.clone(),
        );
        r.register(
            "cache_shared_file_system",
            "1 where the cache shares its file system with the node's root or with kubelet",
            m.cache_shared_file_system.clone(),
        );
        r.register(
            "verify",
            "Checks of downloaded content, by the checksum that was compared; size_etag means \
             that the object carries none",
            m.verify.clone(),
        );
        r.register(
            "model_suspect",
            "Warnings about models that were mounted all the same, by reason",
            m.suspect.clone(),
        );
        r.register("publish", "Answers to NodePublishVolume, by outcome", m.publish.clone());
        r.register(
            "publish_duration_seconds",
            "Duration of answered NodePublishVolume calls, by outcome",
            m.publish_duration.clone(),
        );
        r.register(
            "rpc_duration_seconds",
            "Duration of CSI calls, by method and gRPC code",
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

    /// Sets what the cache takes for this.
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

    /// Counts an answered publish and the seconds it took.
    pub fn published(&self, result: PublishResult, seconds: f64) {
        let label = ResultLabel { result: result.label() };
        self.publish.get_or_create(&label).inc();
        self.publish_duration.get_or_create(&label).observe(seconds);
    }

    /// Counts a warning about a model that was published all the same.
    pub fn suspect(&self, reason: &'static str) {
        self.suspect.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// Counts a CSI call.
    pub fn rpc(&self, method: &'static str, code: &'static str, seconds: f64) {
        self.rpc_duration.get_or_create(&RpcLabels { method, code }).observe(seconds);
    }

    /// Has the credential looked at whenever metrics are read; the first one who asks.
    pub fn watch_credential(&self, state: impl Fn() -> CredentialState + Send + Sync + 'static) {
        let _ = self.credential.set(Box::new(state));
    }

    /// The metrics in Prometheus' older text format, which every reader knows.
    pub fn to_plain_text(&self) -> String {
        plain::of(&self.to_text())
    }

    /// The metrics in the OpenMetrics text format.
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
    fn what_is_counted_can_be_read_with_its_help() {
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
