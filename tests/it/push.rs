//! `oci-model-csi push`: the objects it leaves, its output, and its exit codes.

use std::fs::{self, File};
use std::time::Duration;

use crate::support::fetch::Fetch;
use crate::support::models::{BUCKET, MIB, PREFIX, content_of, put_large};
use crate::support::push::{assert_failed, prepared};
use crate::support::run::eventually;
use localstore::{Action, Operation, PutOptions, RequestRecord, Rule, synthetic_bytes};
use oci_model_csi::model::{AttributeSource, parse_attributes};
use serde_json::{Value, json};

/// The requests that made an object visible, in their order.
fn stored(requests: &[RequestRecord]) -> Vec<String> {
    let stores = |one: &&RequestRecord| {
        matches!(one.operation, Operation::Put | Operation::CommitUpload) && one.status == 200
    };
    let name = |one: &RequestRecord| {
        let path = one.target.split('?').next().unwrap();
        let name = path.rsplit('/').next().unwrap().replace("%2F", "/");
        name.strip_prefix(PREFIX).unwrap().to_owned()
    };
    requests.iter().filter(stores).map(name).collect()
}

#[tokio::test]
async fn what_was_pushed_is_fetched_with_the_same_bytes_verified_by_crc32c() {
    let (scratch, store, push) = prepared();
    push.small_model();
    let pushed = push.succeeds().await;
    assert_eq!(pushed.stderr, "", "no progress bar without a terminal");
    let report = pushed.json();
    assert_eq!((&report["files"], &report["alreadyStored"]), (&6.into(), &0.into()));
    assert_eq!(report["sentBytes"], report["bytes"]);
    assert_eq!(store.stats().received_bytes, report["bytes"], "each byte once");

    let fetch = Fetch::new(scratch.path(), &store).with(&["--output", "json"]);
    let fetched = fetch.run().await.json();
    assert_eq!(fetched["verifiedBy"], json!({"crc32c": 5, "empty": 1}));
    assert_eq!(fetched["revision"], report["revision"], "as the driver resolves it");
    assert!(content_of(&fetch.directory) == content_of(&push.directory));
}

#[tokio::test]
async fn weights_are_stored_first_and_indexes_only_when_all_else_is_there() {
    let (_scratch, store, push) = prepared();
    push.small_model();
    push.succeeds().await;
    let order = stored(&store.requests());
    let mut first = order[..2].to_vec();
    first.sort();
    assert_eq!(first, ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]);
    let mut last = order[4..].to_vec();
    last.sort();
    assert_eq!(last, ["config.json", "model.safetensors.index.json"]);
}

#[tokio::test]
async fn a_second_push_sends_only_what_has_changed() {
    let (_scratch, store, push) = prepared();
    push.small_model();
    let first = push.succeeds().await.json();
    store.reset_stats();
    let second = push.succeeds().await.json();
    assert_eq!(second["revision"], first["revision"]);
    assert_eq!((&second["sentBytes"], &second["alreadyStored"]), (&0.into(), &6.into()));
    assert_eq!(store.stats().received_bytes, 0);

    // The same size, and other bytes: only the MD5 shows it.
    push.file("model-00001-of-00002.safetensors", synthetic_bytes(9, 0..3 * MIB + 7));
    push.file("config.json", b"{\"model_type\": \"PHI3\"}");
    let third = push.succeeds().await.json();
    assert_ne!(third["revision"], first["revision"]);
    assert_eq!(third["alreadyStored"], 4);
    assert_eq!(store.stats().received_bytes, 3 * MIB + 7 + 22);
    let conditions = store.requests();
    let replaced = conditions.iter().filter(|one| one.if_match.is_some()).count();
    assert!(replaced >= 2, "both were replaced under If-Match: {conditions:?}");
}

#[tokio::test]
async fn an_object_of_another_tool_is_kept_if_its_size_and_md5_are_those_of_the_file() {
    let (_scratch, store, push) = prepared();
    let size = 3 * MIB + 7;
    for (name, part_size, no_checksums) in [
        ("whole.bin", None, false),
        ("parts.bin", Some(MIB), false),
        ("other-parts.bin", Some(2 * MIB), false),
        ("none.bin", None, true),
    ] {
        push.file(name, synthetic_bytes(4, 0..size));
        // The CRC-32C is right wherever there is one: it alone proves nothing here.
        let crc32c = name != "whole.bin";
        let options = PutOptions { part_size, no_checksums, crc32c, ..PutOptions::default() };
        put_large(&store, name, size, 4, options);
    }
    let plan = push.clone().with(&["--dry-run"]).succeeds().await.json();
    let action = |name: &str| {
        let files = plan["plan"].as_array().unwrap();
        files.iter().find(|file| file["name"] == name).unwrap()["action"].clone()
    };
    for (name, expected) in [
        ("whole.bin", "keep"),
        ("parts.bin", "keep"),
        ("other-parts.bin", "replace"),
        ("none.bin", "replace"),
    ] {
        assert_eq!(action(name), expected, "{name}");
    }
    let report = push.succeeds().await.json();
    assert_eq!(report["alreadyStored"], 2);
    let warning = report["warnings"][0].as_str().unwrap();
    assert!(warning.contains("1 of the objects carry no CRC-32C"), "{warning}");
}

