//! What a pod sees: the content of the prefix, whatever its names and shape.

use std::time::Instant;

use crate::support::driver::Driver;
use crate::support::models::{BUCKET, MIB, PHI3, content, content_of, put, store_with_phi3};
use crate::support::namespace::mount_tmpfs;
use crate::support::run::{end_to_end, figure};
use localstore::{LocalStore, Operation};
use nix::mount::MsFlags;

#[test]
fn a_pod_sees_exactly_what_was_uploaded_under_the_prefix() {
    end_to_end(async |scratch| {
        let store = LocalStore::builder().max_page(7).start().unwrap();
        let long = "x".repeat(255);
        let large = localstore::synthetic_bytes(9, 0..40 * MIB + 3);
        let files: [(&str, &[u8]); 13] = [
            ("config.json", b"{}"),
            ("empty.txt", b""),
            ("a/b/c/d/e/deep.bin", b"deep"),
            ("with space/two  spaces.txt", b"space"),
            ("100%.txt", b"percent"),
            ("%2e%2e%2fescaped", b"not a path"),
            ("plus+and=&;.txt", b"plus"),
            ("#fragment?query.txt", b"hash"),
            ("Gew\u{fc}rz-\u{6a21}\u{578b}/\u{1f600}.bin", b"utf-8"),
            ("..dots/...", b"dots"),
            ("quote'\"back\\slash~", b"quotes"),
            (long.as_str(), b"the longest name"),
            ("model.safetensors", &large),
        ];
        for (name, bytes) in &files {
            put(&store, name, bytes);
        }
        put(&store, "", b"");
        put(&store, "placeholder/", b"");
        put(&store, "nested/placeholder/", b"");
        // Neighbours, which are not the model's.
        store.put(BUCKET, "models/phi3-mini-instruct/config.json", b"other").unwrap();
        store.put(BUCKET, "models/other.txt", b"other").unwrap();

        let driver = Driver::start(scratch, &store).await;
        let volume = driver.kubelet().inline("1", &PHI3);
        volume.publish().await.unwrap();
        let directories = [
            "a",
            "a/b",
            "a/b/c",
            "a/b/c/d",
            "a/b/c/d/e",
            "with space",
            "..dots",
            "placeholder",
            "nested",
            "nested/placeholder",
            "Gew\u{fc}rz-\u{6a21}\u{578b}",
        ];
        let found = content_of(&volume.target());
        let expected = content(&files, &directories);
        assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
        assert!(found == expected, "some bytes differ");
        assert_eq!(driver.metric("publish_total{result=\"downloaded\"}").await, 1);
    });
}

#[test]
fn a_prefix_without_its_slash_and_the_whole_bucket_are_models_too() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let driver = Driver::start(scratch, &store).await;
        let kubelet = driver.kubelet();
        let plain = kubelet.inline("1", &[("bucket", BUCKET), ("prefix", "models/phi3-mini")]);
        plain.publish().await.unwrap();
        assert!(plain.target().join("tokenizer/vocab.txt").is_file());
        let whole = kubelet.inline("2", &[("bucket", BUCKET), ("prefix", "")]);
        whole.publish().await.unwrap();
        assert!(whole.target().join("models/phi3-mini/tokenizer/vocab.txt").is_file());
    });
}

#[test]
fn filters_choose_by_relative_name_and_exclude_wins() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        put(&store, "tokenizer/secret.txt", b"no");
        let driver = Driver::start(scratch, &store).await;
        let filters = [("include", "*.json,tokenizer/*"), ("exclude", "*secret*")];
        let volume = driver.kubelet().inline("1", &[PHI3.as_slice(), &filters].concat());
        volume.publish().await.unwrap();
        let names: Vec<String> = content_of(&volume.target()).into_keys().collect();
        assert_eq!(names, ["config.json", "tokenizer", "tokenizer/vocab.txt"]);
    });
}

#[test]
fn a_model_may_be_nothing_but_empty_files_and_directories() {
    end_to_end(async |scratch| {
        let store = LocalStore::builder().start().unwrap();
        put(&store, "empty.txt", b"");
        put(&store, "d/", b"");
        let driver = Driver::start(scratch, &store).await;
        let volume = driver.kubelet().inline("1", &PHI3);
        volume.publish().await.unwrap();
        assert!(content_of(&volume.target()) == content(&[("empty.txt", b"")], &["d"]));
        let stats = volume.stats().await.unwrap();
        assert_eq!((stats.usage[0].total, stats.usage[1].total), (0, 3));
    });
}

#[test]
fn three_thousand_objects_are_one_model() {
    end_to_end(async |scratch| {
        // Many small files: the measurement should not depend on the disk.
        mount_tmpfs(scratch, MsFlags::empty(), "256m");
        let store = LocalStore::builder().root(scratch.join("root")).start().unwrap();
        for object in 0..3000 {
            let name = format!("shard-{:02}/{object:04}.bin", object % 50);
            put(&store, &name, format!("object {object}"));
        }
        let driver = Driver::start(scratch, &store).await;
        let kubelet = driver.kubelet();
        for (pod, what) in [("1", "cold"), ("2", "a hit")] {
            let volume = kubelet.inline(pod, &PHI3);
            let started = Instant::now();
            volume.publish().await.unwrap();
            figure(format_args!("3000 objects, {what}: published in {:.0?}", started.elapsed()));
            assert_eq!(content_of(&volume.target()).len(), 3050);
        }
        assert_eq!(store.stats().requests_of(Operation::Get), 3000);
        assert_eq!(store.stats().requests_of(Operation::List), 2 * 3, "pages of a thousand");
    });
}
