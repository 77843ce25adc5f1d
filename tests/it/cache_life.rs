//! The life of a cache directory: what is refused, what is set aside, and how a
//! start treats a directory that a driver has not left in order.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use crate::support::disk::run;
use crate::support::driver::{Driver, Setup};
use crate::support::models::{BUCKET, MIB, PHI3, PREFIX, content_of, put, store_with_phi3};
use crate::support::run::{end_to_end, eventually, figure, ratio};
use localstore::{LocalStore, PutOptions, Source};

/// A prepared cache directory, and the driver's message about it.
type Case = (fn(&Path), &'static [&'static str]);

#[test]
fn a_directory_that_cannot_be_a_cache_is_refused_by_name_and_left_as_it_is() {
    const CASES: &[Case] = &[
        (
            |cache| fs::write(cache.join("VERSION"), "oci-model-csi cache 99\n").unwrap(),
            &["cache 99", "run the version that wrote it"],
        ),
        (
            |cache| fs::write(cache.join("VERSION"), "kvstore 3\n").unwrap(),
            &["belongs to another program", "kvstore 3"],
        ),
        (
            |cache| fs::write(cache.join("thesis.tex"), "precious").unwrap(),
            &["nor a cache of this driver", "thesis.tex"],
        ),
        (
            |cache| {
                fs::remove_dir(cache).unwrap();
                fs::write(cache, "").unwrap();
            },
            &["is a file or a symbolic link"],
        ),
        (
            |cache| {
                fs::remove_dir(cache).unwrap();
                symlink("/var", cache).unwrap();
            },
            &["is a file or a symbolic link"],
        ),
        (
            |cache| fs::set_permissions(cache, fs::Permissions::from_mode(0o777)).unwrap(),
            &["can be written to by others (mode 0777)", "chmod"],
        ),
        (|cache| chown(cache, Some(1000), None).unwrap(), &["belongs to user 1000", "chown"]),
        (
            |cache| {
                let tmpfs = ["-t", "tmpfs", "-o", "ro,mode=755", "tmpfs"];
                run(Command::new("mount").args(tmpfs).arg(cache));
            },
            &["Read-only file system"],
        ),
    ];
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        for (n, (prepare, words)) in CASES.iter().enumerate() {
            let scratch = scratch.join(n.to_string());
            let mut setup = Setup::new(&scratch, &store);
            setup.cache = scratch.join("cache");
            fs::create_dir(&setup.cache).unwrap();
            prepare(&setup.cache);
            let listed = |cache: &Path| {
                let entries = fs::read_dir(cache).into_iter().flatten();
                entries.map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>()
            };
            let (cache, before) = (setup.cache.clone(), listed(&setup.cache));
            let (status, log) = setup.refuses().await;
            assert_eq!(status.code(), Some(1), "{log}");
            let shown = cache.to_str().unwrap();
            for word in words.iter().copied().chain([shown]) {
                assert!(log.contains(word), "{word:?} is not in {log}");
            }
            assert_eq!(listed(&cache), before, "something was changed");
        }
    });
}

#[test]
fn a_second_driver_on_one_directory_is_refused_and_the_first_one_continues() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let first = Driver::start(scratch, &store).await;
        let mut second = Setup::new(&scratch.join("second"), &store);
        second.cache.clone_from(&first.setup.cache);
        let (_, log) = second.refuses().await;
        assert!(log.contains("in use by another oci-model-csi process"), "{log}");
        first.kubelet().inline("1", &PHI3).publish().await.unwrap();
    });
}

#[test]
fn a_hundred_thousand_leftovers_do_not_delay_the_start() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let mut driver = Driver::start(scratch, &store).await;
        let volume = driver.kubelet().inline("1", &PHI3);
        volume.publish().await.unwrap();
        driver.kill().await;
        let staging = driver.setup.cache.join("staging");
        for n in 0..100_000 {
            fs::write(staging.join(format!("{n:064x}.part")), "").unwrap();
        }
        let ready = driver.restart().await;
        figure(format_args!("start with 100,000 leftovers in staging: ready after {ready:?}"));
        // The design's bound, after which kubelet would notice.
        assert!(ready < Duration::from_secs(5), "{ready:?}");
        eventually("the leftovers go", Duration::from_secs(60), async || {
            (driver.in_cache("staging").is_empty() && driver.in_cache("trash").is_empty())
                .then_some(())
        })
        .await;
        assert!(volume.target().join("config.json").exists());
    });
}

