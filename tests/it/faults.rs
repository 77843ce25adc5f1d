//! Faults of networks, services and disks during a download, and its outcome.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::support::driver::{Driver, Setup};
use crate::support::kubelet::Volume;
use crate::support::models::{BUCKET, MIB, PHI3, assert_synthetic, mounts_at, put, put_large};
use crate::support::namespace::mount_tmpfs;
use crate::support::run::{end_to_end, end_to_end_within, eventually, figure};
use localstore::{Action, LocalStore, Operation, PutOptions, Rule};
use nix::mount::MsFlags;
use tonic::Code;

const FILE: &str = "model.safetensors";
const SIZE: u64 = 9 * MIB + 11;

/// Several requests for one object, a few at a time.
const SMALL_RANGES: &str = "download: {rangeSize: 1MiB, concurrency: 4}\n";

fn store() -> LocalStore {
    let store = LocalStore::builder().start().unwrap();
    put_large(&store, FILE, SIZE, 1, PutOptions::default());
    store
}

fn in_ranges(scratch: &Path, store: &LocalStore) -> Setup {
    Setup::new(scratch, store).with_config(SMALL_RANGES)
}

fn on_get(action: Action) -> Rule {
    Rule::new(action).operation(Operation::Get)
}

/// How many requests the only rule has hit.
fn hits(store: &LocalStore) -> u64 {
    store.faults().list().iter().map(|rule| rule.hits).sum()
}

/// One publish through transient faults: complete and exact at the first call.
async fn assert_heals(scratch: &Path, faults: Vec<Rule>) {
    let store = store();
    let driver = in_ranges(scratch, &store).start().await;
    for (pod, rule) in faults.into_iter().enumerate() {
        let seed = 100 + pod as u64;
        put_large(&store, FILE, SIZE, seed, PutOptions::default());
        let (shown, times) = (format!("{:?}", rule.action), rule.times.unwrap_or(1));
        store.faults().add(rule);
        let volume = driver.kubelet().inline(&pod.to_string(), &PHI3);
        volume.publish().await.unwrap_or_else(|error| panic!("{shown}: {error}"));
        assert_synthetic(&volume.target().join(FILE), seed, SIZE);
        assert_eq!(hits(&store), times, "{shown}");
        store.faults().clear();
    }
}

#[test]
fn transient_service_errors_are_not_seen_by_the_pod() {
    end_to_end(async |scratch| {
        let mut faults: Vec<Rule> =
            [429, 500, 502, 503].map(|code| on_get(Action::status(code)).times(3)).into();
        faults.push(on_get(Action::status(404)).times(1));
        for operation in [Operation::List, Operation::Head] {
            faults.push(Rule::new(Action::status(503)).operation(operation).times(2));
            faults.push(Rule::new(Action::Disconnect).operation(operation).times(2));
        }
        assert_heals(scratch, faults).await;
    });
}

#[test]
fn broken_connections_are_resumed_at_the_byte_they_reached() {
    end_to_end(async |scratch| {
        let faults = vec![
            on_get(Action::Disconnect).times(4),
            on_get(Action::ResetAfter { bytes: 300_000 }).times(4),
            on_get(Action::ResetAfter { bytes: 0 }).times(2),
            on_get(Action::ShortBody { missing: 1000 }).times(4),
        ];
        assert_heals(scratch, faults).await;
    });
}

/// Where requests began that resumed in the middle of a range, by range.
fn resumed_at(store: &LocalStore) -> BTreeMap<u64, u64> {
    let starts = store.requests().into_iter().filter_map(|request| {
        let range = request.range.filter(|_| request.operation == Operation::Get)?;
        range.trim_start_matches("bytes=").split('-').next()?.parse::<u64>().ok()
    });
    starts.filter(|start| start % MIB != 0).map(|start| (start / MIB, start % MIB)).collect()
}

