//! The prefetch list of the configuration: a node downloads the listed models,
//! and follows changes of the file.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use crate::support::api_server::ApiServer;
use crate::support::commands::Commands;
use crate::support::driver::{Driver, Setup};
use crate::support::models::{BUCKET, PHI3, put, store_with_phi3};
use crate::support::run::{end_to_end, eventually};
use localstore::LocalStore;
use serde_json::{Value, json};

const BOUND: Duration = Duration::from_secs(60);

const URI: &str = "oci://ai-model-cache/models/phi3-mini/";
const OTHER: &str = "oci://ai-model-cache/models/other/";

fn list(uris: &[&str]) -> String {
    format!("prefetch: [{}]\n", uris.join(", "))
}

fn put_other(store: &LocalStore) {
    store.put(BUCKET, "models/other/weights", vec![7; 100_000]).unwrap();
}

/// The list as `cache ls` shows it: URI and state.
async fn shown(cache: &Commands) -> Vec<(String, String)> {
    let listing = cache.json(&["ls"]).await;
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let entries = listing["prefetch"].as_array().unwrap().iter();
    entries.map(|entry| (text(&entry["uri"]), text(&entry["state"]))).collect()
}

async fn until(cache: &Commands, expected: &[(&str, &str)]) {
    let expected: Vec<_> =
        expected.iter().map(|(uri, state)| ((*uri).to_owned(), (*state).to_owned())).collect();
    eventually(&format!("the list is {expected:?}"), BOUND, async || {
        (shown(cache).await == expected).then_some(())
    })
    .await;
}

/// Lets the driver ask this API server.
fn with_api_server(mut setup: Setup, scratch: &Path, api: &ApiServer) -> Setup {
    let account = scratch.join("account");
    fs::create_dir_all(&account).unwrap();
    fs::write(account.join("token"), "a-token").unwrap();
    let account = account.to_str().unwrap();
    let arguments = ["--kubernetes-api", &api.url, "--service-account-dir", account];
    setup.arguments.extend(arguments.map(str::to_owned));
    setup
}

/// A list of `URI`, for the nodes of a pool, and `OTHER`.
fn list_of_a_pool(pool: &str) -> String {
    format!("prefetch:\n- {{uri: '{URI}', nodeSelector: {{pool: {pool}}}}}\n- {OTHER}\n")
}

fn node_of(pool: &str) -> Value {
    json!({"metadata": {"name": "node-1", "labels": {"pool": pool, "zone": "a"}}})
}

const NODE: &str = "/api/v1/nodes/node-1";

/// As a ConfigMap's volume does it: a link is exchanged.
fn exchange(file: &Path, number: u32, text: &str) {
    let version = file.with_extension(format!("{number}"));
    fs::write(&version, text).unwrap();
    let link = file.with_extension("new");
    symlink(&version, &link).unwrap();
    fs::rename(&link, file).unwrap();
}

#[test]
fn a_node_warms_itself_and_follows_the_file() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let setup = Setup::new(scratch, &store).with_config(&list(&[URI]));
        let driver: Driver = setup.start().await;
        let cache = Commands::of(&driver.setup);
        until(&cache, &[(URI, "complete")]).await;
        let before = store.stats().object_bytes;
        driver.kubelet().inline("1", &PHI3).publish().await.unwrap();
        assert_eq!(store.stats().object_bytes, before, "the pod downloads nothing");

        let file = scratch.join("config.yaml");
        let rest = fs::read_to_string(&file).unwrap().replace(&list(&[URI]), "");
        put_other(&store);
        exchange(&file, 1, &format!("{rest}{}", list(&[URI, OTHER])));
        until(&cache, &[(URI, "complete"), (OTHER, "complete")]).await;

        // An invalid entry changes nothing, and is logged with its line.
        exchange(&file, 2, &format!("{rest}prefetch:\n- {OTHER}\n- models/phi3-mini\n"));
        eventually("the error is logged", BOUND, async || {
            driver.log().contains("is not a model URI").then_some(())
        })
        .await;
        let log = driver.log();
        let line = log.lines().find(|line| line.contains("is not a model URI")).unwrap();
        let last = rest.lines().count() + 3;
        assert!(line.contains(&format!("config.yaml, line {last}, column 3: ")), "{line}");
        fs::remove_file(&file).unwrap();
        eventually("the absence is logged", BOUND, async || {
            driver.log().contains("No such file").then_some(())
        })
        .await;
        assert_eq!(shown(&cache).await.len(), 2, "the last good list stays");

        exchange(&file, 3, &format!("{rest}serveStaleOnOutage: false\n{}", list(&[OTHER])));
        until(&cache, &[(OTHER, "complete")]).await;
        assert!(driver.log().contains("apply at the next start"));
        let listing = cache.json(&["ls"]).await;
        assert_eq!(
            listing["models"].as_array().unwrap().len(),
            2,
            "models that left the list stay"
        );
        assert_eq!(driver.log().matches("is not a model URI").count(), 1, "logged once");
    });
}

