//! `oci-model-csi fetch`: the files it leaves, its output, and its exit codes.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::support::disk::Disk;
use crate::support::fetch::{Fetch, Fetched};
use crate::support::models::{
    BUCKET, MIB, PREFIX, assert_synthetic, content_of, put, put_large, store_with_phi3,
};
use crate::support::run::{end_to_end, eventually, figure, ratio};
use localstore::{Action, LocalStore, Operation, PutOptions, Rule};

const SIZE: u64 = 40 * MIB;

#[track_caller]
fn assert_failed(fetched: &Fetched, code: i32, words: &[&str]) {
    assert_eq!(fetched.code, code, "{}", fetched.stderr);
    assert_eq!(fetched.stdout, "");
    for word in words {
        assert!(fetched.stderr.contains(word), "{word:?} is not in {:?}", fetched.stderr);
    }
}

/// A store that takes `seconds` to send its model, and the rule for that.
fn slow_store(seconds: u64) -> (LocalStore, u64) {
    let store = LocalStore::builder().start().unwrap();
    put_large(&store, "model.safetensors", SIZE, 1, PutOptions::default());
    put(&store, "config.json", b"{}");
    let bandwidth = Action::Bandwidth { bytes_per_sec: SIZE / seconds };
    let rule = store.faults().add(Rule::new(bandwidth).operation(Operation::Get));
    (store, rule)
}

/// Starts a fetch and ends it by `signal` when a good half is downloaded.
async fn end_half_way(fetch: &Fetch, store: &LocalStore, signal: &str) -> Option<i32> {
    let mut process = fetch.spawn();
    eventually("half is downloaded", Duration::from_secs(60), async || {
        (store.stats().body_bytes > SIZE / 2).then_some(())
    })
    .await;
    let pid = process.id().expect("a running fetch").to_string();
    let killed = tokio::process::Command::new("kill").args([signal, &pid]).status().await;
    assert!(killed.unwrap().success());
    process.wait().await.unwrap().code()
}

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

#[tokio::test]
async fn a_fetch_downloads_the_model_and_reports_it_on_stdout_alone() {
    let (scratch, store) = (scratch(), store_with_phi3());
    let fetch = Fetch::new(scratch.path(), &store);
    let fetched = fetch.run().await;
    assert_eq!(fetched.code, 0, "{}", fetched.stderr);
    assert_eq!(fetched.stderr, "", "no progress bar without a terminal");
    for part in ["3 files", "verified: 3 by md5", "revision sha256:"] {
        assert!(fetched.stdout.contains(part), "{part:?} is not in {:?}", fetched.stdout);
    }
    let names: Vec<String> = content_of(&fetch.directory).into_keys().collect();
    assert_eq!(names, ["config.json", "model.safetensors", "tokenizer", "tokenizer/vocab.txt"]);
    assert_synthetic(&fetch.directory.join("model.safetensors"), 1, 3 * MIB + 7);
}

#[tokio::test]
async fn the_result_as_json_has_the_numbers_and_the_proof_of_each_file() {
    let (scratch, store) = (scratch(), LocalStore::builder().start().unwrap());
    let parts = |mib| PutOptions { part_size: Some(mib * MIB), ..PutOptions::default() };
    // As the oci CLI uploads them, and as some other tool does.
    put_large(&store, "128.bin", 130 * MIB + 1, 1, parts(128));
    put_large(&store, "20.bin", 41 * MIB, 2, parts(20));
    put_large(&store, "plain.bin", MIB, 3, PutOptions::default());
    put_large(&store, "none.bin", MIB, 4, PutOptions { no_checksums: true, ..parts(1) });
    let fetch = Fetch::new(scratch.path(), &store).with(&["--output", "json"]);
    let fetched = fetch.run().await;
    assert_eq!((fetched.code, fetched.stderr.as_str()), (0, ""));
    let report = fetched.json();
    let bytes = 173 * MIB + 1;
    assert_eq!((&report["files"], &report["bytes"]), (&4.into(), &bytes.into()));
    assert_eq!(report["receivedBytes"], bytes);
    assert!(report["revision"].as_str().unwrap().starts_with("sha256:"));
    let expected = serde_json::json!({"multipart_md5": 2, "md5": 1, "size_etag": 1});
    assert_eq!(report["verifiedBy"], expected);
    assert_synthetic(&fetch.directory.join("128.bin"), 1, 130 * MIB + 1);
    assert_synthetic(&fetch.directory.join("20.bin"), 2, 41 * MIB);
}

