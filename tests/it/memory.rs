//! Attacks on the driver's memory: each runs with the driver in a control group
//! of 256 MiB, beside a publish that must succeed.
//!
//! `figure:` lines report the peak of the driver's resident memory.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::driver::{Driver, Setup, memory_of};
use crate::support::kubelet::{Volume, is_final, mount_capability};
use crate::support::models::{BUCKET, MIB, PHI3, store_with_phi3};
use crate::support::run::{end_to_end_within, eventually, figure};
use futures_util::future::join_all;
use localstore::LocalStore;
use oci_model_csi::csi::proto::CreateVolumeRequest;
use oci_model_csi::csi::proto::volume_capability::access_mode::Mode;
use oci_model_csi::model::{
    Attachment, BlobId, BucketName, Manifest, ManifestFile, ModelSource, NamespaceName, Prefix,
    Revision,
};
use tonic::Code;

/// The memory limit of the driver.
const LIMIT: u64 = 256 * MIB;

/// For each of these tests: some list a hundred thousand objects.
const PATIENCE: Duration = Duration::from_secs(400);

const OTHER: &str = "hostile";

/// A revision that no bucket has: a model is resolved and not downloaded.
const NO_REVISION: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000000";

/// A control group of the memory controller, of version 1 or 2.
struct Group {
    path: PathBuf,
    /// Where this process came from.
    home: PathBuf,
    is_v2: bool,
}

impl Group {
    /// `None` where none can be made, unless that is required.
    fn new() -> Option<Self> {
        let groups = fs::read_to_string("/proc/self/cgroup").expect("the process's groups");
        let of = |controller: &str| {
            groups.lines().find_map(|line| {
                let mut parts = line.splitn(3, ':').skip(1);
                let (controllers, path) = (parts.next()?, parts.next()?);
                let found = controllers.split(',').any(|one| one == controller);
                found.then(|| path.trim_start_matches('/').to_owned())
            })
        };
        let (root, own, is_v2) = match of("memory") {
            Some(own) => (Path::new("/sys/fs/cgroup/memory"), own, false),
            None => (Path::new("/sys/fs/cgroup"), of("")?, true),
        };
        let home = root.join(own);
        // In version 2 a group that has processes has no children with controllers.
        let parent = if is_v2 { root.to_owned() } else { home.clone() };
        let path = parent.join(format!("memory-test-{}", std::process::id()));
        let file = if is_v2 { "memory.max" } else { "memory.limit_in_bytes" };
        let made =
            fs::create_dir(&path).and_then(|()| fs::write(path.join(file), LIMIT.to_string()));
        match made {
            Ok(()) => Some(Self { path, home, is_v2 }),
            Err(error) => {
                let text = format!("SKIPPED: no control group can be made here: {error}\n");
                crate::support::namespace::forward(text.as_bytes());
                let required = std::env::var_os("OCI_MODEL_CSI_TEST_REQUIRE_NAMESPACES");
                assert!(required.is_none(), "{text}");
                None
            }
        }
    }

    /// Starts a driver in it; only the driver stays there.
    async fn start(&self, setup: Setup) -> Driver {
        let enter = |group: &Path| {
            fs::write(group.join("cgroup.procs"), std::process::id().to_string()).expect("a group");
        };
        enter(&self.path);
        let driver = setup.start().await;
        enter(&self.home);
        driver
    }

