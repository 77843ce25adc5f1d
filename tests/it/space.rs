//! The cache and the disk: what fits, what is evicted for it, what is never
//! evicted, and the message when nothing can be.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use crate::support::disk::{Disk, run};
use crate::support::driver::{Driver, Setup};
use crate::support::kubelet::{Kubelet, Volume};
use crate::support::models::{BUCKET, MIB, assert_synthetic};
use crate::support::run::{end_to_end, eventually, figure};
use localstore::{Action, LocalStore, Operation, PutOptions, Rule, Source};
use tonic::Code;

/// A model of one large object.
const SIZE: u64 = 40 * MIB;

/// Space for four of them, and for the file system itself.
const DISK: u64 = 200 * MIB;

/// Long enough for the driver's check every five seconds.
const SOON: Duration = Duration::from_secs(30);

fn store_with(models: &[&str]) -> LocalStore {
    let store = LocalStore::builder().start().expect("a local store");
    for (seed, model) in (1..).zip(models) {
        put(&store, model, "weights", SIZE, seed);
    }
    store
}

fn put(store: &LocalStore, model: &str, file: &str, size: u64, seed: u64) {
    let name = format!("models/{model}/{file}");
    let source = Source::Synthetic { size, seed };
    store.put_with(BUCKET, &name, source, PutOptions::default()).expect("an upload");
}

/// A driver whose cache is on the disk, with these settings of the cache.
async fn driver_on(disk: &Disk, scratch: &Path, store: &LocalStore, cache: &str) -> Driver {
    let mut setup = Setup::new(scratch, store).with_config(&format!("cache: {{{cache}}}\n"));
    setup.cache = disk.path.join("cache");
    setup.start().await
}

const ROOM: &str = "minFree: 10MiB, minFreeInodes: 0%";

fn pod(kubelet: &Kubelet, pod: &str, model: &str) -> Volume {
    let prefix = format!("models/{model}/");
    kubelet.inline(pod, &[("bucket", BUCKET), ("prefix", &prefix)])
}

/// A pod that started, read and ended.
async fn visit(kubelet: &Kubelet, name: &str, model: &str) {
    let pod = pod(kubelet, name, model);
    pod.publish().await.expect("room for it");
    pod.unpublish().await.expect("an unpublish");
}

fn cached(driver: &Driver) -> usize {
    driver.in_cache("models").len()
}

fn is_cached(driver: &Driver, model: &str) -> bool {
    let wanted = format!("\"prefix\": \"models/{model}/\"");
    driver.in_cache("models").into_iter().any(|key| {
        let manifest = driver.setup.cache.join("models").join(key).join("manifest.json");
        fs::read_to_string(manifest).is_ok_and(|text| text.contains(&wanted))
    })
}

#[test]
fn a_model_that_does_not_fit_is_refused_with_the_numbers_and_starts_once_it_fits() {
    end_to_end(async |scratch| {
        let disk = Disk::ext4(scratch, DISK, &[]);
        let store = store_with(&["a"]);
        let driver = driver_on(&disk, scratch, &store, ROOM).await;
        let others = disk.fill_but("others", 30 * MIB);
        let pod = pod(&driver.kubelet(), "1", "a");
        let asked = Instant::now();
        let (code, message) = pod.refused().await;
        figure(format_args!("full disk: {code:?} after {:?}: {message}", asked.elapsed()));
        assert_eq!(code, Code::ResourceExhausted);
        assert!(message.contains("models/a/ from ai-model-cache needs 40 MiB;"), "{message}");
        assert!(message.contains(" reserve, 0 B evictable)"), "{message}");
        assert_eq!(store.stats().body_bytes, 0, "nothing is downloaded in vain");
        assert_eq!(driver.leases(), 0);

        fs::remove_file(others).unwrap();
        let freed = Instant::now();
        eventually("the model arrives without another call", SOON, async || {
            is_cached(&driver, "a").then_some(())
        })
        .await;
        figure(format_args!("full disk: complete {:?} after space appeared", freed.elapsed()));
        pod.publish().await.unwrap();
        assert_synthetic(&pod.target().join("weights"), 1, SIZE);
    });
}

