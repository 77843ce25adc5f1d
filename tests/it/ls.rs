//! `oci-model-csi ls`: what it lists, and its exit codes.

use std::process::{Command, Output};

use crate::support::driver::BINARY;
use crate::support::fetch::Fetch;
use crate::support::models::{BUCKET, put, store_with_phi3};
use localstore::{Action, LocalStore, Operation, PutOptions, Rule};
use serde_json::Value;

/// Runs `ls` with an API key that the store knows.
fn ls(store: &LocalStore, arguments: &[&str]) -> Output {
    let scratch = tempfile::tempdir().unwrap();
    let access = Fetch::new(scratch.path(), store);
    Command::new(BINARY)
        .arg("ls")
        .arg("--config-file")
        .arg(&access.oci_config)
        .args(["--oci-endpoint", &access.endpoint])
        .args(arguments)
        .env_clear()
        .output()
        .unwrap()
}

#[track_caller]
fn text(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), &*stderr), (Some(0), ""));
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[track_caller]
fn json(output: &Output) -> Value {
    serde_json::from_str(&text(output)).unwrap()
}

#[track_caller]
fn assert_fails(output: &Output, code: i32, words: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    for word in words {
        assert!(stderr.contains(word), "{word:?} is not in {stderr:?}");
    }
}

#[test]
fn models_have_the_revision_that_fetch_gets() {
    let store = store_with_phi3();
    store.put(BUCKET, "models/other/w.gguf", b"weights").unwrap();
    let listed = json(&ls(&store, &["oci://ai-model-cache/models/", "--output", "json"]));
    let models = listed["models"].as_array().unwrap();
    let uris: Vec<&str> = models.iter().map(|model| model["uri"].as_str().unwrap()).collect();
    let of = |name| format!("oci://{BUCKET}@axlocalstore/models/{name}/");
    assert_eq!(uris, [of("other"), of("phi3-mini")]);
    assert_eq!((&models[1]["objects"], &models[1]["problems"]), (&3.into(), &Value::Array(vec![])));

    let scratch = tempfile::tempdir().unwrap();
    let pinned = models[1]["revision"].as_str().unwrap();
    let fetch = Fetch::new(scratch.path(), &store).with(&["--revision", pinned]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let fetched = runtime.block_on(fetch.run());
    assert_eq!(fetched.code, 0, "{}", fetched.stderr);

    let table = text(&ls(&store, &["oci://ai-model-cache/models/p*"]));
    let lines: Vec<&str> = table.lines().collect();
    assert!(
        lines[0].starts_with("MODEL ") && lines[1].starts_with("models/phi3-mini/ "),
        "{table}"
    );
    assert_eq!(lines.len(), 2, "{table}");
}

#[test]
fn the_objects_of_a_model_have_their_checksums() {
    let store = store_with_phi3();
    let bare = PutOptions { no_checksums: true, ..PutOptions::default() };
    store.put_with(BUCKET, "models/phi3-mini/bare", b"bare".to_vec(), bare).unwrap();
    let uri = "oci://ai-model-cache/models/phi3-mini/";
    let listed = json(&ls(&store, &[uri, "--objects", "--output", "json"]));
    let objects = listed["objects"].as_array().unwrap();
    assert_eq!(objects.len(), 4);
    assert_eq!((&objects[0]["md5"], &objects[0]["crc32c"]), (&Value::Null, &Value::Null));
    assert_eq!(objects[1]["md5"].as_str().unwrap().len(), 24);
    let models = json(&ls(&store, &[uri, "--output", "json"]));
    assert_eq!(listed["revision"], models["models"][0]["revision"]);
    assert_eq!(models["models"][0]["problems"][0]["kind"], "noChecksum");
    let lines = text(&ls(&store, &[uri, "--objects"]));
    assert!(lines.lines().last().unwrap().starts_with("4 objects, 3 MiB, revision sha256:"));
}

#[test]
fn missing_shards_are_named() {
    let store = store_with_phi3();
    let index = br#"{"weight_map": {"a": "model.safetensors", "b": "2.safetensors"}}"#;
    put(&store, "model.safetensors.index.json", index);
    let table = text(&ls(&store, &["oci://ai-model-cache/models/"]));
    assert!(table.contains("1 shard missing, such as models/phi3-mini/2.safetensors"), "{table}");
}

#[test]
fn what_is_not_there_exits_with_3_and_what_is_not_allowed_with_4() {
    let store = store_with_phi3();
    let nearest = "the nearest prefixes are models/phi3-mini/";
    assert_fails(&ls(&store, &["oci://ai-model-cache/models/phi4"]), 3, &[nearest]);
    assert_fails(&ls(&store, &["oci://ai-model-cache/models/q*"]), 3, &["no model under models/"]);
    assert_fails(
        &ls(&store, &["oci://ai-model-cash/models/"]),
        3,
        &["ai-model-cash", "to allow it"],
    );
    assert_fails(&ls(&store, &["s3://x"]), 2, &["not a model URI"]);
    let both = ["oci://ai-model-cache/models/*", "--objects"];
    assert_fails(&ls(&store, &both), 2, &["objects of one model"]);
    for status in [401, 403] {
        let rule = Rule::new(Action::status(status)).operation(Operation::List);
        let rule = store.faults().add(rule);
        let refused = ls(&store, &["oci://ai-model-cache/models/"]);
        assert_fails(&refused, 4, &[&status.to_string()]);
        store.faults().remove(rule);
    }
}

#[test]
fn a_listing_of_many_pages_is_divided_into_its_models() {
    let store = LocalStore::builder().start().unwrap();
    for model in 0..10 {
        for object in 0..2000 {
            let name = format!("models/m{model}/{}-{object:05}.bin", "n".repeat(200));
            store.put(BUCKET, &name, b"").unwrap();
        }
    }
    let listed = json(&ls(&store, &["oci://ai-model-cache/", "--output", "json"]));
    let models = listed["models"].as_array().unwrap();
    assert_eq!(models.len(), 10);
    assert!(models.iter().all(|model| model["objects"] == 2000), "{listed}");
}
