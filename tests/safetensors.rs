//! A model that no loader could open is refused before it is published, and
//! the answer names the file.

mod support;

use std::path::Path;

use localstore::LocalStore;
use support::driver::{Driver, Setup};
use support::kubelet::Volume;
use support::models::{BUCKET, PHI3, PREFIX, content_of, put};
use support::run::end_to_end;
use tonic::Code;

/// The driver's own default, where most tests have the check off.
const DEFAULT: &str = "# checkSafetensors has its default.\n";

/// A file of one tensor of `size` bytes.
fn tensors(size: usize) -> Vec<u8> {
    let header = format!(
        r#"{{"__metadata__":{{"format":"pt"}},"w":{{"dtype":"U8","shape":[{size}],"data_offsets":[0,{size}]}}}}"#
    );
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + size, 1);
    bytes
}

/// A store with a model of two shards and their index.
fn store_with_shards() -> LocalStore {
    let store = LocalStore::builder().start().unwrap();
    put(&store, "config.json", b"{}");
    put(
        &store,
        "model.safetensors.index.json",
        br#"{"metadata": {}, "weight_map": {"w": "model-1.safetensors", "v": "model-2.safetensors"}}"#,
    );
    put(&store, "model-1.safetensors", tensors(1000));
    put(&store, "model-2.safetensors", tensors(2000));
    store
}

async fn driver(scratch: &Path, store: &LocalStore) -> Driver {
    Setup::new(scratch, store).with_config(DEFAULT).start().await
}

/// PHI3 with these attributes besides.
fn with<'a>(attributes: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    [PHI3.as_slice(), attributes].concat()
}

async fn assert_refused(volume: &Volume, words: &[&str]) {
    let (code, message) = volume.refused().await;
    assert_eq!(code, Code::FailedPrecondition, "{message}");
    for word in words.iter().chain(&["Upload it again", "exclude", "checkSafetensors"]) {
        assert!(message.contains(word), "{word:?} is not in {message:?}");
    }
    assert!(message.chars().count() <= 800, "{message}");
    assert!(!volume.target().exists(), "the target is left");
}

#[test]
fn files_that_no_loader_can_open_are_refused_by_name_until_they_are_uploaded_again() {
    end_to_end(async |scratch| {
        let store = store_with_shards();
        let driver = driver(scratch, &store).await;
        let kubelet = driver.kubelet();
        let good = tensors(1000);
        let mut header_too_long = good.clone();
        header_too_long[..8].copy_from_slice(&999_999_u64.to_le_bytes());
        let lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1000\n";
        for (pod, bytes, why) in [
            ("1", &good[..good.len() - 100], "cut short"),
            ("2", &header_too_long[..], "cut short"),
            ("3", &[0xee; 100][..], "no safetensors file"),
            ("4", &lfs[..], "Git LFS pointer"),
            ("5", b"", "empty"),
        ] {
            put(&store, "model-1.safetensors", bytes);
            let volume = kubelet.inline(pod, &PHI3);
            assert_refused(&volume, &["model-1.safetensors", why]).await;
            assert_eq!(driver.leases(), 0);
            put(&store, "model-1.safetensors", &good);
            volume.publish().await.unwrap();
            assert_eq!(content_of(&volume.target()).len(), 4);
            volume.unpublish().await.unwrap();
        }
    });
}

#[test]
fn a_shard_that_the_bucket_does_not_have_is_named_and_one_that_the_pod_leaves_out_is_not() {
    end_to_end(async |scratch| {
        let store = store_with_shards();
        store.delete(BUCKET, &format!("{PREFIX}model-2.safetensors")).unwrap();
        let driver = driver(scratch, &store).await;
        let kubelet = driver.kubelet();
        let everything = kubelet.inline("1", &PHI3);
        let words = ["model.safetensors.index.json", "model-2.safetensors, which is not there"];
        assert_refused(&everything, &words).await;
        // The same files, and a request that does not miss any.
        let without = with(&[("exclude", "model-2*")]);
        kubelet.inline("2", &without).publish().await.unwrap();
        let other = with(&[("exclude", "model-3*")]);
        assert_refused(&kubelet.inline("3", &other), &words).await;

        put(&store, "model-2.safetensors", tensors(10));
        everything.publish().await.unwrap();
    });
}

#[test]
fn a_broken_revision_does_not_become_the_one_that_is_present() {
    end_to_end(async |scratch| {
        let store = store_with_shards();
        let mut driver = driver(scratch, &store).await;
        let kubelet = driver.kubelet();
        put(&store, "model-1.safetensors", b"broken!!!");
        let volume = kubelet.inline("1", &with(&[("pullPolicy", "IfNotPresent")]));
        assert_refused(&volume, &["model-1.safetensors"]).await;
        // What it found is found again by a driver that has just started.
        driver.kill().await;
        driver.restart().await;
        assert_refused(&volume, &["model-1.safetensors"]).await;
        put(&store, "model-1.safetensors", tensors(1));
        volume.publish().await.unwrap();
    });
}

#[test]
fn the_check_is_made_once_for_all_pods_and_can_be_switched_off() {
    end_to_end(async |scratch| {
        let store = store_with_shards();
        put(&store, "model-1.safetensors", b"broken!!!");
        let setup = Setup::new(scratch, &store).with_config("checkSafetensors: false\n");
        let mut driver = setup.start().await;
        let kubelet = driver.kubelet();
        let running = kubelet.inline("1", &PHI3);
        running.publish().await.unwrap();
        driver.terminate().await;
        driver.ended().await;

        // A pod that runs stays as it is when the check is switched on; new ones are refused,
        // also where the node has the revision as the newest already.
        driver.setup = driver.setup.clone().with_config(DEFAULT);
        driver.restart().await;
        running.publish().await.unwrap();
        for (pod, policy) in [("2", "Always"), ("3", "IfNotPresent"), ("4", "Never")] {
            let volume = kubelet.inline(pod, &with(&[("pullPolicy", policy)]));
            assert_refused(&volume, &["model-1.safetensors"]).await;
        }
        let said = "a model has safetensors files that no loader can open";
        assert_eq!(driver.log().matches(said).count(), 1, "{}", driver.log());
    });
}
