//! SIGKILL, SIGTERM and what they leave: pods continue to read, and the next
//! start recovers without help.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::support::driver::{Driver, Setup};
use crate::support::kubelet::Volume;
use crate::support::models::{
    BUCKET, MIB, PHI3, assert_synthetic, content_of, mounts_at, put, put_large, store_with_phi3,
};
use crate::support::run::{end_to_end, eventually, figure, ratio};
use localstore::{Action, LocalStore, Operation, PutOptions, Rule, synthetic_bytes};
use tonic::Code;

const SIZE: u64 = 48 * MIB;

/// A store with a model of one large file, sent so slowly that it takes `seconds`.
fn slow_store(seconds: u64) -> (LocalStore, u64) {
    let store = LocalStore::builder().start().unwrap();
    put_large(&store, "model.safetensors", SIZE, 1, PutOptions::default());
    let bandwidth = Action::Bandwidth { bytes_per_sec: SIZE / seconds };
    let rule = store.faults().add(Rule::new(bandwidth).operation(Operation::Get));
    (store, rule)
}

async fn until_half_is_served(store: &LocalStore) {
    eventually("half is downloaded", Duration::from_secs(60), async || {
        (store.stats().body_bytes > SIZE / 2).then_some(())
    })
    .await;
}

fn large_file(volume: &Volume) -> PathBuf {
    volume.target().join("model.safetensors")
}

#[test]
fn a_pod_reads_on_while_the_driver_is_killed_and_started_again() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let mut driver = Driver::start(scratch, &store).await;
        let volume = driver.kubelet().inline("1", &PHI3);
        volume.publish().await.unwrap();
        let before = content_of(&volume.target());
        let expected = before["model.safetensors"].clone().unwrap();

        let mut open = File::open(large_file(&volume)).unwrap();
        let mut read = vec![0; expected.len() / 2];
        open.read_exact(&mut read).unwrap();
        driver.kill().await;
        open.read_to_end(&mut read).unwrap();
        assert!(read == expected);
        assert!(content_of(&volume.target()) == before, "new opens work without the driver");

        driver.restart().await;
        assert!(content_of(&volume.target()) == before);
        assert_eq!(mounts_at(&volume.target()).len(), 1);
        assert_eq!(driver.metric("leases").await, 1);
        drop(open);
        volume.unpublish().await.unwrap();
        assert_eq!(driver.leases(), 0);
    });
}

#[test]
fn a_hundred_mounted_volumes_are_known_again_after_a_restart() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let mut driver = Driver::start(scratch, &store).await;
        let kubelet = driver.kubelet();
        let volumes: Vec<Volume> =
            (0..100).map(|pod| kubelet.inline(&pod.to_string(), &PHI3)).collect();
        for volume in &volumes {
            volume.publish().await.unwrap();
        }
        let requests = store.requests().len();
        driver.kill().await;
        let ready = driver.restart().await;
        figure(format_args!("restart with 100 mounted volumes: ready after {ready:.0?}"));
        assert_eq!(driver.metric("leases").await, 100);
        assert_eq!(store.requests().len(), requests, "a start sends no request");
        for volume in &volumes {
            volume.publish().await.unwrap();
            assert_eq!(mounts_at(&volume.target()).len(), 1);
            volume.unpublish().await.unwrap();
        }
        assert_eq!(driver.leases(), 0);
    });
}

#[test]
fn a_download_that_was_killed_is_resumed_by_another_pod() {
    end_to_end(async |scratch| {
        let (store, throttle) = slow_store(10);
        let mut driver = Driver::start(scratch, &store).await;
        let kubelet = driver.kubelet();
        let first = kubelet.inline("1", &PHI3);
        let (failed, ()) = tokio::join!(first.refused(), async {
            until_half_is_served(&store).await;
            driver.kill().await;
        });
        assert!(!crate::support::kubelet::is_final(failed.0), "{failed:?}");
        store.faults().remove(throttle);
        let before = store.stats().body_bytes;

        driver.restart().await;
        assert!(driver.log().contains("resumable=1"));
        assert_eq!(store.stats().body_bytes, before, "a start downloads nothing");
        first.unpublish().await.unwrap();
        let second = kubelet.inline("2", &PHI3);
        second.publish().await.unwrap();
        let served = store.stats().body_bytes;
        figure(format_args!(
            "48 MiB killed half way and gone on with: {served} bytes served for {SIZE} ({:.3})",
            ratio(served, SIZE)
        ));
        assert!(ratio(served, SIZE) < 1.4, "{served}");
        assert_synthetic(&large_file(&second), 1, SIZE);
        assert_eq!((driver.leases(), driver.journals()), (1, 0));
    });
}

