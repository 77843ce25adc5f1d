//! `oci-model-csi nodes`: all nodes of a cluster, from the API server.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use crate::support::api_server::ApiServer;
use crate::support::commands::Commands;
use crate::support::driver::{BINARY, Setup};
use crate::support::fetch::Fetched;
use crate::support::models::{PHI3, store_with_phi3};
use crate::support::run::{end_to_end, eventually};
use serde_json::{Value, json};
use tokio::process::Command;

const NODES: &str = "/api/v1/nodes";
const CSINODES: &str = "/apis/storage.k8s.io/v1/csinodes";

async fn nodes(scratch: &Path, api: Option<&ApiServer>, arguments: &[&str]) -> Fetched {
    let mut command = Command::new(BINARY);
    command.arg("nodes").arg("--service-account-dir").arg(scratch).args(arguments);
    if let Some(api) = api {
        command.args(["--kubernetes-api", &api.url]);
    }
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).env_clear().kill_on_drop(true);
    Fetched::of(command.spawn().unwrap()).await
}

fn node(name: &str, labels: &Value, annotations: &Value) -> Value {
    json!({"metadata": {"name": name, "labels": labels, "annotations": annotations}})
}

fn csinode(name: &str, driver: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"drivers": [{"name": driver, "nodeID": name}]}})
}

#[tokio::test]
async fn nodes_are_listed_page_by_page_with_their_models() {
    let scratch = tempfile::tempdir().unwrap();
    let api = ApiServer::start().await;
    let label = json!({"oci-model-csi.dev/model.phi3-mini.417203bd": "3f1c0a9be2d4", "zone": "a"});
    let cache = r#"{"version":"0.1.0","models":2,"bytes":1073741824,"availableBytes":2048}"#;
    let gpu = node("gpu-2", &label, &json!({"oci-model-csi.dev/cache": cache}));
    api.put_pages(NODES, vec![vec![gpu], vec![node("cpu-1", &json!({}), &json!({}))]]);
    api.put_pages(
        CSINODES,
        vec![vec![csinode("cpu-1", "other.csi"), csinode("gpu-2", "oci-model-csi.dev")]],
    );
    let listed = nodes(scratch.path(), Some(&api), &["--output", "json"]).await;
    assert_eq!((listed.code, listed.stderr.as_str()), (0, ""));
    let found: Value = serde_json::from_str(&listed.stdout).unwrap();
    let names: Vec<&str> =
        found.as_array().unwrap().iter().map(|one| one["node"].as_str().unwrap()).collect();
    assert_eq!(names, ["cpu-1", "gpu-2"], "of both pages, by name");
    assert_eq!((&found[0]["registered"], &found[1]["registered"]), (&json!(false), &json!(true)));
    assert_eq!(found[1]["cache"]["bytes"], 1 << 30);
    assert_eq!(found[1]["models"][0]["name"], "phi3-mini.417203bd");

    let uri = "oci://ai-model-cache@mytenancy/models/phi3-mini/";
    let listed = nodes(scratch.path(), Some(&api), &["--model", uri]).await;
    assert!(listed.stdout.contains("gpu-2") && listed.stdout.contains("3f1c0a9be2d4"));
    assert!(listed.stdout.ends_with("1 of 2 nodes with this model\n"), "{}", listed.stdout);
    assert!(api.requests().iter().all(|request| request.starts_with("GET ")));
}

#[tokio::test]
async fn what_is_wrong_is_said_with_the_remedy() {
    let scratch = tempfile::tempdir().unwrap();
    let api = ApiServer::start().await;
    api.forbid(true);
    for (api, arguments, code, words) in [
        (Some(&api), vec![], 4, ["listing nodes: ", "node.modelLabels"]),
        (None, vec![], 2, ["no API server is known", "kubectl proxy"]),
        (Some(&api), vec!["--model", "oci://b/p"], 2, ["names no Object Storage namespace", "@"]),
        (None, vec!["--kubernetes-api", "http://127.0.0.1:9"], 1, ["listing nodes: ", "no conn"]),
    ] {
        let listed = nodes(scratch.path(), api, &arguments).await;
        assert_eq!(listed.code, code, "{}", listed.stderr);
        for word in words {
            assert!(listed.stderr.contains(word), "{word:?} is not in {:?}", listed.stderr);
        }
        assert_eq!(listed.stdout, "");
    }
    let listed = nodes(scratch.path(), Some(&api), &["--output", "json"]).await;
    let failure: Value = serde_json::from_str(&listed.stdout).unwrap();
    assert!(failure["error"].as_str().unwrap().contains("403"), "{failure}");
}

/// The node plugin writes what the command reads.
#[test]
fn a_driver_describes_its_cache_for_the_view_of_all_nodes() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let api = ApiServer::start().await;
        let own = format!("{NODES}/node-1");
        api.put(&own, node("node-1", &json!({"zone": "a"}), &json!({"other/cache": "theirs"})));
        let account = scratch.join("account");
        std::fs::create_dir_all(&account).unwrap();
        std::fs::write(account.join("token"), "a-token").unwrap();
        let mut setup = Setup::new(scratch, &store);
        let account = account.to_str().unwrap();
        let api_flags = ["--kubernetes-api", &api.url, "--service-account-dir", account];
        let flags = ["--startup-taint=", "--model-labels=8"];
        setup.arguments.extend(api_flags.into_iter().chain(flags).map(str::to_owned));
        let driver = setup.start().await;
        driver.kubelet().inline("1", &PHI3).publish().await.unwrap();
        let soon = Duration::from_secs(40);
        eventually("the annotation", soon, async || {
            let node = api.object(&own);
            let text = node["metadata"]["annotations"]["oci-model-csi.dev/cache"].as_str()?;
            text.contains("\"models\":1").then_some(())
        })
        .await;
        assert_eq!(api.object(&own)["metadata"]["annotations"]["other/cache"], "theirs");
        api.put_pages(NODES, vec![vec![api.object(&own)]]);
        api.put_pages(CSINODES, vec![vec![csinode("node-1", "oci-model-csi.dev")]]);
        let listed = nodes(scratch, Some(&api), &["--output", "json"]).await;
        let found: Value = serde_json::from_str(&listed.stdout).unwrap();
        let inspected = Commands::of(&driver.setup).json(&["ls"]).await;
        let model = &inspected["models"][0];
        let name = model["nodeLabel"].as_str().unwrap().strip_prefix("model.").unwrap();
        assert_eq!(found[0]["models"][0]["name"], name);
        assert_eq!(found[0]["cache"]["models"], 1);
        assert_eq!(found[0]["cache"]["version"], env!("CARGO_PKG_VERSION"));
        let text = nodes(scratch, Some(&api), &["--model", model["uri"].as_str().unwrap()]).await;
        assert!(text.stdout.contains("1 of 1 node with this model"), "{}", text.stdout);
    });
}
