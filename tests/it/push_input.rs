//! What `oci-model-csi push` reads: Hub snapshots, links, and all that it refuses.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use crate::support::fetch::Fetch;
use crate::support::models::{BUCKET, MIB, PREFIX};
use crate::support::push::{assert_failed, prepared};
use localstore::{Operation, synthetic_bytes};
use serde_json::json;

#[tokio::test]
async fn a_snapshot_of_a_hub_cache_is_pushed_with_the_blobs_that_it_links_to() {
    let (scratch, store, mut push) = prepared();
    let repository = scratch.path().join("hub/models--org--name");
    let snapshot = repository.join("snapshots/0123abcd");
    fs::create_dir_all(repository.join("blobs")).unwrap();
    fs::create_dir_all(snapshot.join("sub")).unwrap();
    let weights = synthetic_bytes(1, 0..2 * MIB + 1);
    for (name, blob, bytes) in [
        ("config.json", "c0ffee", b"{}".to_vec()),
        ("sub/model.safetensors", "beef", weights.clone()),
    ] {
        fs::write(repository.join("blobs").join(blob), bytes).unwrap();
        let up = if name.starts_with("sub") { "../../../blobs" } else { "../../blobs" };
        symlink(format!("{up}/{blob}"), snapshot.join(name)).unwrap();
    }
    push.directory = snapshot;
    let report = push.succeeds().await.json();
    assert_eq!((&report["files"], &report["warnings"]), (&2.into(), &json!([])));
    let fetch = Fetch::new(scratch.path(), &store);
    assert_eq!(fetch.run().await.code, 0);
    assert!(fs::read(fetch.directory.join("sub/model.safetensors")).unwrap() == weights);

    let disk = scratch.path().join("disk");
    fs::rename(repository.join("blobs"), &disk).unwrap();
    symlink(&disk, repository.join("blobs")).unwrap();
    let again = push.succeeds().await.json();
    assert_eq!(again["alreadyStored"], 2, "the blobs may be on another disk");
}

#[tokio::test]
async fn the_state_of_git_and_of_downloads_is_left_out_and_that_is_said() {
    let (_scratch, store, push) = prepared();
    push.small_model();
    push.file(".git/config", b"x");
    push.file(".cache/huggingface/download/x.lock", b"x");
    push.file("sub/.cache/x", b"x");
    push.file(".gitattributes", b"x");
    let report = push.succeeds().await.json();
    assert_eq!(report["leftOut"], json!([".cache/", ".git/", "sub/.cache/"]));
    assert_eq!(report["files"], 7);
    assert!(store.etag(BUCKET, &format!("{PREFIX}.gitattributes")).is_ok());
    assert!(store.etag(BUCKET, &format!("{PREFIX}.git/config")).is_err());
    let mut text = push.clone();
    text.arguments.clear();
    let text = text.succeeds().await.stdout;
    assert!(text.contains("left out by default: .cache/, .git/, sub/.cache/"), "{text}");
}

