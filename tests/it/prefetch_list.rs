//! The prefetch list of the configuration: a node downloads the listed models,
//! and follows changes of the file.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use crate::support::commands::Commands;
use crate::support::driver::{Driver, Setup};
use crate::support::models::{BUCKET, PHI3, store_with_phi3};
use crate::support::run::{end_to_end, eventually};
use localstore::LocalStore;
use serde_json::Value;

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
        assert!(text.contains(&format!("failed    {OTHER}: no object under")), "{text}");
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
