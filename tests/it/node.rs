//! The driver's changes to its Node object: the startup taint, and labels for models.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::support::api_server::ApiServer;
use crate::support::commands::Commands;
use crate::support::driver::{Driver, Setup};
use crate::support::kubelet::register;
use crate::support::models::{PHI3, store_with_phi3};
use crate::support::run::{end_to_end, eventually};
use localstore::LocalStore;
use serde_json::{Value, json};

const NODE: &str = "/api/v1/nodes/node-1";
const CSINODE: &str = "/apis/storage.k8s.io/v1/csinodes/node-1";
const TAINT: &str = "startup-taint.cluster-autoscaler.kubernetes.io/oci-model-csi.dev-not-ready";
const PATCH: &str = "PATCH /api/v1/nodes/node-1";

/// Longer than the driver's longest pause that a test waits for.
const SOON: Duration = Duration::from_secs(40);

async fn driver(scratch: &Path, store: &LocalStore, api: &ApiServer, flags: &[&str]) -> Driver {
    let account = scratch.join("account");
    fs::create_dir_all(&account).unwrap();
    fs::write(account.join("token"), "a-token").unwrap();
    let mut setup = Setup::new(scratch, store);
    let account = account.to_str().unwrap();
    let arguments = ["--kubernetes-api", &api.url, "--service-account-dir", account];
    setup.arguments.extend(arguments.into_iter().chain(flags.iter().copied()).map(str::to_owned));
    setup.start().await
}

fn tainted(keys: &[&str]) -> Value {
    let taints: Vec<Value> =
        keys.iter().map(|key| json!({"key": key, "effect": "NoSchedule"})).collect();
    json!({"metadata": {"name": "node-1", "labels": {"zone": "a"}}, "spec": {"taints": taints}})
}

fn registered(drivers: &[&str]) -> Value {
    let drivers: Vec<Value> =
        drivers.iter().map(|name| json!({"name": name, "nodeID": "node-1"})).collect();
    json!({"spec": {"drivers": drivers}})
}

fn taints(api: &ApiServer) -> Vec<String> {
    let node = api.object(NODE);
    let taints = node["spec"]["taints"].as_array().unwrap();
    taints.iter().map(|taint| taint["key"].as_str().unwrap().to_owned()).collect()
}

async fn until_untainted(api: &ApiServer) {
    eventually("the taint is off", SOON, async || {
        (!taints(api).iter().any(|key| key == TAINT)).then_some(())
    })
    .await;
}

fn looks(api: &ApiServer) -> usize {
    let path = format!("GET {CSINODE}");
    api.requests().iter().filter(|request| **request == path).count()
}

#[test]
fn only_the_startup_taint_is_removed_once_kubelet_knows_the_driver() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let api = ApiServer::start().await;
        api.put(NODE, tainted(&["nvidia.com/gpu", TAINT, "team"]));
        let driver = driver(scratch, &store, &api, &[]).await;
        // Neither without a CSINode nor with one that names others.
        eventually("a read of the node", SOON, async || (looks(&api) >= 1).then_some(())).await;
        api.put(CSINODE, registered(&["blockvolume.csi.oraclecloud.com"]));
        let before = looks(&api);
        eventually("a read of the node", SOON, async || (looks(&api) >= before + 2).then_some(()))
            .await;
        assert_eq!(taints(&api), ["nvidia.com/gpu", TAINT, "team"]);

        api.put(CSINODE, registered(&["blockvolume.csi.oraclecloud.com", "oci-model-csi.dev"]));
        until_untainted(&api).await;
        assert_eq!(taints(&api), ["nvidia.com/gpu", "team"]);
        assert_eq!(api.object(NODE)["metadata"]["labels"], json!({"zone": "a"}));

        // The Node object is created again, and kubelet registers the driver again.
        api.put(NODE, tainted(&[TAINT]));
        register(&driver.setup.socket).await;
        until_untainted(&api).await;
        eventually("both are logged", SOON, async || {
            (driver.log().matches("startup taint removed").count() == 2).then_some(())
        })
        .await;
    });
}

