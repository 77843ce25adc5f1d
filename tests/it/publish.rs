//! A model from the bucket into pods, and out of them again.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::{Duration, Instant};

use crate::support::driver::{Driver, Setup};
use crate::support::models::{BUCKET, PHI3, content_of, mode_of, mounts_at, put, store_with_phi3};
use crate::support::namespace::mount_tmpfs;
use crate::support::run::{end_to_end, figure};
use localstore::{LocalStore, Operation};
use nix::mount::MsFlags;
use oci_model_csi::csi::proto::volume_capability::AccessType;
use oci_model_csi::csi::proto::volume_usage::Unit;
use tonic::Code;

#[track_caller]
fn assert_read_only<T>(result: io::Result<T>) {
    assert_eq!(result.err().map(|error| error.kind()), Some(io::ErrorKind::ReadOnlyFilesystem));
}

/// GetObject requests that were answered.
fn gets(store: &LocalStore) -> u64 {
    store.stats().requests_of(Operation::Get)
}

#[test]
fn no_process_can_change_a_published_tree() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let driver = Driver::start(scratch, &store).await;
        let volume = driver.kubelet().inline("1", &PHI3);
        volume.publish().await.unwrap();
        let (target, file) = (volume.target(), volume.target().join("config.json"));

        let options = mounts_at(&target);
        assert_eq!(options.len(), 1, "{options:?}");
        for flag in ["ro", "nosuid", "nodev"] {
            assert!(options[0].split(',').any(|option| option == flag), "{flag}: {options:?}");
        }
        assert_read_only(fs::write(&file, "changed"));
        assert_read_only(File::create(target.join("new")));
        assert_read_only(fs::remove_file(&file));
        assert_read_only(fs::rename(&file, target.join("other")));
        assert_read_only(fs::set_permissions(&file, Permissions::from_mode(0o777)));
        assert_read_only(fs::create_dir(target.join("tokenizer/new")));

        for name in content_of(&target).keys() {
            let path = target.join(name);
            let expected = if path.is_dir() { 0o555 } else { 0o444 };
            assert_eq!(mode_of(&path), expected, "{name}");
            let owner = fs::metadata(&path).unwrap();
            assert_eq!((owner.uid(), owner.gid()), (0, 0), "{name}");
        }
        assert_eq!(mode_of(&target), 0o555);
    });
}

#[test]
fn publishing_again_is_one_mount_and_sends_no_request() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let driver = Driver::start(scratch, &store).await;
        let volume = driver.kubelet().inline("1", &PHI3);
        volume.publish().await.unwrap();
        let before = store.requests().len();
        for _ in 0..3 {
            volume.publish().await.unwrap();
        }
        assert_eq!(mounts_at(&volume.target()).len(), 1);
        assert_eq!(driver.leases(), 1);
        assert_eq!(store.requests().len(), before);
    });
}

#[test]
fn a_second_pod_gets_the_same_files_without_a_download() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let driver = Driver::start(scratch, &store).await;
        let kubelet = driver.kubelet();
        let (first, second) = (kubelet.inline("1", &PHI3), kubelet.inline("2", &PHI3));
        first.publish().await.unwrap();
        let before = gets(&store);
        assert!(before > 0);
        second.publish().await.unwrap();
        assert_eq!(gets(&store), before);
        assert_eq!(driver.metric("publish_total{result=\"hit\"}").await, 1);
        let inode = |target: std::path::PathBuf| {
            fs::metadata(target.join("model.safetensors")).unwrap().ino()
        };
        assert_eq!(inode(first.target()), inode(second.target()), "one copy on the disk");
    });
}

#[test]
fn two_pods_share_a_persistent_volume_and_leave_one_by_one() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let driver = Driver::start(scratch, &store).await;
        let kubelet = driver.kubelet();
        let one = kubelet.persistent("pv-1", "1", &PHI3);
        let mut two = kubelet.persistent("pv-1", "2", &PHI3);
        // What a PersistentVolume says about readOnly does not matter.
        two.read_only = false;
        one.publish().await.unwrap();
        two.publish().await.unwrap();
        assert_eq!(driver.leases(), 2, "one for each target");
        assert_read_only(File::create(two.target().join("new")));

        one.unpublish().await.unwrap();
        assert_eq!(driver.leases(), 1);
        assert_eq!(mounts_at(&one.target()).len(), 0);
        assert!(two.target().join("config.json").is_file());
        two.unpublish().await.unwrap();
        assert_eq!(driver.leases(), 0);
    });
}

