//! Invalid requests are refused with the right code and a helpful message, and
//! leave nothing behind.

use std::fs;
use std::os::unix::fs::symlink;

use crate::support::driver::{Driver, Setup};
use crate::support::kubelet::{Volume, mount_capability};
use crate::support::models::{BUCKET, PHI3, PREFIX, content_of, mounts_at, store_with_phi3};
use crate::support::run::end_to_end;
use localstore::{Action, LocalStore, Operation, PutOptions, Rule, StorageTier};
use oci_model_csi::csi::proto::volume_capability::{
    AccessType, BlockVolume, MountVolume, access_mode::Mode,
};
use tonic::Code;

/// What an administrator would have to write for the driver to see a bucket.
const IAM: &str = "Allow group <the user's group> to read objects";

type Attributes<'a> = Vec<(&'a str, &'a str)>;

/// PHI3 with one more attribute.
fn with<'a>(key: &'a str, value: &'a str) -> Attributes<'a> {
    [PHI3.as_slice(), &[(key, value)]].concat()
}

/// Publishes a volume that must be refused with this code and with all of these
/// words in the message, and checks that nothing is left of the attempt.
async fn assert_refused(driver: &Driver, volume: &Volume, code: Code, words: &[&str]) {
    let (found, message) = volume.refused().await;
    assert_eq!(found, code, "{message}");
    for word in words {
        assert!(message.contains(word), "{word:?} is not in {message:?}");
    }
    assert!(message.chars().count() <= 800, "{} characters", message.chars().count());
    assert_nothing_left(driver, volume).await;
}

async fn assert_nothing_left(driver: &Driver, volume: &Volume) {
    assert_eq!(driver.leases(), 0, "a lease is left");
    assert_eq!(mounts_at(&volume.target()), Vec::<String>::new());
    assert_eq!(driver.metric("downloads_in_flight").await, 0);
    assert_eq!(driver.journals(), 0, "a download is left");
    if volume.other_target.is_none() {
        assert!(!volume.target().exists(), "the target is left");
    }
}

#[test]
fn invalid_attributes_are_refused_with_the_remedy() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let driver = Driver::start(scratch, &store).await;
        let long = "x".repeat(5000);
        let cases: Vec<(Attributes, &[&str])> = vec![
            (vec![("prefix", PREFIX)], &["bucket", "missing"]),
            (vec![("bucket", BUCKET)], &["prefix", "missing"]),
            (with("pullpolicy", "Always"), &["pullpolicy", "did you mean pullPolicy"]),
            (with("revison", "sha256:00"), &["did you mean revision"]),
            (with("endpoint", "http://127.0.0.1"), &["endpoint", "known are"]),
            (with("region", "us-phoenix-1"), &["region", "administrators"]),
            (with("auth", "none"), &["auth", "administrators"]),
            (with("cacheScope", "cluster"), &["cacheScope", "administrators"]),
            (with("pullPolicy", "always"), &["always", "Always"]),
            (with("revision", "latest"), &["latest", "sha256:"]),
            (with("revision", "sha256:short"), &["sha256:"]),
            (with("include", "*.{json,txt}"), &["braces"]),
            (with("include", "[a-"), &["']'"]),
            (with("exclude", "a,,b"), &["empty"]),
            (with("namespace", "a/b"), &["namespace", "a/b"]),
            (with("include", &long), &["include", "5000"]),
            (vec![("bucket", "a/b"), ("prefix", "m")], &["bucket", "a/b"]),
            (vec![("bucket", ""), ("prefix", "m")], &["bucket"]),
            (vec![("bucket", ".."), ("prefix", "m")], &["bucket", ".."]),
            (vec![("bucket", BUCKET), ("prefix", "/models")], &["prefix", "leading"]),
            (vec![("bucket", BUCKET), ("prefix", "a//b")], &["prefix", "//"]),
            (vec![("bucket", BUCKET), ("prefix", "../a")], &["prefix", ".."]),
            (vec![("bucket", BUCKET), ("prefix", "a/../b/")], &["prefix", ".."]),
            (vec![("bucket", BUCKET), ("prefix", "a\0b")], &["prefix", "NUL"]),
        ];
        for (index, (attributes, words)) in cases.iter().enumerate() {
            let volume = driver.kubelet().inline(&index.to_string(), attributes);
            assert_refused(&driver, &volume, Code::InvalidArgument, words).await;
        }
        assert_eq!(store.requests().len(), 0, "none of this needed a request");
    });
}

