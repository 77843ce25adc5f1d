//! The disk of the cache: which one it is, its missing features and faults, and
//! what an older layout left on it.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::support::commands::Commands;
use crate::support::disk::{Disk, run};
use crate::support::driver::{Driver, Setup};
use crate::support::fuse;
use crate::support::loopfs::{Kind, LoopFs};
use crate::support::models::{MIB, PHI3, content_of, mounts_at, put, store_with_phi3};
use crate::support::run::{end_to_end, eventually, figure};
use localstore::{LocalStore, synthetic_bytes};
use nix::mount::{MsFlags, mount};
use serde_json::Value;
use tonic::Code;

const SHARED: &str = "cache_shared_file_system";
const OWN: &str = "cache: {requireMount: true, minFree: 1MiB, minFreeInodes: 0%}\n";

/// A driver whose cache is at `<directory>/cache` and whose kubelet is at `<directory>/kubelet`.
fn setup(directory: &Path, store: &LocalStore, config: &str) -> Setup {
    fs::create_dir_all(directory).unwrap();
    Setup::new(directory, store).with_config(config)
}

fn subvolume(disk: &Disk, name: &str) {
    run(Command::new("btrfs").args(["-q", "subvolume", "create"]).arg(disk.path.join(name)));
}

/// Mounts a subvolume, as a line of fstab does.
fn mount_subvolume(disk: &Disk, name: &str, at: &Path) {
    fs::create_dir_all(at).unwrap();
    let options = format!("subvol={name}");
    run(Command::new("mount").args(["-o", &options]).arg(disk.device()).arg(at));
}

fn bind(source: &Path, target: &Path) {
    fs::create_dir_all(target).unwrap();
    mount(Some(source), target, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
}

async fn assert_refused(setup: Setup) {
    let (status, log) = setup.refuses().await;
    assert!(!status.success());
    assert!(log.contains("is not the mount point of a file system of its own"), "{log}");
}

#[test]
fn a_dedicated_file_system_is_recognized_by_its_mount_and_not_by_its_path() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        for (kind, size) in [("ext4", 64), ("xfs", 320), ("btrfs", 256)] {
            let directory = scratch.join(kind);
            fs::create_dir(&directory).unwrap();
            let disk = Disk::formatted(kind, &directory, size * MIB);
            bind(&disk.path, &directory.join("own/cache"));
            let driver = setup(&directory.join("own"), &store, OWN).start().await;
            assert_eq!(driver.metric(SHARED).await, 0, "{kind}");
            driver.kubelet().inline("1", &PHI3).publish().await.unwrap();

            // As a hostPath of a directory: which disk that is cannot be known.
            fs::create_dir(disk.path.join("d")).unwrap();
            bind(&disk.path.join("d"), &directory.join("part/cache"));
            assert_refused(setup(&directory.join("part"), &store, OWN)).await;
        }
    });
}

#[test]
fn a_btrfs_subvolume_is_a_mount_of_its_own_and_shares_the_space_of_its_pool() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let pool = Disk::formatted("btrfs", scratch, 256 * MIB);
        subvolume(&pool, "cache");
        subvolume(&pool, "kubelet");

        // A subvolume of a pool where kubelet is not.
        let own = scratch.join("own");
        mount_subvolume(&pool, "cache", &own.join("cache"));
        let driver = setup(&own, &store, OWN).start().await;
        assert_eq!(driver.metric(SHARED).await, 0);
        drop(driver);

        // A directory of it that is bound.
        fs::create_dir(own.join("cache/d")).unwrap();
        let part = scratch.join("part");
        bind(&own.join("cache/d"), &part.join("cache"));
        assert_refused(setup(&part, &store, OWN)).await;

        // Two subvolumes of one pool, and the pool's top beside one of them.
        for (name, is_top) in [("two", false), ("top", true)] {
            let directory = scratch.join(name);
            mount_subvolume(&pool, "kubelet", &directory.join("kubelet"));
            let mut setup = setup(&directory, &store, "");
            if is_top {
                setup.cache = pool.path.join("in-the-top");
            } else {
                mount_subvolume(&pool, "cache", &setup.cache);
            }
            let driver = setup.start().await;
            assert_eq!(driver.metric(SHARED).await, 1, "{}", directory.display());
            let warning = "minFree keeps 1 MiB free on kubelet's disk";
            assert!(driver.log().contains(warning), "{}", driver.log());
            let volume = driver.kubelet().inline("1", &PHI3);
            volume.publish().await.unwrap();
            volume.unpublish().await.unwrap();
        }
    });
}