#[test]
fn mount_options_of_a_persistent_volume_are_those_of_its_mount() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let setup = Setup::new(scratch, &store);
        // A file system of the test's own: in a user namespace the flags of others are locked.
        fs::create_dir(&setup.cache).unwrap();
        mount_tmpfs(&setup.cache, MsFlags::empty(), "64m");
        let driver = setup.start().await;
        let mut volume = driver.kubelet().persistent("pv-1", "1", &PHI3);
        let access = volume.capability.as_mut().and_then(|c| c.access_type.as_mut());
        let Some(AccessType::Mount(mount)) = access else { panic!("not a mount") };
        mount.mount_flags = vec!["noexec".to_owned(), "noatime".to_owned()];
        volume.publish().await.unwrap();
        let options = mounts_at(&volume.target()).concat();
        for flag in ["ro", "nosuid", "nodev", "noexec", "noatime"] {
            assert!(options.split(',').any(|option| option == flag), "{flag}: {options}");
        }
    });
}

#[test]
fn unpublish_leaves_nothing_and_can_be_repeated() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let driver = Driver::start(scratch, &store).await;
        let volume = driver.kubelet().inline("1", &PHI3);
        volume.unpublish().await.unwrap();
        volume.publish().await.unwrap();
        for _ in 0..2 {
            // kubelet's own removal in here fails when anything is left.
            volume.unpublish().await.unwrap();
            assert!(!volume.target().exists());
            assert_eq!(mounts_at(&volume.target()).len(), 0);
            assert_eq!(driver.leases(), 0);
            assert_eq!(driver.metric("leases").await, 0);
        }
        let before = gets(&store);
        volume.publish().await.unwrap();
        assert_eq!(gets(&store), before, "the model stays in the cache");
    });
}

#[test]
fn unpublish_accepts_a_target_that_was_unmounted_or_removed() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let driver = Driver::start(scratch, &store).await;
        let volume = driver.kubelet().inline("1", &PHI3);
        let unmount = || nix::mount::umount(&volume.target()).unwrap();
        volume.publish().await.unwrap();
        unmount();
        volume.unpublish().await.unwrap();
        assert_eq!(driver.leases(), 0);

        volume.publish().await.unwrap();
        unmount();
        fs::remove_dir_all(volume.target().parent().unwrap()).unwrap();
        volume.unpublish().await.unwrap();
        assert_eq!(driver.leases(), 0);
    });
}

#[test]
fn a_publish_mounts_again_after_a_foreign_unmount() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let driver = Driver::start(scratch, &store).await;
        let volume = driver.kubelet().inline("1", &PHI3);
        volume.publish().await.unwrap();
        nix::mount::umount(&volume.target()).unwrap();
        volume.publish().await.unwrap();
        assert!(volume.target().join("config.json").is_file());
        assert_eq!((mounts_at(&volume.target()).len(), driver.leases()), (1, 1));
    });
}

#[test]
fn the_stats_are_those_of_the_model() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let driver = Driver::start(scratch, &store).await;
        let volume = driver.kubelet().inline("1", &PHI3);
        assert_eq!(volume.stats().await.unwrap_err().code(), Code::NotFound);
        volume.publish().await.unwrap();
        let stats = volume.stats().await.unwrap();
        let found = content_of(&volume.target());
        let bytes: usize = found.values().flatten().map(Vec::len).sum();
        // The root is an inode too.
        let inodes = found.len() + 1;
        for (usage, unit, total) in
            [(&stats.usage[0], Unit::Bytes, bytes), (&stats.usage[1], Unit::Inodes, inodes)]
        {
            let total = i64::try_from(total).unwrap();
            assert_eq!((usage.unit(), usage.total), (unit, total));
            assert_eq!((usage.used, usage.available), (total, 0));
        }
        assert!(!stats.volume_condition.unwrap().abnormal);
        volume.unpublish().await.unwrap();
        assert_eq!(volume.stats().await.unwrap_err().code(), Code::NotFound);
    });
}