#[test]
fn a_reset_costs_only_the_lost_bytes() {
    end_to_end(async |scratch| {
        let store = store();
        let driver = in_ranges(scratch, &store).start().await;
        store.faults().add(on_get(Action::ResetAfter { bytes: 900_000 }).times(3));
        let volume = driver.kubelet().inline("1", &PHI3);
        volume.publish().await.unwrap();
        assert_eq!(hits(&store), 3);
        // Each of the three was resumed; bytes on the wire may be lost.
        let resumed = resumed_at(&store);
        assert_eq!(resumed.len(), 3, "{resumed:?}");
        let lost: u64 = resumed.values().map(|progress| 900_000 - progress).sum();
        assert_eq!(store.stats().body_bytes, SIZE + lost, "{resumed:?}");
    });
}

#[test]
fn a_connection_that_is_closed_early_costs_no_byte() {
    end_to_end(async |scratch| {
        let store = store();
        let driver = in_ranges(scratch, &store).start().await;
        store.faults().add(on_get(Action::ShortBody { missing: 1000 }).times(3));
        let volume = driver.kubelet().inline("1", &PHI3);
        volume.publish().await.unwrap();
        assert_eq!(hits(&store), 3);
        let resumed = resumed_at(&store);
        let whole_but_1000 = resumed.values().filter(|progress| **progress == MIB - 1000);
        assert_eq!((whole_but_1000.count(), store.stats().body_bytes), (3, SIZE), "{resumed:?}");
    });
}

#[test]
fn answers_with_another_range_are_never_written() {
    end_to_end(async |scratch| {
        let faults =
            vec![on_get(Action::WrongRange).times(4), on_get(Action::IgnoreRange).times(4)];
        assert_heals(scratch, faults).await;
    });
}

#[test]
fn a_silent_connection_is_abandoned_after_half_a_minute() {
    end_to_end(async |scratch| {
        assert_heals(scratch, vec![on_get(Action::StallAfter { bytes: 100_000 }).times(2)]).await;
    });
}

#[test]
fn retry_after_is_honoured_and_throttling_is_counted() {
    end_to_end(async |scratch| {
        let store = store();
        let driver = in_ranges(scratch, &store).start().await;
        store.faults().add(on_get(Action::retry_after(429, 3)).times(2));
        let volume = driver.kubelet().inline("1", &PHI3);
        volume.publish().await.unwrap();
        assert!(volume.calls()[0].took >= Duration::from_secs(3), "{:?}", volume.calls());
        assert_eq!(driver.metric("object_storage_throttled_total").await, 2);
        let series = "object_storage_requests_total{operation=\"GetObject\",status=\"429\"}";
        assert_eq!(driver.metric(series).await, 2);
    });
}

#[test]
fn a_byte_that_was_flipped_on_the_way_is_healed_and_counted() {
    end_to_end(async |scratch| {
        let store = store();
        let driver = in_ranges(scratch, &store).start().await;
        store.faults().add(on_get(Action::FlipByte { offset: 5 * MIB }).times(1));
        let volume = driver.kubelet().inline("1", &PHI3);
        volume.publish().await.unwrap();
        assert_synthetic(&volume.target().join(FILE), 1, SIZE);
        let metrics = driver.metrics().await;
        let failed: Vec<&str> = metrics
            .lines()
            .filter(|line| line.contains("verify_total{") && line.contains("\"failed\""))
            .collect();
        assert!(failed.len() == 1 && failed[0].ends_with(" 1"), "{failed:?}");
        assert_eq!(driver.metric("verify_total{check=\"md5\",result=\"passed\"}").await, 1);
    });
}

#[test]
fn bytes_that_are_damaged_every_time_are_data_loss_and_never_published() {
    end_to_end(async |scratch| {
        let store = store();
        let driver = in_ranges(scratch, &store).start().await;
        let rule = store.faults().add(on_get(Action::FlipByte { offset: 5 * MIB }));
        let volume = driver.kubelet().inline("1", &PHI3);
        let (code, message) = volume.refused().await;
        assert_eq!(code, Code::DataLoss, "{message}");
        assert!(message.contains(FILE) && message.contains("checksum"), "{message}");
        assert_eq!((driver.leases(), mounts_at(&volume.target()).len()), (0, 0));
        assert_eq!(driver.metric("downloads_in_flight").await, 0);
        assert!(driver.in_cache("blobs").is_empty(), "a damaged blob was committed");
        store.faults().remove(rule);
        volume.mount().await;
        assert_synthetic(&volume.target().join(FILE), 1, SIZE);
    });
}