#[test]
fn a_failed_prefetch_is_shown_with_its_cause_and_retried_and_the_rest_continues() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let setup = Setup::new(scratch, &store).with_config(&list(&[OTHER, URI]));
        let driver = setup.start().await;
        let cache = Commands::of(&driver.setup);
        until(&cache, &[(OTHER, "failed"), (URI, "complete")]).await;
        let text = cache.text(&["ls"]).await;
        assert!(text.contains(&format!("failed          {OTHER}: no object under")), "{text}");
        put_other(&store);
        until(&cache, &[(OTHER, "complete"), (URI, "complete")]).await;
    });
}

#[test]
fn a_list_that_is_wrong_stops_the_start_with_its_line() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let config = "cache: {minFree: 1MiB}\nprefetch:\n- s3://bucket/prefix\n";
        let (status, log) = Setup::new(scratch, &store).with_config(config).refuses().await;
        assert_eq!(status.code(), Some(2), "{log}");
        assert!(log.contains("config.yaml, line 3, column 3: ") && log.contains("s3://"), "{log}");
    });
}

#[test]
fn a_model_of_a_pool_is_downloaded_by_its_nodes_only_and_labels_are_followed() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        put_other(&store);
        let api = ApiServer::start().await;
        api.put(NODE, node_of("cpu"));
        let setup = Setup::new(scratch, &store).with_config(&list_of_a_pool("gpu"));
        let driver = with_api_server(setup, scratch, &api).start().await;
        let cache = Commands::of(&driver.setup);
        until(&cache, &[(URI, "not-selected"), (OTHER, "complete")]).await;
        assert_eq!(cache.json(&["ls"]).await["models"].as_array().unwrap().len(), 1);
        let text = cache.text(&["ls"]).await;
        assert!(text.contains(&format!("not selected    {URI} on nodes with pool=gpu")), "{text}");

        // The node joins the pool; a change of the list has the labels read at once.
        api.put(NODE, node_of("gpu"));
        let file = scratch.join("config.yaml");
        let text = fs::read_to_string(&file).unwrap();
        exchange(&file, 1, &text.replace(OTHER, "oci://ai-model-cache/models/absent/"));
        eventually("the model is complete", BOUND, async || {
            shown(&cache).await.contains(&(URI.to_owned(), "complete".to_owned())).then_some(())
        })
        .await;
        // And leaves it again: what is cached stays.
        api.put(NODE, node_of("cpu"));
        exchange(&file, 2, &text);
        until(&cache, &[(URI, "not-selected"), (OTHER, "complete")]).await;
        assert_eq!(cache.json(&["ls"]).await["models"].as_array().unwrap().len(), 2);
        let reads = format!("GET {NODE}?resourceVersion=0");
        assert!(api.requests().iter().filter(|request| **request == reads).count() >= 3);
    });
}

