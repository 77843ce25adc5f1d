//! `oci-model-csi push` when Object Storage refuses a request, for good or for the moment.

use crate::support::models::{BUCKET, MIB, PREFIX, put_large};
use crate::support::push::{SIZE, assert_failed, half_way, prepared, slow_model};
use crate::support::run::eventually;
use localstore::{Action, Operation, PutOptions, Rule};
use std::time::Duration;

/// A refusal with a code of its own.
fn coded(code: u16, oci_code: &str) -> Action {
    let oci_code = Some(oci_code.to_owned());
    Action::Status { code, oci_code, message: None, retry_after: None }
}

#[tokio::test]
async fn refusals_have_the_exit_code_of_their_kind_and_name_the_policy() {
    let allow = "Allow group <the user's group> to manage objects in compartment";
    for (status, operation, code, word) in [
        (403, Operation::Put, 4, allow),
        (404, Operation::CreateUpload, 3, allow),
        (401, Operation::Put, 4, "401"),
        (400, Operation::Put, 1, "400"),
        (400, Operation::CommitUpload, 1, "400"),
        (404, Operation::CommitUpload, 3, allow),
        (404, Operation::UploadPart, 3, allow),
    ] {
        let (_scratch, store, push) = prepared();
        push.small_model();
        store.faults().add(Rule::new(Action::status(status)).operation(operation));
        assert_failed(&push.run().await, code, &[word]);
    }
    let (_scratch, store, push) = prepared();
    push.small_model();
    // Listing uploads takes a permission of its own, which a push can do without.
    let denied = Rule::new(Action::status(403)).operation(Operation::ListUploads);
    store.faults().add(denied);
    push.succeeds().await;
}

#[tokio::test]
async fn an_exhausted_quota_is_said_with_its_remedy_and_what_is_left_can_be_removed() {
    for operation in [Operation::Put, Operation::CreateUpload, Operation::UploadPart] {
        let (_scratch, store, push) = prepared();
        push.small_model();
        let full = Rule::new(coded(400, "QuotaExceeded")).operation(operation);
        store.faults().add(full);
        let refused = push.run().await;
        assert_failed(&refused, 1, &["QuotaExceeded", "raise the compartment's quota"]);
        // An upload that was being committed may be named too, and be gone.
        for (_, upload) in store.uploads(BUCKET).unwrap() {
            let abort = format!("--upload-id {upload}");
            assert!(refused.stderr.contains(&abort), "{abort} is not in {:?}", refused.stderr);
        }
        assert!(store.etag(BUCKET, &format!("{PREFIX}config.json")).is_err(), "it comes last");
    }
}

#[tokio::test]
async fn a_bucket_that_may_not_be_created_names_the_policy() {
    for (status, code) in [(403, 4), (404, 3)] {
        let (_scratch, store, mut push) = prepared();
        push.small_model();
        push.uri = "oci://new-bucket/phi3/".to_owned();
        store.faults().add(Rule::new(Action::status(status)).operation(Operation::CreateBucket));
        let create = push.with(&["--create-bucket", "--compartment-id", "ocid1.compartment.x"]);
        let allow = "Allow group <the user's group> to manage buckets in compartment";
        assert_failed(&create.run().await, code, &[allow]);
    }
}

#[tokio::test]
async fn a_commit_that_keeps_failing_leaves_the_upload_and_is_continued_without_sending_again() {
    let (_scratch, store, push) = prepared();
    push.small_model();
    let failing = Rule::new(Action::status(503)).operation(Operation::CommitUpload);
    let failing = store.faults().add(failing);
    let words = ["503", "to continue: ", "to give up instead: oci os multipart abort"];
    assert_failed(&push.run().await, 6, &words);
    assert!(store.etag(BUCKET, &format!("{PREFIX}model-00001-of-00002.safetensors")).is_err());
    assert!(store.etag(BUCKET, &format!("{PREFIX}config.json")).is_err(), "it comes last");
    store.faults().remove(failing);
    store.reset_stats();
    push.succeeds().await;
    assert_eq!(store.stats().requests_of(Operation::UploadPart), 0, "all parts are there");
    assert_eq!(store.uploads(BUCKET).unwrap(), []);
}

#[tokio::test]
async fn an_upload_that_has_ended_is_begun_again_by_the_same_command() {
    let invalid = coded(400, "InvalidUploadPart");
    let ended = coded(404, "UploadNotFound");
    for (operation, action) in [
        (Operation::CommitUpload, invalid),
        (Operation::CommitUpload, ended.clone()),
        (Operation::UploadPart, ended),
    ] {
        let (_scratch, store, push) = prepared();
        push.small_model();
        let rule = store.faults().add(Rule::new(action).operation(operation));
        assert_failed(&push.run().await, 6, &["was aborted or changed by another writer"]);
        store.faults().remove(rule);
        push.succeeds().await;
    }
    let (_scratch, store, push) = prepared();
    push.small_model();
    // The code is not known for sure: the list of the parts shows it too.
    for operation in [Operation::UploadPart, Operation::ListParts] {
        store.faults().add(Rule::new(Action::status(404)).operation(operation));
    }
    assert_failed(&push.run().await, 6, &["was aborted or changed by another writer"]);
}