#[tokio::test]
async fn the_result_as_text_has_the_uri_the_revision_and_a_volume_to_paste() {
    let (_scratch, store, mut push) = prepared();
    push.small_model();
    push.uri = format!("oci://{BUCKET}@{}/{PREFIX}", store.namespace());
    push.arguments = vec!["--part-size".into(), "1MiB".into()];
    let text = push.succeeds().await.stdout;
    let uri = format!("6 files, 4 MiB in {}: 4 MiB sent in", push.uri);
    for part in [uri.as_str(), "\nrevision sha256:"] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    let (_, volume) = text.split_once("\n\n").unwrap();
    let manifest: Value = serde_saphyr::from_str(volume).unwrap();
    let csi = &manifest["volumes"][0]["csi"];
    assert_eq!((&csi["driver"], &csi["readOnly"]), (&"oci-model-csi.dev".into(), &true.into()));
    let expected = json!({"bucket": BUCKET, "namespace": store.namespace(), "prefix": PREFIX});
    assert_eq!(csi["volumeAttributes"], expected);
    let pinned = volume.replace("# revision", "revision");
    let manifest: Value = serde_saphyr::from_str(&pinned).unwrap();
    let attributes = manifest["volumes"][0]["csi"]["volumeAttributes"].as_object().unwrap();
    let attributes =
        attributes.iter().map(|(key, value)| (key.clone(), value.as_str().unwrap().to_owned()));
    let parsed = parse_attributes(&attributes.collect(), AttributeSource::Pod).unwrap();
    assert!(parsed.0.revision.is_some(), "the commented line pins the revision");
}

#[tokio::test]
async fn a_dry_run_lists_what_would_be_done_and_writes_nothing() {
    let (_scratch, store, mut push) = prepared();
    push.small_model();
    store.put(BUCKET, &format!("{PREFIX}old.bin"), b"x").unwrap();
    store.put(BUCKET, &format!("{PREFIX}config.json"), b"{}").unwrap();
    push.arguments = vec!["--dry-run".into(), "--delete".into()];
    store.reset_stats();
    let text = push.succeeds().await.stdout;
    for line in [
        "send     model-00001-of-00002.safetensors (3 MiB)",
        "replace  config.json (22 B)",
        "delete   old.bin",
        "nothing was sent: a push would send 6 files (4 MiB)",
    ] {
        assert!(text.contains(line), "{line:?} is not in {text}");
    }
    let stats = store.stats();
    let operations: Vec<Operation> = stats.requests.keys().copied().collect();
    let reads = [Operation::GetNamespace, Operation::List];
    assert!(operations.iter().all(|one| reads.contains(one)), "{operations:?}");
    assert!(fs::exists(push.directory.join("config.json")).unwrap());
}

#[tokio::test]
async fn objects_that_the_directory_does_not_have_are_named_and_deleted_only_if_that_is_asked_for()
{
    let (scratch, store, push) = prepared();
    push.small_model();
    for name in ["old.bin", "sub/old.txt", ".cache/state", "marker/"] {
        store
            .put(BUCKET, &format!("{PREFIX}{name}"), if name == "marker/" { "" } else { "x" })
            .unwrap();
    }
    store.put(BUCKET, "models/phi3-mini-2/config.json", b"{}").unwrap();
    let there = |name: &str| store.etag(BUCKET, name).is_ok();
    let kept = push.succeeds().await.json();
    assert_eq!(kept["otherObjects"], json!(["old.bin", "sub/old.txt"]));
    assert_eq!(kept["deleted"], json!([]));
    assert!(there(&format!("{PREFIX}old.bin")));

    let filtered = push.clone().with(&["--delete", "--exclude", "sub/"]).succeeds().await.json();
    assert_eq!(filtered["deleted"], json!(["old.bin"]));
    assert!(!there(&format!("{PREFIX}old.bin")) && there(&format!("{PREFIX}sub/old.txt")));

    let deleted = push.clone().with(&["--delete"]).succeeds().await.json();
    assert_eq!(deleted["deleted"], json!(["sub/old.txt"]));
    for name in [format!("{PREFIX}.cache/state"), "models/phi3-mini-2/config.json".to_owned()] {
        assert!(there(&name), "{name}");
    }
    let fetch = Fetch::new(scratch.path(), &store).with(&["--output", "json"]);
    assert_eq!(fetch.run().await.json()["revision"], deleted["revision"]);
}