#[test]
fn bytes_of_a_killed_download_that_changed_on_the_disk_are_downloaded_again() {
    end_to_end(async |scratch| {
        let (store, throttle) = slow_store(10);
        let mut driver = Driver::start(scratch, &store).await;
        let volume = driver.kubelet().inline("1", &PHI3);
        tokio::join!(volume.refused(), async {
            until_half_is_served(&store).await;
            driver.kill().await;
        });
        let staging = driver.setup.cache.join("staging");
        let path = driver
            .in_cache("staging")
            .iter()
            .map(|name| staging.join(name))
            .find(|path| is_part(path));
        let path = path.unwrap();
        // Only bytes that the journal lists are kept, and even those are checked.
        let mut bytes = fs::read(&path).unwrap();
        for at in (0..bytes.len()).step_by(3_000_000) {
            bytes[at] ^= 1;
        }
        fs::write(&path, bytes).unwrap();
        store.faults().remove(throttle);
        driver.restart().await;
        volume.publish().await.unwrap();
        assert_synthetic(&large_file(&volume), 1, SIZE);
    });
}

#[test]
fn a_driver_that_is_killed_at_any_instant_of_a_publish_recovers() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let mut driver = Driver::start(scratch, &store).await;
        let kubelet = driver.kubelet();
        let mut answered = 0;
        for instant in 0..30 {
            // A new revision each time, so that every step of a publish can be cut.
            put(&store, "config.json", instant.to_string());
            put(&store, "model.safetensors", synthetic_bytes(instant, 0..2 * MIB));
            let volume = kubelet.inline(&instant.to_string(), &PHI3);
            let (published, ()) = tokio::join!(volume.publish(), async {
                // The instants themselves, not a wait for something.
                tokio::time::sleep(Duration::from_millis(2 * instant)).await;
                driver.kill().await;
            });
            answered += usize::from(published.is_ok());
            assert!(mounts_at(&volume.target()).len() <= 1);
            driver.restart().await;
            volume.mount().await;
            assert_synthetic(&large_file(&volume), instant, 2 * MIB);
            let config = fs::read_to_string(volume.target().join("config.json")).unwrap();
            assert_eq!(config, instant.to_string());
            assert_eq!((mounts_at(&volume.target()).len(), driver.leases()), (1, 1));
            assert_eq!(driver.in_cache("staging"), Vec::<String>::new());
            volume.unpublish().await.unwrap();
            assert_eq!(driver.leases(), 0);
        }
        figure(format_args!(
            "30 kills in the first 60 ms of a publish: {answered} after its answer"
        ));
        assert!(answered < 30, "no kill came before the answer");
    });
}

