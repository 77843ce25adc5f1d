//! A model that no loader could open is refused before it is published, and
//! the answer names the file.

use std::path::Path;
use std::time::Duration;

use crate::support::api_server::ApiServer;
use crate::support::driver::{Driver, Setup};
use crate::support::kubelet::Volume;
use crate::support::models::{BUCKET, PHI3, PREFIX, content_of, put};
use crate::support::run::{end_to_end, eventually};
use localstore::LocalStore;
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
        let words = ["model.safetensors.index.json", "model-2.safetensors, which is missing"];
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
        // A driver that has just started finds the same problem again.
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
        let setup = Setup::new(scratch, &store).with_config("checkSafetensors: ignore\n");
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

const POINTER: &[u8] = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1000\n";

/// A driver whose events go to this API server.
fn with_api(mut setup: Setup, api: &ApiServer) -> Setup {
    let account = setup.scratch.join("account");
    std::fs::create_dir(&account).unwrap();
    std::fs::write(account.join("token"), "a-token").unwrap();
    let account = account.to_str().unwrap();
    let arguments = ["--kubernetes-api", &api.url, "--service-account-dir", account];
    setup.arguments.extend(arguments.map(str::to_owned));
    setup
}

/// The texts of the events of this reason.
fn events(api: &ApiServer, reason: &str) -> Vec<String> {
    api.reported().into_iter().filter(|(found, _)| found == reason).map(|(_, text)| text).collect()
}

#[test]
fn a_good_model_beside_hidden_stale_and_unused_files_is_mounted_with_one_warning() {
    end_to_end(async |scratch| {
        let api = ApiServer::start().await;
        let cases: [(&str, &str, &[u8]); 5] = [
            ("apple", "._model.safetensors", b"\0\x05\x16\x07\0\x02\0\0Mac OS X"),
            ("jupyter", ".ipynb_checkpoints/x.safetensors", b""),
            (
                "stale",
                "model.safetensors.index.json",
                br#"{"weight_map": {"w": "gone.safetensors"}}"#,
            ),
            ("pickled", "pytorch_model.bin", POINTER),
            ("shard", "model-00001-of-00002.safetensors", b"cut"),
        ];
        let store = LocalStore::builder().start().unwrap();
        for (model, path, bytes) in cases {
            store.put(BUCKET, &format!("{model}/model.safetensors"), tensors(1000)).unwrap();
            store.put(BUCKET, &format!("{model}/{path}"), bytes).unwrap();
        }
        let driver = with_api(Setup::new(scratch, &store).with_config(DEFAULT), &api).start().await;
        for (model, path, _) in cases {
            let volume = driver.kubelet().inline(model, &[("bucket", BUCKET), ("prefix", model)]);
            volume.publish().await.unwrap();
            assert!(volume.target().join("model.safetensors").is_file());
            let named =
                async || events(&api, "ModelSuspect").into_iter().find(|e| e.contains(path));
            let event = eventually("the event", Duration::from_secs(10), named).await;
            assert!(event.contains("are not needed") && event.contains("exclude"), "{event}");
        }
        assert_eq!(events(&api, "ModelSuspect").len(), cases.len(), "once each");
        let metrics = driver.metrics().await;
        let counted =
            format!("oci_model_csi_model_suspect_total{{reason=\"weights\"}} {}", cases.len());
        assert!(metrics.contains(&counted), "{metrics}");
        assert_eq!(driver.log().matches("published with a warning").count(), cases.len());
    });
}

#[test]
fn a_pointer_in_place_of_gguf_or_pickled_weights_is_refused() {
    end_to_end(async |scratch| {
        let store = LocalStore::builder().start().unwrap();
        for name in ["model-q4.gguf", "pytorch_model.bin"] {
            store.put(BUCKET, &format!("{name}/{name}"), POINTER).unwrap();
            store.put(BUCKET, &format!("{name}/config.json"), b"{}").unwrap();
        }
        let driver = driver(scratch, &store).await;
        for name in ["model-q4.gguf", "pytorch_model.bin"] {
            let volume = driver.kubelet().inline(name, &[("bucket", BUCKET), ("prefix", name)]);
            assert_refused(&volume, &[name, "Git LFS pointer"]).await;
        }
    });
}

#[test]
fn under_warn_a_broken_model_is_mounted_with_the_warning() {
    end_to_end(async |scratch| {
        let store = store_with_shards();
        put(&store, "model-1.safetensors", b"broken!!!");
        let api = ApiServer::start().await;
        let setup = Setup::new(scratch, &store).with_config("checkSafetensors: warn\n");
        let driver = with_api(setup, &api).start().await;
        driver.kubelet().inline("1", &PHI3).publish().await.unwrap();
        let first = async || events(&api, "ModelSuspect").pop();
        let event = eventually("the event", Duration::from_secs(10), first).await;
        for word in ["model-1.safetensors", "cannot be loaded", "checkSafetensors: warn"] {
            assert!(event.contains(word), "{event}");
        }
    });
}

#[test]
fn patterns_that_matched_nothing_and_names_that_look_alike_are_warnings_of_the_pod() {
    end_to_end(async |scratch| {
        let store = LocalStore::builder().start().unwrap();
        for name in ["original/w.pth", "Config.json", "config.json", "a.bin", "b.onnx"] {
            put(&store, name, b"x");
        }
        let api = ApiServer::start().await;
        let driver = with_api(Setup::new(scratch, &store), &api).start().await;
        let kubelet = driver.kubelet();
        let slash = kubelet.inline("1", &with(&[("exclude", "original/, config.json")]));
        slash.publish().await.unwrap();
        assert!(!slash.target().join("original").exists());
        let spaces = kubelet.inline("2", &with(&[("exclude", "*.bin *.onnx")]));
        spaces.publish().await.unwrap();
        let both = async || {
            let events = events(&api, "ModelSuspect");
            events.iter().find(|event| event.contains("*.bin *.onnx")).cloned()
        };
        let event = eventually("the event", Duration::from_secs(10), both).await;
        assert!(event.contains("separated by commas"), "{event}");
        assert!(
            event.contains("\"Config.json\" and \"config.json\" differ only in case"),
            "{event}"
        );
        assert_eq!(events(&api, "ModelSuspect").len(), 1, "the first volume has none");
    });
}
