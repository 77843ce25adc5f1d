//! The startup taint, which keeps pods off a node until kubelet knows the driver.
//!
//! The node pool sets it; the driver only removes it, once two conditions hold:
//! the driver is ready, and the node's CSINode object names it, which kubelet
//! writes when it registers the driver. The check is repeated after each
//! registration, and every few minutes, since a Node object that is created
//! again has the taint again.

use std::time::Duration;

use http::StatusCode;
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::{RetryState, node_path};
use crate::kubernetes::{ApiFailure, ApiServer, Patch, path};

/// Between two checks of a node whose taint is gone.
const AGAIN: Duration = Duration::from_secs(5 * 60);

/// Between two checks of a CSINode that does not name the driver yet.
const REGISTERS: Duration = Duration::from_secs(2);

/// Times that others may change the node's taints between check and patch.
const ROUNDS: u32 = 5;

/// Removes the taint whenever the node has it and kubelet knows the driver. Never returns.
pub(super) async fn remove_taint(
    api: &ApiServer,
    node: &str,
    driver: &str,
    taint: &str,
    registered: &Notify,
) {
    let mut retry = RetryState::default();
    loop {
        let pause = match try_remove(api, node, driver, taint).await {
            Ok(true) => {
                retry.reset();
                AGAIN
            }
            Ok(false) => REGISTERS,
            Err(failure) => {
                let needs = "get and patch of nodes, get of csinodes; or switch it off with \
                             --startup-taint=";
                retry.failed(&failure, "removing the startup taint from the node", needs)
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = registered.notified() => {}
        }
    }
}

/// Removes the taint if it may go. `true` when the node is free of it; `false` while kubelet
/// does not know the driver.
async fn try_remove(
    api: &ApiServer,
    node: &str,
    driver: &str,
    taint: &str,
) -> Result<bool, ApiFailure> {
    let csinode = path(["apis", "storage.k8s.io", "v1", "csinodes", node]);
    match api.get(&csinode).await {
        Ok(found) if names_driver(&found, driver) => {}
        Ok(_) => return Ok(false),
        Err(failure) if failure.is_not_found() => return Ok(false),
        Err(failure) => return Err(failure),
    }
    for round in 1.. {
        let found = api.get(&node_path(node)).await?;
        let Some(patch) = without(&found, taint) else { return Ok(true) };
        match api.patch(&node_path(node), &Patch::Json(patch)).await {
            Ok(_) => {
                tracing::info!(node, taint, "kubelet knows the driver: startup taint removed");
                return Ok(true);
            }
            // Others changed the taints meanwhile: 409, or 422 for a failed `test`.
            Err(failure) if round < ROUNDS && is_conflict(&failure) => {}
            Err(failure) => return Err(failure),
        }
    }
    Ok(true)
}

fn is_conflict(failure: &ApiFailure) -> bool {
    let status = failure.status();
    matches!(status, Some(StatusCode::CONFLICT | StatusCode::UNPROCESSABLE_ENTITY))
}

fn names_driver(csinode: &Value, driver: &str) -> bool {
    let drivers = csinode["spec"]["drivers"].as_array();
    drivers.is_some_and(|drivers| drivers.iter().any(|one| one["name"] == driver))
}

/// The JSON patch that removes exactly this key's taints from a node, if they
/// are still as they were seen; `None` where there are none.
fn without(node: &Value, key: &str) -> Option<Value> {
    let taints = node["spec"]["taints"].as_array()?;
    let ours = taints.iter().enumerate().filter(|(_, taint)| taint["key"] == key);
    // From the end, so that the indexes before it stay valid.
    let steps = ours.rev().flat_map(|(at, taint)| {
        let place = format!("/spec/taints/{at}");
        [
            json!({"op": "test", "path": place, "value": taint}),
            json!({"op": "remove", "path": place}),
        ]
    });
    let steps: Vec<Value> = steps.collect();
    (!steps.is_empty()).then_some(Value::Array(steps))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: &str = "startup-taint.cluster-autoscaler.kubernetes.io/oci-model-csi.dev-not-ready";

    #[test]
    fn only_the_taints_of_one_key_are_removed_and_only_if_they_are_as_seen() {
        let gpu = json!({"key": "nvidia.com/gpu", "effect": "NoSchedule"});
        let ours = json!({"key": OURS, "effect": "NoSchedule"});
        let hard = json!({"key": OURS, "effect": "NoExecute", "value": "true"});
        let node = json!({"spec": {"taints": [ours, gpu, hard]}});
        let expected = json!([
            {"op": "test", "path": "/spec/taints/2", "value": hard},
            {"op": "remove", "path": "/spec/taints/2"},
            {"op": "test", "path": "/spec/taints/0", "value": ours},
            {"op": "remove", "path": "/spec/taints/0"},
        ]);
        assert_eq!(without(&node, OURS), Some(expected));
        assert_eq!(without(&json!({"spec": {"taints": [gpu]}}), OURS), None);
        assert_eq!(without(&json!({"spec": {}}), OURS), None);
    }

    #[test]
    fn a_driver_is_known_when_csinode_names_it() {
        let csinode = json!({"spec": {"drivers": [{"name": "a", "nodeID": "n"}, {"name": "b"}]}});
        assert!(names_driver(&csinode, "b"));
        assert!(!names_driver(&csinode, "c"));
        assert!(!names_driver(&json!({"spec": {"drivers": null}}), "b"));
    }
}