#[tokio::test]
async fn objects_are_deleted_after_the_new_ones_were_seen_and_indexes_first() {
    let (_scratch, store, push) = prepared();
    push.small_model();
    for name in ["a.safetensors", "m.txt", "z.safetensors.index.json"] {
        store.put(BUCKET, &format!("{PREFIX}{name}"), b"x").unwrap();
    }
    store.reset_stats();
    push.with(&["--delete"]).succeeds().await;
    let requests = store.requests();
    let at = |operation| requests.iter().position(|one| one.operation == operation).unwrap();
    let (list, delete) = (Operation::List, at(Operation::Delete));
    assert!(requests[delete].target.ends_with("z.safetensors.index.json"), "{requests:?}");
    let stored = requests.iter().rposition(|one| one.operation == Operation::Put).unwrap();
    assert!(requests[stored..delete].iter().any(|one| one.operation == list), "{requests:?}");
    assert_eq!(requests.last().map(|one| one.operation), Some(Operation::ListUploads));
}

#[tokio::test]
async fn auto_adds_requests_while_that_sends_more_and_a_fixed_number_stays() {
    for (concurrency, expected) in [("auto", 32), ("4", 4)] {
        let (_scratch, store, push) = prepared();
        let path = push.file("model.safetensors", b"");
        File::options().write(true).open(path).unwrap().set_len(320 * MIB).unwrap();
        let slow = Action::ConnectionBandwidth { bytes_per_sec: MIB };
        store.faults().add(Rule::new(slow).operation(Operation::UploadPart));
        let process = push.in_parts_of("5MiB").with(&["--concurrency", concurrency]).spawn();
        let most = || store.stats().concurrent_requests_max;
        eventually("so many requests at once", Duration::from_secs(20), async || {
            (most() >= expected).then_some(())
        })
        .await;
        // Long enough for `auto` to add some: the connections send 4 MiB in a second.
        eventually("some seconds of sending", Duration::from_secs(60), async || {
            (store.stats().received_bytes > 16 * MIB).then_some(())
        })
        .await;
        assert!(concurrency == "auto" || most() == expected, "{}", most());
        drop(process);
    }
}

#[tokio::test]
async fn more_requests_at_once_than_there_are_threads_for_are_refused() {
    let (_scratch, _store, push) = prepared();
    let refused = push.with(&["--concurrency", "257"]).run().await;
    assert_failed(&refused, 2, &["`257` is more than the 256 requests of a push"]);
}

#[tokio::test]
async fn no_variable_deletes_anything() {
    let (_scratch, store, mut push) = prepared();
    push.small_model();
    push.environment.push(("OCI_MODEL_CSI_DELETE", "true".to_owned()));
    store.put(BUCKET, &format!("{PREFIX}old.bin"), b"x").unwrap();
    assert_eq!(push.succeeds().await.json()["deleted"], json!([]));
    assert!(store.etag(BUCKET, &format!("{PREFIX}old.bin")).is_ok());
}

#[tokio::test]
async fn a_missing_bucket_is_created_only_if_that_is_asked_for() {
    let (_scratch, store, mut push) = prepared();
    push.small_model();
    push.uri = "oci://new-bucket/phi3/".to_owned();
    let missing = push.run().await;
    assert_failed(&missing, 3, &["new-bucket", "--create-bucket --compartment-id OCID"]);
    let create = push.clone().with(&["--create-bucket", "--compartment-id", "ocid1.compartment.x"]);
    let plan = create.clone().with(&["--dry-run"]).succeeds().await.json();
    assert_eq!(plan["bucketCreated"], true);
    assert_eq!(store.stats().requests_of(Operation::CreateBucket), 0);
    assert_eq!(create.succeeds().await.json()["bucketCreated"], true);
    assert_eq!(create.succeeds().await.json()["bucketCreated"], false);
    for half in [&["--create-bucket"][..], &["--compartment-id", "ocid1.compartment.x"]] {
        assert_eq!(push.clone().with(half).run().await.code, 2);
    }
}