/// What makes a directory one that cannot be pushed, and what is said of it.
type Problem<'a> = (&'a str, &'a dyn Fn(), &'a [&'a str]);

#[tokio::test]
async fn whatever_cannot_be_pushed_is_named_before_anything_is_sent() {
    let (scratch, store, push) = prepared();
    fs::write(scratch.path().join("outside.bin"), b"x").unwrap();
    let dir = &push.directory;
    let make: [Problem<'_>; 10] = [
        (
            "out",
            &|| symlink("../outside.bin", dir.join("out.bin")).unwrap(),
            &["\"out.bin\" is a link to ../outside.bin, outside of"],
        ),
        (
            "gone",
            &|| symlink("nowhere", dir.join("gone.bin")).unwrap(),
            &["\"gone.bin\" is a link to nowhere, which cannot be followed"],
        ),
        (
            "directory",
            &|| symlink("tokenizer", dir.join("linked")).unwrap(),
            &["\"linked\" is a link to tokenizer, a directory"],
        ),
        (
            "pipe",
            &|| nix::unistd::mkfifo(&dir.join("pipe"), nix::sys::stat::Mode::S_IRUSR).unwrap(),
            &["\"pipe\" is not a file"],
        ),
        (
            "bytes",
            &|| fs::write(dir.join(OsStr::from_bytes(b"b\xff.bin")), b"x").unwrap(),
            &["has a name that is not UTF-8"],
        ),
        (
            "bytes of directories",
            &|| {
                let directory = dir.join(OsStr::from_bytes(b"b\xff"));
                fs::create_dir(&directory).unwrap();
                fs::write(directory.join("x.bin"), b"x").unwrap();
            },
            &["/x.bin\" has a name that is not UTF-8"],
        ),
        (
            "line break",
            &|| fs::write(dir.join("a\nb"), b"x").unwrap(),
            &["\"a\\nb\" has a name with a line break"],
        ),
        (
            "long",
            &|| {
                let deep = dir.join(["d".repeat(250).as_str(); 4].join("/"));
                fs::create_dir_all(&deep).unwrap();
                fs::write(deep.join("x.bin"), b"x").unwrap();
            },
            &["has a name over 1,024 bytes with its prefix"],
        ),
        (
            "forms",
            &|| {
                fs::write(dir.join("caf\u{e9}.bin"), b"x").unwrap();
                fs::write(dir.join("cafe\u{301}.bin"), b"x").unwrap();
            },
            &["caf\\u{e9}.bin", "cafe\\u{301}.bin", "two Unicode forms"],
        ),
        (
            "fetch",
            &|| drop(push.file(".oci-model-csi/lock", b"")),
            &["\".oci-model-csi\" is of a fetch that was interrupted"],
        ),
    ];
    for (what, make, words) in make {
        let _ = fs::remove_dir_all(dir);
        push.small_model();
        make();
        let refused = push.run().await;
        assert_failed(&refused, 1, &["cannot be pushed, and nothing was sent (1 problem)"]);
        assert_failed(&refused, 1, words);
        assert_eq!(store.stats().requests.len(), 0, "{what}");
    }
}

#[tokio::test]
async fn many_problems_are_counted_and_excluded_ones_are_none() {
    let (_scratch, _store, push) = prepared();
    push.small_model();
    for n in 0..23 {
        symlink("nowhere", push.directory.join(format!("{n}.lnk"))).unwrap();
    }
    assert_failed(&push.run().await, 1, &["(23 problems)", "; and 3 more"]);
    push.with(&["--exclude", "*.lnk"]).succeeds().await;
}

#[tokio::test]
async fn files_and_directories_that_may_not_be_read_are_all_named_before_anything_is_sent() {
    let (_scratch, store, mut push) = prepared();
    push.small_model();
    let locked = Permissions::from_mode(0o000);
    for n in 0..7 {
        let path = push.file(&format!("locked-{n}.bin"), b"x");
        fs::set_permissions(path, locked.clone()).unwrap();
    }
    fs::set_permissions(push.directory.join("tokenizer"), locked).unwrap();
    if nix::unistd::geteuid().is_root() {
        // Without these capabilities root reads no more than the permissions say.
        push.access.through = vec![
            "setpriv",
            "--inh-caps=-dac_override,-dac_read_search",
            "--bounding-set=-dac_override,-dac_read_search",
        ];
    }
    let refused = push.run().await;
    assert_failed(&refused, 1, &["nothing was sent (8 problems)"]);
    assert_failed(&refused, 1, &["\"tokenizer/\" cannot be listed: Permission denied"]);
    for n in 0..7 {
        let named = format!("\"locked-{n}.bin\" cannot be read: Permission denied");
        assert_failed(&refused, 1, &[&named]);
    }
    assert_eq!(store.stats().requests.len(), 0);
    // What is left out is not even listed.
    let report = push.clone().with(&["--exclude", "locked-*, tokenizer/"]).succeeds().await.json();
    assert_eq!(report["warnings"].as_array().map(Vec::len), Some(0), "{report}");
    let readable = Permissions::from_mode(0o700);
    fs::set_permissions(push.directory.join("tokenizer"), readable).unwrap();
    push.with(&["--exclude", "locked-*"]).succeeds().await;
}

#[tokio::test]
async fn names_that_differ_only_in_case_are_a_warning() {
    let (_scratch, _store, push) = prepared();
    push.small_model();
    push.file("Config.json", b"{}");
    let report = push.succeeds().await.json();
    let warning = report["warnings"][0].as_str().unwrap();
    assert!(
        warning.contains("\"Config.json\" and \"config.json\" differ only in case"),
        "{warning}"
    );
}

#[tokio::test]
async fn what_the_driver_could_not_mount_is_refused_before_anything_is_sent() {
    let (_scratch, store, push) = prepared();
    push.small_model();
    store.put(BUCKET, &format!("{PREFIX}tokenizer"), b"x").unwrap();
    let refused = push.run().await;
    let words = ["nothing was sent, since the driver could not mount the result", "rename one"];
    assert_failed(&refused, 1, &words);
    assert_eq!(store.stats().requests_of(Operation::Put), 0);
    // Without that object there is no conflict.
    push.with(&["--delete"]).succeeds().await;
}

#[tokio::test]
async fn wrong_usage_exits_with_2() {
    let (_scratch, _store, push) = prepared();
    push.small_model();
    for (arguments, word) in [
        (&["--include", "*.{a,b}"][..], "braces"),
        (&["--part-size", "1KiB"], "1MiB to 50GiB"),
        (&["--part-size", "51GiB"], "1MiB to 50GiB"),
        (&["--part-size", "128MB"], "128MiB"),
        (&["--concurrency", "0"], "whole number from 1"),
        (&["--include", "nothing.*"], "has no files that include and exclude select"),
        (&["--sign-key", "x"], "--sign-key"),
    ] {
        let mut wrong = push.clone();
        wrong.arguments.clear();
        assert_failed(&wrong.with(arguments).run().await, 2, &[word]);
    }
    let mut wrong = push.clone();
    wrong.directory = push.directory.join("config.json");
    assert_failed(&wrong.run().await, 2, &["is not a directory"]);
    wrong.directory = push.directory.join("missing");
    assert_failed(&wrong.run().await, 2, &["is not a directory"]);
    wrong = push.clone();
    wrong.uri = "s3://bucket/x".to_owned();
    assert_failed(&wrong.run().await, 2, &["is not a model URI"]);
}

#[tokio::test]
async fn an_unreachable_endpoint_exits_with_1_and_is_not_said_to_be_continued() {
    let (_scratch, store, push) = prepared();
    push.small_model();
    drop(store);
    let pushed = push.run().await;
    assert_eq!(pushed.code, 1, "{}", pushed.stderr);
    assert_eq!(pushed.json()["kind"], "Unavailable");
}
