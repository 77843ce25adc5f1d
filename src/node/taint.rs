//! The startup taint: what keeps pods off a node until kubelet knows the driver.
//!
//! Who sets it is the node pool; the driver only takes it away. Two things have
//! to be true before: the driver is ready, and the node's CSINode object names
//! it, which kubelet sees to when it registers the driver. The look is repeated
//! after each registration, and now and then, since a Node object that is made
//! anew has the taint again.

use std::time::Duration;

use http::StatusCode;
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::{RetryState, node_path};
use crate::kubernetes::{ApiFailure, ApiServer, Patch, path};

/// Between two looks at a node whose taint is gone.
const AGAIN: Duration = Duration::from_secs(5 * 60);

/// Between two looks at a CSINode that does not name the driver yet.
const REGISTERS: Duration = Duration::from_secs(2);

/// Times that others may change the node's taints between look and patch.
const ROUNDS: u32 = 5;

/// Takes the taint away whenever it is there and may go, for ever.
pub(super) async fn keep_off(
    api: &ApiServer,
    node: &str,
    driver: &str,
    taint: &str,
    registered: &Notify,
) {
    let mut trouble = RetryState::default();
    loop {
        let pause = match look(api, node, driver, taint).await {
            Ok(true) => {
                trouble.over();
                AGAIN
            }
            Ok(false) => REGISTERS,
            Err(failure) => {
                let needs = "get and patch of nodes, get of csinodes; or switch it off with \
                             --startup-taint=";
                trouble.met(&failure, "taking the startup taint off the node", needs)
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = registered.notified() => {}
        }
    }
}

/// Whether the node is free of the taint; `false` while kubelet does not know the driver.
async fn look(api: &ApiServer, node: &str, driver: &str, taint: &str) -> Result<bool, ApiFailure> {
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
                tracing::info!(node, taint, "kubelet knows the driver: the startup taint is off");
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

/// The JSON patch that takes this key's taints and no other out of a node, if
/// what stands there is still what was seen; `None` where there is none.
fn without(node: &Value, key: &str) -> Option<Value> {
    let taints = node["spec"]["taints"].as_array()?;
    let ours = taints.iter().enumerate().filter(|(_, taint)| taint["key"] == key);
    // From the end, so that the places before it stay what they were.
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
    fn only_the_taints_of_one_key_go_and_only_if_they_are_as_seen() {
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
