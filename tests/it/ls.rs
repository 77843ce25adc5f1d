//! `oci-model-csi ls`: what it lists, and its exit codes.

use crate::support::access::Access;
use crate::support::fetch::{Fetch, Fetched};
use crate::support::models::{BUCKET, put, store_with_phi3};
use localstore::{Action, LocalStore, Operation, PutOptions, Rule};
use serde_json::Value;

/// Runs `ls` with an API key that the store knows.
async fn ls(store: &LocalStore, arguments: &[&str]) -> Fetched {
    let scratch = tempfile::tempdir().unwrap();
    let mut command = Access::new(scratch.path(), store).command("ls");
    Fetched::of(command.args(arguments).spawn().unwrap()).await
}

#[track_caller]
fn text(listed: &Fetched) -> String {
    assert_eq!((listed.code, listed.stderr.as_str()), (0, ""));
    listed.stdout.clone()
}

#[track_caller]
fn json(listed: &Fetched) -> Value {
    serde_json::from_str(&text(listed)).unwrap()
}

#[track_caller]
fn assert_fails(listed: &Fetched, code: i32, words: &[&str]) {
    let stderr = &listed.stderr;
    assert_eq!(listed.code, code, "{stderr}");
    for word in words {
        assert!(stderr.contains(word), "{word:?} is not in {stderr:?}");
    }
}

#[tokio::test]
async fn models_have_the_revision_that_fetch_gets() {
    let store = store_with_phi3();
    store.put(BUCKET, "models/other/w.gguf", b"weights").unwrap();
    let listed = json(&ls(&store, &["oci://ai-model-cache/models/", "--output", "json"]).await);
    let models = listed["models"].as_array().unwrap();
    let uris: Vec<&str> = models.iter().map(|model| model["uri"].as_str().unwrap()).collect();
    let of = |name| format!("oci://{BUCKET}@axlocalstore/models/{name}/");
    assert_eq!(uris, [of("other"), of("phi3-mini")]);
    assert_eq!((&models[1]["objects"], &models[1]["problems"]), (&3.into(), &Value::Array(vec![])));

    let scratch = tempfile::tempdir().unwrap();
    let pinned = models[1]["revision"].as_str().unwrap();
    let fetch = Fetch::new(scratch.path(), &store).with(&["--revision", pinned]);
    let fetched = fetch.run().await;
    assert_eq!(fetched.code, 0, "{}", fetched.stderr);

    let table = text(&ls(&store, &["oci://ai-model-cache/models/p*"]).await);
    let lines: Vec<&str> = table.lines().collect();
    assert!(
        lines[0].starts_with("MODEL ") && lines[1].starts_with("models/phi3-mini/ "),
        "{table}"
    );
    assert_eq!(lines.len(), 2, "{table}");
}

#[tokio::test]
async fn the_objects_of_a_model_have_their_checksums() {
    let store = store_with_phi3();
    let bare = PutOptions { no_checksums: true, ..PutOptions::default() };
    store.put_with(BUCKET, "models/phi3-mini/bare", b"bare".to_vec(), bare).unwrap();
    let uri = "oci://ai-model-cache/models/phi3-mini/";
    let listed = json(&ls(&store, &[uri, "--objects", "--output", "json"]).await);
    let objects = listed["objects"].as_array().unwrap();
    assert_eq!(objects.len(), 4);
    assert_eq!((&objects[0]["md5"], &objects[0]["crc32c"]), (&Value::Null, &Value::Null));
    assert_eq!(objects[1]["md5"].as_str().unwrap().len(), 24);
    let models = json(&ls(&store, &[uri, "--output", "json"]).await);
    assert_eq!(listed["revision"], models["models"][0]["revision"]);
    assert_eq!(models["models"][0]["problems"][0]["kind"], "noChecksum");
    let lines = text(&ls(&store, &[uri, "--objects"]).await);
    assert!(lines.lines().last().unwrap().starts_with("4 objects, 3 MiB, revision sha256:"));
}

#[tokio::test]
async fn missing_shards_are_named() {
    let store = store_with_phi3();
    let index = br#"{"weight_map": {"a": "model.safetensors", "b": "2.safetensors"}}"#;
    put(&store, "model.safetensors.index.json", index);
    let table = text(&ls(&store, &["oci://ai-model-cache/models/"]).await);
    assert!(table.contains("1 shard missing, such as models/phi3-mini/2.safetensors"), "{table}");
}

