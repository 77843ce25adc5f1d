//! `oci-model-csi push` when it is interrupted, when Object Storage fails, and beside other writers.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::time::Duration;

use crate::support::fetch::{Fetch, Fetched};
use crate::support::models::{BUCKET, MIB, PREFIX, assert_synthetic};
use crate::support::push::{
    Push, SIZE, assert_failed, half_way, large, prepared, send, slow_model,
};
use crate::support::run::{eventually, figure, ratio};
use localstore::{Action, LocalStore, Operation, Rule, synthetic_bytes};

/// Checks that the large object has the bytes of its file, with a CRC-32C.
async fn assert_complete(push: &Push, scratch: &std::path::Path, store: &LocalStore) {
    let fetch = Fetch::new(scratch, store).with(&["--output", "json"]);
    let fetched = fetch.run().await.json();
    assert_eq!(fetched["verifiedBy"], serde_json::json!({"crc32c": 2}), "{fetched}");
    assert_synthetic(&fetch.directory.join("model.safetensors"), 1, SIZE);
    assert!(push.directory.exists());
    assert_eq!(store.uploads(BUCKET).unwrap(), [], "no upload is left");
}

#[tokio::test]
async fn a_killed_push_shows_no_half_object_and_is_continued() {
    let (scratch, store, push) = prepared();
    let throttle = slow_model(&push, &store);
    half_way(&push, &store, |pid| send("-KILL", pid)).await;
    assert!(store.etag(BUCKET, &large()).is_err(), "half an object is visible");
    assert_eq!(store.uploads(BUCKET).unwrap().len(), 1);

    store.faults().remove(throttle);
    push.succeeds().await;
    // Both runs together.
    let received = store.stats().received_bytes;
    figure(format_args!(
        "push of 24 MiB in parts of 1 MiB killed half way and run again: {received} bytes received \
         for {} ({:.3})",
        SIZE + 2,
        ratio(received, SIZE + 2)
    ));
    assert!(ratio(received, SIZE + 2) < 1.2, "{received}");
    assert_complete(&push, scratch.path(), &store).await;
}

#[tokio::test]
async fn an_interrupted_push_names_the_commands_that_continue_and_that_give_up() {
    for signal in ["-INT", "-TERM"] {
        let (scratch, store, push) = prepared();
        let throttle = slow_model(&push, &store);
        let stopped = half_way(&push, &store, |pid| send(signal, pid)).await;
        let (_, id) = store.uploads(BUCKET).unwrap().remove(0);
        let abort = format!(
            " --namespace {} --bucket-name {BUCKET} --object-name {} \
             --upload-id {id}",
            store.namespace(),
            large()
        );
        let again = "push --config-file".to_owned();
        assert_failed(&stopped, 6, &["interrupted at", "no half object", &abort, &again]);
        let given = stopped.json()["abort"][0].as_str().unwrap().to_owned();
        let access = given.strip_suffix(&abort).expect("the upload");
        assert!(access.starts_with("oci os multipart abort --config-file /"), "{given}");
        assert!(access.ends_with(&format!(" --endpoint {}", store.endpoint())), "{given}");
        assert!(store.etag(BUCKET, &large()).is_err(), "half an object is visible");
        assert!(store.etag(BUCKET, &format!("{PREFIX}config.json")).is_err(), "it comes last");

        store.faults().remove(throttle);
        let report = push.succeeds().await.json();
        assert!(report["sentBytes"].as_u64().unwrap() < SIZE * 3 / 4, "{report}");
        assert_complete(&push, scratch.path(), &store).await;
    }
}

