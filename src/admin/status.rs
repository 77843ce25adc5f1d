//! `/status`: running downloads, and the leases.

use axum::extract::State;
use axum::response::IntoResponse;
use http::header;
use serde_json::{Value, json};

use super::Admin;
use crate::manage::Manager;

pub(super) async fn answer(State(admin): State<Admin>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], json(&admin))
}

fn json(admin: &Admin) -> String {
    let (downloads, leases): (Vec<Value>, Vec<Value>) = match &admin.cache {
        None => (Vec::new(), Vec::new()),
        Some(cache) => {
            let downloads = cache.running().into_iter().map(|(model, progress)| {
                let now = progress.snapshot();
                json!({
                    "model": model.as_str(),
                    "doneBytes": now.done,
                    "totalBytes": now.total,
                    "bytesPerSecond": now.rate,
                })
            });
            let leases = cache.leases().into_iter().map(|lease| {
                json!({
                    "volumeId": lease.volume_id,
                    "model": lease.model.as_str(),
                    "target": lease.target,
                    "pod": lease.pod,
                    "since": lease.since,
                })
            });
            (downloads.collect(), leases.collect())
        }
    };
    let status = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "ready": admin.readiness.is_ready(),
        "downloads": downloads,
        "leases": leases,
        "prefetch": admin.manager.as_ref().map(Manager::prefetch_list).unwrap_or_default(),
    });
    format!("{status}\n")
}
