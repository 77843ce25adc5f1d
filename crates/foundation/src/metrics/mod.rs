//! The driver's metrics, under the prefix `oci_model_csi_`. No label ever
//! names a pod, a model or an object.

mod defs;
mod plain;

use std::sync::atomic::Ordering;
use std::time::SystemTime;

use prometheus_client::encoding::text::encode;

pub use defs::Metrics;
use defs::{ReasonLabel, RequestLabels, ResultLabel, RpcLabels, StateLabel, VerifyLabels};

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

    /// Counts spans of traces by what became of them.
    pub fn trace_spans(&self, result: &'static str, spans: u64) {
        self.trace_spans.get_or_create(&ResultLabel { result }).inc_by(spans);
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
