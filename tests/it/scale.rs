//! A cache with many revisions: the start, a hit, memory and what looking at
//! all of it costs.
//!
//! 60 revisions of 20 objects here; `OCI_MODEL_CSI_TEST_REVISIONS=1000` for
//! the figures of a full node (minutes). Times are printed; what is asserted is
//! memory, descriptors, and that hits ask Object Storage nothing.

use std::fs;
use std::time::{Duration, Instant};

use crate::support::driver::{Driver, memory_of};
use crate::support::models::BUCKET;
use crate::support::run::{end_to_end_within, eventually, figure};
use localstore::{LocalStore, Operation};

/// Objects of each revision, none of them shared.
const OBJECTS: usize = 20;

/// Publishes at once, while the cache is filled.
const AT_ONCE: usize = 8;

fn revisions() -> usize {
    let wanted = std::env::var("OCI_MODEL_CSI_TEST_REVISIONS");
    wanted.map_or(60, |number| number.parse().expect("a number of revisions"))
}

/// KiB that an idle driver may have of its own, whatever its cache holds.
const IDLE_KIB: u64 = 12 * 1024;

/// KiB more after its first hits.
const HITS_KIB: u64 = 8 * 1024;

/// KiB more for each model of the cache: the names of its objects.
const REVISION_KIB: u64 = 32;

/// KiB at most so far, with the pages of the program itself.
const PEAK_KIB: u64 = 64 * 1024;

/// Descriptors that connections and the runtime may have opened meanwhile.
const DESCRIPTORS: usize = 16;

/// Memory of a process in KiB: its own now, and all of it at most so far.
fn memory(pid: u32) -> (u64, u64) {
    (memory_of(pid, "RssAnon") / 1024, memory_of(pid, "VmHWM") / 1024)
}

fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).expect("a running process").count()
}

#[test]
fn a_cache_of_many_revisions_is_ready_at_once_and_serves_hits_as_fast_as_a_small_one() {
    end_to_end_within(Duration::from_secs(1500), async |scratch| {
        let revisions = revisions();
        let store = LocalStore::builder().start().unwrap();
        for model in 0..revisions {
            for object in 0..OBJECTS {
                let name = format!("models/m{model}/part-{object}");
                store.put(BUCKET, &name, format!("{model} {object}")).unwrap();
            }
        }
        let mut driver = Driver::start(scratch, &store).await;
        let kubelet = driver.kubelet();
        let volume = |model: usize, pod: String| {
            let prefix = format!("models/m{model}/");
            let attributes =
                [("bucket", BUCKET), ("prefix", &*prefix), ("pullPolicy", "IfNotPresent")];
            kubelet.inline(&pod, &attributes)
        };
        let models: Vec<usize> = (0..revisions).collect();
        for chunk in models.chunks(AT_ONCE) {
            let visits = chunk.iter().map(|&model| {
                let volume = volume(model, format!("fill-{model}"));
                async move {
                    volume.mount().await;
                    volume.unpublish().await.unwrap();
                }
            });
            futures_util::future::join_all(visits).await;
        }
        eventually("everything is on the disk", Duration::from_secs(60), async || {
            let durable =
                |key: &String| driver.setup.cache.join("models").join(key).join("durable").exists();
            driver.in_cache("models").iter().all(durable).then_some(())
        })
        .await;
        driver.kill().await;

        let ready = driver.restart().await;
        let (idle, _) = memory(driver.pid());
        let open = descriptors(driver.pid());
        store.reset_stats();
        let mut hits = Vec::new();
        for hit in 0..100 {
            let volume = volume(hit * revisions / 100, format!("hit-{hit}"));
            let asked = Instant::now();
            volume.publish().await.unwrap();
            hits.push(asked.elapsed());
            volume.unpublish().await.unwrap();
        }
        hits.sort();
        let (after, peak) = (memory(driver.pid()).0, memory(driver.pid()).1);
        let blobs = revisions * OBJECTS;
        figure(format_args!(
            "{revisions} revisions, {blobs} blobs: ready after {ready:?}; 100 first hits p50 {:?}, \
             p99 {:?}; memory {idle} KiB idle, {after} KiB after the hits, {peak} KiB at most; \
             {open} descriptors",
            hits[50], hits[98]
        ));
        let models = REVISION_KIB * u64::try_from(revisions).unwrap();
        assert!(idle <= IDLE_KIB + models, "{idle} KiB idle");
        assert!(after <= idle + HITS_KIB + models, "{idle} KiB idle, {after} KiB after the hits");
        assert!(peak <= PEAK_KIB + models, "{peak} KiB at most");
        let left = descriptors(driver.pid());
        assert!(left <= open + DESCRIPTORS, "{open} descriptors before the hits, {left} after");
        let asked = [Operation::List, Operation::Head, Operation::Get];
        let asked = asked.map(|operation| store.stats().requests_of(operation));
        assert_eq!(asked, [0; 3], "a hit under IfNotPresent sends no request");
        assert_eq!(driver.leases(), 0);
        assert_eq!(driver.in_cache("models").len(), revisions);
        eventually("the whole cache was checked", Duration::from_secs(60), async || {
            (driver.metric("cache_models{state=\"evictable\"}").await > 0).then_some(())
        })
        .await;
        let looked = driver.log().contains("checking the limits of the cache failed");
        assert!(!looked, "{}", driver.log());
    });
}