#[test]
fn an_evicted_model_makes_room_and_a_held_one_never_does() {
    end_to_end(async |scratch| {
        let disk = Disk::ext4(scratch, DISK, &[]);
        let store = store_with(&["a", "b", "c", "d", "e", "f"]);
        let driver = driver_on(&disk, scratch, &store, ROOM).await;
        let kubelet = driver.kubelet();
        let (first, second) = (pod(&kubelet, "1", "a"), pod(&kubelet, "2", "b"));
        first.publish().await.unwrap();
        visit(&kubelet, "3", "c").await;
        second.publish().await.unwrap();
        // Used last, so that c is evicted before it.
        let d = pod(&kubelet, "4", "d");
        d.publish().await.unwrap();
        d.unpublish().await.unwrap();
        let e = pod(&kubelet, "5", "e");
        e.publish().await.unwrap();
        assert!(!is_cached(&driver, "c"), "the least recently used one goes");
        assert!(is_cached(&driver, "d"));
        assert_eq!(driver.metric("cache_evictions_total{reason=\"space\"}").await, 1);
        d.publish().await.unwrap();

        let mut f = pod(&kubelet, "6", "f");
        f.namespace = "team-b".to_owned();
        let (code, message) = f.refused().await;
        figure(format_args!("everything is held: {code:?}: {message}"));
        assert_eq!(code, Code::ResourceExhausted);
        assert!(message.contains("held by 4 pods of other namespaces"), "{message}");
        let (_, message) = pod(&kubelet, "7", "f").refused().await;
        assert!(message.contains("held by team-a/1 (40 MiB) and team-a/2 (40 MiB)"), "{message}");
        assert_eq!(cached(&driver), 4, "nothing is evicted in vain");

        for (volume, seed) in [(&first, 1), (&second, 2), (&d, 4), (&e, 5)] {
            assert_synthetic(&volume.target().join("weights"), seed, SIZE);
        }
        let freed = Instant::now();
        second.unpublish().await.unwrap();
        eventually("the model arrives without another call", SOON, async || {
            is_cached(&driver, "f").then_some(())
        })
        .await;
        figure(format_args!("held: complete {:?} after a pod ended", freed.elapsed()));
        f.publish().await.unwrap();
        assert_synthetic(&f.target().join("weights"), 6, SIZE);
    });
}

#[test]
fn a_model_that_is_mounted_without_a_lease_is_never_evicted() {
    end_to_end(async |scratch| {
        let disk = Disk::ext4(scratch, DISK, &[]);
        let store = store_with(&["a", "b", "c", "d", "e"]);
        let driver = driver_on(&disk, scratch, &store, ROOM).await;
        let kubelet = driver.kubelet();
        let a = pod(&kubelet, "1", "a");
        a.publish().await.unwrap();
        // What kubelet makes of a subPath: a bind of one file.
        let sub = scratch.join("subpath");
        fs::write(&sub, "").unwrap();
        run(Command::new("mount").arg("--bind").arg(a.target().join("weights")).arg(&sub));
        a.unpublish().await.unwrap();
        for (name, model) in [("2", "b"), ("3", "c"), ("4", "d"), ("5", "e")] {
            visit(&kubelet, name, model).await;
        }
        assert!(is_cached(&driver, "a") && !is_cached(&driver, "b"));
        assert_synthetic(&sub, 1, SIZE);
        run(Command::new("umount").arg(&sub));
        visit(&kubelet, "6", "b").await;
        assert!(!is_cached(&driver, "a"), "now it is the least recently used one");
    });
}

#[test]
fn the_last_use_outlives_a_restart() {
    end_to_end(async |scratch| {
        let disk = Disk::ext4(scratch, DISK, &[]);
        let store = store_with(&["a", "b", "c", "d"]);
        let mut driver =
            driver_on(&disk, scratch, &store, &format!("{ROOM}, maxSize: 130MiB")).await;
        let kubelet = driver.kubelet();
        for (name, model) in [("1", "a"), ("2", "b"), ("3", "c"), ("4", "a")] {
            visit(&kubelet, name, model).await;
        }
        driver.kill().await;
        driver.restart().await;
        visit(&kubelet, "5", "d").await;
        let standing = ["a", "b", "c", "d"].map(|model| is_cached(&driver, model));
        assert_eq!(standing, [true, false, true, true], "b was used least recently");
    });
}