#[tokio::test]
async fn parts_of_other_bytes_are_sent_again_and_uploads_of_other_sizes_are_named() {
    let (scratch, store, push) = prepared();
    let throttle = slow_model(&push, &store);
    push.file("model.safetensors", synthetic_bytes(2, 0..SIZE));
    half_way(&push, &store, |pid| send("-KILL", pid)).await;
    // Half of its parts are those of the next file.
    let mixed = [synthetic_bytes(2, 0..4 * MIB), synthetic_bytes(1, 4 * MIB..SIZE)].concat();
    push.file("model.safetensors", &mixed);
    half_way(&push.clone().in_parts_of("2MiB"), &store, |pid| send("-KILL", pid)).await;
    assert_eq!(store.uploads(BUCKET).unwrap().len(), 2);
    store.faults().remove(throttle);
    store.reset_stats();
    let report = push.succeeds().await.json();
    let sent = store.stats().received_bytes;
    assert!((SIZE - 4 * MIB..=SIZE).contains(&(sent - 2)), "{sent}");
    let left = store.uploads(BUCKET).unwrap();
    assert_eq!(left.len(), 1, "another part size is another upload: {left:?}");
    assert!(report["abort"][0].as_str().unwrap().ends_with(&left[0].1), "{report}");
    let fetch = Fetch::new(scratch.path(), &store);
    assert_eq!(fetch.run().await.code, 0);
    assert!(std::fs::read(fetch.directory.join("model.safetensors")).unwrap() == mixed);
}

#[tokio::test]
async fn uploads_and_parts_are_found_on_all_pages() {
    let scratch = tempfile::tempdir().unwrap();
    let store = LocalStore::builder().max_page(2).start().unwrap();
    store.create_bucket(BUCKET).unwrap();
    let push = Push::new(scratch.path(), &store).with(&["--part-size", "1MiB", "--output", "json"]);
    let throttle = slow_model(&push, &store);
    half_way(&push, &store, |pid| send("-KILL", pid)).await;
    // Other objects' uploads come before and after it.
    let mut others = push.clone();
    for n in 0..4 {
        others.uri = format!("oci://{BUCKET}/other/{n}/");
        let before = store.uploads(BUCKET).unwrap().len();
        let process = others.spawn();
        eventually("another upload", Duration::from_secs(20), async || {
            (store.uploads(BUCKET).unwrap().len() > before).then_some(())
        })
        .await;
        send("-KILL", &process.id().unwrap().to_string());
        Fetched::of(process).await;
    }
    store.faults().remove(throttle);
    store.reset_stats();
    push.succeeds().await;
    assert!(store.stats().received_bytes < SIZE * 3 / 4, "{}", store.stats().received_bytes);
    assert_eq!(store.uploads(BUCKET).unwrap().len(), 4);
}

#[tokio::test]
async fn what_another_writer_changed_meanwhile_is_named_and_not_overwritten() {
    for existed in [false, true] {
        let (_scratch, store, push) = prepared();
        let throttle = slow_model(&push, &store);
        if existed {
            store.put(BUCKET, &large(), b"older").unwrap();
        }
        let mut theirs = String::new();
        let pushed = half_way(&push, &store, |_| {
            theirs = store.put(BUCKET, &large(), b"theirs").unwrap();
            store.faults().remove(throttle);
        })
        .await;
        assert_failed(&pushed, 1, &[&large(), "another writer", "was not overwritten"]);
        assert_eq!(store.etag(BUCKET, &large()).unwrap(), theirs);
        assert!(store.etag(BUCKET, &format!("{PREFIX}config.json")).is_err(), "it comes last");
    }
}

#[tokio::test]
async fn throttling_failures_and_broken_connections_are_repeated() {
    let (scratch, store, push) = prepared();
    push.file("model.safetensors", synthetic_bytes(1, 0..SIZE));
    push.file("config.json", b"{}");
    for operation in
        [Operation::UploadPart, Operation::Put, Operation::CreateUpload, Operation::CommitUpload]
    {
        for action in [Action::status(429), Action::status(503), Action::status(500)] {
            store.faults().add(Rule::new(action).operation(operation).times(1));
        }
    }
    let broken = Action::ResetAfter { bytes: MIB / 2 };
    store.faults().add(Rule::new(broken).operation(Operation::UploadPart).skip(5).times(2));
    push.succeeds().await;
    assert_complete(&push, scratch.path(), &store).await;
}

#[tokio::test]
async fn a_stored_object_whose_answer_was_lost_is_recognized() {
    let (scratch, store, push) = prepared();
    push.file("model.safetensors", synthetic_bytes(1, 0..SIZE));
    push.file("config.json", b"{}");
    for operation in [Operation::Put, Operation::CommitUpload, Operation::UploadPart] {
        store.faults().add(Rule::new(Action::LostAnswer).operation(operation).times(1));
    }
    push.succeeds().await;
    assert_eq!(store.stats().received_bytes, SIZE + MIB + 2, "one part twice");
    assert_complete(&push, scratch.path(), &store).await;
}