#[test]
fn unknown_keys_of_kubernetes_are_ignored() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let driver = Driver::start(scratch, &store).await;
        for (pod, key) in [("1", "csi.storage.k8s.io/new"), ("2", "storage.kubernetes.io/csi-x")] {
            driver.kubelet().inline(pod, &with(key, "1")).publish().await.unwrap();
        }
    });
}

#[test]
fn a_volume_that_is_not_a_read_only_directory_is_invalid() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let driver = Driver::start(scratch, &store).await;
        let kubelet = driver.kubelet();
        let invalid = async |volume: Volume, words: &[&str]| {
            assert_refused(&driver, &volume, Code::InvalidArgument, words).await;
        };
        let mut volume = kubelet.inline("1", &PHI3);
        volume.read_only = false;
        invalid(volume, &["readOnly: true"]).await;

        let mut volume = kubelet.persistent("pv", "2", &PHI3);
        volume.capability.as_mut().unwrap().access_type = Some(AccessType::Block(BlockVolume {}));
        invalid(volume, &["block", "Filesystem"]).await;

        for mode in [Mode::MultiNodeMultiWriter, Mode::MultiNodeSingleWriter] {
            let mut volume = kubelet.persistent("pv", "3", &PHI3);
            volume.capability = Some(mount_capability(mode));
            invalid(volume, &[mode.as_str_name(), "ReadOnlyMany"]).await;
        }
        let mut volume = kubelet.persistent("pv", "4", &PHI3);
        volume.capability = None;
        invalid(volume, &["volume_capability"]).await;

        for (inline, flag, words) in
            [(false, "rw", ["rw", "noexec"]), (true, "noexec", ["inline", "mount options"])]
        {
            let mut volume = kubelet.persistent("pv", "5", &PHI3);
            volume.inline = inline;
            let mount_flags = vec![flag.to_owned()];
            let mount = MountVolume { mount_flags, ..MountVolume::default() };
            volume.capability.as_mut().unwrap().access_type = Some(AccessType::Mount(mount));
            invalid(volume, &words).await;
        }
        let mut volume = kubelet.inline("6", &PHI3);
        volume.id.clear();
        invalid(volume, &["volume_id"]).await;
    });
}

#[test]
fn a_target_outside_kubelets_pods_is_invalid_and_untouched() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let driver = Driver::start(scratch, &store).await;
        let kubelet = driver.kubelet();
        let pods = scratch.join("kubelet/pods");
        let outside = scratch.join("outside");
        fs::create_dir_all(outside.join("volumes/mount")).unwrap();
        fs::write(outside.join("precious"), "data").unwrap();
        fs::create_dir_all(pods.join("uid")).unwrap();
        symlink(&outside, pods.join("linked")).unwrap();
        let before = content_of(&outside);
        let below = |path: &str| pods.join(path).to_str().unwrap().to_owned();
        for (target, word) in [
            (outside.to_str().unwrap().to_owned(), "--kubelet-dir"),
            (below("../../outside/new"), "'..'"),
            (below("linked/volumes/mount"), "symbolic link"),
            (below("linked"), "--kubelet-dir"),
            ("relative/path".to_owned(), "not absolute"),
            (String::new(), "target_path"),
        ] {
            let mut volume = kubelet.inline("1", &PHI3);
            volume.other_target = Some(target.clone());
            volume.uid = "linked".to_owned();
            assert_refused(&driver, &volume, Code::InvalidArgument, &[word]).await;
            let status = volume.unpublish().await;
            assert_eq!(status.unwrap_err().code(), Code::InvalidArgument, "{target}");
        }
        assert!(content_of(&outside) == before);

        // The pod's identity is trusted only where the path names the same pod.
        let mut volume = kubelet.inline("2", &PHI3);
        volume.other_target = Some(below("another-uid/volumes/kubernetes.io~csi/m/mount"));
        assert_refused(&driver, &volume, Code::InvalidArgument, &["pod.uid", "another-uid"]).await;
    });
}