#[test]
fn an_unannounced_quota_counts_as_no_space_and_models_that_fit_it_work() {
    end_to_end(async |scratch| {
        let store = LocalStore::builder().start().unwrap();
        let disk = Disk::formatted("btrfs", scratch, 512 * MIB);
        run(Command::new("btrfs").args(["quota", "enable"]).arg(&disk.path));
        subvolume(&disk, "limited");
        let limited = disk.path.join("limited");
        run(Command::new("btrfs").args(["qgroup", "limit", "48M"]).arg(&limited));

        put(&store, "model.safetensors", synthetic_bytes(1, 0..96 * MIB));
        let mut setup = Setup::new(scratch, &store);
        setup.cache = limited.join("cache");
        let driver = setup.start().await;
        let large = driver.kubelet().inline("1", &PHI3);
        let (code, message) = large.refused().await;
        figure(format_args!("96 MiB into a quota of 48 MiB: {code:?}: {message}"));
        assert_eq!(code, Code::ResourceExhausted, "{message}");
        assert_eq!(mounts_at(&large.target()), Vec::<String>::new());
        large.unpublish().await.unwrap();

        put(&store, "model.safetensors", synthetic_bytes(2, 0..16 * MIB));
        let small = driver.kubelet().inline("2", &PHI3);
        small.mount().await;
        assert_eq!(driver.leases(), 1);
        small.unpublish().await.unwrap();
    });
}

#[test]
fn a_file_system_without_hard_links_is_refused_and_left_empty() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let mut setup = Setup::new(scratch, &store);
        setup.cache = scratch.join("disk");
        fuse::without_hard_links(&setup.cache);
        let cache = setup.cache.clone();
        let (status, log) = setup.refuses().await;
        assert!(!status.success());
        let said = "is on a file system without hard links (Operation not permitted (os error 1)); \
                    use ext4, xfs or btrfs";
        assert!(log.contains(said), "{log}");
        assert_eq!(fs::read_dir(cache).unwrap().count(), 0);
    });
}

#[test]
fn a_failing_disk_is_named_and_not_reported_as_a_bug() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let Some(disk) = LoopFs::mounted(Kind::Ext4, scratch) else { return };
        let mut setup = Setup::new(scratch, &store);
        setup.cache = disk.directory().join("cache");
        let driver = setup.start().await;
        let first = driver.kubelet().inline("1", &PHI3);
        first.publish().await.unwrap();
        disk.cut_power();
        let second = driver.kubelet().inline("2", &PHI3);
        let (code, message) = second.refused().await;
        figure(format_args!("a publish on a disk that fails: {code:?}: {message}"));
        assert_eq!(code, Code::Unavailable, "{message}");
        for part in ["/dev/loop", "ext4", disk.directory().to_str().unwrap(), "dmesg"] {
            assert!(message.contains(part), "{part:?} is not in {message:?}");
        }
        assert_eq!(mounts_at(&second.target()), Vec::<String>::new());
    });
}