#[test]
fn the_cache_stays_below_its_own_limit_whatever_is_free() {
    end_to_end(async |scratch| {
        let disk = Disk::ext4(scratch, DISK, &[]);
        let store = store_with(&["a", "b", "c", "d"]);
        let driver = driver_on(&disk, scratch, &store, &format!("{ROOM}, maxSize: 100MiB")).await;
        let kubelet = driver.kubelet();
        for (name, model) in [("1", "a"), ("2", "b"), ("3", "c"), ("4", "d"), ("5", "a")] {
            visit(&kubelet, name, model).await;
            assert!(cached(&driver) <= 2);
        }
        put(&store, "huge", "weights", 101 * MIB, 9);
        let (code, message) = pod(&kubelet, "6", "huge").refused().await;
        assert_eq!(code, Code::ResourceExhausted);
        assert!(message.contains("left of cache.maxSize 100 MiB"), "{message}");
        assert_eq!(cached(&driver), 2, "what cannot fit evicts nothing");
    });
}

#[test]
fn a_disk_that_others_fill_gets_the_space_of_unused_models() {
    end_to_end(async |scratch| {
        let disk = Disk::ext4(scratch, DISK, &[]);
        let store = store_with(&["a", "b", "c"]);
        let driver = driver_on(&disk, scratch, &store, "minFree: 20MiB, minFreeInodes: 0%").await;
        let kubelet = driver.kubelet();
        let held = pod(&kubelet, "1", "a");
        held.publish().await.unwrap();
        visit(&kubelet, "2", "b").await;
        visit(&kubelet, "3", "c").await;
        disk.fill_but("others", 15 * MIB);
        eventually("an unused model is evicted", SOON, async || {
            (disk.free() >= 20 * MIB).then_some(())
        })
        .await;
        assert!(!is_cached(&driver, "b") && is_cached(&driver, "c"), "one is enough");
        disk.fill_but("more", 5 * MIB);
        eventually("the next one goes", SOON, async || {
            (cached(&driver) == 1 && disk.free() >= 20 * MIB).then_some(())
        })
        .await;
        disk.fill_but("and-more", 5 * MIB);
        eventually("it is logged", SOON, async || {
            driver.log().contains("no model in the cache can be evicted").then_some(())
        })
        .await;
        assert_synthetic(&held.target().join("weights"), 1, SIZE);
        assert_eq!(driver.metric("cache_evictions_total{reason=\"watermark\"}").await, 2);
    });
}

#[test]
fn leftovers_of_downloads_are_removed_before_models_and_only_as_many_models_as_needed() {
    end_to_end(async |scratch| {
        let disk = Disk::ext4(scratch, DISK, &[]);
        let store = LocalStore::builder().start().expect("a local store");
        let models: Vec<String> = (0..20).map(|n| format!("m{n:02}")).collect();
        for (seed, model) in (1..).zip(&models) {
            put(&store, model, "weights", 2 * MIB, seed);
        }
        let driver = driver_on(&disk, scratch, &store, "minFree: 20MiB, minFreeInodes: 0%").await;
        let kubelet = driver.kubelet();
        for (n, model) in (1..).zip(&models) {
            visit(&kubelet, &format!("{n}"), model).await;
        }
        let part = disk.path.join(format!("cache/staging/{}.part", "0a".repeat(32)));
        fs::write(&part, vec![1; 30 << 20]).unwrap();
        disk.fill_but("others", 10 * MIB);
        eventually("the leftover goes", SOON, async || (!part.exists()).then_some(())).await;
        // Two more checks of the disk.
        tokio::time::sleep(Duration::from_secs(11)).await;
        assert_eq!(cached(&driver), models.len(), "models went in vain");

        disk.fill_but("more", 15 * MIB);
        // So that the next byte does not evict again: 2 % of 200 MiB, and what
        // ext4 needs itself is not in it.
        let high = 20 * MIB + DISK / 50 - MIB;
        eventually("models go", SOON, async || (disk.free() >= high).then_some(())).await;
        tokio::time::sleep(Duration::from_secs(11)).await;
        let left = cached(&driver);
        assert!((10..=16).contains(&left), "{left} of 20 models are left");
    });
}