#[tokio::test]
async fn a_part_that_arrives_damaged_is_sent_again_and_damage_that_lasts_is_never_visible() {
    let (scratch, store, push) = prepared();
    push.file("model.safetensors", synthetic_bytes(1, 0..SIZE));
    push.file("config.json", b"{}");
    let wrong = || {
        let other = Action::header("opc-content-crc32c", "AAAAAA==");
        Rule::new(other).operation(Operation::UploadPart)
    };
    let lasting = store.faults().add(wrong());
    let damaged = push.run().await;
    assert_failed(&damaged, 5, &[&large(), "another CRC-32C than its file has"]);
    assert!(store.etag(BUCKET, &large()).is_err());
    store.faults().remove(lasting);
    store.faults().add(wrong().times(1));
    push.succeeds().await;
    assert_complete(&push, scratch.path(), &store).await;
}

#[tokio::test]
async fn a_part_without_a_crc32c_is_compared_by_its_md5() {
    let (_scratch, store, push) = prepared();
    push.file("model.safetensors", synthetic_bytes(1, 0..SIZE));
    let none = Action::no_header("opc-content-crc32c");
    let rule = Rule::new(none).operation(Operation::UploadPart).operation(Operation::Put);
    store.faults().add(rule.operation(Operation::CommitUpload).operation(Operation::Head));
    let report = push.succeeds().await.json();
    let warning = report["warnings"][0].as_str().unwrap();
    assert!(warning.contains("1 of the objects carry no CRC-32C"), "{warning}");
}

#[tokio::test]
async fn a_file_that_changes_while_it_is_read_is_not_stored_and_the_others_are() {
    let (_scratch, store, push) = prepared();
    let throttle = slow_model(&push, &store);
    push.file("tokenizer.json", b"[]");
    let changed = half_way(&push, &store, |_| {
        let path = push.directory.join("model.safetensors");
        OpenOptions::new().append(true).open(path).unwrap().write_all(b"more").unwrap();
        store.faults().remove(throttle);
    })
    .await;
    let words = ["model.safetensors changed while it was read", "1 of 3 files are stored"];
    assert_failed(&changed, 6, &words);
    assert!(store.etag(BUCKET, &large()).is_err());
    assert!(store.etag(BUCKET, &format!("{PREFIX}config.json")).is_err(), "it comes last");
    assert!(store.etag(BUCKET, &format!("{PREFIX}tokenizer.json")).is_ok());
    push.succeeds().await;
}

#[tokio::test]
async fn a_small_file_that_changes_while_it_is_read_is_not_stored() {
    let (_scratch, store, push) = prepared();
    let push = push.in_parts_of("128MiB");
    push.file("model.safetensors", synthetic_bytes(1, 0..SIZE));
    let bandwidth = Action::Bandwidth { bytes_per_sec: SIZE / 3 };
    store.faults().add(Rule::new(bandwidth).operation(Operation::Put));
    let changed = half_way(&push, &store, |_| {
        push.file("model.safetensors", synthetic_bytes(3, 0..SIZE));
    })
    .await;
    assert_failed(&changed, 6, &["model.safetensors changed while it was read"]);
    assert!(store.etag(BUCKET, &large()).is_err());
}

#[tokio::test]
async fn a_file_that_changes_after_it_was_found_stored_holds_the_indexes_back() {
    let (_scratch, store, push) = prepared();
    push.file("tokenizer.json", b"[]");
    push.succeeds().await;
    let throttle = slow_model(&push, &store);
    let changed = half_way(&push, &store, |_| {
        push.file("tokenizer.json", b"{}");
        store.faults().remove(throttle);
    })
    .await;
    assert_failed(&changed, 6, &["tokenizer.json changed after it was read"]);
    assert!(store.etag(BUCKET, &format!("{PREFIX}config.json")).is_err(), "it comes last");
    push.succeeds().await;
}