#[test]
fn leftovers_of_a_killed_process_are_removed_and_foreign_files_are_not() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let mut driver = Driver::start(scratch, &store).await;
        let volume = driver.kubelet().inline("1", &PHI3);
        volume.publish().await.unwrap();
        driver.kill().await;
        let cache = &driver.setup.cache;
        let staging = cache.join("staging");
        let [a, b, c] = ["0a", "0b", "0c"].map(|half| half.repeat(32));
        let building = staging.join(format!("model-{c}/tree/sub"));
        fs::create_dir_all(&building).unwrap();
        fs::write(building.join("file"), "half").unwrap();
        for name in [format!("{a}.part"), format!("{b}.journal")] {
            fs::write(staging.join(name), "left").unwrap();
        }
        fs::write(cache.join(format!("leases/{a}.json")), "{\"format\":1,").unwrap();
        let strangers =
            ["staging/weights.part", "leases/notes.json", "blobs/README", "quarantine/why.txt"];
        for name in strangers {
            fs::write(cache.join(name), "mine").unwrap();
        }
        fs::create_dir(cache.join("trash/half-deleted")).unwrap();
        fs::write(cache.join("README-of-the-admin"), "mine").unwrap();

        driver.restart().await;
        assert_eq!(driver.in_cache("staging"), ["weights.part"]);
        assert_eq!(driver.leases(), 2, "the running pod's, and the stranger's");
        assert_eq!(driver.metric("leases").await, 1);
        eventually("the trash is emptied", Duration::from_secs(10), async || {
            driver.in_cache("trash").is_empty().then_some(())
        })
        .await;
        for name in strangers {
            assert!(driver.setup.cache.join(name).exists(), "{name} was removed");
            let named = |line: &str| line.contains(name) && line.contains("left alone");
            eventually("it is named", Duration::from_secs(10), async || {
                driver.log().lines().any(named).then_some(())
            })
            .await;
        }
        assert!(driver.setup.cache.join("README-of-the-admin").exists());
        assert!(large_file(&volume).is_file());
    });
}

#[test]
fn a_lease_whose_mount_is_not_visible_is_kept_until_its_pod_is_gone() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let mut driver = Driver::start(scratch, &store).await;
        let volume = driver.kubelet().inline("1", &PHI3);
        volume.publish().await.unwrap();
        driver.kill().await;
        nix::mount::umount(&volume.target()).unwrap();
        driver.restart().await;
        assert_eq!(driver.metric("leases").await, 1, "doubt never deletes");

        driver.kill().await;
        fs::remove_dir_all(scratch.join("kubelet/pods").join(&volume.uid)).unwrap();
        driver.restart().await;
        assert_eq!((driver.metric("leases").await, driver.leases()), (0, 0));
    });
}

#[test]
fn a_lease_of_an_earlier_boot_is_void() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let mut driver = Driver::start(scratch, &store).await;
        let volume = driver.kubelet().inline("1", &PHI3);
        volume.publish().await.unwrap();
        driver.kill().await;
        nix::mount::umount(&volume.target()).unwrap();
        let leases = driver.setup.cache.join("leases");
        let lease = leases.join(&driver.in_cache("leases")[0]);
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        let text = fs::read_to_string(&lease).unwrap();
        assert!(text.contains(boot.trim()), "the premise: {text}");
        fs::write(&lease, text.replace(boot.trim(), "00000000-earlier")).unwrap();
        driver.restart().await;
        assert_eq!(driver.leases(), 0);
        volume.publish().await.unwrap();
        assert!(large_file(&volume).is_file());
    });
}

#[test]
fn a_mount_whose_answer_was_lost_is_taken_over_by_the_next_call() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let mut driver = Driver::start(scratch, &store).await;
        let volume = driver.kubelet().inline("1", &PHI3);
        volume.publish().await.unwrap();
        driver.kill().await;
        let lease = driver.in_cache("leases").remove(0);
        fs::remove_file(driver.setup.cache.join("leases").join(lease)).unwrap();
        driver.restart().await;
        volume.publish().await.unwrap();
        assert_eq!((mounts_at(&volume.target()).len(), driver.leases()), (1, 1));
        volume.unpublish().await.unwrap();
        assert_eq!((mounts_at(&volume.target()).len(), driver.leases()), (0, 0));
    });
}

#[test]
fn a_mount_without_its_lease_is_removed_by_unpublish() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let mut driver = Driver::start(scratch, &store).await;
        let volume = driver.kubelet().inline("1", &PHI3);
        volume.publish().await.unwrap();
        driver.kill().await;
        let lease = driver.in_cache("leases").remove(0);
        fs::remove_file(driver.setup.cache.join("leases").join(lease)).unwrap();
        driver.restart().await;
        volume.unpublish().await.unwrap();
        assert!(!volume.target().exists());
    });
}

/// Whether this is the data of a download that is not complete.
fn is_part(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "part")
}