#[test]
fn after_a_restart_a_running_pod_needs_neither_object_storage_nor_a_new_mount() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let mut driver = Driver::start(scratch, &store).await;
        let volume = driver.kubelet().inline("1", &PHI3);
        volume.publish().await.unwrap();
        let before = content_of(&volume.target());
        driver.kill().await;
        drop(store);
        driver.restart().await;
        let started = Instant::now();
        volume.publish().await.unwrap();
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
        assert_eq!(mounts_at(&volume.target()).len(), 1);
        assert!(content_of(&volume.target()) == before);
        volume.unpublish().await.unwrap();
        assert_eq!(driver.leases(), 0);
    });
}

#[test]
fn new_limits_do_not_affect_a_running_pod() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let mut driver = Driver::start(scratch, &store).await;
        let kubelet = driver.kubelet();
        let running = kubelet.inline("1", &PHI3);
        running.publish().await.unwrap();
        driver.kill().await;
        driver.setup = driver.setup.clone().with_config("limits: {maxModelSize: 1MiB}\n");
        driver.restart().await;
        running.publish().await.unwrap();
        assert_eq!(kubelet.inline("2", &PHI3).refused().await.0, Code::FailedPrecondition);
    });
}

#[test]
fn a_running_volume_does_not_get_other_attributes_nor_another_volume_its_target() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        put(&store, "v2/config.json", b"{}");
        let driver = Driver::start(scratch, &store).await;
        let kubelet = driver.kubelet();
        let volume = kubelet.inline("1", &PHI3);
        volume.publish().await.unwrap();
        let before = content_of(&volume.target());

        let target = volume.target().to_str().unwrap().to_owned();
        let mut other =
            kubelet.inline("1", &[("bucket", BUCKET), ("prefix", "models/phi3-mini/v2/")]);
        other.other_target = Some(target.clone());
        let (code, message) = other.refused().await;
        assert_eq!(code, Code::AlreadyExists);
        assert!(message.contains("other attributes"), "{message}");

        let mut stranger = kubelet.inline("1", &PHI3);
        stranger.id = "csi-another-volume".to_owned();
        stranger.other_target = Some(target);
        let (code, message) = stranger.refused().await;
        assert_eq!(code, Code::AlreadyExists);
        assert!(message.contains("another volume"), "{message}");
        assert_eq!(stranger.unpublish().await.unwrap_err().code(), Code::AlreadyExists);

        assert!(content_of(&volume.target()) == before);
        assert_eq!((mounts_at(&volume.target()).len(), driver.leases()), (1, 1));
    });
}

#[test]
fn two_hundred_publishes_measure_how_long_a_hit_takes() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let driver = Driver::start(scratch, &store).await;
        let kubelet = driver.kubelet();
        kubelet.inline("0", &PHI3).publish().await.unwrap();
        for (policy, log) in [("IfNotPresent", "without asking"), ("Always", "listing each time")] {
            let mut times = Vec::new();
            for pod in 1..=200 {
                let attributes = [PHI3.as_slice(), &[("pullPolicy", policy)]].concat();
                let volume = kubelet.inline(&pod.to_string(), &attributes);
                volume.publish().await.unwrap();
                times.push(volume.calls()[0].took);
                volume.unpublish().await.unwrap();
            }
            times.sort();
            figure(format_args!(
                "200 publishes of a hit, {log}: p50 {:.1?}, p99 {:.1?}",
                times[100], times[198]
            ));
        }
        let downloads = driver.metric("publish_total{result=\"downloaded\"}").await;
        assert_eq!(downloads, 1, "all the others were hits");
    });
}

#[test]
fn an_instance_needs_no_keys() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let driver = Setup::new(scratch, &store).with_instance_principal(&store).start().await;
        let volume = driver.kubelet().inline("1", &PHI3);
        volume.publish().await.unwrap();
        assert!(volume.target().join("config.json").is_file());
        assert_eq!(store.stats().tokens_issued, 2, "the session of the config file, and one");
    });
}