#[tokio::test]
async fn parts_of_an_unknown_size_are_downloaded_once_and_said_to_be_unproved() {
    let (scratch, store) = (scratch(), LocalStore::builder().start().unwrap());
    let odd = |size| PutOptions { part_size: Some(size), ..PutOptions::default() };
    put_large(&store, "odd.bin", 15 * MIB, 1, odd(7 * MIB));
    put_large(&store, "small-parts.bin", MIB, 2, odd(400_000));
    let fetch = Fetch::new(scratch.path(), &store).with(&["--output", "json"]);
    let fetched = fetch.run().await;
    assert_eq!(fetched.code, 0, "{}", fetched.stderr);
    let expected = serde_json::json!({"multipart_md5": 1, "unknown_layout": 1});
    assert_eq!(fetched.json()["verifiedBy"], expected);
    assert!(fetched.stderr.contains("that uploaders use gives 3 of them"), "{}", fetched.stderr);
    assert_eq!(store.stats().body_bytes, 16 * MIB);
}

#[tokio::test]
async fn where_each_connection_is_slow_more_of_them_are_used_than_at_first() {
    let (scratch, store) = (scratch(), LocalStore::builder().start().unwrap());
    let size = 256 * MIB;
    let crc32c = PutOptions { crc32c: true, ..PutOptions::default() };
    put_large(&store, "model.safetensors", size, 1, crc32c);
    let slow = Action::ConnectionBandwidth { bytes_per_sec: 2 * MIB };
    store.faults().add(Rule::new(slow).operation(Operation::Get));
    let fetched = Fetch::new(scratch.path(), &store).with(&["--log-level", "info"]).run().await;
    assert_eq!(fetched.code, 0, "{}", fetched.stderr);
    let (stats, most) = (store.stats(), store.stats().concurrent_requests_max);
    figure(format_args!("2 MiB/s a connection: {most} requests at once under auto"));
    assert!(most >= 32, "{most} at once: {}", fetched.stderr);
    assert_eq!(stats.body_bytes, size, "each byte once");
}

#[tokio::test]
async fn a_second_fetch_into_the_same_directory_downloads_nothing() {
    let (scratch, store) = (scratch(), store_with_phi3());
    let fetch = Fetch::new(scratch.path(), &store).with(&["--output", "json"]);
    let first = fetch.run().await.json();
    store.reset_stats();
    let second = fetch.run().await.json();
    assert_eq!(second["revision"], first["revision"]);
    assert_eq!((&second["receivedBytes"], store.stats().body_bytes), (&0.into(), 0));
}

#[tokio::test]
async fn a_killed_fetch_resumes_where_it_stopped() {
    let (scratch, (store, throttle)) = (scratch(), slow_store(8));
    let fetch = Fetch::new(scratch.path(), &store).with(&["--output", "json"]);
    end_half_way(&fetch, &store, "-KILL").await;
    let names: Vec<String> = content_of(&fetch.directory).into_keys().collect();
    assert!(names.iter().all(|name| name.starts_with(".oci-model-csi")), "{names:?}");

    store.faults().remove(throttle);
    let report = fetch.run().await.json();
    let served = store.stats().body_bytes;
    let size = SIZE + 2;
    figure(format_args!(
        "fetch of 40 MiB killed half way: {served} bytes served for {size} ({:.3})",
        ratio(served, size)
    ));
    assert!(ratio(served, size) < 1.5, "{served}");
    assert!(report["receivedBytes"].as_u64().unwrap() < SIZE * 7 / 10, "{report}");
    assert_synthetic(&fetch.directory.join("model.safetensors"), 1, SIZE);
    let names: Vec<String> = content_of(&fetch.directory).into_keys().collect();
    assert_eq!(names, ["config.json", "model.safetensors"]);
}