#[test]
fn a_taint_that_is_added_between_read_and_patch_is_kept() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let api = ApiServer::start().await;
        api.put(NODE, tainted(&[TAINT, "team"]));
        api.put(CSINODE, registered(&["oci-model-csi.dev"]));
        api.conflict(2);
        let _driver = driver(scratch, &store, &api, &[]).await;
        until_untainted(&api).await;
        assert_eq!(taints(&api), ["faster-1", "faster-2", "team"]);
        let patches = api.requests().iter().filter(|request| *request == PATCH).count();
        assert_eq!(patches, 3);
    });
}

#[test]
fn without_the_permission_there_is_one_warning_and_publishes_continue() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let api = ApiServer::start().await;
        api.put(NODE, tainted(&[TAINT]));
        api.forbid(true);
        let driver = driver(scratch, &store, &api, &["--model-labels=4"]).await;
        driver.kubelet().inline("1", &PHI3).publish().await.unwrap();
        let warned = "is not allowed: the role needs";
        eventually("both are logged", SOON, async || {
            (driver.log().matches(warned).count() == 2).then_some(())
        })
        .await;
        for _ in 0..5 {
            register(&driver.setup.socket).await;
        }
        eventually("it will be tried again", SOON, async || (looks(&api) >= 2).then_some(())).await;
        assert_eq!(driver.log().matches(warned).count(), 2, "{}", driver.log());
        assert_eq!(taints(&api), [TAINT]);
    });
}

#[test]
fn with_taint_and_labels_off_the_driver_sends_only_events() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let api = ApiServer::start().await;
        api.put(NODE, tainted(&[TAINT]));
        api.put(CSINODE, registered(&["oci-model-csi.dev"]));
        let driver = driver(scratch, &store, &api, &["--startup-taint="]).await;
        register(&driver.setup.socket).await;
        driver.kubelet().inline("1", &PHI3).publish().await.unwrap();
        eventually("its event", SOON, async || api.message_of("ModelPulled")).await;
        assert_eq!(api.requests(), [""; 0]);
        assert_eq!(taints(&api), [TAINT]);
    });
}

#[test]
fn labels_of_the_node_name_the_models_in_its_cache_and_nothing_else_changes() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let api = ApiServer::start().await;
        let mut node = tainted(&[]);
        // One label of a purged cache, and one with another owner.
        node["metadata"]["labels"]["oci-model-csi.dev/model.old.00000000"] = "x".into();
        node["metadata"]["labels"]["oci-model-csi.dev/team"] = "b".into();
        api.put(NODE, node);
        api.put(CSINODE, registered(&["oci-model-csi.dev"]));
        let driver = driver(scratch, &store, &api, &["--model-labels=1"]).await;
        let labels = || api.object(NODE)["metadata"]["labels"].clone();
        let others = json!({"zone": "a", "oci-model-csi.dev/team": "b"});
        eventually("the old label goes", SOON, async || (labels() == others).then_some(())).await;

        let volume = driver.kubelet().inline("1", &PHI3);
        volume.publish().await.unwrap();
        let own = |labels: &Value| -> Vec<(String, Value)> {
            let labels = labels.as_object().unwrap().clone();
            labels.into_iter().filter(|(key, _)| key.contains("/model.")).collect()
        };
        let found = eventually("a label", SOON, async || own(&labels()).pop()).await;
        let cache = Commands::of(&driver.setup);
        let shown = cache.json(&["inspect", "oci://ai-model-cache/models/phi3-mini/"]).await;
        let name = shown[0]["nodeLabel"].as_str().unwrap();
        assert_eq!(found.0, format!("oci-model-csi.dev/{name}"));
        let revision = shown[0]["revision"].as_str().unwrap();
        assert_eq!(found.1.as_str().unwrap(), &revision["sha256:".len()..][..12]);

        volume.unpublish().await.unwrap();
        cache.json(&["gc", "--all"]).await;
        eventually("the label goes", SOON, async || (labels() == others).then_some(())).await;
    });
}