#[test]
fn a_missing_model_is_not_found_and_the_nearest_ones_are_named() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        store.put(BUCKET, "models/marker/", b"").unwrap();
        let driver = Driver::start(scratch, &store).await;
        let cases: Vec<(Attributes, &[&str])> = vec![
            (vec![("bucket", "nobodys"), ("prefix", "m")], &["nobodys", "exist", "authorized"]),
            (
                vec![("bucket", BUCKET), ("prefix", "models/phi4/")],
                &["models/phi4/", BUCKET, "the nearest prefixes are models/phi3-mini/"],
            ),
            (
                vec![("bucket", BUCKET), ("prefix", "models/phi3")],
                &["models/phi3/", "the listing was answered", "models/phi3-mini/"],
            ),
            (
                vec![("bucket", BUCKET), ("prefix", "models/phi3-mini/config.json")],
                &["is an object, not a directory"],
            ),
            (vec![("bucket", BUCKET), ("prefix", "models/marker")], &["models/marker/"]),
            (with("include", "*.gguf"), &["include", "exclude"]),
            (with("exclude", "*"), &["include", "exclude"]),
            (with("namespace", "sombodyelse"), &["sombodyelse"]),
        ];
        for (index, (attributes, words)) in cases.iter().enumerate() {
            let volume = driver.kubelet().inline(&index.to_string(), attributes);
            assert_refused(&driver, &volume, Code::NotFound, words).await;
        }
        let hidden = driver.kubelet().inline("hidden", &PHI3);
        store.hide("*", BUCKET);
        assert_refused(&driver, &hidden, Code::NotFound, &[BUCKET, "authorized", IAM]).await;
    });
}

#[test]
fn names_that_no_directory_can_show_are_a_failed_precondition_that_names_the_object() {
    end_to_end(async |scratch| {
        let store = LocalStore::builder().start().unwrap();
        let long = "x".repeat(256);
        let cases: Vec<(&str, Vec<&str>, &str)> = vec![
            ("dots", vec!["ok", "../../../etc/passwd"], "'..'"),
            ("dot", vec!["a/./b"], "'.'"),
            ("empty", vec!["a//b"], "empty"),
            ("absolute", vec!["/etc/passwd"], "empty"),
            ("long", vec![long.as_str()], "255"),
            ("both", vec!["a", "a/b"], "rename one"),
            ("marker", vec!["d/"], "has bytes"),
        ];
        for (model, names, _) in &cases {
            for name in names {
                store.put(BUCKET, &format!("{model}/{name}"), b"x").unwrap();
            }
        }
        let driver = Driver::start(scratch, &store).await;
        for (model, names, word) in &cases {
            let volume = driver.kubelet().inline(model, &[("bucket", BUCKET), ("prefix", model)]);
            let shown: String = names[names.len() - 1].chars().take(100).collect();
            let shown = if *model == "both" { "both/a" } else { shown.as_str() };
            assert_refused(&driver, &volume, Code::FailedPrecondition, &[word, shown]).await;
        }
        assert_eq!(store.stats().body_bytes, 0);
    });
}

#[test]
fn archived_objects_too_many_and_too_large_ones_are_a_failed_precondition() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let archived = PutOptions { tier: StorageTier::Archive, ..PutOptions::default() };
        store.put_with(BUCKET, "cold/weights.bin", b"x", archived).unwrap();
        for name in ["1", "2", "3", "4"] {
            store.put(BUCKET, &format!("many/{name}"), b"x").unwrap();
        }
        let setup = Setup::new(scratch, &store)
            .with_config("limits: {maxObjects: 3, maxModelSize: 1MiB}\n");
        let driver = setup.start().await;
        let refused = async |pod: &str, prefix: &str, words: &[&str]| {
            let volume = driver.kubelet().inline(pod, &[("bucket", BUCKET), ("prefix", prefix)]);
            assert_refused(&driver, &volume, Code::FailedPrecondition, words).await;
        };
        refused("1", "cold", &["cold/weights.bin", "archive", "restore"]).await;
        refused("2", "many", &["3 objects", "limits.maxObjects"]).await;
        refused("3", "models/phi3-mini", &["3 MiB", "limits.maxModelSize"]).await;
        let volume = driver
            .kubelet()
            .inline("few", &[("bucket", BUCKET), ("prefix", "many"), ("exclude", "4")]);
        // The limit applies to all objects under the prefix.
        assert_refused(&driver, &volume, Code::FailedPrecondition, &["limits.maxObjects"]).await;
    });
}