#[tokio::test]
async fn an_interrupted_fetch_says_how_to_resume() {
    let (scratch, (store, throttle)) = (scratch(), slow_store(8));
    let fetch = Fetch::new(scratch.path(), &store);
    assert_eq!(end_half_way(&fetch, &store, "-INT").await, Some(1));
    store.faults().remove(throttle);
    let before = store.stats().body_bytes;
    assert_eq!(fetch.run().await.code, 0);
    let again = store.stats().body_bytes - before;
    assert!(again < SIZE * 6 / 10, "{again} bytes were asked for after the half was there");
}

#[test]
fn the_root_of_a_fresh_ext4_is_an_empty_directory() {
    end_to_end(async |scratch| {
        let (store, disk) = (store_with_phi3(), Disk::ext4(scratch, 32 * MIB, &[]));
        assert!(disk.path.join("lost+found").is_dir());
        let mut fetch = Fetch::new(scratch, &store);
        fetch.directory = disk.path.clone();
        for _ in 0..2 {
            let fetched = fetch.run().await;
            assert_eq!(fetched.code, 0, "{}", fetched.stderr);
        }
        let names: Vec<String> = content_of(&disk.path).into_keys().collect();
        let expected =
            ["config.json", "lost+found", "model.safetensors", "tokenizer", "tokenizer/vocab.txt"];
        assert_eq!(names, expected);
        // Only at the root, and only the directory itself: one with foreign files is refused.
        fs::create_dir(disk.path.join("tokenizer/lost+found")).unwrap();
        assert_failed(&fetch.run().await, 1, &["tokenizer/lost+found is not part of the model"]);
    });
}

#[tokio::test]
async fn warnings_are_printed_with_the_result() {
    let (scratch, store) = (scratch(), LocalStore::builder().start().unwrap());
    for name in ["Config.json", "config.json", "original/w.pth", "a.bin"] {
        put(&store, name, b"x");
    }
    let fetch = Fetch::new(scratch.path(), &store).with(&["--exclude", "original/, *.bin *.onnx"]);
    let fetched = fetch.run().await;
    assert_eq!((fetched.code, fetched.stderr.as_str()), (0, ""));
    for line in [
        "\nwarning: \"Config.json\" and \"config.json\" differ only in case",
        "\nwarning: no name matches the pattern \"*.bin *.onnx\" of exclude: patterns are separated",
    ] {
        assert!(fetched.stdout.contains(line), "{line:?} is not in {:?}", fetched.stdout);
    }
    let json = Fetch::new(scratch.path(), &store).with(&["--output", "json", "--exclude", "zzz"]);
    let json = Fetch { directory: scratch.path().join("second"), ..json }.run().await.json();
    assert_eq!(json["warnings"].as_array().unwrap().len(), 2, "{json}");
    let quoted = Fetch::new(scratch.path(), &store).with(&["--exclude", "'*.bin'"]);
    assert_failed(&quoted.run().await, 2, &["exclude: pattern", "remove the inner quotes"]);
}

#[tokio::test]
async fn a_directory_with_anything_else_in_it_is_refused_and_left_as_it_is() {
    for foreign in ["notes.txt", "tokenizer/mine", "config.json/inside"] {
        let (scratch, store) = (scratch(), store_with_phi3());
        let fetch = Fetch::new(scratch.path(), &store);
        let path = fetch.directory.join(foreign);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "precious").unwrap();
        let before = content_of(&fetch.directory);
        assert_failed(&fetch.run().await, 1, &["not part of the model", "nothing was changed"]);
        assert!(content_of(&fetch.directory) == before);
        assert_eq!(store.stats().body_bytes, 0);
    }
}