#[test]
fn a_disk_that_runs_full_in_the_middle_of_a_download_costs_nothing_that_was_downloaded() {
    end_to_end(async |scratch| {
        const FILES: u64 = 90;
        const LARGE: u64 = 48 * MIB;
        let disk = Disk::ext4(scratch, DISK, &[]);
        let store = LocalStore::builder().start().expect("a local store");
        for file in 0..FILES {
            put(&store, "a", &format!("part-{file:03}"), MIB, file);
        }
        // A checksum that is compared without reading the file again: bytes that
        // were removed after they arrived would go unnoticed.
        let checked = PutOptions { crc32c: true, ..PutOptions::default() };
        let source = Source::Synthetic { size: LARGE, seed: 1000 };
        store.put_with(BUCKET, "models/a/large", source, checked).unwrap();
        let slow = Rule::new(Action::Bandwidth { bytes_per_sec: 6 * MIB });
        let slow = store.faults().add(slow.operation(Operation::Get));
        let config = "cache: {minFree: 10MiB, minFreeInodes: 0%}\ndownload: {concurrency: 4}\n";
        let mut setup = Setup::new(scratch, &store).with_config(config);
        setup.cache = disk.path.join("cache");
        let driver = setup.start().await;
        let kubelet = driver.kubelet();
        let whole = pod(&kubelet, "1", "a");
        let attributes = [("bucket", BUCKET), ("prefix", "models/a/"), ("include", "large")];
        let part = kubelet.inline("2", &attributes);
        let filled = async {
            eventually("some of it is there", SOON, async || {
                (store.stats().bytes_of(BUCKET, "models/a/large") > 2 * MIB
                    && store.stats().body_bytes > 8 * MIB)
                    .then_some(())
            })
            .await;
            disk.fill_but("others", 4 * MIB)
        };
        let ((code, message), _tries, others) = tokio::join!(whole.refused(), part.mount(), filled);
        figure(format_args!("full in mid-download: {code:?}: {message}"));
        assert_eq!(code, Code::ResourceExhausted);
        assert!(message.contains("the disk ran full after"), "{message}");
        assert!(message.contains("No space left on device"), "{message}");
        // A model that shares the object and fits continues.
        assert_synthetic(&part.target().join("large"), 1000, LARGE);
        let before = store.stats().body_bytes;
        // The low watermark is passed, and is checked every five seconds.
        tokio::time::sleep(Duration::from_secs(7)).await;
        store.faults().remove(slow);
        fs::remove_file(others).unwrap();
        let freed = Instant::now();
        eventually("it resumes without help", SOON, async || {
            (driver.in_cache("models").len() == 2).then_some(())
        })
        .await;
        let (after, size) = (store.stats().body_bytes, FILES * MIB + LARGE);
        figure(format_args!(
            "full in mid-download: {before} bytes before, {after} at the end of {size}; complete \
             {:?} after space appeared",
            freed.elapsed()
        ));
        // Only bytes on the wire when the disk was full are lost: those of four requests, each time
        // that it was tried again. What was there before is more than twice as much.
        assert!(after < size + 16 * MIB && before > 40 * MIB, "{before}, {after}");
        whole.publish().await.unwrap();
        for file in 0..FILES {
            assert_synthetic(&whole.target().join(format!("part-{file:03}")), file, MIB);
        }
        assert_synthetic(&whole.target().join("large"), 1000, LARGE);
    });
}

#[test]
fn a_disk_too_full_for_one_large_file_gets_its_reserved_space_back() {
    end_to_end(async |scratch| {
        const LARGE: u64 = 100 * MIB;
        let disk = Disk::ext4(scratch, DISK, &[]);
        let store = LocalStore::builder().start().expect("a local store");
        put(&store, "a", "weights", LARGE, 1);
        let mut driver = driver_on(&disk, scratch, &store, ROOM).await;
        // Another process takes the space between the admission and the file's blocks.
        driver.restart_to(Some("stop:download-1")).await;
        let pod = pod(&driver.kubelet(), "1", "a");
        let others = async {
            driver.stopped().await;
            let others = disk.fill_but("others", 80 * MIB);
            run(Command::new("kill").args(["-CONT", &driver.pid().to_string()]));
            others
        };
        let ((code, message), others) = tokio::join!(pod.refused(), others);
        assert_eq!(code, Code::ResourceExhausted);
        assert!(message.contains("the disk ran full after 0 of 100 MiB"), "{message}");
        assert!(disk.free() > 70 * MIB, "{} bytes of 80 MiB are free", disk.free());

        fs::remove_file(others).unwrap();
        eventually("the model arrives without another call", SOON, async || {
            is_cached(&driver, "a").then_some(())
        })
        .await;
        pod.publish().await.unwrap();
        assert_synthetic(&pod.target().join("weights"), 1, LARGE);
    });
}