#[test]
fn a_manifest_that_does_not_match_its_directory_is_never_served() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let mut driver = Driver::start(scratch, &store).await;
        let kubelet = driver.kubelet();
        let first = kubelet.inline("1", &PHI3);
        first.publish().await.unwrap();
        let expected = content_of(&first.target());
        first.unpublish().await.unwrap();
        driver.kill().await;
        let models = driver.setup.cache.join("models");
        let key = driver.in_cache("models").remove(0);
        // Under another name it would be another model.
        let other = format!("{}{}", if key.starts_with('0') { '1' } else { '0' }, &key[1..]);
        fs::rename(models.join(&key), models.join(other)).unwrap();
        driver.restart().await;
        let second = kubelet.inline("2", &PHI3);
        second.publish().await.unwrap();
        assert!(content_of(&second.target()) == expected);
        second.unpublish().await.unwrap();
        driver.kill().await;

        let tree = models.join(&key).join("tree");
        fs::set_permissions(&tree, fs::Permissions::from_mode(0o755)).unwrap();
        fs::remove_file(tree.join("config.json")).unwrap();
        fs::write(tree.join("config.json"), "{\"model_type\": \"evil\"}").unwrap();
        store.reset_stats();
        driver.restart().await;
        let third = kubelet.inline("3", &PHI3);
        third.publish().await.unwrap();
        assert!(content_of(&third.target()) == expected, "a stranger's file was served");
        assert_eq!(store.stats().body_bytes, 0, "its blobs are good");
    });
}

#[test]
fn a_clock_that_jumped_back_does_not_make_old_models_look_new() {
    end_to_end(async |scratch| {
        let store = LocalStore::builder().start().unwrap();
        for (seed, model) in (1..).zip(["a", "b", "c"]) {
            let source = Source::Synthetic { size: 20 * MIB, seed };
            let name = format!("models/{model}/weights");
            store.put_with(BUCKET, &name, source, PutOptions::default()).unwrap();
        }
        let config = "cache: {minFree: 1MiB, minFreeInodes: 0%, maxSize: 50MiB}\n";
        let mut driver = Setup::new(scratch, &store).with_config(config).start().await;
        let kubelet = driver.kubelet();
        let visit = async |pod: &str, model: &str| {
            let prefix = format!("models/{model}/");
            let volume = kubelet.inline(pod, &[("bucket", BUCKET), ("prefix", &prefix)]);
            volume.publish().await.unwrap();
            volume.unpublish().await.unwrap();
        };
        visit("1", "a").await;
        // As if the clock had been a year ahead when a was used.
        let manifest = driver.setup.cache.join("models").join(&driver.in_cache("models")[0]);
        let manifest = manifest.join("manifest.json");
        let ahead = SystemTime::now() + Duration::from_secs(365 * 24 * 3600);
        fs::File::open(&manifest).unwrap().set_modified(ahead).unwrap();
        driver.kill().await;
        driver.restart().await;
        eventually("the time is mended", Duration::from_secs(10), async || {
            let modified = fs::metadata(&manifest).unwrap().modified().unwrap();
            (modified < ahead - Duration::from_secs(3600)).then_some(())
        })
        .await;
        visit("2", "b").await;
        visit("3", "c").await;
        assert!(!manifest.exists(), "a was used least recently");
    });
}

#[test]
fn a_pod_that_ended_without_an_unpublish_no_longer_holds_its_model() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let driver = Driver::start(scratch, &store).await;
        let volume = driver.kubelet().inline("1", &PHI3);
        volume.publish().await.unwrap();
        nix::mount::umount(&volume.target()).unwrap();
        fs::remove_dir_all(scratch.join("kubelet/pods").join(&volume.uid)).unwrap();
        eventually("its lease ends", Duration::from_secs(90), async || {
            (driver.leases() == 0).then_some(())
        })
        .await;
        assert!(driver.log().contains("a pod ended without an unpublish"));
    });
}

#[test]
fn one_changed_shard_of_ten_is_all_that_is_downloaded() {
    end_to_end(async |scratch| {
        const SHARD: u64 = 8 * MIB;
        let store = LocalStore::builder().start().unwrap();
        let shard = |n: u64, seed| {
            let source = Source::Synthetic { size: SHARD, seed };
            let name = format!("{PREFIX}model-{n:05}-of-00010.bin");
            store.put_with(BUCKET, &name, source, PutOptions::default()).unwrap();
        };
        (0..10).for_each(|n| shard(n, n));
        put(&store, "config.json", b"{}");
        let driver = Driver::start(scratch, &store).await;
        let kubelet = driver.kubelet();
        let old = kubelet.inline("1", &PHI3);
        old.publish().await.unwrap();
        shard(4, 99);
        store.reset_stats();
        kubelet.inline("2", &PHI3).publish().await.unwrap();
        let downloaded = store.stats().body_bytes;
        let times = ratio(downloaded, SHARD);
        figure(format_args!("one of ten shards changed: {downloaded} bytes, {times:.3} shards"));
        assert_eq!(downloaded, SHARD);
        assert_eq!(driver.in_cache("models").len(), 2, "the running pod keeps its revision");
    });
}
