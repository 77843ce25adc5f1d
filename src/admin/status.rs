//! `/status`: whether the driver is ready, running downloads, the leases, and calls that
//! failed.

use std::path::PathBuf;
use std::time::SystemTime;

use axum::extract::State;
use axum::response::IntoResponse;
use http::header;
use serde::{Deserialize, Serialize};

use super::Admin;
use crate::cache::Cache;
use crate::csi::FailedCall;
use crate::manage::{Manager, PrefetchEntry};

/// The answer of `/status`. What a driver of another version does not say has its default.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DriverStatus {
    /// The driver's version.
    pub version: String,
    /// Whether it serves volumes.
    pub ready: bool,
    /// What it does while it is not ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub activity: Option<String>,
    /// When it started, in seconds since the epoch.
    pub started: u64,
    /// When kubelet called it last, in seconds since the epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubelet_called: Option<u64>,
    /// The downloads that run.
    pub downloads: Vec<DownloadStatus>,
    /// The volumes that use models.
    pub leases: Vec<LeaseStatus>,
    /// The prefetch list.
    pub prefetch: Vec<PrefetchEntry>,
    /// Calls that failed within the last hour, the newest first.
    pub failures: Vec<FailedCall>,
}

/// A running download.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DownloadStatus {
    /// The model's key.
    pub model: String,
    /// Bytes that are complete.
    pub done_bytes: u64,
    /// Bytes of the model.
    pub total_bytes: u64,
    /// The current rate, once it is known.
    pub bytes_per_second: Option<u64>,
}

/// A volume that uses a model.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LeaseStatus {
    /// The volume's id.
    pub volume_id: String,
    /// The model's key.
    pub model: String,
    /// Where it is mounted.
    pub target: PathBuf,
    /// The pod, if it is known.
    pub pod: Option<String>,
    /// Since when, in seconds since the epoch.
    pub since: u64,
}

pub(super) async fn answer(State(admin): State<Admin>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], json(&admin))
}

fn json(admin: &Admin) -> String {
    let status = serde_json::to_value(DriverStatus::of(admin)).unwrap_or_default();
    format!("{status}\n")
}

impl DriverStatus {
    fn of(admin: &Admin) -> Self {
        let running = admin.cache.as_ref().map(Cache::running).unwrap_or_default();
        let downloads = running.into_iter().map(|(model, progress)| {
            let now = progress.snapshot();
            DownloadStatus {
                model: model.as_str().to_owned(),
                done_bytes: now.done,
                total_bytes: now.total,
                bytes_per_second: now.rate,
            }
        });
        let leases = admin.cache.as_ref().map(Cache::leases).unwrap_or_default();
        let leases = leases.into_iter().map(|lease| LeaseStatus {
            volume_id: lease.volume_id,
            model: lease.model.as_str().to_owned(),
            target: lease.target,
            pod: lease.pod,
            since: lease.since,
        });
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ready: admin.readiness.is_ready(),
            activity: admin.readiness.activity(),
            started: seconds(admin.history.started()),
            kubelet_called: admin.history.kubelet_called().map(seconds),
            downloads: downloads.collect(),
            leases: leases.collect(),
            prefetch: admin.manager.as_ref().map(Manager::prefetch_list).unwrap_or_default(),
            failures: admin.history.failures(),
        }
    }
}

/// Seconds since the epoch.
fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