    /// Processes of it that the kernel killed.
    fn killed(&self) -> u64 {
        let file = if self.is_v2 { "memory.events" } else { "memory.oom_control" };
        let text = fs::read_to_string(self.path.join(file)).expect("the group's events");
        let line = text.lines().find_map(|line| line.strip_prefix("oom_kill ")).expect("a count");
        line.trim().parse().expect("a number")
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The driver ends a moment after its test.
        for _ in 0..100 {
            if fs::remove_dir(&self.path).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Resident memory of the driver in MiB: now, and at most so far.
fn memory(driver: &Driver) -> (u64, u64) {
    (memory_of(driver.pid(), "VmRSS") / MIB, memory_of(driver.pid(), "VmHWM") / MIB)
}

/// Runs an attack beside a publish of a small model, which must succeed, and
/// ends the driver gracefully.
async fn beside_a_publish(
    scratch: &Path,
    what: &str,
    mode: &'static str,
    config: &str,
    prepare: impl AsyncFnOnce(&LocalStore, &Path),
    attack: impl AsyncFnOnce(&Driver),
) {
    let Some(group) = Group::new() else { return };
    let store = store_with_phi3();
    prepare(&store, scratch).await;
    let mut setup = Setup::new(scratch, &store).with_config(config);
    setup.mode = mode;
    let mut driver = group.start(setup).await;
    let (idle, _) = memory(&driver);
    let kubelet = driver.kubelet();
    let victim = async {
        if mode == "controller" {
            eventually("the other claim gets its volume", PATIENCE, async || {
                claim(&driver, "victim", &PHI3).await.ok()
            })
            .await;
        } else {
            let mut volume = kubelet.inline("900", &PHI3);
            "team-b".clone_into(&mut volume.namespace);
            volume.mount().await;
            assert!(volume.target().join("config.json").is_file());
        }
    };
    tokio::join!(attack(&driver), victim);
    let (after, peak) = memory(&driver);
    figure(format_args!("{what}: {idle} MiB idle, {peak} MiB at most, {after} MiB after it"));
    assert_eq!(group.killed(), 0, "{what}: out of memory");
    driver.terminate().await;
    let status = driver.ended().await;
    assert!(status.success(), "{what}: {status}");
}

/// Publishes until the answer is a final error, and returns it.
async fn until_refused(volume: &Volume) -> (Code, String) {
    eventually("a final refusal", PATIENCE, async || {
        let (code, message) = volume.refused().await;
        is_final(code).then_some((code, message))
    })
    .await
}

async fn claim(
    driver: &Driver,
    name: &str,
    parameters: &[(&str, &str)],
) -> Result<i64, tonic::Status> {
    let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    let request = CreateVolumeRequest {
        name: name.to_owned(),
        volume_capabilities: vec![mount_capability(Mode::MultiNodeReaderOnly)],
        parameters: parameters.iter().map(owned).collect(),
        ..CreateVolumeRequest::default()
    };
    let made = driver.kubelet().controller().await.create_volume(request).await?;
    Ok(made.into_inner().volume.expect("a volume").capacity_bytes)
}

/// Empty objects with names of 507 segments, none of whose directories is another's.
fn deep_name(number: usize) -> String {
    format!("b/{number:05}/{}w", "x/".repeat(505))
}

fn put_many(store: &LocalStore, prefix: &str, objects: usize) {
    for number in 0..objects {
        store.put(BUCKET, &format!("{prefix}{number:06}-weights.bin"), b"").unwrap();
    }
}

#[test]
fn a_directory_bomb_is_refused_and_others_are_served() {
    end_to_end_within(PATIENCE, async |scratch| {
        beside_a_publish(
            scratch,
            "3,000 objects of 507 segments",
            "all",
            "",
            async |store, _| {
                for number in 0..3000 {
                    store.put(BUCKET, &deep_name(number), b"").unwrap();
                }
            },
            async |driver| {
                let kubelet = driver.kubelet();
                // kubelet comes again.
                for pod in ["1", "2", "3"] {
                    let volume = kubelet.inline(pod, &[("bucket", BUCKET), ("prefix", "b/")]);
                    let (code, message) = until_refused(&volume).await;
                    assert_eq!(code, Code::FailedPrecondition, "{message}");
                    assert!(message.contains("more than 100000 directories"), "{message}");
                }
                assert_eq!(driver.in_cache("models").len(), 1, "the victim's");
            },
        )
        .await;
    });
}

#[test]
fn directories_count_with_their_size_on_the_disk() {
    end_to_end_within(PATIENCE, async |scratch| {
        beside_a_publish(
        scratch,
        "150 objects of 507 segments, 64 MiB of cache",
        "all",
        "cache: {maxSize: 64MiB, minFree: 1MiB, minFreeInodes: 0%}\nlimits: {maxModelSize: 512MiB}\n",
        async |store, _| {
            for number in 0..150 {
                store.put(BUCKET, &deep_name(number), b"").unwrap();
            }
        },
        async |driver| {
            let volume = driver.kubelet().inline("1", &[("bucket", BUCKET), ("prefix", "b/")]);
            let message = eventually("a refusal for space", PATIENCE, async || {
                let (code, message) = volume.refused().await;
                (code == Code::ResourceExhausted).then_some(message)
            })
            .await;
            assert!(message.contains("needs 29"), "297 MiB: {message}");
            volume.unpublish().await.unwrap();
        },
    )
    .await;
    });
}

#[test]
fn a_bomb_that_is_in_the_cache_already_does_not_end_the_next_start() {
    end_to_end_within(PATIENCE, async |scratch| {
        beside_a_publish(
            scratch,
            "a manifest of 400 files and 202,000 directories on the disk",
            "all",
            "",
            async |_, scratch| plant_old_model(scratch),
            async |driver| {
                // The victim's and the planted one: all of the cache was looked at.
                eventually("the cache was looked at", Duration::from_secs(90), async || {
                    let summary = |key: &String| {
                        driver.setup.cache.join("models").join(key).join("summary.json").exists()
                    };
                    let all = driver.in_cache("models");
                    (all.len() == 2 && all.iter().all(summary)).then_some(())
                })
                .await;
            },
        )
        .await;
    });
}

/// A model as older versions left it: its manifest names every directory.
fn plant_old_model(scratch: &Path) {
    let source = ModelSource {
        location: "us-ashburn-1".to_owned(),
        namespace: NamespaceName::parse("old").unwrap(),
        bucket: BucketName::parse(OTHER).unwrap(),
        prefix: Prefix::parse("b/").unwrap(),
    };
    let revision = Revision::of([("w", 0, "e")].into_iter());
    let mut files = Vec::new();
    let mut directories = Vec::new();
    for number in 0..400 {
        let name = deep_name(number);
        let path = name.trim_start_matches("b/").to_owned();
        directories.extend(path.match_indices('/').map(|(at, _)| path[..at].to_owned()));
        let blob = BlobId::of("", &source, &name, "e");
        files.push(ManifestFile { path, size: 0, etag: "e".to_owned(), md5: None, blob });
    }
    directories.sort();
    let (scope, warnings, kept) = (String::new(), Vec::new(), Attachment::default());
    let manifest = Manifest { source, scope, revision, files, directories, warnings, kept };
    let cache = scratch.join("cache");
    let model = cache.join("models").join(manifest.key().as_str());
    fs::create_dir_all(model.join("tree")).unwrap();
    fs::write(cache.join("VERSION"), "oci-model-csi cache 1\n").unwrap();
    manifest.write(fs::File::create(model.join("manifest.json")).unwrap()).unwrap();
    fs::set_permissions(&cache, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
}

#[test]
fn many_volumes_of_one_large_prefix_share_one_listing() {
    end_to_end_within(PATIENCE, async |scratch| {
        beside_a_publish(
            scratch,
            "20 volumes that differ in exclude, over 100,000 objects",
            "all",
            "",
            async |store, _| put_many(store, "n/", 100_000),
            async |driver| {
                let kubelet = driver.kubelet();
                let refusals = (0..20).map(|number: u32| {
                    let exclude = format!("*{number}.none");
                    let attributes = [
                        ("bucket", BUCKET),
                        ("prefix", "n/"),
                        ("exclude", &*exclude),
                        ("revision", NO_REVISION),
                    ];
                    let volume = kubelet.inline(&number.to_string(), &attributes);
                    async move { until_refused(&volume).await }
                });
                for (code, message) in join_all(refusals).await {
                    assert_eq!(code, Code::FailedPrecondition, "{message}");
                    assert!(message.contains("is at revision"), "{message}");
                }
            },
        )
        .await;
    });
}

#[test]
fn claims_over_a_large_prefix_leave_the_controller_alive() {
    end_to_end_within(PATIENCE, async |scratch| {
        beside_a_publish(
            scratch,
            "4 claims over 100,000 objects, at the Controller",
            "controller",
            "",
            async |store, _| put_many(store, "n/", 100_000),
            async |driver| {
                let claims = (0..4).map(|number: u32| async move {
                    let name = format!("pvc-{number}");
                    let include = format!("*,{number}");
                    let parameters = [("bucket", BUCKET), ("prefix", "n/"), ("include", &*include)];
                    eventually("a volume", PATIENCE, async || {
                        claim(driver, &name, &parameters).await.ok()
                    })
                    .await
                });
                assert_eq!(join_all(claims).await, [0, 0, 0, 0]);
            },
        )
        .await;
    });
}

#[test]
fn an_oversized_page_is_not_read_into_memory() {
    let page = |object: &str, bytes: usize| {
        format!(r#"{{"objects":[{}]}}"#, vec![object; bytes / (object.len() + 1)].join(","))
    };
    end_to_end_within(PATIENCE, async |scratch| {
        beside_a_publish(
            scratch,
            "pages of 32 MiB",
            "all",
            "",
            async |store, _| {
                store.create_bucket(OTHER).unwrap();
                store.faults().list_as(OTHER, page("{}", 32 << 20));
            },
            async |driver| {
                let kubelet = driver.kubelet();
                let refusals = (0..8).map(|number: u32| {
                    let prefix = format!("p{number}/");
                    let attributes = [("bucket", OTHER), ("prefix", &*prefix)];
                    let volume = kubelet.inline(&number.to_string(), &attributes);
                    async move { volume.refused().await }
                });
                join_all(refusals).await;
            },
        )
        .await;
    });
}

#[test]
fn a_size_that_no_object_has_is_refused_by_name() {
    end_to_end_within(PATIENCE, async |scratch| {
        beside_a_publish(
            scratch,
            "a listed size of 2^64-1",
            "all",
            "",
            async |store, _| {
                store.create_bucket(OTHER).unwrap();
                let object = r#"{"name":"m/w","size":18446744073709551615,"etag":"e"}"#;
                store.faults().list_as(OTHER, format!(r#"{{"objects":[{object}]}}"#));
            },
            async |driver| {
                let volume = driver.kubelet().inline("1", &[("bucket", OTHER), ("prefix", "m/")]);
                let (code, message) = until_refused(&volume).await;
                assert_eq!(code, Code::FailedPrecondition, "{message}");
                assert!(message.contains("\"m/w\"") && message.contains("10 TiB"), "{message}");
            },
        )
        .await;
    });
}

#[test]
fn the_memory_of_models_with_many_files_is_freed_when_they_are_unpublished() {
    let large = std::env::var("OCI_MODEL_CSI_TEST_LARGE").is_ok_and(|value| value == "1");
    let (models, files) = if large { (14, 60_000) } else { (3, 20_000) };
    end_to_end_within(PATIENCE * if large { 10 } else { 1 }, async move |scratch| {
        beside_a_publish(
            scratch,
            &format!("{models} models of {files} files, each unpublished"),
            "all",
            "",
            async |store, _| {
                for model in 0..models {
                    put_many(store, &format!("n{model}/"), files);
                }
            },
            async |driver| {
                let kubelet = driver.kubelet();
                for model in 0..models {
                    let prefix = format!("n{model}/");
                    let volume = kubelet
                        .inline(&model.to_string(), &[("bucket", BUCKET), ("prefix", &*prefix)]);
                    volume.mount().await;
                    volume.unpublish().await.unwrap();
                }
                let bound = 90;
                eventually("the memory is freed", Duration::from_secs(60), async || {
                    (memory(driver).0 < bound).then_some(())
                })
                .await;
            },
        )
        .await;
    });
}