#[test]
fn an_object_that_is_replaced_meanwhile_is_resolved_again_and_never_mixed() {
    end_to_end(async |scratch| {
        let store = store();
        put(&store, "config.json", b"{}");
        let driver = in_ranges(scratch, &store).start().await;
        let replace = Action::ReplaceObject { seed: 2, size: Some(SIZE + MIB) };
        store.faults().add(on_get(replace).object(format!("*{FILE}")).skip(3).times(1));
        let volume = driver.kubelet().inline("1", &PHI3);
        volume.publish().await.unwrap();
        assert_eq!(hits(&store), 1);
        assert!(store.stats().answered(Operation::Get, 412) > 0);
        assert_synthetic(&volume.target().join(FILE), 2, SIZE + MIB);
        let pinned = store.requests().into_iter().filter(|r| r.operation == Operation::Get);
        assert!(pinned.into_iter().all(|request| request.if_match.is_some()));
    });
}

#[test]
fn an_object_that_keeps_changing_is_a_failed_precondition() {
    end_to_end(async |scratch| {
        let store = store();
        let driver = in_ranges(scratch, &store).start().await;
        let rule =
            store.faults().add(on_get(Action::ReplaceObject { seed: 3, size: None }).skip(2));
        let volume = driver.kubelet().inline("1", &PHI3);
        let (code, message) = volume.refused().await;
        assert_eq!(code, Code::FailedPrecondition, "{message}");
        assert!(message.contains("kept changing"), "{message}");
        assert_eq!((driver.leases(), mounts_at(&volume.target()).len()), (0, 0));
        store.faults().remove(rule);
        volume.mount().await;
        assert_synthetic(&volume.target().join(FILE), 3, SIZE);
    });
}

#[test]
fn an_object_that_is_deleted_meanwhile_is_resolved_again() {
    end_to_end(async |scratch| {
        let store = store();
        put(&store, "config.json", b"{}");
        let bandwidth = Action::Bandwidth { bytes_per_sec: SIZE / 4 };
        store.faults().add(on_get(bandwidth));
        let driver = in_ranges(scratch, &store).start().await;
        let volume = driver.kubelet().inline("1", &PHI3);
        let (published, ()) = tokio::join!(volume.publish(), async {
            eventually("the download runs", Duration::from_secs(10), async || {
                (store.stats().body_bytes > 2 * MIB).then_some(())
            })
            .await;
            store.delete(BUCKET, &format!("{}{FILE}", crate::support::models::PREFIX)).unwrap();
        });
        published.unwrap();
        let names: Vec<String> =
            crate::support::models::content_of(&volume.target()).into_keys().collect();
        assert_eq!(names, ["config.json"]);
    });
}

#[test]
fn a_refused_token_is_replaced_once_and_the_request_repeated() {
    end_to_end(async |scratch| {
        let store = store();
        let driver = in_ranges(scratch, &store).with_instance_principal(&store).start().await;
        for (seed, operation) in [(7, Operation::List), (8, Operation::Get)] {
            put_large(&store, FILE, SIZE, seed, PutOptions::default());
            store.faults().add(Rule::new(Action::status(401)).operation(operation).times(1));
            let before = store.stats().tokens_issued;
            let volume = driver.kubelet().inline(&seed.to_string(), &PHI3);
            volume.publish().await.unwrap();
            assert_synthetic(&volume.target().join(FILE), seed, SIZE);
            assert_eq!(hits(&store), 1);
            assert!(store.stats().tokens_issued > before, "{operation:?}");
            store.faults().clear();
        }
    });
}

