//! One node downloads one object version once, however many pods ask for it
//! and however often they are cancelled.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::time::Duration;

use crate::support::driver::{Driver, Setup};
use crate::support::kubelet::{Kubelet, Volume};
use crate::support::models::{BUCKET, MIB, PHI3, PREFIX, assert_synthetic, put_large};
use crate::support::run::{end_to_end, eventually, figure, ratio};
use localstore::{Action, LocalStore, Operation, PutOptions, Rule};
use tokio::task::JoinSet;
use tonic::Code;

/// Files of the model, by seed and size.
const FILES: [(u64, u64); 4] = [(1, 25 * MIB + 1), (2, 20 * MIB), (3, 17 * MIB - 5), (4, 4)];

const PODS: usize = 50;

fn size() -> u64 {
    FILES.iter().map(|(_, size)| size).sum()
}

fn store() -> LocalStore {
    let store = LocalStore::builder().start().unwrap();
    for (seed, size) in FILES {
        put_large(&store, &format!("{seed}.bin"), size, seed, PutOptions::default());
    }
    store
}

/// Limits the store's rate so that the model takes this many seconds.
fn throttle(store: &LocalStore, seconds: u64) -> u64 {
    let bandwidth = Action::Bandwidth { bytes_per_sec: size() / seconds };
    store.faults().add(Rule::new(bandwidth).operation(Operation::Get))
}

/// All pods mount at once, each retrying until it succeeds. Returns their volumes.
async fn mount_all(kubelet: &Kubelet) -> Vec<Arc<Volume>> {
    let mut mounting = JoinSet::new();
    for pod in 0..PODS {
        let volume = Arc::new(kubelet.inline(&pod.to_string(), &PHI3));
        mounting.spawn(async move {
            volume.mount().await;
            volume
        });
    }
    mounting.join_all().await
}

fn assert_complete(volumes: &[Arc<Volume>]) {
    for volume in volumes {
        let file = volume.target().join("4.bin");
        assert_synthetic(&file, 4, 4);
    }
    for (seed, size) in FILES {
        assert_synthetic(&volumes[0].target().join(format!("{seed}.bin")), seed, size);
    }
}

/// Every code of all calls, and how often it was returned.
fn codes(volumes: &[Arc<Volume>]) -> Vec<(Code, usize)> {
    let mut codes: Vec<(Code, usize)> = Vec::new();
    for call in volumes.iter().flat_map(|volume| volume.calls()) {
        match codes.iter_mut().find(|(code, _)| *code == call.code) {
            Some((_, count)) => *count += 1,
            None => codes.push((call.code, 1)),
        }
    }
    codes
}

#[test]
fn fifty_pods_that_start_at_once_cost_one_download() {
    end_to_end(async |scratch| {
        let store = store();
        let driver = Driver::start(scratch, &store).await;
        let volumes = mount_all(&driver.kubelet()).await;
        assert_complete(&volumes);
        let served = store.stats().body_bytes;
        figure(format_args!(
            "{PODS} pods at once: {served} bytes served for a model of {} ({:.3})",
            size(),
            ratio(served, size())
        ));
        assert_eq!(served, size());
        assert_eq!(driver.leases(), PODS);
        assert_eq!(driver.metric("publish_total{result=\"downloaded\"}").await, 1);
    });
}

/// Fifty pods whose calls never last longer than two seconds, during a
/// download of fifteen.
async fn cancelled_repeatedly(scratch: &std::path::Path, sends_deadline: bool) {
    let store = store();
    throttle(&store, 15);
    let driver = Driver::start(scratch, &store).await;
    let mut kubelet = driver.kubelet();
    kubelet.deadline = Duration::from_secs(2);
    kubelet.sends_deadline = sends_deadline;
    kubelet.longest_backoff = Duration::from_secs(1);
    let volumes = mount_all(&kubelet).await;
    assert_complete(&volumes);
    let (served, codes) = (store.stats().body_bytes, codes(&volumes));
    let how = if sends_deadline { "sent deadline" } else { "cancellation" };
    figure(format_args!(
        "{PODS} pods, every call ended after 2 s ({how}): {codes:?}, {served} bytes served for {} \
         ({:.3})",
        size(),
        ratio(served, size())
    ));
    assert_eq!(served, size());
    assert_eq!(driver.leases(), PODS);
    let not_final = [Code::Ok, Code::Aborted, Code::DeadlineExceeded, Code::Cancelled];
    assert!(codes.iter().all(|(code, _)| not_final.contains(code)), "{codes:?}");
    let failed = codes.iter().filter(|(code, _)| *code != Code::Ok).map(|(_, n)| n).sum::<usize>();
    assert!(failed > 3 * PODS, "too few calls ended early: {codes:?}");
    let aborted = codes.iter().any(|(code, _)| *code == Code::Aborted);
    assert!(!sends_deadline || aborted, "the answer comes before a known deadline: {codes:?}");
}

#[test]
fn pods_whose_calls_are_cancelled_every_two_seconds_cost_one_download() {
    end_to_end(async |scratch| cancelled_repeatedly(scratch, false).await);
}

#[test]
fn pods_with_a_deadline_of_two_seconds_cost_one_download() {
    end_to_end(async |scratch| cancelled_repeatedly(scratch, true).await);
}