#[tokio::test]
async fn an_object_that_another_push_of_the_same_file_completed_meanwhile_is_kept() {
    let (_scratch, store, push) = prepared();
    let throttle = slow_model(&push, &store);
    let pushed = half_way(&push, &store, |_| {
        let options = PutOptions { part_size: Some(MIB), crc32c: true, ..PutOptions::default() };
        put_large(&store, "model.safetensors", SIZE, 1, options);
        let ended = Rule::new(coded(404, "UploadNotFound"));
        store.faults().add(ended.operation(Operation::UploadPart));
        store.faults().remove(throttle);
    })
    .await;
    assert_eq!(pushed.code, 0, "{}{}", pushed.stdout, pushed.stderr);
}

#[tokio::test]
async fn an_upload_without_parts_of_the_file_is_left_alone_and_named() {
    let (_scratch, store, push) = prepared();
    push.small_model();
    // Of a body that is only slow, the store would still read what has arrived.
    let refused = Rule::new(Action::Disconnect).operation(Operation::UploadPart);
    let refused = store.faults().add(refused);
    let mut other = push.spawn();
    eventually("an empty upload", Duration::from_secs(20), async || {
        (store.uploads(BUCKET).unwrap().len() == 1).then_some(())
    })
    .await;
    other.kill().await.unwrap();
    store.faults().remove(refused);
    let (_, theirs) = store.uploads(BUCKET).unwrap().remove(0);
    let report = push.succeeds().await.json();
    let left: Vec<String> = store.uploads(BUCKET).unwrap().into_iter().map(|(_, id)| id).collect();
    assert_eq!(left, [theirs.as_str()]);
    assert!(report["abort"][0].as_str().unwrap().ends_with(&theirs), "{report}");
}

#[tokio::test]
async fn an_upload_whose_answer_was_lost_is_named() {
    let (_scratch, store, push) = prepared();
    push.small_model();
    store.faults().add(Rule::new(Action::LostAnswer).operation(Operation::CreateUpload).times(1));
    let report = push.succeeds().await.json();
    let left = store.uploads(BUCKET).unwrap();
    assert_eq!(left.len(), 1);
    assert!(report["abort"][0].as_str().unwrap().ends_with(&left[0].1), "{report}");
}

#[tokio::test]
async fn a_commit_that_is_answered_without_an_etag_is_looked_up() {
    let (_scratch, store, push) = prepared();
    push.small_model();
    let none = Action::no_header("etag");
    store.faults().add(Rule::new(none).operation(Operation::CommitUpload));
    push.succeeds().await;
}

#[tokio::test]
async fn a_file_that_arrives_damaged_is_sent_again_up_to_three_times() {
    let (_scratch, store, push) = prepared();
    push.file("config.json", b"{}");
    let damaged = || Rule::new(coded(400, "UnmatchedContentMD5")).operation(Operation::Put);
    store.faults().add(damaged().times(2));
    push.succeeds().await;
    push.file("config.json", b"[]");
    store.faults().add(damaged());
    assert_failed(&push.run().await, 5, &["config.json", "arrived damaged 3 times"]);
}

#[tokio::test]
async fn an_object_with_a_wrong_crc32c_is_sent_again() {
    let (_scratch, store, push) = prepared();
    push.small_model();
    push.succeeds().await;
    let wrong = Rule::new(Action::header("opc-content-crc32c", "AAAAAA=="));
    store.faults().add(wrong.operation(Operation::Head).times(1));
    assert_eq!(push.succeeds().await.json()["alreadyStored"], 5);
}

#[tokio::test]
async fn a_bucket_whose_creation_was_answered_too_late_is_used() {
    let (_scratch, store, mut push) = prepared();
    push.small_model();
    push.uri = "oci://new-bucket/phi3/".to_owned();
    store.faults().add(Rule::new(Action::LostAnswer).operation(Operation::CreateBucket).times(1));
    let create = push.with(&["--create-bucket", "--compartment-id", "ocid1.compartment.x"]);
    create.succeeds().await;
}

#[tokio::test]
async fn objects_that_may_not_be_deleted_are_named_and_those_that_are_gone_are_not() {
    let (_scratch, store, push) = prepared();
    push.small_model();
    let old = format!("{PREFIX}old.bin");
    store.put(BUCKET, &old, b"x").unwrap();
    let push = push.with(&["--delete"]);
    // Object Storage says so to those who may not.
    let denied = Rule::new(Action::status(404)).operation(Operation::Delete);
    let denied = store.faults().add(denied);
    let words = ["1 object that DIR does not have may not be deleted: old.bin", "Allow group"];
    assert_failed(&push.run().await, 4, &words);
    assert!(store.etag(BUCKET, &old).is_ok());
    store.faults().remove(denied);
    store.faults().add(Rule::new(Action::LostAnswer).operation(Operation::Delete).times(1));
    assert_eq!(push.succeeds().await.json()["deleted"], serde_json::json!(["old.bin"]));
    assert!(store.etag(BUCKET, &old).is_err());
}