#[test]
fn tokens_that_live_twenty_seconds_are_replaced_before_a_request_is_refused() {
    end_to_end_within(Duration::from_secs(300), async |scratch| {
        let store = LocalStore::builder().token_ttl(Duration::from_secs(20)).start().unwrap();
        put_large(&store, FILE, 120 * MIB, 1, PutOptions::default());
        store.faults().add(on_get(Action::Bandwidth { bytes_per_sec: MIB }));
        let setup = in_ranges(scratch, &store).with_instance_principal(&store);
        store.reset_stats();
        let driver = setup.start().await;
        let volume = driver.kubelet().inline("1", &PHI3);
        volume.mount().await;
        let stats = store.stats();
        let refused: u64 =
            stats.requests.values().filter_map(|by_status| by_status.get(&401)).sum();
        figure(format_args!(
            "download of two minutes with tokens of 20 s: {} tokens, {} refused as expired, {refused} \
             requests answered 401",
            stats.tokens_issued, stats.expired_token_refusals
        ));
        assert!(stats.tokens_issued > 6, "the first, and more than five replacements");
        assert_eq!((stats.expired_token_refusals, refused), (0, 0));
        assert_synthetic(&volume.target().join(FILE), 1, 120 * MIB);
    });
}

#[test]
fn an_identity_service_that_cannot_be_reached_is_unavailable_and_heals() {
    end_to_end(async |scratch| {
        let store = store();
        let driver = in_ranges(scratch, &store).with_instance_principal(&store).start().await;
        let rule =
            store.faults().add(Rule::new(Action::Disconnect).operation(Operation::Federation));
        let volume = driver.kubelet().inline("1", &PHI3);
        let (code, message) = volume.refused().await;
        assert_eq!(code, Code::Unavailable, "{message}");
        assert!(message.contains("8 attempts"), "{message}");
        // Retried by one policy, not by one in each layer.
        assert_eq!(hits(&store), 8);
        store.faults().remove(rule);
        volume.mount().await;
    });
}

#[test]
fn a_start_needs_neither_identity_nor_object_storage() {
    end_to_end(async |scratch| {
        let store = store();
        let everything = store.faults().add(Rule::new(Action::Disconnect));
        let driver = in_ranges(scratch, &store).with_instance_principal(&store).start().await;
        assert_eq!(store.requests().len(), 0, "no request was sent");
        store.faults().remove(everything);
        driver.kubelet().inline("1", &PHI3).publish().await.unwrap();
    });
}

#[test]
fn every_checksum_that_an_object_can_carry_is_compared_and_counted() {
    end_to_end(async |scratch| {
        let store = LocalStore::builder().start().unwrap();
        let plain = PutOptions::default;
        put_large(&store, "md5.bin", SIZE, 1, plain());
        put_large(&store, "crc32c.bin", SIZE, 2, PutOptions { crc32c: true, ..plain() });
        let parts = PutOptions { part_size: Some(5 * MIB), ..plain() };
        put_large(&store, "parts.bin", SIZE, 3, parts.clone());
        put_large(&store, "both.bin", SIZE, 4, PutOptions { crc32c: true, ..parts });
        put_large(&store, "none.bin", SIZE, 5, PutOptions { no_checksums: true, ..plain() });
        put(&store, "empty.bin", b"");
        let driver = in_ranges(scratch, &store).start().await;
        let volume = driver.kubelet().inline("1", &PHI3);
        volume.publish().await.unwrap();
        for (check, count) in
            [("md5", 1), ("crc32c", 2), ("multipart_md5", 1), ("size_etag", 1), ("empty", 1)]
        {
            let series = format!("verify_total{{check=\"{check}\",result=\"passed\"}}");
            assert_eq!(driver.metric(&series).await, count, "{check}");
        }
    });
}

