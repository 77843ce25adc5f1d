//! `oci-model-csi push` and the signals that stop it.

use std::io::{Write as _, pipe};
use std::time::Duration;

use crate::support::models::BUCKET;
use crate::support::push::{SIZE, large, prepared, send, slow_model};
use crate::support::run::eventually;
use tokio::io::{AsyncBufReadExt as _, BufReader};

/// How many bytes a pipe takes that is not read.
const PIPE: usize = 64 * 1024;

#[tokio::test]
async fn a_second_signal_ends_a_push_at_once_even_if_it_cannot_print() {
    let (_scratch, store, push) = prepared();
    // Few requests at once: one that is broken off has sent little.
    let push = push.with(&["--concurrency", "3"]);
    let throttle = slow_model(&push, &store);
    let (_reader, mut full) = pipe().unwrap();
    full.write_all("x".repeat(PIPE).as_bytes()).unwrap();
    let mut process = push.command().stderr(full).spawn().unwrap();
    eventually("half is received", Duration::from_secs(60), async || {
        (store.stats().received_bytes > SIZE / 2).then_some(())
    })
    .await;
    let pid = process.id().unwrap().to_string();
    send("-INT", &pid);
    // The result as JSON comes before the text on stderr, where the program waits.
    let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
    let line = lines.next_line().await.unwrap().unwrap();
    assert!(line.contains("\"abort\":[\"oci os multipart abort"), "{line}");
    send("-INT", &pid);
    let ended = tokio::time::timeout(Duration::from_secs(5), process.wait()).await;
    assert_eq!(ended.unwrap().unwrap().code(), Some(6));

    assert!(store.etag(BUCKET, &large()).is_err(), "half an object is visible");
    store.faults().remove(throttle);
    let report = push.succeeds().await.json();
    assert!(report["sentBytes"].as_u64().unwrap() < SIZE * 3 / 4, "{report}");
}