#[tokio::test]
async fn a_file_that_differs_from_its_object_is_never_overwritten() {
    let (scratch, store) = (scratch(), store_with_phi3());
    let fetch = Fetch::new(scratch.path(), &store);
    fs::create_dir(&fetch.directory).unwrap();
    let file = fetch.directory.join("config.json");
    fs::write(&file, "my own changes").unwrap();
    assert_failed(&fetch.run().await, 1, &["config.json", "it was not changed"]);
    assert_eq!(fs::read_to_string(&file).unwrap(), "my own changes");
}

#[tokio::test]
async fn an_update_replaces_the_files_of_an_older_revision_and_nothing_else() {
    let (scratch, store) = (scratch(), store_with_phi3());
    let fetch = Fetch::new(scratch.path(), &store);
    assert_eq!(fetch.run().await.code, 0);
    put(&store, "config.json", b"{\"new\": true}");
    let config = fetch.directory.join("config.json");
    let old = fs::read(&config).unwrap();
    assert_failed(&fetch.run().await, 1, &["config.json", "--update"]);
    assert_eq!(fs::read(&config).unwrap(), old);

    let update = fetch.clone().with(&["--update"]);
    fs::write(fetch.directory.join("notes"), "mine").unwrap();
    assert_failed(&update.run().await, 1, &["notes", "not part of the model"]);
    assert_eq!(fs::read(&config).unwrap(), old);

    fs::remove_file(fetch.directory.join("notes")).unwrap();
    let before = store.stats().body_bytes;
    let updated = update.run().await;
    assert_eq!(updated.code, 0, "{}", updated.stderr);
    assert_eq!(fs::read(&config).unwrap(), b"{\"new\": true}");
    assert!(store.stats().body_bytes - before < MIB, "only what changed is downloaded");
    let names: Vec<String> = content_of(&fetch.directory).into_keys().collect();
    assert_eq!(names, ["config.json", "model.safetensors", "tokenizer", "tokenizer/vocab.txt"]);
}

#[tokio::test]
async fn wrong_usage_exits_with_2() {
    let (scratch, store) = (scratch(), store_with_phi3());
    let fetch = Fetch::new(scratch.path(), &store);
    for uri in ["s3://b/p", "oci://", "oci://b@n/../x", "ai-model-cache"] {
        let wrong = Fetch { uri: uri.to_owned(), ..fetch.clone() };
        assert_eq!(wrong.run().await.code, 2, "{uri}");
    }
    for number in ["0", "10000", "-1", "many"] {
        let refused = fetch.clone().with(&[&format!("--concurrency={number}")]).run().await;
        assert_eq!(refused.code, 2, "{number}: {}", refused.stderr);
        let expected = format!("`{number}` is neither auto nor a whole number from 1 to 1024");
        assert!(refused.stderr.contains(&expected), "{}", refused.stderr);
    }
    for (arguments, word) in [
        (["--include", "*.{a,b}"], "braces"),
        (["--revision", "latest"], "latest"),
        (["--auth", "iam"], "instance_principal"),
    ] {
        let wrong = fetch.clone().with(&arguments);
        assert_failed(&wrong.run().await, 2, &[word]);
    }
    assert_failed(&fetch.clone().with(&["--no-such-flag"]).run().await, 2, &["--no-such-flag"]);
    let mut missing = fetch;
    missing.access.oci_config = scratch.path().join("missing");
    assert_failed(&missing.run().await, 2, &["missing"]);
}

#[tokio::test]
async fn a_missing_model_exits_with_3_and_a_refused_one_with_4() {
    let (scratch, store) = (scratch(), store_with_phi3());
    let fetch = Fetch::new(scratch.path(), &store);
    for (uri, word) in [
        (format!("oci://{BUCKET}/models/phi4/"), "the nearest prefixes are models/phi3-mini/"),
        ("oci://nobodys/models/".to_owned(), "Allow group <the user's group>"),
    ] {
        let missing = Fetch { uri, ..fetch.clone() };
        assert_failed(&missing.run().await, 3, &[word]);
    }
    for status in [401, 403] {
        let rule = Rule::new(Action::status(status)).operation(Operation::List);
        let rule = store.faults().add(rule);
        assert_failed(&fetch.run().await, 4, &[&status.to_string()]);
        store.faults().remove(rule);
    }
    assert!(!fetch.directory.exists(), "no directory is created for a missing model");
}