#[tokio::test]
async fn what_is_not_there_exits_with_3_and_what_is_not_allowed_with_4() {
    let store = store_with_phi3();
    let nearest = "the nearest prefixes are models/phi3-mini/";
    assert_fails(&ls(&store, &["oci://ai-model-cache/models/phi4"]).await, 3, &[nearest]);
    assert_fails(
        &ls(&store, &["oci://ai-model-cache/models/q*"]).await,
        3,
        &["no model under models/"],
    );
    assert_fails(
        &ls(&store, &["oci://ai-model-cash/models/"]).await,
        3,
        &["ai-model-cash", "to allow it"],
    );
    assert_fails(&ls(&store, &["s3://x"]).await, 2, &["not a model URI"]);
    let both = ["oci://ai-model-cache/models/*", "--objects"];
    assert_fails(&ls(&store, &both).await, 2, &["objects of one model"]);
    for status in [401, 403] {
        let rule = Rule::new(Action::status(status)).operation(Operation::List);
        let rule = store.faults().add(rule);
        let refused = ls(&store, &["oci://ai-model-cache/models/"]).await;
        assert_fails(&refused, 4, &[&status.to_string()]);
        store.faults().remove(rule);
    }
}

#[tokio::test]
async fn a_misspelt_bucket_gets_the_names_of_those_that_may_be_listed() {
    let store = store_with_phi3();
    store.create_bucket("other").unwrap();
    for arguments in [&["oci://ai-model-cash/models/"][..], &["oci://ai-model-cash/", "--objects"]]
    {
        let nearest = "the nearest buckets are ai-model-cache, other";
        assert_fails(&ls(&store, arguments).await, 3, &[nearest]);
    }
    store.faults().add(Rule::new(Action::status(404)).operation(Operation::ListBuckets));
    let missing = ls(&store, &["oci://ai-model-cash/models/"]).await;
    assert_fails(&missing, 3, &["ai-model-cash", "to allow it"]);
    assert!(!missing.stderr.contains("nearest"), "{}", missing.stderr);
}

#[tokio::test]
async fn json_that_a_failure_breaks_off_can_be_parsed_and_has_the_failure() {
    let store = store_with_phi3();
    let denied = Rule::new(Action::status(403)).operation(Operation::Head).object("*tokenizer*");
    store.faults().add(denied);
    let uri = "oci://ai-model-cache/models/phi3-mini/";
    let listed = ls(&store, &[uri, "--objects", "--output", "json"]).await;
    assert_fails(&listed, 4, &["403"]);
    let value: Value = serde_json::from_str(&listed.stdout).unwrap();
    assert_eq!((&value["kind"], &value["revision"]), (&"Denied".into(), &Value::Null));
    assert!(!value["objects"].as_array().unwrap().is_empty(), "{value}");
}

#[tokio::test]
async fn an_index_is_unread_only_where_it_may_not_be_read() {
    let store = store_with_phi3();
    put(&store, "model.safetensors.index.json", b"{\"weight_map\": {}}");
    let uri = ["oci://ai-model-cache/models/", "--output", "json"];
    for (status, code) in [(403, 0), (404, 0), (401, 4), (400, 2)] {
        let rule = Rule::new(Action::status(status)).operation(Operation::Get);
        let rule = store.faults().add(rule);
        let listed = ls(&store, &uri).await;
        assert_eq!(listed.code, code, "{status}: {}{}", listed.stdout, listed.stderr);
        if code == 0 {
            let problem = &json(&listed)["models"][0]["problems"][0];
            assert_eq!(problem["kind"], "unreadIndex", "{status}");
        }
        store.faults().remove(rule);
    }
}

#[tokio::test]
async fn names_that_differ_only_in_case_are_a_problem() {
    let store = store_with_phi3();
    put(&store, "Config.json", b"{}");
    let table = text(&ls(&store, &["oci://ai-model-cache/models/"]).await);
    let said =
        "1 name that differs from another only in case, such as models/phi3-mini/config.json";
    assert!(table.contains(said), "{table}");
}

#[tokio::test]
async fn a_listing_of_many_pages_is_divided_into_its_models() {
    let store = LocalStore::builder().start().unwrap();
    for model in 0..10 {
        for object in 0..2000 {
            let name = format!("models/m{model}/{}-{object:05}.bin", "n".repeat(200));
            store.put(BUCKET, &name, b"").unwrap();
        }
    }
    let listed = json(&ls(&store, &["oci://ai-model-cache/", "--output", "json"]).await);
    let models = listed["models"].as_array().unwrap();
    assert_eq!(models.len(), 10);
    assert!(models.iter().all(|model| model["objects"] == 2000), "{listed}");
}