/// As if the machine had lost power before the disk had it all: records say
/// "not yet durable" again, and a file has a wrong byte.
fn lose_power(cache: &Path) {
    for prefix in fs::read_dir(cache.join("blobs")).unwrap() {
        for entry in fs::read_dir(prefix.unwrap().path()).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "json") {
                fs::rename(&path, path.with_extension("unsynced")).unwrap();
            } else if path.extension().is_none() && fs::metadata(&path).unwrap().len() > MIB {
                let mut bytes = fs::read(&path).unwrap();
                bytes[1_000_000] ^= 1;
                // The same inode, which the trees have too.
                fs::write(&path, bytes).unwrap();
            }
        }
    }
    for model in fs::read_dir(cache.join("models")).unwrap() {
        let _ = fs::remove_file(model.unwrap().path().join("durable"));
    }
}

#[test]
fn files_that_a_power_loss_may_have_torn_are_checked_before_they_are_served_again() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let mut driver = Driver::start(scratch, &store).await;
        let first = driver.kubelet().inline("1", &PHI3);
        first.publish().await.unwrap();
        let good = content_of(&first.target());
        first.unpublish().await.unwrap();
        driver.kill().await;
        lose_power(&driver.setup.cache);

        driver.restart().await;
        store.reset_stats();
        let second = driver.kubelet().inline("2", &PHI3);
        second.publish().await.unwrap();
        assert!(content_of(&second.target()) == good, "torn bytes were served");
        let served = store.stats().object_bytes;
        assert_eq!(served.len(), 1, "only the torn object is downloaded again: {served:?}");
    });
}

#[test]
fn sigterm_during_a_publish_answers_ends_and_keeps_the_journal() {
    end_to_end(async |scratch| {
        let (store, throttle) = slow_store(20);
        let mut driver = Driver::start(scratch, &store).await;
        let volume = driver.kubelet().inline("1", &PHI3);
        let ((code, message), ended) = tokio::join!(volume.refused(), async {
            until_half_is_served(&store).await;
            let started = Instant::now();
            driver.terminate().await;
            (driver.ended().await, started.elapsed())
        });
        assert_eq!(code, Code::Aborted, "{message}");
        assert!(message.contains("shutting down"), "{message}");
        assert_eq!(ended.0.code(), Some(0), "{}", driver.log());
        figure(format_args!("SIGTERM during a publish: ended after {:.0?}", ended.1));
        assert_eq!(driver.journals(), 1);
        assert!(!driver.setup.socket.exists(), "the socket is removed");

        store.faults().remove(throttle);
        let before = store.stats().body_bytes;
        driver.restart().await;
        volume.publish().await.unwrap();
        let again = store.stats().body_bytes - before;
        assert!(again < SIZE * 6 / 10, "{again} bytes were asked for after the half was there");
        assert_synthetic(&large_file(&volume), 1, SIZE);
    });
}

#[test]
fn sigterm_leaves_published_volumes_as_they_are() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let mut driver = Driver::start(scratch, &store).await;
        let volume = driver.kubelet().inline("1", &PHI3);
        volume.publish().await.unwrap();
        driver.terminate().await;
        assert!(driver.ended().await.success());
        assert!(large_file(&volume).is_file());
        driver.restart().await;
        volume.publish().await.unwrap();
        assert_eq!((mounts_at(&volume.target()).len(), driver.leases()), (1, 1));
    });
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let mut driver = Driver::start(scratch, &store).await;
        driver.kill().await;
        let socket = driver.setup.socket.clone();
        assert!(fs::metadata(&socket).unwrap().file_type().is_socket(), "the premise: it is left");
        driver.restart().await;

        let second = scratch.join("second");
        let mut same_socket = Setup::new(&second, &store);
        same_socket.socket.clone_from(&socket);
        let (status, log) = same_socket.refuses().await;
        assert_eq!(status.code(), Some(1), "{log}");
        assert!(log.contains(socket.to_str().unwrap()), "{log}");

        let mut same_cache = Setup::new(&scratch.join("third"), &store);
        same_cache.cache.clone_from(&driver.setup.cache);
        let (status, log) = same_cache.refuses().await;
        assert_eq!(status.code(), Some(1), "{log}");
        assert!(log.contains("in use by another"), "{log}");
        let volume = driver.kubelet().inline("1", &[("bucket", BUCKET), ("prefix", "models")]);
        volume.publish().await.unwrap();
    });
}