#[test]
fn a_model_that_does_not_fit_is_refused_with_the_numbers_before_the_first_byte() {
    end_to_end(async |scratch| {
        let store = LocalStore::builder().start().unwrap();
        put_large(&store, FILE, 30 * MIB, 1, PutOptions::default());
        let config = format!("cache: {{minFree: 4MiB, minFreeInodes: 0%}}\n{SMALL_RANGES}");
        let setup = Setup::new(scratch, &store).with_config(&config);
        fs::create_dir(&setup.cache).unwrap();
        mount_tmpfs(&setup.cache, MsFlags::empty(), "48m");
        let driver = setup.start().await;
        let ballast = driver.setup.cache.join("ballast");
        fs::write(&ballast, vec![1; 20 * 1024 * 1024]).unwrap();

        let volume = driver.kubelet().inline("1", &PHI3);
        let (code, message) = volume.refused().await;
        assert_eq!(code, Code::ResourceExhausted, "{message}");
        for part in ["needs 30 MiB", " available in ", "above the 8 % reserve", "0 B evictable"] {
            assert!(message.contains(part), "{part:?} is not in {message:?}");
        }
        assert_eq!(store.stats().body_bytes, 0);
        assert_eq!((driver.leases(), driver.journals()), (0, 0));
        fs::remove_file(&ballast).unwrap();
        volume.mount().await;
        assert_synthetic(&volume.target().join(FILE), 1, 30 * MIB);
    });
}

/// A download of 30 MiB into a file system of 40, of which a neighbour takes
/// `ballast` bytes, or as many as there are, while the download runs.
async fn beside_a_neighbour(scratch: &Path, ballast: usize) -> (LocalStore, Driver, Volume) {
    let store = LocalStore::builder().start().unwrap();
    put_large(&store, FILE, 30 * MIB, 1, PutOptions::default());
    store.put(BUCKET, "other/model.bin", vec![7; 12 * 1024 * 1024]).unwrap();
    store.faults().add(on_get(Action::Bandwidth { bytes_per_sec: 10 * MIB }));
    let setup = in_ranges(scratch, &store);
    fs::create_dir(&setup.cache).unwrap();
    mount_tmpfs(&setup.cache, MsFlags::empty(), "40m");
    let driver = setup.start().await;
    let kubelet = driver.kubelet();
    let volume = kubelet.inline("1", &PHI3);
    let (_, (code, message)) = tokio::join!(volume.publish(), async {
        eventually("the download runs", Duration::from_secs(10), async || {
            (store.stats().body_bytes > MIB).then_some(())
        })
        .await;
        // A running download counts, though most of its bytes are still missing.
        let other = kubelet.inline("2", &[("bucket", BUCKET), ("prefix", "other")]);
        let refused = other.refused().await;
        // Truncated where the disk is full, as intended.
        let _ = fs::write(driver.setup.cache.join("ballast"), vec![1; ballast]);
        refused
    });
    assert_eq!(code, Code::ResourceExhausted, "{message}");
    (store, driver, volume)
}

#[test]
fn a_neighbour_that_fills_the_disk_does_not_stop_an_admitted_download() {
    end_to_end(async |scratch| {
        let nearly_all = 9 * 1024 * 1024 + 512 * 1024;
        let (_store, _driver, volume) = beside_a_neighbour(scratch, nearly_all).await;
        assert_eq!(volume.calls()[0].code, Code::Ok, "{:?}", volume.calls());
        assert_synthetic(&volume.target().join(FILE), 1, 30 * MIB);
    });
}

#[test]
fn a_disk_that_is_full_to_the_last_byte_costs_no_second_download() {
    end_to_end(async |scratch| {
        let (store, driver, volume) = beside_a_neighbour(scratch, 20 * 1024 * 1024).await;
        let first = volume.calls().remove(0);
        assert_eq!(first.code, Code::ResourceExhausted, "{}", first.message);
        assert!(first.message.contains("No space left"), "{}", first.message);
        assert_eq!(driver.leases(), 0);
        fs::remove_file(driver.setup.cache.join("ballast")).unwrap();
        volume.mount().await;
        assert_synthetic(&volume.target().join(FILE), 1, 30 * MIB);
        assert_eq!(store.stats().body_bytes, 30 * MIB);
    });
}