#[test]
fn a_key_that_object_storage_does_not_know_is_unauthenticated() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let stranger = LocalStore::builder().start().unwrap();
        let mut setup = Setup::new(scratch, &store);
        let elsewhere = scratch.join("stranger");
        fs::create_dir(&elsewhere).unwrap();
        setup.oci_config = stranger.write_cli_config(&elsewhere).unwrap();
        let driver = setup.start().await;
        let volume = driver.kubelet().inline("1", &PHI3);
        assert_refused(&driver, &volume, Code::Unauthenticated, &["401", "NotAuthenticated"]).await;
    });
}

#[test]
fn a_clock_that_is_wrong_is_named_with_its_offset() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        store.faults().add(Rule::new(Action::DateOffset { secs: 432 }));
        let driver = Driver::start(scratch, &store).await;
        let volume = driver.kubelet().inline("1", &PHI3);
        let (code, message) = volume.refused().await;
        assert_eq!(code, Code::Unauthenticated, "{message}");
        let offset = ["7m11s behind", "7m12s behind", "7m13s behind"];
        assert!(offset.iter().any(|offset| message.contains(offset)), "{message}");
        assert_nothing_left(&driver, &volume).await;
    });
}

#[test]
fn an_answer_403_is_permission_denied() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        store.faults().add(Rule::new(Action::status(403)).operation(Operation::List));
        let driver = Driver::start(scratch, &store).await;
        let volume = driver.kubelet().inline("1", &PHI3);
        assert_refused(&driver, &volume, Code::PermissionDenied, &["403", BUCKET]).await;
    });
}

#[test]
fn object_storage_without_a_listener_is_unavailable() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let driver = Driver::start(scratch, &store).await;
        let address = store.address().to_string();
        drop(store);
        let volume = driver.kubelet().inline("1", &PHI3);
        assert_refused(&driver, &volume, Code::Unavailable, &[&address, "attempts"]).await;
    });
}

#[test]
fn a_driver_with_an_impossible_configuration_does_not_start() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let rule = "{namespaces: [a], buckets: [b], prefixes: [/m], allow: true}";
        for (config, words) in [
            ("cache:\n  minFree: 1MiB\n  sise: 3\n", ["config.yaml, line 3", "sise"]),
            ("download: {concurrency: many}\n", ["config.yaml, line 2", "concurrency"]),
            (
                "download: {concurrency: 0}\n",
                ["config.yaml, line 2", "whole number from 1 to 1024"],
            ),
            ("download: {concurrency: 10000}\n", ["`10000` is", "whole number from 1 to 1024"]),
            ("download:\n\t- x\n", ["config.yaml, line", "tab"]),
            (
                &format!("policy:\n  rules:\n  - {rule}\n"),
                ["config.yaml, line 4", "no leading slash"],
            ),
            (
                "objectStorage: {buckets: [{name: b}, {name: b}]}\n",
                ["config.yaml, line 2", "twice"],
            ),
            ("cache: {requireMount: true}\n", ["cache.requireMount", "mount it"]),
        ] {
            let place = tempfile::tempdir_in(scratch).unwrap();
            let setup = Setup::new(place.path(), &store).with_config(config);
            let (status, log) = setup.refuses().await;
            for word in words {
                assert!(log.contains(word), "{word:?} is not in {log:?} of {config:?}");
            }
            let usage = if config.contains("requireMount") { 1 } else { 2 };
            assert_eq!(status.code(), Some(usage), "{config:?}\n{log}");
        }
    });
}

#[test]
fn a_key_file_that_cannot_be_read_is_named_at_the_start() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let mut setup = Setup::new(scratch, &store);
        setup.oci_config = scratch.join("missing-config");
        let (status, log) = setup.refuses().await;
        assert_eq!(status.code(), Some(2), "{log}");
        assert!(log.contains("missing-config"), "{log}");
    });
}