#[test]
fn a_node_whose_labels_are_unknown_downloads_only_what_is_for_every_node_and_says_why() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        put_other(&store);
        let setup = Setup::new(scratch, &store).with_config(&list_of_a_pool("gpu"));
        let driver = setup.start().await;
        let cache = Commands::of(&driver.setup);
        until(&cache, &[(URI, "labels-unknown"), (OTHER, "complete")]).await;
        assert!(cache.text(&["ls"]).await.contains("pool=gpu: the driver has no API server"));
        assert!(driver.log().contains("the labels of this node are unknown"), "{}", driver.log());
    });
}

#[test]
fn without_the_right_to_read_its_node_the_driver_waits_for_it_and_logs_what_the_role_needs() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        put_other(&store);
        let api = ApiServer::start().await;
        api.put(NODE, node_of("gpu"));
        api.forbid(true);
        let setup = Setup::new(scratch, &store).with_config(&list_of_a_pool("gpu"));
        let driver = with_api_server(setup, scratch, &api).start().await;
        let cache = Commands::of(&driver.setup);
        until(&cache, &[(URI, "labels-unknown"), (OTHER, "complete")]).await;
        assert!(cache.text(&["ls"]).await.contains("403"));
        let log = driver.log();
        assert!(log.contains("the role needs get of nodes"), "{log}");
        assert!(!log.contains("a-token"), "{log}");
        // Once the role allows it, the next change of the list is enough.
        api.forbid(false);
        let file = scratch.join("config.yaml");
        let text = fs::read_to_string(&file).unwrap();
        exchange(&file, 1, &text.replace(&format!("- {OTHER}\n"), ""));
        until(&cache, &[(URI, "complete")]).await;
    });
}

/// The revision in the cache that has the object version of this ETag.
async fn revision_with(cache: &Commands, etag: &str) -> Option<String> {
    let inspected = cache.json(&["ls"]).await;
    if inspected["models"].as_array().unwrap().is_empty() {
        return None;
    }
    let models = cache.json(&["inspect", URI]).await;
    let has = |model: &&Value| {
        model["files"].as_array().unwrap().iter().any(|file| file["etag"] == json!(etag))
    };
    let found = models.as_array().unwrap().iter().find(has)?;
    Some(found["revision"].as_str().unwrap().to_owned())
}

#[test]
fn a_roll_back_to_a_kept_revision_downloads_nothing_and_older_revisions_go() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let config = format!("prefetch:\n- {{uri: '{URI}', keepRevisions: 2}}\n");
        let first = put(&store, "config.json", "first");
        let mut driver = Setup::new(scratch, &store).with_config(&config).start().await;
        let cache = Commands::of(&driver.setup);
        until(&cache, &[(URI, "complete")]).await;
        assert!(revision_with(&cache, &first).await.is_some());

        let mut etags = Vec::new();
        for content in ["second", "third"] {
            let etag = put(&store, "config.json", content);
            // An entry is downloaded once; a restart looks for a newer revision.
            driver.kill().await;
            driver.restart().await;
            // A revision is listed while it is downloaded; only a complete one is kept.
            until(&cache, &[(URI, "complete")]).await;
            assert!(revision_with(&cache, &etag).await.is_some(), "{content}");
            etags.push(etag);
        }
        eventually("the first revision goes", BOUND, async || {
            revision_with(&cache, &first).await.is_none().then_some(())
        })
        .await;
        let second = revision_with(&cache, &etags[0]).await.expect("it is kept");
        let listing = cache.json(&["ls"]).await;
        let models = listing["models"].as_array().unwrap();
        assert_eq!(models.len(), 2, "{listing}");
        assert!(models.iter().all(|model| model["kept"] == json!(true)), "{listing}");
        assert!(cache.text(&["ls"]).await.contains("complete, kept"));

        store.reset_stats();
        let attributes = [PHI3.as_slice(), &[("revision", &second)]].concat();
        let pod = driver.kubelet().inline("1", &attributes);
        pod.publish().await.unwrap();
        assert_eq!(store.stats().body_bytes, 0, "nothing is downloaded");
        assert_eq!(fs::read_to_string(pod.target().join("config.json")).unwrap(), "second");
    });
}
