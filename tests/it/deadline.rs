//! A download of three minutes, through kubelet's deadlines of two.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::driver::Driver;
use crate::support::kubelet::Call;
use crate::support::models::{MIB, PHI3, assert_synthetic, put_large};
use crate::support::run::{end_to_end_within, eventually, figure, ratio};
use localstore::{Action, LocalStore, Operation, PutOptions, Rule};
use tonic::Code;

const SIZE: u64 = 360 * MIB;
const BYTES_PER_SEC: u64 = 2 * MIB;
const LIMIT: Duration = Duration::from_secs(400);

fn slow_store() -> LocalStore {
    let store = LocalStore::builder().start().unwrap();
    put_large(&store, "model.safetensors", SIZE, 1, PutOptions::default());
    let bandwidth = Action::Bandwidth { bytes_per_sec: BYTES_PER_SEC };
    store.faults().add(Rule::new(bandwidth).operation(Operation::Get));
    store
}

/// `downloading …: 41.2 of 140 GiB (29 %%), 1.1 GiB/s, about 1m30s left`, where kubelet's event has one `%`.
#[track_caller]
fn assert_progress(call: &Call) {
    let (_, progress) = call.message.split_once(": ").expect("the model, then the progress");
    for part in [" of 360 MiB (", " %%), ", " MiB/s, about ", " left"] {
        assert!(progress.contains(part), "{part:?} is not in {:?}", call.message);
    }
}

fn report(what: &str, calls: &[Call], served: u64, started: Instant) {
    let codes: Vec<Code> = calls.iter().map(|call| call.code).collect();
    figure(format_args!(
        "{what}: {:.0?}, {} calls {codes:?}, {served} bytes served for {SIZE} ({:.3})",
        started.elapsed(),
        calls.len(),
        ratio(served, SIZE)
    ));
    for call in calls.iter().filter(|call| call.code != Code::Ok) {
        figure(format_args!("{what}: after {:.0?} {:?}: {}", call.took, call.code, call.message));
    }
}

async fn through_deadlines(scratch: &Path) {
    let store = slow_store();
    let driver = Driver::start(scratch, &store).await;
    let volume = driver.kubelet().inline("1", &PHI3);
    let started = Instant::now();
    let calls = volume.mount().await;
    let served = store.stats().body_bytes;
    report("three-minute download", &volume.calls(), served, started);
    assert_eq!(served, SIZE, "every byte is asked for once");
    assert!(calls <= 3, "{calls} calls");
    for call in &volume.calls()[..calls - 1] {
        assert_eq!(call.code, Code::Aborted);
        assert_progress(call);
    }
    assert_synthetic(&volume.target().join("model.safetensors"), 1, SIZE);
}

async fn with_a_sigkill(scratch: &Path) {
    let store = slow_store();
    let mut driver = Driver::start(scratch, &store).await;
    let volume = driver.kubelet().inline("1", &PHI3);
    let started = Instant::now();
    let murder = async {
        eventually("a good half is downloaded", Duration::from_secs(200), async || {
            (store.stats().body_bytes > SIZE / 2).then_some(())
        })
        .await;
        driver.kill().await;
        let ready = driver.restart().await;
        figure(format_args!("restart in mid-download: ready after {ready:.0?}"));
        assert!(driver.log().contains("resumable=1"));
    };
    let (calls, ()) = tokio::join!(volume.mount(), murder);
    let served = store.stats().body_bytes;
    report("three-minute download with a SIGKILL", &volume.calls(), served, started);
    assert!(served >= SIZE);
    assert!(ratio(served, SIZE) < 1.15, "the journal saves what was downloaded");
    assert!(calls <= 5, "{calls} calls");
    let codes: Vec<Code> = volume.calls().iter().map(|call| call.code).collect();
    let expected = [Code::Aborted, Code::Unavailable, Code::Cancelled, Code::Ok];
    assert!(codes.iter().all(|code| expected.contains(code)), "{codes:?}");
    assert_synthetic(&volume.target().join("model.safetensors"), 1, SIZE);
    assert_eq!((driver.leases(), driver.journals()), (1, 0));
}

#[test]
fn a_download_of_three_minutes_outlives_every_call_that_asks_for_it() {
    end_to_end_within(LIMIT, async |scratch| through_deadlines(scratch).await);
}

#[test]
fn a_driver_that_is_killed_in_the_middle_resumes_the_download() {
    end_to_end_within(LIMIT, async |scratch| with_a_sigkill(scratch).await);
}