#[test]
fn models_that_share_an_object_download_it_once() {
    end_to_end(async |scratch| {
        let store = store();
        throttle(&store, 4);
        let driver = Driver::start(scratch, &store).await;
        let kubelet = driver.kubelet();
        let filtered = [PHI3.as_slice(), &[("include", "1.bin,3.bin")]].concat();
        let volumes = [
            kubelet.inline("1", &PHI3),
            kubelet.inline("2", &filtered),
            kubelet.inline("3", &[("bucket", BUCKET), ("prefix", "models/")]),
        ];
        tokio::join!(volumes[0].mount(), volumes[1].mount(), volumes[2].mount());
        for (seed, size) in FILES {
            let name = format!("{PREFIX}{seed}.bin");
            assert_eq!(store.stats().bytes_of(BUCKET, &name), size, "{name}");
        }
        assert_synthetic(&volumes[1].target().join("1.bin"), 1, FILES[0].1);
        assert_synthetic(&volumes[2].target().join("phi3-mini/3.bin"), 3, FILES[2].1);
    });
}

#[test]
fn equal_bytes_under_two_names_of_a_listing_are_downloaded_and_stored_once() {
    end_to_end(async |scratch| {
        let store = store();
        for name in ["hub/blobs/0123", "hub/snapshots/main/model.bin"] {
            store.put(BUCKET, name, vec![7; 3 << 20]).unwrap();
        }
        store.put(BUCKET, "hub/snapshots/main/other.bin", vec![8; 3 << 20]).unwrap();
        let driver = Driver::start(scratch, &store).await;
        let kubelet = driver.kubelet();
        let volume = kubelet.inline("1", &[("bucket", BUCKET), ("prefix", "hub/")]);
        volume.mount().await;
        let inode = |name: &str| fs::metadata(volume.target().join(name)).unwrap().ino();
        assert_eq!(inode("blobs/0123"), inode("snapshots/main/model.bin"));
        assert_ne!(inode("blobs/0123"), inode("snapshots/main/other.bin"));
        let served = |name: &str| store.stats().bytes_of(BUCKET, name);
        let both = served("hub/blobs/0123") + served("hub/snapshots/main/model.bin");
        assert_eq!(both, 3 << 20);
        assert_eq!(served("hub/snapshots/main/other.bin"), 3 << 20);
        let read = fs::read(volume.target().join("snapshots/main/model.bin")).unwrap();
        assert!(read == vec![7; 3 << 20]);
    });
}

#[test]
fn a_download_without_callers_ends_and_is_resumed_later() {
    end_to_end(async |scratch| {
        let store = store();
        let slow = throttle(&store, 12);
        let setup = Setup::new(scratch, &store).with_config("download: {abandonAfter: 2s}\n");
        let driver = setup.start().await;
        let mut kubelet = driver.kubelet();
        kubelet.deadline = Duration::from_secs(4);
        kubelet.sends_deadline = false;
        let first = kubelet.inline("1", &PHI3);
        assert_eq!(first.refused().await.0, Code::DeadlineExceeded);
        assert_eq!(
            driver.metric("downloads_in_flight").await,
            1,
            "it continues without its caller"
        );
        first.unpublish().await.unwrap();
        eventually("the download is given up", Duration::from_secs(10), async || {
            (driver.metric("downloads_in_flight").await == 0).then_some(())
        })
        .await;
        assert!(driver.journals() > 0, "what was downloaded is kept");

        store.faults().remove(slow);
        let second = driver.kubelet().inline("2", &PHI3);
        second.publish().await.unwrap();
        let served = store.stats().body_bytes;
        assert!(ratio(served, size()) < 1.3, "{served} bytes were served for {}", size());
        assert_complete(&[Arc::new(second)]);
    });
}

#[test]
fn a_queued_model_is_reported_as_queued() {
    end_to_end(async |scratch| {
        let store = store();
        throttle(&store, 8);
        store.put(BUCKET, "other/config.json", b"{}").unwrap();
        let setup = Setup::new(scratch, &store).with_config("download: {maxModels: 1}\n");
        let driver = setup.start().await;
        let mut kubelet = driver.kubelet();
        kubelet.deadline = Duration::from_secs(2);
        let large = kubelet.inline("1", &PHI3);
        assert_eq!(large.refused().await.0, Code::Aborted);
        let small = kubelet.inline("2", &[("bucket", BUCKET), ("prefix", "other")]);
        let (code, message) = small.refused().await;
        assert_eq!(code, Code::Aborted);
        assert!(message.contains("download.maxModels"), "{message}");
        tokio::join!(large.mount(), small.mount());
    });
}

#[test]
fn a_second_call_on_a_busy_target_is_asked_to_retry() {
    end_to_end(async |scratch| {
        let store = store();
        throttle(&store, 5);
        let driver = Driver::start(scratch, &store).await;
        let kubelet = driver.kubelet();
        let (volume, twin) = (kubelet.inline("1", &PHI3), kubelet.inline("1", &PHI3));
        let busy = async {
            eventually("the download runs", Duration::from_secs(10), async || {
                (driver.metric("downloads_in_flight").await == 1).then_some(())
            })
            .await;
            let publish = twin.refused().await;
            let unpublish = twin.unpublish().await.unwrap_err();
            (publish, unpublish)
        };
        let (published, ((code, message), unpublish)) = tokio::join!(volume.publish(), busy);
        published.unwrap();
        assert_eq!((code, unpublish.code()), (Code::Aborted, Code::Aborted));
        assert!(message.contains("another call is running"), "{message}");
        assert_eq!(driver.leases(), 1);
    });
}