#[test]
fn pods_that_run_during_an_upgrade_of_the_layout_stay_known_and_its_space_is_freed() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let mut driver = Driver::start(scratch, &store).await;
        let kubelet = driver.kubelet();
        let running = kubelet.inline("1", &PHI3);
        running.publish().await.unwrap();
        let before = content_of(&running.target());
        driver.kill().await;
        make_older(&driver.setup.cache);
        let requests = store.requests().len();
        driver.restart().await;
        driver.kill().await;
        driver.restart().await;

        running.publish().await.unwrap();
        assert_eq!(store.requests().len(), requests, "a running pod needs no request");
        assert!(content_of(&running.target()) == before);
        assert_eq!((mounts_at(&running.target()).len(), driver.metric("leases").await), (1, 1));
        let stats = running.stats().await.unwrap();
        assert!(!stats.volume_condition.unwrap().abnormal);
        assert!(u64::try_from(stats.usage[0].total).unwrap() > 3 * MIB);

        // Its space is counted and shown, and stays while the pod runs.
        let commands = Commands::of(&driver.setup);
        let listing = commands.json(&["ls"]).await;
        let aside = &listing["setAside"][0];
        assert_eq!(aside["name"], "old-layout-0.0", "{listing}");
        assert!(aside["bytes"].as_u64().unwrap() > 3 * MIB, "{listing}");
        let counted = listing["cache"]["setAsideBytes"].as_u64().unwrap();
        assert!(counted > 3 * MIB && listing["cache"]["totalBytes"].as_u64().unwrap() >= counted);
        assert_eq!(aside["mounts"][0], running.target().to_str().unwrap());
        let text = commands.text(&["ls"]).await;
        assert!(text.contains("in an older layout, 1 mount\n"), "{text}");
        commands.text(&["gc", "--all"]).await;
        let purge = commands.run(&["purge", "--yes"]).await;
        assert_ne!(purge.code, 0, "a pod uses it");
        assert!(content_of(&running.target()) == before);

        // Another pod gets the model again, and does not wait for the first one.
        let second = kubelet.inline("2", &PHI3);
        second.publish().await.unwrap();
        assert!(content_of(&second.target()) == before);
        second.unpublish().await.unwrap();
        running.unpublish().await.unwrap();
        assert_eq!((mounts_at(&running.target()).len(), driver.metric("leases").await), (0, 0));
        let text = commands.text(&["ls"]).await;
        assert!(text.contains("unused: `cache gc --all` removes it"), "{text}");
        commands.text(&["gc", "--all"]).await;
        let listing = commands.json(&["ls"]).await;
        assert_eq!(listing.get("setAside"), None::<&Value>, "{listing}");
        eventually("its space is free", Duration::from_secs(20), async || {
            let names = fs::read_dir(&driver.setup.cache).unwrap();
            let old = |name: std::ffi::OsString| name.to_string_lossy().starts_with("old-layout");
            let left = names.flatten().any(|entry| old(entry.file_name()));
            (!left && driver.in_cache("trash").is_empty()).then_some(())
        })
        .await;
    });
}

#[test]
fn an_unused_older_layout_is_removed_when_a_model_needs_its_space() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let mut driver = Driver::start(scratch, &store).await;
        let kubelet = driver.kubelet();
        let first = kubelet.inline("1", &PHI3);
        first.publish().await.unwrap();
        first.unpublish().await.unwrap();
        driver.kill().await;
        make_older(&driver.setup.cache);
        // Room for one of both.
        let config = "cache: {maxSize: 5MiB, minFree: 1MiB, minFreeInodes: 0%}\n";
        driver.setup = driver.setup.clone().with_config(config);
        driver.restart().await;
        let second = kubelet.inline("2", &PHI3);
        second.mount().await;
        assert!(!driver.setup.cache.join("old-layout-0.0").exists());
    });
}

#[test]
fn an_older_layout_with_deleted_models_fails_no_start_and_its_pods_can_end() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let mut driver = Driver::start(scratch, &store).await;
        let kubelet = driver.kubelet();
        let running = kubelet.inline("1", &PHI3);
        running.publish().await.unwrap();
        driver.kill().await;
        make_older(&driver.setup.cache);
        driver.restart().await;
        driver.kill().await;
        fs::remove_dir_all(driver.setup.cache.join("old-layout-0.0/models")).unwrap();
        driver.restart().await;
        let second = kubelet.inline("2", &PHI3);
        second.mount().await;
        running.unpublish().await.unwrap();
        assert_eq!((mounts_at(&running.target()).len(), driver.metric("leases").await), (0, 1));
        second.unpublish().await.unwrap();
    });
}

/// A cache as a driver of an older layout left it: other files, and leases in
/// another form.
fn make_older(cache: &Path) {
    fs::write(cache.join("VERSION"), "oci-model-csi cache 0\n").unwrap();
    for lease in fs::read_dir(cache.join("leases")).unwrap() {
        let path = lease.unwrap().path();
        let mut lease: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let fields = lease.as_object_mut().unwrap();
        for newer in ["format", "request", "model", "root", "directory", "boot_id"] {
            fields.remove(newer);
        }
        fields.insert("of_an_older_layout".to_owned(), Value::Bool(true));
        fs::write(&path, lease.to_string()).unwrap();
    }
}
