//! The table of all metrics: a row has the field, its type, the name and the help.

use std::fmt;
use std::sync::OnceLock;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use super::CredentialState;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct VerifyLabels {
    pub(super) check: &'static str,
    pub(super) result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ResultLabel {
    pub(super) result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct StateLabel {
    pub(super) state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ReasonLabel {
    pub(super) reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct RpcLabels {
    pub(super) method: &'static str,
    pub(super) code: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct RequestLabels {
    pub(super) operation: &'static str,
    pub(super) status: String,
}

type Seconds = Family<ResultLabel, Histogram, fn() -> Histogram>;
type RpcSeconds = Family<RpcLabels, Histogram, fn() -> Histogram>;

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// Makes the struct of all metrics, and registers each.
macro_rules! metrics {
    ($($vis:vis $field:ident: $type:ty $(= $new:expr)?, $name:literal, $help:literal;)+) => {
        /// All metrics of one process.
        pub struct Metrics {
            pub(super) registry: Registry,
            pub(super) credential: OnceLock<Box<dyn Fn() -> CredentialState + Send + Sync>>,
            $(#[doc = $help] $vis $field: $type,)+
        }

        impl Default for Metrics {
            fn default() -> Self {
                let mut registry = Registry::with_prefix("oci_model_csi");
                $(
                    let $field: $type = new!($type $(, $new)?);
                    registry.register($name, $help, $field.clone());
                )+
                let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
                registry.register("build", "Version of the driver", version);
                Self { registry, credential: OnceLock::new(), $($field,)+ }
            }
        }
    };
}

macro_rules! new {
    ($type:ty) => {
        <$type>::default()
    };
    ($type:ty, $new:expr) => {
        $new
    };
}

metrics! {
    pub download_bytes: Counter,
        "download_bytes", "Bytes received from Object Storage, repeated ones included";
    pub download_concurrency: Gauge,
        "download_concurrency", "Requests for model data that may run at once (download.concurrency)";
    pub download_duration: Histogram = download_buckets(),
        "download_duration_seconds", "Duration of successful model downloads in seconds";
    pub downloads_in_flight: Gauge,
        "downloads_in_flight", "Model downloads that are running";
    pub object_storage_throttled: Counter,
        "object_storage_throttled", "Answers 429 and 503 of Object Storage, to requests of any kind";
    pub(super) requests: Family<RequestLabels, Counter>,
        "object_storage_requests", "Requests to Object Storage, by operation and HTTP status; status none means no answer";
    pub(super) credential_refresh_failures: Counter,
        "credential_refresh_failures", "Failed attempts of the driver to renew its own credential";
    pub(super) credential_expiry: Gauge,
        "credential_expiry_timestamp_seconds", "Expiry of the driver's credential in seconds since 1970; 0 where it does not expire";
    pub config_valid: Gauge,
        "config_valid", "1 while the configuration file is valid; 0 while the last good configuration is used instead";
    pub config_read: Gauge,
        "config_last_reload_success_timestamp_seconds", "Time at which the configuration in use was read, in seconds since 1970";
    pub policy_rules: Gauge,
        "policy_rules", "Policy rules in force; with 0 every pod may mount what the driver can read";
    pub leases: Gauge,
        "leases", "Volumes that use a model";
    pub(super) cache_size: Family<StateLabel, Gauge>,
        "cache_size_bytes", "Disk usage of the cache in bytes, by purpose";
    pub cache_limit: Gauge,
        "cache_limit_bytes", "Maximum size of the cache in bytes (cache.maxSize, cache.minFree)";
    pub(super) cache_models: Family<StateLabel, Gauge>,
        "cache_models", "Models in the cache, by state";
    pub(super) cache_evictions: Family<ReasonLabel, Counter>,
        "cache_evictions", "Evicted models, by reason";
    pub cache_damaged: Counter,
        "cache_damaged", "Blobs and models found damaged in the cache and put aside";
    pub cache_shared_file_system: Gauge,
        "cache_shared_file_system", "1 where the cache shares its file system with the node's root or with kubelet";
    pub(super) verify: Family<VerifyLabels, Counter>,
        "verify", "Verifications of downloaded content, by the checksum compared; size_etag means that the object has none";
    pub(super) model_warning: Family<ReasonLabel, Counter>,
        "model_suspect", "Warnings about models that were mounted anyway, by reason";
    pub(super) trace_spans: Family<ResultLabel, Counter>,
        "trace_spans", "Spans of traces, by outcome: exported, failed, or dropped because the queue was full";
    pub(super) publish: Family<ResultLabel, Counter>,
        "publish", "NodePublishVolume calls answered, by outcome";
    pub(super) publish_duration: Seconds = Family::new_with_constructor(publish_buckets),
        "publish_duration_seconds", "Duration of answered NodePublishVolume calls in seconds, by outcome";
    pub(super) rpc_duration: RpcSeconds = Family::new_with_constructor(short_buckets),
        "rpc_duration_seconds", "Duration of CSI calls in seconds, by method and gRPC code";
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