#[tokio::test]
async fn damaged_bytes_exit_with_5_and_are_not_put_into_place() {
    let (scratch, store) = (scratch(), store_with_phi3());
    store.faults().add(Rule::new(Action::FlipByte { offset: 1000 }).operation(Operation::Get));
    let fetch = Fetch::new(scratch.path(), &store);
    assert_failed(&fetch.run().await, 5, &["model.safetensors", "checksum"]);
    assert!(!fetch.directory.join("model.safetensors").exists());
    assert!(!fetch.directory.join("config.json").exists(), "never a part of a model");
}

#[tokio::test]
async fn an_unreachable_endpoint_exits_with_1_and_as_json_says_why() {
    let (scratch, store) = (scratch(), store_with_phi3());
    let fetch = Fetch::new(scratch.path(), &store).with(&["--output", "json"]);
    drop(store);
    let fetched = fetch.run().await;
    assert_eq!(fetched.code, 1);
    let error = fetched.json();
    assert_eq!(error["kind"], "Unavailable");
    assert!(error["error"].as_str().unwrap().contains("attempts"), "{error}");
}

#[tokio::test]
async fn https_is_trusted_by_the_given_certificate_and_not_without() {
    let scratch = scratch();
    let store = LocalStore::builder().tls(true).start().unwrap();
    put(&store, "config.json", b"{}");
    let fetch = Fetch::new(scratch.path(), &store);
    assert!(fetch.access.endpoint.starts_with("https://"));
    let ca = store.ca_file().unwrap().to_str().unwrap();
    let fetched = fetch.clone().with(&["--ca-file", ca]).run().await;
    assert_eq!(fetched.code, 0, "{}", fetched.stderr);
    fs::remove_dir_all(&fetch.directory).unwrap();
    let refused = fetch.run().await;
    assert_eq!(refused.code, 1);
    let said = refused.stderr.to_lowercase();
    assert!(said.contains("certificate") || said.contains("unknownissuer"), "{said}");
}

#[tokio::test]
async fn every_form_of_the_uri_is_the_same_model() {
    let (scratch, store) = (scratch(), store_with_phi3());
    let namespace = store.namespace();
    let mut revisions = Vec::new();
    for (index, uri) in [
        format!("oci://{BUCKET}/{PREFIX}"),
        format!("oci://{BUCKET}@{namespace}/{}", PREFIX.trim_end_matches('/')),
        format!("oci://n/{namespace}/b/{BUCKET}/o/{PREFIX}"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut fetch = Fetch::new(scratch.path(), &store).with(&["--output", "json"]);
        fetch.uri = uri;
        fetch.directory = scratch.path().join(index.to_string());
        revisions.push(fetch.run().await.json()["revision"].clone());
    }
    assert!(revisions.windows(2).all(|pair| pair[0] == pair[1]), "{revisions:?}");
}

#[tokio::test]
async fn a_model_that_is_replaced_meanwhile_is_never_mixed() {
    let (scratch, store) = (scratch(), LocalStore::builder().start().unwrap());
    put_large(&store, "model.safetensors", SIZE, 1, PutOptions::default());
    let replace = Rule::new(Action::ReplaceObject { seed: 2, size: None });
    store.faults().add(replace.operation(Operation::Get).skip(1).times(1));
    let fetch = Fetch::new(scratch.path(), &store);
    let fetched = fetch.run().await;
    assert_eq!(fetched.code, 0, "{}", fetched.stderr);
    assert_synthetic(&fetch.directory.join("model.safetensors"), 2, SIZE);
    assert!(!Path::new(&fetch.directory).join(".oci-model-csi").exists());
}