#[test]
fn a_model_that_arrived_while_its_pod_paused_is_kept_for_the_pod() {
    end_to_end(async |scratch| {
        let disk = Disk::ext4(scratch, DISK, &[]);
        let store = store_with(&["a", "b", "c"]);
        let driver = driver_on(&disk, scratch, &store, &format!("{ROOM}, maxSize: 60MiB")).await;
        let kubelet = driver.kubelet();
        let holder = pod(&kubelet, "1", "c");
        holder.publish().await.unwrap();
        let (first, second) = (pod(&kubelet, "2", "a"), pod(&kubelet, "3", "b"));
        assert_eq!(first.refused().await.0, Code::ResourceExhausted);
        holder.unpublish().await.unwrap();
        eventually("it arrives without help", SOON, async || is_cached(&driver, "a").then_some(()))
            .await;
        // Another pod needs the space before kubelet asks again.
        assert_eq!(second.refused().await.0, Code::ResourceExhausted);
        let before = store.stats().body_bytes;
        first.publish().await.unwrap();
        assert_eq!(store.stats().body_bytes, before, "it was downloaded once");
        first.unpublish().await.unwrap();
        eventually("the other one comes", SOON, async || is_cached(&driver, "b").then_some(()))
            .await;
    });
}

#[test]
fn inodes_are_counted_like_bytes() {
    end_to_end(async |scratch| {
        let disk = Disk::ext4(scratch, DISK, &["-N", "1800"]);
        let store = LocalStore::builder().start().unwrap();
        for model in ["a", "b", "c"] {
            for file in 0..150 {
                put(&store, model, &format!("f{file}"), 10, file);
            }
        }
        let driver = driver_on(&disk, scratch, &store, "minFree: 1MiB, minFreeInodes: 5%").await;
        let kubelet = driver.kubelet();
        let a = pod(&kubelet, "1", "a");
        a.publish().await.unwrap();
        visit(&kubelet, "2", "b").await;
        let c = pod(&kubelet, "3", "c");
        c.publish().await.unwrap();
        assert!(!is_cached(&driver, "b"));
        let (code, message) = pod(&kubelet, "4", "b").refused().await;
        assert_eq!(code, Code::ResourceExhausted);
        assert!(message.contains(" inodes; "), "{message}");
        assert!(message.contains("above the reserve of"), "{message}");
    });
}

#[test]
fn models_unused_for_long_are_evicted_although_there_is_space() {
    end_to_end(async |scratch| {
        let store = store_with(&["a", "b"]);
        let setup = Setup::new(scratch, &store);
        let config = "cache: {minFree: 1MiB, minFreeInodes: 0%, idleTTL: 1h}\n";
        let mut driver = setup.with_config(config).start().await;
        let kubelet = driver.kubelet();
        let held = pod(&kubelet, "1", "a");
        held.publish().await.unwrap();
        visit(&kubelet, "2", "b").await;
        for key in driver.in_cache("models") {
            let manifest = driver.setup.cache.join("models").join(key).join("manifest.json");
            let long_ago = SystemTime::now() - Duration::from_secs(2 * 3600);
            fs::File::open(manifest).unwrap().set_modified(long_ago).unwrap();
        }
        driver.kill().await;
        driver.restart().await;
        eventually("the idle one goes", SOON, async || (!is_cached(&driver, "b")).then_some(()))
            .await;
        assert!(is_cached(&driver, "a"), "a pod holds it");
        assert_eq!(driver.metric("cache_evictions_total{reason=\"idle\"}").await, 1);
    });
}

#[test]
fn a_cache_on_the_disk_of_kubelet_is_warned_about_and_one_on_a_disk_of_its_own_is_not() {
    end_to_end(async |scratch| {
        const SHARED: &str = "cache_shared_file_system";
        const WARNING: &str = "the cache shares its file system";
        let store = store_with(&[]);
        let shared = Driver::start(scratch, &store).await;
        assert_eq!(shared.metric(SHARED).await, 1);
        assert!(shared.log().contains(WARNING));

        let disk = Disk::ext4(scratch, DISK, &[]);
        // The mount point itself, as requireMount wants it.
        let config = format!("cache: {{requireMount: true, {ROOM}}}\n");
        let elsewhere = scratch.join("own");
        fs::create_dir(&elsewhere).unwrap();
        let mut setup = Setup::new(&elsewhere, &store).with_config(&config);
        setup.cache.clone_from(&disk.path);
        let own = setup.start().await;
        assert_eq!(own.metric(SHARED).await, 0);
        assert!(!own.log().contains(WARNING));
        pod(&own.kubelet(), "1", "none").refused().await;
    });
}
